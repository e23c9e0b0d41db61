"""Stages on a Ray cluster of two machines come to what they come to here, and a machine may be lost meanwhile.

`make test-slow` runs them in a process of their own: in one that was on another cluster before, Ray loses calls.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ruamel.yaml

from conftest import ONE_TABLE, ROOT, TRAINING, make_project
from sevenfold import clusters, dispatch, files, params, pipeline
from sevenfold.dispatch import Needs
from sevenfold.pipeline import Reproduction

PARAMS = (
    ONE_TABLE
    + TRAINING
    + """\
candidates:
  wdbc-deep:
    dataset: wdbc
    applications: [anomaly]
    rows: normal
    variant: deep
    options: {code: 4, hidden: [16], activation: silu, blocks: 0, tied: false, augment: [], numbers: standard, categories: one-hot}
  wdbc-denoising:
    dataset: wdbc
    applications: []
    variant: denoising
    options: {code: 4, hidden: [16], activation: silu, noise: gaussian, level: 0.3, numbers: standard, categories: one-hot}
rivals: {seconds: 600}
gate: {must_beat_rivals: true, floor: 1.0}
"""
)
"""Two candidates, to be trained on two machines. Nobody becomes champion, since there is nothing to see in a job."""

LONG = ("epochs: 12", "epochs: 1000000")
PATIENT = ("patience: 40", "patience: 1000000")

AUTHOR = "-c user.name=test -c user.email=test@localhost"

PROGRAM = """
import sys
from sevenfold import dispatch, params, workspace
from sevenfold.pipeline import Reproduction
place = workspace.find()
with dispatch.serving(place, params.load(place.params)) as (variables, capacity), Reproduction(place) as reproduction:
    print(reproduction.run("train@wdbc-deep", variables, lambda line: print(line, flush=True)), flush=True)
"""
"""Runs one stage on a cluster, as the flow does."""


class Machines:
    """Two machines of a cluster that are one, each with one processor and what it takes for a GPU."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        # A cluster's own processes find this package where the tests do.
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        self._before = os.environ.get("PYTHONPATH")
        os.environ |= {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
        )
        self.address = self._cluster.address
        self.head = self._cluster.head_node.node_id[:8]
        self.add()

    def add(self):
        self._second = self._cluster.add_node(num_cpus=1, num_gpus=1)
        self.second = self._second.node_id[:8]

    def lose_second(self):
        """Lose the second machine as by a power cut."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def close(self):
        self._cluster.shutdown()
        if self._before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = self._before


@pytest.fixture(scope="module")
def machines():
    handler = signal.getsignal(signal.SIGTERM)
    found = Machines()
    yield found
    found.close()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A project whose stages have run on this machine."""
    project = make_project(tmp_path_factory.mktemp("here") / "project", PARAMS)
    project.run("dvc", "repro", "--quiet")
    return project


@pytest.fixture
def project(here, tmp_path, monkeypatch, machines):
    """A copy to change, and the cluster named."""
    monkeypatch.setenv("RAY_ADDRESS", machines.address)
    return here.copy(tmp_path / "project")


def environment(project, **more):
    """Return variables without the watchman of the network, who takes a machine's own address for one outside."""
    return project.environment(**more) | {"PYTHONPATH": f"{project.root / 'src'}{os.pathsep}{project.root}"}


def outputs(project):
    """Return the digest of every output of a stage."""
    folders = ("data/prepared", "results/candidates", "results/evaluations", "results/history")
    paths = [p for folder in folders for p in (project.root / folder).rglob("*") if p.is_file()]
    return {str(p.relative_to(project.root)): files.digest(p) for p in paths}


def forget(project, *kinds):
    """Make stages of these kinds stale, and leave nothing of them."""
    yaml = ruamel.yaml.YAML()
    path = project.root / "dvc.lock"
    lock = yaml.load(path)
    for name in [n for n in lock["stages"] if n.partition("@")[0] in kinds]:
        for out in lock["stages"].pop(name)["outs"]:
            place = project.root / out["path"]
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    yaml.dump(lock, path)
    shutil.rmtree(project.root / ".dvc/cache/runs")


def trainers(project):
    """Return the numbers of processes of the cluster that run a stage of this project."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes().decode().split("\0")
            if said[1:4] == ["-m", "sevenfold", "stage"] and (place / "cwd").readlink() == project.root:
                found.append(int(place.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_run_on_two_machines_of_which_one_is_lost_leaves_the_bytes_of_a_run_here_and_dvc_clean(project, machines):
    before = outputs(project)
    forget(project, "train", "evaluate", "scorecard")
    assert len(outputs(project)) < len(before)
    seen = []
    with subprocess.Popen(
        ["sevenfold", "run", "--engine", "ray"],
        cwd=project.root,
        env=environment(project),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        for line in run.stdout:
            seen.append(line)
            if f"node {machines.second}" in line and not any("was lost" in other for other in seen):
                machines.lose_second()
    said = "".join(seen)
    machines.add()
    assert run.returncode == 0, said
    assert "5 stages to bring up to date" in said
    where = {name: re.findall(rf"{name}: on \S+, node (\w+), GPU 0", said) for name in ("wdbc-deep", "wdbc-denoising")}
    # Each training began on a machine of its own, and the one whose machine was lost on the other one again.
    (lost,) = [name for name, nodes in where.items() if len(nodes) == 2]
    assert f"{lost}: its machine or process was lost" in said
    assert where.pop(lost)[1:] == next(iter(where.values())) == [machines.head]
    assert outputs(project) == before
    assert "up to date" in project.run("dvc", "status").stdout


@pytest.mark.slow
def test_a_run_at_a_commit_sends_the_stages_of_its_worktree_to_the_cluster(project):
    forget(project, "train", "evaluate", "scorecard")
    for command in ("init --quiet", "add --all", f"{AUTHOR} commit --quiet --message state"):
        project.run("git", *command.split())
    # What the worktree must not take from here.
    project.edit("params.yaml", "learning_rate: 0.003", "learning_rate: 1.0e+30")
    done = subprocess.run(
        ["sevenfold", "run", "--engine", "ray", "--revision", "HEAD"],
        cwd=project.root,
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for name in ("wdbc-deep", "wdbc-denoising"):
        assert re.search(rf"{name}: on \S+, node \w+, GPU 0", said), said


@pytest.mark.slow
def test_a_stage_that_fails_is_not_tried_again_and_says_why_as_it_does_here(project):
    project.edit("params.yaml", "learning_rate: 0.003", "learning_rate: 1.0e+30")
    place, said = project.workspace, []
    lines = []
    with (
        dispatch.serving(place, params.load(place.params)) as (variables, _),
        Reproduction(place) as reproduction,
    ):
        for more in ({}, variables):
            with pytest.raises(pipeline.StageError) as failure:
                reproduction.run("train@wdbc-deep", project.environment() | more, lines.append)
            said.append(str(failure.value))
    assert said[0] == said[1]
    assert said[0].startswith("train@wdbc-deep: loss term")
    assert sum("wdbc-deep: on " in line for line in lines) == 1


@pytest.mark.slow
def test_a_stage_that_cannot_be_reached_for_a_while_is_waited_for_and_not_begun_again(project, monkeypatch):
    import ray

    get, failed = ray.get, []

    def gone_at_first(awaited, **options):
        found = get(awaited, **options)
        if len(failed) < 2:
            failed.append(found)
            raise ray.exceptions.ActorUnavailableError("its machine does not answer", None)
        return found

    monkeypatch.setattr(ray, "get", gone_at_first)
    place, lines = project.workspace, []
    with (
        dispatch.serving(place, params.load(place.params)) as (variables, _),
        Reproduction(place) as reproduction,
    ):
        assert reproduction.run("train@wdbc-deep", project.environment() | variables, lines.append, anew=True) == "ran"
    assert len(failed) == 2
    assert sum("wdbc-deep: on " in line for line in lines) == 1
    assert not any("was lost" in line for line in lines)
    assert len([line for line in lines if "validation loss" in line]) == 1


@pytest.mark.slow
def test_what_no_machine_has_is_told_and_not_waited_for(project):
    project.edit("params.yaml", "threads: 1", "threads: 2")
    place = project.workspace
    with (
        dispatch.serving(place, params.load(place.params)) as (variables, _),
        Reproduction(place) as reproduction,
        pytest.raises(pipeline.StageError, match="needs 2 processors and 1 GPU, which no machine of the cluster has"),
    ):
        reproduction.run("train@wdbc-deep", project.environment() | variables, print)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_a_run_that_is_stopped_leaves_no_trainer_and_no_gpu_taken(project):
    project.edit("params.yaml", *LONG)
    project.edit("params.yaml", *PATIENT)
    place, begun = project.workspace, []

    def disturb(line):
        if "wdbc-deep: on " in line:
            (trainer,) = wait_for(lambda: trainers(project))
            begun.append(trainer)
            if len(begun) == 1:
                os.kill(parent(trainer), signal.SIGKILL)
                assert wait_for(lambda: trainer not in trainers(project))
            else:
                threading.Thread(target=reproduction.stop).start()

    with dispatch.serving(place, params.load(place.params)) as (variables, _):
        with Reproduction(place) as reproduction, pytest.raises(pipeline.StoppedError):
            reproduction.run("train@wdbc-deep", project.environment() | variables, disturb)
        assert len(begun) == 2
        assert wait_for(lambda: not trainers(project))
        import ray

        assert wait_for(lambda: ray.available_resources().get("GPU") == 2)


@pytest.mark.slow
def test_a_stage_that_waits_for_room_is_given_up_at_once_when_the_run_is_stopped(project, monkeypatch):
    monkeypatch.setattr(dispatch, "PATIENCE", 1e6)  # nobody is there who could end by himself
    looks, require = [], dispatch._require
    monkeypatch.setattr(dispatch, "_require", lambda wanted: looks.append(wanted) or require(wanted))
    place, failures = project.workspace, []

    def wait():
        try:
            reproduction.run("train@wdbc-deep", project.environment() | variables, print, anew=True)
        except pipeline.StoppedError as error:
            failures.append(error)

    with dispatch.serving(place, params.load(place.params)) as (variables, _):
        import ray

        others = [ray.remote(num_gpus=1, num_cpus=1)(threading.Event).remote() for _ in range(2)]
        ray.get([other.is_set.remote() for other in others])
        with Reproduction(place) as reproduction:
            waiting = threading.Thread(target=wait)
            waiting.start()
            assert wait_for(lambda: len(looks) > 3)
            reproduction.stop()
            waiting.join(60)
            assert not waiting.is_alive()
        for other in others:
            ray.kill(other)
        assert wait_for(lambda: ray.available_resources().get("GPU") == 2)
        assert not trainers(project)
    assert len(failures) == 1


def parent(process):
    return int(Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_trainer_on_its_own_cluster(project, monkeypatch):
    project.edit("params.yaml", *LONG)
    project.edit("params.yaml", *PATIENT)
    variables = {k: v for k, v in environment(project).items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=project.root, env=variables, stdout=subprocess.PIPE, text=True
    ) as run:
        seen = []
        for line in run.stdout:
            seen.append(line)
            if "wdbc-deep: on " in line:
                break
        assert wait_for(lambda: trainers(project)), seen
        run.kill()
    assert wait_for(lambda: not trainers(project))
    for room in [*Path("/tmp").glob(f"ray-{run.pid}-*"), *Path("/tmp").glob(f"sevenfold-{run.pid}-*")]:
        shutil.rmtree(room, ignore_errors=True)


def settings(**more):
    candidates = {"a": params.Candidate(dataset="d", applications=(), variant="deep", options={})}
    training = params.Training.model_construct(threads=3)
    return params.Params.model_construct(candidates=candidates, training=training, resources={}, **more)


def test_a_training_asks_for_its_threads_and_a_gpu_where_there_are_some():
    assert dispatch.needs(settings(), "train", "a", gpus=0) == Needs(3, 0)
    assert dispatch.needs(settings(), "train", "a", gpus=8) == Needs(3, 1)
    assert dispatch.needs(settings(), "evaluate", "a", gpus=8) == Needs(3, 0)
    assert dispatch.needs(settings(), "scorecard", None, gpus=8) == Needs(3, 0)


def test_what_params_state_is_asked_for_whatever_the_cluster_has():
    for stated in (0, 1):
        wanted = settings().model_copy(update={"resources": {"deep": params.Resources(gpus=stated)}})
        assert [dispatch.needs(wanted, "train", "a", gpus=n).gpus for n in (0, 8)] == [stated, stated]


def answered(root, digest):
    return dispatch._Stage("train", "a", str(root), digest, 0).answers(0)


def test_a_machine_without_the_workspace_or_with_other_code_is_told(tmp_path):
    line, code = answered(tmp_path, "0" * 64)
    assert code == {"code": 1}
    assert f"has no workspace {tmp_path}; expected one on a disk that all machines of the cluster share" in line["line"]
    assert "has other code of sevenfold; expected that of the run; install the same there" in line["line"]


def test_a_run_that_is_gone_is_told_by_the_stage(tmp_path, monkeypatch):
    monkeypatch.setenv(dispatch.ADDRESS, str(tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match=r"the run that hands stages to the cluster does not answer .*; run again"):
        dispatch.ask("train", "a")


def test_a_proxy_of_a_cluster_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with (
        pytest.raises(
            RuntimeError, match="RAY_ADDRESS is ray://head:10001, the address of a proxy; expected HOST:PORT"
        ),
        dispatch.serving(None, settings()),
    ):
        pass


def test_a_process_that_was_on_another_cluster_is_refused_since_ray_would_lose_its_calls(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(clusters, "_joined", "10.0.0.1:6379")
        with (
            pytest.raises(
                RuntimeError, match=f"was on the cluster 10.0.0.1:6379 before, .* of {address}; begin another"
            ),
            clusters.connected(1),
        ):
            pass


def test_a_process_on_a_leash_ends_with_what_it_started_when_the_other_end_closes():
    code = (
        "import subprocess, sys, time\nfrom sevenfold import dispatch\ndispatch.leash()\n"
        "child = subprocess.Popen(['sleep', '60'])\nprint(child.pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {dispatch.LEASH: "stdin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        child = int(process.stdout.readline())
        process.stdin.close()
        assert process.wait(10) == -signal.SIGKILL
    assert wait_for(
        lambda: not Path("/proc", str(child)).exists() or "Z" in Path("/proc", str(child), "stat").read_text()
    )
