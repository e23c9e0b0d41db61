"""Gaps are filled by what the other cells tell, known cells stay, and what is learned once is not learned again."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import impute, linear_model

import samples
from sevenfold import bundles, evaluation, formats, operations
from sevenfold.applications import imputation
from sevenfold.applications.imputation import Imputation
from sevenfold.models.base import Autoencoder

OPTIONS = {"share": 0.2, "passes": 10, "aids": ["linear", "neighbours"], "draws": None, "flags": False}


def build(**options):
    return Imputation(**OPTIONS | options)


class Zero(Autoencoder):
    """Says the mean of every column, whatever it is shown."""

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x.new_zeros(len(x), self.code)

    def decode(self, z):
        return z.new_zeros(len(z), *self.shape)

    def losses(self, x, observed):
        return {}


def zero(kind="gaps"):
    return Zero(samples.dataset(kind).schema.layout, 1).eval()


@functools.cache
def calibrated(kind="gaps", aids=("linear", "neighbours"), **options):
    data = samples.dataset(kind)
    model = samples.trained("pca", kind)
    return build(aids=list(aids), **options).calibrate(model, data.train, data.validation), model, data


def correlated(rows, seed, width=6):
    mixing = np.random.default_rng(0).normal(size=(width, width))
    return np.random.default_rng(seed).normal(size=(rows, width)) @ mixing


# -- masks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["table", "gaps"])
def test_columns_are_read_off_the_values_as_the_schema_has_them(kind):
    data = samples.dataset(kind)
    assert np.array_equal(imputation.columns(data.train), data.schema.feature_of)


def test_categorical_columns_beside_each_other_are_told_apart_and_a_category_without_rows_goes_with_one_of_them():
    generator = np.random.default_rng(0)
    one, two = np.eye(3)[generator.integers(2, size=50)], np.eye(2)[generator.integers(2, size=50)]
    x = np.concatenate([one, two, generator.normal(size=(50, 1))], axis=1)
    assert imputation.columns(samples.split(x)).tolist() == [0, 0, 0, 1, 1, 2]


def test_only_known_cells_are_hidden_in_about_the_share_and_the_same_ones_every_time():
    data = samples.dataset("gaps")
    owner = data.schema.feature_of
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    found, again = (imputation.hide(data.test, data.train, owner, 0.2) for _ in range(2))
    assert list(found) == ["mcar", "mar", "own"]
    known = data.test.observed[:, first]
    for pattern, hidden in found.items():
        assert np.array_equal(hidden, again[pattern])
        assert hidden.shape == known.shape
        assert not (hidden & ~known).any()
        assert hidden.any(axis=0).all(), pattern  # every column is judged
    assert found["mcar"][known].mean() == pytest.approx(0.2, abs=0.03)
    assert found["mar"][known].mean() == pytest.approx(0.1, abs=0.03)  # half of the columns at a time


def test_missing_at_random_depends_on_a_cell_that_stays_and_on_nothing_else():
    generator = np.random.default_rng(0)
    split = samples.split(generator.normal(size=(20000, 4)))
    hidden = imputation.hide(split, split, np.arange(4), 0.2)["mar"]
    for column in range(4):
        correlation = np.array([np.corrcoef(hidden[:, column], split.x[:, other])[0, 1] for other in range(4)])
        driver = int(correlation.argmax())
        assert driver != column
        assert correlation[driver] > 0.15
        assert np.abs(np.delete(correlation, driver)).max() < 0.03
        assert not hidden[hidden[:, column], driver].any()


def test_own_patterns_are_those_of_training_rows_with_gaps():
    seen = np.ones((60, 5), bool)
    seen[:20, 1:3] = False
    train = samples.split(np.random.default_rng(0).normal(size=(60, 5)), observed=seen)
    test = samples.split(np.random.default_rng(1).normal(size=(30, 5)))
    hidden = imputation.hide(test, train, np.arange(5), 0.2)["own"]
    assert np.array_equal(hidden, np.tile([False, True, True, False, False], (30, 1)))
    assert "own" not in imputation.hide(test, test, np.arange(5), 0.2)


# -- judging -------------------------------------------------------------------------------------------------------------


def test_the_primary_metric_is_that_of_an_oracle_that_counts_cell_by_cell():
    application, model, data = calibrated()
    owner = data.schema.feature_of
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    numeric = [i for i, column in enumerate(data.schema.columns) if column.kind == "numeric"]
    (city,) = set(range(len(first))) - set(numeric)
    block = np.flatnonzero(owner == city)
    scores = application.evaluate(model, data.test, data.train)
    reductions = []
    for pattern, hidden in imputation.hide(data.test, data.train, owner, 0.2).items():
        seen = data.test.observed & ~hidden[:, owner]
        filled = application.fill(model, data.test.x * seen, seen)
        errors, bases, hits = [], [], []
        for row, column in zip(*np.nonzero(hidden), strict=True):
            if column in numeric:
                at = first[column]
                mean = data.train.x[data.train.observed[:, at], at].mean(dtype=float)
                errors.append((filled[row, at] - data.test.x[row, at]) ** 2)
                bases.append((mean - data.test.x[row, at]) ** 2)
            else:
                hits.append(filled[row, block].argmax() == data.test.x[row, block].argmax())
        reductions.append(1 - np.sqrt(np.sum(errors) / np.sum(bases)))
        assert scores.metrics[f"{pattern}_rmse"] == pytest.approx(np.sqrt(np.mean(errors)), rel=1e-5)
        assert scores.metrics[f"{pattern}_accuracy"] == pytest.approx(np.mean(hits))
    assert scores.metrics["error_reduction"] == pytest.approx(np.mean(reductions), rel=1e-5)


def test_the_mean_of_each_column_reduces_no_error():
    judgement = samples.rivals("imputation", "gaps")[0]["mean"]
    for scores in (judgement.validation, judgement.test):
        assert scores.metrics["error_reduction"] == pytest.approx(0, abs=1e-6)


def test_a_table_of_categories_alone_is_judged_by_their_accuracy():
    generator = np.random.default_rng(0)

    def rows(count):
        kind = generator.integers(3, size=count)
        return samples.split(np.concatenate([np.eye(3)[kind]] * 3, axis=1))

    train, test = rows(300), rows(100)
    scores = build().scores(test, train, lambda x, seen: np.where(seen, x, test.x))  # who knows everything
    assert scores.metrics["error_reduction"] == 1
    assert scores.metrics["mcar_accuracy"] == 1
    scores = build().scores(test, train, lambda x, seen: np.where(seen, x, np.tile(np.eye(3)[0], 3)))
    assert scores.metrics["mcar_accuracy"] == pytest.approx(1 / 3, abs=0.1)


def test_held_out_scores_of_each_row_come_from_weights_that_the_others_taught():
    application, model, data = calibrated()
    fair = application.held_out(model, data.validation, data.train)
    seen_all = application.evaluate(model, data.validation, data.train)
    assert fair.metrics.keys() == seen_all.metrics.keys()
    assert fair.metrics["error_reduction"] == pytest.approx(seen_all.metrics["error_reduction"], abs=0.05)
    # What a row holds cannot change how much its own fold's fill is weighed by.
    assert not np.array_equal(fair.values["mcar_error"], seen_all.values["mcar_error"])


# -- filling -------------------------------------------------------------------------------------------------------------


def test_known_cells_come_back_bit_for_bit_and_gaps_are_filled_within_bounds_with_one_category():
    application, model, data = calibrated()
    x, seen = data.test.x, data.test.observed
    filled = application.fill(model, np.where(seen, x, np.float32("nan")), seen)
    assert np.array_equal(filled[seen], x[seen])
    assert np.isfinite(filled).all()
    train = np.where(data.train.observed, data.train.x, np.nan)
    low, high = np.nanmin(train, axis=0), np.nanmax(train, axis=0)
    where = np.nonzero(~seen)
    assert (filled[where] >= low[where[1]]).all()
    assert (filled[where] <= high[where[1]]).all()
    city = data.schema.feature_of == data.schema.features.index("city")
    assert np.array_equal(np.sort(filled[:, city], axis=1), np.tile([0.0, 0.0, 1.0], (len(x), 1)))


def test_a_job_gives_back_the_users_columns_types_and_known_values_without_a_gap():
    application, model, data = calibrated(draws=2, flags=True)
    x, seen = data.test.x, data.test.observed
    columns = application.predict(model, x, seen, data.schema)
    names = list(data.schema.features)
    assert list(columns)[: len(names)] == names
    rows = data.schema.inverse(x, seen).frame
    first = np.flatnonzero(np.diff(data.schema.feature_of, prepend=-1))
    for name, at in zip(names, first, strict=True):
        assert not pd.isna(columns[name]).any()
        for one in (name, f"{name}_draw_1", f"{name}_draw_2"):
            assert np.array_equal(columns[one][seen[:, at]], rows[name].to_numpy()[seen[:, at]])
        assert np.array_equal(columns[f"{name}_imputed"], ~seen[:, at])
    assert set(columns["city"]) <= {"Kyoto", "Lima", "Oslo"}
    complete = application.predict(model, data.schema.transform(formats.Rows(rows.dropna()))[0], None, data.schema)
    assert not any(complete[f"{name}_imputed"].any() for name in names)


def test_draws_spread_as_far_as_the_fill_is_off_and_a_row_always_has_the_same():
    application, model, data = calibrated(draws=60)
    owner = data.schema.feature_of
    hidden = imputation.hide(data.test, data.train, owner, 0.2)["mcar"][:, owner]
    seen = data.test.observed & ~hidden
    x = data.test.x * seen
    columns = application.predict(model, x, seen, data.schema)
    z = []
    for column in data.schema.columns:
        at = int(np.flatnonzero(owner == data.schema.features.index(column.name))[0])
        if column.kind == "numeric":
            rows = np.flatnonzero(hidden[:, at])
            draws = np.stack([columns[f"{column.name}_draw_{i + 1}"][rows] for i in range(60)])
            truth = data.test.x[rows, at] * column.scale + column.mean
            z += [*((draws < truth).mean(axis=0))]
    # The truth is one more draw: its rank among them is even, so 80 % of truths lie between the 10th and 90th of 100.
    assert np.mean((np.array(z) > 0.1) & (np.array(z) < 0.9)) == pytest.approx(0.8, abs=0.1)
    alone = application.predict(model, x[5:6], seen[5:6], data.schema)
    for name in ("column_0_draw_1", "city_draw_1"):
        assert (columns[name] != columns[name.replace("_1", "_2")]).any()
    np.testing.assert_allclose(alone["column_0_draw_1"], columns["column_0_draw_1"][5:6], rtol=1e-4)


def test_draws_of_equal_rows_are_equal_and_of_others_even_and_unlike():
    generator = np.random.default_rng(0)
    x, seen = generator.normal(size=(4000, 3)).astype(np.float32), generator.random((4000, 3)) > 0.3
    one, two = imputation._chance(x, seen, 5, 0), imputation._chance(x, seen, 5, 1)
    assert np.array_equal(imputation._chance(x[7:8], seen[7:8], 5, 0), one[7:8])
    for values in (*one.T, *two.T):
        assert np.quantile(values, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    assert np.abs(np.corrcoef(np.concatenate([one, two], axis=1).T) - np.eye(10)).max() < 0.06


def test_names_of_draws_that_the_table_has_already_are_refused():
    application, model, data = calibrated(flags=True)
    columns = [replace(c, name="city_imputed") if c.name == "column_0" else c for c in data.schema.columns]
    with pytest.raises(ValueError, match=r"has columns 'city_imputed'.*rename them, or set"):
        application.predict(model, data.test.x, data.test.observed, replace(data.schema, columns=tuple(columns)))


def test_a_bundle_that_was_loaded_again_fills_the_users_rows_alike(tmp_path):
    application, model, data = calibrated(draws=1)
    spec = samples.spec("pca", "gaps")
    bundles.save(tmp_path / "bundle", bundles.Bundle(spec, model, data.schema, "imputation", application, {}))
    rows = data.schema.inverse(data.test.x, data.test.observed)
    written = operations.impute(bundles.load(tmp_path / "bundle"), rows).frame
    assert not written.isna().any().any()
    expected = application.predict(model, *data.schema.transform(rows), data.schema)
    assert list(written) == list(expected)
    for name, values in expected.items():
        assert np.array_equal(written[name].to_numpy(), values)


def test_nothing_is_fitted_when_rows_are_filled():
    application, model, data = calibrated()
    before = {name: value.copy() for name, value in application.state.items()}
    filled = application.fill(model, data.test.x, data.test.observed)
    assert all(np.array_equal(value, application.state[name]) for name, value in before.items())
    half = application.fill(model, data.test.x[::2], data.test.observed[::2])
    np.testing.assert_allclose(half, filled[::2], atol=1e-4)


def test_rows_without_a_single_value_get_finite_fills():
    application, model, data = calibrated()
    x = np.zeros((3, data.test.x.shape[1]), np.float32)
    filled = application.fill(model, x, np.zeros(x.shape, bool))
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[0], filled[2], atol=1e-5)  # sums of few rows end differently by their place


# -- what it is made of --------------------------------------------------------------------------------------------------


def test_feeding_the_fill_back_reduces_the_error_of_a_model_that_takes_a_gap_for_the_mean():
    application, model, data = calibrated(aids=())
    once = build(aids=[], passes=1).calibrate(model, data.train, data.validation)
    assert application.state["passes"][0] > 1
    one, several = (a.evaluate(model, data.test, data.train).metrics["mcar_rmse"] for a in (once, application))
    assert several < 0.95 * one


def test_the_linear_model_is_the_conditional_mean_of_a_normal_distribution():
    x = correlated(50, 1)
    covariance = np.cov(correlated(4000, 2).T)
    mean = np.arange(6.0)
    seen = np.random.default_rng(0).random(x.shape) > 0.4
    seen[0], seen[1] = False, True
    filled = imputation._conditional(x, seen, mean, np.linalg.inv(covariance))
    for row, have, found in zip(x, seen, filled, strict=True):
        weights = covariance[np.ix_(~have, have)] @ np.linalg.pinv(covariance[np.ix_(have, have)])
        expected = row.copy()
        expected[~have] = mean[~have] + weights @ (row - mean)[have]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_distribution_of_rows_with_gaps_is_that_of_the_whole_rows():
    x = correlated(6000, 3) + 2
    seen = np.random.default_rng(1).random(x.shape) > 0.3
    mean, covariance = imputation._normal(np.where(seen, x, 0).astype(np.float32), seen)
    whole = np.cov(x.T, bias=True)
    np.testing.assert_allclose(mean, x.mean(axis=0), atol=0.1)
    scale = np.sqrt(np.outer(np.diag(whole), np.diag(whole)))
    assert np.abs((covariance - whole) / scale).max() < 0.05
    mean, covariance = imputation._normal(x.astype(np.float32), np.ones(x.shape, bool))
    np.testing.assert_allclose(covariance, whole, rtol=1e-4, atol=1e-4)


def test_a_row_that_was_seen_before_is_copied():
    data = samples.dataset("table")
    twice = replace(data.test, x=data.train.x[: len(data.test)])
    model = zero("table")
    again = replace(data.validation, x=data.train.x[-len(data.validation) :])
    application = build(aids=["neighbours"]).calibrate(model, data.train, again)
    assert application.evaluate(model, twice, data.train).metrics["error_reduction"] > 0.95


def test_neighbours_are_the_nearest_by_the_cells_that_a_row_has():
    application, _, data = calibrated("table", aids=("neighbours",))
    owner = data.schema.feature_of
    seen = np.random.default_rng(0).random((20, owner.max() + 1))[:, owner] > 0.3
    x = data.test.x[:20] * seen
    ((_, near),) = application._nearest(x, seen, 0.5)
    for row, have, found in zip(x, seen, near.distance.numpy(), strict=True):
        distances = ((row - data.train.x) ** 2)[:, have].mean(axis=1)
        np.testing.assert_allclose(found, np.sort(distances)[: len(found)], rtol=1e-4, atol=1e-6)


def test_weights_go_to_who_errs_least_column_by_column():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(2000, 2)).astype(np.float32)
    noise = generator.normal(size=(2, 2000, 2)) * [[[0.1, 2.0]], [[2.0, 0.1]]]
    held = imputation._Held(truth, truth < 9, np.ones(truth.shape, bool), np.arange(2000))
    weights = imputation._weights((truth + noise).astype(np.float32), np.zeros(truth.shape, int), held, np.arange(2))
    assert weights.shape == (imputation.BINS, 2, 2)
    np.testing.assert_allclose(weights[0], np.eye(2), atol=0.11)
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-6)
    # Two equally noisy guesses whose errors are their own are best averaged.
    noise = generator.normal(size=(2, 2000, 2))
    weights = imputation._weights((truth + noise).astype(np.float32), np.zeros(truth.shape, int), held, np.arange(2))
    np.testing.assert_allclose(weights[0], 0.5, atol=0.11)


def test_aids_help_a_model_that_knows_nothing():
    data, model = samples.dataset("gaps"), zero()
    found = {}
    for aids in ((), ("linear",), ("neighbours",), ("linear", "neighbours")):
        application = build(aids=list(aids)).calibrate(model, data.train, data.validation)
        found[aids] = application.evaluate(model, data.test, data.train).metrics["error_reduction"]
    assert found[()] == pytest.approx(0, abs=0.05)
    assert found["linear",] > 0.5
    assert found["neighbours",] > 0.2
    assert found["linear", "neighbours"] > found["neighbours",]


# -- rivals --------------------------------------------------------------------------------------------------------------


def test_every_rival_but_the_mean_errs_much_less_than_the_mean():
    rivals, _ = samples.rivals("imputation", "gaps")
    assert list(rivals) == ["mean", "knn", "bayesian_ridge", "extra_trees"]
    for name in ("knn", "bayesian_ridge", "extra_trees"):
        assert rivals[name].test.metrics["error_reduction"] > 0.3, name
        assert rivals[name].test.metrics["mcar_accuracy"] > rivals["mean"].test.metrics["mcar_accuracy"] + 0.1, name


def test_chained_bayesian_ridge_fills_like_scikit_learns_iterative_imputer():
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401

    x = correlated(400, 1)
    with_gaps = np.where(np.random.default_rng(0).random(x.shape) < 0.2, np.nan, x)
    theirs = impute.IterativeImputer(max_iter=60, random_state=0, tol=0.01).fit(with_gaps)
    ours = imputation.Chain(linear_model.BayesianRidge, rounds=30)
    ours.fit(with_gaps, np.arange(6))
    test = correlated(200, 2)
    gaps = np.random.default_rng(1).random(test.shape) < 0.2
    found, expected = (m(np.where(gaps, np.nan, test)) for m in (ours.fill, theirs.transform))
    one, other = (float(np.sqrt(((filled - test)[gaps] ** 2).mean())) for filled in (found, expected))
    assert one == pytest.approx(other, rel=0.03)
    assert one < 0.8 * test[gaps].std()


def test_a_chain_fills_columns_that_had_no_gap_in_the_training_rows():
    x, test = correlated(400, 1), correlated(200, 2)
    chain = imputation.Chain(linear_model.BayesianRidge, rounds=10)
    chain.fit(x, np.arange(6))
    gaps = np.zeros(test.shape, bool)
    gaps[:, 3] = True
    filled = chain.fill(np.where(gaps, np.nan, test))
    expected = linear_model.LinearRegression().fit(np.delete(x, 3, axis=1), x[:, 3]).predict(np.delete(test, 3, axis=1))
    np.testing.assert_allclose(filled[:, 3], expected, atol=0.02)


# -- errors --------------------------------------------------------------------------------------------------------------


def test_images_are_refused_with_what_would_suit():
    assert "give it a table" in build().unsuited(code=None, images=True, labelled=False, normal=False)
    assert build().unsuited(code=None, images=None, labelled=False, normal=False) is None


def test_a_column_without_a_value_and_a_split_without_rows_are_refused():
    data, model = samples.dataset("gaps"), zero()
    seen = data.train.observed.copy()
    seen[:, 2] = False
    with pytest.raises(ValueError, match=r"no training row has a value at 2 of a sample .*`drop`"):
        build().calibrate(model, replace(data.train, observed=seen), data.validation)
    nothing = replace(data.validation, observed=np.zeros_like(data.validation.observed))
    for rows in (data.validation.take(np.arange(0)), nothing):
        with pytest.raises(ValueError, match="no validation row has a value"):
            build().calibrate(model, data.train, rows)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("share", 0.6, r"share is 0.6; expected more than 0 and at most 0.5"),
        ("draws", 0, r"draws is 0; expected 1 or more, or null"),
        ("aids", ["linear", "linear"], r"aids is \['linear', 'linear'\]; expected each at most once"),
    ],
)
def test_impossible_options_are_named(option, value, message):
    with pytest.raises(ValueError, match=message):
        build(**{option: value})


def test_a_model_that_imputes_is_asked_to():
    data = samples.dataset("gaps")
    model = samples.trained("masked", "gaps")
    application = build(aids=[], passes=1).calibrate(model, data.train, data.validation)
    x, seen = data.test.x, data.test.observed
    filled = application.fill(model, x, seen)
    with torch.inference_mode():
        own = model.impute(torch.from_numpy(x), torch.from_numpy(seen)).numpy()
    train = np.where(data.train.observed, data.train.x, np.nan)
    within = np.clip(own, np.nanmin(train, axis=0), np.nanmax(train, axis=0))
    np.testing.assert_allclose(filled, np.where(seen, x, within), atol=1e-5)
    _, judgement = evaluation.judge(build(aids=[]), model, data)
    assert judgement.test.metrics["error_reduction"] > 0.3
