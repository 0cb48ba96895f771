"""What is said of a run, in the page and in the terminal."""

import re
from pathlib import Path

from rich.console import Console

from skymask.report import render_table, write_report
from tests.report.folders import Page, make_run


def test_summary_of_a_run(tmp_path: Path) -> None:
    path = write_report([make_run(tmp_path / "run", seed=1)])
    assert path == tmp_path / "run" / "report.html"
    text = Page(path).text
    assert "digits: skymask against min-sum" in text
    assert "accuracy 87.5 % last 5 evaluations 75.0 % FPR 15.0 % FNR 16.7 %" in text
    assert "malicious 25 % clients 8 rounds 4 time 5.0 s device cpu seed 1" in text
    assert "run finished" in text
    assert "fallbacks 1 of 4 rounds left the model as it was" in text
    assert "python 3.11.7 torch 2.13.0" in text


def test_who_was_thrown_out(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "run")]))
    assert "Clients thrown out at least once in 4 rounds: 2." in page.text
    assert page.rows[-2:] == [
        ["7", "3", "its mask is outside the benign cluster (2 of 3 times)"],
        ["3", "1", "no reason given"],
    ]


def test_the_malicious_are_marked_where_the_manifest_names_them(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "run", malicious_clients=[7, 0])]))
    assert "The run has 2 malicious clients, 6 honest." in page.text
    head, *rows = page.rows[-3:]
    assert head == ["client", "kind", "rounds", "commonest reason"]
    assert [row[:3] for row in rows] == [["7", "malicious", "3"], ["3", "honest", "1"]]


def test_the_malicious_are_counted_where_nobody_was_thrown_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", records=[{}], malicious_clients=[5])
    assert "Nobody. The run has 1 malicious client, 7 honest." in Page(write_report([run])).text


def test_nobody_is_called_honest_where_the_manifest_does_not_say(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "run", malicious_clients=None)]))
    assert page.rows[-3] == ["client", "rounds", "commonest reason"]
    assert "honest." not in page.text


def test_only_the_most_often_thrown_out_are_listed(tmp_path: Path) -> None:
    records = [{"rejected": {str(c): "late" for c in range(70) if c >= i}} for i in range(70)]
    page = Page(write_report([make_run(tmp_path / "run", records=records)]))
    assert [row[0] for row in page.rows[-50:]] == [str(c) for c in range(69, 19, -1)]
    assert page.rows[-1] == ["20", "21", "late"]
    assert "20 more are left out" in page.text


def test_nobody_was_thrown_out(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "run", records=[{"rejected": {}}])]))
    assert "Who was thrown out Nobody." in page.text


def test_figures_as_numbers(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "run")]))
    assert page.rows[1:5] == [
        ["1", "-", "0.0 %", "50.0 %"],
        ["2", "62.5 %", "50.0 %", "0.0 %"],
        ["3", "-", "0.0 %", "0.0 %"],
        ["4", "87.5 %", "10.0 %", "-"],
    ]


def test_long_runs_are_summed_up_in_stretches(tmp_path: Path) -> None:
    records = [{"fpr": i / 100, "fnr": None, "accuracy": i / 200} for i in range(95)]
    page = Page(write_report([make_run(tmp_path / "run", records=records)]))
    assert page.rows[1] == ["1 to 10", "4.5 %", "4.5 %", "-"]
    assert page.rows[10] == ["91 to 95", "47.0 %", "92.0 %", "-"]


# In a terminal


def printed(folders: list[Path], width: int = 80) -> str:
    """What `render_table` looks like in a terminal."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render_table(folders))
    return capture.get()


def test_the_terminal_gets_the_same_numbers(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", summary=None, experiment={"rounds": 9})
    lines = [re.sub(r"[^\w.% -]+", " ", line).split() for line in printed([one, two]).splitlines()]
    assert ["one", "two"] in lines
    assert ["accuracy", "87.5", "%", "87.5", "%"] in lines
    assert ["FNR", "16.7", "%", "16.7", "%"] in lines
    assert ["rounds", "4", "4", "of", "9"] in lines
    assert ["state", "finished", "unfinished"] in lines


def test_markup_is_plain_text_in_a_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", experiment={"data": "[bold]x[/bold]\x1b[31m"})
    text = printed([run])
    assert "[bold]x[/bold]\ufffd[31m" in text
    assert "\x1b" not in text
