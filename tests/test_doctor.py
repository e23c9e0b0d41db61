"""The doctor names what is wrong with a workspace and what to do about it, and changes nothing."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sevenfold import doctor
from sevenfold.doctor import GIB, Finding
from sevenfold.workspace import Workspace

GOOD = {"prefect": "3.8.8", "fastapi": "0.150.0", "sqlalchemy": "2.0.58", "mlflow": "3.17.2"}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path / "project")
    workspace.root.mkdir()
    workspace.initialise()
    return workspace


def database(workspace, locations, revisions=("dc11669786a5",)):
    """Write the tables of MLflow's database that the doctor reads."""
    path = workspace.private / "mlflow" / "mlflow.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.execute(
        "CREATE TABLE experiments (experiment_id INTEGER, name TEXT, artifact_location TEXT, lifecycle_stage TEXT)"
    )
    connection.execute("CREATE TABLE runs (experiment_id INTEGER)")
    connection.executemany("INSERT INTO alembic_version VALUES (?)", [(r,) for r in revisions])
    rows = [(i, name, location, "active") for i, (name, location) in enumerate(locations.items())]
    connection.executemany("INSERT INTO experiments VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def about(subject, findings):
    found = [f for f in findings if f.subject == subject]
    assert found, f"nothing about {subject}"
    return found


def contents(folder):
    return {p: (p.stat().st_mode, p.read_bytes() if p.is_file() else None) for p in Path(folder).rglob("*")}


@pytest.mark.parametrize(
    ("change", "package", "message"),
    [
        ({"fastapi": "0.151.0"}, "fastapi", "beside prefect 3.8.8: Prefect 3.8 fails at the first flow"),
        ({"fastapi": "0.165.1"}, "fastapi", "version 0.165.1"),
        ({"sqlalchemy": "2.1.9"}, "sqlalchemy", "never creates a scheduled run"),
        ({"sqlalchemy": "2.1.0rc1"}, "sqlalchemy", "never creates a scheduled run"),
        ({"mlflow": "3.9.0"}, "mlflow", "known security holes"),
        ({"mlflow": "3.17.1"}, "mlflow", "known security holes"),
        ({"torch": None}, "torch", "not installed"),
    ],
)
def test_versions_that_are_known_to_fail_are_errors_with_a_remedy(change, package, message):
    (finding,) = doctor.judge_versions(GOOD | change)
    assert (finding.subject, finding.status) == (package, "error")
    assert message in finding.message
    assert finding.remedy.startswith("pip install")


@pytest.mark.parametrize(
    "change", [{}, {"prefect": "3.9.0", "fastapi": "0.165.0"}, {"mlflow": "3.17.2.post1"}, {"mlflow": "3.100"}]
)
def test_other_versions_are_in_order(change):
    (finding,) = doctor.judge_versions(GOOD | change)
    assert finding.status == "ok"


def test_every_bad_version_is_told_at_once():
    bad = {"prefect": "3.8.8", "fastapi": "1.0", "sqlalchemy": "2.1", "mlflow": "3.0", "torch": None}
    assert {f.subject for f in doctor.judge_versions(bad)} == {"fastapi", "sqlalchemy", "mlflow", "torch"}


def test_the_versions_of_this_installation_are_in_order():
    versions = doctor.installed()
    assert {"prefect", "mlflow", "great-expectations", "torch"} <= set(versions)
    assert "pytest" not in versions
    assert doctor.worst(doctor.judge_versions(versions)) == "ok"


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "error"), ((3, 11, 0), "ok"), ((3, 13, 1), "ok")])
def test_python_is_judged_by_its_version(version, status):
    assert doctor.judge_python(version).status == status


@pytest.mark.parametrize(
    ("free", "status"), [(GIB - 1, "error"), (GIB, "warning"), (5 * GIB - 1, "warning"), (5 * GIB, "ok")]
)
def test_a_full_disk_is_told_in_time(free, status):
    assert doctor.judge_disk(free).status == status


def test_worst_is_what_the_exit_code_follows():
    ok, warning, error = (Finding("x", status, "") for status in doctor.ORDER)
    assert doctor.worst([]) == "ok"
    assert doctor.worst([ok, warning, ok]) == "warning"
    assert doctor.worst([error, warning, ok]) == "error"


def test_a_workspace_in_order_has_no_finding(workspace):
    (workspace.root / ".dvc").mkdir()
    (workspace.root / ".git").mkdir()
    inside = workspace.model_artifacts
    database(
        workspace,
        {"Default": "/elsewhere/mlruns/0", "wdbc": str(inside), "digits": inside.as_uri(), "far": "s3://bucket/x"},
    )
    with workspace.lock("run"):
        pass
    before = contents(workspace.root)
    findings = [f for f in doctor.examine(workspace) if f.subject != "disk"]
    assert [f for f in findings if f.status != "ok"] == []
    assert contents(workspace.root) == before


def test_every_finding_that_is_not_ok_has_a_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = doctor.examine(Workspace(tmp_path))
    assert {f.subject for f in findings if f.status != "ok"} >= {"git", "dvc", "mlflow", "private folders"}
    assert all(f.remedy for f in findings if f.status != "ok")
    assert list(tmp_path.iterdir()) == []


def test_no_database_yet_is_a_warning(workspace):
    (finding,) = about("mlflow", doctor.examine(workspace))
    assert (finding.status, finding.remedy) == ("warning", "run `sevenfold run`")


def test_a_damaged_database_is_an_error(workspace):
    database(workspace, {}).write_bytes(b"no database at all" * 100)
    (finding,) = about("mlflow", doctor.examine(workspace))
    assert finding.status == "error"
    assert "no readable MLflow database" in finding.message


@pytest.mark.parametrize("revisions", [(), ("a", "b")])
def test_a_database_without_one_revision_is_an_error(workspace, revisions):
    database(workspace, {}, revisions)
    (finding,) = about("mlflow", doctor.examine(workspace))
    assert finding.status == "error"
    assert f"{len(revisions)} schema revisions" in finding.message


def test_artifacts_of_a_moved_workspace_are_errors(workspace):
    database(
        workspace, {"Default": "/x", "wdbc": "/old/project/.sevenfold/mlflow/artifacts", "digits": "file:///old/a%20b"}
    )
    moved = about("mlflow artifacts", doctor.examine(workspace))
    assert [f.status for f in moved] == ["error", "error"]
    assert "experiment 'digits' keeps its files at /old/a b, outside of" in moved[0].message
    assert "move it back" in moved[0].remedy


def test_a_password_in_the_tracking_uri_is_not_shown(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@db.example:5432/mlflow")
    (finding,) = about("mlflow", doctor.examine(workspace))
    assert "db.example" in finding.message
    assert "secret" not in finding.message


def test_a_held_lock_names_its_holder(workspace):
    code = (
        "import sys, pathlib; from sevenfold.workspace import Workspace\n"
        "with Workspace(pathlib.Path(sys.argv[1])).lock('run'):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(workspace.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        (finding,) = about("locks", doctor.examine(workspace))
        holder.stdin.close()
    assert finding.status == "warning"
    assert "'run' is held by " in finding.message
    if Path("/proc/locks").exists():
        assert f"process {holder.pid}" in finding.message
    assert about("locks", doctor.examine(workspace))[0].status == "ok"


def test_private_folders_open_to_others_are_errors(workspace):
    workspace.logs.chmod(0o755)
    (finding,) = about("private folders", doctor.examine(workspace))
    assert (finding.status, finding.remedy) == ("error", f"chmod 700 {workspace.logs}")
    assert "has mode 0755" in finding.message


def test_devices_are_named():
    finding = doctor._devices()
    assert finding.status == "ok"
    assert "CUDA" in finding.message


def test_it_needs_neither_prefect_nor_mlflow(tmp_path):
    code = "import sys; from sevenfold import doctor; print({'prefect', 'mlflow', 'torch'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=dict(os.environ)).strip() == "set()"
