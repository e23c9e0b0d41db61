"""No device has two stages at once, whatever else runs on the machine, and none idles while a stage that could run there waits."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from flows import devices
from flows.devices import Desk
from flows.schedule import Schedule, wants_gpu
from sevenfold import params
from sevenfold.pipeline import Stage

HOLDER = """
import subprocess, sys
from pathlib import Path
from flows import devices
desk = devices.Desk(devices.arrange(["0"], cores=1, threads=1), Path(sys.argv[1]))
device = desk.lend(wants_gpu=True)
if sys.argv[2] == "child":
    child = subprocess.Popen(["sleep", "60"], pass_fds=desk.descriptors(device))
    print(child.pid, flush=True)
print("held", flush=True)
sys.stdin.read()
"""
"""A run that holds a GPU, alone or with a process that works on it."""


@pytest.mark.parametrize(
    ("gpus", "cores", "threads", "names"),
    [
        ([], 2, 1, ["cpu-0", "cpu-1"]),
        ([], 2, 4, ["cpu-0"]),
        ([], 64, 1, [f"cpu-{i}" for i in range(8)]),
        (["0", "3"], 4, 2, ["cpu-0", "cpu-1", "cuda-0", "cuda-3"]),
    ],
)
def test_devices_never_take_more_cores_than_there_are(gpus, cores, threads, names):
    found = devices.arrange(gpus, cores=cores, threads=threads)
    assert [device.name for device in found] == names
    slots = [device for device in found if not device.is_gpu]
    assert len(slots) * threads <= max(cores, threads)
    assert all(device.environment["CUDA_VISIBLE_DEVICES"] == "" for device in slots)


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        (None, 3, ["0", "1", "2"]),
        ("4, 6,7", 3, ["4", "6", "7"]),
        ("GPU-7f3e,MIG-GPU-1a/1/0", 2, ["GPU-7f3e", "MIG-GPU-1a/1/0"]),
        ("0,1,9", 2, ["0", "1"]),  # what is not there ends the list
        ("", 0, []),
    ],
)
def test_each_visible_gpu_is_a_device_that_shows_a_stage_no_other(visible, count, names, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [device for device in devices.there_are(threads=1) if device.is_gpu]
    assert [device.environment["CUDA_VISIBLE_DEVICES"] for device in found] == names
    with Desk(found, tmp_path) as desk:
        assert [desk.lend(wants_gpu=True) for _ in found] == found


def test_training_goes_to_gpus_where_there_are_some_and_no_device_is_lent_twice(tmp_path):
    with Desk(devices.arrange(["0"], cores=1, threads=1), tmp_path) as desk:
        gpu, cpu = desk.lend(wants_gpu=True), desk.lend(wants_gpu=False)
        assert (gpu.name, cpu.name) == ("cuda-0", "cpu-0")
        assert desk.lend(wants_gpu=True) is None
        assert desk.lend(wants_gpu=False) is None
        desk.give_back(gpu)
        assert desk.lend(wants_gpu=True) is gpu


def test_a_cluster_has_as_many_devices_as_it_has_room_for_and_it_decides_which_is_which():
    where = {"ASK": "there"}
    found = devices.elsewhere(where, slots=3, gpus=2)
    assert [device.is_gpu for device in found] == [True, True, False, False, False]
    assert all(device.environment == where and not device.is_shared for device in found)
    assert len(devices.elsewhere(where, slots=1000, gpus=1000)) == 2 * devices.MOST_ELSEWHERE


def test_without_gpus_training_takes_cpu_slots():
    desk = Desk(devices.arrange([], cores=2, threads=1))
    assert {desk.lend(wants_gpu=True).name, desk.lend(wants_gpu=True).name} == {"cpu-0", "cpu-1"}
    assert desk.lend(wants_gpu=True) is None


def test_a_gpu_that_another_run_holds_is_passed_over_for_one_that_is_free(tmp_path):
    three = devices.arrange(["0", "1", "2"], cores=1, threads=1)
    with Desk(three, tmp_path) as one, Desk(three, tmp_path) as other:
        assert [one.lend(wants_gpu=True).name, other.lend(wants_gpu=True).name] == ["cuda-0", "cuda-1"]
        third = one.lend(wants_gpu=True)
        assert third.name == "cuda-2"
        assert other.lend(wants_gpu=True) is None
        one.give_back(third)
        assert other.lend(wants_gpu=True) is third
    with Desk(three, tmp_path) as after:  # the end of a run gives back what it has not
        assert all(after.lend(wants_gpu=True) for _ in range(3))


def test_runs_of_all_workspaces_of_a_user_share_the_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    one = devices.arrange(["0"], cores=1, threads=1)
    with Desk(one) as first, Desk(one) as second:
        assert first.lend(wants_gpu=True)
        assert second.lend(wants_gpu=True) is None
    assert (tmp_path / f"sevenfold-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def holder(folder, kind):
    """Start a run that holds the GPU 0, and return it with the number of the process that works there, if it has one."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline()) if kind == "child" else None
    assert process.stdout.readline() == "held\n"
    return process, child


def lent(desk):
    """Return the GPU that a desk lends within seconds: a kernel takes a moment to clean up after a process."""
    end = time.monotonic() + 10
    while (found := desk.lend(wants_gpu=True)) is None and time.monotonic() < end:
        time.sleep(0.01)
    return found


def test_the_gpu_of_a_run_that_was_killed_is_free_again(tmp_path):
    with Desk(devices.arrange(["0"], cores=1, threads=1), tmp_path) as desk:
        process, _ = holder(tmp_path, "alone")
        with process:
            assert desk.lend(wants_gpu=True) is None
            process.kill()
        assert lent(desk).name == "cuda-0"


def test_a_stage_that_outlives_its_run_keeps_its_gpu_until_it_is_killed_too(tmp_path):
    with Desk(devices.arrange(["0"], cores=1, threads=1), tmp_path) as desk:
        process, child = holder(tmp_path, "child")
        with process:
            process.kill()
        assert desk.lend(wants_gpu=True) is None
        os.kill(child, signal.SIGKILL)
        assert lent(desk).name == "cuda-0"


def graph(draw, count):
    """Return a random graph: each stage needs some before it, and some look at what is there."""
    found = []
    for number in range(count):
        kind = draw.choice(["train", "evaluate", "rivals"])
        before = [s.name for s in found]
        needs = frozenset(draw.sample(before, min(len(before), draw.randint(0, 2))))
        uses = frozenset(draw.sample(before, min(len(before), draw.randint(0, 3)))) - needs
        found.append(Stage(f"{kind}@c{number}", needs, uses if draw.random() < 0.3 else frozenset()))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_no_device_has_two_stages_and_none_idles_while_a_stage_that_could_run_there_waits(seed, tmp_path):
    draw = random.Random(seed)
    plan = graph(draw, draw.randint(1, 25))
    gpus = [str(i) for i in range(draw.choice([0, 1, 3]))]
    available = devices.arrange(gpus, cores=draw.randint(1, 4), threads=1)
    on_gpu = {s.name for s in plan if s.kind == "train" and draw.random() < 0.8}
    running, ended, failed, kept_back = {}, set(), set(), {}
    with Desk(available, tmp_path) as desk:
        schedule = Schedule(plan, desk, lambda stage: stage.name in on_gpu)
        while not schedule.is_done:
            kept_back |= {stage.name: cause for stage, cause in schedule.keep_back()}
            for stage, device in schedule.begin():
                assert stage.before <= ended | failed | kept_back.keys()
                assert not stage.needs & (failed | kept_back.keys())
                running[stage.name] = device
            in_use = [device.name for device in running.values()]
            assert len(set(in_use)) == len(in_use)
            gone = running.keys() | ended | failed | kept_back.keys()
            for stage in plan:
                if stage.name not in gone and stage.before <= ended | failed | kept_back.keys():
                    its_own = [d for d in available if d.is_gpu == (stage.name in on_gpu and bool(gpus))]
                    assert {d.name for d in its_own} <= set(in_use), f"{stage.name} waits for nothing"
            assert not schedule.is_blocked
            if running:
                name = draw.choice(sorted(running))
                del running[name]
                failing = draw.random() < 0.1
                (failed if failing else ended).add(name)
                schedule.end(name, failed=failing)
    assert ended | failed | kept_back.keys() == {stage.name for stage in plan}
    assert set(kept_back.values()) <= failed


def test_a_run_knows_when_others_hold_all_that_its_stages_may_have(tmp_path):
    available = devices.arrange(["0"], cores=1, threads=1)
    stage = Stage("train@deep", frozenset(), frozenset())
    with Desk(available, tmp_path) as other, Desk(available, tmp_path) as desk:
        device = other.lend(wants_gpu=True)
        schedule = Schedule([stage], desk, lambda stage: True)
        assert schedule.begin() == []
        assert schedule.is_blocked
        other.give_back(device)
        assert schedule.begin() == [(stage, device)]
        assert not schedule.is_blocked


def test_a_training_wants_a_gpu_unless_params_say_that_it_needs_none():
    settings = params.Params.model_construct(
        candidates={
            "a": params.Candidate(dataset="d", applications=(), variant="pca", options={}),
            "b": params.Candidate(dataset="d", applications=(), variant="deep", options={}),
        },
        resources={"pca": params.Resources(gpus=0)},
    )
    wants = {n: wants_gpu(settings, Stage(n, frozenset(), frozenset())) for n in ("train@a", "train@b", "evaluate@b")}
    assert wants == {"train@a": False, "train@b": True, "evaluate@b": False}
