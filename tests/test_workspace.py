"""A workspace is found from anywhere inside it, keeps its private places private, and holds its processes to itself."""

import os
import stat
import subprocess
import sys

import filelock
import pytest

from sevenfold import workspace
from sevenfold.workspace import Workspace


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("SEVENFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "PREFECT_HOME", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path.resolve() / "project"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).touch()
    return root


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_found_from_any_folder_inside(root, monkeypatch):
    inside = root / "data" / "raw"
    inside.mkdir(parents=True)
    assert workspace.find(inside).root == root
    monkeypatch.chdir(inside)
    assert workspace.find().root == root


def test_the_variable_counts_more_than_the_current_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEVENFOLD_WORKSPACE", str(root))
    assert workspace.find().root == root


@pytest.mark.parametrize("missing", ["params.yaml", "dvc.yaml"])
def test_a_folder_without_both_files_is_none(root, missing):
    (root / missing).unlink()
    with pytest.raises(
        LookupError, match=r"no workspace at .* above it: expected .*; change .* or set SEVENFOLD_WORKSPACE"
    ):
        workspace.find(root)


def test_private_folders_are_for_their_owner_only_whatever_the_umask(root):
    place = Workspace(root)
    before = os.umask(0)
    try:
        with place.lock("early"):
            pass
        assert mode(place.private) == mode(place.locks) == 0o700
        place.logs.mkdir(mode=0o755)
        for _ in range(2):
            place.initialise()
    finally:
        os.umask(before)
    folders = [place.private, *(p for p in place.private.rglob("*") if p.is_dir())]
    assert {place.logs, place.batches, place.prefect_home, place.model_artifacts} <= set(folders)
    assert {mode(folder) for folder in folders} == {0o700}


def test_a_lock_keeps_other_processes_out_and_goes_with_its_holder(root):
    place = Workspace(root)
    code = f"""
import os, pathlib
from sevenfold.workspace import Workspace
lock = Workspace(pathlib.Path({str(root)!r})).lock("x")
lock.acquire()
print("held", flush=True)
input()
os._exit(1)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(filelock.Timeout), place.lock("x", timeout=0):
            pass
        with place.lock("y", timeout=0):
            pass
        holder.kill()
    with place.lock("x", timeout=5):
        pass


def test_settled_holds_the_process_to_the_workspace_and_puts_everything_back(root, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", "/of/the/user")
    monkeypatch.setenv("SEVENFOLD_WORKSPACE", "/somewhere/else")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    before = dict(os.environ)
    place = Workspace(root)

    def leave():
        with place.settled():
            inside = dict(os.environ)
            os.environ["LEFT_BEHIND"] = "x"
            os.environ["PATH"] = "changed"
            raise KeyError(inside)

    with pytest.raises(KeyError) as left:
        leave()
    (inside,) = left.value.args
    assert inside["MLFLOW_TRACKING_URI"] == f"sqlite:///{root}/.sevenfold/mlflow/mlflow.db"
    assert inside["SEVENFOLD_WORKSPACE"] == str(root)
    assert inside["PREFECT_HOME"] == "/of/the/user"
    assert inside["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert dict(os.environ) == before


@pytest.mark.parametrize(("given", "used"), [("http://server:5000", "http://server:5000"), ("", None)])
def test_the_users_tracking_server_is_used_where_there_is_one(root, monkeypatch, given, used):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    place = Workspace(root)
    used = used or f"sqlite:///{root}/.sevenfold/mlflow/mlflow.db"
    assert place.tracking_uri == place.environment()["MLFLOW_TRACKING_URI"] == used


def test_nothing_phones_home(root, monkeypatch):
    names = ["DO_NOT_TRACK", "DVC_NO_ANALYTICS", "GX_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY"]
    names += ["PREFECT_SERVER_ANALYTICS_ENABLED", "RAY_USAGE_STATS_ENABLED"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    environment = Workspace(root).environment()
    assert [environment[n] for n in names] == ["true", "1", "false", "true", "false", "0"]


def test_child_processes_find_the_command(root, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = subprocess.run(
        ["sevenfold", "--version"], env=Workspace(root).environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("sevenfold ")
