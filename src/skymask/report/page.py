"""The HTML page.

It stands alone: plotly.js is inside it once and nothing is fetched when it is opened. A run's
folder may come from anybody, so none of its text is trusted: all of it is escaped where it is put
into the page, and the page's content security policy lets only our own two scripts run, by their
hashes, and no request out.
"""

import base64
import hashlib
import pprint
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from skymask.errors import InputError
from skymask.records import KEPT, json_text, replace_file, writing
from skymask.report import figures, summary
from skymask.report.clients import explorer
from skymask.report.read import read_runs
from skymask.report.run import Run
from skymask.report.tables import Table, drawing, is_table, read_table, shown

PLOTLY = "plotly/plotly-cartesian.min.js"
"""plotly.js with the kinds of figures that have x and y: a third of the whole, and read sooner."""


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report on the runs in `folders` as one HTML file and return its path.

    Args:
        folders: run folders and ledgers of federations; a run that is still going, or was killed,
            is shown as far as it got. Or one table, the JSON file that `skymask table` wrote.
        out: the file, ending in .html; without it `report.html` in the first folder. It is replaced
            atomically.

    Raises:
        InputError: where a folder holds no run or damaged records, and where the file cannot be
            written; nothing is written then.
    """
    if any(is_table(Path(path)) for path in folders):
        if len(folders) > 1:
            raise InputError(f"{len(folders)} paths are given but a table is reported by itself")
        table, runs = read_table(Path(folders[0])), []
    else:
        table, runs = None, read_runs(folders)
    first = Path(folders[0])
    beside = first.parent if first.is_file() else first
    target = beside / "report.html" if out is None else Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out is {str(target)!r} but must be a file whose name ends in .html")
    text = page(runs) if table is None else table_page(table)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, text.encode("utf-8", "replace"))
    return target


def table_page(table: Table) -> str:
    """The HTML page on a table."""
    ready = 'document.documentElement.dataset.ready = "yes";'
    scripts = [packaged(PLOTLY), packaged("page.js")]
    measures = "".join(
        f"""<section><h2>{_safe(name)}</h2><p>{_safe(table.measures[name])}</p>
<figure><div class="plot free" id="measure-{_safe(name)}"></div></figure>
<details><summary>The figure as numbers</summary>{_cells(table, name)}</details></section>"""
        for name in shown(table)
    )
    commands = "".join(f'<pre tabindex="0"><code>{_safe(c)}</code></pre>' for c in table.commands)
    data = _data("figures", {f"measure-{name}": drawing(table, name) for name in shown(table)})
    return Template(packaged("table.html")).substitute(
        policy=_policy([*scripts, ready]),
        style=packaged("style.css"),
        title=_safe(table.title),
        facts=_pairs(table.facts, "facts"),
        measures=measures or "<p>No cell is there yet.</p>",
        again=commands or "<p>No record yet.</p>",
        scripts=data + _elements(scripts),
    )


def _cells(table: Table, measure: str) -> str:
    """A measure's numbers, what the paper printed beside them in parentheses."""

    def told(row: str, column: str) -> str:
        value = table.values[measure].get((row, column))
        if value is None:
            return "-"
        spread = "" if value.spread is None else f" \u00b1 {100 * value.spread:.1f}"
        beside = "" if value.published is None else f" ({100 * value.published:.0f} %)"
        return f"{100 * value.value:.1f}{spread} %{beside}"

    with_targets = measure == "accuracy" and bool(table.targets)
    header = ["", *table.columns, *(["targets"] if with_targets else [])]
    rows = [
        [
            row,
            *(told(row, column) for column in table.columns),
            *([table.targets.get(row, "-")] if with_targets else []),
        ]
        for row in table.rows
    ]
    return _table(measure, header, rows)


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy that lets exactly these scripts run, and no request out."""
    return (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _elements(scripts: Sequence[str]) -> str:
    return "".join(f"<script>{script}</script>\n" for script in scripts)


@dataclass(frozen=True)
class Content:
    """What a page shows."""

    parts: dict[str, str]
    """Name of a part in page.html -> what is in it, as HTML."""
    figures: dict[str, Any]
    """Id of an element -> the figure in it, as plotly.js takes it."""


def content(runs: Sequence[Run]) -> Content:
    """What a page on `runs` shows, but for single clients."""
    drawn: dict[str, Any] = {}
    if any(run.rounds for run in runs):
        if any(value is not None for run in runs for value in run.series["accuracy"]):
            drawn["accuracy"] = figures.accuracy(runs)
        if _simulated(runs):
            drawn["rates"] = figures.rates(runs)
        else:
            drawn["left-out"] = figures.left_out(runs)
        if any(run.stages for run in runs):
            drawn["stages"] = figures.stages(runs)
    smoothed = "Each round"
    if runs and figures.smooth(runs):
        smoothed = (
            f"Rolling mean of {figures.SMOOTHING} rounds; the faint points are single rounds, "
            "of very many the worst"
        )
    parts = {
        "title": _safe(summary.title(runs)),
        "cards": "".join(map(_card, runs, range(len(runs)))),
        "smoothed": smoothed,
        "numbers": _each(runs, _numbers),
        "thrown_out": _each(runs, _thrown_out),
        "again": _each(runs, _again),
        "again_title": "Run it again" if _simulated(runs) else "Settings",
        "nothing": "" if drawn else "<p>No round has ended yet: there is nothing to draw.</p>",
    }
    return Content(parts, drawn)


def _simulated(runs: Sequence[Run]) -> bool:
    """Whether it is known of any of the `runs` who was malicious."""
    return any(run.kind == "simulation" for run in runs)


def explorers(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What a page needs to look into single clients, for each of the `runs` with any rounds."""
    most = max(1, KEPT // max(1, len(runs)))
    return [explorer(run, most) for run in runs if run.verdicts.codes.size]


def page(runs: Sequence[Run], live: str | None = None) -> str:
    """The HTML page; with the script `live` it may ask where it came from for what is new."""
    shown = content(runs)
    scripts = [packaged(PLOTLY), packaged("page.js"), packaged("clients.js")]
    if live is not None:
        scripts.append(live)
    policy = _policy(scripts)
    if live is not None:
        policy += "; connect-src 'self'"
    data = _data("figures", shown.figures) + _data("clients", explorers(runs))
    return Template(packaged("page.html")).substitute(
        shown.parts,
        policy=policy,
        style=packaged("style.css"),
        scripts=data + _elements(scripts),
    )


def _data(name: str, value: Any) -> str:
    # JSON has "<" only inside strings, where its escape means the same and ends no script element.
    text = json_text(value).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


@cache
def packaged(name: str) -> str:
    """The text of a file that lies beside this one."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _safe(text: object) -> str:
    """`text` as HTML."""
    return escape(summary.clean(text))


def _hash(script: str) -> str:
    """The source expression that lets exactly this script run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _each(runs: Sequence[Run], part: Callable[[Run], str]) -> str:
    """`part` of every run, under the run's name if there are several."""
    if len(runs) == 1:
        return part(runs[0])
    return "".join(f"<h3>{_safe(run.name)}</h3>{part(run)}" for run in runs)


def _pairs(pairs: Mapping[str, str], css: str) -> str:
    items = (f"<div><dt>{_safe(k)}</dt><dd>{_safe(v)}</dd></div>" for k, v in pairs.items())
    return f'<dl class="{css}">{"".join(items)}</dl>'


def _table(label: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself, with the keyboard too, where the page is narrow."""
    head = "".join(f'<th scope="col">{_safe(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{_safe(first)}</th>'
        + "".join(f"<td>{_safe(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll long" role="region" tabindex="0" aria-label="{_safe(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _card(run: Run, index: int) -> str:
    facts = summary.facts(run)
    note = ""
    if not run.finished:
        note = f"""<p class="note">This run has not ended: it is still going, or was stopped.
If it was stopped, continue with <code>{_safe(_resume(run))}</code></p>"""
    state = facts.pop("state")
    swatch = f'style="background:{figures.colour(index)}"'
    return f"""<article class="card"><h2><span class="swatch" {swatch}></span>{_safe(run.name)}
<span class="state {state}">{state}</span></h2>
{_pairs(summary.headline(run), "headline")}{_pairs(facts, "facts")}{note}</article>"""


def _resume(run: Run) -> str:
    return shlex.join(["skymask", "run", "--resume", str(run.folder)])


def _numbers(run: Run) -> str:
    """The figures as a table, in stretches of rounds."""
    columns = ("rounds", "accuracy, last", "FPR, mean", "FNR, mean")
    return _table(f"Figures of {run.name} as numbers", columns, summary.stretches(run))


def _thrown_out(run: Run) -> str:
    notes = f"<p>{_safe(summary.thrown_out_notes(run))}</p>"
    if not run.rejections:
        return notes
    columns = summary.thrown_out(run)
    rows = zip(*columns.values(), strict=True)
    return notes + _table(f"Clients thrown out of {run.name}", list(columns), rows)


def _again(run: Run) -> str:
    if run.kind == "federation":
        settings = pprint.pformat(dict(run.manifest), width=76, sort_dicts=False)
        return f"""<pre tabindex="0"><code>{_safe(settings)}</code></pre>"""
    versions = run.manifest.get("versions")
    known = versions if isinstance(versions, dict) else {}
    about = _pairs(known | {"threads": run.manifest.get("threads", "-")}, "facts")
    settings = pprint.pformat(run.experiment, width=76, sort_dicts=False)
    command = run.manifest.get("command")
    if isinstance(command, str) and command:
        return f"""<pre tabindex="0"><code>{_safe(command)}</code></pre>{about}
<details><summary>All settings</summary><pre tabindex="0">{_safe(settings)}</pre></details>"""
    snippet = f"""from skymask import simulate
from skymask.experiment import from_json

simulate(from_json(
{settings}
))"""
    return f"""<pre tabindex="0"><code>{_safe(snippet)}</code></pre>{about}"""
