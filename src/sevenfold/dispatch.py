"""Stages on a Ray cluster: DVC runs `sevenfold stage` here as ever, and that hands the work to a machine of the cluster.

So DVC's locks, cache and records have one machine, whatever the number of those that work. Three processes take part:

- `sevenfold stage`, which DVC has started, asks at a socket, prints what it is told, and ends as it is told (`ask`);
- the run holds the socket and the one connection to the cluster, and has a thread for each that asks (`serving`);
- a process of the cluster runs `sevenfold stage` once more, on the workspace that all machines share (`_Stage`).

When one of them dies, however that happens, the next one sees its socket or pipe closed, and ends too.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevenfold import processors, provenance
from sevenfold.params import Params
from sevenfold.workspace import Workspace

ADDRESS = "SEVENFOLD_DISPATCH"
"""The variable that tells `sevenfold stage` where to ask; without it a stage runs where it is started."""

LEASH = "SEVENFOLD_LEASH"
"""The variable that tells a process to end when its standard input does."""

TRIES = 4
"""How often a stage is begun, whose machines are lost one after the other."""

PATIENCE = 10.0
"""Seconds that a stage has to end by itself."""

RECORDING = 600.0
"""Seconds that DVC may take to record one stage before the next one may end."""

_PAUSE = 0.2
"""Seconds between two looks whether somebody still waits for an answer."""

_LONG_PAUSE = 2.0
"""Seconds for which a stage that has nothing to say lets the run wait."""


@dataclass(frozen=True)
class Needs:
    """What a stage takes of one machine while it runs."""

    processors: int
    gpus: int

    def __str__(self) -> str:
        gpus = f" and {self.gpus} GPU" if self.gpus else ""
        return f"{self.processors} processor{'s' * (self.processors > 1)}{gpus}"


@dataclass(frozen=True)
class Capacity:
    """How many stages a cluster has room for at once on its processors, and how many on its GPUs."""

    slots: int
    gpus: int


def needs(settings: Params, stage: str, subject: str | None, *, gpus: int) -> Needs:
    """Return what a stage asks for: as many processors as threads, and, for a training, a GPU where there is one.

    Args:
        gpus: how many the cluster has. What params.yaml states is asked for in any case.
    """
    threads = settings.training.threads
    if stage != "train" or subject is None:
        return Needs(threads, 0)
    stated = settings.gpus(subject)
    return Needs(threads, min(1, gpus) if stated is None else stated)


def ask(stage: str, subject: str | None) -> int:
    """Have a stage run where `ADDRESS` says; print what it prints, and return its exit code.

    Raises:
        RuntimeError: the run is not there any more.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.connect(os.environ[ADDRESS])
            # DVC, which has to have recorded this stage before another one may end, leads this session.
            _send(line, {"stage": stage, "subject": subject, "session": os.getsid(0)})
            with line.makefile("r", encoding="utf-8") as answers:
                for answer in map(json.loads, answers):
                    if "code" in answer:
                        return int(answer["code"])
                    print(answer["line"], flush=True)
        except OSError as error:
            raise RuntimeError(
                f"the run that hands stages to the cluster does not answer ({error}); run again"
            ) from None
    raise RuntimeError("the run that hands stages to the cluster has ended; run again")


def leash() -> None:
    """End this process, and those that it has started, when its standard input is closed, if `LEASH` is set.

    The kernel closes it when the process at its other end dies, in whatever way.
    """
    if os.environ.pop(LEASH, None) is None:
        return

    def watch() -> None:
        while os.read(0, 64):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def serving(workspace: Workspace, settings: Params) -> Iterator[tuple[Mapping[str, str], Capacity]]:
    """Hand stages to the cluster of RAY_ADDRESS, or to one of this machine for the time of the block.

    Gives the variables with which DVC's processes run, and what the cluster has room for as it is now. All stages that still
    run when the block is left are ended.

    Raises:
        RuntimeError: Ray is not installed, or no cluster answers at RAY_ADDRESS.
    """
    from sevenfold import clusters

    clusters.require()
    if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
        raise RuntimeError(
            f"RAY_ADDRESS is {os.environ['RAY_ADDRESS']}, the address of a proxy; expected HOST:PORT of the cluster itself; "
            "run on one of its machines"
        )
    # Paths of Unix sockets are short: the workspace may lie too deep. Only its owner may ask in this folder.
    with (
        clusters.connected(max(processors.count(), settings.training.threads)),
        tempfile.TemporaryDirectory(prefix=f"sevenfold-{os.getpid()}-", dir="/tmp") as room,
        _Counter(workspace, settings, Path(room) / "stages") as counter,
    ):
        yield {ADDRESS: str(counter.address)}, counter.capacity


class _Counter:
    """Where stages are asked for: a socket, with a thread for each that asks."""

    def __init__(self, workspace: Workspace, settings: Params, address: Path) -> None:
        self.address = address
        self._workspace, self._settings, self._code = workspace, settings, _code()
        machines, threads = _machines(), settings.training.threads
        # Once for all, so that a training does not turn to processors since a GPU was lost.
        self.capacity = Capacity(
            slots=max(1, sum(int(m.get("CPU", 0)) // threads for m in machines)),
            gpus=sum(int(m.get("GPU", 0)) for m in machines),
        )
        self._recording = threading.Lock()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "_Counter":
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.address))
        self._listener.listen(64)
        self._listener.settimeout(_PAUSE)
        self._door = threading.Thread(target=self._listen)
        self._door.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._door.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):  # nobody has asked for a while
                line, _ = self._listener.accept()
                line.settimeout(None)
                self._threads = [t for t in self._threads if t.is_alive()]
                self._threads.append(threading.Thread(target=self._answer, args=(line,)))
                self._threads[-1].start()

    def _answer(self, line: socket.socket) -> None:
        with line, suppress(OSError):  # who asked may be gone at any time
            asked = json.loads(line.makefile("r", encoding="utf-8").readline() or "null")
            if asked is None:
                return
            try:
                ended = self._run(line, asked["stage"], asked["subject"])
            except Exception as error:
                _send(line, {"line": f"error: {_said(error)}"})
                ended = 1
            if ended is not None:
                with self._recording:
                    _send(line, {"code": ended})
                    _await_end(asked["session"])

    def _run(self, line: socket.socket, stage: str, subject: str | None) -> int | None:
        """Run a stage on the cluster, elsewhere again where its machine is lost; None if nobody waits for it any more."""
        import ray

        name = f"{stage}@{subject}" if subject else stage
        wanted = needs(self._settings, stage, subject, gpus=self.capacity.gpus)
        for number in range(1, TRIES + 1):
            _require(wanted)
            try:
                return self._once(line, wanted, (stage, subject))
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False):
                    raise  # of our own code, on a machine that is well
                if number == TRIES:
                    raise RuntimeError(
                        f"{TRIES} machines or processes were lost under it, the last by {type(error).__name__}: {_said(error)}; "
                        "see whether it takes more memory than they have"
                    ) from error
                lost = f"its machine or process was lost ({type(error).__name__}); it is begun elsewhere"
                _send(line, {"line": f"{name}: {lost}"})
        raise AssertionError

    def _once(self, line: socket.socket, wanted: Needs, asked: tuple[str, str | None]) -> int | None:
        import ray

        # An actor, since a task that is cancelled while it ends can take the whole process of the run with it.
        there: Any = ray.remote(_Stage).options(num_cpus=wanted.processors, num_gpus=wanted.gpus, max_restarts=0)
        stage, heard = there.remote(*asked, str(self._workspace.root), self._code, wanted.gpus), 0
        try:
            while (answers := self._heard(line, stage.answers.remote(heard), None if heard else wanted)) is not None:
                for answer in answers:
                    if "code" in answer:
                        return int(answer["code"])
                    _send(line, answer)
                heard += len(answers)
            return None
        finally:
            _end(stage, begun=heard > 0)

    def _heard(self, line: socket.socket, awaited: Any, wanted: Needs | None) -> Sequence[Mapping[str, Any]] | None:
        """Wait for what a stage says next; None if nobody waits for it any more.

        Args:
            wanted: what one that has not begun waits for, which it may do in vain when a machine is lost.
        """
        import ray

        while not ray.wait([awaited], timeout=_PAUSE)[0]:
            if self._ended.is_set() or _is_gone(line):
                return None
            if wanted is not None:
                _require(wanted)
        if self._ended.is_set() or _is_gone(line):
            return None
        try:
            found: Sequence[Mapping[str, Any]] = ray.get(awaited)
        except ray.exceptions.ActorUnavailableError:
            time.sleep(_PAUSE)  # it cannot be reached just now; Ray says when it is lost
            return ()
        return found


def _machines() -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster."""
    import ray

    nodes: Any = ray.nodes  # without types of its own
    return [node["Resources"] for node in nodes() if node["Alive"]]


def _fits(wanted: Needs, machine: Mapping[str, float]) -> bool:
    return machine.get("CPU", 0) >= wanted.processors and machine.get("GPU", 0) >= wanted.gpus


def _require(wanted: Needs) -> None:
    """See whether a machine of the cluster has what a stage takes.

    Raises:
        RuntimeError: none has.
    """
    if not any(_fits(wanted, machine) for machine in _machines()):
        raise RuntimeError(
            f"it needs {wanted}, which no machine of the cluster has; expected one; add such a machine, or change "
            "`resources` or `training.threads` in params.yaml"
        )


def _end(stage: Any, *, begun: bool) -> None:
    """End a stage and its process of the cluster: it gets the time to do so itself, and is ended by force if it does not.

    Args:
        begun: whether it has said anything; one that waits for room has nobody to end it but Ray.
    """
    import ray

    with suppress(ray.exceptions.RayError):
        if begun:
            ray.wait([stage.end.remote()], timeout=2 * PATIENCE)
    with suppress(ray.exceptions.RayError):
        ray.kill(stage)


def _is_gone(line: socket.socket) -> bool:
    """Say whether the other end is closed: it has nothing to say after its question."""
    return bool(select.select([line], [], [], 0)[0])


def _await_end(session: int) -> None:
    """Wait until the process that leads a session has ended."""
    end = time.monotonic() + RECORDING
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(session, 0)
            time.sleep(0.02)


def _send(line: socket.socket, what: Mapping[str, Any]) -> None:
    line.sendall(json.dumps(what).encode() + b"\n")


def _said(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__


def _code() -> str:
    """Return the digest of the code here. What runs elsewhere has to be what DVC takes the result to be of."""
    return provenance.code_digest(Path(__file__).parent)


class _Stage:
    """A stage that runs in a process of the cluster, which is asked for what it says."""

    def __init__(self, stage: str, subject: str | None, root: str, digest: str, gpus: int) -> None:
        self._asked, self._place, self._digest, self._gpus = (stage, subject), Workspace(Path(root)), digest, gpus
        self._said: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    def answers(self, heard: int) -> list[dict[str, Any]]:
        """Return each line that it prints, and at last its exit code, after the first `heard` of them.

        The first call begins the stage. A call waits for a moment until there is something to say.
        """
        if not self._said:
            self._begin()
        with self._news:
            self._news.wait_for(lambda: len(self._said) > heard, timeout=_LONG_PAUSE)
            return self._said[heard:]

    def end(self) -> None:
        """End it, by force where it does not end by itself."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
                break

    def _begin(self) -> None:
        here, (stage, subject) = socket.gethostname(), self._asked
        problems = []
        if not self._place.params.is_file():
            problems.append(
                f"{here} has no workspace {self._place.root}; expected one on a disk that all machines of the cluster share"
            )
        if _code() != self._digest:
            problems.append(f"{here} has other code of sevenfold; expected that of the run; install the same there")
        if problems:
            self._said += [{"line": f"error: {'; '.join(problems)}"}, {"code": 1}]
            return
        import ray

        where = f"node {ray.get_runtime_context().get_node_id()[:8]}"
        numbers = ray.get_gpu_ids()
        self._say({"line": f"{subject or stage}: on {here}, {where}" + (f", GPU {numbers[0]}" if numbers else "")})
        self._process = process = self._started()
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for text in process.stdout:
            self._say({"line": text.rstrip("\n")})
        self._say({"code": process.wait()})

    def _say(self, what: dict[str, Any]) -> None:
        with self._news:
            self._said.append(what)
            self._news.notify_all()

    def _started(self) -> "subprocess.Popen[str]":
        """Start the stage in a group of its own, on a leash: it ends with this process."""
        environment = self._place.environment() | {LEASH: "stdin", "PYTHONUNBUFFERED": "1"}
        environment.pop(ADDRESS, None)
        # This very code, of which the digest is.
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
        )
        if not self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""  # else Ray has set it
        return subprocess.Popen(
            [sys.executable, "-m", "sevenfold", "stage", *filter(None, self._asked)],
            cwd=self._place.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
