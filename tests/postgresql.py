"""A real PostgreSQL for a test, on a free port of this machine."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "a-secret-of-the-test"


def programs() -> Path:
    """Return the folder of PostgreSQL's programs; skip where there are none, and fail where CI has to have them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    there = found[-1].parent if found else None
    if there is None and (initdb := shutil.which("initdb")):
        there = Path(initdb).parent
    if there is None:
        message = "no PostgreSQL to test with; `apt-get install postgresql` brings one"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return there


@dataclass(frozen=True)
class Server:
    """A server with an empty database.

    url: with user and password.
    """

    url: str
    _run: Callable[..., None]
    _start: tuple[str, ...]

    def start(self) -> None:
        self._run("pg_ctl", *self._start, "start")

    def stop(self) -> None:
        """End it as a power cut would: nobody is asked, and every connection breaks."""
        self._run("pg_ctl", *self._start[:2], "-m", "immediate", "stop")


@contextmanager
def running() -> Iterator[Server]:
    """Start a server, and end it with the block, whether it was ended meanwhile or not."""
    folder = programs()
    # PostgreSQL does not run as root; its folder has to be another user's then, and reachable for that user.
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    with tempfile.TemporaryDirectory(prefix="postgresql-", dir="/tmp") as room, socket.socket() as probe:
        place = Path(room)
        if user:
            os.chown(place, user.pw_uid, user.pw_gid)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        secret = place / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)

        def run(program: str, *arguments: str) -> None:
            command = [str(folder / program), *arguments]
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, **who)
            assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

        data, log = str(place / "data"), str(place / "log")
        run("initdb", "-D", data, "-U", "sevenfold", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
        start = ("-D", data, "-l", log, "-w", "-o", options)
        found = Server(f"postgresql://sevenfold:{PASSWORD}@127.0.0.1:{port}/postgres", run, start)
        found.start()
        try:
            yield found
        finally:
            if (place / "data" / "postmaster.pid").exists():
                found.stop()


@contextmanager
def server() -> Iterator[str]:
    """Start a server with an empty database, and give its address with user and password; end it with the block."""
    with running() as found:
        yield found.url
