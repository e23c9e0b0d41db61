"""Columns of every kind enter a network and come out of it as they were."""

import numpy as np
import pytest
import torch
from sklearn import preprocessing
from torch.nn import functional

import samples
from sevenfold.cells import Cells, Quantiles
from sevenfold.layouts import Field, Layout
from sevenfold.models.base import ModelSpec

LAYOUT = Layout((9,), (Field(1, True), Field(4, True), Field(1, False), Field(2, False), Field(1, False)))
NUMBERS = [0, 5, 8]


def rows(count=400, gaps=True, seed=0):
    """Three numbers of different distributions, two categories, and gaps in the first two columns."""
    generator = np.random.default_rng(seed)
    x = np.zeros((count, 9), np.float32)
    x[:, 0], x[:, 5], x[:, 8] = (
        generator.lognormal(size=count) - 1.6,
        generator.normal(size=count),
        generator.uniform(-2, 2, count),
    )
    x[np.arange(count), 1 + generator.choice(4, count, p=[0.5, 0.3, 0.15, 0.05])] = 1
    x[np.arange(count), 6 + generator.integers(2, size=count)] = 1
    seen = np.ones((count, 9), bool)
    if gaps:
        seen[:, 0], seen[:, 1:5] = generator.random(count) > 0.2, (generator.random(count) > 0.3)[:, None]
    return torch.from_numpy(x * seen), torch.from_numpy(seen)


@pytest.fixture(params=["one-hot", "embedding"])
def categories(request):
    return request.param


@pytest.fixture(params=["standard", "quantile"])
def numbers(request):
    return request.param


@pytest.fixture
def cells(numbers, categories):
    torch.manual_seed(0)
    built = Cells(LAYOUT, numbers=numbers, categories=categories)
    built.learn(*rows())
    return built


def perfect(cells, x):
    """The output that says exactly what x is."""
    parts = [cells.numbers(x[:, NUMBERS])]
    for index, block in enumerate(cells.blocks):
        if len(cells.vectors):  # a vector whose product with the right category's is far larger than with the others
            with torch.no_grad():
                inverse = torch.linalg.pinv(cells.vectors[index].double())
            parts.append((30 * x[:, block].double() @ inverse.T).float())
        else:
            parts.append(30 * x[:, block])
    return torch.cat(parts, dim=1)


def test_what_leaves_is_what_the_output_says(cells, categories):
    if categories == "embedding":
        # Two values are too few to keep four categories apart by a product with arbitrary vectors.
        with torch.no_grad():
            cells.vectors[0].copy_(torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]))
            cells.vectors[1].copy_(torch.tensor([[1.0], [-1]]))
    x, _ = rows(gaps=False)
    back = cells.leave(perfect(cells, x))
    torch.testing.assert_close(back, x, atol=1e-3, rtol=1e-3)


def test_probabilities_of_a_category_add_up_to_one(cells):
    back = cells.leave(torch.randn(50, cells.outputs))
    for block in cells.blocks:
        torch.testing.assert_close(back[:, block].sum(dim=1), torch.ones(50))
        assert (back[:, block] >= 0).all()


def test_a_gap_enters_as_nothing_and_raises_its_flag(cells):
    x, seen = rows()
    entering = cells.enter(x, seen)
    assert entering.shape == (400, cells.inputs)
    assert cells.inputs == cells.outputs + 2  # the two columns that may have gaps
    assert torch.equal(entering[:, cells.outputs :].bool(), ~seen[:, [0, 1]])
    assert (entering[~seen[:, 0], 0] == 0).all()
    assert (entering[:, 3 : 3 + cells.sizes[1]][~seen[:, 1]] == 0).all()
    # What stands in a gap does not matter.
    torch.testing.assert_close(cells.enter(torch.where(seen, x, 77 * (x == 0)), seen)[:, :3], entering[:, :3])
    assert not cells.enter(x, None)[:, cells.outputs :].any()


def test_the_loss_is_the_mean_over_columns_of_each_column_s_own_over_its_observed_cells(cells, numbers):
    x, seen = rows(seed=1)
    output = torch.randn(len(x), cells.outputs)
    losses = cells.losses(output, x, seen)
    assert list(losses) == ["reconstruction", "categories"]
    wanted = cells.numbers(x[:, NUMBERS])
    error = np.ma.masked_array((output[:, :3] - wanted).square(), ~seen[:, NUMBERS])
    assert losses["reconstruction"].item() == pytest.approx(3 / 5 * error.mean(), rel=1e-5)
    _, logits = cells._split(output)
    train, known = rows()
    relative = []
    for scores, block in zip(logits, cells.blocks, strict=True):
        labelled = seen[:, block.start]
        nats = functional.cross_entropy(scores[labelled], x[labelled, block].argmax(dim=1))
        share = train[known[:, block.start], block].mean(dim=0).double()
        relative.append(nats / torch.distributions.Categorical(probs=share).entropy())
    assert losses["categories"].item() == pytest.approx(2 / 5 * sum(r.item() for r in relative) / 2, rel=1e-4)


def test_who_knows_the_frequencies_only_has_a_loss_of_one(categories):
    built = Cells(LAYOUT, numbers="standard", categories=categories)
    x, _ = rows(20000, gaps=False)
    built.learn(x, None)
    output = torch.zeros(len(x), built.outputs)
    if categories == "embedding":
        with torch.no_grad():
            for bias, block in zip(built.logits, built.blocks, strict=True):
                bias.copy_(x[:, block].mean(dim=0).log())
    else:
        output[:, 3:] = torch.cat([x[:, b].mean(dim=0).log() for b in built.blocks])
    assert sum(built.losses(output, x, None).values()).item() == pytest.approx(1, rel=1e-3)


def test_counts_and_masks_follow_what_was_observed(cells):
    _, seen = rows()
    assert cells.counts(None).tolist() == [3, 2]
    expected = [float(seen[:, NUMBERS].double().sum(dim=1).mean()), float(seen[:, [1, 6]].double().sum(dim=1).mean())]
    assert cells.counts(seen).tolist() == pytest.approx(expected)
    assert cells.seen(seen).shape == (len(seen), cells.outputs)
    assert torch.equal(cells.seen(seen)[:, 3], seen[:, 1])


def test_every_column_can_have_a_flag():
    built = Cells(LAYOUT, numbers="standard", categories="one-hot", flag_all=True)
    assert built.inputs == built.outputs + 5
    _, seen = rows()
    x = torch.zeros(seen.shape)
    assert torch.equal(built.enter(x, seen)[:, built.outputs :].bool(), ~seen[:, [0, 1, 5, 6, 8]])


def test_an_image_is_only_standardised():
    built = Cells(Layout((1, 3, 4)), numbers="standard", categories="one-hot")
    x = torch.rand(50, 1, 3, 4)
    built.learn(x, None)
    assert built.inputs == built.outputs == 12
    torch.testing.assert_close(built.enter(x, None).mean(dim=0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(built.leave(built.enter(x, None)), x)


def quantiles(x, observed=None):
    layer = Quantiles((x.shape[1],))
    layer.learn(x, observed)
    return layer


def test_quantiles_agree_with_scikit_learn_inside_the_data():
    x = torch.from_numpy(np.random.default_rng(0).gamma(1.5, size=(5000, 2)).astype(np.float32))
    oracle = preprocessing.QuantileTransformer(output_distribution="normal", n_quantiles=5000).fit_transform(x.numpy())
    inside = np.abs(oracle) < 2.3
    np.testing.assert_allclose(quantiles(x)(x).numpy()[inside], oracle[inside], atol=0.06)


@pytest.mark.parametrize("column", ["normal", "heavy", "few values", "mostly one", "constant"])
def test_quantiles_can_be_undone(column):
    generator = np.random.default_rng(0)
    values = {
        "normal": generator.normal(size=1000),
        "heavy": generator.standard_t(1.5, size=1000),
        "few values": generator.integers(3, size=1000),
        "mostly one": np.where(generator.random(1000) < 0.9, 0, generator.normal(size=1000)),
        "constant": np.full(1000, 4.0),
    }[column]
    x = torch.from_numpy(values[:, None].astype(np.float32))
    layer = quantiles(x)
    torch.testing.assert_close(layer.inverse(layer(x)), x, atol=1e-3 * float(x.abs().max()), rtol=1e-3)
    assert torch.isfinite(layer(x)).all()


def test_quantiles_keep_the_order_and_what_lies_far_out():
    x = torch.from_numpy(np.random.default_rng(0).lognormal(size=(3000, 1)).astype(np.float32))
    layer = quantiles(x)
    line = torch.linspace(-50, 200, 2001)[:, None]
    assert (layer(line).diff(dim=0) > 0).all()
    spread = float(x.std(correction=0))
    far = float(layer(torch.tensor([[100.0 + 10 * spread]])) - layer(torch.tensor([[100.0]])))
    assert far == pytest.approx(10, rel=1e-3)  # ten standard deviations farther


def test_quantiles_look_at_observed_cells_only():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32))
    seen = torch.rand(500, 1) > 0.5
    spoilt = torch.where(seen, x, 1e6)
    expected = quantiles(x[seen][:, None])
    for name, value in quantiles(spoilt, seen).state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name])
    assert torch.isfinite(quantiles(x, torch.zeros(500, 1, dtype=torch.bool))(x)).all()


def test_a_value_that_never_varied_in_training_keeps_new_ones_in_proportion():
    layer = quantiles(torch.full((300, 1), 100.0))
    assert float(layer(torch.tensor([[101.0]])) - layer(torch.tensor([[100.0]]))) == pytest.approx(1)


def test_no_rows_are_no_trouble(cells):
    x, seen = rows()
    assert cells.enter(x[:0], seen[:0]).shape == (0, cells.inputs)
    assert cells.leave(torch.zeros(0, cells.outputs)).shape == (0, 9)


def test_a_table_of_categories_alone_is_learned_too(numbers, categories):
    built = Cells(Layout((5,), (Field(3, True), Field(2, False))), numbers=numbers, categories=categories)
    x, seen = rows()
    built.learn(x[:, [1, 2, 3, 6, 7]], seen[:, [1, 2, 3, 6, 7]])
    output = torch.randn(400, built.outputs)
    losses = built.losses(output, x[:, [1, 2, 3, 6, 7]], None)
    assert losses["reconstruction"] == 0
    assert torch.isfinite(losses["categories"])
    assert all(torch.isfinite(value).all() for value in built.state_dict().values())


def mixed_table(count, seed):
    """A factor that a skewed number, a category and another number all follow."""
    generator = np.random.default_rng(seed)
    factor = generator.normal(size=count)
    x = np.zeros((count, 6), np.float32)
    x[:, 0] = np.exp(2 * factor)
    x[:, 0] = (x[:, 0] - 7.4) / 50
    x[np.arange(count), 1 + np.digitize(factor, [-0.8, 0, 0.8])] = 1
    x[:, 5] = factor + 0.1 * generator.normal(size=count)
    return samples.split(x)


MIXED = Layout((6,), (Field(1, False), Field(4, False), Field(1, False)))
OPTIONS = {
    "deep": {"blocks": 0, "tied": False, "augment": []},
    "tied": {"blocks": 0, "tied": True, "augment": []},
    "denoising": {"noise": "swap", "level": 0.1},
    "sparse": {"sparsity": "top-k", "target": 0.5, "weight": None},
    "contractive": {"weight": 0.01, "probes": 1},
    "variational": {"warmup": 0.1, "free_bits": 0.0},
}


@pytest.mark.parametrize("variant", OPTIONS)
def test_every_dense_variant_finds_the_category_from_the_numbers(variant, numbers, categories):
    options = {"code": 2, "hidden": [32], "activation": "silu", "numbers": numbers, "categories": categories}
    name = "deep" if variant == "tied" else variant
    spec = ModelSpec.of(name, MIXED, options | OPTIONS[variant])
    model, history = samples.fit(spec, mixed_table(800, 0), mixed_table(300, 1))
    assert "categories" in history.best.validation
    x = torch.from_numpy(mixed_table(500, 2).x)
    with torch.inference_mode():
        back = model(x)
    assert (back[:, 1:5].argmax(dim=1) == x[:, 1:5].argmax(dim=1)).double().mean() > 0.85
    assert (back[:, 5] - x[:, 5]).square().mean() < 0.3


def test_the_concrete_variant_restores_a_category_from_the_features_it_selects(numbers):
    options = {
        "code": 2,
        "hidden": [32],
        "activation": "silu",
        "first_temperature": 1.0,
        "last_temperature": 0.1,
        "overlap": 1.0,
        "indecision": 0.5,
        "numbers": numbers,
    }
    model, _ = samples.fit(ModelSpec.of("concrete", MIXED, options), mixed_table(1500, 0), mixed_table(300, 1))
    x = torch.from_numpy(mixed_table(500, 2).x)
    with torch.inference_mode():
        assert torch.equal(model.encode(x), x[:, model.selected])
        assert (model(x)[:, 1:5].argmax(dim=1) == x[:, 1:5].argmax(dim=1)).double().mean() > 0.7
