"""The graph is DVC's: what it makes, what it finds stale, and how a stage is run, fails, and is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import make_project
from flows import devices
from sevenfold import bundles, drift, evaluation, pipeline, stages, training
from sevenfold.datasets.base import Dataset
from sevenfold.pipeline import Reproduction
from sevenfold.workspace import Workspace


@pytest.fixture
def project(reproduced, tmp_path):
    return reproduced.copy(tmp_path / "project")


def names(project):
    return [stage.name for stage in pipeline.stale(project.workspace)]


def bundle_digests(project):
    folders = sorted(project.root.glob("results/evaluations/*/*/bundle"))
    return {str(f.relative_to(project.root)): bundles.digest(f) for f in folders}


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("no file at https://me:hunter1@host/store?token=hunter2&more=a%20b", "no file at https://host/store"),
        ("403, url='https://host/store/files/md5?token=hunter2&more=a%20b'", "403, url='https://host/store/files/md5'"),
        ("403, url='https://host/store?token=hunter2&more=a b'", "403, url='https://host/store'"),
        ("Cannot connect to me:hunter1@host:443", "Cannot connect to host:443"),
        ("query: token=hunter2&more=a%20b", "query: "),
        ("/mnt/store?odd is no folder", "/mnt/store?odd is no folder"),
        ("s3://bucket/path: no such bucket", "s3://bucket/path: no such bucket"),
    ],
)
def test_what_is_secret_in_the_address_of_a_remote_stands_in_no_text_of_dvcs(told, shown, tmp_path):
    (tmp_path / ".dvc").mkdir()
    urls = ["https://me:hunter1@host/store?token=hunter2&more=a%20b", "/mnt/store?odd", "s3://bucket/path"]
    lines = [f"['remote \"{number}\"']\n    url = {url}\n" for number, url in enumerate(urls)]
    (tmp_path / ".dvc/config").write_text("".join(lines))
    assert pipeline._discreet(Workspace(tmp_path), told) == shown


def test_dvc_alone_builds_every_metric_plot_and_bundle_without_a_server(reproduced):
    root = reproduced.root
    metrics = json.loads((root / "results/metrics.json").read_text())
    assert {d: set(a) for d, a in metrics.items()} == {"digits": {"reduction"}, "wdbc": {"anomaly"}}
    assert len(bundle_digests(reproduced)) == 3
    assert {p.stem for p in (root / "results/history").glob("*.csv")} == {"digits-deep", "digits-denoising", "wdbc-pca"}
    assert not (root / "results/report.html").exists()
    assert not (root / ".sevenfold/mlflow").exists()
    assert not (root / ".sevenfold/prefect").exists()
    assert "up to date" in reproduced.run("dvc", "status").stdout
    assert names(reproduced) == []


def test_every_bundle_knows_all_rows_of_the_split_that_its_model_was_trained_on(reproduced):
    for folder in bundle_digests(reproduced):
        bundle = bundles.load(reproduced.root / folder)
        dataset = Dataset.load(reproduced.root / "data/prepared" / bundle.origin["dataset"])
        found = drift.compare(bundle.reference, bundle.model, bundle.schema, dataset.test.x, dataset.test.observed)
        assert found.rows_then == len(dataset.train)
        assert found.reading != "large"


def test_dvc_shows_metrics_and_plots(reproduced, tmp_path):
    shown = json.loads(reproduced.run("dvc", "metrics", "show", "--json").stdout)
    assert "explained_variance" in json.dumps(shown)
    reproduced.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text()
    assert "Loss by epoch, digits-deep" in page
    assert "Test score by contest" in page


def test_after_dvc_alone_the_report_is_one_command_and_no_output_of_it(project):
    place = project.workspace
    assert project.run("sevenfold", "report").stdout == f"{place.report}\n"
    page = place.report.read_text()
    for contests in json.loads(place.metrics.read_text()).values():
        for contest in contests.values():
            assert contest["verdict"] in page
            assert evaluation.number(contest["score"]) in page
            assert evaluation.number(contest["rival"]["score"]) in page
    # Every stage ran here, so the page knows how long each took.
    assert "taken from the cache</td>" not in page
    assert "up to date" in project.run("dvc", "status").stdout
    # What DVC takes from its cache ran nowhere.
    shutil.rmtree(place.private / "timings")
    project.run("sevenfold", "report")
    assert "taken from the cache</td>" in place.report.read_text()


def test_the_graph_is_that_of_dvc(reproduced):
    stages = {stage.name: stage for stage in pipeline.stages(reproduced.workspace)}
    listed = reproduced.run("dvc", "stage", "list", "--all", "--name-only").stdout.split()
    assert sorted(stages) == sorted(listed)
    order = list(stages)
    assert all(order.index(before) < order.index(name) for name, stage in stages.items() for before in stage.before)
    assert stages["evaluate@digits-deep"].needs == {"prepare@digits", "train@digits-deep"}
    assert stages["scorecard"].needs == set()
    assert {"evaluate@wdbc-pca", "rivals@wdbc", "validate@digits"} <= stages["scorecard"].uses


def test_editing_one_variant_reruns_that_variant_only(project):
    project.edit("src/sevenfold/models/deep.py", "class DeepAutoencoder", "# a note\n\n\nclass DeepAutoencoder")
    assert names(project) == ["train@digits-deep", "evaluate@digits-deep", "scorecard"]
    before = bundle_digests(project)
    output = project.run("dvc", "repro").stdout
    ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    # The weights and scores came out as they were, so the scorecard has nothing to do.
    assert ran == ["train@digits-deep", "evaluate@digits-deep"]
    assert bundle_digests(project) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "first"),
    [
        ("params.yaml", "code: 8, hidden: [32]", "code: 8, hidden: [33]", ["train@digits-denoising"]),
        ("params.yaml", "rate, value: 0.05", "rate, value: 0.1", ["rivals@wdbc", "evaluate@wdbc-pca"]),
        ("data/expectations/wdbc.json", '"name"', ' "name"', ["validate@wdbc"]),
    ],
)
def test_a_change_makes_stale_what_depends_on_it(project, file, old, new, first):
    project.edit(file, old, new)
    found = names(project)
    assert set(first) <= set(found)
    assert found[-1] == "scorecard"
    other = "digits" if "wdbc" in first[0] else "wdbc"
    assert not any(other in name for name in found)


@pytest.mark.slow
def test_experiments_change_a_parameter_without_an_edit(project):
    project.run("dvc", "exp", "run", "--quiet", "--name", "wider", "-S", "candidates.digits-deep.options.hidden=[8]")
    shown = project.run("dvc", "exp", "show", "--csv").stdout
    assert "wider" in shown
    changed = project.run("dvc", "metrics", "diff", "--json").stdout
    assert "explained_variance" in changed


@pytest.mark.slow
def test_two_runs_from_scratch_give_equal_bundles(reproduced, tmp_path):
    second = make_project(tmp_path / "second")
    second.run("dvc", "repro", "--quiet")
    first = bundle_digests(reproduced)
    assert len(first) == 3
    assert bundle_digests(second) == first


def test_a_failed_stage_says_why_in_its_own_words(project):
    project.edit("params.yaml", "learning_rate: 0.003", "learning_rate: 1.0e+30")
    lines = []
    with Reproduction(project.workspace) as reproduction, pytest.raises(pipeline.StageError) as caught:
        reproduction.run("train@digits-deep", project.environment(), lines.append)
    message = str(caught.value)
    assert message.startswith("train@digits-deep: loss term")
    assert "Traceback" not in message
    assert "ERROR" not in message
    assert any("Running stage" in line for line in lines)


def test_what_dvc_did_is_told_apart(project):
    with Reproduction(project.workspace) as reproduction:
        assert reproduction.run("train@wdbc-pca", project.environment(), print) == "unchanged"
        project.edit("params.yaml", "code: 8}", "code: 7}")
        assert reproduction.run("train@wdbc-pca", project.environment(), print) == "ran"
        project.edit("params.yaml", "code: 7}", "code: 8}")
        assert reproduction.run("train@wdbc-pca", project.environment(), print) == "restored"


def test_a_held_lock_is_told_apart_from_a_failure(project, monkeypatch):
    code = "import sys, zc.lockfile as z; lock = z.LockFile(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    lock = project.root / ".dvc/tmp/lock"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        project.edit("params.yaml", "code: 8}", "code: 7}")
        with Reproduction(project.workspace) as reproduction, pytest.raises(pipeline.BusyError, match="try again"):
            reproduction.run("train@wdbc-pca", project.environment(), print)
        monkeypatch.setattr(pipeline, "PATIENCE", 1.0)
        with pytest.raises(pipeline.BusyError, match="has held its lock for 1 s; wait for it, or end it"):
            pipeline.stale(project.workspace)
        monkeypatch.setattr(pipeline, "PATIENCE", 60.0)
        threading.Timer(2, holder.stdin.close).start()
        assert "train@wdbc-pca" in names(project)


def test_stopping_ends_the_trainer_too(project):
    project.edit("params.yaml", "epochs: 12", "epochs: 1000000")
    project.edit("params.yaml", "patience: 40", "patience: 1000000")
    group = []
    reproduction = Reproduction(project.workspace)

    def stop_when_training(line):
        if "epoch" in line:
            group.extend(process.pid for process in reproduction._running)
            threading.Thread(target=reproduction.stop).start()

    with pytest.raises(pipeline.StoppedError, match="ended before it was done"):
        reproduction.run("train@digits-deep", project.environment(), stop_when_training)
    assert len(group) == 1
    end = time.monotonic() + 10
    while time.monotonic() < end and _alive(group[0]):
        time.sleep(0.1)
    assert not _alive(group[0])
    assert not (project.root / "results/candidates/digits-deep").exists()
    with pytest.raises(pipeline.StoppedError, match="not begun"):
        reproduction.run("train@digits-deep", project.environment(), print)


@pytest.mark.slow
def test_the_device_of_a_stage_is_held_by_its_processes_and_free_once_they_are_killed(project, tmp_path):
    project.edit("params.yaml", "epochs: 12", "epochs: 1000000")
    project.edit("params.yaml", "patience: 40", "patience: 1000000")
    available = devices.arrange(["0"], cores=1, threads=1)
    other, seen = devices.Desk(available, tmp_path), []

    def kill_when_training(line):
        if "epoch" in line and not seen:
            desk.__exit__()  # as if the run itself were no more
            seen.append(other.lend(wants_gpu=True))
            for process in reproduction._running:
                os.killpg(process.pid, signal.SIGKILL)

    with Reproduction(project.workspace) as reproduction:
        desk = devices.Desk(available, tmp_path)
        locks = desk.descriptors(desk.lend(wants_gpu=True))
        with pytest.raises(pipeline.StageError):
            reproduction.run("train@digits-deep", project.environment(), kill_when_training, keep_open=locks)
    assert seen == [None]
    assert other.lend(wants_gpu=True).name == "cuda-0"


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_dvc_is_initialised_privately(project):
    for _ in range(2):
        pipeline.initialise(project.workspace)
    local = (project.root / ".dvc/config.local").read_text()
    assert local.count("analytics = false") == 1
    assert str(project.root / ".sevenfold") in local
    assert project.run("git", "status", "--porcelain", ".dvc").stdout == ""


def test_a_folder_without_dvc_is_named(tmp_path):
    with pytest.raises(LookupError, match=r"no \.dvc folder.*dvc init"):
        pipeline.initialise(Workspace(tmp_path))


def test_a_tracked_data_set_is_under_dvc_and_its_pointer_is_for_git(project):
    path = project.root / "data/raw/mine.csv"
    path.write_text("a,b\n1,2\n")
    pointer = pipeline.track(project.workspace, path)
    assert "md5" in pointer.read_text()
    status = project.run("git", "status", "--porcelain", "--untracked-files=all", "data").stdout
    assert "mine.csv.dvc" in status
    assert "mine.csv\n" not in status


@pytest.mark.slow
def test_a_training_stage_shared_by_two_processes_comes_to_what_one_comes_to(reproduced, tmp_path):
    project = reproduced.copy(tmp_path / "project")
    place = project.workspace
    alone = pd.read_csv(place.history("digits-deep"))
    launch = ["python", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    done = project.run(
        *launch, "sevenfold", "stage", "train", "digits-deep", OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore"
    )
    assert done.stdout.count("validation loss") == 1  # one of them speaks
    shared = pd.read_csv(place.history("digits-deep"))
    np.testing.assert_allclose(shared["validation_loss"], alone["validation_loss"], rtol=0.02)
    assert bundles.load_model(place.candidate("digits-deep"))[0].variant == "deep"


def test_a_training_that_diverges_leaves_its_last_good_weights_to_look_at(project, monkeypatch):
    place = project.workspace
    _, good = bundles.load_model(place.candidate("digits-deep"))

    def diverge(*rest, **options):
        error = training.DivergenceError("loss term 'reconstruction' is nan in step 7")
        error.model = good
        raise error

    monkeypatch.setattr(training, "fit", diverge)
    where = r"is nan in step 7; the weights of the best epoch before are in \.sevenfold/diverged/digits-deep"
    with pytest.raises(training.DivergenceError, match=where):
        stages.train(place, "digits-deep")
    _, kept = bundles.load_model(place.diverged("digits-deep"))
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in good.state_dict().items())
