"""Worktrees: a commit checked out in a folder of its own, with the cache, the remotes and the registry of the workspace.

A worktree here is a clone that borrows the repository's objects, and not one of `git worktree`, of which the repository
would keep a record, whose hooks would run, and which a kill would leave for `git worktree prune`.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sevenfold import pipeline
from sevenfold.registry import tracking
from sevenfold.workspace import TakenError, Workspace, holder

CHECKOUT = "checkout"
"""The folder in a room that holds the commit's files."""

_RUN = "run"
"""The room of runs, of which there is one at a time."""

_SHARED = ("kernels", "timings")
"""Private folders of the workspace that its worktree uses, too."""


def resolved(workspace: Workspace, revision: str) -> str:
    """Return the hash of the commit that a revision names now, such as a branch, a tag or HEAD.

    Raises:
        LookupError: git knows none of that name.
    """
    if revision and not revision.startswith("-"):
        try:
            return _git(workspace.root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
        except LookupError:
            pass
    raise LookupError(
        f"git knows no commit {revision!r} in {workspace.root}; `git log --all --oneline` shows those there are, and "
        "`git fetch` brings those of others"
    )


def pointers(workspace: Workspace, commit: str) -> list[str]:
    """Return DVC's pointer files under data/ that a commit has, as paths from the workspace, sorted."""
    listed = _git(workspace.root, "ls-tree", "-r", "-z", "--name-only", commit, "--", f"{workspace.data.name}/")
    return sorted(name for name in map(os.fsdecode, listed.split(b"\0")) if name.endswith(".dvc"))


def checkout(workspace: Workspace, commit: str, room: Path) -> Workspace:
    """Check out a commit into a folder, and return the workspace in it, with the caller's cache and remotes of DVC's.

    The workspace itself, and its repository, stay as they are.

    Raises:
        LookupError: the commit is from before there was a workspace.
    """
    _git(room, "clone", "--quiet", "--shared", "--no-checkout", str(_top(workspace)), CHECKOUT)
    _git(room / CHECKOUT, "checkout", "--quiet", "--detach", commit)
    place = _place(workspace, room)
    place.initialise()
    pipeline.initialise(place)
    pipeline.share(workspace, place)
    return place


def apply(patch: Path, room: Path) -> None:
    """Make the changes of a patch, as `provenance.collect` gives it, in what was checked out into a room.

    Raises:
        LookupError: they do not fit.
    """
    try:
        _git(room / CHECKOUT, "apply", "--binary", "--whitespace=nowarn", str(patch.resolve()))
    except LookupError as error:
        raise LookupError(f"the patch kept with the version is not of its commit: {error}") from None


def _top(workspace: Workspace) -> Path:
    """Return the folder of the repository around a workspace."""
    return Path(os.fsdecode(_git(workspace.root, "rev-parse", "--show-toplevel").rstrip(b"\n")))


def _place(workspace: Workspace, room: Path) -> Workspace:
    """Return the workspace in a room."""
    return Workspace(room / CHECKOUT / workspace.root.resolve().relative_to(_top(workspace).resolve()))


@contextmanager
def opened(workspace: Workspace, commit: str, *, data: str | None = None) -> Iterator[Workspace]:
    """Give the workspace at a commit, in a folder of its own, which is removed at the end.

    The caller holds the workspace alone. What a run that was killed has left is removed first. A training that was killed
    there goes on in the next worktree; those of the workspace itself have their checkpoints elsewhere.

    Args:
        commit: its hash.
        data: the hash of another commit, from which DVC's pointer files under data/ come; by default they are the first's.

    Raises:
        LookupError: the commit of the data lacks some of these files.
        TakenError: a run works in the worktree still.
    """
    room = workspace.worktrees / _RUN
    _clear(workspace, room)
    room.mkdir(parents=True, mode=0o700)
    workspace.worktrees.chmod(0o700)
    try:
        place = checkout(workspace, commit, room)
        if data is not None and data != commit:
            _take_pointers(workspace, place, commit, data)
        tracking.initialise(workspace)  # since its lock is not the worktree's
        for name in _SHARED:
            _link(place.private / name, workspace.private / name)
        # Not the workspace's own, in which a training that a person has stopped may wait.
        _link(place.private / "checkpoints", workspace.worktrees / "checkpoints")
        yield place
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _clear(workspace: Workspace, room: Path) -> None:
    """Remove what a killed run has left, unless one of its processes still works there."""
    left = _place(workspace, room)
    if left.locks.is_dir():
        try:
            with left.alone():
                pass
        except TakenError:
            raise TakenError(
                f"a run still works in {room}, though the one that began it was killed; wait for it, or end it: "
                f"{holder(Path(left.lock('run').lock_file))}"
            ) from None
    shutil.rmtree(room, ignore_errors=True)


def _link(link: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    link.symlink_to(target.resolve(), target_is_directory=True)


def _take_pointers(workspace: Workspace, place: Workspace, commit: str, data: str) -> None:
    """Write the pointer files of the commit `data` over those of the worktree's."""
    wanted, there = pointers(workspace, commit), pointers(workspace, data)
    if not wanted and not there:
        raise LookupError(
            f"there is no pointer file of DVC's under {workspace.data.name}/ in {commit[:12]}, nor in {data[:12]}, so no other "
            "data can be asked for; leave out --data-rev"
        )
    if lacking := [name for name in wanted if name not in there]:
        raise LookupError(
            f"{data[:12]}, from which data are asked for, lacks {', '.join(lacking)}; name a commit that has "
            f"{'them' if len(lacking) > 1 else 'it'}, `git log --all -- {lacking[0]}` shows some"
        )
    for name in there:
        (place.root / name).parent.mkdir(parents=True, exist_ok=True)
        (place.root / name).write_bytes(_git(workspace.root, "show", f"{data}:./{name}"))


def is_one(workspace: Workspace) -> bool:
    """Say whether a workspace is such a worktree, which is gone after its run."""
    return any(Workspace(folder).worktrees / _RUN in workspace.root.parents for folder in workspace.root.parents)


def python_path(place: Workspace) -> str:
    """Return the value of PYTHONPATH by which a process runs the code of the worktree `place`."""
    return os.pathsep.join(filter(None, [str(place.root / "src"), str(place.root), os.environ.get("PYTHONPATH", "")]))


def environment(workspace: Workspace, place: Workspace) -> dict[str, str]:
    """Return the variables for processes in the worktree `place`: its own code, and the registry of the workspace."""
    found = workspace.environment() | {"SEVENFOLD_WORKSPACE": str(place.root), "PYTHONPATH": python_path(place)}
    if (artifacts := tracking.artifact_location(workspace)) is not None:
        found["SEVENFOLD_ARTIFACTS"] = artifacts
    # Of a flow run that is the caller's own.
    return {name: value for name, value in found.items() if not name.startswith("PREFECT__")}


def _git(folder: Path, *arguments: str) -> bytes:
    """Return what git prints.

    Raises:
        LookupError: it fails; the message is git's.
    """
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise LookupError(
            f"git {arguments[0]}: {'; '.join(lines[-3:]) or 'it printed nothing'}; see what git says of the repository"
        )
    return done.stdout
