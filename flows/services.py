"""Services: a Prefect server, an MLflow server and a worker that stand on this machine until `make down`.

They listen on loopback unless `SEVENFOLD_HOST` says otherwise, which takes passwords, and keep everything in the workspace's
private folder. Each is a process of its own with a note in `.sevenfold/services/`; a process is ended only if it is the one of
its note, since numbers of processes are given anew.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock
import psutil

from flows import deployments, errors, process, server
from sevenfold import doors, files, workspace
from sevenfold.registry import tracking
from sevenfold.workspace import Workspace

PORTS = {"prefect": 4200, "mlflow": 5000}
"""Where the servers listen, unless `SEVENFOLD_PREFECT_PORT` or `SEVENFOLD_MLFLOW_PORT` say otherwise."""

PATIENCE = 60.0
"""Seconds that a process has to end by itself: a run under way ends its own process first, and that its stages."""

LATELY = 90.0
"""Seconds within which a worker that works has given a sign of life; it gives one every 30."""


class ServiceError(RuntimeError):
    """A service does not stand; the message says why, and what to do."""


@dataclass(frozen=True)
class Service:
    """One process that stands.

    ready: says whether a process that began at this time, in seconds since 1970, does its work.
    url: where a person looks at it; empty where there is nothing to see.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    ready: Callable[[float], bool]
    url: str = ""


@dataclass(frozen=True)
class State:
    """How a service stands, in a word or a sentence."""

    name: str
    state: str
    url: str = ""


def up(place: Workspace) -> list[State]:
    """Start what does not stand yet, and put `prefect.yaml` on the server.

    Safe to repeat: what stands and answers is left as it is. If something does not start, all that this call has started
    is ended again.

    Raises:
        ServiceError: a port is taken, a process ended or did not answer in time.
        DeploymentError: a deployment was refused.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        raise ServiceError(
            f"PREFECT_API_URL is {url}; expected none, since a server of this machine is to be started; unset it, or put the "
            "deployments on that server by `python -m flows.services deploy`, and give it a worker, as docs/operations.md tells"
        )
    with _alone(place):
        prefect = _prefect(place)
        # Where runs are recorded on a server of the user's own, there is nothing to show here.
        servers = [prefect, _mlflow(place)] if tracking.is_local(place) else [prefect]
        if _process(_note(place, prefect.name)) is None and (url := server.standing_url(place)):
            raise ServiceError(
                f"a Prefect server of a run, or of `make ui`, stands at {url}, and both would write to one database; wait for the "
                "run, or end `make ui`, and repeat"
            )
        tracking.initialise(place)
        begun: list[Path] = []
        try:
            states = [_stand(place, service, begun) for service in servers]
            server.announce(place, f"{prefect.url}/api", files.read_json(_note(place, prefect.name))["pid"])
            worker = _worker(place, prefect)
            deployments.put(place.root, prefect.environment)
            return [*states, _stand(place, worker, begun)]
        except BaseException:
            for note in reversed(begun):
                _end(note)
            if any(note.stem == prefect.name for note in begun):
                server.withdraw(place, f"{prefect.url}/api")
            raise


def down(place: Workspace) -> list[State]:
    """End what `up` has started, with the runs under its worker, and nothing else."""
    with _alone(place):
        # The worker first: the runs that it ends have something to say to the server.
        note = _note(place, "prefect")
        url = f"{files.read_json(note)['url']}/api" if note.is_file() else None
        ended = [State(name, _end(_note(place, name))) for name in ("worker", "mlflow", "prefect")]
        if url is not None:
            server.withdraw(place, url)
        return ended


def deploy(place: Workspace) -> list[State]:
    """Put `prefect.yaml`, its work pool and the watch over silent runs on a server that stands already.

    Raises:
        ServiceError: there is none.
        DeploymentError: it refuses a deployment.
    """
    url = _standing(place)
    deployments.put(place.root, place.environment() | {"PREFECT_API_URL": url})
    return [State("prefect", "deployed", url.rstrip("/").removesuffix("/api"))]


def states(place: Workspace) -> list[State]:
    """Look at the services, and change nothing."""
    found = []
    for name in ("prefect", "mlflow", "worker"):
        note = _note(place, name)
        if name == "mlflow" and not (note.is_file() or tracking.is_local(place)):
            continue  # the user's own, as `up` has it
        if _process(note) is None:
            log = place.logs / f"{name}.log"
            found.append(State(name, f"ended by itself; see {log}" if note.is_file() else "down"))
            continue
        url = str(files.read_json(note)["url"])
        answers = not url or server.answers(_health(name, url))
        found.append(State(name, "up" if answers else "up, and does not answer", url))
    return found


@contextmanager
def _alone(place: Workspace) -> Iterator[None]:
    try:
        with place.lock("services", timeout=0):
            yield
    except filelock.Timeout:
        raise ServiceError("another `make up` or `make down` is at work; wait for it, and repeat this one") from None


def _port(name: str) -> int:
    given = os.environ.get(variable := f"SEVENFOLD_{name.upper()}_PORT") or str(PORTS[name])
    if not given.isdecimal() or not 0 < int(given) < 2**16:
        raise ServiceError(f"{variable} is {given!r}; expected the number of a port, 1 to 65535")
    return int(given)


def _health(name: str, url: str) -> str:
    return f"{url}/api/health" if name == "prefect" else f"{url}/health"


def _host() -> str:
    """Return where the servers listen: on loopback, unless somebody wants them to be reached from other machines."""
    return os.environ.get("SEVENFOLD_HOST") or server.HOST


def _url(port: int) -> str:
    """Return where this machine reaches a server; one that listens everywhere answers on loopback, too."""
    host = _host()
    host = server.HOST if host in ("0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _prefect(place: Workspace) -> Service:
    """Return the Prefect server, whose variables are those that its clients need, too."""
    doors.require(_host(), bool(os.environ.get("PREFECT_SERVER_API_AUTH_STRING")))
    port = _port("prefect")
    url = _url(port)
    environment = place.environment() | {"PREFECT_API_URL": f"{url}/api"}
    environment.setdefault("PREFECT_UI_API_URL", f"{url}/api")  # where a browser, maybe elsewhere, reaches it
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", _host(), "--port", str(port)]
    return Service("prefect", command, environment, lambda _: server.answers(_health("prefect", url)), url)


def _mlflow(place: Workspace) -> Service:
    port = _port("mlflow")
    url = _url(port)
    command = tracking.server_command(place, host=_host(), port=port)
    environment = tracking.server_environment(place)
    return Service("mlflow", command, environment, lambda _: server.answers(_health("mlflow", url)), url)


def _worker(place: Workspace, prefect: Service) -> Service:
    name = f"{deployments.POOL} on {os.uname().nodename}"
    command = [
        sys.executable,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        deployments.POOL,
        "--type",
        "process",
        "--name",
        name,
    ]

    def polls(since: float) -> bool:
        import httpx

        since = max(since, time.time() - LATELY)
        try:
            with deployments.client_of(prefect.environment) as client:
                workers = client.read_workers_for_work_pool(deployments.POOL)
        except httpx.HTTPError:
            return False
        beats = [w.last_heartbeat_time for w in workers if w.name == name]
        return any(beat is not None and beat.timestamp() >= since for beat in beats)

    # Runs are processes below the worker, and have its variables.
    return Service("worker", command, prefect.environment, polls)


def _note(place: Workspace, name: str) -> Path:
    return place.services / f"{name}.json"


def _process(note: Path) -> psutil.Process | None:
    """Return the process of a note, if it still runs."""
    if not note.is_file():
        return None
    told = files.read_json(note)
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(told["pid"])
        if process.born(found.pid) == told["born"] and found.status() != psutil.STATUS_ZOMBIE:
            return found
    return None


def _settings(service: Service) -> str:
    """Return a digest of what a service was started with: with a new password or port it is another one."""
    told = ("PREFECT_", "MLFLOW_", "SEVENFOLD_", "AWS_", "PG", "RAY_")
    known = {n: v for n, v in service.environment.items() if n.startswith(told)}
    known.pop("MLFLOW_FLASK_SERVER_SECRET_KEY", None)  # which is made anew each time
    return hashlib.sha256(json.dumps([service.command, known], sort_keys=True).encode()).hexdigest()


def _stand(place: Workspace, service: Service, begun: list[Path]) -> State:
    """Have a service stand and do its work; its note is added to `begun` if it was started for that."""
    note, log = _note(place, service.name), place.logs / f"{service.name}.log"
    there = _process(note)
    if there is not None:
        # It may be at work, and slow to answer, or wait for a server that has just come back.
        same = files.read_json(note)["settings"] == _settings(service)
        if same and _gets_ready(service, there.create_time(), there.is_running):
            return State(service.name, "was up", service.url)
        _end(note)
    if service.url and server.listens(service.url):
        raise ServiceError(
            f"something listens at {service.url} already; end it (`make ui` has such a server, too), or set "
            f"SEVENFOLD_{service.name.upper()}_PORT to a free port"
        )
    with log.open("w", encoding="utf-8") as out:
        # A session of its own: it outlives the terminal, and its Ctrl-C.
        started = subprocess.Popen(
            service.command,
            cwd=place.root,
            env=dict(service.environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    told = {"pid": started.pid, "born": process.born(started.pid), "url": service.url, "settings": _settings(service)}
    files.write_json(note, told)
    begun.append(note)
    began = psutil.Process(started.pid).create_time()
    if not _gets_ready(service, began, lambda: started.poll() is None):
        what = "ended" if started.poll() is not None else f"did not answer within {server.PATIENCE:.0f} s"
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
        raise ServiceError(f"{service.name} {what}; the end of {log}:\n{tail}")
    return State(service.name, "started", service.url)


def _gets_ready(service: Service, began: float, runs: Callable[[], bool]) -> bool:
    """Wait until a service does its work, and return whether it does; not longer than it runs, and for some time at most."""
    end = time.monotonic() + server.PATIENCE
    while not service.ready(began):
        if not runs() or time.monotonic() > end:
            return False
        time.sleep(0.3)
    return True


def _end(note: Path) -> str:
    """End the process of a note with all below it, by force if need be."""
    there = _process(note)
    if there is None:
        state = "had ended by itself" if note.is_file() else "was not there"
        note.unlink(missing_ok=True)
        return state
    # Those below first: a run under a worker, which is in a session of its own, stops its stages and tells the server how it
    # ended, and what it has ended needs no signal.
    left: list[psutil.Process] = []
    for generation in (_children(there), [there]):
        family = [*generation, *(one for member in generation for one in process.below(member.pid))]
        for one in generation:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGTERM)
        left += psutil.wait_procs(family, timeout=PATIENCE)[1]
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=PATIENCE)
    note.unlink(missing_ok=True)  # last, so that what is left by a kill of this process is known
    return "ended by force" if left else "ended"


def _children(parent: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return list(parent.children())
    return []


def _strangers(place: Workspace) -> list[str]:
    return deployments.strangers(place.root, place.environment() | {"PREFECT_API_URL": _standing(place)})


def _standing(place: Workspace) -> str:
    """Return the address of the user's Prefect server, or of the one that stands here, whoever started it.

    Raises:
        ServiceError: there is none.
    """
    if (url := os.environ.get("PREFECT_API_URL") or server.standing_url(place)) is None:
        raise ServiceError("no Prefect server stands here; `make up` starts one, or set PREFECT_API_URL to yours")
    return url


def main() -> int:
    """Do what is asked: up, down, status or deploy; 0 after success, 1 after an error or where a service is down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["up", "down", "status", "deploy"])
    what = parser.parse_args().what
    process.ends_in_order()
    try:
        place = workspace.find()
        place.initialise()
        with place.settled():
            found = {"up": up, "down": down, "status": states, "deploy": deploy}[what](place)
            others = _strangers(place) if what in ("up", "deploy") else []
    except Exception as error:
        return errors.tell(error)
    for one in found:
        print(f"{one.name:<9}{one.state:<9}{one.url}".rstrip())
    if what == "up":
        print(f"\nthe schedule is that of prefect.yaml; logs: {place.logs}; `make down` ends all of them")
    for name in others:
        told = f"{name} is on the server and not in prefect.yaml; `prefect deployment delete {name}` ends its schedule"
        print(told, file=sys.stderr)
    return int(what == "status" and any(one.state != "up" for one in found))


if __name__ == "__main__":
    sys.exit(main())
