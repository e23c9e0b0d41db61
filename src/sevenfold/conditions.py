"""Conditions on columns, as `label = 3` or `kind in a, b`: read without executing anything, and tested on Arrow tables."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in", "not in")
"""What a condition may ask. A missing value meets none of them, as in SQL."""

_SHAPE = re.compile(
    r"""\s*(?P<column>"[^"]+"|.+?)\s*(?:(?P<sign><=|>=|!=|==|=|<|>)|\s(?P<word>not\s+in|in)\s)\s*(?P<value>.*?)\s*""",
    re.DOTALL | re.IGNORECASE,
)
_EXAMPLES = "`label = 3`, `price < 20`, `kind in a, b`"


@dataclass(frozen=True)
class Condition:
    """What a column's value has to be.

    operator: one of `OPERATORS`.
    values: Arrow scalars, of which "in" and "not in" may have several.
    """

    column: str
    operator: str
    values: tuple[Any, ...]


def parse(texts: str | Sequence[str], schema: pa.Schema) -> list[Condition]:
    """Read conditions, all of which are to hold.

    Each is a column, an operator and a value, or several with commas between them for `in` and `not in`. A name or a value
    that holds an operator, a comma or space at its ends stands in double quotes. Values are read as the column's type:
    numbers, text, true or false, dates as 2026-11-28 or 2026-11-28T12:00.

    Args:
        schema: the columns there are.

    Raises:
        ValueError: one is not as above; the message lists all that is wrong.
    """
    found, problems = [], []
    for text in [texts] if isinstance(texts, str) else texts:
        try:
            found.append(_parsed(text, schema))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return found


def _parsed(text: str, schema: pa.Schema) -> Condition:
    if not (match := _SHAPE.fullmatch(text)):
        raise ValueError(
            f"{text!r} is no condition; expected a column, one of {', '.join(OPERATORS)}, and a value, as in {_EXAMPLES}"
        )
    column = match["column"].removeprefix('"').removesuffix('"')
    if column not in schema.names:
        there = f"there are: {', '.join(schema.names)}" if schema.names else "nothing was carried along"
        raise ValueError(f"{text!r}: there is no column {column!r}; {there}")
    operator = match["sign"] or " ".join(match["word"].lower().split())
    operator = "=" if operator == "==" else operator
    kind = schema.field(column).type
    several = operator in ("in", "not in")
    try:
        listed = next(csv.reader([match["value"]], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ValueError(
            f"{text!r}: {match['value']!r} cannot be read ({error}); expected values with commas between them"
        ) from None
    # Only a list is parted by commas, so that `name = Smith, John` means what it says; quotes are read in both.
    quoted = match["value"].startswith('"') and len(listed) == 1
    values = [one.strip() for one in listed] if several else listed if quoted else [match["value"]]
    if not values or (not quoted and "" in values):
        raise ValueError(f'{text!r}: a value is missing; expected one after the operator; empty text is written ""')
    if operator in ("<", "<=", ">", ">=") and pa.types.is_boolean(kind):
        raise ValueError(f"{text!r}: column {column!r} is true or false, which has no order; expected = or !=")
    return Condition(column, operator, tuple(_scalar(one, kind, text, column) for one in values))


def _scalar(value: str, kind: pa.DataType, text: str, column: str) -> Any:
    """Return a value as the column's type has it, or say what was expected."""
    try:
        if pa.types.is_integer(kind):
            try:
                return pa.scalar(int(value), kind)
            except (ValueError, pa.ArrowInvalid, OverflowError):
                # A fraction, or beyond what the column can hold: it can be compared with all the same.
                return pa.scalar(_number(value), pa.float64())
        if pa.types.is_floating(kind):
            # In the column's own precision, so that a float32 of 0.1 is what `= 0.1` asks for.
            return pa.scalar(_number(value), pa.float64()).cast(kind)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return pa.scalar(value, kind)
        if pa.types.is_boolean(kind):
            return pa.scalar({"true": True, "false": False}[value.lower()], kind)
        if pa.types.is_timestamp(kind):
            when = pd.Timestamp(value)
            if kind.tz is not None and when.tzinfo is None:
                when = when.tz_localize(kind.tz)
            if kind.tz is None and when.tzinfo is not None:
                raise ValueError("the column knows no time zone")
            return pa.scalar(when, pa.timestamp("ns", kind.tz)).cast(kind)
        if pa.types.is_date(kind):
            return pa.scalar(pd.Timestamp(value).date(), kind)
    except (ValueError, KeyError, pa.ArrowInvalid):
        raise ValueError(f"{text!r}: column {column!r} holds {_name(kind)}; expected one, got {value!r}") from None
    raise ValueError(f"{text!r}: column {column!r} is of type {kind}, which no condition can test; use another column")


def _number(text: str) -> float:
    if (number := float(text)) != number:
        raise ValueError("no number equals NaN")
    return number


def _name(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "true or false"
    return "numbers" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else "dates such as 2026-11-28"


_TESTS: Mapping[str, Callable[..., Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def hold(conditions: Sequence[Condition], batch: pa.RecordBatch) -> np.ndarray:
    """Return (n,) bool: which rows meet all the conditions."""
    met = np.ones(batch.num_rows, bool)
    for one in conditions:
        column = batch.column(one.column)
        if one.operator in _TESTS:
            answer = _TESTS[one.operator](column, one.values[0])
        else:
            answer = reduce(pc.or_, (pc.equal(column, value) for value in one.values))
            answer = answer if one.operator == "in" else pc.invert(answer)
        met &= answer.fill_null(False).to_numpy(zero_copy_only=False)
    return met
