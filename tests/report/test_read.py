"""What of a folder is refused, and that everything else is reported."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skymask.errors import InputError
from skymask.report import render_table, write_report
from tests.report.folders import Page, make_run


def test_runs_are_named_by_what_tells_their_paths_apart(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / side / "run") for side in "ab"]
    page = Page(write_report([*folders, folders[0] / ".." / "run"], tmp_path / "both.html"))
    assert [trace["name"] for trace in page.figures["accuracy"]["data"]] == ["a/run", "b/run"]
    assert str(tmp_path) not in page.text


def test_a_run_that_was_killed_is_shown_as_far_as_it_got(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", summary=None, experiment={"rounds": 9})
    with (run / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "fpr": 0.')
    text = Page(write_report([run])).text
    assert "run unfinished" in text
    assert "rounds 4 of 9" in text
    assert "accuracy 87.5 % last 5 evaluations 75.0 % FPR 15.0 % FNR 16.7 %" in text
    assert f"skymask run --resume {run}" in text


def test_no_run_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        write_report([tmp_path])
    with pytest.raises(InputError, match="folders is empty"):
        write_report([])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("manifest.json", "{", "manifest.json is not JSON"),
        ("manifest.json", "[" * 100_000, "manifest.json is not JSON"),
        ("manifest.json", "[]", "manifest.json is list, not a JSON object"),
        ("manifest.json", "{}", "not a run's manifest"),
        ("manifest.json", '{"experiment": {"malicious": "many"}}', "malicious 'many'"),
        ("summary.json", "{", "summary.json is not JSON"),
        ("summary.json", "[]", "summary.json is list, not a JSON object"),
        ("summary.json", '{"accuracy": "good"}', "accuracy 'good'"),
        ("rounds.jsonl", "7\n", "line 1 is int, not a JSON object"),
        ("rounds.jsonl", '{"round": 3}\n', "line 1 is of round 3 but must be of round 0"),
        ("rounds.jsonl", '{"round": 0, "fpr": true}\n', "fpr True"),
        ("rounds.jsonl", '{"round": 0, "rejected": [1]}\n', "rejected [1]"),
        ("rounds.jsonl", '{"round": 0, "rejected": {"1": {}}}\n', "a reason a client"),
        ("rounds.jsonl", 'torn\n{"round": 0}\n', "line 1 is not JSON"),
        ("rounds.jsonl", '{"round": 0, "took_part": ["x"]}\n', "took_part ['x']"),
        ("rounds.jsonl", '{"round": 0, "stages": {"train": "x"}}\n', "train 'x'"),
        ("closeups.jsonl", "[]\n", "line 1 is list, not a JSON object"),
        ("closeups.jsonl", '{"round": 0}\n', "line 1 is not what is known of each client"),
        (
            "closeups.jsonl",
            '{"round": 0, "clients": [1, 2], "values": {"score": [1, 2, 3, 4]}}\n',
            "line 1 is not what is known of each client",
        ),
    ],
)
def test_a_damaged_folder_is_named_and_the_old_report_stays(
    tmp_path: Path, file: str, content: str, says: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / "report.html").write_text("the old one")
    (run / file).write_text(content)
    before = sorted(run.iterdir())
    with pytest.raises(InputError, match=re.escape(says)):
        write_report([run])
    assert (run / "report.html").read_text() == "the old one"
    assert sorted(run.iterdir()) == before


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "rounds.jsonl").unlink()
    (run / "rounds.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot be read: .*rounds\.jsonl"):
        write_report([run])


@pytest.mark.parametrize("depth", [60, 300, 900])
def test_nesting_that_could_exhaust_the_stack_is_refused(tmp_path: Path, depth: int) -> None:
    run = make_run(tmp_path / "run")
    nested = "[" * depth + "]" * depth
    (run / "manifest.json").write_text(f'{{"experiment": {{"data": {nested}}}}}')
    for report in (write_report, render_table):
        with pytest.raises(InputError, match=r"manifest\.json is nested more than 50 levels"):
            report([run])


def test_a_few_bytes_that_claim_many_verdicts_cost_nothing(tmp_path: Path) -> None:
    """2,001 short lines and a number of clients once took gigabytes."""
    run = make_run(tmp_path / "run", experiment={"clients": 10**20})
    write_report([run])
    many = (json.dumps({"round": index, "rejected": {}}) + "\n" for index in range(2_001))
    (run / "rounds.jsonl").write_text("".join(many))
    with pytest.raises(InputError, match=r"2,001 rounds and 10,000 clients .* 20,000,000 verdicts"):
        write_report([run])


@pytest.mark.parametrize("ids", [7, {"7": True}, ["7"], [True], [1.5], [-1], [8], [None]])
def test_malicious_clients_must_be_ids_of_the_run(tmp_path: Path, ids: Any) -> None:
    run = make_run(tmp_path / "run", malicious_clients=ids)
    with pytest.raises(InputError, match="must list the ids of its 8 clients"):
        write_report([run])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: (
        st.lists(part, max_size=2) | st.dictionaries(st.text(max_size=3), part, max_size=2)
    ),
    max_leaves=4,
)
RECORD = ("accuracy", "fpr", "fnr", "seconds", "stages", "rejected", "fallback", "took_part")
CLOSEUP = ("clients", "points", "apart", "gain", "values", "ones")
EXPERIMENT_FIELDS = (
    "data",
    "attack",
    "defence",
    "malicious",
    "clients",
    "rounds",
    "seed",
    "participation",
)


def some(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Dictionaries with some of these names and anything behind them."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON))


@settings(max_examples=60)
@given(
    st.lists(some(RECORD), max_size=3),
    some(EXPERIMENT_FIELDS),
    some(("versions", "device", "command", "malicious_clients")),
    JSON | some(("accuracy", "fpr", "attack_success", "seconds")),
    st.lists(some(CLOSEUP), max_size=2),
)
def test_whatever_a_folder_holds_it_is_reported_or_refused(
    records: list[dict[str, Any]],
    experiment: dict[str, Any],
    manifest: dict[str, Any],
    summary: Any,
    closeups: list[dict[str, Any]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        text = json.dumps({"experiment": experiment} | manifest)
        (run / "manifest.json").write_text(text)
        lines = [json.dumps({"round": i} | record) + "\n" for i, record in enumerate(records)]
        (run / "rounds.jsonl").write_text("".join(lines))
        lines = [json.dumps({"round": i} | closeup) + "\n" for i, closeup in enumerate(closeups)]
        (run / "closeups.jsonl").write_text("".join(lines))
        (run / "summary.json").write_text(json.dumps(summary))
        try:
            written = write_report([run])
        except InputError:
            assert not (run / "report.html").exists()
        else:
            assert len(Page(written).code) == 3
