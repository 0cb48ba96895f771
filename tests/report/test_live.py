"""The live page: what it answers, to whom, and that it keeps up with a run."""

import http.client
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from skymask.errors import InputError
from skymask.records import RunFolder
from skymask.report import Watched, is_loopback, served, terminal
from tests.report.browser import browser, opened
from tests.report.folders import RECORDS, evil_run, make_closeup, make_ledger, make_run


def get(address: str, path: str, **headers: str) -> http.client.HTTPResponse:
    at = urlsplit(address)
    line = http.client.HTTPConnection(at.hostname or "", at.port, timeout=20)
    line.request("GET", path, headers=headers)
    return line.getresponse()


def content(address: str, have: str = "") -> dict[str, Any]:
    return dict(json.loads(get(address, f"/content.json?have={have}").read()))


@contextmanager
def watching(*paths: Path) -> Iterator[str]:
    with served(Watched(paths)) as address:
        yield address


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)


def test_the_page_is_the_report_and_may_ask_only_where_it_came_from(tmp_path: Path) -> None:
    with watching(make_run(tmp_path / "run")) as address:
        answer = get(address, "/")
        page = answer.read().decode()
    assert answer.status == 200
    assert "connect-src 'self'" in page
    assert "default-src 'none'" in page
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"


def test_it_listens_on_this_machine_only(tmp_path: Path) -> None:
    with watching(make_run(tmp_path / "run")) as address:
        assert address.startswith("http://127.0.0.1:")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", ""])
def test_a_request_under_another_name_is_refused(tmp_path: Path, host: str) -> None:
    """A page from elsewhere can let its own name point here; it must not read anything."""
    with watching(make_run(tmp_path / "run")) as address:
        for path in ("/", "/content.json", "/clients.json"):
            answer = get(address, path, Host=host)
            assert answer.status == 421
            assert answer.read() == b"not this host\n"


def test_there_is_nothing_else_to_get(tmp_path: Path) -> None:
    with watching(make_run(tmp_path / "run")) as address:
        for path in ("/manifest.json", "/../manifest.json", "//etc/passwd", "/index.html"):
            assert get(address, path).status == 404


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with watching(run) as address:
        port = urlsplit(address).port or 0
        with (
            pytest.raises(InputError, match=f"cannot listen on 127.0.0.1 port {port}: .*--port"),
            served(Watched([run]), port=port),
        ):
            pass


def test_every_address_at_once_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"host is '0\.0\.0\.0' but must be one address"),
        served(Watched([tmp_path]), host="0.0.0.0"),
    ):
        pass


def test_only_what_is_new_is_sent(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", records=RECORDS[:2], summary=None)
    with watching(run) as address:
        first = content(address)
        assert first["state"] == "round 2 of 4"
        same = content(address, first["version"])
        assert set(same) == {"version", "state"}
        RunFolder(run).append({"round": 2} | RECORDS[2])
        third = content(address, first["version"])
        assert third["state"] == "round 3 of 4"
        assert third["figures"]["rates"]["data"][0]["x"] == [1, 2, 3]
        RunFolder(run).append({"round": 3} | RECORDS[3])
        RunFolder(run).finish({"accuracy": 0.875})
        assert content(address, third["version"])["state"] == "finished"
        (clients,) = json.loads(get(address, "/clients.json").read())
    assert clients["rounds"] == 4


def test_a_run_may_begin_later(tmp_path: Path) -> None:
    with watching(tmp_path / "run") as address:
        assert content(address)["state"].startswith("waiting for a run")
        assert b"Waiting for a run" in get(address, "/").read()
        make_run(tmp_path / "run", summary=None)
        assert content(address)["state"] == "round 4 of 4"


def test_damaged_records_are_told_and_the_last_good_ones_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", summary=None)
    watched = Watched([run])
    assert watched.runs()[1][0].rounds == 4
    with (run / "rounds.jsonl").open("a") as file:
        file.write("what\n")
    assert watched.runs()[1][0].rounds == 4
    assert "line 5 is not JSON" in (watched.problem or "")


def test_a_ledger_is_watched_too(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger.jsonl")
    with watching(ledger) as address:
        found = content(address)
    assert found["state"] == "after round 2"
    assert set(found["figures"]) == {"left-out", "stages"}


def test_the_terminal_shows_the_last_rounds_and_no_control_characters(tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    run = make_run(tmp_path / "run", summary=None, experiment={"data": "a\x1b[31mb"})
    for path in (run, evil_run(tmp_path), tmp_path / "none", make_ledger(tmp_path / "l.jsonl")):
        console.print(terminal(Watched([path]), "http://127.0.0.1:1/"))
    told = console.export_text()
    assert "round 4 of 4; in a browser: http://127.0.0.1:1/" in told
    assert "87.5 %" in told
    assert "excluded now 1" in told
    assert "\x1b[31mb" not in told


# A run that goes on


@pytest.mark.long
def test_a_run_that_is_killed_and_resumed_is_followed_to_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    program = [sys.executable, "-m", "skymask.cli", "run"]
    settings = ["digits", "--attack", "min-sum", "--rounds", "150", "--device", "cpu"]
    with watching(folder) as address:
        run = subprocess.Popen([*program, *settings, "--out", folder], stdout=subprocess.DEVNULL)
        until(lambda: "round 1" in content(address)["state"])  # 1, or from 10 to 19, or above 100
        run.send_signal(signal.SIGKILL)
        run.wait()
        before = len(content(address)["figures"]["rates"]["data"][0]["x"])
        assert 0 < before < 150
        subprocess.run([*program, "--resume", folder], check=True, stdout=subprocess.DEVNULL)
        found = content(address)
        assert found["state"] == "finished"
        (clients,) = json.loads(get(address, "/clients.json").read())
    assert clients["rounds"] == 150
    assert [kept["round"] for kept in clients["kept"]][-1] == 150


@pytest.mark.long
def test_a_browser_shows_a_new_round_and_keeps_what_the_reader_chose(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", records=RECORDS[:2], closeups=[make_closeup(0)], summary=None)
    with watching(run) as address, browser() as started:
        page = opened(started, address)
        page.tab.fill("#find", "7")
        page.tab.press("#find", "Enter")
        page.tab.wait_for_selector("#live:has-text('round 2 of 4')")
        RunFolder(run).append_closeup(make_closeup(2))
        RunFolder(run).append({"round": 2} | RECORDS[2])
        begin = time.monotonic()
        page.tab.wait_for_selector("#live:has-text('round 3 of 4')")
        assert time.monotonic() - begin < 10  # how soon it is there is measured elsewhere
        page.tab.wait_for_selector("#kept:has-text('round 3 of 3')")
        assert page.text("story").startswith("Client 7")
        assert page.text("evidence").startswith("Client 7 in round 3")
        assert "rounds 3 of 4" in page.text("cards")
        assert page.logged == []
    assert {urlsplit(asked).netloc for asked in page.asked} == {urlsplit(address).netloc}
