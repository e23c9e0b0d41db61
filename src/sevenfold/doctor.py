"""What is in the way of a workspace: versions, databases, locks, disk, devices, permissions. It looks and mends nothing."""

import re
import shutil
import sqlite3
import stat
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

import filelock

from sevenfold import files, processors
from sevenfold.workspace import Workspace, holder

Status = Literal["ok", "warning", "error"]
ORDER: tuple[Status, ...] = ("ok", "warning", "error")
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do, and is empty where there is nothing to do."""

    subject: str
    status: Status
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class BadVersion:
    """Versions of a package from `least` up and under `below` that are known to fail, beside old versions of another.

    beside, beside_below: the other package and its first version that is not affected; any version if empty.
    """

    package: str
    reason: str
    remedy: str
    least: str = "0"
    below: str = ""
    beside: str = ""
    beside_below: str = ""


BAD_VERSIONS = (
    BadVersion(
        "fastapi",
        "Prefect 3.8 fails at the first flow with FastAPI 0.151 and newer",
        'pip install "fastapi<0.151"',
        least="0.151",
        beside="prefect",
        beside_below="3.9",
    ),
    BadVersion(
        "sqlalchemy",
        "Prefect 3.8 never creates a scheduled run with SQLAlchemy 2.1 and newer, and looks healthy",
        'pip install "sqlalchemy>=2.0.40,<2.1"',
        least="2.1",
        beside="prefect",
        beside_below="3.9",
    ),
    BadVersion("mlflow", "it has known security holes", 'pip install "mlflow>=3.17.2,<4"', below="3.17.2"),
)


def examine(workspace: Workspace) -> list[Finding]:
    """Look at everything that a run in this workspace needs."""
    return [
        judge_python(sys.version_info[:3]),
        *judge_versions(installed()),
        *_tools(workspace),
        *_database(workspace),
        *_locks(workspace),
        judge_disk(shutil.disk_usage(workspace.root).free),
        _devices(),
        *_private_folders(workspace),
    ]


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status there is; "ok" if nothing was looked at."""
    return max((f.status for f in findings), key=ORDER.index, default="ok")


def judge_python(version: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, version))
    if version < (3, 11):
        return Finding(
            "python", "error", f"Python {text}; expected 3.11 or newer", "make a virtual environment with a newer one"
        )
    return Finding("python", "ok", f"Python {text}")


def installed() -> dict[str, str | None]:
    """Return the version of every package that sevenfold needs, None where it is not installed."""
    versions: dict[str, str | None] = {}
    for requirement in metadata.requires("sevenfold") or []:
        if "extra ==" not in requirement:
            name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = None
    return versions


def judge_versions(versions: Mapping[str, str | None]) -> list[Finding]:
    """Judge installed versions (None: not installed) by what is known to fail, one finding for each that does."""
    found = []
    for name in sorted(n for n, version in versions.items() if version is None):
        found.append(Finding(name, "error", "it is not installed", "pip install -c constraints.txt -e ."))
    for bad in BAD_VERSIONS:
        version, other = versions.get(bad.package), versions.get(bad.beside)
        if version is None or (bad.beside and other is None):
            continue
        new_enough = _numbers(version) >= _numbers(bad.least)
        old_enough = not bad.below or _numbers(version) < _numbers(bad.below)
        affected = not bad.beside_below or _numbers(other or "0") < _numbers(bad.beside_below)
        if new_enough and old_enough and affected:
            beside = f" beside {bad.beside} {other}" if bad.beside else ""
            found.append(Finding(bad.package, "error", f"version {version}{beside}: {bad.reason}", bad.remedy))
    return found or [Finding("packages", "ok", f"{len(versions)} packages, none of a version known to fail")]


def judge_disk(free: int) -> Finding:
    """Judge the bytes that are free."""
    message = f"{free / GIB:.1f} GiB free"
    remedy = "free some; `dvc gc --workspace` removes cached files that no result uses"
    if free < 5 * GIB:
        return Finding("disk", "error" if free < GIB else "warning", f"{message}; expected 5 or more", remedy)
    return Finding("disk", "ok", message)


def judge_artifacts(locations: Mapping[str, str], root: Path) -> list[Finding]:
    """Find experiments, by name, whose files are recorded at a local place outside of the workspace at `root`."""
    outside = {
        name: path
        for name, uri in locations.items()
        if (path := files.local_path(uri)) and not path.is_relative_to(root)
    }
    remedy = (
        "if the workspace was moved, move it back; or delete .sevenfold/mlflow and run `sevenfold run`, which publishes "
        "today's winners again (the history is lost)"
    )
    return [
        Finding(
            "mlflow artifacts", "error", f"experiment {name!r} keeps its files at {path}, outside of {root}", remedy
        )
        for name, path in sorted(outside.items())
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version: (3, 8, 8) of "3.8.8" and of "3.8.8rc1"; zeros at the end do not count."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _tools(workspace: Workspace) -> list[Finding]:
    found = []
    if shutil.which("git") is None:
        found.append(Finding("git", "error", "the command `git` is not on PATH", "install git"))
    elif not any((folder / ".git").exists() for folder in [workspace.root, *workspace.root.parents]):
        remedy = "run `git init`, so that every result knows its code"
        found.append(Finding("git", "warning", f"{workspace.root} is in no git repository", remedy))
    else:
        found.append(Finding("git", "ok", "installed, and the workspace is in a repository"))
    if (workspace.root / ".dvc").is_dir():
        found.append(Finding("dvc", "ok", "initialised"))
    else:
        found.append(Finding("dvc", "error", f"there is no .dvc in {workspace.root}", "run `dvc init` there"))
    return found


def _database(workspace: Workspace) -> list[Finding]:
    """Look into the MLflow database without MLflow, which would upgrade it."""
    uri = workspace.tracking_uri
    if not uri.startswith("sqlite:///"):
        # Only scheme and host: the rest may hold a password.
        server = urlsplit(uri)
        return [
            Finding("mlflow", "ok", f"recorded at {server.scheme}://{server.hostname or ''}, which is not examined")
        ]
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        return [Finding("mlflow", "warning", f"there is no database at {path} yet", "run `sevenfold run`")]
    # An experiment without runs holds no files; MLflow makes one of its own beside the folder it was started in.
    experiments = """
        SELECT name, artifact_location FROM experiments
        WHERE lifecycle_stage = 'active' AND artifact_location IS NOT NULL
        AND (experiment_id <> 0 OR EXISTS (SELECT 1 FROM runs WHERE runs.experiment_id = experiments.experiment_id))
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)) as connection:
            revisions = [str(row[0]) for row in connection.execute("SELECT version_num FROM alembic_version")]
            locations = {str(name): str(location) for name, location in connection.execute(experiments)}
    except sqlite3.Error as error:
        remedy = "restore it from a backup, or move it away and run `sevenfold run`"
        return [Finding("mlflow", "error", f"{path} is no readable MLflow database ({error})", remedy)]
    if len(revisions) != 1:
        remedy = f"run `mlflow db upgrade {uri}`"
        return [Finding("mlflow", "error", f"{path} has {len(revisions)} schema revisions; expected 1", remedy)]
    summary = Finding("mlflow", "ok", f"database with {len(locations)} experiments, schema revision {revisions[0]}")
    return [summary, *judge_artifacts(locations, workspace.root.resolve())]


def _locks(workspace: Workspace) -> list[Finding]:
    """Try each lock. A held one is no fault, but what somebody may be waiting for."""
    held = []
    for path in sorted([*workspace.locks.glob("*.lock"), *workspace.database.parent.glob("*.lock")]):
        try:
            with filelock.FileLock(path, timeout=0):
                pass
        except filelock.Timeout:
            by = holder(path)
            remedy = "wait for it, or end that process; the lock goes with it"
            held.append(Finding("locks", "warning", f"{path.stem!r} is held by {by}", remedy))
        except OSError as error:
            held.append(
                Finding("locks", "error", f"{path} cannot be opened ({error.strerror})", "mend its permissions")
            )
    return held or [Finding("locks", "ok", "all free")]


def _devices() -> Finding:
    try:
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (ImportError, OSError, RuntimeError) as error:
        text = str(error).strip().splitlines()
        return Finding(
            "devices",
            "error",
            f"torch does not load ({text[0] if text else error!r})",
            "pip install -c constraints.txt torch",
        )
    if names:
        return Finding("devices", "ok", f"{len(names)} CUDA: {', '.join(names)}")
    return Finding("devices", "ok", f"no CUDA, {processors.count()} CPU cores")


def _private_folders(workspace: Workspace) -> list[Finding]:
    folders = [workspace.private, workspace.logs, workspace.locks, workspace.batches, workspace.prefect_home]
    folders += [workspace.model_artifacts, workspace.model_artifacts.parent]
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        return [Finding("private folders", "warning", f"there is no {workspace.private} yet", "run `sevenfold run`")]
    found = []
    for folder in there:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode != 0o700:
            message = f"{folder} has mode {mode:04o}; expected 0700, for its owner only"
            found.append(
                Finding("private folders", "error" if mode & 0o077 else "warning", message, f"chmod 700 {folder}")
            )
    return found or [Finding("private folders", "ok", f"{len(there)} folders, for their owner only")]
