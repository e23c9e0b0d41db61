"""The rules that decide the arithmetic, at their edges."""

import itertools

import pytest
import torch
from torch import nn

from sevenfold import arithmetic

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def with_bfloat16(monkeypatch):
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: True)


def dense(*widths):
    return nn.Sequential(*(nn.Linear(i, o) for i, o in itertools.pairwise(widths)))


def images():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize(
    ("model", "cells", "low"),
    [
        (dense(3000, 1500, 200, 1500, 3000), 1, {"0.weight", "1.weight", "2.weight", "3.weight"}),
        (dense(30, 64, 16, 64, 30), 10**6, None),
        (dense(256, 256), 1, {"0.weight"}),
        (dense(255, 10_000), 1, None),  # no product is wide on both sides
        (dense(256, 256, 250, 250, 250), 1, None),  # less than half of the weights are in wide layers
        (images(), 2**14, {"2.weight"}),
        (images(), 2**14 - 1, None),
    ],
)
def test_wide_networks_and_convolutions_compute_in_bfloat16(model, cells, low, monkeypatch):
    assert arithmetic.in_bfloat16(model, "auto", CPU, cells=cells) == low
    assert arithmetic.in_bfloat16(model, "float32", CPU, cells=cells) is None
    assert arithmetic.in_bfloat16(model, "bfloat16", CPU, cells=cells) is not None
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: False)
    assert arithmetic.in_bfloat16(model, "auto", CPU, cells=cells) is None
    with pytest.raises(ValueError, match=r"cpu has no fast one; .*; set `precision: auto`"):
        arithmetic.in_bfloat16(model, "bfloat16", CPU, cells=cells)


@pytest.mark.parametrize(
    ("model", "batch", "used"),
    [(dense(64, 16), 64, 1), (dense(1024, 256), 64, 4), (dense(1024, 256), 63, 1), (images(), 1, 4)],
)
def test_small_networks_take_one_thread(model, batch, used):
    assert arithmetic.threads(model, batch, 4) == used
    assert arithmetic.threads(model, batch, 1) == 1


@pytest.mark.parametrize("convolves", [False, True])
def test_a_training_is_compiled_after_as_many_steps_as_are_left_at_least(convolves):
    after = arithmetic.COMPILE_AFTER["convolutions" if convolves else "dense layers"]

    def first(steps, **options):
        options = {"convolves": convolves, "draws": False} | options
        return next((s for s in range(steps) if arithmetic.compiles("auto", s, steps, **options)), None)

    assert first(2 * after) == after
    assert first(2 * after - 1) is None
    assert first(2 * after, draws=True) is None
    for wanted in (True, False):
        assert arithmetic.compiles(wanted, 0, 1, convolves=convolves, draws=True) is wanted
