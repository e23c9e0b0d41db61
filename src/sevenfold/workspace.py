"""The workspace: the project folder, where each of its files is, and the environment its tools run in.

Nothing else in the package builds a path inside the project. Two kinds of place:

- what DVC and git own, for everybody to read: `params.yaml`, `data/`, `results/`;
- `.sevenfold/`, private to one user on one machine (mode 0700): databases, artifacts, logs, locks. It is never in git.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock


class TakenError(RuntimeError):
    """Another run works on the workspace."""


@dataclass(frozen=True)
class Workspace:
    """The folder that holds `params.yaml` and `dvc.yaml`, with the places inside it."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def lockfile(self) -> Path:
        """What DVC ran each stage on, and what came of it; in git."""
        return self.root / "dvc.lock"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def suite(self, dataset: str) -> Path:
        """The Great Expectations suite of a data set; in git, owned by the user."""
        return self.data / "expectations" / f"{dataset}.json"

    @property
    def server_settings(self) -> Path:
        """Variables that a tracking server runs with; in git."""
        return self.root / "mlflow" / "server.env"

    @property
    def server_rules(self) -> Path:
        """Who may do what on a tracking server with passwords; in git, and without them."""
        return self.root / "mlflow" / "basic_auth.ini"

    def raw(self, filename: str) -> Path:
        return self.data / "raw" / filename

    # Outputs of the stages, each named after the stage that writes it.

    def verdict(self, dataset: str) -> Path:
        return self.root / "results" / "validation" / f"{dataset}.json"

    def prepared(self, dataset: str) -> Path:
        return self.data / "prepared" / dataset

    def rivals(self, dataset: str) -> Path:
        return self.root / "results" / "rivals" / dataset

    def candidate(self, candidate: str) -> Path:
        return self.root / "results" / "candidates" / candidate

    def remarks(self, candidate: str) -> Path:
        """What a training said of itself, beside the weights."""
        return self.candidate(candidate) / "remarks.json"

    def history(self, candidate: str) -> Path:
        return self.root / "results" / "history" / f"{candidate}.csv"

    def evaluation(self, candidate: str) -> Path:
        return self.root / "results" / "evaluations" / candidate

    @property
    def metrics(self) -> Path:
        return self.root / "results" / "metrics.json"

    @property
    def comparison(self) -> Path:
        """Every candidate's and rival's primary number, one row each; what `dvc plots` draws."""
        return self.root / "results" / "comparison.csv"

    @property
    def report(self) -> Path:
        """Where `sevenfold report` writes. No output of a stage: it says how long things took, which is never the same."""
        return self.root / "results" / "report.html"

    # Private places.

    @property
    def private(self) -> Path:
        return self.root / ".sevenfold"

    @property
    def kernels(self) -> Path:
        """What a compiler made for a training, so that the next one finds it."""
        return self.private / "kernels"

    def diverged(self, candidate: str) -> Path:
        """The last good weights of a training that failed, for whoever looks into it."""
        return self.private / "diverged" / candidate

    def timing(self, stage: str, subject: str | None) -> Path:
        """How long a stage took when it last ran here, and on what."""
        return self.private / "timings" / stage / f"{subject or stage}.json"

    @property
    def logs(self) -> Path:
        return self.private / "logs"

    @property
    def locks(self) -> Path:
        return self.private / "locks"

    def checkpoint(self, candidate: str) -> Path:
        """The state of a training that is under way."""
        return self.private / "checkpoints" / f"{candidate}.safetensors"

    @property
    def worktrees(self) -> Path:
        """Where runs at a commit work, in checkouts of their own."""
        return self.private / "worktrees"

    @property
    def reproductions(self) -> Path:
        """Where versions are built again."""
        return self.private / "reproductions"

    @property
    def batches(self) -> Path:
        """Where `sevenfold run` leaves the output of its own batch job."""
        return self.private / "batches"

    @property
    def checks(self) -> Path:
        return self.private / "monitoring"

    def check(self, model: str) -> Path:
        """The page of the last check of a champion against the rows of its jobs."""
        return self.checks / f"{model}.html"

    @property
    def database(self) -> Path:
        """MLflow's, unless `MLFLOW_TRACKING_URI` names another store."""
        return self.private / "mlflow" / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """Where MLflow records: `MLFLOW_TRACKING_URI` if the user has set it, else a database of the workspace."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.database}"

    @property
    def model_artifacts(self) -> Path:
        return self.private / "mlflow" / "artifacts"

    @property
    def prefect_home(self) -> Path:
        return self.private / "prefect"

    @property
    def services(self) -> Path:
        """What stands on this machine until it is ended: a note for each process."""
        return self.private / "services"

    def lock(self, name: str, *, timeout: float = -1) -> filelock.BaseFileLock:
        """Return a lock that the kernel releases when its holder dies; `timeout` in seconds, -1 waits for ever."""
        for folder in (self.private, self.locks):
            folder.mkdir(exist_ok=True, mode=0o700)
        return filelock.FileLock(self.locks / f"{name}.lock", timeout=timeout)

    @contextmanager
    def alone(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the workspace against a second run, which would wait for this one's locks at every stage.

        Args:
            patience: seconds to wait for another run's end.

        Raises:
            TakenError: another run is here.
        """
        try:
            with self.lock("run", timeout=patience):
                yield
        except filelock.Timeout:
            raise TakenError(
                "another run works on this workspace; wait for it, or see `sevenfold doctor` for its process"
            ) from None

    def environment(self) -> dict[str, str]:
        """Return the variables that every process of this workspace runs with.

        What the user has set stays as it is, except that every process works on this workspace, and that no model is
        ever loaded by unpickling.
        """
        ours = {
            "DO_NOT_TRACK": "true",
            "DVC_NO_ANALYTICS": "1",
            # DVC's shared cache folder holds pickles that other users of the machine could plant (CVE-2025-69872).
            "DVC_SITE_CACHE_DIR": str(self.private / "dvc"),
            "GX_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Model files go through MLflow's server. By itself a client would ask it for an address in the object store, which
            # only the server need reach.
            "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
            "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each run that ends
            "MPLBACKEND": "Agg",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds, its least: who is silent for long has crashed
            "PREFECT_HOME": str(self.prefect_home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        fixed = {
            "SEVENFOLD_WORKSPACE": str(self.root),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        environment = ours | os.environ | fixed
        # Whoever starts a server with a password is one of its clients, too.
        if secret := environment.get("PREFECT_SERVER_API_AUTH_STRING"):
            environment.setdefault("PREFECT_API_AUTH_STRING", secret)
        # `dvc repro` runs `sevenfold`, which need not be on the user's PATH.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return environment

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Hold the process to this workspace: its variables are set inside the block and put back after it."""
        before = dict(os.environ)
        os.environ.update(self.environment())
        try:
            yield
        finally:
            # One by one, and never empty in between: other threads may be reading.
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)

    def initialise(self) -> None:
        """Make the private folders, readable by their owner only. Safe to repeat."""
        folders = [
            self.private,
            self.logs,
            self.locks,
            self.batches,
            self.checks,
            self.prefect_home,
            self.services,
            self.model_artifacts,
        ]
        for folder in [*folders, self.private / "dvc", self.model_artifacts.parent]:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)


def find(start: Path | None = None) -> Workspace:
    """Return the workspace around `start` (default: `SEVENFOLD_WORKSPACE`, else the current folder)."""
    origin = Path(start or os.environ.get("SEVENFOLD_WORKSPACE") or Path.cwd()).resolve()
    for folder in [origin, *origin.parents]:
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return Workspace(folder)
    raise LookupError(
        f"no workspace at {origin} or above it: expected a folder with params.yaml and dvc.yaml; "
        "change to the project's folder or set SEVENFOLD_WORKSPACE"
    )


def holder(path: Path) -> str:
    """Name the process that holds a lock, as far as the kernel tells."""
    try:
        inode = str(path.stat().st_ino)
        # 1: FLOCK ADVISORY WRITE 4242 08:01:131 0 EOF; a "->" in second place is somebody who waits.
        entries = [line.split() for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines()]
        for pid in (e[4] for e in entries if e[1] == "FLOCK" and e[5].rsplit(":", 1)[-1] == inode):
            process = Path("/proc", pid)
            # An inode is a file's own on one file system only: who is named must have this very file open.
            if any(handle.resolve() == path.resolve() for handle in (process / "fd").iterdir()):
                command = " ".join((process / "cmdline").read_text("utf-8", "replace").replace("\0", " ").split())
                return f"process {pid} ({command[:80]})"
    except (OSError, IndexError):
        pass  # no such list on this system, or not for us to see
    return "another process"
