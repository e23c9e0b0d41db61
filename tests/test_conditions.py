"""Conditions mean what pandas says they mean, miss what is missing, and are refused by name where they mean nothing."""

import contextlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevenfold import conditions

FRAME = pd.DataFrame(
    {
        "label": [3, 1, 2, 3, 0],
        "price": [19.5, np.nan, 20.0, 0.1, -1.0],
        "kind": ["a", "b", None, "a, b", "<c>"],
        "new": [True, False, True, None, False],
        "seen": pd.to_datetime(["2026-01-01", "2026-02-01T12:00", None, "2026-03-01", "2025-01-01"], format="ISO8601"),
        "shoe size": [40, 41, 42, 43, 44],
        "a=b": [1, 2, 3, 4, 5],
        "less in more": ["x", "y", "z", "x", "y"],
    }
).astype({"price": "float32"})
TABLE = pa.RecordBatch.from_pandas(FRAME)


def met(*texts):
    return np.flatnonzero(conditions.hold(conditions.parse(texts, TABLE.schema), TABLE)).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("label = 3", [0, 3]),
        ("label==3", [0, 3]),
        ("label != 3", [1, 2, 4]),
        ("label < 1.5", [1, 4]),
        ("label >= 99999999999999999999", []),
        ("label in 1,2", [1, 2]),
        ("label NOT  IN 1, 2", [0, 3, 4]),
        ("price < 20", [0, 3, 4]),
        ("price != 20", [0, 3, 4]),  # what is missing is not other than 20: nobody knows
        ("price = 0.1", [3]),  # as the column's float32 has it
        ("price > -1e0", [0, 2, 3]),
        ("kind = a", [0]),
        ("kind = a, b", [3]),
        ('kind in "a, b", a', [0, 3]),
        ("kind not in a,b", [3, 4]),
        ('kind = "<c>"', [4]),
        ("kind = <c>", [4]),
        ("kind > a", [1, 3]),
        ("new = true", [0, 2]),
        ("new != True", [1, 4]),
        ("seen >= 2026-02-01", [1, 3]),
        ("seen < 2026-02-01T12:00:00", [0, 4]),
        ("shoe size > 42", [3, 4]),
        ('"a=b" <= 2', [0, 1]),
        ('"less in more" = x', [0, 3]),
    ],
)
def test_a_condition_keeps_the_rows_that_meet_it(text, rows):
    assert met(text) == rows


def test_all_conditions_have_to_hold_and_none_keep_all():
    assert met("label = 3", "price < 1") == [3]
    assert met() == [0, 1, 2, 3, 4]
    assert conditions.parse("label = 3", TABLE.schema) == conditions.parse(["label = 3"], TABLE.schema)


@given(st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), st.integers(-3, 3), st.lists(st.integers(-3, 3) | st.none()))
def test_comparisons_of_numbers_are_those_of_python(operator, value, column):
    batch = pa.RecordBatch.from_arrays([pa.array(column, pa.int64())], ["x"])
    found = conditions.hold(conditions.parse(f"x {operator} {value}", batch.schema), batch)
    means = {"=": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}[operator]
    assert found.tolist() == [one is not None and getattr(one, means)(value) for one in column]


@given(st.text(min_size=1).filter(lambda text: '"' not in text))
def test_no_text_is_executed_and_quotes_hold_anything(value):
    batch = pa.RecordBatch.from_arrays([pa.array([value, "other"], pa.string())], ["x"])
    if "\n" not in value and "\r" not in value:
        assert conditions.hold(conditions.parse(f'x = "{value}"', batch.schema), batch)[0]
    with contextlib.suppress(ValueError):
        assert conditions.parse(value, batch.schema)[0].column == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label", r"'label' is no condition; expected a column, one of =, !=, .*, and a value, as in `label = 3`"),
        ("", "'' is no condition"),
        ("colour = red", "there is no column 'colour'; there are: label, price, "),
        ("label = three", "column 'label' holds numbers; expected one, got 'three'"),
        ("price < nan", "column 'price' holds numbers; expected one, got 'nan'"),
        ("label in 1,,2", "a value is missing; expected one after the operator"),
        ("label =", "a value is missing"),
        ("new = maybe", "column 'new' holds true or false; expected one, got 'maybe'"),
        ("new < true", "column 'new' is true or false, which has no order; expected = or !="),
        ("seen > yesterday at noon", "column 'seen' holds dates such as 2026-11-28; expected one, got 'yesterday at"),
        ("seen > 2026-01-01T00:00+02:00", "column 'seen' holds dates"),
        ('kind in "a, b', "cannot be read"),
    ],
)
def test_what_is_no_condition_is_named_with_what_was_expected(text, message):
    with pytest.raises(ValueError, match=message):
        conditions.parse(text, TABLE.schema)


def test_all_problems_are_told_at_once_and_odd_columns_are_refused():
    with pytest.raises(ValueError, match=r"no column 'x'.*; .*got 'three'"):
        conditions.parse(["x = 1", "label = three"], TABLE.schema)
    with pytest.raises(ValueError, match="of type list<item: int64>, which no condition can test; use another column"):
        conditions.parse("x = 1", pa.schema([("x", pa.list_(pa.int64()))]))
    with pytest.raises(ValueError, match="there is no column 'x'; nothing was carried along"):
        conditions.parse("x = 1", pa.schema([]))
