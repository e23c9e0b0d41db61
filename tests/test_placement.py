"""A network on another device gives what it gives on the processor, and applications do not notice."""

import numpy as np
import pytest
import torch

from sevenfold import operations, placement
from tests import tiny

CPU = torch.device("cpu")


def test_tensors_cross_once_however_deep_a_model_calls_itself(monkeypatch):
    """Counted in moves to a device and back: of rows in, and of what comes out."""
    model = tiny.bundle("table", "anomaly").model
    moves = []
    real = placement._moved
    monkeypatch.setattr(placement, "_moved", lambda value, device: moves.append(value) or real(value, device))
    there = placement.placed(model, CPU)
    x = torch.randn(7, *model.shape)
    with torch.inference_mode():
        torch.testing.assert_close(there(x), model(x), rtol=0, atol=0)  # forward calls encode and decode
    outer = [value for value in moves if isinstance(value, tuple | dict)]
    assert len(outer) == 2  # positional and named arguments, once


@pytest.mark.parametrize(
    ("kind", "name", "operation"),
    [
        ("table", "anomaly", "score"),
        ("table", "imputation", "impute"),
        ("images", "denoising", "denoise"),
        ("table", "anomaly", "encode"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))])  # fmt: skip
def test_operations_give_the_same_there(kind, name, operation, device):
    from dataclasses import replace

    bundle = operations.accepting(tiny.bundle(kind, name))
    there = replace(bundle, model=placement.placed(bundle.model, torch.device(device)))
    rows = tiny.table(20) if kind == "table" else tiny.images(20)
    got, wanted = (operations.get(operation, one)(one, rows) for one in (there, bundle))
    if wanted.images is not None:
        np.testing.assert_allclose(got.images, wanted.images, atol=0 if device == "cpu" else 1)
        return
    for column in wanted.frame:
        if wanted.frame[column].dtype.kind == "f":
            atol = 0 if device == "cpu" else 1e-4
            np.testing.assert_allclose(got.frame[column], wanted.frame[column], rtol=atol, atol=atol)


def test_gradients_come_back_across():
    model = tiny.bundle("table", "anomaly").model
    there = placement.placed(model, CPU)
    x = torch.randn(3, *model.shape, requires_grad=True)
    (one,) = torch.autograd.grad(there.encode(x, None).sum(), x)
    (other,) = torch.autograd.grad(model.encode(x, None).sum(), x)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("gpu", "device is 'gpu'; expected auto, cpu, cuda"),
        ("meta", "device is 'meta'; expected auto, cpu, cuda"),
        ("cuda:99", "this machine has .* GPUs that torch can use; use cpu"),
    ],
)
def test_a_device_that_is_not_there_is_named(asked, message):
    with pytest.raises(ValueError, match=message):
        placement.chosen(asked, "encode")


def test_by_default_streams_are_made_on_the_processor():
    assert placement.chosen("auto", "compress") == CPU
    assert placement.chosen("cpu", "decompress") == CPU
