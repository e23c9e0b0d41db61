"""Several processes that share a training come to what one comes to."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import samples
from sevenfold import processes, training
from sevenfold.checkpoints import Checkpoint
from sevenfold.processes import Group

SETTINGS = replace(samples.SETTINGS, epochs=5, patience=5)

SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch.distributed as distributed
distributed.init_process_group("gloo")
import test_processes as t
t.process(Path({folder!r}), {variant!r}, {checkpoint})
distributed.destroy_process_group()
"""


def fit(variant, checkpoint=None, on_epoch=lambda epoch: None):
    data = samples.dataset("table")
    # Of 101 rows the last batch has 5, of which two processes have 3 and 2.
    train = data.train.take(np.arange(101))
    spec = samples.spec(variant, "table")
    return training.fit(
        spec, train, data.validation, SETTINGS, seed=0, device="cpu", on_epoch=on_epoch, checkpoint=checkpoint
    )


class Deadly(Checkpoint):
    """Kills its process once it has saved the state after the third epoch."""

    def save(self, tensors, facts):
        super().save(tensors, facts)
        if len(facts["epochs"]) == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def process(folder, variant, checkpoint):
    """What each process does: train, and write down what it has."""
    rank = int(os.environ["RANK"])
    seen = []
    model, history = fit(variant, checkpoint(folder / "state.safetensors", "x", 0.0), seen.append)
    found = {name: value.flatten().tolist() for name, value in model.state_dict().items()}
    facts = {"weights": found, "losses": [e.loss for e in history.epochs], "seen": len(seen), "csv": history.to_csv()}
    (folder / f"{rank}.json").write_text(json.dumps(facts))


def start(folder, variant, checkpoint="t.Checkpoint"):
    script = folder / "script.py"
    path = [p for p in sys.path if p]
    script.write_text(SCRIPT.format(path=path, folder=str(folder), variant=variant, checkpoint=checkpoint))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def together(folder, variant):
    done = start(folder, variant)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow  # processes start and import torch
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    model, history = fit("deep")
    first, second = together(tmp_path, "deep")
    assert first["weights"] == second["weights"]
    assert first["csv"] == second["csv"]
    assert (first["seen"], second["seen"]) == (SETTINGS.epochs, 0)
    assert first["losses"] == pytest.approx([e.loss for e in history.epochs], rel=1e-4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            torch.tensor(first["weights"][name], dtype=value.dtype), value.flatten(), rtol=1e-3, atol=1e-4
        )
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.slow  # processes start and import torch
def test_two_processes_with_noise_and_buffers_of_their_own_agree(tmp_path):
    first, second = together(tmp_path, "variational")
    assert first["weights"] == second["weights"]
    assert first["csv"] == second["csv"]
    assert first["losses"][-1] < first["losses"][0]


@pytest.mark.slow  # processes start and import torch, three times
def test_killed_processes_go_on_together_and_end_with_the_weights_of_those_never_stopped(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = together(tmp_path / "whole", "variational")
    assert start(tmp_path / "killed", "variational", "t.Deadly").returncode != 0
    assert (tmp_path / "killed" / "state.safetensors").exists()
    resumed = together(tmp_path / "killed", "variational")
    for one, other in zip(resumed, whole, strict=True):
        assert one["weights"] == other["weights"]
        assert one["csv"] == other["csv"]
    assert [one["seen"] for one in resumed] == [SETTINGS.epochs - 3, 0]
    assert not (tmp_path / "killed" / "state.safetensors").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and LOCAL_RANK is not set; expected both or neither; .* torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; expected a whole number"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": ""}, "LOCAL_RANK is ''; expected a whole number"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_told(environment, message, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), processes.joined():
        pass


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_a_batch(size):
    rows = torch.randperm(8)
    shares = [Group(rank, size).share(rows) for rank in range(size)]
    assert torch.equal(torch.cat(shares), rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_no_group():
    assert processes.group() is None
