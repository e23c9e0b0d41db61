"""The lock of promotions: one holder at a time, in whatever workspace or machine, and free when its holder dies."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from sevenfold.registry import locking, promotion, tracking, versions
from sevenfold.workspace import Workspace
from tests import postgresql, test_registry, tiny

ROOT = Path(__file__).parents[1]

HOLD = """
import sys
from pathlib import Path
from sevenfold.registry import locking
from sevenfold.workspace import Workspace
with locking.held(Workspace(Path(sys.argv[1])), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def database():
    with postgresql.server() as address:
        yield address


@pytest.fixture(
    params=["sqlite of the workspace", "sqlite elsewhere", "server", "postgresql", "server over postgresql"]
)
def stores(request, tmp_path, monkeypatch):
    """Two workspaces that share one tracking store, of every kind; of the workspace's own there is one."""
    for name in ("MLFLOW_TRACKING_URI", "SEVENFOLD_LOCK_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    one, two = (Workspace(tmp_path / name) for name in ("one", "two"))
    for place in (one, two):
        place.root.mkdir()
        place.initialise()
    if request.param == "sqlite of the workspace":
        return one, one
    if request.param == "sqlite elsewhere":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    elif request.param == "postgresql":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("database"))
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
        if request.param == "server over postgresql":
            monkeypatch.setenv("SEVENFOLD_LOCK_URI", request.getfixturevalue("database"))
    return one, two


@contextmanager
def holder(place, name="model"):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, str(place.root), name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_holds_it_at_a_time_and_another_model_has_a_lock_of_its_own(stores):
    one, two = stores
    with holder(one) as process:
        with (
            pytest.raises(
                locking.LockedError,
                match=r"model is locked by somebody who promotes.*held by .*try again when that is done",
            ),
            locking.held(two, "model", patience=0.3),
        ):
            pass
        with locking.held(two, "other", patience=0.3):
            pass
        process.communicate("go\n", timeout=30)
    with locking.held(two, "model", patience=0.3):
        pass


def test_a_holder_that_is_killed_holds_it_no_more(stores):
    one, two = stores
    with holder(one) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        with locking.held(two, "model", patience=20):
            pass


def test_no_message_holds_a_password(stores):
    one, two = stores
    with holder(one), pytest.raises(locking.LockedError) as error, locking.held(two, "model", patience=0.1):
        pass
    assert not re.search(rf"secret|{postgresql.PASSWORD}", str(error.value))


def test_a_database_that_cannot_be_reached_is_named_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("SEVENFOLD_LOCK_URI", "postgresql://user:secret@127.0.0.1:9/locks")
    with (
        pytest.raises(
            RuntimeError, match=r"PostgreSQL database at 127\.0\.0\.1/locks, .* cannot be reached; check"
        ) as error,
        locking.held(Workspace(tmp_path), "model"),
    ):
        pass
    assert "secret" not in str(error.value)


def test_a_workspace_and_another_that_names_its_database_share_the_lock(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    one, two = (Workspace(tmp_path / name) for name in ("one", "two"))
    for place in (one, two):
        place.root.mkdir()
        place.initialise()
    (tmp_path / "link").symlink_to(one.root)
    with holder(one):
        for root in (one.root, tmp_path / "link"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Workspace(root).database}")
            with pytest.raises(locking.LockedError), locking.held(two, "model", patience=0.1):
                pass


def test_one_server_has_one_lock_under_whatever_user_and_password(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:one@mlflow.example")
    with holder(Workspace(tmp_path)):
        for same in ("https://ben:two@MLflow.example/", "https://mlflow.example:443"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", same)
            with pytest.raises(locking.LockedError), locking.held(Workspace(tmp_path), "model", patience=0.1):
                pass
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example:444")
        with locking.held(Workspace(tmp_path), "model", patience=0.1):
            pass


def test_who_waits_too_long_is_told_who_holds_it(stores):
    one, two = stores
    with holder(one) as process, pytest.raises(locking.LockedError) as error, locking.held(two, "model", patience=0.1):
        pass
    # The kernel says so of a file; PostgreSQL says what the holder's session calls itself.
    if "PostgreSQL" in str(error.value) or Path("/proc/locks").exists():
        assert re.search(rf"held by .*\b{process.pid}\b", str(error.value))


def test_a_database_without_its_driver_or_of_another_kind_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("SEVENFOLD_LOCK_URI", "mysql://user:secret@host/locks")
    with (
        pytest.raises(
            ValueError, match=r"SEVENFOLD_LOCK_URI names a store of kind 'mysql'; expected postgresql://"
        ) as error,
        locking.held(Workspace(tmp_path), "model"),
    ):
        pass
    assert "secret" not in str(error.value)
    monkeypatch.setenv("SEVENFOLD_LOCK_URI", "postgresql://user:secret@127.0.0.1:9/locks")
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with (
        pytest.raises(RuntimeError, match=r"needs the driver psycopg2; `pip install 'sevenfold\[postgres\]'`") as error,
        locking.held(Workspace(tmp_path), "model"),
    ):
        pass
    assert "secret" not in str(error.value)


@pytest.mark.slow
def test_a_registry_on_postgresql_publishes_promotes_rolls_back_and_tells_the_story(database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)
    place = Workspace(tmp_path)
    place.initialise()
    with place.settled():
        tracking.initialise(place)
        for seed in (0, 1):
            version = test_registry.publish(place, tiny.saved(tmp_path / f"bundle-{seed}", "table", "anomaly", seed))
            promotion.promote(place, version, reasons=["in turn"])
        assert promotion.rollback(place, "table-anomaly", reason="bad").number == 1
        assert [m.what for m in promotion.history(place, "table-anomaly")] == ["promotion", "promotion", "rollback"]
        assert versions.resolve(place, "table-anomaly").version.number == 1
        assert versions.bundle_folder(place, version).is_relative_to(place.model_artifacts)
    assert not (tmp_path / "mlruns").exists()
