"""A repository with two stages of DVC's that take no time, and a file of data under DVC."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dvc.repo import Repo

from sevenfold.workspace import Workspace

ROOT = Path(__file__).parent.parent

STAGES = """
stages:
  double:
    cmd: cat data/raw/rows.csv data/raw/rows.csv > results/double.csv && echo double >> runs.log
    deps: [data/raw/rows.csv]
    outs: [results/double.csv]
  count:
    cmd: wc -l < results/double.csv > results/count.txt && echo count >> runs.log
    deps: [results/double.csv]
    outs: [results/count.txt]
"""


def variables(root: Path) -> dict[str, str]:
    """Return variables that hide the developer's own, for processes and for `monkeypatch`."""
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(root / ".sevenfold" / "dvc"),
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@localhost",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@localhost",
    }


@contextmanager
def _inside(place: Workspace) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(place.root).items():
            patch.setenv(name, value)
        yield


def run(place: Workspace, *command: str) -> str:
    """Run a command in the workspace, and return what it prints."""
    done = subprocess.run(
        command,
        cwd=place.root,
        env={**os.environ, **variables(place.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def commit(place: Workspace, what: str) -> str:
    """Commit everything, and return the commit's hash."""
    run(place, "git", "add", "--all")
    run(place, "git", "commit", "--quiet", "--message", what)
    return run(place, "git", "rev-parse", "HEAD")


def data(place: Workspace, rows: str) -> None:
    """Put other rows under DVC."""
    place.raw("rows.csv").write_text(rows)
    with _inside(place), Repo(str(place.root)) as repository:  # a process of DVC's takes a second
        repository.add(str(place.raw("rows.csv")))


@functools.cache
def _template() -> Workspace:
    room = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    return _made(Path(room) / "project")


def made(root: Path) -> Workspace:
    """Make the repository, with one commit."""
    shutil.copytree(_template().root, root)
    place = Workspace(root)
    place.initialise()
    return place


def _made(root: Path) -> Workspace:
    place = Workspace(root)
    (root / "data" / "raw").mkdir(parents=True)
    (root / "results").mkdir()
    (root / "results" / ".keep").touch()
    place.params.write_text("seed: 0\n")
    (root / "dvc.yaml").write_text(STAGES)
    (root / ".gitignore").write_text(
        "/.sevenfold/\n/runs.log\n/results/*\n!/results/.keep\n/data/raw/?*\n!/data/raw/?*.dvc\n"
    )
    run(place, "git", "init", "--quiet")
    with _inside(place):
        Repo.init(str(root)).close()
    data(place, "1\n2\n")
    commit(place, "rows")
    return place


def cloned(place: Workspace, root: Path) -> Workspace:
    """Return a second clone of the repository, with nothing in its cache."""
    run(place, "git", "clone", "--quiet", str(place.root), str(root))
    other = Workspace(root)
    other.initialise()
    return other


def ran(place: Workspace) -> list[str]:
    """Return the stages whose commands were run, in order."""
    log = place.root / "runs.log"
    return log.read_text().split() if log.is_file() else []
