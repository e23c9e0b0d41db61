"""The graph of stages, which is DVC's: what is stale in it, and how one stage is run. The one home of DVC."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sevenfold.workspace import Workspace

PATIENCE = 60.0
"""Seconds to wait for a lock of DVC's before the graph is read."""

Outcome = Literal["ran", "restored", "unchanged"]
"""What DVC did for a stage: ran its command, took its outputs from the cache, or found nothing to do."""


class BusyError(RuntimeError):
    """Another DVC process holds a lock. The same call will do a little later."""


class StageError(RuntimeError):
    """A stage failed, and will again until what its message names is mended."""


class StoppedError(RuntimeError):
    """A stage was ended from outside before it was done."""


@dataclass(frozen=True)
class Stage:
    """One stage of the graph.

    name: as DVC writes it, for example "train@digits-deep" or "scorecard".
    needs: stages whose very outputs it reads; it can only run after all of them succeeded.
    uses: stages whose outputs lie in a folder that it reads; it runs after them, and takes what there is.
    """

    name: str
    needs: frozenset[str]
    uses: frozenset[str]

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]

    @property
    def before(self) -> frozenset[str]:
        """The stages that have to have ended, in whatever way, before this one."""
        return self.needs | self.uses


def initialise(workspace: Workspace) -> None:
    """Write DVC's settings for this machine: a private cache of its own, and no reports to anybody. Safe to repeat."""
    if not (workspace.root / ".dvc").is_dir():
        raise LookupError(f"there is no .dvc folder in {workspace.root}; run `dvc init` there")
    wanted = {"core.analytics": "false", "core.site_cache_dir": str(workspace.private / "dvc")}
    listed = _dvc(workspace, "config", "--local", "--list").splitlines()
    for name, value in wanted.items():
        if f"{name}={value}" not in listed:
            _dvc(workspace, "config", "--local", name, value)


def use_cache(workspace: Workspace, folder: Path) -> None:
    """Let a workspace take data from a cache that is another one's, too. What it builds itself need not go there."""
    _dvc(workspace, "config", "--local", "cache.dir", str(folder))


def bring(workspace: Workspace, pointer: str) -> None:
    """Write the file or folder of a pointer file, from the cache, else from the default remote.

    Raises:
        LookupError: neither has it.
    """
    try:
        _dvc(workspace, "checkout", "--quiet", pointer)
        return
    except StageError as error:
        absent = error
    name = pointer.removesuffix(".dvc")
    if not _dvc(workspace, "remote", "list").strip():
        raise LookupError(
            f"{name} is not in DVC's cache, and no remote is set ({absent}); put its old content there by `dvc add`, or set "
            "the remote that has it by `dvc remote add`"
        ) from None
    try:
        _dvc(workspace, "pull", "--quiet", pointer)
    except StageError as error:
        raise LookupError(f"{name} is neither in DVC's cache nor in its remote ({error})") from None


def track(workspace: Workspace, path: Path) -> Path:
    """Put a file or folder under DVC, and return the pointer file that belongs in git."""
    _dvc(workspace, "add", "--quiet", str(path))
    return path.with_name(f"{path.name}.dvc")


def _dvc(workspace: Workspace, *arguments: str) -> str:
    """Run one command of DVC and return what it prints."""
    command = ["dvc", *arguments]
    environment = workspace.environment()
    done = subprocess.run(command, cwd=workspace.root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        _raise(" ".join(command), done.stdout + done.stderr)
    return done.stdout


def stages(workspace: Workspace) -> list[Stage]:
    """Return the whole graph as DVC knows it, every stage after those whose outputs it reads."""
    with _repository(workspace) as repository:
        return _stages(workspace, repository)


def _stages(workspace: Workspace, repository: Any) -> list[Stage]:
    graph = repository.index.graph
    names = {node: _name(workspace, node) for node in graph if node.cmd}  # without pointer files of tracked data
    needs: dict[str, set[str]] = {name: set() for name in sorted(names.values())}
    uses: dict[str, set[str]] = {name: set() for name in needs}
    for after, before in graph.edges:
        if after in names and before in names:
            outputs = [Path(out.fs_path) for out in before.outs]
            read = [Path(dependency.fs_path) for dependency in after.deps]
            exact = any(path.is_relative_to(out) for path in read for out in outputs)
            (needs if exact else uses)[names[after]].add(names[before])
    order = TopologicalSorter({name: sorted(needs[name] | uses[name]) for name in needs}).static_order()
    return [Stage(name, frozenset(needs[name]), frozenset(uses[name])) for name in order]


def _name(workspace: Workspace, node: Any) -> str:
    """Name a stage as DVC does in the workspace's folder; elsewhere its names have paths in them."""
    file = Path(node.path).relative_to(workspace.root.resolve()).as_posix()
    return str(node.name) if file == "dvc.yaml" else f"{file}:{node.name}"


def stale(workspace: Workspace) -> list[Stage]:
    """Return the stages that DVC finds changed, with all that come after them, in an order in which they can run.

    A stage that comes after may turn out unchanged once those before it are done; running it then costs a second.
    """
    with _repository(workspace) as repository:
        status = _status(repository)
        changed = {_name(workspace, node) for node in repository.index.graph if node.cmd and node.addressing in status}
        found: list[Stage] = []
        for stage in _stages(workspace, repository):
            if stage.name in changed or any(earlier.name in stage.before for earlier in found):
                found.append(stage)
        return found


def _status(repository: Any) -> dict[str, Any]:
    """Return what DVC finds changed, after waiting for another DVC process where one holds its lock."""
    from dvc.lock import LockError

    end = time.monotonic() + PATIENCE
    while True:
        try:
            found: dict[str, Any] = repository.status()
            return found
        except LockError:
            if time.monotonic() > end:
                raise BusyError(
                    f"another DVC process has held its lock for {PATIENCE:.0f} s; wait for it, or end it"
                ) from None
            time.sleep(0.5)


@contextmanager
def _repository(workspace: Workspace) -> Iterator[Any]:
    """Give DVC's own view of the workspace."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repository = Repo(str(workspace.root))
    except DvcException as error:
        raise LookupError(f"DVC cannot read {workspace.root}: {error}; see `dvc doctor`") from error
    try:
        yield repository
    finally:
        repository.close()


class Reproduction:
    """Runs stages, several at a time, and ends all that still run when its block is left.

    Each stage runs in a process group of its own, since to end `dvc repro` alone would leave the trainer running.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, patience: float = 10.0) -> None:
        """End every stage that runs, by force after `patience` seconds. Later calls of `run` raise."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        for process in running:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)

    def run(
        self, stage: str, environment: Mapping[str, str], on_line: Callable[[str], None], *, anew: bool = False
    ) -> Outcome:
        """Bring one stage up to date, given that those before it are.

        Args:
            stage: its name.
            environment: variables beside those of the workspace, such as the device to use.
            on_line: called with each line that the stage prints.
            anew: run its command in any case, take nothing from DVC's caches, and put nothing there.

        Raises:
            BusyError: a lock of DVC's is held by another process.
            StageError: the stage failed; the message is the stage's own.
            StoppedError: `stop` was called.
        """
        lines: list[str] = []
        options = ["--force", "--no-run-cache", "--no-commit"] if anew else []
        with self._lock:
            if self._stopped:
                raise StoppedError(f"{stage} was not begun: the run was stopped")
            process = subprocess.Popen(
                ["dvc", "repro", "--single-item", *options, stage],
                cwd=self._workspace.root,
                env={**self._workspace.environment(), "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                on_line(lines[-1])
            code = process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
            process.stdout.close()  # type: ignore[union-attr]
        output = "\n".join(lines)
        if code:
            if self._stopped:
                raise StoppedError(f"{stage} was ended before it was done")
            _raise(stage, output)
        if re.search(r"^Running stage ", output, re.MULTILINE):
            return "ran"
        return "restored" if "is cached" in output else "unchanged"


def _signal(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # the leader of its session has the group's number


def _raise(what: str, output: str) -> None:
    """Raise what DVC's output says: a lock that is held, the stage's own error, or DVC's."""
    if "Unable to acquire lock" in output or "is busy, it is being blocked by" in output:
        raise BusyError(f"{what}: another DVC process holds a lock; try again in a moment")
    lines = output.splitlines()
    own = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if own:
        # The stage's message may have several lines, up to DVC's own first one.
        message = lines[own[-1] :]
        ends = [i for i, line in enumerate(message) if line.startswith("ERROR: ")]
        text = "\n".join(message[: ends[0]] if ends else message).removeprefix("error: ").strip()
    else:
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        text = "; ".join(errors) or "\n".join(lines[-15:]) or "it printed nothing"
    raise StageError(f"{what}: {text}")
