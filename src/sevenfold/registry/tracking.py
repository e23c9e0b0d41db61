"""The tracking store: its database, its server, and the client that everything else here speaks through."""

import getpass
import importlib.metadata
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sevenfold import files
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOT_THERE = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""How MLflow answers to a name, alias or version that does not exist, or that none can have."""


def initialise(workspace: Workspace) -> None:
    """Make or upgrade the tracking database, once, under a lock: several processes on a fresh one would destroy it."""
    uri = workspace.tracking_uri
    if not is_local(workspace):
        return  # a server looks after its own database
    database = Path(uri.removeprefix("sqlite:///"))
    mark = database.with_name(f"{database.name}.version")
    current = importlib.metadata.version("mlflow")

    def ready() -> bool:
        return database.exists() and mark.exists() and mark.read_text() == current

    if ready():
        return
    with workspace.lock("mlflow"):
        if ready():  # another process was first
            return
        if database.exists():
            _upgrade(workspace, database)
        else:
            # A new one is made beside its place: a kill halfway would leave tables that no upgrade mends.
            with files.whole(database) as draft:
                _upgrade(workspace, draft)
        files.write_text(mark, current)


def _upgrade(workspace: Workspace, database: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    done = subprocess.run(command, env=workspace.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        # Alembic's errors end with the statement that failed and a link.
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("[SQL", "(Backgr"))]
        last = lines[-1] if lines else "no message"
        raise RuntimeError(
            f"MLflow cannot set up {database}: {last}; `sevenfold doctor` looks at it; restore it from a backup, or move it "
            "away to begin a new one"
        )
    database.chmod(0o600)


def is_local(workspace: Workspace) -> bool:
    """Say whether the store is a database file of this machine, whose artifacts lie in the workspace."""
    return workspace.tracking_uri.startswith("sqlite:///")


def artifact_location(workspace: Workspace) -> str | None:
    """Return where the files of a new experiment go; None where a server decides.

    That is `SEVENFOLD_ARTIFACTS`, a folder or an address such as s3://BUCKET/PATH that all machines reach which share a
    database, or else a folder of the workspace.
    """
    if workspace.tracking_uri.startswith(("http://", "https://")):
        return None
    return os.environ.get("SEVENFOLD_ARTIFACTS") or str(workspace.model_artifacts)


def is_own(workspace: Workspace) -> bool:
    """Say whether the store is the workspace's own database, so that nobody else's files lie in its folder."""
    return workspace.tracking_uri == f"sqlite:///{workspace.database}" and not os.environ.get("SEVENFOLD_ARTIFACTS")


def user() -> str:
    """Return the name of whoever runs this process, or their number where the machine has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def server_command(workspace: Workspace, *, host: str, port: int) -> list[str]:
    """Return the command of a server that shows the workspace's own database and artifacts."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", workspace.tracking_uri]
    command += ["--artifacts-destination", str(workspace.model_artifacts), "--workers", "1"]
    return [*command, "--host", host, "--port", str(port)]


def may_pass(error: object) -> bool:
    """Say whether an error is trouble on the way to the tracking server, which may be over a little later."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"} or "API request to" in str(
            error
        )
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    away = (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError)
    # An object store's client has errors of its own, and need not be installed.
    return isinstance(error, away) or type(error).__module__.startswith("botocore.")


def client(workspace: Workspace) -> "MlflowClient":
    """Return a client of the workspace's store, which every other call of MLflow's then uses too."""
    import mlflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this part of MLflow warns of itself while it is imported
        import mlflow.pyfunc
    mlflow.set_tracking_uri(workspace.tracking_uri)
    mlflow.set_registry_uri(workspace.tracking_uri)
    return mlflow.MlflowClient()
