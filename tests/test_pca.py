"""The closed form is scikit-learn's, up to the sign of a component."""

import numpy as np
import pytest
import torch
from sklearn import decomposition

import samples
from sevenfold.models import pca
from sevenfold.models.base import ModelSpec


def data(rows, size, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, size)) * np.geomspace(5, 0.5, size) + generator.normal(size=size)
    return (x @ generator.normal(size=(size, size))).astype(np.float32)


def fitted(x, code, observed=None):
    model = ModelSpec("pca", x.shape[1:], {"code": code}).build()
    model.prepare(torch.from_numpy(x), None if observed is None else torch.from_numpy(observed))
    return model.eval()


def same_up_to_sign(ours, theirs, atol=1e-3):
    signs = np.sign((np.asarray(ours) * theirs).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(ours, signs * theirs, atol=atol)


@pytest.mark.parametrize(("rows", "size"), [(300, 12), (20, 60)], ids=["tall", "wide"])
def test_components_codes_and_errors_are_scikit_learns(rows, size):
    x, fresh = data(rows, size), data(50, size)
    oracle = decomposition.PCA(5, svd_solver="full").fit(x)
    model = fitted(x, 5)
    same_up_to_sign(model.components, oracle.components_)
    same_up_to_sign(model.encode(torch.from_numpy(fresh)).T, oracle.transform(fresh).T, atol=1e-2)
    ours = model(torch.from_numpy(fresh)).numpy()
    np.testing.assert_allclose(ours, oracle.inverse_transform(oracle.transform(fresh)), atol=1e-2)
    loss = float(model.losses(torch.from_numpy(x), None)["reconstruction"])
    lost = oracle.inverse_transform(oracle.transform(x)) - x
    assert loss == pytest.approx(float((lost**2).mean()), rel=1e-3)


def wide(rows, seed=0):
    """Rows of 1,500 values, of which six directions stand out from noise."""
    size = pca.WIDE + 500
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(size, 6)))[0] * np.geomspace(60, 20, 6)
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 6)) @ directions.T + generator.normal(size=(rows, size)) + generator.normal()
    return x.astype(np.float32)


@pytest.mark.parametrize("gaps", [False, True])
def test_wide_samples_have_scikit_learns_components_by_random_projection_too(gaps, monkeypatch):
    monkeypatch.setattr(pca, "_exact", None)  # the way that is not taken
    x, fresh = wide(400), wide(100, seed=1)
    seen = np.random.default_rng(1).random(x.shape) > 0.1 * gaps
    filled = np.where(seen, x, np.ma.masked_array(x, ~seen).mean(axis=0)).astype(np.float32)
    oracle = decomposition.PCA(5, svd_solver="full").fit(filled)
    torch.manual_seed(0)
    model = fitted(np.where(seen, x, np.float32(99)), 5, seen if gaps else None)
    same_up_to_sign(model.components, oracle.components_, atol=2e-4)
    ours = model(torch.from_numpy(fresh)).numpy()
    np.testing.assert_allclose(ours, oracle.inverse_transform(oracle.transform(fresh)), atol=2e-2)


def test_a_code_that_is_no_small_part_of_wide_samples_is_found_exactly(monkeypatch):
    monkeypatch.setattr(pca, "_projected", None)
    fitted(wide(30), 5)  # so few rows have few components
    fitted(np.zeros((20, 12), np.float32), 5)


def test_with_gaps_the_covariance_is_that_of_the_observed_pairs():
    x = data(200, 8)
    seen = np.random.default_rng(1).random(x.shape) > 0.2
    # numpy's masked covariance counts the pairs as we do.
    covariance = np.ma.cov(np.ma.masked_array(x, ~seen).astype(float), rowvar=False)
    values, vectors = np.linalg.eigh(covariance.filled())
    model = fitted(np.where(seen, x, np.float32(0)), 3, seen)
    same_up_to_sign(model.components, vectors.T[np.argsort(-values)[:3]])
    np.testing.assert_allclose(model.mean, np.ma.masked_array(x, ~seen).mean(axis=0), rtol=1e-4)


def test_what_fills_a_gap_does_not_matter():
    x = data(200, 8)
    seen = np.random.default_rng(1).random(x.shape) > 0.2
    one = fitted(np.where(seen, x, np.float32(0)), 3, seen)
    two = fitted(np.where(seen, x, np.float32(99)), 3, seen)
    torch.testing.assert_close(one.components, two.components)
    torch.testing.assert_close(one.mean, two.mean)


def test_a_code_as_long_as_the_sample_loses_nothing():
    x = data(100, 6)
    torch.testing.assert_close(fitted(x, 6)(torch.from_numpy(x)), torch.from_numpy(x), rtol=1e-4, atol=1e-4)


def test_the_sign_of_a_component_is_settled():
    components = fitted(data(100, 6), 4).components
    assert all(row[row.abs().argmax()] > 0 for row in components)


def test_an_infinite_loss_is_told_though_nothing_is_trained():
    x = np.random.default_rng(0).normal(size=(20, 4)) * 1e30
    message = r"loss term 'reconstruction' is (inf|nan) in closed form; expected a finite number; .*extreme values"
    with pytest.raises(ArithmeticError, match=message):
        samples.fit(ModelSpec("pca", (4,), {"code": 2}), samples.split(x), samples.split(x))
