"""A training that was killed goes on where it was, and ends with the same weights."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

import samples
from sevenfold import arithmetic, training
from sevenfold.checkpoints import Checkpoint
from sevenfold.models.base import ModelSpec

SPEC = ModelSpec(
    "denoising",
    (12,),
    {
        "code": 3,
        "hidden": [16],
        "activation": "silu",
        "noise": "gaussian",
        "level": 0.3,
        "numbers": "standard",
        "categories": "one-hot",
    },
)
SETTINGS = training.Settings(
    epochs=8, patience=8, batch_size=16, learning_rate=0.01, warmup=0.1, weight_decay=0.01, gradient_clip=1.0, threads=1
)


class StoppedError(Exception):
    pass


def rows(count, seed):
    return samples.split(np.random.default_rng(seed).normal(size=(count, 12)))


def fit(checkpoint=None, on_epoch=lambda epoch: None, settings=SETTINGS, spec=SPEC):
    return training.fit(
        spec, rows(100, 0), rows(40, 1), settings, seed=3, device="cpu", on_epoch=on_epoch, checkpoint=checkpoint
    )


def stop_after(number):
    def watch(epoch):
        if epoch.number == number:
            raise StoppedError

    return watch


@pytest.fixture
def checkpoint(tmp_path):
    """Saves after every step."""
    return Checkpoint(tmp_path / "private" / "state.safetensors", "this training", 0.0)


@pytest.mark.parametrize("number", [1, 5])
def test_a_stopped_training_ends_with_the_weights_and_history_of_one_never_stopped(checkpoint, number):
    whole, history = fit()
    with pytest.raises(StoppedError):
        fit(checkpoint, stop_after(number))
    seen = []
    resumed, again = fit(checkpoint, lambda epoch: seen.append(epoch.number))
    # The epoch whose end was not saved is finished again from its last step.
    assert seen[0] == number
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert again.to_csv() == history.to_csv()
    assert not checkpoint.path.exists()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("captured", [False, True])
def test_a_stopped_training_ends_the_same_whatever_takes_its_steps(checkpoint, captured, precision, monkeypatch):
    if precision == "bfloat16" and not arithmetic.has_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no bfloat16")
    monkeypatch.setattr(arithmetic, "CAPTURE_FROM", 0 if captured else 10_000)
    settings = replace(SETTINGS, precision=precision)
    whole, history = fit(settings=settings)
    with pytest.raises(StoppedError):
        fit(checkpoint, stop_after(4), settings)
    resumed, again = fit(checkpoint, settings=settings)
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in resumed.state_dict().items())
    assert again == replace(history, epochs=again.epochs)
    assert again.to_csv() == history.to_csv()


@pytest.mark.slow  # a compiler starts, four times
@pytest.mark.parametrize("number", [2, 6])  # 7 steps an epoch; compiled from the 28th step on
def test_a_training_that_is_compiled_on_its_way_ends_the_same_stopped_before_or_after(checkpoint, number, monkeypatch):
    monkeypatch.setattr(arithmetic, "CAPTURE_FROM", 0)
    monkeypatch.setattr(arithmetic, "COMPILE_AFTER", {"dense layers": 28})
    spec = ModelSpec("deep", (12,), {**samples.options("deep"), "code": 3, "hidden": [16]})
    whole, history = fit(spec=spec)
    assert history.notes == ()
    with pytest.raises(StoppedError):
        fit(checkpoint, stop_after(number), spec=spec)
    resumed, again = fit(checkpoint, spec=spec)
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in resumed.state_dict().items())
    assert again.to_csv() == history.to_csv()
    monkeypatch.setattr(arithmetic, "COMPILE_AFTER", {"dense layers": 10_000})
    never, _ = fit(spec=spec)
    assert any(not torch.equal(never.state_dict()[name], value) for name, value in whole.state_dict().items())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
import test_checkpoints as t
from sevenfold.checkpoints import Checkpoint

class Deadly(Checkpoint):
    def save(self, tensors, facts):
        super().save(tensors, facts)
        if facts["step"] == 24:  # in the middle of the fourth epoch
            os.kill(os.getpid(), signal.SIGKILL)

t.fit(Deadly(Path({file!r}), "this training", 0.0))
"""


def test_a_killed_process_in_the_middle_of_an_epoch_loses_nothing(checkpoint):
    code = KILLED.format(path=[path for path in sys.path if path], file=str(checkpoint.path))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    whole, _ = fit()
    resumed, history = fit(checkpoint)
    assert len(history.epochs) == 8
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_the_state_of_another_training_or_a_damaged_one_is_not_taken_up(checkpoint):
    with pytest.raises(StoppedError):
        fit(checkpoint, stop_after(3))
    for path, identity in ((checkpoint.path, "another training"), (checkpoint.path.parent / "none", "this training")):
        assert Checkpoint(path, identity, 1.0).load() is None
    saved = checkpoint.path.read_bytes()
    for damaged in (b"", saved[:100], saved[: len(saved) // 2]):
        checkpoint.path.write_bytes(damaged)
        assert checkpoint.load() is None
    seen = []
    fit(checkpoint, lambda epoch: seen.append(epoch.number))
    assert seen[0] == 1


def test_nothing_is_saved_before_its_time(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "x", 3600.0)
    with pytest.raises(StoppedError):
        fit(checkpoint, stop_after(4))
    assert not checkpoint.path.exists()


def test_the_state_is_plain_safetensors_in_a_private_folder(checkpoint):
    with pytest.raises(StoppedError):
        fit(checkpoint, stop_after(2))
    assert "model.encoder.0.weight" in safetensors.torch.load_file(checkpoint.path)
    assert checkpoint.path.parent.stat().st_mode & 0o777 == 0o700
