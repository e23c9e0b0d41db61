"""A small project to run DVC and flows on: the repository's own files, with params.yaml cut down to seconds."""

import os

# Tests run side by side: with threads of their own they would wait for each other. Set before numpy is imported.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevenfold.workspace import Workspace
from tests.browser import browser  # noqa: F401, a fixture

ROOT = Path(__file__).parent.parent

ONE_TABLE = """
seed: 0
fetch:
  wdbc: {path: data/raw/wdbc.parquet}
datasets:
  wdbc:
    path: data/raw/wdbc.parquet
    label: diagnosis
    normal: [benign]
    split: {validation: 0.2, test: 0.2, seed: 0}
applications:
  wdbc:
    anomaly: {policy: false-positive-rate, value: 0.05, share: null, neighbours: 5, references: 4096, reasons: 3}
"""
"""How params.yaml begins where a test needs one data set alone."""

TRAINING = """\
training:
  epochs: 12
  patience: 40
  batch_size: 64
  learning_rate: 0.003
  warmup: 0.05
  weight_decay: 0.0001
  gradient_clip: 1.0
  threads: 1
"""

SMALL = (
    """
seed: 0
fetch:
  digits: {path: data/raw/digits.npz}
  wdbc: {path: data/raw/wdbc.parquet}
datasets:
  digits:
    path: data/raw/digits.npz
    label: label
    range: [0, 16]
    split: {validation: 0.2, test: 0.2, seed: 0}
  wdbc:
    path: data/raw/wdbc.parquet
    label: diagnosis
    normal: [benign]
    split: {validation: 0.2, test: 0.2, seed: 0}
applications:
  digits:
    reduction: {code: 8, neighbours: 12}
  wdbc:
    anomaly: {policy: false-positive-rate, value: 0.05, share: null, neighbours: 5, references: 4096, reasons: 3}
"""
    + TRAINING
    + """\
candidates:
  digits-deep:
    dataset: digits
    applications: [reduction]
    variant: deep
    options: {code: 8, hidden: [128], activation: silu, blocks: 0, tied: false, augment: [], numbers: standard, categories: one-hot}
  digits-denoising:
    dataset: digits
    applications: [reduction]
    variant: denoising
    options: {code: 8, hidden: [32], activation: silu, noise: gaussian, level: 0.3, numbers: standard, categories: one-hot}
  wdbc-pca:
    dataset: wdbc
    applications: [anomaly]
    rows: normal
    variant: pca
    options: {code: 8}
rivals: {seconds: 600}
gate: {must_beat_rivals: true, floor: null}
gates:
  wdbc-anomaly: {must_beat_rivals: false, floor: 0.5}
"""
)


@pytest.fixture(scope="module", autouse=True)
def variables_of_the_file():
    """Have no file of tests find what another one has left set: MLflow names the last store that it went to."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


GUARD = """
import os, socket

def outside(address):
    host = address[0] if isinstance(address, tuple) else "localhost"
    if host in ("localhost", "", None) or str(host).startswith("127.") or host in ("::1", "0.0.0.0", "::"):
        return False
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{host}\\n")
    return True

class Guarded(socket.socket):
    def connect(self, address):
        if outside(address):
            raise OSError(f"no network here: {address}")
        return super().connect(address)

    def connect_ex(self, address):
        return 101 if outside(address) else super().connect_ex(address)

def guarded(resolve):
    def getaddrinfo(host, *arguments, **options):
        if outside((host,)):
            raise socket.gaierror(f"no network here: {host}")
        return resolve(host, *arguments, **options)
    return getaddrinfo

socket.socket = Guarded
socket.getaddrinfo = guarded(socket.getaddrinfo)
"""
"""Python runs this at its start, as `sitecustomize`: whatever reaches for an address outside of this machine is noted."""


@dataclass(frozen=True)
class Project:
    """A copy of the repository in a folder of its own, whose `sevenfold` is the copy's."""

    root: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root)

    @property
    def network_log(self) -> Path:
        """The hosts outside of this machine that were asked for, a line each."""
        return self.root.parent / "network.log"

    def environment(self, **more: str) -> dict[str, str]:
        """Return variables that hide whatever tracking server or workspace the developer has set."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "DVC_", "SEVENFOLD_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        guard = self.root.parent / "guard"
        guard.mkdir(exist_ok=True)
        (guard / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
        code = os.pathsep.join([str(guard), str(self.root / "src"), str(self.root)])
        private = {
            "DVC_SITE_CACHE_DIR": str(self.root / ".sevenfold" / "dvc"),
            "DVC_NO_ANALYTICS": "1",
            "NETWORK_LOG": str(self.network_log),
        }
        return kept | {"PATH": path, "PYTHONPATH": code} | private | more

    def run(self, *command: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; with `check`, a failure shows what it printed."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(**more), capture_output=True, text=True, check=False
        )
        if check:
            assert done.returncode == 0, (
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} does not hold {old!r}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def copy(self, root: Path) -> "Project":
        """Return a second project in the same state; links in DVC's cache stay files of their own."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)


def make_project(root: Path, params: str | None = SMALL) -> Project:
    """Copy what git tracks, or would, into a repository of its own; `params` None keeps the real params.yaml."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    if params is not None:
        (root / "params.yaml").write_text(params, encoding="utf-8")
        (root / "dvc.lock").unlink(missing_ok=True)
        (root / "results" / "metrics.json").unlink(missing_ok=True)
    project = Project(root)
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    project.run("git", *author, "commit", "--quiet", "--message", "a project")
    return project


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory):
    """A project in which `dvc repro` has run once, with no server to be reached. Copy it before you change it."""
    project = make_project(tmp_path_factory.mktemp("reproduced") / "project")
    nowhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    project.run("dvc", "repro", "--quiet", **nowhere)
    return project
