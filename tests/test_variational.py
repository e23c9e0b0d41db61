"""The loss is the evidence lower bound, and on linear data it reaches the likelihood itself."""

import functools
import math

import numpy as np
import pytest
import torch
from sklearn import decomposition
from torch import distributions

import samples
from sevenfold.models.base import ModelSpec
from sevenfold.models.variational import kl_divergence

FACTORS, SIZE = 3, 10


def build(**options):
    torch.manual_seed(0)
    settings = {
        "code": FACTORS,
        "hidden": [],
        "activation": "linear",
        "warmup": 0.0,
        "free_bits": 0.0,
        "numbers": "standard",
        "categories": "one-hot",
    }
    return ModelSpec("variational", (SIZE,), settings | options).build()


def rows(count, seed):
    """Normal factors, mixed linearly, with the same noise on every column: what probabilistic PCA assumes."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, FACTORS)) @ np.random.default_rng(0).normal(size=(FACTORS, SIZE))
    return samples.split(5 + 3 * (x + 0.4 * generator.normal(size=x.shape)))


@functools.cache
def trained():
    options = {
        "code": FACTORS,
        "hidden": [],
        "activation": "linear",
        "warmup": 0.2,
        "free_bits": 0.0,
        "numbers": "standard",
        "categories": "one-hot",
    }
    spec = ModelSpec("variational", (SIZE,), options)
    settings = samples.training.Settings(60, 60, 64, 0.02, 0.05, 0.0, 1.0, 1)
    return samples.fit(spec, rows(2000, 1), rows(1000, 2), settings=settings)[0]


def test_the_divergence_is_that_of_torch_distributions():
    mean, logvar = 2 * torch.randn(50, 4), torch.randn(50, 4)
    posterior = distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)


@pytest.mark.parametrize("gaps", [False, True])
def test_the_losses_add_up_to_the_negative_bound_per_observed_cell(gaps):
    model = build(hidden=[7], activation="tanh")
    x = torch.from_numpy(rows(300, 1).x)
    seen = torch.rand(x.shape) > 0.3 * gaps
    model.prepare(x, seen if gaps else None)
    model.variance.fill_(0.3)
    model.eval()
    with torch.inference_mode():
        mean, logvar = model.posterior(x, seen)
        posterior = distributions.Normal(mean, torch.exp(0.5 * logvar))
        z = mean + posterior.stddev * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
        spread = model.cells.numbers.spread
        likelihood = distributions.Normal(model.decode(z), spread * math.sqrt(0.3)).log_prob(x) + spread.log()
        kl = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0))
        bound = ((likelihood * seen).sum() - kl.sum()) / seen.sum()
        losses = model.losses(x, seen if gaps else None)
    assert float(sum(losses.values())) == pytest.approx(-float(bound), rel=1e-4)


def test_on_linear_data_the_bound_reaches_the_likelihood_of_probabilistic_pca():
    model, test = trained(), rows(4000, 3)
    oracle = decomposition.PCA(FACTORS).fit(rows(2000, 1).x)
    likelihood = oracle.score(test.x)  # nats per sample, in the units of x
    with torch.inference_mode():
        loss = float(sum(model.losses(torch.from_numpy(test.x), None).values()))
    bound = -SIZE * (loss + math.log(model.cells.numbers.spread))
    assert likelihood < -10  # far from 0, where a share of it would say nothing
    assert bound == pytest.approx(likelihood, rel=0.01)
    # The decoder's variance is that of the noise.
    noise = float(model.variance * model.cells.numbers.spread.square())
    assert noise == pytest.approx(oracle.noise_variance_, rel=0.05)
    assert noise == pytest.approx((3 * 0.4) ** 2, rel=0.05)


def test_units_are_active_whose_means_vary_by_more_than_a_hundredth():
    model, x = build(), torch.from_numpy(rows(1000, 1).x)
    model.prepare(x, None)
    standard = model.cells.numbers(x)
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
        # Means of variance .009, .011 and 4: the first lies unused, however large its bias.
        for unit, variance in enumerate([0.009, 0.011, 4.0]):
            model.encoder[-1].weight[unit, 2] = math.sqrt(variance) / standard[:, 2].std()
        model.encoder[-1].bias.fill_(7)
    assert model.active_units(x) == 2
    assert model.remarks(x, None) == [
        "2 of 3 code values are active: their mean's variance over 1000 validation rows is above 0.01"
    ]
    assert trained().active_units(x) == FACTORS
    assert trained().active_units(x[:1].expand(20, -1)) == 0
    assert trained().active_units(x[:1]) == 0


def test_the_divergence_warms_up_in_training_only():
    model = build(warmup=0.4)
    x = torch.from_numpy(rows(100, 1).x)
    model.prepare(x, None)
    whole = model.train().losses(x, None)["kl"].item()
    for progress, share in [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.7, 1.0)]:
        model.progress.fill_(progress)
        assert model.train().losses(x, None)["kl"].item() == pytest.approx(share * whole)
        assert model.eval().losses(x, None)["kl"].item() == pytest.approx(whole)


def test_free_bits_cost_the_same_whether_they_are_used_or_not():
    x = torch.from_numpy(rows(100, 1).x)
    model = build(free_bits=0.5)
    model.prepare(x, None)
    last = model.encoder[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()  # the posterior is the prior
        assert model.train().losses(x, None)["kl"].item() == pytest.approx(FACTORS * 0.5 * math.log(2) / SIZE)
        assert model.eval().losses(x, None)["kl"].item() == 0
        last.bias[0] = 2.0  # this unit's mean is 2: 2 nats
        expected = (2 + (FACTORS - 1) * 0.5 * math.log(2)) / SIZE
        assert model.train().losses(x, None)["kl"].item() == pytest.approx(expected)
        assert model.eval().losses(x, None)["kl"].item() == pytest.approx(2 / SIZE)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_an_impossible_warmup_is_refused(value):
    with pytest.raises(ValueError, match=rf"warmup is {value}; expected 0 to 1, a share of the training; give 0"):
        build(warmup=value)


def test_impossible_free_bits_are_refused():
    with pytest.raises(ValueError, match=r"free_bits is -0.1; expected 0 or more bits per code value; give 0"):
        build(free_bits=-0.1)
