"""Data are judged by Great Expectations itself: what is broken is named, what is whole passes."""

import json
import math
import pickle
import re
from html import unescape
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st

from sevenfold import validation
from sevenfold.datasets.base import DataError


def table(rows=60, seed=0):
    """A whole table of every kind: numbers of two widths, text, truth values, a category, gaps."""
    r = np.random.default_rng(seed)
    gaps = r.normal(size=rows)
    gaps[::10] = np.nan
    return pd.DataFrame(
        {
            "size": r.uniform(1, 20, rows),
            "count": r.integers(0, 9, rows),
            "narrow": r.normal(size=rows).astype("float32"),
            "city": np.where(np.arange(rows) % 3, "Kyoto", "Lima"),
            "open": np.arange(rows) % 2 == 0,
            "grade": pd.Categorical(np.where(np.arange(rows) % 2, "a", "b")),
            "holes": gaps,
        }
    )


@pytest.fixture(scope="module")
def suite():
    return validation.draft(table(), name="demo")


def only(verdict, severity=None):
    """Return the single failure there is."""
    failures = verdict.failures(severity)
    assert len(failures) == 1, [str(f) for f in failures]
    return failures[0]


def expectation(name, severity="critical", **kwargs):
    return {"name": "one", "expectations": [{"type": name, "kwargs": kwargs, "severity": severity}]}


def test_a_clean_set_passes(suite):
    verdict = validation.check(table(seed=1), suite, dataset="demo")
    assert verdict.passed
    assert verdict.failures() == ()
    assert (verdict.rows, verdict.columns) == (60, 7)
    assert len(verdict.expectations) == len(suite["expectations"])
    verdict.require()


def test_results_come_in_the_order_of_the_suite(suite):
    verdict = validation.check(table().drop(columns="size"), suite, dataset="demo")
    assert [r.type for r in verdict.expectations] == [e["type"] for e in suite["expectations"]]
    assert [r.column for r in verdict.expectations] == [e["kwargs"].get("column") for e in suite["expectations"]]


def broken(column, values):
    frame = table()
    frame[column] = frame[column].astype(object)
    for row, value in values.items():
        frame.at[row, column] = value
    return frame.infer_objects()


@pytest.mark.parametrize(
    ("frame", "column", "type_", "expected", "observed", "count"),
    [
        (
            broken("city", {7: "Paris", 9: "Oslo"}),
            "city",
            "values_to_be_in_set",
            "'Kyoto', 'Lima'",
            "'Paris' in row 7",
            2,
        ),
        (broken("city", {4: None}), "city", "values_to_not_be_null", "no missing values", "row 4", 1),
        (broken("size", {4: math.nan}), "size", "values_to_not_be_null", "no missing values", "row 4", 1),
        (broken("size", {8: math.inf}), "size", "values_to_be_between", "finite numbers", "inf in row 8", 1),
        (broken("narrow", {8: -math.inf}), "narrow", "values_to_be_between", "finite numbers", "-inf in row 8", 1),
        (table().assign(size=3.0), "size", "unique_value_count_to_be_between", "at least 2 different values", "1", 0),
        (table().assign(size=False), "size", "values_to_be_in_type_list", "numbers", "type bool", 0),
        (broken("size", {3: "?"}), "size", "values_to_be_in_type_list", "numbers", "'?' in row 3", 1),
        (broken("city", {3: 5}), "city", "values_to_be_in_type_list", "text", "5 in row 3", 1),
        (broken("city", {3: (1,)}), "city", "values_to_be_in_type_list", "text", "(1,) in row 3", 1),
        (table().drop(columns="city"), "city", "to_exist", "the column to be there", "no such column", 0),
        (table().rename(columns={"city": "City"}), "city", "to_exist", "be there", "(there is 'City')", 0),
    ],
)
def test_each_kind_of_damage_is_named_by_column_expectation_value_and_count(
    suite, frame, column, type_, expected, observed, count
):
    verdict = validation.check(frame, suite, dataset="demo")
    assert not verdict.passed
    failure = next(r for r in verdict.failures("critical") if r.type == f"expect_column_{type_}")
    assert failure.column == column
    assert expected in failure.expected
    assert observed in failure.observed
    assert failure.unexpected == count
    with pytest.raises(
        DataError, match=re.escape(f"column {column!r}: expected {failure.expected}, observed ")
    ) as error:
        verdict.require()
    for failed in verdict.failures("critical"):
        assert str(failed) in str(error.value)
    assert "edit data/expectations/demo.json" in str(error.value)


def test_a_value_out_of_range_is_counted_and_shown_with_its_row(suite):
    frame = table()
    frame.loc[[2, 5], "size"] = [-1.0, 90.0]
    failure = only(validation.check(frame, suite, dataset="demo"), "warning")
    assert (failure.unexpected, failure.examples, failure.rows) == (2, ("-1", "90"), (2, 5))
    assert failure.unexpected_percent == pytest.approx(100 * 2 / 60, rel=1e-5)
    assert failure.expected.startswith("values between 0 and ")


def test_a_warning_does_not_stop(suite):
    verdict = validation.check(table().assign(extra=1), suite, dataset="demo")
    assert verdict.passed
    assert "'extra'" in only(verdict).observed
    assert only(verdict).severity == "warning"
    verdict.require()


def test_more_gaps_than_training_had_are_a_warning(suite):
    frame = table()
    frame.loc[frame.index[:30], "holes"] = np.nan
    failure = only(validation.check(frame, suite, dataset="demo"))
    assert (failure.column, failure.severity) == ("holes", "warning")
    assert failure.expected == "at most 20 % missing values"
    assert "33 of 60 values missing" in failure.observed


def test_a_missing_column_fails_each_expectation_that_names_it_once(suite):
    verdict = validation.check(table().drop(columns="size"), suite, dataset="demo")
    wanted = [e["type"] for e in suite["expectations"] if e["kwargs"].get("column") == "size"]
    assert [r.type for r in verdict.expectations if r.column == "size" and not r.success] == wanted
    assert {r.observed for r in verdict.expectations if r.column == "size"} == {"no such column"}


def test_an_expectation_that_cannot_run_has_failed():
    suite = expectation("expect_column_mean_to_be_between", column="city", min_value=0)
    failure = only(validation.check(table(), suite, dataset="demo"))
    assert failure.error
    assert "an error" in failure.observed


@pytest.mark.parametrize("of", [expectation("expect_column_values_to_not_be_null", column="size"), None])
def test_no_rows_fail_whatever_the_suite_says(suite, of):
    verdict = validation.check(table().iloc[:0], of or suite, dataset="demo")
    with pytest.raises(DataError, match="expected at least one row, observed none"):
        verdict.require()


def test_two_columns_of_one_name_fail_whatever_the_suite_says(suite):
    frame = pd.concat([table(), table()[["size"]]], axis=1)
    with pytest.raises(DataError, match="column 'size': expected one column of this name, observed 2 of them"):
        validation.check(frame, suite, dataset="demo").require()
    of = expectation("expect_column_to_exist", column="city")
    assert only(validation.check(frame, of, dataset="demo")).column == "size"


def test_a_type_asked_for_by_its_exact_name_is_judged_exactly():
    def asks(name):
        return expectation("expect_column_values_to_be_of_type", column="narrow", type_=name)

    assert validation.check(table(), asks("float32"), dataset="demo").passed
    assert only(validation.check(table(), asks("float16"), dataset="demo")).observed == "type float32"


def test_expectations_that_no_draft_has_are_judged_too():
    suite = expectation("expect_column_pair_values_a_to_be_greater_than_b", column_A="size", column_B="narrow")
    suite["expectations"] += expectation("expect_column_values_to_match_regex", column="city", regex="^K")[
        "expectations"
    ]
    pair, regex = validation.check(table().head(3), suite, dataset="demo").expectations
    assert (pair.column, pair.success) == ("size, narrow", True)
    assert not regex.success
    assert '"^K"' in regex.expected
    assert "'Lima' in row 0" in regex.observed


# Suites that cannot judge.


def test_a_missing_suite_says_how_to_draft_one(tmp_path):
    with pytest.raises(validation.SuiteError, match="`sevenfold dataset add wdbc PATH` drafts one"):
        validation.read_suite(tmp_path / "wdbc.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "x",\n "expectations": [}', "line 2"),
        ("", "line 1"),
        ("[]", "is no suite"),
        ('{"name": "x"}', "is no suite"),
        ('{"name": "x", "expectations": []}', "expects nothing"),
        ('{"name": "x", "expectations": [3]}', "expectation 1: expected"),
    ],
)
def test_an_empty_or_unreadable_suite_fails(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(validation.SuiteError, match=message) as error:
        validation.read_suite(path)
    assert str(path) in str(error.value)


def test_every_problem_of_a_suite_is_told_at_once(tmp_path):
    between = "expect_column_values_to_be_between"
    path = tmp_path / "x.json"
    expectations = [
        {"type": "expect_column_values_to_be_betwen", "kwargs": {"column": "a", "min_value": 0}},
        {"type": between, "kwargs": {"column": "a", "min_value": 0}, "severity": "fatal"},
        {"type": between, "kwargs": {"column": "a", "minimum": 0}},
        {"type": between, "kwargs": {"column": "a", "min_value": 0}, "severty": "warning"},
        {"type": between},
    ]
    path.write_text(json.dumps({"name": "x", "expectations": expectations}))
    with pytest.raises(validation.SuiteError) as error:
        validation.read_suite(path)
    text = str(error.value)
    assert re.search(rf"expectation 1: unknown type .*; did you mean {between}", text)
    assert "expectation 2: " in text
    assert "unknown severity 'fatal'; expected critical, warning, info" in text
    assert "minimum: extra fields not permitted" in text
    assert "unknown key 'severty'; did you mean severity?" in text
    assert "expectation 5: " in text
    assert isinstance(pickle.loads(pickle.dumps(error.value)), validation.SuiteError)


def test_a_suite_that_is_not_run_whole_is_no_verdict(suite, monkeypatch):
    run = validation._run
    monkeypatch.setattr(validation, "_run", lambda frame, expectations: run(frame, expectations[1:]))
    with pytest.raises(validation.SuiteError, match=r"has \d+ expectations, but \d+ ran"):
        validation.check(table(), suite, dataset="demo")


# What a verdict is written as.


def test_the_bytes_of_a_verdict_depend_on_the_data_alone(suite):
    frame = table().assign(city="Paris").drop(columns="count")
    first, second = (validation.check(frame, suite, dataset="demo").to_json() for _ in range(2))
    assert first == second
    value = json.loads(first)
    assert value["passed"] is False
    assert value["failed"]["critical"] == sum(
        not e["success"] and e["severity"] == "critical" for e in value["expectations"]
    )
    for key in ("column", "type", "severity", "success", "expected", "observed", "unexpected"):
        assert all(key in e for e in value["expectations"])


@pytest.mark.parametrize("damage", [{}, {"size": math.inf, "city": "<script>alert(1)</script>"}])
def test_the_page_is_self_contained_and_has_every_failure(suite, damage):
    verdict = validation.check(table().assign(**damage), suite, dataset="demo")
    page = validation.page(verdict)
    assert page == validation.page(verdict)
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", page)
    text = unescape(page)
    for failure in verdict.failures():
        assert failure.expected in text
        assert failure.observed in text
    assert page.count('<th role="rowheader"') == len(verdict.expectations)
    assert ("What failed" in page) == bool(damage)


# Drafts.

KINDS = {
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "narrow": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "int": st.integers(-(2**53), 2**53),
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    "truth": st.booleans(),
    "category": st.sampled_from(["a", "b", "c"]),
    "codes": st.sampled_from([1, 2, 3]),
    "date": st.datetimes(),
    "list": st.lists(st.integers(), max_size=2),
}


@st.composite
def frames(draw):
    rows = draw(st.integers(1, 12))
    columns = {}
    for i, kind in enumerate(draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))):
        values = draw(st.lists(KINDS[kind], min_size=rows, max_size=rows))
        if draw(st.booleans()):
            values = [None if draw(st.booleans()) else v for v in values]
        column = pd.Series(values, dtype=object if kind in ("list", "date") else None)
        if kind in ("category", "codes"):
            column = column.astype("category")
        elif kind == "narrow":
            column = column.astype("float32")
        columns[f"{kind} {i}"] = column
    return pd.DataFrame(columns)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(frame=frames(), missing_allowed=st.sampled_from([0.0, 0.5]))
def test_the_draft_of_a_frame_passes_on_that_frame_after_a_round_trip(frame, missing_allowed):
    suite = validation.draft(frame, name="random", missing_allowed=missing_allowed)
    again = json.loads(json.dumps(suite, allow_nan=False))
    assert again == suite == validation.draft(frame, name="random", missing_allowed=missing_allowed)
    verdict = validation.check(frame, again, dataset="random")
    assert [str(f) for f in verdict.failures()] == []
    named = {e["kwargs"].get("column") for e in suite["expectations"]} | set(suite["meta"]["left_out"])
    assert set(frame.columns) <= named


def test_a_draft_can_be_read_back_from_its_file(suite, tmp_path):
    path = tmp_path / "demo.json"
    path.write_text(json.dumps(suite))
    assert validation.read_suite(path) == suite


def test_a_draft_says_why_it_leaves_a_column_out():
    frame = table().assign(when=pd.Timestamp("2026-01-01"), boxes=[[1]] * 60, void=math.nan, row=range(60))
    left_out = validation.draft(frame, name="demo", ignored=["row"])["meta"]["left_out"]
    assert sorted(left_out) == ["boxes", "row", "void", "when"]
    assert "datetime64" in left_out["when"]


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (table().iloc[:0], {}, "there are no rows"),
        (pd.concat([table(), table()[["size"]]], axis=1), {}, "column 'size' is there 2 times"),
        (table(), {"categorical": ["label"]}, "there is no column 'label'"),
    ],
)
def test_a_draft_of_what_cannot_be_profiled_says_so(frame, options, message):
    with pytest.raises(ValueError, match=message):
        validation.draft(frame, name="demo", **options)


def test_a_new_label_is_critical():
    frame = table().assign(label=np.arange(60) % 3)
    suite = validation.draft(frame, name="demo", categorical=["label"])
    frame.loc[0, "label"] = 7
    assert "7 in row 0" in only(validation.check(frame, suite, dataset="demo"), "critical").observed


# Images.


def images(shape=(30, 6, 5), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), np.arange(shape[0]) % 3


def test_facts_about_images_agree_with_numpy():
    pixels, labels = images((7, 4, 3, 2))
    facts = validation.describe(pixels, labels)
    assert facts[["height", "width", "channels"]].drop_duplicates().to_numpy().tolist() == [[4, 3, 2]]
    for i, row in facts.iterrows():
        assert row["minimum"] == pixels[i].min()
        assert row["maximum"] == pixels[i].max()
        assert row["mean"] == pytest.approx(pixels[i].mean())
        assert row["deviation"] == pytest.approx(pixels[i].std())
    assert facts["label"].tolist() == labels.tolist()
    assert "label" not in validation.describe(pixels, None)


@pytest.mark.parametrize(
    ("pixels", "labels", "column", "observed"),
    [
        (images(seed=1)[0], images()[1], None, None),
        (images((30, 6, 7))[0], images()[1], "width", "7 in row 0"),
        (images((30, 6, 5, 3))[0], images()[1], "channels", "3 in row 0"),
        (images()[0] * 2.0, images()[1], "maximum", "30 of 30 values outside"),
        (np.where(np.arange(30)[:, None, None] == 4, np.nan, images()[0]), images()[1], "finite", "false in row 4"),
        (images()[0], images()[1] + 1, "label", "3 in row 2"),
    ],
)
def test_image_sets_are_judged_by_the_same_suites(pixels, labels, column, observed):
    suite = validation.draft(validation.describe(*images()), name="pictures", categorical=["label"], pixels=(0, 255))
    verdict = validation.check(validation.describe(pixels, labels), suite, dataset="pictures")
    assert verdict.passed == (column is None)
    if column:
        assert observed in next(r.observed for r in verdict.failures("critical") if r.column == column)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((3, 4)), None, r"shape \(3, 4\)"),
        (np.zeros((3, 0, 4)), None, r"shape \(3, 0, 4\)"),
        (np.zeros((3, 2, 2), object), None, "type object"),
        (np.zeros((3, 2, 2)), np.zeros(2), r"labels of shape \(2,\) for 3 images"),
    ],
)
def test_what_is_no_image_set_is_refused(pixels, labels, message):
    with pytest.raises(ValueError, match=message):
        validation.describe(pixels, labels)


def test_great_expectations_is_imported_only_when_it_is_needed():
    import subprocess
    import sys

    code = "import sys; from sevenfold import validation; print('great_expectations' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_great_expectations_does_not_write_to_the_log(suite, caplog):
    caplog.set_level(0)
    validation.check(table(), suite, dataset="demo")
    assert caplog.records == []


def test_nothing_is_left_in_the_folder(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    validation.check(table(), suite, dataset="demo")
    assert list(Path(tmp_path).iterdir()) == []
