"""The Prefect server of a workspace, on loopback: a standing one is used, else one stands for as long as it is needed.

Prefect can also start a server inside a flow's process, but that one loses task runs, and its history has holes.
"""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from flows import process
from sevenfold import files, workspace
from sevenfold.workspace import Workspace

HOST = "127.0.0.1"
PATIENCE = 90.0
"""Seconds until a server has to answer."""


@contextmanager
def standing(workspace: Workspace, port: int = 0) -> Iterator[str]:
    """Give the address of the Prefect API, of a server that keeps every task run.

    `PREFECT_API_URL` names the user's own server. Else one of this workspace's is used where it runs, and started
    where not, which ends with the block.

    Args:
        port: where a new server listens, if nobody does; by default where the system says, so that the servers of two
            workspaces never meet.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        if not answers(f"{url}/health"):
            raise ConnectionError(
                f"PREFECT_API_URL is {url}, and no server answers there; start it, or unset the variable"
            )
        _require_entry(f"PREFECT_API_URL is {url}, whose server", url)
        yield url
        return
    if url := standing_url(workspace):
        _require_entry(f"the server that stands at {url}", url)
        yield url
        return
    port = free_port(port)
    url = f"http://{HOST}:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    environment = workspace.environment() | {"PREFECT_API_URL": url, "PREFECT_UI_API_URL": url}
    with running(command, environment, workspace.logs / "prefect-server.log", f"{url}/health") as started:
        announce(workspace, url, started.pid)
        try:
            yield url
        finally:
            withdraw(workspace, url)


def _require_entry(what: str, url: str) -> None:
    if not lets_in(url):
        raise PermissionError(
            f"{what} does not let in who comes with PREFECT_API_AUTH_STRING"
            f"{'' if os.environ.get('PREFECT_API_AUTH_STRING') else ', which is not set'}; expected USER:PASSWORD, as "
            "the server has it in PREFECT_SERVER_API_AUTH_STRING; set it to that"
        )


def standing_url(workspace: Workspace) -> str | None:
    """Return the address of the workspace's own server's API, if it stands and answers."""
    if not _note(workspace).is_file():
        return None
    told = files.read_json(_note(workspace))
    with suppress(psutil.NoSuchProcess):
        # Another server may have its port by now.
        if process.born(told["pid"]) == told["born"] and answers(f"{told['url']}/health"):
            return str(told["url"])
    return None


def join(module: str) -> None:
    """Begin this process anew as a client of the server that stands for the workspace, if one does and none is named.

    Prefect reads its settings when it is imported, so it has to be told before. Where no server stands a flow brings its own,
    which is good for one run.
    """
    place = workspace.find()
    if os.environ.get("PREFECT_API_URL") or (url := standing_url(place)) is None:
        return
    environment = place.environment() | {"PREFECT_API_URL": url}
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)


def announce(workspace: Workspace, url: str, pid: int) -> None:
    """Write down where a Prefect server of the workspace listens, for `standing_url`."""
    files.write_json(_note(workspace), {"url": url, "pid": pid, "born": process.born(pid)})


def withdraw(workspace: Workspace, url: str) -> None:
    """Take back what `announce` wrote of this address; another one's note stays."""
    if _note(workspace).is_file() and files.read_json(_note(workspace))["url"] == url:
        _note(workspace).unlink(missing_ok=True)


def _note(workspace: Workspace) -> Path:
    return workspace.prefect_home / "server.json"


@contextmanager
def running(
    command: list[str], environment: Mapping[str, str], log: Path, health: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server until the end of the block, and give its process; it has to answer at the address `health` first.

    Raises:
        RuntimeError: somebody else answers there, or it ended, or did not answer in time; the message has the last
            lines of its log.
    """
    if answers(health):
        raise RuntimeError(f"another server answers at {health} already; end it, or try again for another port")
    with log.open("w", encoding="utf-8") as out:
        # A session of its own: Ctrl-C reaches the flow first, which still has something to tell the server.
        started = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not answers(health):
            if started.poll() is not None or time.monotonic() > end:
                state = "ended" if started.poll() is not None else f"did not answer within {PATIENCE:.0f} s"
                tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
                raise RuntimeError(f"`{' '.join(command[1:5])}` {state}; the end of {log}:\n{tail}")
            time.sleep(0.2)
        yield started
    finally:
        _end(started)


def _end(started: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(started.pid, number)
            started.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def answers(url: str) -> bool:
    """Say whether a server answers at `url` with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(200 <= response.status < 300)
    except OSError:
        return False


def listens(url: str) -> bool:
    """Say whether anything takes connections there, in whatever language it may answer."""
    place = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((str(place.hostname), place.port or 80), timeout=2).close()
    except OSError:
        return False
    return True


def lets_in(url: str) -> bool:
    """Say whether the Prefect API at `url` takes the `PREFECT_API_AUTH_STRING` that is set, or asks for none."""
    request = urllib.request.Request(f"{url}/admin/version")
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    try:
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code not in {401, 403}
    return True


def free_port(wanted: int) -> int:
    """Return `wanted` where nobody listens there, else a port that the system gives; 0 wants none in particular."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no port is free on {HOST}; end some of the servers there")
