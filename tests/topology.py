"""The servers of docker/compose.yaml as plain processes of this machine: the commands and variables that stand there.

Only where things are is another: ports are free ones, hosts are this one, paths of an image are those of the repository.
"""

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ruamel.yaml

from flows import server
from tests import postgresql, seaweed

ROOT = Path(__file__).parent.parent
MARKER = "seen-only" + "-where-it-leaks"
"""Stands in every secret; written so that this file does not hold it."""


def compose() -> dict[str, Any]:
    """Return docker/compose.yaml with its variables at their defaults, as docker/example.env gives them, too."""
    text = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "${" not in text, "a variable of compose.yaml has no default"
    found: dict[str, Any] = ruamel.yaml.YAML(typ="safe").load(text)
    return found


def variables(service: dict[str, Any]) -> dict[str, str]:
    """Return what a service's process finds in its environment."""
    found: dict[str, str] = {}
    for file in service.get("env_file", ()):
        if isinstance(file, str):
            lines = (ROOT / "docker" / file).read_text(encoding="utf-8").splitlines()
            found |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return found | service.get("environment", {})


def secrets(folder: Path) -> Path:
    """Make the secrets of compose.yaml in a folder, each with the marker in it.

    The name of an access key has none: the store writes down who asked, as it should.
    """
    folder.mkdir(mode=0o700)
    for name in compose()["secrets"]:
        (folder / name).write_text(f"{'user:' * (name == 'prefect-api')}{MARKER}-{name}")
    (folder / "store-key").write_text("the-team")
    return folder


@contextmanager
def commands_with_secrets() -> Iterator[list[str]]:
    """Watch the commands of all processes of this machine, and give those that hold the marker."""
    stop, seen = threading.Event(), list[str]()

    def watch() -> None:
        while not stop.wait(0.2):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    line = process.read_bytes()
                    if MARKER.encode() in line:
                        seen.append(line.replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def asked(url: str, **headers: str) -> int:
    """Return the status with which a server answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def basic(secret: str) -> dict[str, str]:
    """Return the header that gives NAME:PASSWORD."""
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}


@dataclass(frozen=True)
class Team:
    """Databases and store of a team, which run, and how to start the rest.

    room: a folder for logs and data.
    ports: by what listens there.
    """

    room: Path
    secrets: Path
    ports: dict[str, int]
    postgres: postgresql.Server

    def here(self, text: str, workspace: Path | None = None) -> str:
        """Return a text of compose.yaml as it has to be on this machine."""
        exchange = {
            "http://seaweedfs:8333": f"http://127.0.0.1:{self.ports['store']}",
            "http://mlflow:5000": self.mlflow,
            "http://prefect:4200": self.prefect,
            "@postgres/": f"@127.0.0.1:{self.ports['postgres']}/",
            "/run/secrets": str(self.secrets),
            "/etc/mlflow/": f"{ROOT}/mlflow/",
            "/opt/sevenfold/": f"{ROOT}/docker/",
            "/workspace": str(workspace),
            "0.0.0.0": "127.0.0.1",
        }
        for old, new in exchange.items():
            text = text.replace(old, new)
        whole = {
            "postgres": "127.0.0.1",
            "5432": str(self.ports["postgres"]),
            "5000": str(self.ports["mlflow"]),
            "4200": str(self.ports["prefect"]),
            "/tmp": str(self.room),
            "/tmp/prefect": str(self.room / "prefect"),
        }
        return whole.get(text, text)

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}"

    def environment(self, name: str, workspace: Path | None = None) -> dict[str, str]:
        """Return the variables of a service, and nothing of whoever runs the test."""
        found = {key: self.here(value, workspace) for key, value in variables(compose()["services"][name]).items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return found | {"PATH": path, "PGPORT": str(self.ports["postgres"]), "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, name: str, *instead: str) -> list[str]:
        """Return the command of a service, or another in its place, with the secrets that it is given."""
        given = [*instead] or [self.here(part) for part in compose()["services"][name]["command"]]
        return ["sh", str(ROOT / "docker/with-secrets.sh"), *given]

    def run(self, name: str, *instead: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a service that ends, or another command in its place."""
        environment = self.environment(name) | more
        return subprocess.run(
            self.command(name, *instead), env=environment, cwd=self.room, capture_output=True, text=True, check=False
        )

    @contextmanager
    def serving(self, name: str) -> Iterator[None]:
        """Run MLflow or Prefect until the end of the block."""
        health = {"mlflow": f"{self.mlflow}/health", "prefect": f"{self.prefect}/api/health"}[name]
        with server.running(self.command(name), self.environment(name), self.room / f"{name}.log", health):
            yield


@contextmanager
def team(room: Path, secrets: Path) -> Iterator[Team]:
    """Start a PostgreSQL with its two databases and a store with its bucket, all empty, and end them with the block."""
    room.mkdir()
    with ExitStack() as stack:
        database = stack.enter_context(postgresql.running())
        superuser = urlsplit(database.url)
        (secrets / "postgres").write_text(postgresql.PASSWORD)
        master, volume, filer, store = seaweed._ports(4)
        ports = {"postgres": superuser.port or 0, "store": store}
        ports |= {name: server.free_port(0) for name in ("mlflow", "prefect")}
        found = Team(room, secrets, ports, database)
        made = found.run("postgres", str(ROOT / "docker/databases.sh"), PGHOST="127.0.0.1", PGUSER="sevenfold",
                         PGPASSWORD=postgresql.PASSWORD)  # fmt: skip
        assert made.returncode == 0, made.stderr
        command = [f.replace("/data", str(room / "data")).replace("=seaweedfs", "=127.0.0.1") for f in
                   found.command("seaweedfs", seaweed.program(), *compose()["services"]["seaweedfs"]["command"])]  # fmt: skip
        command = [f.replace("0.0.0.0", "127.0.0.1").replace("=8333", f"={store}") for f in command]
        command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        (room / "data").mkdir()
        stack.callback(_clear, (master, volume, filer, store))
        log = room / "seaweedfs.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=found.environment("seaweedfs"), stdout=out, stderr=out, start_new_session=True
            )
        stack.callback(_kill, process)  # it takes its time where it is asked
        seaweed._wait(process, f"http://127.0.0.1:{store}/healthz", log)
        bucket = found.run("bucket")
        assert bucket.returncode == 0, bucket.stderr
        yield found


def _kill(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _clear(ports: tuple[int, ...]) -> None:
    for port in ports:
        for number in (port, port + 10_000):
            for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                left.unlink()
