"""A lock for each registered model: whoever moves its alias or removes a version holds it, and nobody else does meanwhile.

Where it lies follows the tracking store, since that is what is shared:

- a SQLite file: a file lock beside it, for all processes of the machine, whatever workspace they work in;
- PostgreSQL, as tracking URI or, behind a server, named by `SEVENFOLD_LOCK_URI`: an advisory lock of its session, for all
  machines; the database releases it when the connection ends, however that happens;
- another server: a file lock of this user on this machine, which says nothing to other machines.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import filelock

from sevenfold.workspace import Workspace

PATIENCE = 120.0
"""Seconds to wait for a lock; a promotion takes a few."""


class LockedError(RuntimeError):
    """Somebody else holds the lock. The same call will do a little later."""


@contextmanager
def held(workspace: Workspace, name: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a registered model inside the block. Not to be taken twice by one process.

    Raises:
        LockedError: somebody else held it for all of `patience` seconds.
        RuntimeError: the database of `SEVENFOLD_LOCK_URI` cannot be reached.
    """
    uri = os.environ.get("SEVENFOLD_LOCK_URI") or workspace.tracking_uri
    if _is_postgresql(uri):
        with _advisory(uri, name, patience):
            yield
        return
    try:
        with filelock.FileLock(_file(workspace, name), timeout=patience):
            yield
    except filelock.Timeout:
        raise _locked(name, patience, "`sevenfold doctor` names the process, if it is of this workspace") from None


def _locked(name: str, patience: float, hint: str) -> LockedError:
    return LockedError(
        f"{name} is locked by somebody who promotes, rolls back or prunes it, for {patience:.0f} s now; try again when that "
        f"is done; {hint}"
    )


def _is_postgresql(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in {"postgresql", "postgres"}


def _file(workspace: Workspace, name: str) -> Path:
    """Return the lock's file, in a folder that is there."""
    uri = workspace.tracking_uri
    if uri == f"sqlite:///{workspace.database}":
        place = workspace.locks  # where `sevenfold doctor` looks
    elif uri.startswith("sqlite:///"):
        place = Path(uri.removeprefix("sqlite:///")).absolute().parent
    else:
        server = hashlib.sha256(uri.encode()).hexdigest()[:16]
        place = Path(tempfile.gettempdir()) / f"sevenfold-{os.getuid()}" / server
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        if place.parent.stat().st_uid != os.getuid():
            raise PermissionError(f"{place.parent} is somebody else's, so a lock there is worth nothing; remove it")
    return place / f"promotion-{name}.lock"


@contextmanager
def _advisory(uri: str, name: str, patience: float) -> Iterator[None]:
    """Hold an advisory lock of PostgreSQL (manual, section 13.3.5), which its session's end releases."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    where = urlsplit(uri)
    shown = f"{where.hostname or 'this machine'}{where.path}"  # the rest may hold a password
    # The key is 64 bits; a prefix keeps it apart from what others lock in the same database.
    key = int.from_bytes(hashlib.sha256(f"sevenfold promotion {name}".encode()).digest()[:8], "big", signed=True)
    engine = sqlalchemy.create_engine(uri.replace("postgres://", "postgresql://", 1), poolclass=NullPool)
    try:
        connection = engine.connect()
    except sqlalchemy.exc.OperationalError:
        raise RuntimeError(
            f"the PostgreSQL database at {shown}, which keeps the lock of promotions, cannot be reached; check that it "
            "runs, and its address and password in MLFLOW_TRACKING_URI or SEVENFOLD_LOCK_URI"
        ) from None
    with connection:
        end = time.monotonic() + patience
        take = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
        while not connection.execute(take, {"key": key}).scalar():
            # A transaction left open would keep the server from tidying up.
            connection.rollback()
            if time.monotonic() > end:
                raise _locked(name, patience, f"pg_locks in {shown} names the session")
            time.sleep(0.1)
        connection.rollback()
        try:
            yield
        finally:
            # Of a connection that broke meanwhile the lock is gone by itself.
            with suppress(sqlalchemy.exc.DBAPIError):
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key})
                connection.rollback()
    engine.dispose()
