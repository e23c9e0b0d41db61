"""Flows: what `sevenfold run` does from raw data to a scored batch, what it leaves behind, and how it fails."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import zc.lockfile

from conftest import make_project
from flows import __main__, console, training
from sevenfold import bundles, evaluation, report
from sevenfold.registry import versions
from sevenfold.workspace import Workspace

NOISE = "level: 0.3, numbers: standard, categories: one-hot}"
"""How the options of the small project's denoising candidate end."""

WITH_SERVER = """
import os, subprocess, sys
from flows import server
from sevenfold import pipeline, workspace
place = workspace.find()
with place.settled(), server.standing(place) as url:
    os.environ["PREFECT_API_URL"] = url
    sys.exit(subprocess.call([sys.executable, "-m", *(sys.argv[1:] or ["flows.training"])]))
"""
"""Runs one flow with a server of its own, as `sevenfold run` does once it knows what is stale."""


def history(project):
    """Return the states of all flow runs and task runs that the Prefect server kept, by name."""
    with sqlite3.connect(project.root / ".sevenfold/prefect/prefect.db") as connection:
        flows = connection.execute("SELECT name, state_name FROM flow_run ORDER BY created").fetchall()
        tasks = connection.execute("SELECT name, state_name FROM task_run ORDER BY created").fetchall()
    return flows, tasks


def run(project, **more):
    return project.run("sevenfold", "run", check=False, **more)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project after its first `sevenfold run`, and what that printed."""
    project = make_project(tmp_path_factory.mktemp("ran") / "project")
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project, done.stdout


@pytest.fixture
def project(ran, tmp_path, monkeypatch):
    """A copy to change. Its registry stays where it was made, since a bare database records absolute paths."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return ran[0].copy(tmp_path / "project")


def test_one_command_leads_from_raw_data_to_champions_and_a_scored_batch(ran):
    project, output = ran
    champions = {n: versions.champion(project.workspace, n) for n in ("digits-reduction", "wdbc-anomaly")}
    assert champions["wdbc-anomaly"].number == 1
    scored = pd.read_parquet(project.root / ".sevenfold/batches/wdbc-anomaly.parquet")
    assert len(scored) == 569
    assert {"score", "flag", "top_1", "diagnosis"} <= set(scored)
    receipt = json.loads((project.root / ".sevenfold/batches/wdbc-anomaly.parquet.receipt.json").read_text())
    assert receipt["digest"] == champions["wdbc-anomaly"].digest
    for word in ("digits", "reduction", "wdbc-pca", "results/report.html", "make ui", "569 rows by wdbc-anomaly/1"):
        assert word in output


def test_dvc_and_git_are_clean_after_a_flow(ran):
    project, _ = ran
    assert "up to date" in project.run("dvc", "status").stdout
    changed = project.run("git", "status", "--porcelain", "--untracked-files=all").stdout.split()
    # What a first run adds is the record of its results, and nothing else.
    assert changed == ["??", "dvc.lock", "??", "results/metrics.json"]


def test_the_whole_history_is_kept_and_no_task_is_stuck(ran):
    project, _ = ran
    flows, tasks = history(project)
    assert [state for _, state in flows] == ["Completed", "Completed"]
    listed = project.run("dvc", "stage", "list", "--all", "--name-only").stdout.split()
    elections = ["elect digits-reduction", "elect wdbc-anomaly"]
    assert sorted(tasks) == sorted((name, "Completed") for name in [*listed, *elections, "score"])


def test_verdicts_scores_and_the_report_are_artifacts_of_the_run(ran):
    project, _ = ran
    with sqlite3.connect(project.root / ".sevenfold/prefect/prefect.db") as connection:
        found = dict(connection.execute("SELECT key, data FROM artifact").fetchall())
    assert set(found) == {"data-digits", "data-wdbc", "scorecard", "report", "receipt"}
    assert "passed" in found["data-wdbc"]
    assert "wdbc-anomaly/1" in found["scorecard"]
    assert (project.root / "results/report.html").as_uri() in found["report"]


def test_a_published_version_has_the_report_of_its_day_and_the_numbers_of_the_page(ran, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project, _ = ran
    with project.workspace.settled():
        client = mlflow.MlflowClient()
        for name in ("digits-reduction", "wdbc-anomaly"):
            version = versions.every(project.workspace, name)[0]
            # The report is kept once for each pipeline run, with the run above those of the contest.
            above = client.get_run(version.run_id).data.tags["mlflow.parentRunId"]
            page = Path(client.download_artifacts(above, "report.html", str(tmp_path))).read_text()
            assert page == project.workspace.report.read_text()
            for file in ("dvc.lock", "params.yaml"):
                kept = Path(client.download_artifacts(above, f"provenance/{file}", str(tmp_path)))
                assert kept.read_bytes() == (project.root / file).read_bytes()
            assert version.tags["verdict"] in page
            metrics = client.get_run(version.run_id).data.metrics
            primary = "explained_variance" if name == "digits-reduction" else "average_precision"
            row = re.search(rf"<th scope='row'>{version.tags['candidate']}<.*?</tr>", page, re.DOTALL)[0]
            for metric in (f"test.{primary}", f"validation.{primary}"):
                assert f">{evaluation.number(metrics[metric])}</td>" in row


def test_a_report_that_cannot_be_drawn_is_named_and_stops_nobody(tmp_path, monkeypatch):
    def fail(place):
        raise TypeError("no axes")

    monkeypatch.setattr(report, "write", fail)
    assert training._write_report(Workspace(tmp_path)) == {"report": "TypeError: no axes"}


def test_a_report_is_behind_where_there_is_none_or_results_are_newer(tmp_path):
    place = Workspace(tmp_path)
    (tmp_path / "results").mkdir()
    assert not __main__._is_behind(place)  # nothing to report
    place.metrics.touch()
    assert __main__._is_behind(place)
    place.report.touch()
    os.utime(place.metrics, (0, 0))
    assert not __main__._is_behind(place)
    os.utime(place.report, (-1, -1))
    assert __main__._is_behind(place)


def test_a_report_is_written_again_where_results_are_newer(ran, tmp_path):
    project = ran[0].copy(tmp_path / "project")
    page = project.workspace.report
    before = page.read_text()
    page.write_text("old")
    run(project)
    assert page.read_text() == "old"
    os.utime(page, (0, 0))
    done = run(project)
    assert "nothing to train, nothing to publish" in done.stdout
    assert page.read_text() == before


@pytest.mark.slow
def test_a_held_lock_is_waited_for_and_not_a_failure(project):
    project.edit("params.yaml", "hidden: [128]", "hidden: [132]")
    command = [sys.executable, "-c", WITH_SERVER, "flows.training"]
    seen, lock = [], None
    with subprocess.Popen(
        command, cwd=project.root, env=project.environment(), stdout=subprocess.PIPE, text=True
    ) as run:
        for line in run.stdout:
            seen.append(line)
            if "digits-deep: 12 epochs" in line and lock is None:
                lock = _taken(project.root / ".dvc/tmp/lock")
            elif "waits for DVC's lock" in line:
                lock.close()
    assert run.returncode == 0, "".join(seen)
    assert any("@digits-deep: waits for DVC's lock" in line for line in seen)
    assert not any("ERROR" in line for line in seen)
    _, tasks = history(project)
    assert [state for name, state in tasks if name == "train@digits-deep"] == ["Completed", "Completed"]


def _taken(path):
    """Return DVC's lock, which it lets go of while a stage's command runs."""
    while True:
        try:
            return zc.lockfile.LockFile(str(path))
        except zc.lockfile.LockError:
            time.sleep(0.01)


def test_a_whole_run_asks_for_no_address_outside_of_this_machine(ran):
    project, _ = ran
    assert not project.network_log.exists(), project.network_log.read_text()
    # The watchman is awake.
    code = "import urllib.request as r; r.urlopen('http://example.org', timeout=1)"
    assert project.run(sys.executable, "-c", code, check=False).returncode == 1
    assert project.network_log.read_text() == "example.org\n"
    project.network_log.unlink()


def test_private_folders_are_for_their_owner_only(ran):
    project, _ = ran
    for folder in [project.root / ".sevenfold", *(p for p in (project.root / ".sevenfold").iterdir() if p.is_dir())]:
        assert folder.stat().st_mode & 0o777 == 0o700, folder


def test_the_python_of_the_readme_does_what_the_job_did(ran):
    project, _ = ran
    code = re.search(r"```python\n(.*?)```", (project.root / "README.md").read_text(), re.DOTALL)[1]
    code += "\nscored.to_parquet('by-hand.parquet')\n"
    project.run(sys.executable, "-c", code, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    by_hand = pd.read_parquet(project.root / "by-hand.parquet")
    (project.root / "by-hand.parquet").unlink()
    job = pd.read_parquet(project.root / ".sevenfold/batches/wdbc-anomaly.parquet")
    pd.testing.assert_frame_equal(by_hand, job[list(by_hand)], check_dtype=False)


def test_the_pages_are_served_on_this_machine_until_they_are_ended(ran):
    project, _ = ran
    command = [sys.executable, "-m", "flows.pages"]
    with subprocess.Popen(
        command, cwd=project.root, env=project.environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        watch = threading.Timer(180, process.kill)
        watch.start()
        lines = [process.stdout.readline() for _ in range(4)]
        addresses = [line.split()[1] for line in lines[:2]]
        answers = []
        for address in addresses:
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address, timeout=30) as response:
                answers.append(response.read().decode())
        process.terminate()
    watch.cancel()
    assert process.returncode == 0
    assert ["MLflow" in answers[0], "Prefect" in answers[1]] == [True, True]
    assert not _processes(project)


def test_a_second_run_trains_nothing_publishes_nothing_and_says_so(ran):
    project, _ = ran
    before = history(project), versions.every(project.workspace)
    done = run(project)
    assert done.returncode == 0
    assert "nothing to train, nothing to publish" in done.stdout
    assert "wdbc-anomaly/1" in done.stdout
    assert (history(project), versions.every(project.workspace)) == before


@pytest.mark.slow
def test_after_dvc_repro_the_flow_finds_nothing_to_train(reproduced, tmp_path):
    project = reproduced.copy(tmp_path / "project")
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 stages to bring up to date, then 2 elections" in done.stdout
    _, tasks = history(project)
    assert {name for name, _ in tasks} == {"elect digits-reduction", "elect wdbc-anomaly", "score"}


@pytest.mark.slow
def test_one_failing_variant_is_named_and_stops_nobody(project):
    project.edit("params.yaml", NOISE, f"{NOISE}\n    training: {{learning_rate: 1.0e+30}}")
    project.edit("params.yaml", "hidden: [128]", "hidden: [129]")
    done = run(project)
    assert done.returncode == 1
    assert "1 step failed: train@digits-denoising: loss term 'reconstruction'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "evaluate@digits-denoising: not begun, since train@digits-denoising failed" in done.stdout
    # Everything else was done: the other candidate was trained, judged and published, and the report says who is missing.
    assert versions.find(
        project.workspace,
        "digits-reduction",
        bundles.digest(project.root / "results/evaluations/digits-deep/reduction/bundle"),
    )
    assert "its last training failed" in (project.root / "results/report.html").read_text()
    flows, tasks = history(project)
    assert [state for _, state in flows[2:]] == ["Failed"]
    assert dict(tasks[-100:])["train@digits-denoising"] == "Failed"
    assert {state for _, state in tasks} <= {"Completed", "Failed"}


@pytest.mark.slow
def test_data_that_fail_validation_stop_that_data_set_only(project):
    frame = pd.read_parquet(project.root / "data/raw/wdbc.parquet").drop(columns="mean radius")
    frame.to_parquet(project.root / "data/raw/broken.parquet")
    project.edit(
        "params.yaml", "  wdbc:\n    path: data/raw/wdbc.parquet", "  wdbc:\n    path: data/raw/broken.parquet"
    )
    project.edit("params.yaml", "hidden: [128]", "hidden: [130]")
    done = run(project)
    assert done.returncode == 1
    assert "validate@wdbc" in done.stderr
    assert "column 'mean radius'" in done.stderr
    assert "elect wdbc-anomaly: not held, since validate@wdbc failed" in done.stdout
    assert "train@wdbc-pca: not begun, since validate@wdbc failed" in done.stdout
    verdict = json.loads((project.root / "results/validation/wdbc.json").read_text())
    assert not verdict["passed"]
    # What was measured on the data before is no longer shown as if it were of these.
    metrics = json.loads((project.root / "results/metrics.json").read_text())
    assert metrics["wdbc"]["anomaly"] == {"metric": "average_precision", "verdict": "no candidate has a result"}
    assert "did not pass validation" in (project.root / "results/report.html").read_text()
    _, tasks = history(project)
    # It is not tried twice: data do not mend themselves.
    assert [state for name, state in tasks if name == "validate@wdbc"] == ["Completed", "Failed"]
    assert [state for name, state in tasks if name == "train@digits-deep"] == ["Completed", "Completed"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_trainers_and_the_next_run_goes_on(project, number):
    project.edit("params.yaml", NOISE, f"{NOISE}\n    training: {{epochs: 1000000, patience: 1000000}}")
    lines = []
    with subprocess.Popen(
        ["sevenfold", "run"],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        # A run that does not get there ends the test, not the patience of who waits for it.
        watch = threading.Timer(180, process.kill)
        watch.start()
        for line in process.stdout:
            lines.append(line)
            if "digits-denoising: epoch" in line:
                process.send_signal(number)
                break
        lines += process.stdout.readlines()
        code = process.wait()
        watch.cancel()
    assert code == 128 + number, "".join(lines)
    end = time.monotonic() + 10
    while (left := _processes(project)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left
    flows, tasks = history(project)
    assert flows[-1][1] in {"Crashed", "Failed", "Cancelled"}
    assert not {state for _, state in tasks} & {"Running", "Pending", "AwaitingRetry"}
    project.edit("params.yaml", "    training: {epochs: 1000000, patience: 1000000}\n", "")
    assert run(project).returncode == 0


def _processes(project):
    """Return the commands of all processes that work in the project's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(project.root):
                found.append((process / "cmdline").read_text(encoding="utf-8").replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile
    return found


def test_a_line_of_no_step_is_shown_with_how_far_the_run_is(capsys):
    with console.Display(3) as display:
        display.begin("train@a")
        display.end("train@a")
        display.note("waiting for a GPU")
    assert capsys.readouterr().out == "[1/3] waiting for a GPU\n"


def test_two_runs_on_one_workspace_do_not_mix(project):
    project.edit("params.yaml", "hidden: [128]", "hidden: [131]")
    with project.workspace.lock("run"):
        done = run(project)
    assert done.returncode == 1
    assert done.stderr == (
        "error: another run works on this workspace; wait for it, or see `sevenfold doctor` for its process\n"
    )


def test_a_server_that_does_not_answer_is_an_error_without_a_traceback(project):
    project.edit("params.yaml", "hidden: [128]", "hidden: [133]")
    done = run(project, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 1
    assert done.stderr.startswith("error: PREFECT_API_URL is http://127.0.0.1:9/api, and no server answers there")
    assert "Traceback" not in done.stderr


def test_the_batch_flow_runs_a_champion_over_new_rows(project):
    rows = pd.read_parquet(project.root / "data/raw/wdbc.parquet").drop(columns="diagnosis").head(40)
    rows.insert(0, "patient", [f"p{i}" for i in range(40)])
    rows.to_csv(project.root / "rows.csv", index=False)
    batch = [sys.executable, "-c", WITH_SERVER, "flows.batch", "score", "wdbc-anomaly"]
    done = project.run(*batch, "rows.csv", "out.parquet")
    assert "40 rows by wdbc-anomaly/1" in done.stdout
    assert list(pd.read_parquet(project.root / "out.parquet")["patient"]) == list(rows["patient"])
    failed = project.run(*batch, "nowhere.csv", "other.parquet", check=False)
    assert failed.returncode == 1
    assert "error: nowhere.csv does not exist" in failed.stderr
    assert not (project.root / "other.parquet").exists()
    flows, tasks = history(project)
    assert [state for _, state in flows[-2:]] == ["Completed", "Failed"]
    assert [state for name, state in tasks if name == "score"][-2:] == ["Completed", "Failed"]
