"""Hidden cells are learned from the others, known ones stay, and what stands in a gap is not looked at."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import linear_model

import samples
from sevenfold.layouts import Field, Layout
from sevenfold.models.base import ModelSpec

OPTIONS = {
    "code": 16,
    "hidden": [64],
    "activation": "silu",
    "blocks": 0,
    "bins": 0,
    "share": 0.2,
    "visible": 0.1,
    "numbers": "standard",
    "categories": "one-hot",
}
NUMBERS = Layout((6,), (Field(1, True),) * 6)
MIXED = Layout((5,), (Field(1, True), Field(3, True), Field(1, False)))


def build(layout=NUMBERS, **options):
    torch.manual_seed(0)
    return ModelSpec.of("masked", layout, OPTIONS | options).build()


def planted(count, seed, share=0.2):
    """Five numbers, of which the first is a linear function of the others but for noise, and gaps at random."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 6))
    x[:, 0] = x[:, 1:] @ [0.8, -0.5, 0.3, 0.0, 0.2] + 0.3 * generator.normal(size=count)
    seen = generator.random(x.shape) > share
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(seen)


@functools.cache
def trained():
    parts = [planted(4000, 0), planted(1000, 1)]
    splits = [samples.split((x * seen).numpy(), observed=seen.numpy()) for x, seen in parts]
    settings = replace(samples.SETTINGS, epochs=60, patience=60, batch_size=64)
    return samples.fit(ModelSpec.of("masked", NUMBERS, OPTIONS), *splits, settings=settings)[0]


def test_a_planted_linear_relation_is_recovered_within_a_tenth_of_least_squares():
    x, _ = planted(4000, 0)
    test, _ = planted(3000, 2)
    least_squares = linear_model.LinearRegression().fit(x[:, 1:], x[:, 0])  # it even had rows without any gap
    best = np.sqrt(((least_squares.predict(test[:, 1:]) - test[:, 0].numpy()) ** 2).mean())
    seen = torch.ones(test.shape, dtype=torch.bool)
    seen[:, 0] = False
    model = trained()
    with torch.inference_mode():
        filled = model.impute(test * seen, seen)
    error = float((filled[:, 0] - test[:, 0]).square().mean().sqrt())
    assert best * 0.99 < error < best * 1.1


def test_cells_that_were_observed_come_back_unchanged():
    x, seen = planted(500, 3)
    model = trained()
    with torch.inference_mode():
        filled = model.impute(x * seen, seen)
    assert torch.equal(filled[seen], x[seen])
    assert torch.equal(model.impute(x, None), x)  # nothing is missing
    assert torch.isfinite(filled).all()
    assert (filled[~seen] != 0).all()


def test_what_stands_in_a_gap_does_not_matter():
    x, seen = planted(500, 3)
    model = trained()
    with torch.inference_mode():
        one, other = (model.impute(torch.where(seen, x, value), seen) for value in (0.0, 1e3))
    assert torch.equal(one[~seen], other[~seen])


def test_a_gap_and_a_value_of_nothing_are_told_apart():
    x, seen = torch.zeros(1, 6), torch.ones(1, 6, dtype=torch.bool)
    gap = seen.clone()
    gap[0, 3] = False
    assert not torch.equal(trained().encode(x, seen), trained().encode(x, gap))
    assert torch.equal(trained().encode(x, seen), trained().encode(x, None))


def test_a_share_of_the_columns_is_hidden_at_random_and_as_a_whole():
    model = build(MIXED, share=0.2).train()
    hidden = model.hide(torch.ones(20000, 5, dtype=torch.bool))
    assert float(hidden[:, [0, 1, 4]].double().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(hidden[:, 1], hidden[:, 2])
    assert torch.equal(hidden[:, 1], hidden[:, 3])
    both = float((hidden[:, 0] & hidden[:, 4]).double().mean())
    assert both == pytest.approx((2 * 0.2) ** 2 / 3, abs=0.01)  # the mean square of an even share from 0 to 0.4


def test_patterns_of_other_rows_are_hidden_too():
    model = build(share=1e-9).train()
    known = torch.ones(4000, 6, dtype=torch.bool)
    known[:1000, 2:5] = False  # a quarter of the rows lacks just these three
    hidden = model.hide(known)
    patterns, counts = hidden.unique(dim=0, return_counts=True)
    assert {tuple(p.tolist()) for p in patterns} == {(False,) * 6, (False, False, True, True, True, False)}
    assert counts.tolist() == [3000, 1000]
    assert not torch.equal(hidden, ~known)  # not each row's own


def test_only_known_cells_count_and_hidden_ones_by_weight():
    x, seen = planted(300, 4)
    model = build(visible=0.25).eval()
    model.prepare(x * seen, seen)
    hidden = model.hide(seen)
    with torch.inference_mode():
        output = model.decode(model.encode(x, seen & ~hidden))
        error = ((output - x) / model.cells.numbers.spread).square().numpy()
        expected = error[(seen & hidden).numpy()].mean() + 0.25 * error[(seen & ~hidden).numpy()].mean()
        assert model.losses(x * seen, seen)["reconstruction"].item() == pytest.approx(expected, rel=1e-4)
        assert model.losses(torch.where(seen, x, 1e3), seen)["reconstruction"].item() == pytest.approx(
            expected, rel=1e-4
        )


def test_eval_mode_hides_the_same_cells_every_time_and_training_others():
    model = build()
    known = torch.rand(100, 6) > 0.2
    assert torch.equal(model.eval().hide(known), model.eval().hide(known))
    assert not torch.equal(model.train().hide(known), model.train().hide(known))


def test_a_category_is_filled_with_one_category():
    generator = np.random.default_rng(0)

    def rows(count):
        factor = generator.normal(size=count)
        x = np.zeros((count, 5), np.float32)
        x[:, 0], x[:, 4] = factor, -factor
        x[np.arange(count), 1 + np.digitize(factor, [-0.5, 0.5])] = 1
        return x

    settings = replace(samples.SETTINGS, epochs=30)
    spec = ModelSpec.of("masked", MIXED, OPTIONS)
    model, _ = samples.fit(spec, samples.split(rows(1500)), samples.split(rows(300)), settings=settings)
    x = torch.from_numpy(rows(500))
    seen = torch.ones(x.shape, dtype=torch.bool)
    seen[:, 1:4] = False
    with torch.inference_mode():
        filled = model.impute(x * seen, seen)[:, 1:4]
    assert torch.equal(filled.sort(dim=1).values, torch.tensor([0.0, 0.0, 1.0]).expand(500, -1))
    assert (filled.argmax(dim=1) == x[:, 1:4].argmax(dim=1)).double().mean() > 0.9


def test_impossible_options_are_named_at_once():
    with pytest.raises(ValueError, match=r"share is 0.6; expected .* at most 0.5.*; visible is -1.0; expected"):
        build(share=0.6, visible=-1.0)
    with pytest.raises(ValueError, match=r"share is 0.0; expected more than 0"):
        build(share=0.0)
    with pytest.raises(ValueError, match=r"bins is -1; expected 0 or more"):
        build(bins=-1)
    with pytest.raises(ValueError, match=r"blocks is -1; expected 0 or more"):
        build(blocks=-1)


def test_pieces_say_how_far_into_each_a_number_is_and_nothing_of_a_gap():
    x, seen = planted(2000, 5)
    model = build(bins=4, blocks=1).eval()
    model.prepare(torch.where(seen, x, 1e3), seen)
    pieces = model.pieces(x, seen).reshape(len(x), 6, 4)
    for column in range(6):
        have = seen[:, column].numpy()
        values = x[:, column].numpy()
        edges = np.quantile(values[have], [0, 0.25, 0.5, 0.75, 1])
        expected = np.stack([np.interp(values, edges[i : i + 2], [-1, 1]) for i in range(4)], axis=1)
        np.testing.assert_allclose(pieces[:, column], expected * have[:, None], atol=1e-4)


def test_pieces_of_a_column_of_few_values_are_the_steps_between_them():
    x = torch.tensor([0.0, 1.0, 5.0, 0.0, 0.0, 0.0])[:, None].repeat(1, 6)
    model = build(bins=2)
    model.prepare(x, None)
    assert torch.equal(model.pieces.edges, torch.tensor([0.0, 1.0, 5.0]).expand(6, 3))
    assert model.pieces(x[1:3], None).reshape(2, 6, 2)[:, 0].tolist() == [[1.0, -1.0], [1.0, 1.0]]


def test_numbers_enter_by_pieces_whatever_stands_beside_them():
    torch.manual_seed(0)
    x, seen = torch.randn(50, 5), torch.rand(50, 3) > 0.3
    x[:, 1:4] = torch.eye(3)[torch.arange(50) % 3]
    seen = seen[:, [0, 1, 1, 1, 2]]
    model = build(MIXED, bins=8).eval()
    model.prepare(x, seen)
    with torch.inference_mode():
        one, other = (model.encode(torch.where(seen, x, value), seen) for value in (0.0, 1e3))
        plain = build(MIXED, bins=0)
    assert torch.equal(one, other)
    assert model.encoder[0].in_features == plain.encoder[0].in_features + 2 * 8  # of the two numbers
