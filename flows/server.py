"""The Prefect server of a workspace, on loopback: a standing one is used, else one stands for as long as it is needed.

Prefect can also start a server inside a flow's process, but that one loses task runs, and its history has holes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sevenfold import files
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
        yield url
        return
    note = workspace.prefect_home / "server.json"
    if note.is_file():
        url = str(files.read_json(note)["url"])
        if answers(f"{url}/health"):
            yield url
            return
    port = free_port(port)
    url = f"http://{HOST}:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    environment = workspace.environment() | {"PREFECT_API_URL": url, "PREFECT_UI_API_URL": url}
    with running(command, environment, workspace.logs / "prefect-server.log", f"{url}/health"):
        files.write_json(note, {"url": url})
        try:
            yield url
        finally:
            note.unlink(missing_ok=True)


@contextmanager
def running(command: list[str], environment: Mapping[str, str], log: Path, health: str) -> Iterator[None]:
    """Run a server until the end of the block; it has to answer at the address `health` first.

    Raises:
        RuntimeError: somebody else answers there, or it ended, or did not answer in time; the message has the last
            lines of its log.
    """
    if answers(health):
        raise RuntimeError(f"another server answers at {health} already; end it, or try again for another port")
    with log.open("w", encoding="utf-8") as out:
        # A session of its own: Ctrl-C reaches the flow first, which still has something to tell the server.
        process = subprocess.Popen(
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
            if process.poll() is not None or time.monotonic() > end:
                state = "ended" if process.poll() is not None else f"did not answer within {PATIENCE:.0f} s"
                tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
                raise RuntimeError(f"`{' '.join(command[1:5])}` {state}; the end of {log}:\n{tail}")
            time.sleep(0.2)
        yield
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def answers(url: str) -> bool:
    """Say whether a server answers at `url` with success."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(200 <= response.status < 300)
    except (urllib.error.URLError, OSError, json.JSONDecodeError):
        return False


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
