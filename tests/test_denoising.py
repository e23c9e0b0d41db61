"""The noise is what the options say, the target is the clean sample, and the model removes noise."""

import typing
from dataclasses import replace

import numpy as np
import pytest
import torch

import samples
from sevenfold.layouts import Field, Layout
from sevenfold.models import denoising
from sevenfold.models.base import ModelSpec

X = torch.randn(4000, 6) * torch.tensor([1.0, 2, 3, 4, 5, 6]) + 10

COLUMNS = {"numbers": "standard", "categories": "one-hot"}
NOISES = typing.get_args(denoising.Noise)


def model(noise, level, x=X, **options):
    settings = {
        "code": 3,
        "hidden": [],
        "activation": "linear",
        "noise": noise,
        "level": level,
        "numbers": "standard",
        "categories": "one-hot",
    } | options
    torch.manual_seed(0)
    layout = Layout((x.shape[1],), (Field(1, False),) * x.shape[1])
    built = ModelSpec.of("denoising", layout, settings).build()
    built.prepare(x, None)
    return built


def test_gaussian_noise_has_the_stated_deviation():
    noise = (model("gaussian", 0.3).corrupt(X, None) - X).double()
    spread = float((X - X.mean(dim=0)).square().mean().sqrt())
    assert float(noise.std()) == pytest.approx(0.3 * spread, rel=0.02)
    assert noise.mean(dim=0).abs().max() < 4 * 0.3 * spread / np.sqrt(len(X))
    off_diagonal = torch.corrcoef(noise.T) - torch.eye(6)
    assert off_diagonal.abs().max() < 4 / np.sqrt(len(X))  # each cell has noise of its own
    torch.testing.assert_close(noise.std(dim=0), torch.full((6,), 0.3 * spread).double(), rtol=0.06, atol=0)


def test_masking_sets_the_stated_share_of_cells_to_the_mean():
    damaged = model("masking", 0.3).corrupt(X, None)
    masked = damaged != X
    assert float(masked.double().mean()) == pytest.approx(0.3, abs=0.012)
    torch.testing.assert_close(damaged[masked], X.mean(dim=0).expand_as(X)[masked])


def test_salt_and_pepper_are_the_extremes_of_the_column_in_even_parts():
    damaged = model("salt-and-pepper", 0.3).corrupt(X, None)
    hit = damaged != X
    assert float(hit.double().mean()) == pytest.approx(0.3, abs=0.012)
    low, high = X.amin(dim=0).expand_as(X), X.amax(dim=0).expand_as(X)
    assert ((damaged == low) | (damaged == high))[hit].all()
    assert float((damaged == high)[hit].double().mean()) == pytest.approx(0.5, abs=0.02)


def test_salt_and_pepper_of_an_image_are_its_darkest_and_brightest():
    images = torch.rand(200, 1, 3, 4) * torch.linspace(0, 1, 4)  # each column of pixels has extremes of its own
    options = {"code": 3, "hidden": [], "activation": "linear", "noise": "salt-and-pepper", "level": 0.5} | COLUMNS
    built = ModelSpec("denoising", (1, 3, 4), options).build()
    built.prepare(images, None)
    damaged = built.corrupt(images, None)
    assert set(damaged[damaged != images].unique().tolist()) == {float(images.min()), float(images.max())}


def test_swapped_cells_have_values_of_their_own_column_from_other_rows():
    damaged = model("swap", 0.3).corrupt(X, None)
    hit = damaged != X
    assert float(hit.double().mean()) == pytest.approx(0.3, abs=0.012)
    for column in range(6):
        assert set(damaged[:, column].tolist()) <= set(X[:, column].tolist())
    # Each column is dealt by itself: a row's swapped cells come from different rows.
    place = {float(v): i for i, v in enumerate(X.flatten())}
    both = (hit[:, 0] & hit[:, 1]).nonzero().flatten()
    donors = [(place[float(damaged[i, 0])] // 6, place[float(damaged[i, 1])] // 6) for i in both]
    assert np.mean([one == other for one, other in donors]) < 0.01


MIXED = Layout((5,), (Field(1, True), Field(3, True), Field(1, False)))


def mixed(count=3000):
    """Rows of two numbers with a category of three between them, some cells missing."""
    x = torch.zeros(count, 5)
    x[:, 0], x[:, 4] = torch.randn(count), 3 + torch.rand(count)
    x[torch.arange(count), 1 + torch.randint(3, (count,))] = 1
    seen = torch.ones(count, 5, dtype=torch.bool)
    seen[:, 0], seen[:, 1:4] = torch.rand(count) > 0.2, (torch.rand(count) > 0.3)[:, None]
    return x * seen, seen


@pytest.mark.parametrize("noise", NOISES)
def test_a_category_is_damaged_as_a_whole_and_a_gap_stays_one(noise):
    x, seen = mixed()
    options = {"code": 3, "hidden": [], "activation": "linear", "noise": noise, "level": 0.4} | COLUMNS
    built = ModelSpec.of("denoising", MIXED, options).build()
    built.prepare(x, seen)
    damaged = built.corrupt(x, seen)
    category, before = damaged[:, 1:4], x[:, 1:4]
    assert set(category.sum(dim=1).tolist()) <= {0.0, 1.0}
    assert set(category.unique().tolist()) <= {0.0, 1.0}
    if noise != "gaussian":
        assert torch.equal(damaged[~seen], x[~seen])
    changed = float((category != before).any(dim=1)[seen[:, 1]].double().mean())
    # A third of what is drawn from three categories is what was there; a donor may be a gap, which gives nothing.
    expected = {"gaussian": 0.0, "masking": 0.4, "salt-and-pepper": 0.4 * 2 / 3, "swap": 0.4 * 0.7 * 2 / 3}[noise]
    assert changed == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("noise", NOISES)
def test_the_target_is_clean_in_training_and_nothing_is_damaged_in_eval(noise):
    built = model(noise, 0.5)
    before = X.clone()
    for training in (True, False):
        built.train(training)
        torch.manual_seed(3)
        loss = built.losses(X, None)["reconstruction"].item()
        torch.manual_seed(3)
        given = built.corrupt(X, None) if training else X
        expected = (built(given) - X).square().mean() / (X - X.mean(dim=0)).square().mean()
        assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert torch.equal(X, before)


@pytest.mark.parametrize("noise", NOISES)
def test_a_level_of_nothing_damages_nothing(noise):
    assert torch.equal(model(noise, 0.0).corrupt(X, None), X)


def test_it_removes_noise():
    generator = np.random.default_rng(0)
    clean = (generator.normal(size=(600, 3)) @ generator.normal(size=(3, 20))).astype(np.float32)
    options = {
        "code": 3,
        "hidden": [],
        "activation": "linear",
        "noise": "gaussian",
        "level": 0.3,
        "numbers": "standard",
        "categories": "one-hot",
    }
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
    [("gaussian", -0.1), ("masking", -0.1), ("masking", 1.0), ("swap", 1.0), ("salt-and-pepper", 1.5)],
)
def test_an_impossible_level_is_refused(noise, level):
    with pytest.raises(ValueError, match=rf"level is {level}; expected 0 or more, and below 1 for all but gaussian"):
        model(noise, level)


def test_an_unknown_noise_is_named():
    with pytest.raises(
        ValueError,
        match=r"option 'noise' is 'salt': input should be 'gaussian', 'masking', 'salt-and-pepper' or 'swap'",
    ):
        model("salt", 0.1)
