"""A run's folder, read: who was thrown out, how often and why, and a figure of your own.

Writes a run and a page with a figure into a new folder, whose name it prints.
The figure needs plotly: `pip install plotly`.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

import plotly.graph_objects as go

import skymask as sm


def make_a_run(folder: Path) -> None:
    """Digits, 20 clients, six of them malicious from round 10 on."""
    experiment = sm.Experiment(
        data="digits",
        attack=sm.StartsAt(10, sm.SignFlip()),
        defence=sm.SkyMask(),
        malicious=0.3,
        rounds=40,
    )
    sm.simulate(experiment, device="cpu", out=folder)


def rejections(folder: Path) -> dict[int, dict[str, str]]:
    """Round -> client -> why it was left out, from the lines of rounds.jsonl."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return {record["round"]: record["rejected"] for record in map(json.loads, lines)}


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp()) / "run"
    make_a_run(folder)
    malicious = set(
        map(str, json.loads((folder / "manifest.json").read_text())["malicious_clients"])
    )
    by_round = rejections(folder)

    times = Counter(client for rejected in by_round.values() for client in rejected)
    for client, count in times.most_common():
        kind = "malicious" if client in malicious else "honest"
        last = max(t for t, rejected in by_round.items() if client in rejected)
        print(f"client {client:>2} ({kind}): out in {count} rounds, last {by_round[last][client]}")

    figure = go.Figure(go.Bar(x=list(by_round), y=[len(out) for out in by_round.values()]))
    figure.update_layout(xaxis_title="round", yaxis_title="clients left out")
    figure.write_html(folder / "left-out.html")
    print(f"figure: {folder / 'left-out.html'}")
