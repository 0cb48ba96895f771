"""Figures 1 and 3 of the paper, redrawn from our own run: `python -m benchmarks.mask_figures`.

Fashion-MNIST with the paper's CNN, 100 clients, 20 of them malicious, q = 0.5. Figure 1: the first
two principal components of the updates, and of their masks, under Min-Sum. Figure 3: the share of
ones in each layer's masks while they are trained, under Fang-Trim. Drawn by kaleido in a Chromium.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kaleido
import torch
from torch import Tensor

import skymask as sm
from benchmarks.writing import RESULTS
from skymask.defences.masking import trained_masks
from skymask.geometry import principal_components
from skymask.masks import MaskTraining

DOCS = RESULTS.parent / "docs"
TRAINING = MaskTraining(gamma=100.0, relative=True, steps=20, tolerance=0.0, tau=0.5)
MODULES = {"convolution 1": "0.", "convolution 2": "3.", "hidden": "7.", "output": "9."}
HONEST, MALICIOUS, ROOT = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's


@dataclass(frozen=True)
class Watching:
    """SkyMask, which keeps the last round that it was given."""

    seen: list[tuple[Tensor, sm.Round]]

    def __call__(self, updates: Tensor, round: sm.Round) -> sm.Decision:
        """Decide as SkyMask does."""
        self.seen[:] = [(updates.clone(), round)]
        return sm.SkyMask()(updates, round)


def last_round(
    attack: sm.Attack, rounds: int, data_dir: str | None
) -> tuple[Tensor, sm.Round, Tensor]:
    """Updates (n, d) and the round, after so many rounds with SkyMask; who was malicious (n,)."""
    from skymask.simulation import malicious_clients

    seen: list[tuple[Tensor, sm.Round]] = []
    e = sm.Experiment(data="fashion-mnist", attack=attack, defence=Watching(seen), rounds=rounds)
    sm.simulate(e, data_dir=data_dir)
    ((updates, round),) = seen
    return updates, round, malicious_clients(100, e.malicious, e.seed)


def needed(round: sm.Round, field: str) -> Any:
    """A field of the round that must be there."""
    value = getattr(round, field)
    assert value is not None, field
    return value


def components(updates: Tensor, round: sm.Round, bad: Tensor) -> dict[str, Any]:
    """Figure 1: updates on the left, masks on the right; the server's own is the last row."""
    rows = torch.cat([updates, needed(round, "server_update")[None]])
    masks = trained_masks(TRAINING, updates, round, root=True).bits
    traces = []
    for place, of in enumerate((rows, masks), 1):
        points = principal_components(of, 2).cpu()
        for name, which, colour, symbol in (
            ("honest", ~bad, HONEST, "circle"),
            ("malicious", bad, MALICIOUS, "x"),
            ("the server's own", None, ROOT, "star"),
        ):
            at = points[-1:] if which is None else points[:-1][which]
            marker = {"color": colour, "symbol": symbol, "size": 14 if which is None else 8}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "showlegend": place == 1,
                    "x": at[:, 0].tolist(),
                    "y": at[:, 1].tolist(),
                    "xaxis": f"x{place}",
                    "yaxis": f"y{place}",
                    "marker": marker,
                }
            )
    layout = _layout(880, 400)
    for place, (title, start) in enumerate((("updates", 0.0), ("masks", 0.54)), 1):
        axis = {"showticklabels": False, "zeroline": False, "showline": True, "mirror": True}
        layout[f"xaxis{place}"] = axis | {
            "domain": [start, start + 0.46],
            "title": {"text": f"first component of the {title}"},
            "anchor": f"y{place}",
        }
        layout[f"yaxis{place}"] = axis | {
            "anchor": f"x{place}",
            "title": {"text": "second component"},
        }
    return {"data": traces, "layout": layout}


def shares(updates: Tensor, round: sm.Round, bad: Tensor) -> dict[str, Any]:
    """Figure 3: mean share of ones of the malicious and the honest clients, step by step."""
    loss, root, params = needed(round, "loss"), needed(round, "root"), needed(round, "params")
    parts = {
        name: [at for key, at in round.layers.items() if key.startswith(start)]
        for name, start in MODULES.items()
    }
    ones: list[dict[str, Tensor]] = []

    def share(bits: Tensor, slices: list[slice]) -> Tensor:
        return torch.cat([bits[:-1, at] for at in slices], 1).float().mean(1)

    def watch(step: int, values: Tensor) -> None:
        bits = values.sigmoid() > TRAINING.tau
        ones.append({name: share(bits, slices) for name, slices in parts.items()})

    def gradient(shift: Tensor) -> Tensor:
        slope: Tensor = loss.gradient(params + shift, root) * len(root.labels)
        return slope

    own = needed(round, "server_update")
    TRAINING(torch.cat([updates, own[None]]), gradient, watch)
    traces = []
    layout = _layout(880, 330)
    for place, name in enumerate(MODULES, 1):
        for kind, which, colour, dash in (
            ("honest", ~bad, HONEST, "solid"),
            ("malicious", bad, MALICIOUS, "dash"),
        ):
            y = [1.0] + [float(step[name][which].mean()) for step in ones]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": kind,
                    "showlegend": place == 1,
                    "x": list(range(len(y))),
                    "y": y,
                    "xaxis": f"x{place}",
                    "yaxis": "y",
                    "line": {"color": colour, "dash": dash, "width": 3},
                }
            )
        layout[f"xaxis{place}"] = {
            "domain": [0.26 * (place - 1), 0.26 * (place - 1) + 0.22],
            "title": {"text": f"{name}: step"},
            "showline": True,
        }
    layout["yaxis"] = {"title": {"text": "share of ones"}, "tickformat": ".0%", "showline": True}
    return {"data": traces, "layout": layout}


def _layout(width: int, height: int) -> dict[str, Any]:
    return {
        "template": {},
        "width": width,
        "height": height,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "sans-serif", "size": 14, "color": "#1b1f24"},
        "margin": {"l": 60, "r": 15, "t": 45, "b": 50},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }


def main() -> None:
    """Draw both figures into docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--data-dir")
    o = parser.parse_args()
    for name, attack, draw in (
        ("masks-min-sum", sm.MinSum(), components),
        ("ones-fang-trim", sm.FangTrim(), shares),
    ):
        figure = draw(*last_round(attack, o.rounds, o.data_dir))
        drawn = kaleido.calc_fig_sync(figure, opts={"format": "svg"})
        Path(DOCS / f"{name}.svg").write_bytes(drawn)
        print(DOCS / f"{name}.svg")


if __name__ == "__main__":
    main()
