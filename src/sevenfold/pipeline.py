"""The graph of stages, which is DVC's: what is stale in it, how one stage is run, and where its data come from and go to.

The one home of DVC.
"""

import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from sevenfold.workspace import Workspace

T = TypeVar("T")

AT_ONCE = 4
"""Stages that DVC looks at before it runs their commands; more would wait longer for its lock than it does."""

PATIENCE = 60.0
"""Seconds to wait for a lock of DVC's before the graph is read."""

ANSWER = 30.0
"""Seconds within which a remote has to answer."""

Outcome = Literal["ran", "restored", "unchanged"]
"""What DVC did for a stage: ran its command, took its outputs from the cache, or found nothing to do."""


class BusyError(RuntimeError):
    """Another DVC process holds a lock. The same call will do a little later."""


class StageError(RuntimeError):
    """A stage failed, and will again until what its message names is mended."""


class StoppedError(RuntimeError):
    """A stage was ended from outside before it was done."""


class RemoteError(RuntimeError):
    """The remote cannot be used: it is not there, does not answer, or refuses."""


@dataclass(frozen=True)
class Remote:
    """DVC's default remote: its name, and its address without a user, a password or a query."""

    name: str
    url: str

    def __str__(self) -> str:
        return f"DVC's remote {self.name!r} ({self.url})"


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
    wanted = {"analytics": "false", "site_cache_dir": str(workspace.private / "dvc")}
    config = _config(workspace)
    there = config.load_one("local")["core"]
    if any(there.get(name) != value for name, value in wanted.items()):
        with config.edit("local", validate=False) as ours:
            ours["core"].update(wanted)


def _config(workspace: Workspace) -> Any:
    """Return DVC's settings of a workspace. The command `dvc config` does the same in a second."""
    from dvc.config import Config

    return Config(str(workspace.root / ".dvc"), validate=False)


def share(workspace: Workspace, place: Workspace) -> None:
    """Let the workspace `place` have the cache and the remotes of another one, as they are set there today.

    What `place` builds itself need not go into the cache. Addresses that are relative to the other one's folder still lead
    to the same place.
    """
    theirs = _config(workspace)
    with _config(place).edit("local", validate=False) as ours:
        for level in (theirs.load_one("repo"), theirs.load_one("local")):
            ours["cache"].update(level["cache"])
            if "remote" in level["core"]:
                ours["core"]["remote"] = level["core"]["remote"]
            for name, options in level["remote"].items():
                ours["remote"].setdefault(name, {}).update(options)
        ours["cache"]["dir"] = theirs.read().get("cache", {}).get("dir") or str(workspace.root / ".dvc" / "cache")


def bring(workspace: Workspace, pointer: str) -> None:
    """Write the file or folder of a pointer file, from the cache, else from the default remote.

    Raises:
        LookupError: neither has it.
    """
    try:
        _dvc(workspace, "checkout", pointer)
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
        _dvc(workspace, "pull", pointer)
    except StageError as error:
        raise LookupError(f"{name} is neither in DVC's cache nor in its remote ({error})") from None


def bring_data(workspace: Workspace, pointers: Sequence[str], on_bring: Callable[[str], None]) -> None:
    """Write every tracked file or folder that a stage reads and that is not there, from the cache, else from the remote.

    What is there stays as it is, also where it is not what its pointer file names.

    Args:
        pointers: DVC's pointer files, as paths from the workspace.
        on_bring: called with the path of each, before it is brought.

    Raises:
        LookupError: some are neither here nor there; the message names each.
    """
    absent = [name for name in pointers if not (workspace.root / name).with_suffix("").exists()]
    if not absent:
        return
    with _repository(workspace) as repository:
        read = {Path(found.fs_path) for node in repository.index.graph if node.cmd for found in node.deps}
    problems = []
    for pointer in absent:
        name = pointer.removesuffix(".dvc")
        place = workspace.root.resolve() / name
        if any(path == place or place in path.parents or path in place.parents for path in read):
            on_bring(name)
            try:
                bring(workspace, pointer)
            except LookupError as error:
                problems.append(str(error))
    if problems:
        raise LookupError("; ".join(problems))


def remote(workspace: Workspace) -> Remote | None:
    """Return DVC's default remote, or None where none is set."""
    with _repository(workspace) as repository:
        name = repository.config["core"].get("remote")
        if not name:
            return None
        entry = repository.config["remote"].get(name)
        if entry is None:
            raise RemoteError(
                f"DVC's default remote is {name!r}, and there is none of that name; see `dvc remote list`"
            )
        return Remote(str(name), _shown(str(entry["url"])))


def _shown(url: str) -> str:
    """Return an address without what may be secret in it."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _discreet(workspace: Workspace, text: str) -> str:
    """Return a text of DVC's or of a store's without what may be secret in the addresses of the remotes."""
    try:
        remotes = _config(workspace).read().get("remote", {})
    except Exception:  # of DVC's; what it says of its settings is the text
        return text
    for options in remotes.values():
        url = str(options.get("url", ""))
        if "://" not in url:
            continue
        parts = urlsplit(url)
        who, query = parts.netloc.rpartition("@")[0], parts.query
        text = text.replace(url, _shown(url))
        # A library may have put the path of a file, or what it escapes, between them.
        for told in (f"{who}@", f"{unquote(who)}@") if who else ():
            text = text.replace(told, "")
        for told in (query, unquote(query)) if "=" in query else ():
            text = text.replace(f"?{told}", "").replace(told, "")
    return text


def reach(workspace: Workspace) -> None:
    """Ask the default remote whether it is there, which costs a request.

    Raises:
        RemoteError: it is not, does not answer within some seconds, or refuses; the message says what to do.
    """
    there = remote(workspace)
    if there is None:
        raise RemoteError("no default remote is set; set one by `dvc remote add --default NAME URL`")
    trouble: list[str] = []

    def ask() -> None:
        try:
            with _repository(workspace) as repository:
                trouble.extend(_trouble(repository.cloud.get_remote(there.name)))
        except Exception as error:  # each kind of store has its own
            trouble.append(" ".join(str(error).split()) or type(error).__name__)

    # An address at which nobody answers is waited for by some libraries for minutes.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    if asking.is_alive():
        trouble.append(f"it does not answer within {ANSWER:.0f} s")
    if trouble:
        why = _discreet(workspace, trouble[0])
        raise RemoteError(
            f"{there} cannot be used: {why}; see that it is there and that your keys are right, look at its settings by "
            f"`dvc remote list` and `dvc config --list`, or leave it out by --no-push"
        )


def _trouble(found: Any) -> list[str]:
    """Return why a remote cannot be used, or nothing."""
    if found.fs.protocol == "local":
        if not Path(found.path).is_dir():
            return ["there is no such folder (a disk that is not mounted?); `mkdir` it where it is new"]
        return [] if os.access(found.path, os.R_OK | os.W_OK | os.X_OK) else ["this user may not read and write it"]
    try:
        found.fs.fs.ls(found.path, detail=False, refresh=True)
    except FileNotFoundError as error:
        # Nothing was ever put there, which is no trouble; but a bucket that is not there, the store itself says.
        return [str(error)] if error.__cause__ is not None else []
    return []


def restore(workspace: Workspace, *, remote: bool) -> list[str]:
    """Write the outputs of stages that ran before on the same inputs, and return the names of these stages.

    Stages whose outputs are there and right are left alone. Of others the outputs are looked for by dvc.lock and then by
    the record of earlier runs, in this machine's cache and, if asked for, in the default remote. That record is brought
    here first. What is nowhere, a stage has to make. The process is in the workspace's folder meanwhile.

    Raises:
        RemoteError: the remote's record cannot be read.
    """
    found = []
    # The record has paths that DVC takes from the current folder.
    with chdir(workspace.root), _quiet(), _repository(workspace) as repository, _locked(repository):
        order = [stage.name for stage in _stages(workspace, repository)]
        nodes = {_name(workspace, node): node for node in repository.index.graph if node.cmd}
        changed = [name for name in order if nodes[name].changed()]
        if remote and changed:
            _bring_record(workspace, repository)
        for name in changed:
            with suppress(Exception):  # of DVC's or of some store's: what cannot be had is made
                repository.stage_cache.restore(nodes[name], pull=remote)
                found.append(name)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep DVC from telling what it does."""
    log = logging.getLogger("dvc")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


def _bring_record(workspace: Workspace, repository: Any) -> None:
    """Copy the remote's record of runs into the cache, as far as it is not there."""
    from dvc.config import RemoteConfigError
    from dvc.stage.cache import RunCacheNotSupported

    with suppress(RemoteConfigError, RunCacheNotSupported):  # a web server, or a store that keeps versions itself
        there = repository.cloud.get_remote_odb(None, "fetch --run-cache", hash_name="md5-dos2unix")
        try:
            repository.stage_cache.transfer(there, repository.cache.legacy, force=False)
        except Exception as error:  # each kind of store has its own
            raise RemoteError(
                f"the record of runs in DVC's default remote cannot be read ({_discreet(workspace, str(error))}); try again, or "
                "leave the remote out by --no-push"
            ) from None  # logs show causes, too


@contextmanager
def _locked(repository: Any) -> Iterator[None]:
    """Hold DVC's lock."""
    from dvc.repo import lock_repo

    with ExitStack() as held:
        _patiently(lambda: held.enter_context(lock_repo(repository)))
        yield


def _patiently(call: Callable[[], T]) -> T:
    """Return what a call returns that takes DVC's lock, after waiting for another process where one holds it."""
    from dvc.lock import LockError

    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except LockError:
            if time.monotonic() > end:
                raise _busy() from None
            time.sleep(0.5)


def push(workspace: Workspace) -> None:
    """Send to the default remote what dvc.lock and pointer files name, and the record of runs.

    Raises:
        RemoteError: it cannot be done; the message is DVC's. What was sent stays there.
    """
    try:
        _dvc(workspace, "push", "--run-cache")
    except StageError as error:
        raise RemoteError(str(error)) from None


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
        _raise(" ".join(command), _discreet(workspace, done.stdout + done.stderr))
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
        status = _patiently(repository.status)
        changed = {_name(workspace, node) for node in repository.index.graph if node.cmd and node.addressing in status}
        found: list[Stage] = []
        for stage in _stages(workspace, repository):
            if stage.name in changed or any(earlier.name in stage.before for earlier in found):
                found.append(stage)
        return found


def _busy() -> BusyError:
    return BusyError(f"another DVC process has held its lock for {PATIENCE:.0f} s; wait for it, or end it")


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
        self._beginning = threading.Semaphore(AT_ONCE)
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
        self,
        stage: str,
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
        *,
        anew: bool = False,
        keep_open: Collection[int] = (),
    ) -> Outcome:
        """Bring one stage up to date, given that those before it are.

        Args:
            stage: its name.
            environment: variables beside those of the workspace, such as the device to use.
            on_line: called with each line that the stage prints.
            anew: run its command in any case, take nothing from DVC's caches, and put nothing there.
            keep_open: files that stay open as long as DVC works on the stage, whatever becomes of this process: their
                locks are held until then.

        Raises:
            BusyError: a lock of DVC's is held by another process.
            StageError: the stage failed; the message is the stage's own.
            StoppedError: `stop` was called.
        """
        lines: list[str] = []
        options = ["--force", "--no-run-cache", "--no-commit"] if anew else []
        with ExitStack() as beginning:
            beginning.enter_context(self._beginning)
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
                    pass_fds=tuple(keep_open),
                )
                self._running.add(process)
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line.rstrip())
                    if lines[-1].startswith("Running stage "):
                        beginning.close()  # DVC has let go of its lock
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


def tells_of_a_lock(text: str) -> bool:
    """Say whether DVC's output, or a line of it, tells that another process of DVC's holds a lock."""
    return "Unable to acquire lock" in text or "is busy, it is being blocked by" in text


def _raise(what: str, output: str) -> None:
    """Raise what DVC's output says: a lock that is held, the stage's own error, or DVC's."""
    if tells_of_a_lock(output):
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
