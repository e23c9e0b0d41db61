"""Anomaly scores, thresholds and reasons, against scikit-learn, formulas of the papers, and planted anomalies."""

from concurrent import futures
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import (
    decomposition,
    ensemble,
    linear_model,
    metrics,
    model_selection,
    neighbors,
    pipeline,
    preprocessing,
)

import samples
from sevenfold import bundles, evaluation, files, formats, params, stages, trimming
from sevenfold.applications import anomaly
from sevenfold.datasets.base import Column, Dataset, TableSchema
from sevenfold.layouts import Layout
from sevenfold.models.base import ModelSpec
from sevenfold.workspace import Workspace

DATA = samples.dataset("table")
TRAIN = DATA.train.x[DATA.train.normal].astype(float)
VALIDATION, TEST = DATA.validation.x.astype(float), DATA.test.x.astype(float)
STRANGE, STRANGE_LATER = ~DATA.validation.normal, ~DATA.test.normal


# Each rival once more, by hand: setting -> score of rows.


def forest(n):
    found = ensemble.IsolationForest(n_estimators=n, random_state=0).fit(TRAIN)
    return lambda x: -found.score_samples(x)


def nearest(k):
    return lambda x: np.sort(np.linalg.norm(x[:, None] - TRAIN[None], axis=2), axis=1)[:, :k].mean(axis=1)


def outlier_factor(k):
    found = neighbors.LocalOutlierFactor(n_neighbors=k, novelty=True).fit(TRAIN)
    return lambda x: -found.score_samples(x)


def tails(_):
    """ECOD by its formula, one row and one column at a time; the empirical distribution counts the row itself."""

    def score(row):
        left, right, auto = 0.0, 0.0, 0.0
        for column, value in zip(TRAIN.T, row, strict=True):
            own = np.append(column, value)
            below, above = -np.log((own <= value).mean()), -np.log((own >= value).mean())
            left, right = left + below, right + above
            auto += below if pd.Series(column).skew() < 0 else above
        return max(left, right, auto)

    return lambda x: np.array([score(row) for row in x])


def projection(share):
    pca = decomposition.PCA(share).fit(TRAIN)
    return lambda x: ((x - pca.inverse_transform(pca.transform(x))) ** 2).sum(axis=1)


BY_HAND = {
    "isolation_forest": (forest, (100, 300)),
    "knn": (nearest, (1, 3, 5, 10, 20, 50)),
    "lof": (outlier_factor, (5, 10, 20, 50)),
    "ecod": (tails, (None,)),
    "pca_error": (projection, (0.5, 0.7, 0.9, 0.95, 0.99)),
}


def expected(score, threshold):
    flagged = score > threshold
    count = STRANGE_LATER.sum()
    return {
        "average_precision": metrics.average_precision_score(STRANGE_LATER, score),
        "auroc": metrics.roc_auc_score(STRANGE_LATER, score),
        "precision_at_n": STRANGE_LATER[np.argsort(-score)[:count]].mean(),
        "false_positive_rate": flagged[~STRANGE_LATER].mean(),
        "recall": metrics.recall_score(STRANGE_LATER, flagged),
    }


def test_every_rival_is_tested_here():
    assert {*BY_HAND, "logistic"} == samples.application("anomaly").rivals().keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_a_rivals_numbers_are_those_of_a_loop_by_hand(name):
    method, settings = BY_HAND[name]
    score = max(
        (method(setting) for setting in settings),
        key=lambda s: metrics.average_precision_score(STRANGE, s(VALIDATION)),
    )
    threshold = np.quantile(score(VALIDATION)[~STRANGE], 0.95)
    got = samples.rivals("anomaly", "table")[0][name].test
    np.testing.assert_allclose(got.values["score"], score(TEST), rtol=1e-6)
    assert got.metrics == pytest.approx(expected(score(TEST), threshold))


def test_the_supervised_rival_is_a_logistic_regression_tuned_within_the_validation_rows():
    folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=0)
    search = model_selection.GridSearchCV(
        pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=2000)),
        {"logisticregression__C": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
        scoring="neg_log_loss",
        cv=folds,
    ).fit(VALIDATION, STRANGE)
    held_out = model_selection.cross_val_predict(
        search.best_estimator_, VALIDATION, STRANGE, cv=folds, method="decision_function"
    )
    threshold = np.quantile(held_out[~STRANGE], 0.95)
    got = samples.rivals("anomaly", "table")[0]["logistic"].test
    np.testing.assert_allclose(got.values["score"], search.decision_function(TEST), rtol=1e-6, atol=1e-9)
    assert got.metrics == pytest.approx(expected(got.values["score"], threshold))


@pytest.mark.parametrize("kind", samples.DATASETS)
def test_what_is_measured_is_what_a_job_writes(kind):
    data = samples.dataset(kind)
    application, judgement = samples.judged("anomaly", kind)
    columns = application.predict(samples.trained("pca", kind, "normal"), data.test.x, data.test.observed, data.schema)
    assert list(columns) == ["score", "flag", "threshold", "top_1", "top_2", "top_3"]
    strange = ~data.test.normal
    assert judgement.test.metrics == pytest.approx(
        {
            "average_precision": metrics.average_precision_score(strange, columns["score"]),
            "auroc": metrics.roc_auc_score(strange, columns["score"]),
            "precision_at_n": strange[np.argsort(-columns["score"])[: strange.sum()]].mean(),
            "false_positive_rate": columns["flag"][~strange].mean(),
            "recall": columns["flag"][strange].mean(),
        }
    )
    assert np.array_equal(columns["flag"], columns["score"] > columns["threshold"])
    assert set(columns["top_1"]) <= set(data.schema.features)
    assert all(len({columns[f"top_{i}"][row] for i in (1, 2, 3)}) == 3 for row in range(len(strange)))


@pytest.mark.parametrize("kind", samples.DATASETS)
def test_the_score_joins_the_error_over_observed_cells_with_the_distance_to_normal_codes(kind):
    data = samples.dataset(kind)
    model = samples.trained("pca", kind, "normal")
    application, judgement = samples.judged("anomaly", kind)
    state = {name: value.astype(float) for name, value in application.state.items()}
    x = data.test.x.reshape(len(data.test), -1).astype(float)
    seen = np.ones_like(x, bool) if data.test.observed is None else data.test.observed
    z = (x - model.mean.numpy()) @ model.components.numpy().T
    residual = x - (z @ model.components.numpy() + model.mean.numpy())
    deviation = np.abs(residual - state["residual_median"]) / state["residual_scale"]
    error = 0.5 * np.log(np.ma.masked_array(deviation**2, ~seen).mean(axis=1).filled(0) + 1e-6)
    latent = (z - state["code_center"]) / state["code_spread"]
    distances = np.linalg.norm(latent[:, None] - state["reference"][None], axis=2)
    distance = np.log(np.sort(distances, axis=1)[:, :5].mean(axis=1) + 1e-3)
    terms = np.stack(
        [surprise(*of) for of in zip((error, distance), state["term_knots"], state["term_excess"], strict=True)], axis=1
    )
    latent = np.clip(latent, -state["code_bound"], state["code_bound"])
    learned = terms @ state["term_weight"] + latent @ state["code_weight"] + state["offset"]
    score = np.maximum(learned, state["anchor"] + terms.mean(axis=1) - state["limit"])
    np.testing.assert_allclose(judgement.test.values["score"], score, rtol=1e-3, atol=1e-3)


def surprise(term, knots, excess):
    """From each knot to the next one as many nats, up to the last tenth of the normal rows; beyond it exponential."""
    within = np.interp(term, knots, np.linspace(0, np.log(10), len(knots)))
    return within + np.maximum(term - knots[-1], 0) / excess


def ties(rows, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 6, rows) / 5, generator.random(rows) < 0.3


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_and_auroc_are_scikit_learns_also_with_ties(seed):
    score, positive = ties(40, seed)
    assert anomaly.average_precision(score, positive) == pytest.approx(metrics.average_precision_score(positive, score))
    assert anomaly.auroc(score, positive) == pytest.approx(metrics.roc_auc_score(positive, score))


def test_a_single_class_has_no_average_precision_and_no_auroc():
    score = np.arange(5.0)
    assert np.isnan(anomaly.average_precision(score, np.zeros(5, bool)))
    assert np.isnan(anomaly.auroc(score, np.zeros(5, bool)))
    assert np.isnan(anomaly.auroc(score, np.ones(5, bool)))


def schema(columns):
    return TableSchema(tuple(Column(f"column_{i}", "numeric", "float64") for i in range(columns)))


def normals(rows, seed, columns=10):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, 3)) @ np.random.default_rng(0).normal(
        size=(3, columns)
    ) + 0.5 * generator.normal(size=(rows, columns))


def dataset(anomalies, rows=800):
    """Normal rows, and in the judging splits some anomalies that lie between and beyond them."""

    def part(seed):
        x, odd = normals(rows, seed), np.random.default_rng(seed + 10).normal(size=(anomalies, 10)) * 2
        normal = np.arange(rows + anomalies) < rows
        return samples.split(np.concatenate([x, odd]), normal=normal, y=np.where(normal, "usual", "odd"))

    train = samples.split(normals(rows, 1), normal=np.ones(rows, bool))
    return Dataset("made", schema(10), train, part(2), part(3))


@pytest.fixture(scope="module", params=[0, 5, 60], ids=lambda n: f"{n} labelled anomalies")
def contest(request):
    data = dataset(request.param)
    model, _ = samples.fit(ModelSpec("pca", (10,), {"code": 3}), data.train, data.validation.only_normal())
    application = samples.application("anomaly")
    return data, model, application.calibrate(model, data.train, data.validation)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_threshold_flags_the_stated_share_of_fresh_normal_rows(contest, rate):
    data, model, application = contest
    options = application.options | {"value": rate}
    calibrated = anomaly.Anomaly(**options).calibrate(model, data.train, data.validation)
    fresh = samples.split(normals(4000, seed=99), normal=np.ones(4000, bool))
    flagged = calibrated.evaluate(model, fresh, data.train).metrics["false_positive_rate"]
    # The threshold comes from 800 rows: four standard errors of both samples together.
    assert flagged == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) * (1 / 800 + 1 / 4000)))


@pytest.mark.parametrize("columns", ["all", "one"])
def test_a_row_far_out_is_flagged_in_whatever_direction_and_the_more_so_the_further(contest, columns):
    data, model, application = contest
    generator = np.random.default_rng(0)
    direction = generator.choice([-1, 1], size=(300, 10))
    if columns == "one":
        direction = direction * (np.arange(10) == generator.integers(10, size=(300, 1)))
    deviation = data.train.x.std(axis=0)
    scores = []
    for distance in (100, 1000, 10000):
        x = (normals(300, seed=7) + distance * deviation * direction).astype(np.float32)
        scores.append(application.predict(model, x, None, data.schema)["score"])
        assert (scores[-1] > application.state["threshold"]).all()
    assert (scores[0] < scores[1]).mean() > 0.99
    assert (scores[1] < scores[2]).mean() > 0.99


def test_a_few_labelled_anomalies_are_not_looked_at():
    data = dataset(anomalies=anomaly.ENOUGH - 1)
    model, _ = samples.fit(ModelSpec("pca", (10,), {"code": 3}), data.train, data.validation.only_normal())
    application = samples.application("anomaly")
    one = application.calibrate(model, data.train, data.validation)
    two = application.calibrate(model, data.train, data.validation.only_normal())
    assert all(np.array_equal(value, two.state[name]) for name, value in one.state.items())
    assert one.state["term_weight"] == pytest.approx([10 / 23, 13 / 23])
    judged, failed = evaluation.judge_rivals(application, data)
    assert set(failed) == {"logistic"}
    reason = "ValueError: 9 labelled anomalies and 800 normal rows in the validation split; expected 10 or more of each"
    assert failed["logistic"] == reason
    assert judged


def test_contributions_sum_to_the_difference_of_two_scores(contest, monkeypatch):
    data, model, application = contest
    x = torch.from_numpy(data.test.x[-80:])
    typical = model.decode(torch.from_numpy(application.state["code_center"])[None]).expand_as(x)
    score = {
        name: application.score(model, rows.numpy().copy(), None) for name, rows in (("x", x), ("typical", typical))
    }
    difference = score["x"] - score["typical"]

    def missed():
        sums = application._contributions(model, x, None).sum(axis=1)
        return np.abs(sums - difference) / np.maximum(np.abs(difference), 1)

    assert np.quantile(missed(), 0.95) < 0.1
    assert np.median(missed()) < 0.03
    monkeypatch.setattr(anomaly, "STEPS", 512)
    assert np.quantile(missed(), 0.95) < 0.01


def test_a_planted_anomalous_column_is_the_first_reason(contest):
    data, model, application = contest
    x = normals(200, seed=7).astype(np.float32)
    planted = np.arange(200) % 10
    x[np.arange(200), planted] += 12 * np.where(np.arange(200) % 2, 1, -1)
    columns = application.predict(model, x, None, data.schema)
    found = columns["top_1"] == np.array([f"column_{i}" for i in planted])
    assert found.mean() > 0.9
    assert columns["flag"].mean() > 0.9


def test_the_values_of_a_one_hot_column_count_together():
    data = samples.dataset("table")
    model = samples.trained("pca", "table", "normal")
    application, _ = samples.judged("anomaly", "table")
    parts = application._contributions(model, torch.from_numpy(data.test.x), None)
    together = np.stack([np.bincount(data.schema.feature_of, weights=row) for row in parts])
    assert together.shape[1] == len(data.schema.features) == parts.shape[1] - 2
    columns = application.predict(model, data.test.x, None, data.schema)
    ranked = np.array(data.schema.features)[np.argsort(-together, axis=1)]
    for i in range(3):
        assert (columns[f"top_{i + 1}"] == ranked[:, i]).mean() > 0.98  # a near tie may fall either way


def test_a_category_that_does_not_go_with_the_numbers_is_the_first_reason():
    data = samples.dataset("table")
    cities = np.flatnonzero(data.schema.feature_of == data.schema.features.index("city"))
    x = data.test.x[data.test.normal].copy()
    x[:, cities] = 10 * np.roll(x[:, cities], 1, axis=1)
    application, _ = samples.judged("anomaly", "table")
    columns = application.predict(samples.trained("pca", "table", "normal"), x, None, data.schema)
    assert (columns["top_1"] == "city").mean() > 0.75


def test_gaps_neither_raise_a_score_nor_give_a_reason():
    data = samples.dataset("gaps")
    model = samples.trained("pca", "gaps", "normal")
    application, _ = samples.judged("anomaly", "gaps")
    x, seen = torch.from_numpy(data.test.x), torch.from_numpy(data.test.observed)
    parts = application._contributions(model, x, seen)
    assert (parts[~data.test.observed] == 0).all()
    # A row of nothing but gaps has an ordinary score, and no number anywhere that is not finite.
    empty = application.predict(
        model, np.zeros_like(data.test.x[:1]), np.zeros_like(data.test.observed[:1]), data.schema
    )
    assert np.isfinite(empty["score"]).all()


def test_gaps_do_not_narrow_the_scale_of_a_feature():
    """Where most rows lack a column, its deviations are measured on those that have it."""
    data = dataset(anomalies=0)
    model, _ = samples.fit(ModelSpec("pca", (10,), {"code": 3}), data.train, data.validation)
    whole = samples.application("anomaly").calibrate(model, data.train, data.validation)
    seen = np.ones(data.validation.x.shape, bool)
    seen[::10] = np.arange(10) > 0  # gaps that touch nothing else: the values stay, and only count as not observed
    seen[1::10] = seen[2::10] = seen[3::10] = seen[4::10] = seen[5::10] = seen[0]
    gappy = samples.application("anomaly").calibrate(model, data.train, replace(data.validation, observed=seen))
    np.testing.assert_allclose(gappy.state["residual_scale"], whole.state["residual_scale"], rtol=0.15)
    assert not np.allclose(gappy.state["residual_scale"][0], whole.state["residual_scale"][0], rtol=1e-6)


def test_a_column_that_no_validation_row_has_does_no_harm():
    data = dataset(anomalies=20)
    model, _ = samples.fit(ModelSpec("pca", (10,), {"code": 3}), data.train, data.validation)
    seen = np.ones(data.validation.x.shape, bool)
    seen[:, 4] = False
    calibrated = samples.application("anomaly").calibrate(model, data.train, replace(data.validation, observed=seen))
    assert all(np.isfinite(value).all() for value in calibrated.state.values())


@pytest.mark.parametrize(("kind", "variant"), [("table", "deep"), ("gaps", "deep"), ("images", "convolutional")])
def test_a_score_is_the_same_to_the_last_bit_whatever_rows_are_beside_it(kind, variant):
    data = samples.dataset(kind)
    model = samples.trained(variant, kind, "normal")
    application = samples.application("anomaly").calibrate(model, data.train, data.validation)
    rows = np.random.default_rng(0).integers(len(data.test), size=10_000)
    x = data.test.x[rows] + np.random.default_rng(1).normal(size=(10_000, *data.test.x.shape[1:])).astype(np.float32)
    observed = None if data.test.observed is None else data.test.observed[rows]
    if observed is not None:
        x = np.where(observed, x, np.float32(0))

    def score(some):
        return application.score(model, x[some], None if observed is None else observed[some])

    whole = score(slice(None))
    assert len(np.unique(whole)) > 9000
    for size in (1, 64, 100, 1024, 4096):
        starts = range(0, 10_000 if size > 1 else 50, size)
        for start in starts:
            some = slice(start, start + size)
            assert np.array_equal(score(some), whole[some]), size
    order = np.random.default_rng(2).permutation(10_000)
    assert np.array_equal(score(order), whole[order])
    assert len(score(slice(0, 0))) == 0
    with futures.ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(score, [slice(0, 5000), slice(5000, None)] * 2))
    assert np.array_equal(np.concatenate(parts), np.tile(whole, 2))


def test_reasons_are_given_for_whom_they_are_asked(contest):
    data, model, application = contest
    x = np.concatenate([data.test.x, normals(150, seed=8).astype(np.float32) * 3])
    some = application.explaining("flagged")
    every, flagged, none = (
        a.predict(model, x, None, data.schema) for a in (application, some, some.explaining("none"))
    )
    flag = every["flag"]
    assert 0 < flag.sum() < len(flag)
    assert list(every) == list(flagged) == [*none, "top_1", "top_2", "top_3"]
    for name, column in every.items():
        if name.startswith("top_"):
            assert np.array_equal(flagged[name][flag], column[flag])
            assert all(reason is None for reason in flagged[name][~flag])
        else:
            assert np.array_equal(column, flagged[name])
            assert np.array_equal(column, none[name])
    quiet = some.predict(model, x[~flag], None, data.schema)
    assert list(quiet) == list(every)
    assert all(reason is None for reason in quiet["top_1"])
    moved = some.moved("quantile", 0.5, None).predict(model, x, None, data.schema)
    assert [reason is not None for reason in moved["top_1"]] == moved["flag"].tolist()
    with pytest.raises(ValueError, match="reasons are asked for 'some'; expected one of all, flagged, none"):
        application.explaining("some")


def test_contributions_do_not_depend_on_how_many_rows_are_explained(contest):
    data, model, application = contest
    x = normals(1500, seed=9).astype(np.float32)
    whole = application._by_feature(model, x, None, data.schema)
    parts = [application._by_feature(model, x[i : i + 300], None, data.schema) for i in range(0, 1500, 300)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_large_training_set_is_sampled_for_reference():
    data = dataset(anomalies=0)
    model, _ = samples.fit(ModelSpec("pca", (10,), {"code": 3}), data.train, data.validation)
    few = anomaly.Anomaly(**samples.application("anomaly").options | {"references": 100})
    reference = few.calibrate(model, data.train, data.validation).state["reference"]
    assert len(reference) == 100


def test_rivals_do_not_ask_for_more_neighbours_than_there_are_rows():
    data = dataset(anomalies=20, rows=40)
    application = samples.application("anomaly")
    judged, failed = evaluation.judge_rivals(application, data)
    assert failed == {}
    few = replace(data, train=data.train.only_normal())
    few = replace(few, train=samples.split(few.train.x[:4], normal=np.ones(4, bool)))
    judged, failed = evaluation.judge_rivals(application, few)
    assert failed["lof"] == "ValueError: 4 normal training rows; expected more than 5"
    assert {"knn", "isolation_forest"} <= judged.keys()


def test_without_a_normal_validation_row_there_is_no_threshold():
    data = dataset(anomalies=20)
    model, _ = samples.fit(ModelSpec("pca", (10,), {"code": 3}), data.train, data.validation)
    odd = samples.split(data.validation.x[-20:], normal=np.zeros(20, bool))
    message = r"no validation row is normal, .* larger share, or mend the data set's `normal`"
    with pytest.raises(ValueError, match=message):
        samples.application("anomaly").calibrate(model, data.train, odd)


def nameless(data):
    """The same rows, of which nobody says which are normal."""
    return replace(
        data, **{part: replace(getattr(data, part), normal=None) for part in ("train", "validation", "test")}
    )


@pytest.mark.parametrize("kind", samples.DATASETS)
def test_where_nobody_names_normal_rows_every_second_one_that_judges_gets_columns_of_others(kind):
    data = samples.dataset(kind)
    judged = samples.application("anomaly").judged(nameless(data))
    assert judged.train is nameless(data).train or judged.train.normal is None
    for part in ("validation", "test"):
        before, after = getattr(data, part), getattr(judged, part)
        assert np.array_equal(after.normal, np.arange(len(before)) % 2 == 0)
        assert np.array_equal(after.x[::2], before.x[::2])
        assert np.array_equal(after.ids, before.ids)
        # Whole columns come from one row each: for a table every value of a category, for an image a quarter.
        owner = data.schema.feature_of if len(data.schema.shape) == 1 else anomaly._owners(data.schema.layout)
        x, odd = before.x.reshape(len(before), -1), after.x.reshape(len(before), -1)[1::2]
        seen = None if before.observed is None else (before.observed, after.observed[1::2])
        moved = 0
        for column in np.unique(owner):
            places = owner == column
            same = (odd[:, None, places] == x[None][:, :, places]).all(axis=2)  # (planted, rows)
            if seen is not None:
                same &= (seen[1][:, None, places] == seen[0][None][:, :, places]).all(axis=2)
            assert same.any(axis=1).all()
            moved += (~same[np.arange(len(odd)), np.arange(1, len(x), 2)]).sum()
        assert moved > 0.5 * len(odd)
    again = samples.application("anomaly").judged(nameless(data))
    assert np.array_equal(again.test.x, judged.test.x)
    assert samples.application("anomaly").judged(data) is data


def test_a_quarter_of_an_image_is_a_column():
    owner = anomaly._owners(Layout((2, 4, 6))).reshape(2, 4, 6)
    assert np.array_equal(owner[0], owner[1])
    assert np.array_equal(owner[0], np.kron([[0, 1], [2, 3]], np.ones((2, 3), int)))
    assert set(anomaly._owners(Layout((1, 5, 1)))) == {0, 1}


def test_a_contest_without_labels_is_judged_by_planted_anomalies_and_learns_from_no_label():
    data = nameless(samples.dataset("table"))
    model = samples.trained("pca", "table")
    application = samples.application("anomaly")
    calibrated, judgement = evaluation.judge(application, model, data)
    planted = samples.application("anomaly").judged(data)
    score = calibrated.score(model, planted.test.x, planted.test.observed)
    odd = ~planted.test.normal
    assert judgement.test.metrics["average_precision"] == pytest.approx(metrics.average_precision_score(odd, score))
    assert judgement.test.metrics["average_precision"] > 0.8
    assert not calibrated.labelled
    assert calibrated.state["term_weight"] == pytest.approx(anomaly._weights(4, 15))
    judged, failed = evaluation.judge_rivals(application, data)
    assert failed == {
        "logistic": "ValueError: no labelled anomalies: those that are judged by are planted, and teach nothing of real ones"
    }
    assert all(np.array_equal(j.test.values["anomaly"], odd) for j in judged.values())
    again = evaluation.rejudge(calibrated, model, data)
    assert again.test.metrics == judgement.test.metrics


@pytest.mark.parametrize("kind", ["table", "images"])
def test_any_data_set_can_hold_the_contest(kind):
    application = samples.application("anomaly")
    for normal in (True, False):
        assert application.unsuited(code=3, images=kind == "images", labelled=normal, normal=normal) is None


def test_the_longer_a_code_the_more_its_distance_counts():
    assert anomaly._weights(30, 30) == pytest.approx([1 / 3, 2 / 3])
    assert anomaly._weights(60, 30) == pytest.approx([1 / 3, 2 / 3])
    assert anomaly._weights(3, 30) == pytest.approx([1 / 2.1, 1.1 / 2.1])
    assert anomaly._weights(1, 10**6) == pytest.approx([0.5, 0.5], abs=1e-5)


def test_a_surprise_is_the_logarithm_of_the_share_of_normal_rows_further_out():
    generator = np.random.default_rng(0)
    normal = np.stack([generator.exponential(0.3, 5000), generator.exponential(2, 5000)], axis=1)
    known = {n: torch.from_numpy(v) for n, v in anomaly._distribution(normal).items()}
    fresh = np.stack([generator.exponential(0.3, 5000), generator.exponential(2, 5000)], axis=1).astype(np.float32)
    got = anomaly._surprise(torch.from_numpy(fresh), known["term_knots"], known["term_excess"]).numpy()
    # Of an exponential distribution it is the value itself over its mean, also far beyond what was seen.
    np.testing.assert_allclose(got, fresh / [0.3, 2], rtol=0.12, atol=0.08)
    far = anomaly._surprise(torch.tensor([[30.0, 200.0]]), known["term_knots"], known["term_excess"]).numpy()
    np.testing.assert_allclose(far, [[100, 100]], rtol=0.12)
    low = anomaly._surprise(torch.tensor([[-5.0, -5.0]]), known["term_knots"], known["term_excess"]).numpy()
    assert np.array_equal(low, [[0, 0]])


def test_rows_that_are_all_alike_leave_no_surprise_undefined():
    known = {n: torch.from_numpy(v) for n, v in anomaly._distribution(np.zeros((5, 2))).items()}
    got = anomaly._surprise(torch.tensor([[0.0, 1.0]]), known["term_knots"], known["term_excess"])
    assert got.isfinite().all()
    assert got[0, 1] > 100


def test_curves_are_scikit_learns():
    score, positive = ties(150, 3)
    alarms, recall, precision = anomaly._curves(score, positive)
    expected = metrics.roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(alarms, expected[0][1:])
    np.testing.assert_allclose(recall, expected[1][1:])
    ours = dict(zip(recall, precision, strict=True))
    theirs = metrics.precision_recall_curve(positive, score)
    for r, p in ours.items():
        assert any(np.isclose(r, theirs[1]) & np.isclose(p, theirs[0]))


def test_pictures_tell_what_was_flagged(contest):
    data, model, application = contest
    histogram, bars = application.pictures(model, data.test, data.train, data.schema)
    metrics_ = application.evaluate(model, data.test, data.train).metrics
    flagged = round(metrics_["false_positive_rate"] * data.test.normal.sum())
    assert f"{flagged} of {data.test.normal.sum()} normal rows" in histogram.description
    assert f"threshold of {application.threshold:.3g}" in histogram.description
    assert bars.description.startswith("Bars of mean contributions, the largest first: column_")


def test_the_most_anomalous_images_are_shown_with_their_errors():
    data = samples.dataset("images")
    application, judgement = samples.judged("anomaly", "images")
    made = application.pictures(samples.trained("pca", "images", "normal"), data.test, data.train, data.schema)
    assert [picture.name for picture in made] == ["scores", "errors"]
    assert f"from {judgement.test.values['score'].max():.3g}" in made[1].description


def contaminated():
    """Normal rows of which one in twenty five is wildly off, and nobody says which."""
    x = normals(500, seed=1)
    off = np.arange(500) % 25 == 7
    x[off] = 6 * np.random.default_rng(5).normal(size=(off.sum(), 10))
    return samples.split(x, normal=~off, y=np.where(off, "odd", "usual")), off


def test_trimming_leaves_out_the_rows_that_are_reconstructed_worst():
    rows, off = contaminated()
    model, _ = samples.fit(ModelSpec("pca", (10,), {"code": 3}), rows, rows)
    with torch.inference_mode():
        error = ((model(torch.from_numpy(rows.x)) - torch.from_numpy(rows.x)) ** 2).mean(dim=1).numpy()
    kept = trimming.trimmed(model, rows, 0.04)
    assert np.array_equal(kept.ids, np.sort(np.argsort(error)[:480]))
    assert off[kept.ids].sum() <= 2  # of the 20 that were there
    assert len(trimming.trimmed(model, rows, 0.5)) == 250
    assert len(trimming.trimmed(model, rows.take(np.arange(1)), 0.5)) == 1
    assert len(trimming.trimmed(model, rows.take(np.arange(0)), 0.5)) == 0


def test_cells_that_nobody_observed_do_not_make_a_row_worse():
    rows, _ = contaminated()
    model, _ = samples.fit(ModelSpec("pca", (10,), {"code": 3}), rows, rows)
    seen = np.ones(rows.x.shape, bool)
    seen[0, 3:] = False
    gaps = replace(rows, x=np.where(seen, rows.x, 1e6).astype(np.float32), observed=seen)
    whole, some = trimming.errors(model, rows), trimming.errors(model, gaps)
    np.testing.assert_allclose(whole[1:], some[1:], rtol=1e-5)


CONTAMINATED = """
seed: 0
datasets:
  mine:
    path: data/raw/mine.parquet
    {labels}
    split: {{validation: 0.2, test: 0.3, seed: 0}}
applications:
  mine:
    anomaly: {{policy: mad, value: 5.0, share: null, neighbours: 5, references: 4096, reasons: 2}}
training: {{epochs: 3, patience: 3, batch_size: 64, learning_rate: 0.01, warmup: 0.1, weight_decay: 0.0, gradient_clip: 1.0, threads: 1}}
candidates:
  mine-pca: {{dataset: mine, applications: [anomaly], rows: trimmed, trim: 0.05, variant: pca, options: {{code: 3}}}}
rivals: {{seconds: 600}}
gate: {{must_beat_rivals: false, floor: null}}
"""


@pytest.fixture(
    params=["drop: [kind]", "label: kind\n    normal: [usual]"], ids=["no label", "a label that only judges"]
)
def place(request, tmp_path, monkeypatch):
    """A workspace whose rows are contaminated, and whose candidate trims them."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Workspace(tmp_path)
    (tmp_path / "data" / "raw").mkdir(parents=True)
    rows, _ = contaminated()
    frame = pd.DataFrame(rows.x, columns=[f"column_{i}" for i in range(10)]).assign(kind=rows.y)
    formats.write(tmp_path / "data" / "raw" / "mine.parquet", frame)
    place.params.write_text(CONTAMINATED.format(labels=request.param))
    return place


def test_a_candidate_may_learn_from_rows_that_it_trims_itself(place, capsys):
    assert stages.check(place).candidates["mine-pca"].trim == 0.05
    stages.prepare(place, "mine")
    stages.rivals(place, "mine")
    stages.train(place, "mine-pca")
    data = Dataset.load(place.prepared("mine"))
    count = round(0.05 * len(data.train))
    note = f"of {len(data.train)} training rows {count} were left out, which a first training reconstructed worst"
    assert note in files.read_json(place.remarks("mine-pca"))
    assert f"mine-pca: {note}" in capsys.readouterr().out
    stages.evaluate(place, "mine-pca")
    held = stages.contest(place, params.load(place.params), "mine", "anomaly")
    assert held.chosen == "mine-pca"
    labelled = data.test.normal is not None
    assert ("logistic" in held.missing) or labelled
    if labelled:
        assert held.score("mine-pca") > 0.95
    # What is trained on the rows that are left is what was written.
    _, model = bundles.load_model(place.candidate("mine-pca"))
    spec = ModelSpec.of("pca", data.schema.layout, {"code": 3})
    first, _ = samples.fit(spec, data.train, data.validation)
    again, _ = samples.fit(spec, trimming.trimmed(first, data.train, 0.05), data.validation)
    torch.testing.assert_close(model.state_dict(), again.state_dict())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trim: 0.05, ", "", "trim is None with rows trimmed; expected a share, such as 0.05, with `rows: trimmed`"),
        ("rows: trimmed, ", "", "trim is 0.05 with rows all; expected a share"),
        ("trim: 0.05", "trim: 0.7", "trim is 0.7: input should be less than or equal to 0.5"),
    ],
)
def test_a_share_to_trim_goes_with_trimmed_rows_only(place, old, new, message):
    text = place.params.read_text()
    assert old in text
    place.params.write_text(text.replace(old, new))
    with pytest.raises(params.ParamsError) as error:
        params.load(place.params)
    assert f"candidates.mine-pca.{message}" in str(error.value)


def test_an_application_for_all_rows_takes_no_trimmed_candidate(place):
    text = place.params.read_text()
    text = text.replace("    anomaly: {", "    reduction: {code: 3, neighbours: 5}\n    anomaly: {").replace(
        "[anomaly]", "[reduction, anomaly]"
    )
    place.params.write_text(text)
    with pytest.raises(params.ParamsError, match=r"rows is trimmed; reduction on mine learns from all rows"):
        stages.check(place)
