"""A run at a commit: by that commit's code, params and data alone, into the registry of the workspace, and to the remote."""

import re
import shutil
import sqlite3
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from flows import apart, training
from sevenfold import pipeline
from sevenfold.registry import tracking, versions
from tests import small_repository
from tests.conftest import SMALL, TRAINING, Project, make_project

PARAMS = f"""
seed: 0
fetch: {{}}
datasets:
  wdbc:
    path: data/raw/rows.parquet
    label: diagnosis
    normal: [benign]
    split: {{validation: 0.2, test: 0.2, seed: 0}}
applications:
  wdbc:
    anomaly: {{policy: false-positive-rate, value: 0.05, share: null, neighbours: 5, references: 4096, reasons: 3}}
{TRAINING}candidates:
{SMALL[SMALL.index("  wdbc-pca:") :]}
"""
RAW = "data/raw/rows.parquet"
yaml = YAML(typ="safe")
COMMIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message")


DEPLOYED = """
import os, subprocess, sys
from flows import server
from sevenfold import workspace
place = workspace.find()
place.initialise()
run = "from flows.training import training; training(revision='HEAD', data_rev='HEAD~1')"
with place.settled(), server.standing(place) as url:
    os.environ["PREFECT_API_URL"] = url
    sys.exit(subprocess.call([sys.executable, "-c", run]))
"""
"""Calls the flow with parameters, as a deployment does."""


def put(project, frame):
    """Commit other rows, and send them to the remote."""
    (project.root / "data" / "raw").mkdir(exist_ok=True)
    frame.to_parquet(project.root / RAW)
    project.run("dvc", "add", "--quiet", RAW)
    project.run("dvc", "push", "--quiet", f"{RAW}.dvc")
    project.run("git", "add", "--all")
    project.run(*COMMIT, "rows")


def state(project):
    told = ("status --porcelain --untracked-files=all", "diff", "for-each-ref", "worktree list", "stash list")
    return [project.run("git", *command.split()).stdout for command in told]


def kept(project, run, name):
    """Return the bytes of a file of a run's provenance."""
    with project.workspace.settled():
        there = tracking.client(project.workspace).download_artifacts(run, f"provenance/{name}")
        with open(there, "rb") as file:  # noqa: PTH123
            return file.read()


def above(project, version):
    with project.workspace.settled():
        return tracking.client(project.workspace).get_run(version.run_id).data.tags["mlflow.parentRunId"]


def champion(project):
    with project.workspace.settled():
        return versions.champion(project.workspace, "wdbc-anomaly")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project whose tree has unfit changes, what git knew of it before, and what a run at its last commit printed."""
    from sevenfold.datasets import wdbc

    room = tmp_path_factory.mktemp("scheduled")
    project = make_project(room / "project", PARAMS)
    (room / "store").mkdir()
    project.run("dvc", "remote", "add", "--quiet", "--default", "store", "../store")
    frame = wdbc.fetch().frame
    put(project, frame)
    put(project, frame.iloc[:-1])
    shutil.rmtree(project.root / ".dvc" / "cache")
    project.edit("params.yaml", "seed: 0\nfetch", "seed: 1\nfetch")
    with (project.root / "src" / "sevenfold" / "models" / "pca.py").open("a", encoding="utf-8") as file:
        file.write("\nraise RuntimeError('uncommitted')\n")
    before = state(project)
    done = project.run(sys.executable, "-c", DEPLOYED, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return project, before, done.stdout + done.stderr


@pytest.mark.slow
def test_a_scheduled_run_is_of_its_commit_alone_and_leaves_the_tree_as_it_was(ran):
    project, before, output = ran
    assert state(project) == before
    assert list(project.workspace.worktrees.glob("*/checkout")) == []
    made = champion(project)
    assert made.tags["git_commit"] == project.run("git", "rev-parse", "HEAD").stdout.strip()
    with project.workspace.settled():
        bundle = versions.bundle_folder(project.workspace, made)
    assert bundle.is_relative_to(project.workspace.model_artifacts)
    (code,) = project.workspace.model_artifacts.rglob("models/pca.py")
    assert "uncommitted" not in code.read_text(encoding="utf-8")
    assert "wdbc-anomaly/1" in output
    assert "DVC has no default remote" not in output
    with sqlite3.connect(project.workspace.prefect_home / "prefect.db") as connection:
        flows = connection.execute("SELECT state_name FROM flow_run").fetchall()
        (sent,) = connection.execute("SELECT state_name FROM task_run WHERE name = 'push'").fetchall()
    assert (flows, sent) == ([("Completed",)] * 2, ("Completed",))


@pytest.mark.slow
def test_lock_params_and_pointers_of_a_run_are_artifacts_of_its_run(ran):
    project, _, output = ran
    parent = above(project, champion(project))
    assert kept(project, parent, "params.yaml").decode() == project.run("git", "show", "HEAD:params.yaml").stdout
    pointer = project.run("git", "show", f"HEAD~1:{RAW}.dvc").stdout
    assert kept(project, parent, f"{RAW}.dvc").decode() == pointer
    lock = kept(project, parent, "dvc.lock")
    assert re.search(r"md5: (\w+)", pointer)[1] in lock.decode()
    assert lock == kept(project, champion(project).run_id, "dvc.lock")
    # The command that the run ends with brings the lock and its results.
    command = output[output.index("MLFLOW_TRACKING_URI=") :].splitlines()[0]
    taken = Project(project.root.parent / "taken")
    shutil.copytree(project.root, taken.root, symlinks=True)
    done = subprocess.run(
        command, shell=True, cwd=taken.root, env=taken.environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (taken.root / "dvc.lock").read_bytes() == lock
    assert (taken.root / "results" / "candidates" / "wdbc-pca" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_second_clone_that_shares_the_remote_trains_nothing_and_a_push_that_fails_loses_nothing(ran):
    project, store = Project(ran[0].root.parent / "other"), ran[0].root.parent / "store"
    ran[0].run("git", "clone", "--quiet", str(ran[0].root), str(project.root))
    command = ["sevenfold", "run", "--revision", "HEAD", "--data-rev", "HEAD~1"]
    lines = []
    with subprocess.Popen(
        command,
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("[") and "wdbc-anomaly: version 1" in line:  # between the last election and the push
                store.rename(store.with_name("away"))
                store.touch()
    store.unlink()
    store.with_name("away").rename(store)
    output = "".join(lines)
    assert process.returncode == 1, output
    assert "train@wdbc-pca: restored" in output
    # How long a stage took is noted by the stage, and none was run.
    assert list((project.workspace.private / "timings").iterdir()) == []
    first, second = champion(ran[0]), champion(project)
    assert second.digest == first.digest
    locks = [kept(*of, "dvc.lock") for of in ((ran[0], above(ran[0], first)), (project, above(project, second)))]
    # DVC writes stages in the order in which they ended.
    assert yaml.load(locks[0]) == yaml.load(locks[1])
    assert re.search(
        r"error: 1 step failed: push: dvc push.*; the results are here and published, and the same run", output
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name, value in small_repository.variables(tmp_path / "project").items():
        monkeypatch.setenv(name, value)
    return small_repository.made(tmp_path / "project")


def test_without_a_remote_nothing_is_sent_which_is_said_once(place, capsys):
    assert not training._bring(place, push=True)
    assert capsys.readouterr().out == "DVC has no default remote: nothing is pulled, nothing is pushed\n"


def test_a_remote_that_is_away_ends_the_run_at_its_beginning_unless_it_is_left_out(place, tmp_path, capsys):
    with pipeline._config(place).edit("local", validate=False) as ours:
        ours["core"]["remote"] = "store"
        ours["remote"]["store"] = {"url": str(tmp_path / "store")}
    with pytest.raises(pipeline.RemoteError, match=r"'store' .*no such folder.*--no-push"):
        training._bring(place, push=True)
    assert not training._bring(place, push=False)
    (tmp_path / "store").mkdir()
    assert training._bring(place, push=True)
    assert capsys.readouterr().out == ""


def test_a_second_run_at_the_same_time_is_refused_and_a_commit_that_is_none_is_told(place):
    with pytest.raises(RuntimeError, match="another run works on this workspace"), place.alone():
        apart.run(place, "HEAD", None, push=True, engine="local")
    with pytest.raises(LookupError, match="git knows no commit 'nowhere'"):
        apart.run(place, "HEAD", "nowhere", push=True, engine="local")
    assert list(place.worktrees.glob("*/checkout")) == []
