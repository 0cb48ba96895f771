"""The HTML page.

It stands alone: plotly.js is inside it once and nothing is fetched when it is opened. A run's
folder may come from anybody, so none of its text is trusted: all of it is escaped where it is put
into the page, and the page's content security policy lets only our own two scripts run, by their
hashes, and no request out.
"""

import base64
import hashlib
import json
import pprint
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from skymask.errors import InputError
from skymask.records import replace_file, writing
from skymask.report import figures, summary
from skymask.report.read import Run, read_runs


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report on the runs in `folders` as one HTML file and return its path.

    Args:
        folders: run folders; a run that is still going, or was killed, is shown as far as it got.
        out: the file, ending in .html; without it `report.html` in the first folder. It is replaced
            atomically.

    Raises:
        InputError: where a folder holds no run or damaged records, where plotly is not installed
            and where the file cannot be written; nothing is written then.
    """
    runs = read_runs(folders)
    target = Path(folders[0]) / "report.html" if out is None else Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out is {str(target)!r} but must be a file whose name ends in .html")
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError("report needs plotly: pip install plotly") from None
    page = _page(runs, get_plotlyjs())
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, page.encode("utf-8", "replace"))
    return target


def _page(runs: Sequence[Run], plotly: str) -> str:
    title = _safe(summary.title(runs))
    style, script = _packaged("style.css"), _packaged("page.js")
    drawn = {}
    if any(run.rounds for run in runs):
        drawn = {"accuracy": figures.accuracy(runs), "rates": figures.rates(runs)}
    # JSON has "<" only inside strings, where its escape means the same and ends no script element.
    data = json.dumps(drawn, allow_nan=False).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    smoothed = "Each round"
    if figures.smooth(runs):
        smoothed = f"Rolling mean of {figures.SMOOTHING} rounds; the faint points are single rounds"
    plots = (
        f"""<section><h2>Accuracy</h2>
<figure><div class="plot" id="accuracy"></div>
<figcaption>Share of the test set that the global model gets right.</figcaption></figure></section>
<section><h2>Wrong verdicts</h2>
<figure><div class="plot tall" id="rates"></div>
<figcaption>{smoothed}.
FPR: share of the honest clients that were thrown out. FNR: share of the malicious clients that were
let in. Lower is better.</figcaption></figure>
<details><summary>The figures as numbers</summary>{_each(runs, _numbers)}</details></section>"""
        if drawn
        else "<p>No round has ended yet: there is nothing to draw.</p>"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - SkyMask report</title>
<style>{style}</style>
</head>
<body><main>
<header><p class="kicker">SkyMask report</p><h1>{title}</h1></header>
<noscript><p>The figures need JavaScript; the tables hold their numbers.</p></noscript>
<section class="cards" aria-label="Summary">{"".join(map(_card, runs, range(len(runs))))}</section>
{plots}
<section><h2>Who was thrown out</h2>{_each(runs, _thrown_out)}</section>
<section><h2>Run it again</h2>{_each(runs, _again)}</section>
</main>
<script type="application/json" id="figures">{data}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _packaged(name: str) -> str:
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
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_safe(label)}">'
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
