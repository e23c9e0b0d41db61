"""From data to expectations: facts about images, and a Great Expectations suite drafted from the training rows.

A draft is a starting point: a person reads it, mends it and commits it. Its margins are wide, so that it speaks up
about broken data and not about ordinary new data.

| expectation | severity | margin |
| --- | --- | --- |
| the column is there, its values are of the same family (numbers, text, truth values) | critical | none |
| no missing values, where training had none | critical | none, or `missing_allowed` as a warning |
| missing values, where training had some | warning | half as many again and 5 % of the rows |
| numbers are finite | critical | none |
| numbers in range | warning | the whole span of training on either side; not below 0 if training never was |
| mean | warning | one standard deviation of training on either side |
| categories and label classes in the set | critical | none: a model cannot encode a new one |
| two different values or more | critical | none |
| row count | warning | half to ten times the training rows |
| columns that training did not have | warning | none |
| image size, channels, pixel range, finite pixels | critical | none |
"""

import math
import sys
from collections.abc import Collection
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd

NUMBERS = ["int64", "float64", "int", "float"]
TEXT = ["str"]
TRUTH = ["bool"]
LARGEST = sys.float_info.max
"""Between -LARGEST and LARGEST is how a suite says "finite": GX has no word of its own for it."""

MOST_CATEGORIES = 1000
"""A text column with more is an identifier or free text; its values are not listed in the suite."""

IMAGE_SIZE = ("height", "width", "channels")
PLAIN_KINDS = {
    "integer": "numbers",
    "floating": "numbers",
    "mixed-integer-float": "numbers",
    "string": "text",
    "boolean": "truth",
}


def describe(images: np.ndarray, labels: np.ndarray | None) -> pd.DataFrame:
    """Return one row of facts per image, so that image sets are judged by suites just as tables are.

    Args:
        images: (n, H, W) or (n, H, W, C), numbers.
        labels: (n,) or None.

    Returns:
        height, width, channels; minimum, maximum, mean and deviation of the image's pixels (NaN where a pixel is NaN);
        finite, whether every pixel is; label, where labels are given.
    """
    if images.ndim not in (3, 4) or images.dtype.kind not in "biuf" or 0 in images.shape[1:]:
        raise ValueError(
            f"got an array of shape {images.shape} and type {images.dtype}; expected images of numbers, "
            "(n, height, width) or (n, height, width, channels)"
        )
    if labels is not None and np.shape(labels) != (len(images),):
        raise ValueError(f"got labels of shape {np.shape(labels)} for {len(images)} images; expected ({len(images)},)")
    count = len(images)
    facts: dict[str, Any] = {
        "height": np.full(count, images.shape[1]),
        "width": np.full(count, images.shape[2]),
        "channels": np.full(count, images.shape[3] if images.ndim == 4 else 1),
        **{name: np.empty(count) for name in ("minimum", "maximum", "mean", "deviation")},
        "finite": np.empty(count, bool),
    }
    # In blocks, because the deviation in float64 needs a copy of the pixels, which for a memory-mapped set is large.
    block = max(1, 2**22 // math.prod(images.shape[1:]))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, count, block):
            rows = slice(start, start + block)
            pixels = np.asarray(images[rows]).reshape(len(images[rows]), -1).astype(np.float64)  # (block, H * W * C)
            facts["minimum"][rows] = pixels.min(axis=1)
            facts["maximum"][rows] = pixels.max(axis=1)
            facts["mean"][rows] = pixels.mean(axis=1)
            facts["deviation"][rows] = pixels.std(axis=1)
            facts["finite"][rows] = np.isfinite(pixels).all(axis=1)
    if labels is not None:
        facts["label"] = labels
    return pd.DataFrame(facts)


def plain(frame: pd.DataFrame, *, keep: Collection[str] = ()) -> pd.DataFrame:
    """Return the frame in the few types that GX judges both rightly and fast, rows numbered from 0, names as text.

    Numbers of any width or library become int64, or float64 with NaN for a gap; text, also as a category, becomes
    Python strings; truth values bool. GX does not know pandas 3's `str` as text and loops in Python over float32. A
    column of anything else stays. Of columns with one name the first is kept.

    Args:
        keep: columns left as they are, because a suite asks for their exact type.
    """
    columns: dict[str, pd.Series] = {}
    for position, name in enumerate(map(str, frame.columns)):
        column = frame.iloc[:, position].reset_index(drop=True)
        columns.setdefault(name, column if name in keep else _plain(column))
    return pd.DataFrame(columns, index=pd.RangeIndex(len(frame)))


def draft(
    frame: pd.DataFrame,
    *,
    name: str,
    categorical: Collection[str] = (),
    ignored: Collection[str] = (),
    missing_allowed: float = 0.0,
    pixels: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return a suite in GX's JSON form, drafted from a profile of the training rows.

    The rows it is drafted from pass it, unless they hold numbers that are not finite, which no suite allows.

    Args:
        frame: the training rows, or what `describe` says of the training images.
        categorical: columns of numbers that are names, such as labels.
        ignored: columns that are no features, such as identifiers; nothing is expected of them but to be known.
        missing_allowed: share of missing values, 0 to 1, that is in order where training had none.
        pixels: lowest and highest pixel value there can be, if `frame` describes images.

    Returns:
        name, expectations and meta; `meta["left_out"]` says of each column without expectations why.

    Raises:
        ValueError: there are no rows, two columns share a name, or a column to be left aside is not there.
    """
    names = [str(column) for column in frame.columns]
    problems = [f"column {n!r} is there {names.count(n)} times" for n in sorted(set(names)) if names.count(n) > 1]
    problems += [f"there is no column {n!r}" for n in sorted({*categorical, *ignored} - set(names))]
    if not len(frame):
        problems.append("there are no rows to draft expectations from")
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}; expected rows with distinct column names; mend the data")

    rows = len(frame)
    shown = ", ".join(names)
    expectations = [
        _expect(
            "table_row_count_to_be_between",
            "warning",
            f"Training had {rows} rows.",
            min_value=max(1, rows // 2),
            max_value=10 * rows,
        ),
        _expect("table_columns_to_match_set", "warning", f"Training had: {shown}.", column_set=names, exact_match=True),
    ]
    left_out: dict[str, str] = {}
    categories = [
        str(n) for n, dtype in zip(names, frame.dtypes, strict=True) if isinstance(dtype, pd.CategoricalDtype)
    ]
    for column, values in plain(frame).items():
        column = str(column)
        present = values.dropna()
        kind = PLAIN_KINDS.get(pd.api.types.infer_dtype(present, skipna=True))
        if column in ignored:
            left_out[column] = "is no feature"
        elif present.empty:
            left_out[column] = "has no value in the training rows"
        elif kind is None:
            left_out[column] = (
                f"has values of type {frame.dtypes.iloc[names.index(column)]}; expected numbers, text or truth values"
            )
        elif pixels is not None and column in (*IMAGE_SIZE, "minimum", "maximum", "finite"):
            expectations += _image_expectations(column, present, pixels)
        else:
            listed = column in categorical or column in categories or kind != "numbers"
            expectations += _column_expectations(
                column, values, present, kind, listed=listed, missing_allowed=missing_allowed
            )
    return {
        "name": name,
        "expectations": expectations,
        "meta": {"great_expectations_version": metadata.version("great_expectations"), "left_out": left_out},
    }


def _expect(type_: str, severity: str, notes: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": f"expect_{type_}", "kwargs": kwargs, "severity": severity, "notes": notes, "meta": {}}


def _column_expectations(
    column: str, values: pd.Series, present: pd.Series, kind: str, *, listed: bool, missing_allowed: float
) -> list[dict[str, Any]]:
    family = {"numbers": NUMBERS, "text": TEXT, "truth": TRUTH}[kind]
    found = [
        _expect("column_to_exist", "critical", "The model is trained with it.", column=column),
        _expect(
            "column_values_to_be_in_type_list",
            "critical",
            f"Training had {_FAMILY[kind]}.",
            column=column,
            type_list=family,
        ),
    ]
    gaps = len(values) - len(present)
    share = gaps / len(values)
    allowed = max(missing_allowed, 1.5 * share + 0.05 if gaps else 0.0)
    had = f"Training missed {gaps} of {len(values)} values."
    if allowed == 0:
        found.append(_expect("column_values_to_not_be_null", "critical", had, column=column))
    elif allowed < 1:
        mostly = math.floor((1 - allowed) * 1000) / 1000
        found.append(_expect("column_values_to_not_be_null", "warning", had, column=column, mostly=mostly))
    different = present.nunique()
    if different > 1:
        found.append(
            _expect(
                "column_unique_value_count_to_be_between",
                "critical",
                f"Training had {different} different values; a constant teaches nothing.",
                column=column,
                min_value=2,
            )
        )
    if listed:
        # A truth value that training happened to lack is not new.
        classes = [False, True] if kind == "truth" else sorted(present.unique().tolist())
        if len(classes) <= MOST_CATEGORIES:
            note = "A model cannot encode a category that it was not trained with."
            found.append(_expect("column_values_to_be_in_set", "critical", note, column=column, value_set=classes))
    elif kind == "numbers":
        found += _number_expectations(column, present)
    return found


def _number_expectations(column: str, present: pd.Series) -> list[dict[str, Any]]:
    numbers = present.to_numpy(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    between = "column_values_to_be_between"
    found = [_expect(between, "critical", "Finite numbers.", column=column, min_value=-LARGEST, max_value=LARGEST)]
    if not len(numbers):
        return found
    low, high = float(numbers.min()), float(numbers.max())
    span = high - low or abs(low) or 1.0
    bounds = _readable(max(low - span, 0.0) if low >= 0 else low - span, high + span, (low, high))
    note = f"Training: {low:.6g} to {high:.6g}, widened by its span on either side."
    found.append(_expect(between, "warning", note, column=column, **bounds))
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(numbers.mean()), float(numbers.std())
    # The last term covers rounding: GX sums in another order.
    margin = (deviation or abs(mean) or 1.0) + 1e-9 * abs(mean)
    if math.isfinite(mean) and math.isfinite(margin):
        note = f"Training: mean {mean:.6g}, standard deviation {deviation:.6g}; one of it on either side."
        bounds = _readable(mean - margin, mean + margin, (mean, mean))
        found.append(_expect("column_mean_to_be_between", "warning", note, column=column, **bounds))
    return found


def _image_expectations(column: str, present: pd.Series, pixels: tuple[float, float]) -> list[dict[str, Any]]:
    found = [_expect("column_to_exist", "critical", "A fact of every image.", column=column)]
    if column in IMAGE_SIZE:
        sizes = sorted(int(v) for v in present.unique())
        note = "A model takes images of one size."
        return [*found, _expect("column_values_to_be_in_set", "critical", note, column=column, value_set=sizes)]
    if column == "finite":
        note = "No pixel is NaN or infinite."
        return [*found, _expect("column_values_to_be_in_set", "critical", note, column=column, value_set=[True])]
    bounds = {"min_value": float(pixels[0]), "max_value": float(pixels[1])}
    return [
        *found,
        _expect("column_values_to_be_between", "critical", "The range of a pixel.", column=column, **bounds),
    ]


_FAMILY = {"numbers": "numbers", "text": "text", "truth": "truth values"}


def _readable(low: float, high: float, inner: tuple[float, float]) -> dict[str, float]:
    """Round outwards to about three digits of the distance, and never past the inner bounds nor beyond the finite."""
    low, high = max(low, -LARGEST), min(high, LARGEST)
    distance = high / 2 - low / 2  # halved first: the whole can be too large for a float
    if distance > 1e-300:
        digits = math.floor(math.log10(distance)) - 2
        rounded = (
            float(f"{math.floor(low / 10.0**digits)}e{digits}"),
            float(f"{math.ceil(high / 10.0**digits)}e{digits}"),
        )
        low, high = (r if math.isfinite(r) else raw for r, raw in zip(rounded, (low, high), strict=True))
    return {"min_value": min(low, inner[0]), "max_value": max(high, inner[1])}


def _plain(column: pd.Series) -> pd.Series:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype if not column.isna().any() else object)
    dtype = column.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return column.astype(object).where(column.notna(), None) if column.isna().any() else column.astype(bool)
    if pd.api.types.is_integer_dtype(dtype) and not column.isna().any():
        values = column.to_numpy()
        return pd.Series(values.astype(np.int64 if values.dtype != np.uint64 else np.float64))
    if pd.api.types.is_integer_dtype(dtype) or pd.api.types.is_float_dtype(dtype):
        return pd.Series(column.to_numpy(np.float64, na_value=np.nan))
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind == "string":
        return pd.Series(column.astype(object).where(column.notna(), None), dtype=object)
    if not pd.api.types.is_object_dtype(dtype) or kind == "boolean":
        return column
    if PLAIN_KINDS.get(kind) == "numbers":
        return pd.Series(pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan))
    # GX hashes the frame, which fails on lists and the like; they keep their text and stay none of its types.
    simple = (str, int, float, np.generic, type(None))
    return pd.Series(
        [v if isinstance(v, simple) else Other(str(v)) for v in column.where(column.notna(), None)], dtype=object
    )


class Other:
    """The text of a value that is no number, text or truth value."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text
