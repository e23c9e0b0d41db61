"""Loader come to the device in the same batches, wherever they rest."""

import numpy as np
import pytest
import torch

import samples
from sevenfold import loader as loader_module
from sevenfold.loader import Loader


@pytest.fixture
def on_disk(tmp_path):
    x = np.random.default_rng(0).normal(size=(103, 2, 3)).astype(np.float32)
    observed = np.random.default_rng(1).random(x.shape) < 0.5
    for name, array in (("x", x), ("observed", observed)):
        np.save(tmp_path / f"{name}.npy", array)
    split = samples.split(
        np.load(tmp_path / "x.npy", mmap_mode="r"), observed=np.load(tmp_path / "observed.npy", mmap_mode="r")
    )
    object.__setattr__(split, "x", np.load(tmp_path / "x.npy", mmap_mode="r"))
    return split, torch.from_numpy(x), torch.from_numpy(observed)


@pytest.mark.parametrize("room", [None, 0])
@pytest.mark.parametrize("stretch", [1, 300, 2**24])
def test_batches_hold_the_rows_they_name_in_their_order(on_disk, room, stretch, monkeypatch):
    monkeypatch.setattr(loader_module, "STRETCH", stretch)
    split, x, observed = on_disk
    rows = Loader(split, "cpu", room=room)
    assert rows.resident == (room is None)
    parts = torch.split(torch.randperm(103, generator=torch.Generator().manual_seed(0)), 10)
    for start in (0, 3, 11):
        found = list(rows.batches(parts, start))
        assert len(found) == len(parts) - start
        for (values, seen), part in zip(found, parts[start:], strict=True):
            assert torch.equal(values, x[part])
            assert torch.equal(seen, observed[part])


@pytest.mark.parametrize("room", [None, 0])
def test_rows_in_order_are_all_rows(on_disk, room):
    split, x, observed = on_disk
    rows = Loader(split, "cpu", room=room)
    found = list(rows.in_order(40))
    assert [len(values) for values, _ in found] == [40, 40, 23]
    assert torch.equal(torch.cat([values for values, _ in found]), x)
    assert torch.equal(torch.cat([seen for _, seen in found]), observed)
    assert torch.equal(rows.all()[0], x)


def test_rows_without_gaps_have_nothing_observed_beside_them():
    rows = Loader(samples.split(np.ones((4, 2))), "cpu")
    assert rows.all()[1] is None
    assert [seen for _, seen in rows.batches([torch.tensor([1, 2])])] == [None]


def test_parts_may_be_empty():
    for room in (None, 0):
        rows = Loader(samples.split(np.arange(8.0).reshape(4, 2)), "cpu", room=room)
        parts = [torch.tensor([2]), torch.tensor([], dtype=torch.long), torch.tensor([0, 1])]
        assert [len(x) for x, _ in rows.batches(parts)] == [1, 0, 2]


def test_an_error_while_reading_is_raised_where_the_rows_are_used(monkeypatch):
    def broken(*arguments):
        raise OSError("the disk is gone")

    rows = Loader(samples.split(np.ones((4, 2))), "cpu", room=0)
    monkeypatch.setattr(Loader, "_read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        list(rows.batches([torch.tensor([1])]))
