"""The examples for Flower do what their READMEs say: every command of them is run, on loopback."""

import getpass
import os
import re
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flower.deployment import BIN, ROOT, SCRIPTS, end_all, free_port, surroundings

APP = ROOT / "examples" / "flower-fashion-mnist"


def blocks(readme: Path) -> list[tuple[str, str]]:
    """The blocks of shell commands: the word after ```bash (or ""), and the commands."""
    return re.findall(r"^```bash *(\w*)\n(.*?)^```$", readme.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Path]:
    """A folder to try things in; what was started from there is ended."""
    try:
        yield tmp_path
    finally:
        end_all(tmp_path)
        # nginx has written its title where the environment was, so `end_all` does not see it.
        if (pid := tmp_path / "root" / "nginx.pid").exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)


def run(commands: list[str], trial: Path, folder: Path, **settings: object) -> str:
    """Give all these commands to one shell in a copy of `folder`; what they write."""
    shutil.copytree(folder.parent, trial / "examples")
    script = trial / "commands.sh"
    script.write_text("\n".join(["set -eu", *commands]))
    with (trial / "output.txt").open("wb") as output:
        done = subprocess.run(
            ["bash", str(script)],
            cwd=trial / "examples" / folder.name,
            env=surroundings(trial) | {key: str(value) for key, value in settings.items()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=800,
        )
    told = (trial / "output.txt").read_text(errors="replace")
    logs = "".join(f"\n{log}:\n{log.read_text()[-3000:]}" for log in trial.glob("root/var/log/*"))
    assert done.returncode == 0, told + logs
    return told


def wait_for_port(variable: str) -> str:
    """A command that waits until somebody listens on the port that the variable names."""
    listens = f"(exec 3<>/dev/tcp/127.0.0.1/${variable}) 2> /dev/null"
    return f"for i in $(seq 300); do {listens} && break; sleep 0.2; done"


NGINX = """
cat > "$ROOT/nginx.conf" <<END
user USER;
pid $ROOT/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path $ROOT/body;
    proxy_temp_path $ROOT/proxy;
    fastcgi_temp_path $ROOT/fastcgi;
    uwsgi_temp_path $ROOT/uwsgi;
    scgi_temp_path $ROOT/scgi;
    include $ROOT/etc/nginx/conf.d/fleet.conf;
}
END
nginx -c "$ROOT/nginx.conf" -g "daemon off;" > "$ROOT/var/log/nginx.log" 2>&1 &
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_command_of_the_app_readme(trial: Path) -> None:
    with_data = bool(os.environ.get("SKYMASK_DATA"))
    readme = blocks(APP / "README.md")
    told = run(
        [text for kind, text in readme if kind != "data" or with_data],
        trial,
        APP,
        FLWR_HOME=trial / "home",
        FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=free_port(),
        FLWR_LOCAL_CONTROL_API_PORT=free_port(),
    )
    assert "round 1 {'accepted': 7, 'rejected': 3}" in told
    assert "round 6 {'accepted': 7, 'excluded': 3}" in told
    guarded, bare, *_ = map(float, re.findall(r"accuracy after round 6: .*?([0-9.]+)}", told))
    assert guarded > bare + 0.2
    if not with_data:
        pytest.skip("only the digits: set SKYMASK_DATA to a folder with the real data sets")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_command_of_the_deployment_readme(trial: Path) -> None:
    lacking = [tool for tool in ("openssl", "ssh-keygen") if not shutil.which(tool)]
    if lacking:
        pytest.skip(f"{lacking[0]} is not installed")
    proxy = bool(shutil.which("nginx") and shutil.which("curl"))
    commands = []
    for kind, text in blocks(SCRIPTS / "README.md"):
        if kind == "proxy" and not proxy:
            continue
        commands.append(text)
        if "/superlink.sh" in text:
            commands.append(wait_for_port("SUPERLINK_PORT"))
        if "/supernode.sh" in text:
            online = 'until grep -q "SuperNode ID:" "$ROOT/var/log/$name.log"; do sleep 1; done'
            commands.append(f"for name in alpha beta gamma; do {online}; done")
        if "fleet.conf" in text:
            commands += [NGINX.replace("USER", getpass.getuser()), wait_for_port("FLEET_PORT")]
    port = free_port()
    told = run(
        commands,
        trial,
        SCRIPTS,
        ROOT=trial / "root",
        FLEET_HOST="localhost",
        SUPERLINK_PORT=port,
        FLEET_PORT=free_port() if proxy else port,
        NODE_PORT=free_port(),
        BIN=BIN,
        FLWR_HOME=trial / "home",
    )
    assert len(re.findall(r"\d registered successfully", told)) == 3
    assert len(re.findall(r"\bonline\b", told)) == 3
    assert told.count("3 of 3 replies accepted") == 3
    assert "going on after round 2 of 3" in told
    assert told.count('"verdict": "accepted"') == 3
    assert len(re.findall(r"\d unregistered successfully", told)) == 1
    if not proxy:
        pytest.skip("all but the proxy: nginx or curl is not installed")
    answers = re.findall(r"^(\d{3}) (\S+)$", told, re.MULTILINE)
    assert [status for status, _ in answers] == ["403"] * 4 + ["401"]


@pytest.mark.parametrize("name", ["skymask-superlink", "skymask-supernode@"])
def test_the_units_are_valid_and_hardened(name: str, tmp_path: Path) -> None:
    """Checked by systemd itself, with a program that is there in the place of the installed one."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    text = (SCRIPTS / "systemd" / f"{name}.service").read_text()
    unit = tmp_path / f"{name}{'alpha' if name.endswith('@') else ''}.service"
    unit.write_text(text)
    for check in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run(
            ["systemd-analyze", *check, str(unit)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
    script = name.removeprefix("skymask-").removesuffix("@") + ".sh"
    assert f"/opt/skymask/{script}" in text
    assert (SCRIPTS / script).stat().st_mode & 0o111


def test_every_file_that_the_readmes_name_is_there() -> None:
    for readme in (APP / "README.md", SCRIPTS / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", readme.read_text()):
            assert (readme.parent / link).exists(), f"{readme.name} links to {link}"


def test_the_app_ships_code_only() -> None:
    """Flower bundles at most 10 MB, and the readme promises that there is no data in it."""
    files = [path for path in APP.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.suffix for path in files} <= {".py", ".toml", ".md"}
    config = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    code = "".join(path.read_text() for path in (APP / "guarded").glob("*.py"))
    assert [key for key in config if f'config["{key}"]' not in code] == []
