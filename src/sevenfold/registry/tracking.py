"""The tracking store: its database, its server, and the client that everything else here speaks through."""

import configparser
import getpass
import importlib.metadata
import os
import re
import secrets
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sevenfold import doors, files
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


def is_secured() -> bool:
    """Say whether a server that is started here asks for a password: `MLFLOW_AUTH_ADMIN_PASSWORD` is set."""
    return bool(os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"))


def server_command(workspace: Workspace, *, host: str, port: int) -> list[str]:
    """Return the command of a server of the workspace's store, to be run with `server_environment`.

    What a command holds every user of the machine can read, so this one holds no address of a database but that of a file. With
    a password it gives that to the first user before it serves, as in docker/compose.yaml.

    Raises:
        ValueError: others would reach it, and it would ask them for no password.
    """
    doors.require(host, is_secured())
    files_at = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") or str(workspace.model_artifacts)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--artifacts-destination", files_at]
    command += ["--app-name", "basic-auth"] if is_secured() else []
    store = _served_store(workspace)
    command += ["--backend-store-uri", store] if store.startswith("sqlite:///") else []
    return [sys.executable, str(workspace.root / "docker" / "admin.py"), *command] if is_secured() else command


def server_environment(workspace: Workspace) -> dict[str, str]:
    """Return the variables of that server: those of the workspace, mlflow/server.env, and where its data are.

    With a password it writes the server's own copy of mlflow/basic_auth.ini, which nobody else can read: users are kept where
    the runs are, and the address of that may hold the database's password.
    """
    lines = workspace.server_settings.read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    store = _served_store(workspace)
    given = {"MLFLOW_BACKEND_STORE_URI": store}
    if is_secured():
        rules = configparser.ConfigParser(interpolation=None)
        rules.read_string(workspace.server_rules.read_text(encoding="utf-8"))
        # MLflow reads it with interpolation, where a percent sign stands twice.
        rules["mlflow"]["database_uri"] = store.replace("%", "%%")
        target = workspace.private / "mlflow" / workspace.server_rules.name
        with files.whole(target) as draft, draft.open("w", encoding="utf-8") as out:
            draft.chmod(0o600)
            rules.write(out)
        given["MLFLOW_AUTH_CONFIG_PATH"] = str(target)
        # It signs a form against forgery, in the one process that serves, so it need not outlive that.
        given["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_urlsafe(32)
    return settings | given | workspace.environment()


def _served_store(workspace: Workspace) -> str:
    """Return the address of the database behind a server: `MLFLOW_BACKEND_STORE_URI`, else the workspace's own store."""
    named = os.environ.get("MLFLOW_BACKEND_STORE_URI")
    if named:
        return named
    uri = workspace.tracking_uri
    return f"sqlite:///{workspace.database}" if uri.startswith(("http://", "https://")) else uri


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


def sentence(error: object) -> str:
    """Return an error of MLflow's as a sentence without a user or a password, or "" where it is not one of MLflow's."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return ""
    said = re.sub(r"://[^/@\s]*@", "://", str(error).strip().partition("\n")[0])
    rest = "; look at the tracking server, and repeat once it answers" if may_pass(error) else ""
    return f"the tracking store does not do as it should: {said}{rest}"


def client(workspace: Workspace) -> "MlflowClient":
    """Return a client of the workspace's store, which every other call of MLflow's then uses too."""
    import mlflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this part of MLflow warns of itself while it is imported
        import mlflow.pyfunc
    mlflow.set_tracking_uri(workspace.tracking_uri)
    mlflow.set_registry_uri(workspace.tracking_uri)
    found = mlflow.MlflowClient()
    if workspace.tracking_uri.startswith(("http://", "https://")):
        who = (os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD"))
        _be_let_in(found, workspace.tracking_uri, who)
    return found


_LET_IN: set[tuple[str, tuple[str | None, str | None]]] = set()
"""Servers that have answered this process, with whom they have let in."""


def _be_let_in(client: "MlflowClient", uri: str, who: tuple[str | None, str | None]) -> None:
    """Ask a server once for something small, to tell a wrong password from all else that may be wrong.

    Raises:
        PermissionError: it lets nobody in with this name and password.
    """
    from mlflow.exceptions import MlflowException

    if (uri, who) in _LET_IN:
        return
    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        if "error code 401" not in str(error):
            raise
        place = urlsplit(uri)  # which may hold a password
        name = f"{who[0]!r} with this password" if who[0] else "those who give no name"
        raise PermissionError(
            f"the tracking server at {place.hostname} does not let in {name}; expected MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD of a user that it knows; set both, or ask who runs it"
        ) from None
    _LET_IN.add((uri, who))
