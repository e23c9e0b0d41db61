"""The code is a set of whole, different features: at any time, and the best ones where they are known."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import samples
from sevenfold.models import concrete
from sevenfold.models.base import ModelSpec

PLANTED = [1, 4, 6, 10]
FOLLOWERS = [0, 2, 3, 5, 7, 8, 9, 11]
SIZE = 15
OPTIONS = {
    "code": 4,
    "hidden": [],
    "activation": "linear",
    "first_temperature": 1.0,
    "last_temperature": 0.1,
    "overlap": 1.0,
    "indecision": 0.5,
    "numbers": "standard",
}


def build(**options):
    torch.manual_seed(0)
    return ModelSpec("concrete", (SIZE,), OPTIONS | options).build()


def rows(count, seed):
    """Four independent columns, two followers of each with noise of their own, and three columns of noise alone."""
    x = np.random.default_rng(seed).normal(size=(count, SIZE))
    x[:, FOLLOWERS] = 0.8 * x[:, PLANTED * 2] + 0.6 * x[:, FOLLOWERS]
    return samples.split(20 + 3 * x)


@functools.cache
def trained(seed):
    settings = replace(samples.SETTINGS, epochs=80, patience=80)
    return samples.fit(
        ModelSpec("concrete", (SIZE,), OPTIONS), rows(600, 1), rows(300, 2), seed=seed, settings=settings
    )


def residual(x, chosen):
    """The squared error that is left when all columns are predicted from the chosen ones by least squares."""
    centred = x - x.mean(axis=0)
    coefficients = np.linalg.lstsq(centred[:, chosen], centred, rcond=None)[0]
    return ((centred[:, chosen] @ coefficients - centred) ** 2).sum()


def set_logits(model, values):
    with torch.no_grad():
        model.weights.copy_(torch.as_tensor(values))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_planted_features_which_are_the_best_of_all_subsets(seed):
    model, _ = trained(seed)
    x = rows(600, 1).x.astype(float)
    best = min(itertools.combinations(range(SIZE), 4), key=lambda chosen: residual(x, list(chosen)))
    assert sorted(model.selected.tolist()) == list(best) == PLANTED


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_ends_certain_and_its_likeliest_features_all_differ(seed):
    model, history = trained(seed)
    assert model.certainty() >= 0.99
    assert model.weights.argmax(dim=1).tolist() == model.selected.tolist()
    assert len(set(model.selected.tolist())) == OPTIONS["code"]
    # Not the weights of an epoch before temperatures that make choices.
    assert history.best.number > 40


def test_the_code_holds_the_values_of_the_selected_features_unchanged():
    model, _ = trained(0)
    x = torch.from_numpy(rows(50, 3).x)
    assert torch.equal(model.encode(x), x[:, model.selected])
    image = ModelSpec("concrete", (1, 3, 5), OPTIONS).build().eval()
    pictures = torch.randn(5, 1, 3, 5)
    assert torch.equal(image.encode(pictures), pictures.reshape(5, SIZE)[:, image.selected])


def test_the_restored_error_is_near_that_of_least_squares():
    model, _ = trained(0)
    x, test = rows(600, 1).x.astype(float), rows(300, 3).x
    mean = x.mean(axis=0)
    coefficients = np.linalg.lstsq((x - mean)[:, PLANTED], x - mean, rcond=None)[0]
    oracle = (((test - mean)[:, PLANTED] @ coefficients - (test - mean)) ** 2).mean()
    with torch.inference_mode():
        error = (model(torch.from_numpy(test)) - torch.from_numpy(test)).square().mean()
    assert float(error) == pytest.approx(oracle, rel=0.05)


def test_weights_that_have_not_decided_yet_select_whole_and_different_features():
    # As if training had gone back to an early epoch, in which all code values wanted the same.
    model = build(overlap=0.0, indecision=0.0).eval()
    state = model.state_dict()
    model.load_state_dict(state | {"weights": state["weights"][:1].repeat(OPTIONS["code"], 1)})
    assert model.certainty() < 0.5
    assert len(set(model.weights.argmax(dim=1).tolist())) == 1
    assert len(set(model.selected.tolist())) == OPTIONS["code"]
    x = torch.from_numpy(rows(50, 3).x)
    assert torch.equal(model.encode(x), x[:, model.selected])


def test_a_feature_that_several_want_goes_where_the_whole_choice_is_likeliest():
    model = build(code=3)
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.normal(size=(3, SIZE))
        scores[:, 5] += 3  # all want it
        set_logits(model, scores)
        best = max(itertools.permutations(range(SIZE), 3), key=lambda chosen: scores[range(3), chosen].sum())
        assert model.selected.tolist() == list(best)


def test_remarks_name_the_selection_and_how_sure_it_is():
    model = build(code=3).eval()
    scores = np.full((3, SIZE), -10.0)
    # The first and the last want 4; the first has 7 as a second choice of a third of the probability.
    scores[0, [4, 7]] = np.log([0.75, 0.25]) / concrete.SCALE
    scores[1, 2] = scores[2, 4] = 0
    set_logits(model, scores)
    assert model.remarks(torch.from_numpy(rows(20, 3).x), None) == [
        "values of a sample that are selected, by position from 0: 7, 2, 4",
        f"the likeliest choice of a code value has a probability of {2.75 / 3:.3f} on average; "
        "2 of 3 likeliest choices are different",
    ]
    assert "; 4 of 4 likeliest choices are different" in trained(0)[0].remarks(torch.zeros(1, SIZE), None)[1]


def test_overlap_and_indecision_are_penalised_as_stated():
    model = build(code=2, overlap=3.0, indecision=0.5)
    x = torch.from_numpy(rows(50, 1).x)
    certain = np.full((2, SIZE), -10.0)
    certain[[0, 1], [4, 7]] = 10
    set_logits(model, certain)
    losses = model.eval().losses(x, None)
    assert losses["overlap"].item() == pytest.approx(0, abs=1e-6)
    assert losses["indecision"].item() == pytest.approx(0, abs=1e-6)
    set_logits(model, certain[[0, 0]])  # one of the two code values is too many
    assert model.losses(x, None)["overlap"].item() == pytest.approx(3.0 / 2)
    # Between two features each, with a quarter and three quarters: the rest is the entropy's share of the largest.
    split = np.full((2, SIZE), -100.0)
    split[0, [4, 5]] = split[1, [7, 8]] = np.log([0.25, 0.75]) / concrete.SCALE
    set_logits(model, split)
    share = stats.entropy([0.25, 0.75]) / np.log(SIZE)
    for training, progress, weight in [(False, 0.2, 0.5), (True, 0.0, -0.5), (True, 0.5, 0.0), (True, 1.0, 0.5)]:
        model.train(training)
        model.progress.fill_(progress)
        losses = model.losses(x, None)
        assert losses["indecision"].item() == pytest.approx(weight * share, abs=1e-6)
        assert losses["overlap"].item() == 0


def test_a_mixture_is_even_while_hot_and_a_draw_by_probability_when_cold():
    model = build(code=1, first_temperature=1000.0, last_temperature=0.001)
    wanted = np.random.default_rng(0).dirichlet(np.ones(SIZE))
    set_logits(model, np.log(wanted)[None] / concrete.SCALE)
    model.progress.fill_(0.0)
    torch.testing.assert_close(model._mixture(), torch.full((1, SIZE), 1 / SIZE), atol=0.005, rtol=0)
    model.progress.fill_(1.0)
    draws = torch.cat([model._mixture().detach() for _ in range(4000)])
    assert (draws.amax(dim=1) > 0.99).float().mean() > 0.98
    np.testing.assert_allclose(draws.mean(dim=0), wanted, atol=4 * np.sqrt(0.25 / 4000))


@pytest.mark.parametrize(("first", "last"), [(1.0, 2.0), (1.0, 0.0), (-1.0, -2.0)])
def test_impossible_temperatures_are_refused(first, last):
    message = (
        rf"first_temperature is {first} and last_temperature {last}; expected numbers above 0, .* for example 1 and"
    )
    with pytest.raises(ValueError, match=message):
        build(first_temperature=first, last_temperature=last)


@pytest.mark.parametrize("name", ["overlap", "indecision"])
def test_impossible_weights_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is -0.1; expected a weight of 0 or more; give 0 for no penalty"):
        build(**{name: -0.1})
