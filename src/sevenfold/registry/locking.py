"""A lock for each registered model: whoever moves its alias or removes a version holds it, and nobody else does meanwhile.

Where it lies follows the tracking store, since that is what is shared:

- a SQLite file: a file lock beside it, for all processes of the machine, whatever workspace they work in;
- PostgreSQL, as tracking URI or, behind a server, named by `SEVENFOLD_LOCK_URI`: an advisory lock of its session, for all
  machines; the database releases it when the connection ends, however that happens;
- a server without `SEVENFOLD_LOCK_URI`: a file lock of this user on this machine, which says nothing to other users and
  machines.
"""

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import filelock

from sevenfold.registry import tracking
from sevenfold.workspace import Workspace, holder

if TYPE_CHECKING:
    from sqlalchemy import Connection

PATIENCE = 120.0
"""Seconds to wait for a lock; a promotion takes a few."""

CONNECTING = 10
"""Seconds to wait for an answer of PostgreSQL's; without a limit a machine that is away takes minutes."""

_HOLDER = """
SELECT application_name, client_addr, backend_start FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND ((classid::bigint << 32) | objid::bigint) = :key
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class LockedError(RuntimeError):
    """Somebody else holds the lock. The same call will do a little later."""


@contextmanager
def held(workspace: Workspace, name: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a registered model inside the block. Not to be taken twice by one process.

    Raises:
        LockedError: somebody else held it for all of `patience` seconds.
        RuntimeError: PostgreSQL cannot be reached, or its driver is missing.
        ValueError: `SEVENFOLD_LOCK_URI` names no PostgreSQL.
    """
    uri = _keeper(workspace)
    if _is_postgresql(uri):
        with _advisory(uri, name, patience):
            yield
        return
    lock = filelock.FileLock(_file(uri, name))
    try:
        lock.acquire(timeout=patience)
    except filelock.Timeout:
        raise _locked(name, patience, holder(Path(lock.lock_file))) from None
    try:
        yield
    finally:
        lock.release()


def _keeper(workspace: Workspace) -> str:
    """Return the address of what keeps the lock: the store itself, or the database that the user names behind a server.

    A store that everybody opens directly keeps it whatever the variable says: who does not set it has to find the same.
    """
    uri = workspace.tracking_uri
    named = os.environ.get("SEVENFOLD_LOCK_URI")
    if not named or not uri.startswith(("http://", "https://")):
        return uri
    if not _is_postgresql(named):
        raise ValueError(
            f"SEVENFOLD_LOCK_URI names a store of kind {urlsplit(named).scheme!r}; expected postgresql://USER@HOST/DATABASE, "
            "the store behind the server; without the variable the lock is this user's on this machine"
        )
    return named


def _locked(name: str, patience: float, by: str) -> LockedError:
    return LockedError(
        f"{name} is locked by somebody who promotes, rolls back or prunes it, for {patience:.0f} s now; it is held by {by}; "
        "try again when that is done"
    )


def _is_postgresql(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in {"postgresql", "postgres"}


def _file(uri: str, name: str) -> Path:
    """Return the lock's file, in a folder that is there."""
    if uri.startswith("sqlite:///"):
        place = Path(uri.removeprefix("sqlite:///")).resolve().parent  # the same by whatever links it is reached
    else:
        where = urlsplit(uri)
        port = where.port or {"http": 80, "https": 443}.get(where.scheme)
        # Not by user and password: those who share a server may have their own.
        address = f"{where.hostname}:{port}{where.path.rstrip('/')}"
        server = hashlib.sha256(address.encode()).hexdigest()[:16]
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
    me = f"{tracking.user()}@{platform.node()}"[:40] + f" process {os.getpid()}"  # PostgreSQL keeps 63 bytes
    try:
        engine = sqlalchemy.create_engine(
            uri.replace("postgres://", "postgresql://", 1),
            poolclass=NullPool,
            connect_args={"application_name": me, "connect_timeout": CONNECTING},
        )
        connection = engine.connect()
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"the lock of promotions is kept by PostgreSQL at {shown} and needs the driver {error.name}; "
            "`pip install 'sevenfold[postgres]'` brings psycopg2"
        ) from None
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
                raise _locked(name, patience, f"{_session(connection, key)} of PostgreSQL at {shown}")
            time.sleep(0.1)
        connection.rollback()
        try:
            yield
        finally:
            # Of a connection that broke meanwhile the lock is gone by itself.
            with suppress(sqlalchemy.exc.DBAPIError):
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key})
                connection.rollback()


def _session(connection: "Connection", key: int) -> str:
    """Name the session that holds a lock; of another database user's PostgreSQL does not tell all."""
    import sqlalchemy

    found = connection.execute(sqlalchemy.text(_HOLDER), {"key": key}).first()
    if found is None or found.backend_start is None:
        return "a session"
    where = f" from {found.client_addr}" if found.client_addr else ""
    return f"the session {found.application_name!r}{where}, begun {found.backend_start:%Y-%m-%d %H:%M:%S %Z},"
