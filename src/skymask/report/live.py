"""The page on a run that goes on, served on this machine, and the same for a terminal."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from skymask.errors import InputError, require
from skymask.progress import percent
from skymask.records import CLOSEUPS, ROUNDS, json_text
from skymask.report.ledger import BESIDE, LEDGER
from skymask.report.page import content, explorers, packaged, page
from skymask.report.read import Reader, readers
from skymask.report.run import Run
from skymask.report.summary import clean, component, duration, facts, headline

_FILES = ("manifest.json", ROUNDS, CLOSEUPS, "summary.json", LEDGER)
_EVERY = ("", "0.0.0.0", "::")
"""What stands for every address of a machine."""
_LAST = 8  # rounds in the terminal's table


class Watched:
    """Runs that may still go on: what is known of them, read again when their files change.

    A run need not have begun; until it has there is nothing to show.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [Path(path) for path in paths]
        self._lock = threading.Lock()
        self._readers: list[Reader] | None = None
        self._version = ""
        self._runs: list[Run] = []
        self.problem: str | None = None
        """Why the records cannot be read just now, if so."""

    def runs(self) -> tuple[str, list[Run]]:
        """A version that differs when something has changed, and the runs as far as they got."""
        with self._lock:
            version = "-".join(map(_stamp, self._paths))
            if version == self._version:
                return version, self._runs
            try:
                if self._readers is None:
                    self._readers = readers(self._paths)
                self._runs, self.problem = [reader.read() for reader in self._readers], None
            except InputError as error:
                # A folder that is not there yet, or one that is being resumed at this moment.
                self.problem, self._readers = str(error), None
            self._version = version
            return version, self._runs

    def state(self) -> str:
        """How the runs stand, in a few words."""
        _, runs = self.runs()
        if not runs:
            return f"waiting for a run ({clean(self.problem or 'there is none yet')})"
        if any(run.kind == "federation" for run in runs):
            return f"after round {max(run.rounds for run in runs)}"
        going = [run for run in runs if not run.finished]
        if not going:
            return "finished"
        return f"round {going[0].rounds} of {going[0].experiment.get('rounds', '-')}"


def _stamp(path: Path) -> str:
    """What changes whenever the records at `path` do."""
    files = [path] if path.is_file() else [path / name for name in _FILES]
    files += [file.with_suffix(BESIDE) for file in files[-1:]]  # of a ledger
    found = []
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue
        found.append(f"{state.st_ino:x}.{state.st_size:x}.{state.st_mtime_ns:x}")
    return "_".join(found)


# In a browser


@contextmanager
def served(watched: Watched, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve the live page while the block runs; yields its address.

    Only requests that name this address are answered, so that no page from elsewhere can read it
    under a name of its own. With port 0 any free one is taken. Raises `InputError` where the
    address cannot be had.
    """
    require(host not in _EVERY, "host", host, "one address of this machine: requests must name it")
    try:
        server = ThreadingHTTPServer((host, port), BaseHTTPRequestHandler)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error}; choose another --port (0: any free one)"
        ) from error
    number = server.server_address[1]
    names = {f"{name}:{number}" for name in _names(host)}

    class Handler(_Handler):
        pass

    Handler.watched, Handler.names = watched, names
    server.RequestHandlerClass = Handler
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{number}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _names(host: str) -> set[str]:
    return {host, "localhost", "127.0.0.1"} if is_loopback(host) else {host}


class _Handler(BaseHTTPRequestHandler):
    watched: Watched
    names: set[str]
    timeout = 30.0

    def do_GET(self) -> None:
        """Answer with the page, or with what is new on it."""
        if self.headers.get("Host") not in self.names:
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "not this host\n")
            return
        asked = urlsplit(self.path)
        version, runs = self.watched.runs()
        if asked.path == "/":
            text = page(runs, packaged("live.js"))
            self._send(HTTPStatus.OK, "text/html", text)
        elif asked.path == "/content.json":
            found: dict[str, object] = {"version": version, "state": self.watched.state()}
            if parse_qs(asked.query).get("have") != [version]:
                shown = content(runs)
                found |= {"parts": shown.parts, "figures": shown.figures}
            self._send(HTTPStatus.OK, "application/json", json_text(found))
        elif asked.path == "/clients.json":
            self._send(HTTPStatus.OK, "application/json", json_text(explorers(runs)))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "there is no such page\n")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in {
            "Cache-Control": "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",  # the page has the rest in itself
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the terminal shows the run."""


# In a terminal


def terminal(watched: Watched, address: str) -> RenderableType:
    """The runs' last rounds as a table a run, with how far each has got."""
    _, runs = watched.runs()
    parts: list[RenderableType] = [Text(f"{watched.state()}; in a browser: {address}")]
    parts += [_table(run) for run in runs]
    if watched.problem and runs:
        parts.append(Text(clean(watched.problem), style="yellow"))
    return Group(*parts)


def _table(run: Run) -> RenderableType:
    table = Table("round", "accuracy", "left out", "FPR", "FNR", title_justify="left")
    table.title = Text(f"{clean(run.name)}: {_about(run)}")
    for index in range(max(0, run.rounds - _LAST), run.rounds):
        names = ("accuracy", "left_out", "fpr", "fnr")
        table.add_row(str(index + 1), *(percent(run.series[name][index]) for name in names))
    known = headline(run)
    whole = ", ".join(f"{name} {value}" for name, value in known.items())
    of = run.experiment.get("rounds")
    if run.kind == "federation" or not isinstance(of, int):
        return Group(table, Text(whole))
    bar = ProgressBar(total=of, completed=run.rounds, width=40)
    if run.rounds and not run.finished:
        left = (run.totals["seconds"] or 0.0) / run.rounds * (of - run.rounds)
        whole += f"; about {duration(left)} of rounds left"
    return Group(table, Text(whole), bar)


def _about(run: Run) -> str:
    told = facts(run)
    if run.kind == "federation":
        return f"{told['defence']} around {told['inner strategy']}"
    attack = component(run.experiment.get("attack"))
    return f"{told['data']}, {told['defence']} against {clean(attack)}"
