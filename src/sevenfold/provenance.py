"""Where a result comes from: the code's commit and what differs from it, params.yaml, dvc.lock, data, and the environment."""

import fnmatch
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from sevenfold import files, params
from sevenfold.workspace import Workspace

PARAMS, LOCK, ENVIRONMENT, PATCH = "params.yaml", "dvc.lock", "environment.json", "uncommitted.patch"
"""The files that `write` makes."""

PARTLY = "kept; "
"""How `Provenance.unkept` begins where a part of the patch is kept."""

MOST_PATCH = 5 << 20
"""Bytes of uncommitted changes that are kept with a version."""


@dataclass(frozen=True)
class Provenance:
    """What a workspace's results rest on, as it is now.

    commit: hexadecimal, or "none" outside git and before the first commit.
    dirty: files differ from that commit, or there are others that git does not ignore.
    patch: what differs, as `git apply --binary` takes it; None where nothing does, or where it is not kept.
    unkept: why the patch, or what part of it, is not kept, or "".
    lock_digest: SHA-256 of dvc.lock, or "none".
    environment: Python, platform, packages, hardware and threads, as in environment.json.
    """

    commit: str
    dirty: bool
    patch: bytes | None
    unkept: str
    lock_digest: str
    environment: Mapping[str, Any]

    def tags(self) -> dict[str, str]:
        """Return the tags of a run and a version that say this in short."""
        found = {"git_commit": self.commit, "git_dirty": str(self.dirty).lower(), "lock_digest": self.lock_digest}
        return found | ({"git_patch": self.unkept} if self.unkept else {})


def collect(workspace: Workspace) -> Provenance:
    """Return what the workspace's results rest on now. Neither git's index nor its objects are touched."""
    commit = _git(workspace.root, "rev-parse", "--verify", "--quiet", "HEAD")
    changed = commit is not None and bool(_git(workspace.root, "status", "--porcelain", "--untracked-files=normal"))
    patch, unkept = _patch(workspace.root) if changed else (None, "")
    lock = workspace.root / LOCK
    return Provenance(
        commit=commit.decode().strip() if commit is not None else "none",
        dirty=changed,
        patch=patch,
        unkept=unkept,
        lock_digest=files.digest(lock) if lock.is_file() else "none",
        environment=environment(params.load(workspace.params).training.threads),
    )


def write(workspace: Workspace, folder: Path, found: Provenance) -> list[Path]:
    """Write params.yaml, dvc.lock, environment.json and uncommitted.patch, those that there are, and return them.

    DVC's pointer files of the data go along, where they are in the workspace.
    """
    names = [PARAMS, LOCK, *pointers(workspace)]
    for name in names:
        if (workspace.root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(workspace.root / name, folder / name)
    files.write_json(folder / ENVIRONMENT, dict(found.environment))
    if found.patch is not None:
        (folder / PATCH).write_bytes(found.patch)
    return [folder / name for name in (*names, ENVIRONMENT, PATCH) if (folder / name).is_file()]


def pointers(workspace: Workspace) -> list[str]:
    """Return DVC's pointer files of the data that git knows or would take, as paths from the workspace, sorted."""
    # Git leaves out what it ignores, and so the data themselves, which may be a million files.
    listed = _git(
        workspace.root,
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        f"{workspace.data.name}/*.dvc",
    )
    return sorted(filter(None, map(os.fsdecode, (listed or b"").split(b"\0"))))


def environment(threads: int) -> dict[str, Any]:
    """Return what the software and the machine are, as far as results may depend on them."""
    return {**_machine(), "threads": threads}


def locked(lock: Path) -> dict[str, str]:
    """Return path -> MD5 of every file and folder that the stages of a dvc.lock read or wrote."""
    found = (params.plain(lock) or {}) if lock.is_file() else {}
    stages = found.get("stages", {}).values()
    return {
        entry["path"]: entry["md5"]
        for s in stages
        for e in ("deps", "outs")
        for entry in s.get(e, ())
        if "md5" in entry
    }


def code_digest(package: Path) -> str:
    """Return the SHA-256 over names and contents of a package's sources, as hexadecimal text."""
    sources = sorted((p.relative_to(package).as_posix(), files.digest(p)) for p in package.rglob("*.py"))
    return hashlib.sha256("".join(f"{name}\0{value}\n" for name, value in sources).encode()).hexdigest()


def has_commit(workspace: Workspace, commit: str) -> bool:
    """Say whether the workspace's repository holds a commit."""
    return _git(workspace.root, "cat-file", "-e", f"{commit}^{{commit}}") is not None


@functools.cache
def _machine() -> dict[str, Any]:
    import torch

    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        system = platform.platform(terse=True)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "python": platform.python_version(),
        "system": system,
        "kernel": platform.release(),
        "container": any(Path(p).exists() for p in ("/.dockerenv", "/run/.containerenv"))
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        "packages": {
            d.metadata["Name"]: d.version for d in sorted(metadata.distributions(), key=lambda d: d.metadata["Name"])
        },
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            # The widest instructions that torch uses decide in which order numbers are added.
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "memory": memory,
            "gpus": gpus,
        },
    }


def _processor() -> str:
    """Return the processor's model, as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(folder: Path, *arguments: str, **variables: str) -> bytes | None:
    """Return what git prints; None where it fails, as outside a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env={**os.environ, **variables}, capture_output=True, check=False
        )
    except FileNotFoundError:  # no git here
        return None
    return done.stdout if done.returncode == 0 else None


def _patch(folder: Path) -> tuple[bytes | None, str]:
    """Return all that differs from the commit in files that git knows, with new sources, or why it is not kept."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None, "git names no working tree"
    root = Path(os.fsdecode(top.rstrip(b"\n")))
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard") or b""
    place = folder.resolve().relative_to(root.resolve()).as_posix()
    others = [name for name in map(os.fsdecode, listed.split(b"\0")) if name and _is_source(name, place)]
    size = sum(path.lstat().st_size for path in (root / name for name in others) if path.is_symlink() or path.is_file())
    if size > MOST_PATCH:  # before git reads them
        return None, _too_large(size)
    with _scratch_index(root) as variables:
        # Files of all names, whatever they look like to git.
        added = not others or _git(root, "--literal-pathspecs", "add", "--", *others, **variables) is not None
        if _git(root, "add", "--update", **variables) is None or not added:
            return None, "git cannot read every file that differs"
        listed = _git(root, "diff", "--cached", "--name-only", "--no-renames", "-z", "HEAD", **variables) or b""
        secret = [name for name in map(os.fsdecode, listed.split(b"\0")) if name and _is_secret(name, place)]
        # In the form that `git apply` takes, whatever the user's own settings are.
        plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
        without = ("--", ".", *(f":(exclude,literal){name}" for name in secret))
        patch = _git(root, "diff", "--cached", *plain, "HEAD", *without, **variables)
    if patch is None:
        return None, "git cannot say what differs"
    if len(patch) > MOST_PATCH:
        return None, _too_large(len(patch))
    if not patch:  # which `git apply` does not take
        return None, _left_out(secret) if secret else "they are in files of the user's own, which are not kept"
    return patch, f"{PARTLY}{_left_out(secret)}" if secret else ""


def _is_source(name: str, place: str) -> bool:
    """Say whether a file that git does not know can have a part in a result.

    Others are the user's own, may be secret, and do not go into a store that is shared.

    Args:
        name: of the file, from the top of the repository.
        place: of the workspace, from there; "." where it is the top.
    """
    path = PurePosixPath(name)
    if place != ".":
        if not path.is_relative_to(place):
            return False
        path = path.relative_to(place)
    if _is_secret(name, place):
        return False
    return path.suffix == ".dvc" or path.parts[0] in _SOURCES or path.parts[:2] == ("data", "expectations")


def _is_secret(name: str, place: str) -> bool:
    """Say whether a file's name is that of one that may hold a secret, whether git knows the file or not."""
    path = PurePosixPath(name)
    if path.is_relative_to(place):
        path = path.relative_to(place)  # what the workspace and the folders above it are called says nothing
    if path.parent.name == ".dvc" and path.name.startswith("config"):  # a remote's part may hold keys
        return True
    return any(fnmatch.fnmatch(part.lower(), pattern) for part in path.parts for pattern in _SECRET)


_SOURCES = frozenset(
    {"src", "flows", "params", "params.yaml", "dvc.yaml", "dvc.lock", "pyproject.toml", "constraints.txt"}
)
_SECRET = (".env*", "*.pem", "*.key", "*credential*", "*secret*", "*password*", "id_*")


def _left_out(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    were = "file that may hold secrets was" if len(names) == 1 else "files that may hold secrets were"
    return f"{len(names):,} {were} left out: {', '.join(names[:3])}{more}"


def _too_large(size: int) -> str:
    return f"uncommitted changes of {size:,} bytes were not kept; at most {MOST_PATCH:,} are"


@contextmanager
def _scratch_index(root: Path) -> Iterator[dict[str, str]]:
    """Give the variables by which git uses an index and a store of objects that are gone afterwards."""
    place = _git(root, "rev-parse", "--path-format=absolute", "--git-path", "index", "--git-path", "objects") or b""
    index, objects = os.fsdecode(place).splitlines()
    with tempfile.TemporaryDirectory() as room:
        if Path(index).is_file():  # whose record of what is unchanged spares git reading every file
            shutil.copy2(index, Path(room) / "index")
        (Path(room) / "objects").mkdir()
        yield {
            "GIT_INDEX_FILE": str(Path(room) / "index"),
            "GIT_OBJECT_DIRECTORY": str(Path(room) / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }
