"""The page: how it is written, that no text of a folder gets loose, and that a browser draws it."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from skymask.errors import InputError
from skymask.experiment import Experiment, from_json
from skymask.records import RunFolder
from skymask.report import write_report
from skymask.report.page import PLOTLY, packaged
from tests.report.folders import EVIL, EXPERIMENT, Page, evil_run, make_run


def test_the_command_is_given_where_the_manifest_has_it(tmp_path: Path) -> None:
    command = "skymask run digits --attack min-sum --malicious 0.25"
    text = Page(write_report([make_run(tmp_path / "run", command=command)])).text
    assert f"Run it again {command}" in text


def test_without_a_command_the_experiment_is_given_as_python(tmp_path: Path) -> None:
    page = Page(write_report([make_run(tmp_path / "run", command=None)]))
    (snippet,) = (text for text in page.texts if "from_json(" in text)
    made: list[Experiment] = []
    calls = re.sub(r"^from .*$", "", snippet, flags=re.MULTILINE)
    exec(calls, {"simulate": made.append, "from_json": from_json})
    assert made == [EXPERIMENT]


def test_out_must_not_be_one_of_the_records(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"ends in \.html"):
        write_report([run], run / "manifest.json")
    assert RunFolder(run).manifest["device"] == "cpu"


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(InputError, match="cannot write to"):
        write_report([run], tmp_path / "taken.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "taken.html"]


def test_plotly_is_the_published_file_with_its_licence() -> None:
    digest = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
    assert hashlib.sha256(packaged(PLOTLY).encode()).hexdigest() == digest
    assert "Plotly Technologies" in packaged("plotly/LICENSE")


# Text of a folder is never trusted


def test_no_text_of_a_folder_becomes_markup(tmp_path: Path) -> None:
    plain = Page(write_report([make_run(tmp_path / "plain")]))
    page = Page(write_report([evil_run(tmp_path)]))
    assert {tag for tag, _ in page.tags} - {"p", "code"} <= {tag for tag, _ in plain.tags}
    assert len(page.code) == 3
    assert page.code == plain.code
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(EVIL) >= 8
    (name,) = (trace["name"] for trace in page.figures["accuracy"]["data"])
    assert name.startswith("&lt;b&gt;run&lt;b&gt; &amp; &lt;script")


def test_only_our_own_scripts_may_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    page = Page(write_report([evil_run(tmp_path)]))
    (policy,) = (a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    rules = dict(rule.split(maxsplit=1) for rule in policy.split(";"))
    hashes = {
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
        for script in page.code
    }
    assert rules["default-src"] == "'none'"
    assert set(rules["script-src"].split()) == hashes
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "base", "form")]
    fetching = {"src", "href", "srcset", "action", "data", "poster"}
    assert [a for _, a in page.tags if fetching & a.keys()] == []


def test_control_characters_do_not_reach_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", experiment={"data": "a\x1b[31mb\u202ec\ud800"})
    assert "a\ufffd[31mb\ufffdc\ufffd" in Page(write_report([run])).text
