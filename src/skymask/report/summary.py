"""What is said of a run: the same words and numbers for the page and for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from skymask.progress import percent
from skymask.report.read import read_runs
from skymask.report.run import Run, mean, natural, number

_CLIENTS = 50  # rows of the table of rejected clients
_STRETCHES = 10  # rows of the table that says what the figures show


def render_table(folders: Sequence[Path]) -> Table:
    """The summary of the runs in `folders` for a terminal, a column each.

    Raises `InputError` where a folder holds no run or damaged records.
    """
    runs = read_runs(folders)
    table = Table("", *(Column(Text(clean(run.name)), overflow="fold") for run in runs))
    columns = [headline(run) | facts(run) for run in runs]
    for label in dict.fromkeys(label for column in columns for label in column):
        table.add_row(label, *(Text(column.get(label, "-")) for column in columns))
    return table


def title(runs: Sequence[Run]) -> str:
    """What the report is about, in a line."""
    if len(runs) != 1:
        return f"{len(runs)} runs compared" if runs else "Waiting for a run"
    if runs[0].kind == "federation":
        return f"Federation: {federation(runs[0])}"
    e = runs[0].experiment
    attack = component(e.get("attack"))
    against = "without attack" if attack == "none" else f"against {attack}"
    return f"{e.get('data')}: {component(e.get('defence'))} {against}"


def headline(run: Run) -> dict[str, str]:
    """The numbers a reader looks for first, by their labels."""
    if run.kind == "federation":
        out = sum(text.startswith("excluded") for text in (run.standing or {}).values())
        found = {"nodes": str(run.clients), "excluded now": str(out)}
        found["ever rejected"] = str(len(run.rejections))
        return found | {"accuracy": percent(run.totals["accuracy"])}
    labels = {"accuracy": "accuracy", "accuracy_last5": "last 5 evaluations"}
    labels |= {"fpr": "FPR", "fnr": "FNR"}
    return {label: percent(run.totals[field]) for field, label in labels.items()}


def facts(run: Run) -> dict[str, str]:
    """What was run and how far it got, by labels."""
    if run.kind == "federation":
        return _federation_facts(run)
    e = run.experiment
    share = number(str(run.folder / "manifest.json"), e, "malicious")
    ended = str(run.rounds) if run.finished else f"{run.rounds} of {e.get('rounds', '-')}"
    found = {
        "data": e.get("data", "-"),
        "model": e.get("model", "-"),
        "attack": component(e.get("attack")),
        "defence": component(e.get("defence")),
        "malicious": "-" if share is None else f"{100 * share:g} %",
        "clients": e.get("clients", "-"),
        "rounds": ended,
        "time": duration(run.totals["seconds"]),
        "device": run.manifest.get("device", "-"),
        "seed": e.get("seed", "-"),
        "state": "finished" if run.finished else "unfinished",
    }
    if run.totals["attack_success"] is not None:
        found["attack success"] = percent(run.totals["attack_success"])
    if e.get("honest_only") is True:
        found["malicious"] = f"{found['malicious']}, who stay away"
    if run.fallbacks:
        found["fallbacks"] = f"{run.fallbacks} of {run.rounds} rounds left the model as it was"
    return {label: clean(value) for label, value in found.items()}


def federation(run: Run) -> str:
    """The defence and the strategy behind it."""
    return f"{run.manifest.get('defence', '-')} around {run.manifest.get('inner', '-')}"


def _federation_facts(run: Run) -> dict[str, str]:
    about = run.manifest
    policy = about.get("policy")
    found = {
        "defence": about.get("defence", "-"),
        "inner strategy": about.get("inner", "-"),
        "rounds": run.rounds,
        "time": duration(run.totals["seconds"]),
        "seed": about.get("seed", "-"),
        "state": "ledger",
    }
    if isinstance(policy, dict):
        found["strikes until exclusion"] = policy.get("strikes", "-")
        if policy.get("observe") is True:
            found["mode"] = "observes only"
    if run.fallbacks:
        found["fallbacks"] = f"{run.fallbacks} of {run.rounds} rounds accepted nobody"
    return {label: clean(value) for label, value in found.items()}


def stretches(run: Run) -> list[tuple[str, str, str, str]]:
    """Rounds, last accuracy, mean FPR and mean FNR of a few stretches that make up the run."""
    size = max(1, -(-run.rounds // _STRETCHES))
    rows = []
    for start in range(0, run.rounds, size):
        part = {name: values[start : start + size] for name, values in run.series.items()}
        evaluated = [value for value in part["accuracy"] if value is not None]
        first, last = start + 1, min(start + size, run.rounds)
        rows.append(
            (
                str(first) if first == last else f"{first} to {last}",
                percent(evaluated[-1] if evaluated else None),
                percent(mean(part["fpr"])),
                percent(mean(part["fnr"])),
            )
        )
    return rows


def thrown_out(run: Run) -> dict[str, list[str]]:
    """Columns on the clients thrown out most often, these first, by the columns' names."""
    ranked = sorted(
        run.rejections,
        key=lambda c: (-run.rejections[c].total(), natural(c)),
    )[:_CLIENTS]
    columns = {"client": [clean(run.label(client)) for client in ranked]}
    if run.malicious is not None:
        columns["kind"] = ["malicious" if c in run.malicious else "honest" for c in ranked]
    columns["rounds"] = [str(run.rejections[client].total()) for client in ranked]
    if run.standing is not None:
        columns["now"] = [clean(run.standing.get(client, "-")) for client in ranked]
    columns["commonest reason"] = []
    for client in ranked:
        reasons = run.rejections[client]
        reason, times = reasons.most_common(1)[0]
        often = "" if times == reasons.total() else f" ({times} of {reasons.total()} times)"
        columns["commonest reason"].append(reason + often)
    return columns


def thrown_out_notes(run: Run) -> str:
    """What the columns of `thrown_out` do not say."""
    out, notes = len(run.rejections), []
    if not out:
        notes.append("Nobody.")
    else:
        notes.append(f"Clients thrown out at least once in {run.rounds} rounds: {out}.")
    if run.malicious is not None:
        count = len(run.malicious)
        clients = "client" if count == 1 else "clients"
        honest = "" if run.clients is None else f", {run.clients - count} honest"
        notes.append(f"The run has {count} malicious {clients}{honest}.")
    if out > _CLIENTS:
        more = out - _CLIENTS
        notes.append(f"These are the {_CLIENTS} most often thrown out; {more} more are left out.")
    if out and run.kind == "simulation" and run.experiment.get("participation") != 1:
        notes.append("Not every client takes part in every round.")
    return " ".join([*notes, *run.notes])


def component(described: Any) -> str:
    """`name` of {"name": ..., "settings": ...}."""
    return str(described.get("name", "-") if isinstance(described, dict) else described or "-")


def clean(text: Any) -> str:
    """`text` without control characters, which could command a terminal or turn text around."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(text))


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them; a dash where there are none."""
    if seconds is None or seconds < 60:
        return "-" if seconds is None else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
