"""Each kind of sparsity keeps the code as sparse as its options say, and dead units are counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

import samples
from sevenfold.models import base
from sevenfold.models.base import ModelSpec

CODE = 16


def spec(sparsity, target=None, weight=None, **options):
    wanted = {
        "code": CODE,
        "hidden": [32],
        "activation": "silu",
        "sparsity": sparsity,
        "numbers": "standard",
        "categories": "one-hot",
    } | options
    return ModelSpec("sparse", (20,), wanted | {"target": target, "weight": weight})


def build(*args, **options):
    torch.manual_seed(0)
    return spec(*args, **options).build().eval()


def rows(count, seed):
    """Samples of twelve causes, two or three of which are present at a time."""
    generator = np.random.default_rng(seed)
    present = generator.random((count, 12)) < 0.2
    strength = generator.uniform(0.5, 1.5, size=present.shape)
    return samples.split((present * strength) @ np.random.default_rng(0).normal(size=(12, 20)))


TRAIN, VALIDATION = rows(600, 1), rows(200, 2)
X = torch.from_numpy(TRAIN.x)


def trained(*args, **options):
    settings = replace(samples.SETTINGS, epochs=60, patience=60)
    return samples.fit(spec(*args, **options), TRAIN, VALIDATION, settings=settings)[0]


def codes(model, x=X):
    with torch.inference_mode():
        return model.encode(x)


@pytest.mark.parametrize("target", [0.05, 0.2])
def test_the_mean_activation_of_every_unit_meets_the_target(target):
    model = trained("kl", target, 10.0)
    z = codes(model)
    assert z.min() >= 0
    assert z.max() <= 1
    np.testing.assert_allclose(z.mean(dim=0), target, rtol=0.2)
    assert model.dead_units(X) == 0
    loose = codes(trained("kl", target, 0.0)).mean()
    assert loose > 1.5 * target  # without the penalty nothing draws it there


@pytest.mark.parametrize("target", [0.05, 0.5])
def test_the_penalty_is_the_divergence_from_the_target(target):
    model = build("kl", target, 3.0)
    expected = kl_divergence(Bernoulli(target), Bernoulli(model.encode(X).mean(dim=0))).mean()
    torch.testing.assert_close(model.losses(X, None)["sparsity"], 3 * expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bias", [-300.0, 300.0])
def test_units_that_are_stuck_are_drawn_back(bias):
    model = build("kl", 0.1, 1.0)
    with torch.no_grad():
        model.encoder[-1].bias.fill_(bias)
    loss = model.losses(X, None)["sparsity"]
    loss.backward()
    slope = model.encoder[-1].bias.grad
    assert torch.isfinite(loss)
    assert (slope * bias > 0).all()  # a step down the slope leads back


@pytest.mark.parametrize(("target", "k"), [(0.25, 4), (0.1, 2), (0.01, 1)])
def test_exactly_the_k_largest_stay(target, k):
    model = build("top-k", target)
    z = codes(model).numpy()
    potentials = model.encoder((X - model.cells.numbers.center) / model.cells.numbers.spread).detach().numpy()
    assert ((z != 0).sum(axis=1) == k).all()
    bar = np.sort(potentials, axis=1)[:, -k, None]
    assert np.array_equal(z, np.where(potentials >= bar, potentials, 0))


def test_training_starts_with_all_units_and_has_k_from_a_tenth_on():
    model = build("top-k", 0.25).train()
    kept = []
    for progress in (0.0, 0.05, 0.1, 0.5, 1.0):
        model.progress.fill_(progress)
        kept.append(int((codes(model) != 0).sum(dim=1).unique()))
    assert kept == [16, 10, 4, 4, 4]
    model.progress.fill_(0.0)
    assert ((codes(model.eval()) != 0).sum(dim=1) == 4).all()  # so that the validation loss of all epochs compares


def test_l1_is_the_mean_over_the_root_mean_square_whatever_the_scale():
    model = build("l1", weight=0.7)
    z = model.encode(X).double().detach().numpy()
    live = (z != 0).any(axis=0)
    ratios = np.abs(z[:, live]).mean(axis=0) / np.sqrt((z[:, live] ** 2).mean(axis=0))
    penalty = model.losses(X, None)["sparsity"].item()
    assert penalty == pytest.approx(0.7 * ratios.sum() / CODE, rel=1e-4)
    with torch.no_grad():
        for parameter in model.encoder[-1].parameters():
            parameter.mul_(0.01)
    assert model.losses(X, None)["sparsity"].item() == pytest.approx(penalty, rel=1e-4)


def test_l1_makes_the_code_sparser():
    def active(weight):
        return float((codes(trained("l1", weight=weight)) > 0).double().mean())

    assert active(0.3) < 0.6 * active(0.0)


@pytest.mark.parametrize(("sparsity", "target", "weight"), [("l1", None, 0.1), ("kl", 0.1, 0.1), ("top-k", 0.5, None)])
def test_dead_units_are_counted(sparsity, target, weight):
    model = build(sparsity, target, weight)
    before = model.dead_units(X)
    assert before == int((np.ptp(codes(model).numpy(), axis=0) == 0).sum())
    live = np.flatnonzero(np.ptp(codes(model).numpy(), axis=0) > 0)[:3]
    with torch.no_grad():
        model.encoder[-1].bias[live] = -100.0
    assert model.dead_units(X) == before + 3
    assert model.remarks(X, None) == [
        f"{before + 3} of {CODE} code values are dead: the same on all of 600 validation rows"
    ]


def test_remarks_look_at_some_of_many_rows_evenly(monkeypatch):
    model = build("l1", weight=0.1)
    monkeypatch.setattr(base, "PIECE", 250)
    dead = int((np.ptp(codes(model).numpy()[::3], axis=0) == 0).sum())
    assert model.remarks(X, None) == [f"{dead} of {CODE} code values are dead: the same on all of 200 validation rows"]


WEIGHT = r"expects a finite number of 0 or more; set `weight: 0\.1`"
TARGET = r"expects a number between 0 and 1; set `target: 0\.1`"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("l1", None, -0.1), rf"weight is -0\.1; l1 sparsity {WEIGHT}"),
        (("l1", None, None), rf"weight is None; l1 sparsity {WEIGHT}"),
        (("l1", 0.1, 0.1), r"target is 0\.1; l1 sparsity has none; set `target: null`"),
        (("kl", 0.0, 1.0), rf"target is 0\.0; kl sparsity {TARGET}"),
        (("kl", 1.0, -1.0), rf"target is 1\.0; kl sparsity {TARGET}.*; weight is -1\.0; kl sparsity {WEIGHT}"),
        (("top-k", None, None), rf"target is None; top-k sparsity {TARGET}"),
        (("top-k", 0.1, 0.1), r"weight is 0\.1; top-k sparsity has none; set `weight: null`"),
        (("topk", 0.1, None), r"option 'sparsity' is 'topk': input should be 'l1', 'kl' or 'top-k'"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        spec(*options).build()
