"""Drift: distances that others would measure too, by name, and no alarm where chance alone moved something."""

import json
import math
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

import samples
from sevenfold import drift
from sevenfold.datasets.base import Column, ImageSchema, TableSchema
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder

COUNTS = (
    st.integers(2, 12)
    .flatmap(lambda bins: st.tuples(*[hnp.arrays(np.int64, bins, elements=st.integers(0, 1000)) for _ in range(2)]))
    .filter(lambda pair: all(counts.any() for counts in pair))
)
NUMBERS = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-50, 50, width=32))
WHOLE = hnp.arrays(np.float32, st.integers(1, 300), elements=st.integers(0, 4))


class Mean(Autoencoder):
    """Reconstructs each row as the mean of its values, so rows whose values agree have no error."""

    def __init__(self, shape):
        super().__init__(Layout(tuple(shape)), 1)

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x.flatten(1).mean(dim=1, keepdim=True)

    def decode(self, z):
        return z.expand(-1, self.size).reshape(-1, *self.shape)

    def losses(self, x, observed):
        return {}


def table(numbers, categories=()):
    """Return the schema of so many columns of numbers, and of columns with so many categories each."""
    columns = [Column(f"number_{i}", "numeric", "float64", gaps=True) for i in range(numbers)]
    columns += [
        Column(f"text_{i}", "categorical", "str", categories=tuple(map(str, range(width))), gaps=True)
        for i, width in enumerate(categories)
    ]
    return TableSchema(tuple(columns))


def learned(x, schema=None, observed=None, held_out=None):
    """Return (reference, model, schema) of the rows x."""
    schema = schema or table(x.shape[1])
    model = Mean(schema.shape)
    validation = samples.split(x) if held_out is None else samples.split(held_out)
    return drift.Reference.learn(model, schema, samples.split(x, observed), validation), model, schema


def compared(x, now, observed=None, observed_now=None):
    return drift.compare(*learned(np.float32(x), observed=observed), np.float32(now), observed_now)


def plain_psi(then, now):
    """The index as its definition says, one bin after the other."""
    used = [i for i in range(len(then)) if then[i] or now[i]]
    half = len(used) / 2
    total = 0.0
    for i in used:
        p = (then[i] + 0.5) / (sum(then) + half)
        q = (now[i] + half * p) / (sum(now) + half)
        total += (q - p) * math.log(q / p)
    return total


def two_samples(x, y):
    """The distance as SciPy measures it, which warns where it has no probability for so few rows."""
    with warnings.catch_warnings(action="ignore"):
        return stats.ks_2samp(x, y, method="asymp").statistic


@given(COUNTS)
def test_psi_is_the_sum_over_bins_that_its_definition_says(counts):
    then, now = counts
    found, bins = drift.psi(then, now)
    assert found == pytest.approx(plain_psi(then.tolist(), now.tolist()), abs=1e-12)
    assert bins == sum(a + b > 0 for a, b in zip(then, now, strict=True))
    assert 0 <= found < np.inf
    assert drift.psi(then, then)[0] == pytest.approx(0, abs=0.2)


def test_of_many_rows_psi_is_that_of_the_shares_without_smoothing():
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.25, 0.25, 0.25, 0.25])
    found, _ = drift.psi((1e8 * p).astype(int), (1e8 * q).astype(int))
    assert found == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-5)


@pytest.mark.parametrize("kinds", [(NUMBERS, NUMBERS), (WHOLE, WHOLE), (NUMBERS, WHOLE)])
def test_the_distance_of_numbers_is_that_of_scipy_within_a_step(kinds):
    @given(*kinds)
    def holds(x, now):
        reference, *_ = learned(x[:, None])
        found = drift.ks(reference.columns[0].quantiles, np.sort(now))
        assert found == pytest.approx(two_samples(x, now), abs=0.01 + 1e-9)

    holds()


def test_bins_hold_the_rows_between_deciles_of_the_training():
    random = np.random.default_rng(0)
    x, now = random.normal(size=(5000, 1)), random.normal(0.3, 1, (700, 1))
    reference, model, schema = learned(np.float32(x))
    edges = np.quantile(np.float32(x), np.arange(1, 10) / 10, method="inverted_cdf")
    then = np.histogram(x, [-np.inf, *edges, np.inf])[0]
    wanted = np.histogram(np.float32(now), [-np.inf, *edges, np.inf])[0]
    np.testing.assert_allclose(reference.columns[0].counts, then, atol=1)
    measure = drift.compare(reference, model, schema, np.float32(now), None).columns[0]
    assert measure.psi_raw == pytest.approx(plain_psi([500] * 10, wanted.tolist()), abs=0.01)


def test_psi_beyond_chance_is_about_that_of_the_two_populations():
    random = np.random.default_rng(1)
    reference, model, schema = learned(np.float32(random.normal(size=(20_000, 1))))
    edges = np.concatenate([[-np.inf], stats.norm.ppf(np.arange(1, 10) / 10), [np.inf]])
    q = np.diff(stats.norm.cdf(edges, 0.5, 1))
    population = ((q - 0.1) * np.log(q / 0.1)).sum()
    found = [
        drift.compare(reference, model, schema, np.float32(random.normal(0.5, 1, (400, 1))), None).columns[0].psi
        for _ in range(100)
    ]
    assert np.mean(found) == pytest.approx(population, rel=0.1)


@pytest.mark.parametrize("rows", [1, 5, 30, 200, 2000])
def test_of_200_batches_without_drift_at_most_3_percent_have_a_column_above_0(rows):
    """30 columns each: smooth, with gaps, heavily tied, constant but for a few, and of categories of which some are rare."""
    random = np.random.default_rng(rows)
    schema = table(24, [3, 8, 40, 2, 2, 5])

    def draw(count):
        z = random.normal(size=(count, 24))
        z[:, 6:12] = random.poisson(0.7, (count, 6))
        z[:, 12:15] = random.random((count, 3)) < 0.01
        z[:, 15:18] = np.exp(3 * z[:, 15:18])
        parts, seen = [z], [np.ones((count, 24), bool)]
        seen[0][:, 18:] = random.random((count, 6)) > [0.5, 0.2, 0.05, 0.01, 0.001, 0.9]
        for width in (3, 8, 40, 2, 2, 5):
            shares = 0.6 ** np.arange(width)
            parts.append(np.eye(width)[random.choice(width, count, p=shares / shares.sum())])
            seen.append(np.ones((count, width), bool))
        return np.float32(np.concatenate(parts, axis=1)), np.concatenate(seen, axis=1)

    alarms, apparent = 0, 0
    for fresh in range(8):
        x, observed = draw(500 if fresh % 2 else 5000)
        reference, model, _ = learned(x, schema, observed, held_out=draw(300)[0])
        for _ in range(25):
            found = drift.compare(reference, model, schema, *draw(rows))
            alarms += found.worst[1] > 0
            apparent += found.ranked[0].psi_raw > drift.SOME or max(m.psi_raw for m in found.columns) > drift.SOME
    assert alarms <= 0.03 * 200
    if rows <= 30:
        assert apparent > 150, "uncorrected, small batches seem to drift most of the time"


def test_rows_of_few_groups_tell_as_little_as_their_groups():
    """Of 12 groups then and 12 others now, each of 50 rows that have much in common, none is drift."""
    random = np.random.default_rng(20)
    schema, model = table(4), Mean((4,))
    alarms = {True: 0, False: 0}
    for _ in range(50):
        then, now = (np.repeat(random.normal(size=(12, 4)), 50, axis=0) for _ in range(2))
        then, now = (np.float32(x + 0.2 * random.normal(size=x.shape)) for x in (then, now))
        for told in alarms:
            groups = np.repeat([f"group {i}" for i in range(12)], 50) if told else None
            split = replace(samples.split(then), groups=groups)
            reference = drift.Reference.learn(model, schema, split, split)
            found = drift.compare(reference, model, schema, now, None)
            alarms[told] += found.reading != "stable"
            assert (" of the training in 12 groups: " in found.sentence()) == told
    assert alarms[True] <= 2
    assert alarms[False] == 50


def test_more_drift_is_farther_and_is_named():
    random = np.random.default_rng(2)
    x = random.normal(size=(3000, 4))
    found = []
    for shift in (0.3, 0.6, 1.2):
        now = random.normal(size=(600, 4))
        now[:, 2] += shift
        one = compared(x, now)
        assert one.worst[0] == "number_2"
        found.append(one.worst[1])
    assert found == sorted(found)
    assert [one > drift.LARGE for one in found] == [False, True, True]


def test_categories_are_compared_by_total_variation_and_their_own_bins():
    schema = table(0, [3])
    then, now = np.repeat(np.eye(3), [500, 300, 200], axis=0), np.repeat(np.eye(3), [20, 30, 50], axis=0)
    found = drift.compare(*learned(np.float32(then), schema), np.float32(now), None).columns[0]
    assert found.distance == pytest.approx(0.3)
    assert found.psi_raw == pytest.approx(plain_psi([500, 300, 200, 0], [20, 30, 50, 0]))
    assert found.to_json()["total_variation"] == pytest.approx(0.3)


def test_gaps_are_a_bin_of_their_own():
    random = np.random.default_rng(3)
    x, now = random.normal(size=(1000, 2)), random.normal(size=(400, 2))
    then_seen, now_seen = np.ones((1000, 2), bool), np.ones((400, 2), bool)
    then_seen[:100, 0], now_seen[:200, 0] = False, False
    found = compared(x, np.where(now_seen, now, 0), then_seen, now_seen)
    first, second = found.columns
    assert (first.missing_then, first.missing_now) == (0.1, 0.5)
    assert first.psi > drift.LARGE > drift.SOME > second.psi
    assert first.distance < 0.1, "what is observed is as it was"
    assert "gaps 10% then and 50% now" in found.sentence()


@pytest.mark.parametrize("then", [True, False])
@pytest.mark.parametrize("now", [True, False])
def test_a_column_of_gaps_alone_is_told_by_its_gaps(then, now):
    x = np.random.default_rng(4).normal(size=(200, 2))
    seen = [np.ones((200, 2), bool) for _ in range(2)]
    for mask, gaps in zip(seen, (then, now), strict=True):
        mask[:, 0] = not gaps
    found = compared(x * seen[0], x * seen[1], *seen).columns[0]
    assert (found.missing_then, found.missing_now) == (then, now)
    assert (found.distance is None) == (then or now)
    assert (found.psi > drift.LARGE) == (then != now)
    assert math.isfinite(found.psi_raw)


def test_rows_of_gaps_alone_have_no_error():
    x = np.random.default_rng(4).normal(size=(100, 3))
    found = compared(x, np.zeros((5, 3)), None, np.zeros((5, 3), bool))
    assert found.error is None
    assert found.error_ratio is None
    json.dumps(found.to_json(), allow_nan=False)
    errors = drift.errors(Mean((3,)), np.float32([[0, 3, 9], [7, 7, 7]]), np.array([[True, True, False], [False] * 3]))
    np.testing.assert_allclose(errors, [(4**2 + 1**2) / 2, np.nan])


def test_a_constant_column_shows_whatever_is_another_value():
    x = np.ones((300, 1))
    assert compared(x, np.ones((50, 1))).worst == ("number_0", 0)
    for other in (np.nextafter(np.float32(1), np.float32(0)), 1.5, -3.0):
        found = compared(x, np.full((50, 1), other)).columns[0]
        assert found.psi > drift.LARGE
        assert found.distance == 1


def test_a_value_that_many_rows_share_has_a_bin_of_its_own():
    x = np.repeat([0.0, 1.0, 2.0], [600, 300, 100])[:, None]
    assert compared(x, np.repeat([0.0, 1.0, 2.0], [60, 30, 10])[:, None]).columns[0].psi_raw == pytest.approx(
        0, abs=1e-3
    )
    assert compared(x, np.full((100, 1), 0.5)).worst[1] > drift.LARGE
    half = np.repeat([0.5, 1.0, 2.0], [60, 30, 10])[:, None]
    assert compared(x, half).worst[1] > drift.LARGE


def test_one_row_is_no_drift_and_all_its_numbers_are_finite():
    x = np.random.default_rng(5).normal(size=(1000, 3))
    for row in (np.zeros(3), np.full(3, 1e15), x[0]):
        found = compared(x, row[None])
        assert found.worst[1] == 0
        json.dumps(found.to_json(), allow_nan=False)
    alone = compared(x[:1], x)
    json.dumps(alone.to_json(), allow_nan=False)


def test_errors_that_are_no_numbers_count_as_the_largest():
    x = np.random.default_rng(6).normal(size=(200, 2))
    huge = np.full((100, 2), [-1e30, 1e30])
    found = compared(x, huge)
    assert found.error_rose
    assert found.error.psi > drift.LARGE
    assert math.isfinite(found.error_ratio)
    json.dumps(found.to_json(), allow_nan=False)


def test_columns_that_no_longer_go_together_show_in_the_error_alone():
    random = np.random.default_rng(7)
    factor = random.normal(size=(2000, 1))
    x = factor + 0.1 * random.normal(size=(2000, 5))
    now = random.permuted(x[:500], axis=0)
    found = compared(x, now)
    assert found.ranked[0].psi < drift.SOME
    assert found.worst[0] == drift.ERROR
    assert found.reading == "large"
    ours = ((now - now.mean(axis=1, keepdims=True)) ** 2).mean(axis=1)
    theirs = ((x - x.mean(axis=1, keepdims=True)) ** 2).mean(axis=1)
    assert found.error_ratio == pytest.approx(np.median(ours) / np.median(theirs), rel=0.01)
    assert found.error.distance == pytest.approx(two_samples(ours, theirs), abs=0.01)
    assert f"{found.error_ratio:.3g} times that of held-out rows, PSI" in found.sentence()


def test_an_error_below_that_of_held_out_rows_is_no_alarm():
    random = np.random.default_rng(8)
    x = random.normal(size=(1000, 1)) + 0.1 * random.normal(size=(1000, 5))
    held_out = x + 0.2 * random.normal(size=x.shape)
    found = drift.compare(*learned(np.float32(x), held_out=np.float32(held_out)), np.float32(x), None)
    assert found.error.psi > drift.LARGE
    assert found.error_ratio < 0.5
    assert found.worst[1] == 0
    assert found.reading == "stable"
    drift.require(found, 0)


def test_errors_where_there_were_none_are_told_without_a_ratio():
    x = np.random.default_rng(9).normal(size=(300, 1)) * np.ones((1, 2))
    found = compared(x, x[::-1] + np.array([0.5, -0.5]))
    assert found.error_ratio is None
    assert found.worst[0] == drift.ERROR
    assert f"{drift.ERROR} PSI {found.worst[1]:.3g}, KS 1.00" in found.sentence()


def test_a_reference_without_held_out_rows_measures_no_error():
    x = np.random.default_rng(9).normal(size=(100, 2))
    found = drift.compare(*learned(np.float32(x), held_out=np.zeros((0, 2))), np.float32(x), None)
    assert found.error is None
    assert found.to_json()["reconstruction_error"] is None


def test_the_order_of_rows_does_not_matter_and_they_stay_as_they_are():
    random = np.random.default_rng(10)
    parts = learned(np.float32(random.normal(size=(500, 3))))
    now = np.float32(random.normal(0.2, 1, (300, 3)))
    seen = random.random(now.shape) > 0.2
    before = now.copy(), seen.copy()
    one = drift.compare(*parts, now, seen)
    order = random.permutation(300)
    other = drift.compare(*parts, now[order], seen[order])
    assert one.to_json() == other.to_json()
    assert np.array_equal(now, before[0])
    assert np.array_equal(seen, before[1])


def pictures(count, channels, seed=0):
    """Noise that is smooth over a few pixels."""
    random = np.random.default_rng(seed)
    coarse = random.random((count, channels, 4, 5)).repeat(2, axis=2).repeat(2, axis=3)
    return np.float32(0.8 * coarse + 0.2 * random.random(coarse.shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_summaries_of_an_image_are_what_their_names_say(channels):
    x = pictures(7, channels)
    x[:, :, :2] = 0
    found = drift.summaries(x)
    assert [*found] == ["brightness", "contrast", "sharpness", "clipped"] + ["colour"] * (channels > 1)
    for i, image in enumerate(x):
        across = [image[:, :, 1:] - image[:, :, :-1], image[:, 1:] - image[:, :-1]]
        wanted = {
            "brightness": image.mean(),
            "contrast": np.sqrt(((image - image.mean()) ** 2).mean()),
            "sharpness": np.sqrt(np.mean(np.concatenate([step.ravel() for step in across]) ** 2)),
            "clipped": np.isin(image, [0, 1]).sum() / image.size,
        }
        if channels > 1:
            wanted["colour"] = np.mean([image[:, r, c].std() for r in range(8) for c in range(10)])
        for name, value in wanted.items():
            assert found[name][i] == pytest.approx(value, rel=1e-4), name


def test_images_of_one_pixel_have_summaries_too():
    found = drift.summaries(np.full((3, 1, 1, 1), 0.5, np.float32))
    assert {name: set(values.tolist()) for name, values in found.items()} == {
        "brightness": {0.5}, "contrast": {0.0}, "sharpness": {0.0}, "clipped": {0.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda x: np.clip(x + 0.25, 0, 1), {"brightness", "clipped"}),
        (lambda x: 0.5 + 0.4 * (x - 0.5), {"contrast", "sharpness"}),
        (lambda x: (x + np.roll(x, 1, axis=2) + np.roll(x, 1, axis=3)) / 3, {"sharpness"}),
        (lambda x: np.repeat(x.mean(axis=1, keepdims=True), 3, axis=1), {"colour"}),
    ],
    ids=["brighter", "flatter", "blurred", "grey"],
)
def test_images_that_look_different_are_named_by_what_is_different(change, names):
    schema = ImageSchema((3, 8, 10), 0.0, 255.0, "uint8")
    parts = learned(pictures(800, 3), schema)
    same = drift.compare(*parts, pictures(300, 3, seed=1), None)
    assert same.reading == "stable"
    found = drift.compare(*parts, np.float32(change(pictures(300, 3, seed=1))), None)
    assert names <= {measure.name for measure in found.columns if measure.psi > drift.LARGE}
    assert found.reading == "large"


def test_a_reference_survives_its_arrays(tmp_path):
    for kind in samples.DATASETS:
        data, model = samples.dataset(kind), samples.trained("pca", kind)
        reference = drift.Reference.learn(model, data.schema, data.train, data.validation)
        safetensors.numpy.save_file(reference.arrays(), tmp_path / "arrays")
        again = drift.Reference.from_arrays(safetensors.numpy.load_file(tmp_path / "arrays"), data.schema)
        one, two = (drift.compare(r, model, data.schema, data.test.x, data.test.observed) for r in (reference, again))
        assert one == two
        assert one.rows_then == len(data.train)
        assert again.error.rows == len(data.validation)
        assert (tmp_path / "arrays").stat().st_size < 10_000


def test_arrays_that_are_no_reference_of_these_columns_are_refused():
    reference, _, schema = learned(np.float32(np.random.default_rng(0).normal(size=(50, 2))))
    good = reference.arrays()
    for bad, reason in (
        ({}, "it holds nothing"),
        ({k: v for k, v in good.items() if k != "bins"}, "it holds categories, missing, quantiles, units"),
        (good | {"more": np.zeros(1)}, "it holds bins, categories, missing, more, quantiles, units"),
        (good | {"bins": good["bins"][1:]}, r"bins has shape \(2, 10\) and type int64"),
        (good | {"bins": good["bins"] - 10}, "bins holds numbers below 0"),
        (good | {"missing": good["missing"].astype(float)}, r"missing has shape \(3,\) and type float64"),
        (good | {"quantiles": good["quantiles"] * np.nan}, "quantiles are not finite and ascending"),
        (good | {"quantiles": -good["quantiles"]}, "quantiles are not finite and ascending"),
        (good | {"bins": 0 * good["bins"]}, "3 columns have more independent rows than rows, or none"),
        (good | {"units": 3 * good["units"]}, "3 columns have more independent rows than rows, or none"),
        (good | {"units": 0 * good["units"]}, "3 columns have more independent rows than rows, or none"),
        ({k: 0 * v for k, v in good.items()}, "2 columns have more independent rows than rows, or none"),
    ):
        with pytest.raises(ValueError, match=f"the reference of the training rows is wrong: {reason}.*; expected"):
            drift.Reference.from_arrays(bad, schema)
    with pytest.raises(ValueError, match="the reference of the training rows is wrong"):
        drift.Reference.from_arrays(good, table(3))
    with pytest.raises(ValueError, match="the reference has 2 columns; expected 3, as the schema has; take both"):
        drift.compare(reference, Mean((3,)), table(3), np.zeros((1, 3), np.float32), None)


@pytest.mark.parametrize("x", [np.zeros((0, 2)), np.zeros((4, 3)), np.zeros(2)])
def test_rows_of_another_shape_are_refused(x):
    parts = learned(np.float32(np.random.default_rng(0).normal(size=(50, 2))))
    with pytest.raises(ValueError, match=r"x has shape \(.*\); expected \(n, 2\) with n of 1 or more"):
        drift.compare(*parts, np.float32(x), None)


def test_too_much_drift_stops_by_name_and_number():
    random = np.random.default_rng(11)
    x = random.normal(size=(1000, 2))
    found = compared(x, x[:300] + np.array([0, 1]))
    name, value = found.worst
    drift.require(found, value)
    with pytest.raises(
        drift.DriftError,
        match=rf"the PSI of number_1 is {value:.3g} in the first 300 rows; expected at most 0\.25; mend the rows, train",
    ):
        drift.require(found, 0.25)
    for nonsense in (-1, math.nan):
        with pytest.raises(ValueError, match=r"the largest PSI to allow is .*; expected 0 or more, such as 0\.25"):
            drift.require(found, nonsense)
    assert name == "number_1"


def test_what_a_receipt_gets_is_plain_and_bounded_and_begins_with_the_worst():
    random = np.random.default_rng(12)
    x, now = random.normal(size=(300, 120)), random.normal(size=(300, 120))
    now[:, 70] += 2
    now[:, 90] += 1
    found = compared(x, now)
    plain = found.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (len(plain["columns"]), plain["columns_compared"]) == (drift.SHOWN, 120)
    assert [c["name"] for c in plain["columns"][:2]] == ["number_70", "number_90"]
    assert plain["columns"][0].keys() == {"name", "psi", "psi_raw", "ks", "missing_then", "missing_now"}
    assert (plain["rows"], plain["rows_then"], plain["reading"]) == (300, 300, "large")
    assert plain["worst"] == {"name": found.worst[0], "psi": round(found.worst[1], 6)}
    assert len(json.dumps(plain)) < 10_000
    sentence = found.sentence()
    assert sentence.startswith("drift of 300 rows against 300 of the training: number_70 PSI ")
    assert "\n" not in sentence
    assert sentence.index("number_70") < sentence.index("number_90")


def test_a_line_about_rows_without_drift_says_so():
    x = np.random.default_rng(13).normal(size=(500, 3))
    line = compared(x, x[:200]).sentence()
    assert "no more than chance makes in 3 measures" in line
    assert "(a PSI below 0.1 is stable, up to 0.25 some drift, above it large)" in line


def test_of_many_rows_some_are_looked_at_evenly_spread(monkeypatch):
    monkeypatch.setattr(drift, "_MOST_ROWS", 100)
    x = np.arange(1000, dtype=np.float32)[:, None]
    reference, *_ = learned(x)
    assert reference.columns[0].rows == reference.error.rows == 100
    assert reference.columns[0].quantiles[[0, -1]].tolist() == [0, 990]


def test_pieces_of_rows_give_the_same_as_all_at_once(monkeypatch):
    x = pictures(50, 3)
    model = Mean((3, 8, 10))
    whole = drift.summaries(x), drift.errors(model, x, None)
    monkeypatch.setattr(drift, "_CELLS", 1000)
    parts = drift.summaries(x), drift.errors(model, x, None)
    assert all(np.array_equal(whole[0][name], parts[0][name]) for name in whole[0])
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-6)
    expected = (torch.from_numpy(x) - model(torch.from_numpy(x))).square().flatten(1).mean(dim=1)
    np.testing.assert_allclose(whole[1], expected, rtol=1e-6)


def test_ten_thousand_rows_of_a_hundred_columns_take_well_under_a_second():
    random = np.random.default_rng(14)
    parts = learned(np.float32(random.normal(size=(10_000, 100))))
    now = np.float32(random.normal(size=(10_000, 100)))
    seen = random.random(now.shape) > 0.1
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        drift.compare(*parts, now, seen)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_a_model_of_every_kind_can_be_compared():
    for kind in samples.DATASETS:
        data, model = samples.dataset(kind), samples.trained("pca", kind)
        reference = drift.Reference.learn(model, data.schema, data.train, data.validation)
        same = drift.compare(reference, model, data.schema, data.test.x, data.test.observed)
        assert same.reading == "stable"
        shifted = drift.compare(reference, model, data.schema, data.test.x + 1, data.test.observed)
        assert shifted.reading == "large"
        assert replace(shifted, error=None).worst[1] > drift.LARGE
