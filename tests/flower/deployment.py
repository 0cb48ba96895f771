"""A Flower federation on the loopback interface: TLS, SuperNode authentication, real processes.

It is set up by the scripts of `examples/flower-deployment`, the same that a user runs. Every
process logs to a file, keeps to 127.0.0.1 and has a Flower home of its own, as on a machine of its
own. Processes that Flower starts in turn inherit a variable with the federation's folder, and are
found by it: whatever a test does, `close` ends them all, each by its own process id.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "examples" / "flower-deployment"
BIN = Path(sys.executable).parent
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
}
MARK = "SKYMASK_TEST_FEDERATION"


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of every process of the federation in `folder`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return kept | path | QUIET | {"NO_PROXY": "127.0.0.1,localhost", MARK: str(folder)}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, condition: Callable[[], Any], seconds: float) -> Any:
    """The condition's first true value; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:g} s for {what}")


def marked(folder: Path) -> dict[int, list[str]]:
    """The running processes of the federation in `folder`: process id -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:  # it has just ended, or is somebody else's
            continue
        if f"{MARK}={folder}".encode() in environment and command:
            found[int(entry.name)] = [os.fsdecode(part) for part in command]
    return found


def end_all(folder: Path) -> None:
    """End the processes of the federation in `folder`: asked first, made to if they do not."""
    for stop, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
        for pid in marked(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, stop)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and marked(folder):
            time.sleep(0.1)
    assert not marked(folder)


class Deployment:
    """One SuperLink and as many SuperNodes as `add_node` is called; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.fleet_port = self.port
        """Where SuperNodes connect: a proxy may stand there."""
        self.certificates = folder / "certificates"
        self.keys = folder / "keys"
        self.nodes: dict[str, int] = {}
        """Node ids by name."""
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.script("make-certificates.sh", str(self.certificates))
        self._write_connection()

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Processes

    def environment(self, name: str, **more: object) -> dict[str, str]:
        """What the process called `name` gets: its own Flower home, no proxies, no telemetry."""
        own = {
            "FLWR_HOME": str(self.folder / "home" / name),
            "CERTIFICATES": str(self.certificates),
            "KEYS": str(self.keys),
            "STATE": str(self.folder),
            "SUPERLINK_PORT": str(self.port),
            "FLEET_HOST": "127.0.0.1",
            "FLEET_PORT": str(self.fleet_port),
        }
        return surroundings(self.folder) | own | {key: str(value) for key, value in more.items()}

    def script(self, name: str, *arguments: str) -> None:
        """Run one of the example's scripts to its end."""
        command = [str(SCRIPTS / name), *arguments]
        subprocess.run(command, check=True, env=self.environment("cli"), capture_output=True)

    def launch(self, name: str, command: list[str], **more: object) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own, which logs to `<name>.log` (anew)."""
        with self.log_file(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                command,
                env=self.environment(name, **more),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._running[name]

    def runs(self, name: str) -> bool:
        """Whether the process called `name` was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def log_file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def text(self, name: str) -> str:
        """All that the process called `name` has logged."""
        return self.log_file(name).read_text(errors="replace")

    def kill(self, name: str) -> None:
        """`kill -9` of the process called `name`; what it had started then ends by itself."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def children(self, command: str, home: str = "") -> list[int]:
        """Ids of running processes of this command, such as flwr-serverapp."""
        return [
            pid
            for pid, parts in marked(self.folder).items()
            if any(Path(part).name == command for part in parts[:2])
            and (not home or _home(pid) == str(self.folder / "home" / home))
        ]

    def close(self) -> None:
        """End every process of this federation."""
        end_all(self.folder)
        for process in self._running.values():
            process.wait()
        self._running.clear()

    # The federation

    def start_superlink(self) -> None:
        """Start the SuperLink, or start it again on the state that it left behind."""
        self.launch("superlink", [str(SCRIPTS / "superlink.sh")])
        wait_for("the SuperLink", self._listens, 60)

    def register(self, name: str) -> int:
        """Make a key for this SuperNode and register it; its node id."""
        self.script("make-node-key.sh", str(self.keys), name)
        key = str(self.keys / f"{name}.pub")
        told = self.flwr_json("supernode", "register", key, "test", "--name", name)
        self.nodes[name] = int(told["node-id"])
        return self.nodes[name]

    def start_node(self, name: str, **config: object) -> None:
        """Start the SuperNode with the key of this name and this node configuration."""
        command = [str(SCRIPTS / "supernode.sh"), name]
        self.launch(name, command, NODE_CONFIG=_pairs(config), NODE_PORT=free_port())

    def connected(self, name: str) -> bool:
        """Whether the SuperLink has accepted the SuperNode's key."""
        return "SuperNode ID:" in self.text(name)

    def run(self, app: Path, **config: object) -> int:
        """`flwr run` of the app with this run config; the run's id."""
        told = self.flwr_json("run", str(app), "test", "--run-config", _pairs(config))
        return int(told["run-id"])

    def status(self, run: int) -> str:
        """Such as "running" or "finished:completed"."""
        told = self.flwr_json("list", "test", "--run-id", str(run))
        status: str = told["runs"][0]["status"]
        return status

    def wait(self, run: int, seconds: float) -> str:
        """Wait until the run has ended; its status.

        Only while no ServerApp is running is Flower asked: a `flwr` command costs seconds.
        """

        def ended() -> str | None:
            status = "" if self.children("flwr-serverapp") else self.status(run)
            return status if status.startswith("finished") else None

        status: str = wait_for(f"run {run}", ended, seconds)
        return status

    def run_log(self, run: int) -> str:
        """What the ServerApp of the run has logged."""
        return self.flwr("log", str(run), "test", "--show")

    def flwr(self, *arguments: str) -> str:
        """What a `flwr` command writes; fails if the command does."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            env=self.environment("cli"),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"flwr {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def flwr_json(self, *arguments: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.flwr(*arguments, "--format", "json"))
        return told

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _write_connection(self) -> None:
        """Tell `flwr` how to reach the SuperLink, under the name "test"."""
        config = self.folder / "home" / "cli" / "config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(
            "[superlink.test]\n"
            f'address = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.certificates / "ca.crt"}"\n'
        )


def _home(pid: int) -> str:
    found = re.search(rb"(?:^|\0)FLWR_HOME=([^\0]*)", Path(f"/proc/{pid}/environ").read_bytes())
    return os.fsdecode(found[1]) if found else ""


def _pairs(config: Mapping[str, object]) -> str:
    """A configuration as Flower's command line takes it: TOML values, no spaces but between."""
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}
    return " ".join(f"{key.replace('_', '-')}={json.dumps(plain[key])}" for key in plain)
