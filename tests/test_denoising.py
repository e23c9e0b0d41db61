"""The noise is what the options say, the target is the clean sample, and the model removes noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import samples
from sevenfold.models.base import ModelSpec

X = torch.randn(4000, 6) * torch.tensor([1.0, 2, 3, 4, 5, 6]) + 10


def model(noise, level, x=X, **options):
    settings = {"code": 3, "hidden": [], "activation": "linear", "noise": noise, "level": level} | options
    torch.manual_seed(0)
    built = ModelSpec("denoising", (x.shape[1],), settings).build()
    built.prepare(x, None)
    return built


def test_gaussian_noise_has_the_stated_deviation():
    noise = (model("gaussian", 0.3).corrupt(X) - X).double()
    spread = float((X - X.mean(dim=0)).square().mean().sqrt())
    assert float(noise.std()) == pytest.approx(0.3 * spread, rel=0.02)
    assert noise.mean(dim=0).abs().max() < 4 * 0.3 * spread / np.sqrt(len(X))
    off_diagonal = torch.corrcoef(noise.T) - torch.eye(6)
    assert off_diagonal.abs().max() < 4 / np.sqrt(len(X))  # each cell has noise of its own
    torch.testing.assert_close(noise.std(dim=0), torch.full((6,), 0.3 * spread).double(), rtol=0.06, atol=0)


def test_masking_sets_the_stated_share_of_cells_to_the_mean():
    damaged = model("masking", 0.3).corrupt(X)
    masked = damaged != X
    assert float(masked.double().mean()) == pytest.approx(0.3, abs=0.012)
    assert torch.equal(damaged[masked], X.mean(dim=0).expand_as(X)[masked])


@pytest.mark.parametrize("noise", ["gaussian", "masking"])
def test_the_target_is_clean_in_training_and_nothing_is_damaged_in_eval(noise):
    built = model(noise, 0.5)
    before = X.clone()
    for training in (True, False):
        built.train(training)
        torch.manual_seed(3)
        loss = built.losses(X, None)["reconstruction"].item()
        torch.manual_seed(3)
        given = built.corrupt(X) if training else X
        expected = (built(given) - X).square().mean() / (X - X.mean(dim=0)).square().mean()
        assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert torch.equal(X, before)


@pytest.mark.parametrize("noise", ["gaussian", "masking"])
def test_a_level_of_nothing_damages_nothing(noise):
    assert torch.equal(model(noise, 0.0).corrupt(X), X)


def test_it_removes_noise():
    generator = np.random.default_rng(0)
    clean = (generator.normal(size=(600, 3)) @ generator.normal(size=(3, 20))).astype(np.float32)
    options = {"code": 3, "hidden": [], "activation": "linear", "noise": "gaussian", "level": 0.3}
    train, validation = samples.split(clean[:400]), samples.split(clean[400:])
    settings = replace(samples.SETTINGS, epochs=60)
    trained, _ = samples.fit(ModelSpec("denoising", (20,), options), train, validation, settings=settings)
    noisy = clean[400:] + (0.3 * clean.std() * generator.normal(size=(200, 20))).astype(np.float32)
    with torch.inference_mode():
        restored = trained(torch.from_numpy(noisy)).numpy()
    # 3 of 20 directions hold the sample: 85 % of the noise can go.
    assert ((restored - clean[400:]) ** 2).mean() < 0.25 * ((noisy - clean[400:]) ** 2).mean()


@pytest.mark.parametrize(
    ("noise", "level"),
    [("gaussian", -0.1), ("masking", -0.1), ("masking", 1.0), ("gaussian", float("nan")), ("gaussian", float("inf"))],
)
def test_an_impossible_level_is_refused(noise, level):
    with pytest.raises(ValueError, match=rf"level is {level}; expected 0 or more, and below 1 for masking noise"):
        model(noise, level)


def test_an_unknown_noise_is_named():
    with pytest.raises(ValueError, match=r"option 'noise' is 'salt': input should be 'gaussian' or 'masking'"):
        model("salt", 0.1)
