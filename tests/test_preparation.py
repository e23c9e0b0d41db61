"""Splits are seeded, stratified, grouped and share nothing; what is wrong with the data is said before anything is made."""

import re

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st

from sevenfold import preparation
from sevenfold.datasets.base import SPLITS, DataError
from sevenfold.formats import Rows


def table(n=60):
    r = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "size": r.normal(size=n),
            "kind": np.array(list("abc"))[np.arange(n) % 3],
            "label": np.where(np.arange(n) % 4, "good", "bad"),
            "key": [f"k{i}" for i in range(n)],
            "person": [f"p{i // 4}" for i in range(n)],
        }
    )


def prepare(frame=None, images=None, **changes):
    given = {
        "label": None,
        "normal": None,
        "identifier": None,
        "group": None,
        "drop": (),
        "categorical": (),
        "value_range": None,
        "duplicates": "error",
        "validation": 0.2,
        "test": 0.2,
        "seed": 0,
    }
    return preparation.prepare("demo", Rows(table() if frame is None else frame, images), **given | changes)


ROLES = {"label": "label", "identifier": "key", "drop": ("person",)}


def parts(dataset):
    return [getattr(dataset, part) for part in SPLITS]


# The split.


@hypothesis.given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    validation=st.floats(0.05, 0.45),
    test=st.floats(0.05, 0.45),
    seed=st.integers(0, 10**6),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_every_label_is_in_every_split_in_proportion(counts, validation, test, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(str).astype(object)
    places = preparation.split(len(y), y, None, validation=validation, test=test, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(places.values()))), np.arange(len(y)))
    for label, count in enumerate(counts):
        got = {part: (y[place] == str(label)).sum() for part, place in places.items()}
        assert abs(got["test"] - test * count) < 1
        # Its share is taken of what the test split left, which is within a row itself.
        assert abs(got["validation"] - validation * count) < 1 + validation / (1 - test)
        assert abs(got["train"] - (1 - validation - test) * count) < 2
    assert abs(len(places["test"]) - test * len(y)) < 1


def test_without_a_label_rows_are_drawn_and_not_cut_off():
    places = preparation.split(10_000, None, None, validation=0.2, test=0.2, seed=0)
    for part, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert len(places[part]) == pytest.approx(share * 10_000, abs=2)
        assert np.mean(places[part]) == pytest.approx(5_000, abs=200)
        assert (np.diff(places[part]) > 0).all()


def test_labels_do_not_follow_the_order_of_the_rows():
    """Neither the rows of a split nor those of one label in it are a stretch of the file."""
    y = np.repeat(["a", "b"], 5_000).astype(object)
    places = preparation.split(10_000, y, None, validation=0.2, test=0.2, seed=0)
    first = places["test"][places["test"] < 5_000]
    assert np.corrcoef(np.arange(len(first)), first)[0, 1] > 0.99
    assert np.ptp(first) > 4_900
    assert len(np.unique(np.diff(first))) > 5


def test_groups_stay_together_and_have_their_share():
    groups = np.repeat(np.arange(200), np.random.default_rng(0).integers(1, 6, 200)).astype(str).astype(object)
    places = preparation.split(len(groups), None, groups, validation=0.2, test=0.25, seed=1)
    held = {part: set(groups[place]) for part, place in places.items()}
    assert sum(map(len, held.values())) == len(set.union(*held.values())) == 200
    assert len(held["test"]) == pytest.approx(50, abs=1)
    assert len(held["validation"]) == pytest.approx(40, abs=1.5)


def test_a_column_can_say_which_split_a_row_is_in():
    frame = table().assign(part=np.resize(["train", "train", "train", "validation", "test"], len(table())))
    dataset = prepare(frame, **ROLES, part="part")
    expected = {name: set(frame["key"][frame["part"] == name]) for name in SPLITS}
    assert {name: set(getattr(dataset, name).ids) for name in SPLITS} == expected
    assert "part" not in dataset.schema.features


def test_a_split_that_no_row_names_is_drawn_from_the_training_rows():
    frame = table().assign(part=np.resize(["train", "train", "train", "test"], len(table())))
    dataset = prepare(frame, **ROLES, part="part", validation=0.25)
    assert set(dataset.test.ids) == set(frame["key"][frame["part"] == "test"])
    count = (frame["part"] == "train").sum()
    assert abs(len(dataset.validation) - 0.25 * count) <= 1
    assert len(dataset.train) + len(dataset.validation) == count
    shares = [pd.Series(split.y).value_counts(normalize=True) for split in (dataset.train, dataset.validation)]
    assert (shares[0] - shares[1]).abs().max() < 0.1  # by label, as every split that is drawn


def test_parts_that_are_no_splits_or_tear_groups_apart_are_refused():
    frame = table().assign(part="train")
    frame.loc[3, "part"] = "hold-out"
    with pytest.raises(
        DataError, match=r"part 'part' has 1 rows that say 'hold-out' \(first: row 3\); expected train, v"
    ):
        prepare(frame, **ROLES, part="part")
    frame = table().assign(part=np.resize(["train", "test"], len(table())), person="one")
    with pytest.raises(
        DataError, match=r"1 groups of 'person' are in more than one part \(first: 'one'\); expected each"
    ):
        prepare(frame, part="part", group="person")
    with pytest.raises(DataError, match="`part` names column 'nowhere', which is not there"):
        prepare(part="nowhere")


@pytest.mark.parametrize("by", [{}, {"label": "label"}, {"group": "person"}])
def test_the_same_seed_gives_the_same_set_and_another_seed_another(by):
    frame = table().drop(columns="key").assign(person=np.arange(60) // 4)
    one, same, other = (prepare(frame, seed=seed, **by) for seed in (3, 3, 4))
    for a, b, c in zip(parts(one), parts(same), parts(other), strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.ids, b.ids)
        assert set(a.ids) != set(c.ids)


# The set.


def test_rows_are_known_by_their_identifier_or_their_position():
    raw = table().set_index("key")
    for split in parts(prepare(**ROLES)):
        back = prepare(**ROLES).schema.inverse(split.x).frame
        np.testing.assert_allclose(back["size"], raw.loc[split.ids, "size"], rtol=1e-5)
        assert back["kind"].tolist() == raw.loc[split.ids, "kind"].tolist()
        assert split.y.tolist() == raw.loc[split.ids, "label"].tolist()
    by_position = prepare(drop=("person", "key", "label"))
    assert sorted(np.concatenate([s.ids for s in parts(by_position)])) == list(range(60))


def test_label_identifier_group_and_dropped_columns_are_no_features():
    assert prepare(**ROLES).schema.features == ("size", "kind")
    assert prepare(group="person", drop=("key", "label")).schema.features == ("size", "kind")


def test_normal_rows_are_those_of_the_normal_labels():
    for split in parts(prepare(**ROLES, normal=("good",))):
        np.testing.assert_array_equal(split.normal, split.y == "good")
        assert set(split.only_normal().y) == {"good"}
        assert len(split.only_normal()) == split.normal.sum()
    assert all(s.normal is None for s in parts(prepare(**ROLES)))


def test_labels_that_are_numbers_are_compared_as_text_also_with_gaps_elsewhere():
    frame = table().assign(label=np.arange(60) % 4 * 1.0)
    dataset = prepare(frame, **ROLES, normal=("0", "1", "2"))
    assert set(dataset.train.y) == {"0", "1", "2", "3"}
    np.testing.assert_array_equal(dataset.test.normal, dataset.test.y != "3")


def test_statistics_and_categories_come_from_the_training_rows_alone():
    frame = table()
    dataset = prepare(frame, **ROLES)
    train = frame.set_index("key").loc[dataset.train.ids]
    size, kind = dataset.schema.columns
    assert (size.mean, size.scale) == pytest.approx((train["size"].mean(), train["size"].std(ddof=0)))
    assert kind.categories == tuple(sorted(train["kind"].unique()))
    held_out = ~frame["key"].isin(dataset.train.ids)
    frame.loc[held_out, "size"] += 100
    assert prepare(frame, **ROLES).schema == dataset.schema


def test_columns_of_numbers_may_be_named_categorical():
    frame = table().assign(code=np.arange(60) % 3)
    dataset = prepare(frame, **ROLES, categorical=("code",))
    assert dataset.schema.columns[-1].categories == ("0", "1", "2")
    assert dataset.schema.shape == (1 + 3 + 3,)


def test_columns_beside_images_are_no_features():
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 3)).astype(np.uint8)
    dataset = prepare(table(), images, label="label", identifier="key")
    assert dataset.schema.shape == (1, 3, 3)
    places = [int(i[1:]) for i in dataset.test.ids]
    np.testing.assert_allclose(dataset.test.x[:, 0] * 255, images[places], atol=1e-4)


# Duplicates.


def repeated(n=12):
    frame = table()
    return pd.concat([frame, frame.iloc[:n].assign(key=[f"again{i}" for i in range(n)])], ignore_index=True)


def crossings(frame, images=None):
    """Count by comparing every row of one split with every row of another."""
    clean = prepare(frame.assign(unique=np.random.default_rng(0).normal(size=len(frame))), **ROLES)
    held = {part: getattr(clean, part).ids for part in SPLITS}
    values = dict(zip(frame["key"], map(tuple, frame[["size", "kind"]].to_numpy()), strict=True))
    return {
        (one, other): sum(values[i] in {values[j] for j in held[one]} for i in held[other])
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"))
    }


def test_rows_that_are_in_two_splits_are_counted_and_refused():
    frame = repeated()
    wanted = {pair: count for pair, count in crossings(frame).items() if count}
    assert len(wanted) > 1
    with pytest.raises(DataError, match=r"set `duplicates: drop`, or `group` by what repeats") as caught:
        prepare(frame, **ROLES)
    found = [
        re.match(r"(\d+) rows of the (\w+) split are also in the (\w+) split \(first: row \d+\)", p)
        for p in caught.value.problems
    ]
    assert {(m[3], m[2]): int(m[1]) for m in found} == wanted


def test_repeated_rows_can_be_left_out_and_the_first_of_them_stays():
    dataset = prepare(repeated(), **ROLES, duplicates="drop")
    assert dataset.notes == ("12 repeated rows left out",)
    assert sorted(np.concatenate([s.ids for s in parts(dataset)])) == sorted(table()["key"])
    assert prepare(**ROLES, duplicates="drop").notes == ()


def test_rows_that_repeat_within_one_group_cross_no_split():
    frame = repeated().drop(columns="key")
    assert len(parts(prepare(frame, group="person", drop=("label",)))) == 3


def test_repeated_images_are_found_and_images_of_equal_pixels_with_other_labels_too():
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 3)).astype(np.uint8)
    images[30:] = images[:30]
    with pytest.raises(DataError, match="rows of the test split are also in the train split"):
        prepare(table(), images, label="label")
    assert sum(map(len, parts(prepare(table(), images, label="label", duplicates="drop")))) == 30


def test_rows_with_gaps_in_the_same_places_are_equal():
    frame = pd.DataFrame({"a": [np.nan, 1, 2, 3] * 8, "b": [None, "x", None, "y"] * 8})
    with pytest.raises(DataError, match="split are also in"):
        prepare(frame)


def test_the_rows_of_a_profile_are_the_rows_of_training():
    for duplicates, frame in (("error", table()), ("drop", repeated())):
        split = {"validation": 0.2, "test": 0.2, "seed": 5}
        rows = preparation.training_rows(Rows(frame), group=None, duplicates=duplicates, **ROLES, **split)
        dataset = prepare(frame, **ROLES, duplicates=duplicates, **split)
        assert rows.frame["key"].tolist() == dataset.train.ids.tolist()


# What is wrong.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "lable"}, "`label` names column 'lable', which is not there; there are: size, kind, label, key, person"),
        ({"identifier": "id"}, "`id` names column 'id', which is not there"),
        ({"group": "g"}, "`group` names column 'g', which is not there"),
        ({"drop": ("d",)}, "`drop` names column 'd', which is not there"),
        ({"categorical": ("c",)}, "`categorical` names column 'c', which is not there"),
        ({"label": "flat"}, "label 'flat' has one class only (1); expected two or more; leave `label` out"),
        ({"label": "holes"}, "label 'holes' has 20 gaps (first: row 1); expected a label in each row"),
        ({"group": "holes"}, "group 'holes' has 20 gaps (first: row 1); expected a group in each row; fill them"),
        ({"label": "label", "normal": ("fine",)}, "`normal` names 'fine'; the labels are 'bad', 'good'"),
        ({"label": "label", "normal": ("bad", "good")}, "`normal` names every class; expected at least one class of anomalies"),
        ({"normal": ("good",)}, "`normal` needs a `label` column; name it, or leave `normal` out"),
        ({"identifier": "kind"}, "id 'kind' repeats in 57 rows (first: row 3); expected one per row"),
    ],
)  # fmt: skip
def test_a_wrong_role_of_a_column_is_said(changes, message):
    frame = table().assign(flat=1, holes=np.where(np.arange(60) % 3 == 1, None, "x"))
    with pytest.raises(DataError, match=re.escape(f"demo: {message}")):
        prepare(frame, **changes)


def test_all_wrong_roles_come_in_one_error():
    with pytest.raises(DataError) as caught:
        prepare(label="lable", identifier="kind", drop=("d", "e"))
    assert len(caught.value.problems) == 4


def test_all_that_is_wrong_with_the_values_comes_in_one_error():
    frame = repeated().assign(flat=1, deep=[[i % 60] for i in range(72)])
    held_out = preparation.split(72, frame["label"].to_numpy(), None, validation=0.2, test=0.2, seed=0)["test"]
    frame.loc[held_out[0], "size"] = np.inf
    with pytest.raises(DataError) as caught:
        prepare(frame, **ROLES)
    for problem in (
        "split are also in the",
        "column 'flat' is constant",
        "column 'deep' has values of type object",
        "column 'size' has 1 values that are not finite",
    ):
        assert problem in str(caught.value)


def test_a_rare_category_or_gap_need_not_be_among_the_training_rows():
    frame = table()
    test_rows = prepare(**ROLES).test.ids
    frame.loc[frame["key"] == test_rows[0], "kind"] = "z"
    number = next(c for c in frame.columns if frame[c].dtype == "float64")
    frame.loc[frame["key"] == test_rows[1], number] = np.nan
    data = prepare(frame, **ROLES)
    column = next(c for c in data.schema.columns if c.name == "kind")
    assert "z" in column.categories
    assert next(c for c in data.schema.columns if c.name == number).gaps
    assert not data.test.observed.all()


def test_values_of_the_other_splits_that_are_no_numbers_are_said():
    frame = table()
    test_rows = prepare(**ROLES).test.ids
    number = next(c for c in frame.columns if frame[c].dtype == "float64")
    frame.loc[frame["key"] == test_rows[0], number] = np.inf
    with pytest.raises(DataError, match=f"column '{number}' has 1 values that are not finite"):
        prepare(frame, **ROLES)


def test_a_split_without_rows_is_said_and_what_to_bring():
    with pytest.raises(DataError, match=r"the \w+ split is empty; expected at least one row; .*bring more rows"):
        prepare(table(4).drop(columns=["key", "person"]), label=None, validation=0.01, test=0.01)
    with pytest.raises(DataError, match="bring more groups in 'kind'"):
        prepare(table(8), group="kind", validation=0.05, test=0.05)


def test_a_table_of_roles_only_has_no_features():
    with pytest.raises(DataError, match="demo: the table has no feature columns"):
        prepare(table()[["label", "key"]], label="label", identifier="key")


def test_images_need_a_range_that_holds_all_of_them():
    images = np.random.default_rng(0).integers(0, 17, (60, 3, 3))
    with pytest.raises(
        DataError, match=r"demo: got values of type int64 from 0 to 16 have no range|no range of their own"
    ):
        prepare(table(), images)
    with pytest.raises(DataError, match="values reach from 0 to 16; expected 0 to 8"):
        prepare(table(), images, value_range=(0, 8))
