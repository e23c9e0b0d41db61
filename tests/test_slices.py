"""Slices are the rows of one label or category, and a model is judged in each as it is on the whole."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from sevenfold import evaluation, formats, gate, preparation, slices
from sevenfold.applications.anomaly import Anomaly
from sevenfold.applications.base import Scores
from sevenfold.applications.reduction import Reduction
from sevenfold.evaluation import Judgement
from tests import tiny

REDUCTION = Reduction(**tiny.REDUCTION)
ANOMALY = Anomaly(**tiny.ANOMALY)


def prepare(frame, **options):
    common = {
        "label": "kind",
        "normal": ["normal"],
        "identifier": "customer",
        "group": None,
        "drop": (),
        "categorical": (),
        "value_range": None,
        "duplicates": "error",
        "validation": 0.2,
        "test": 0.5,
        "seed": 0,
    }
    return preparation.prepare("table", formats.Rows(frame), **common | options)


@pytest.fixture(scope="module")
def frame():
    found = tiny.table(300).frame
    found["zone"] = [f"z{i % 3}" if i % 5 else None for i in range(len(found))]
    return found


@pytest.fixture(scope="module")
def dataset(frame):
    return prepare(frame)


def judged(application, values):
    return Judgement(Scores({}, {}), Scores({application.primary: application.statistic(values)}, values))


def shares(count, seed=0):
    """Values of a reduction that keeps about 0.8 of each row's variance."""
    random = np.random.default_rng(seed)
    total = random.uniform(1, 2, count)
    return {"error": total * random.uniform(0.1, 0.3, count), "total": total}


def test_rows_can_be_sliced_by_the_label_and_by_every_column_of_categories(dataset):
    assert slices.columns(dataset, "kind") == ["kind", "city", "vip", "zone"]
    assert slices.columns(dataset, None) == ["city", "vip", "zone"]
    assert slices.columns(tiny.dataset("images"), "label") == ["label"]
    assert slices.columns(tiny.dataset("images"), None) == []


def test_the_members_of_slices_are_the_groups_of_the_raw_rows_gaps_too(dataset, frame):
    wanted = ["kind", "city", "vip", "zone"]
    found = slices.members(dataset, wanted, label="kind")
    rows = frame.set_index("customer").loc[dataset.test.ids].reset_index()
    expected = {}
    for column in wanted:
        for value, group in rows.groupby(column, dropna=False):
            expected[f"{column}={'(gap)' if pd.isna(value) else value}"] = group.index.tolist()
    assert {name: positions.tolist() for name, positions in found.items()} == expected
    assert "zone=(gap)" in found
    assert sum(len(positions) for positions in found.values()) == len(wanted) * len(dataset.test)


def test_images_are_sliced_by_their_label():
    data = tiny.dataset("images")
    found = slices.members(data, ["label"], label="label")
    assert {name.removeprefix("label=") for name in found} == set(data.test.y)
    for name, positions in found.items():
        assert set(data.test.y[positions]) == {name.removeprefix("label=")}


def test_columns_that_are_none_or_have_too_many_values_are_all_named_with_what_there_is(frame):
    data = prepare(frame.assign(street=[f"s{i:03d}" for i in range(len(frame))]), categorical=("street",))
    with pytest.raises(ValueError, match="'age' is no label") as caught:
        slices.members(data, ["age", "street", "city", "town"], label="kind")
    there = "there are: kind, city, vip, zone, street"
    message = str(caught.value)
    assert f"'age' is no label and no categorical feature; {there}" in message
    assert f"'town' is no label and no categorical feature; {there}" in message
    assert f"'street' has {len(data.test)} values in the test rows; expected at most 100" in message
    assert "city'" not in message
    with pytest.raises(ValueError, match="'kind' is no label and no categorical feature; there are: none"):
        slices.members(tiny.dataset("images"), ["kind"], label=None)


def test_a_slices_score_is_the_metric_of_its_rows(dataset):
    values = shares(len(dataset.test))
    members = slices.members(dataset, ["city", "zone"], label="kind")
    found = slices.scores(REDUCTION, judged(REDUCTION, values), members)
    assert list(found) == list(members)
    for name, rows in members.items():
        assert found[name][0] == len(rows)
        expected = 1 - sum(values["error"][i] for i in rows) / sum(values["total"][i] for i in rows)
        assert found[name][1] == pytest.approx(expected)


def test_a_score_that_is_not_defined_in_a_slice_is_none():
    values = {"error": np.zeros(4), "total": np.array([0.0, 0.0, 1.0, 1.0])}
    found = slices.scores(REDUCTION, judged(REDUCTION, values), {"a=1": np.array([0, 1]), "a=2": np.array([2, 3])})
    assert np.isnan(found["a=1"][1])
    assert found["a=2"] == (2, 1.0)


def test_one_kind_of_anomaly_is_judged_beside_all_normal_rows_and_one_kind_of_normal_row_beside_all_anomalies():
    random = np.random.default_rng(1)
    kind = np.repeat(["fine", "good", "bent", "torn"], [60, 50, 20, 30])
    strange = np.isin(kind, ["bent", "torn"])
    score = random.normal(size=len(kind)) + np.select([kind == "bent", kind == "torn", kind == "good"], [3, 0.5, 1], 0)
    values = {"score": score, "anomaly": strange.astype(np.float64)}
    members = {f"kind={k}": np.flatnonzero(kind == k) for k in np.unique(kind)} | {"mixed": np.arange(100, 150)}
    found = slices.scores(ANOMALY, judged(ANOMALY, values), members)

    def precision(rows):
        return pytest.approx(sklearn.metrics.average_precision_score(strange[rows], score[rows]))

    assert found["kind=bent"] == (20, precision((kind == "bent") | ~strange))
    assert found["kind=torn"] == (30, precision((kind == "torn") | ~strange))
    assert found["kind=fine"] == (60, precision((kind == "fine") | strange))
    assert found["kind=good"] == (50, precision((kind == "good") | strange))
    assert found["mixed"] == (50, precision(members["mixed"]))
    assert found["kind=bent"][1] > found["kind=torn"][1]
    # Two are compared on the same rows.
    other = {**values, "score": random.normal(size=len(kind))}
    for part in slices.against(ANOMALY, judged(ANOMALY, values), judged(ANOMALY, other), members):
        if part.rows >= gate.FEWEST_IN_SLICE:
            theirs = slices.scores(ANOMALY, judged(ANOMALY, other), members)[part.name][1]
            assert part.against_champion.difference == pytest.approx(found[part.name][1] - theirs)
            assert part.against_champion.low <= part.against_champion.difference <= part.against_champion.high


def test_who_is_judged_alike_differs_by_nothing_in_any_slice(dataset):
    members = slices.members(dataset, ["city", "vip"], label="kind")
    values = shares(len(dataset.test))
    ours, theirs = (judged(REDUCTION, {n: v.copy() for n, v in values.items()}) for _ in range(2))
    found = slices.against(REDUCTION, ours, theirs, members)
    assert [part.name for part in found] == list(members)
    assert all(part.against_champion == gate.Interval(0.0, 0.0, 0.0) for part in found)


def test_a_planted_worse_slice_is_proven_worse_and_the_others_are_not(dataset):
    members = slices.members(dataset, ["city"], label="kind")
    theirs = shares(len(dataset.test))
    ours = {n: v.copy() for n, v in theirs.items()}
    ours["error"] *= 0.5
    bern = members["city=Bern"]
    ours["error"][bern] = 2 * theirs["error"][bern]
    parts = {p.name: p for p in slices.against(REDUCTION, judged(REDUCTION, ours), judged(REDUCTION, theirs), members)}
    for name, part in parts.items():
        rows = members[name]
        interval = part.against_champion
        difference = (theirs["error"][rows].sum() - ours["error"][rows].sum()) / theirs["total"][rows].sum()
        assert interval.difference == pytest.approx(difference)
        assert interval.low <= interval.difference <= interval.high
        assert (interval.high < 0) == (name == "city=Bern")
        assert (interval.low > 0) == (name != "city=Bern")
    standing = gate.Standing(0.9, 0.9, None, gate.Interval(0.1, 0.05, 0.2), slices=tuple(parts.values()))
    choice = gate.choose({"new": standing}, gate.Rule(False, slices=("city",)))
    assert choice.winner is None
    (reason,) = choice.reasons[1:]
    assert reason.startswith(f"it is proven worse than today's champion in the slice city=Bern ({len(bern)} rows)")


def test_slices_of_few_rows_are_not_compared(dataset):
    values = shares(len(dataset.test))
    members = {"a=1": np.arange(gate.FEWEST_IN_SLICE - 1), "a=2": np.arange(gate.FEWEST_IN_SLICE)}
    few, enough = slices.against(REDUCTION, judged(REDUCTION, values), judged(REDUCTION, values), members)
    assert (few.rows, few.against_champion) == (29, None)
    assert (enough.rows, enough.against_champion) == (30, gate.Interval(0.0, 0.0, 0.0))


def test_rows_that_come_in_groups_are_drawn_by_whole_groups_in_a_slice_too():
    """Ten rows of each group are alike, so they are worth no more than one."""
    rows, group = np.arange(0, 400, 2), np.repeat(np.arange(40), 10)
    ours, theirs = shares(400, 1), shares(400, 2)
    for values in (ours, theirs):
        for name in values:
            values[name] = np.repeat(values[name][::10], 10)
    members = {"part=even": rows}
    (alone,) = slices.against(REDUCTION, judged(REDUCTION, ours), judged(REDUCTION, theirs), members)
    grouped = [judged(REDUCTION, {**values, evaluation.GROUP: group}) for values in (ours, theirs)]
    (together,) = slices.against(REDUCTION, *grouped, members)
    narrow, wide = alone.against_champion, together.against_champion
    assert wide.difference == narrow.difference
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_comparison_leaves_what_was_judged_as_it_was(dataset):
    values = shares(len(dataset.test))
    ours = judged(REDUCTION, values)
    before = replace(ours, test=Scores(dict(ours.test.metrics), {n: v.copy() for n, v in values.items()}))
    slices.against(REDUCTION, ours, ours, slices.members(dataset, ["city"], label="kind"))
    assert ours.test.metrics == before.test.metrics
    assert ours.replicates == {}
    for name, value in before.test.values.items():
        np.testing.assert_array_equal(ours.test.values[name], value)
