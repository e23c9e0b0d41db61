"""What a data set is: the schema of its samples, its three splits, and how they lie on disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sevenfold import files, formats
from sevenfold.layouts import Field, Layout

if TYPE_CHECKING:
    import torch

Source = Callable[..., formats.Rows]
"""What every file in `datasets/` defines as `fetch`: keyword options in, rows out. No network, same rows every time."""

SPLITS = ("train", "validation", "test")
TYPE_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "bool": (0.0, 1.0)}
"""Types of pixels that say what range they have."""

GAP_WORDS = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "null", "nil", "none", "-", "--", "?", "."})
"""What tables write for a gap, in lower case. None of them is taken for one until `gaps` names it."""

FARTHEST = 1e15
"""Standard deviations: farther values are refused, since sums of their squares may pass the largest float32, 3e38."""

_TOGETHER = 16384  # rows that are standardised together, so that what is not yet turned is in the cache

_AT_ONCE = 4096  # rows of plain numbers that are, of which all columns are in the cache


class DataError(ValueError):
    """The data are not what was agreed. One message lists every problem with value, expectation and remedy."""

    def __init__(self, subject: str, problems: list[str]) -> None:
        super().__init__(f"{subject}: " + "; ".join(problems))
        self.problems = tuple(problems)


class Schema(ABC):
    """What a sample is, and the way from raw rows to tensors and back. Learned from the training split only."""

    shape: tuple[int, ...]
    """The shape of one sample as the networks see it."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """What a sample looks like to a network."""

    @property
    @abstractmethod
    def features(self) -> tuple[str, ...]:
        """The name of each raw feature: a table's columns, an image's pixels."""

    @property
    @abstractmethod
    def feature_of(self) -> np.ndarray:
        """(prod(shape),) int: the index in `features` that each value of a flat sample belongs to."""

    @abstractmethod
    def problems(self, rows: formats.Rows) -> list[str]:
        """Return everything that keeps `transform` from taking these rows, each with value, expectation and remedy."""

    @abstractmethod
    def faults(self, rows: formats.Rows) -> list[str | None]:
        """Return for each row what is wrong with it, if anything: `transform` takes those for which it is None.

        Raises:
            DataError: the rows as a whole do not fit, as where a column is missing.
        """

    @abstractmethod
    def transform(self, rows: formats.Rows) -> tuple[np.ndarray, np.ndarray | None]:
        """Turn raw rows into (x, observed): x (n, *shape) float32; observed of the same shape, None without gaps.

        Raises:
            DataError: the rows do not fit the schema.
        """

    @abstractmethod
    def inverse(self, x: np.ndarray, observed: np.ndarray | None = None) -> formats.Rows:
        """Turn (n, *shape) back into rows in the user's own units and types; cells not observed become gaps."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]: ...

    def require(self, rows: formats.Rows, subject: str) -> None:
        if problems := self.problems(rows):
            raise DataError(subject, problems)


@dataclass(frozen=True)
class ImageSchema(Schema):
    """Images of one size and mode, with values from `low` to `high`.

    Channels come first in x, last in raw rows; raw rows of one channel may leave that axis out.
    """

    shape: tuple[int, int, int]
    low: float
    high: float
    dtype: str

    @property
    def layout(self) -> Layout:
        return Layout(self.shape)

    @property
    def features(self) -> tuple[str, ...]:
        channels, height, width = self.shape
        where = [(r, c) for r in range(height) for c in range(width)]
        if channels == 1:
            return tuple(f"pixel_{r}_{c}" for r, c in where)
        return tuple(f"pixel_{r}_{c}_{k}" for k in range(channels) for r, c in where)

    @property
    def feature_of(self) -> np.ndarray:
        return np.arange(int(np.prod(self.shape)))

    def any_size(self, smallest: int = 1) -> "ImageSchema":
        """Return a copy for work that takes images of any size, of edges of `smallest` pixels or more; see `any_type`.

        It is for a job's rows alone: as JSON it is the schema of the training.
        """
        return _OpenSchema(self.shape, self.low, self.high, self.dtype, smallest)

    def any_type(self) -> "ImageSchema":
        """Return a copy that takes images of another whole type by that type's range: 16 bits for a model of 8 bits.

        Only where the training's range is all of its own type's, or 0 to 1 of fractions: what else a number means is up to
        the data. `inverse` has to be told the type.
        """
        return _OpenSchema(self.shape, self.low, self.high, self.dtype, None)

    def range_of(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        """Return what is 0 and what is 1 in x, of images of this type."""
        return self.low, self.high

    def _takes(self, height: int, width: int) -> bool:
        return (height, width) == self.shape[1:]

    def _sizes(self) -> str:
        return f"images {self.shape[2]}x{self.shape[1]}"

    def _remedy(self, *, right_size: bool) -> str:
        return "resize or convert them"

    def problems(self, rows: formats.Rows) -> list[str]:
        channels = self.shape[0]
        wanted = f"{self._sizes()} with {channels} channel{'s' * (channels > 1)}"
        if rows.images is None:
            return [
                f"got a table with {len(rows.frame.columns)} columns; expected {wanted}, as .npz, .npy, IDX or a folder"
            ]
        images = rows.images
        if images.ndim not in (3, 4) or images.dtype.kind not in "biuf":
            return [f"got an array of shape {images.shape} and type {images.dtype}; expected {wanted}, as numbers"]
        got = images.shape[1:] if images.ndim == 4 else (*images.shape[1:], 1)
        if got[2] != channels or not self._takes(*got[:2]):
            remedy = self._remedy(right_size=self._takes(*got[:2]))
            return [
                f"got images {got[1]}x{got[0]} with {got[2]} channel{'s' * (got[2] > 1)}; expected {wanted}; {remedy}"
            ]
        if not len(images):
            return []
        low, high = self.range_of(images.dtype)
        whole = images.dtype.kind in "biu"
        flat, found = images.reshape(len(images), -1), []
        if not whole and not (finite := np.isfinite(flat).all(axis=1)).all():
            found.append(
                f"{(~finite).sum()} images hold values that are not finite (first: row {finite.argmin()}); leave them out"
            )
        elif images.min() < low or images.max() > high:
            found.append(
                f"values reach from {float(images.min()):g} to {float(images.max()):g}; expected {low:g} to {high:g}; "
                "check the images' type and scale"
            )
        elif not whole and np.dtype(self.dtype).kind != "f" and (parts := (flat != np.rint(flat)).any(axis=1)).any():
            # Most often these are images that somebody has scaled to 0..1: in range, and nearly black.
            found.append(
                f"{parts.sum()} images hold fractions (first: row {parts.argmax()}); expected whole numbers from "
                f"{low:g} to {high:g} ({self.dtype}); check the images' scale"
            )
        return found

    def faults(self, rows: formats.Rows) -> list[str | None]:
        if rows.images is None:
            raise DataError("images", self.problems(rows))
        one_by_one = (self.problems(rows.take(np.array([i]))) for i in range(len(rows)))
        return ["; ".join(found) or None for found in one_by_one]

    def transform(self, rows: formats.Rows) -> tuple[np.ndarray, np.ndarray | None]:
        self.require(rows, "images")
        assert rows.images is not None
        images = rows.images if rows.images.ndim == 4 else rows.images[..., None]  # (n, H, W, C)
        low, high = self.range_of(images.dtype)
        # One image in memory after the other: large ones take enough of it as they are.
        x = np.empty((len(images), images.shape[3], *images.shape[1:3]), np.float32)  # (n, C, H, W)
        for one, given in zip(x, images, strict=True):
            one[...] = given.transpose(2, 0, 1)
            one -= np.float32(low)
            one /= np.float32(high - low)
        return x, None

    def inverse(
        self, x: np.ndarray, observed: np.ndarray | None = None, *, dtype: np.dtype[Any] | None = None
    ) -> formats.Rows:
        """Turn x (n, C, H, W) back into images.

        Args:
            dtype: of the images that x was made of, if they may have been of another type than the training's.
        """
        low, high = self.range_of(np.dtype(self.dtype) if dtype is None else dtype)
        kind = np.dtype(self.dtype if dtype is None or (low, high) == (self.low, self.high) else dtype)
        n, channels, height, width = x.shape
        images = np.empty((n, height, width, channels), kind)
        for made, one in zip(images, x, strict=True):
            values = np.clip(one.transpose(1, 2, 0), 0, 1).astype(np.float64)
            values *= high - low
            values += low
            made[...] = np.rint(values, out=values) if kind.kind in "biu" else values
        if self.shape[0] == 1:
            images = images[..., 0]
        return formats.Rows(pd.DataFrame(index=pd.RangeIndex(len(x))), images)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "images", **asdict(self)}

    @classmethod
    def learn(cls, rows: formats.Rows, *, value_range: tuple[float, float] | None) -> "ImageSchema":
        """Take size, channels and type from the images; the range from the type where it is not given."""
        assert rows.images is not None
        images = rows.images if rows.images.ndim == 4 else rows.images[..., None]
        if value_range is None:
            if images.dtype.name not in TYPE_RANGES:
                got = f"values of type {images.dtype} from {float(images.min()):g} to {float(images.max()):g}"
                raise DataError(
                    "images",
                    [
                        f"{got} have no range of their own; give `range: [low, high]` in params.yaml, or --range LOW HIGH"
                    ],
                )
            value_range = TYPE_RANGES[images.dtype.name]
        if not value_range[0] < value_range[1]:
            raise DataError(
                "images",
                [f"range is {value_range[0]:g} to {value_range[1]:g}; expected the lower end first, then a higher one"],
            )
        _, height, width, channels = images.shape
        return cls((channels, height, width), float(value_range[0]), float(value_range[1]), images.dtype.name)


@dataclass(frozen=True)
class _OpenSchema(ImageSchema):
    """A schema for images that differ from those of the training in type, or in size, too.

    smallest: edge in pixels from which on every size is taken; None where only that of the training is.
    """

    smallest: int | None = None

    def range_of(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        trained = np.dtype(self.dtype)
        full = TYPE_RANGES.get(trained.name, (0.0, 1.0) if trained.kind == "f" else None)
        if dtype == trained or full != (self.low, self.high):
            return self.low, self.high
        return TYPE_RANGES.get(dtype.name, (self.low, self.high))

    def _takes(self, height: int, width: int) -> bool:
        return super()._takes(height, width) if self.smallest is None else min(height, width) >= self.smallest

    def _sizes(self) -> str:
        if self.smallest is None:
            return super()._sizes()
        return "images of any size" if self.smallest <= 1 else f"images of {self.smallest}x{self.smallest} or more"

    def _remedy(self, *, right_size: bool) -> str:
        if not right_size:
            return super()._remedy(right_size=False) if self.smallest is None else "enlarge them or leave them out"
        modes = {1: "grey", 3: "RGB", 4: "RGBA"}
        return f"convert them to {modes.get(self.shape[0], 'as many channels')}"

    def to_json(self) -> dict[str, Any]:
        return ImageSchema(self.shape, self.low, self.high, self.dtype).to_json()


@dataclass(frozen=True)
class Column:
    """One column of a table, with its statistics from the training split.

    dtype: the NumPy type in which values come back ("str" for text).
    mean, scale: of the observed values, in the column's own unit (numeric only).
    categories: sorted texts of the whole data set (categorical only); one value of x for each.
    gaps: whether the data set has any, so whether later rows may.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    dtype: str
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()
    gaps: bool = False

    @property
    def width(self) -> int:
        return len(self.categories) if self.kind == "categorical" else 1


@dataclass(frozen=True)
class TableSchema(Schema):
    """A table of numeric and categorical columns, gaps allowed where the data set has some.

    Numeric columns are standardised, categorical ones become one value per category (one-hot). A gap is 0 in x, which
    is the mean of a standardised column, and False in `observed`.

    gap_words: texts that are gaps in a CSV file, beside the empty field.
    """

    columns: tuple[Column, ...]
    gap_words: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (sum(c.width for c in self.columns),)

    @property
    def layout(self) -> Layout:
        return Layout(self.shape, tuple(Field(c.width, c.gaps) for c in self.columns))

    @cached_property
    def features(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    @property
    def feature_of(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.columns)), [c.width for c in self.columns])

    def problems(self, rows: formats.Rows) -> list[str]:
        if self._of_numbers(rows) is not None:
            return []
        if rows.images is not None:
            wanted = f"column{'s' * (len(self.columns) > 1)} {formats.shown([*self.features])}"
            return [f"got images {rows.images.shape[1:]}; expected a table with {wanted}, as .csv or .parquet"]
        found = []
        names = list(rows.frame.columns)
        if twice := sorted({str(n) for n in names if names.count(n) > 1}):
            found.append(
                f"column{'s' * (len(twice) > 1)} {formats.shown(twice)} twice in the rows; rename or leave one out"
            )
        if missing := [c.name for c in self.columns if c.name not in rows.frame]:
            many = len(missing) > 1
            them = "them" if many else "it"
            found.append(
                f"column{'s' * many} {formats.shown(missing)} {'are' if many else 'is'} missing; the model was trained with "
                f"{them}; add {them}, or give back the old name{'s' * many}"
            )
        for column in self.columns:
            if column.name in rows.frame and column.name not in twice:
                values = self._values(column, rows)
                if not _taken(column, values, text=rows.text)[1]:
                    found += _column_problems(column, values, text=rows.text)
        return found

    def faults(self, rows: formats.Rows) -> list[str | None]:
        empty = formats.Rows(rows.frame.iloc[:0], None if rows.images is None else rows.images[:0])
        self.require(empty, "table")
        found: list[list[str]] = [[] for _ in range(len(rows))]
        for column in self.columns:
            values = self._values(column, rows).reset_index(drop=True)
            for row, fault in _column_faults(column, values, text=rows.text):
                found[row].append(fault)
        return ["; ".join(one) or None for one in found]

    def _values(self, column: Column, rows: formats.Rows) -> pd.Series:
        """Return a column as training would have read it; text of numeric columns is left to `_numbers`."""
        values = rows.frame[column.name]
        return _from_text(values, column, self.gap_words) if rows.text else values

    def transform(self, rows: formats.Rows) -> tuple[np.ndarray, np.ndarray | None]:
        return self._of_numbers(rows) or self._by_column(rows)

    def _of_numbers(self, rows: formats.Rows) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Do the work of `transform` where all columns are plain numbers that fit, as Arrow has them; else return None.

        Most rows of most jobs come this way, a few at a time, so that they are in the processor's cache until they are done.
        """
        import torch  # whose loops over matrices are faster than NumPy's

        if not (self.is_numeric and isinstance(rows, formats.ArrowRows)):
            return None
        if (parts := rows.numbers(self.features, _AT_ONCE)) is None:
            return None
        mean, scale = map(torch.from_numpy, self._statistics)
        x, observed = np.empty((len(rows), len(mean)), np.float32), None
        exact = torch.empty((min(len(rows), _AT_ONCE), len(mean)), dtype=torch.double)
        for number, part in enumerate(parts):
            some = slice(number * _AT_ONCE, number * _AT_ONCE + len(part))
            made = torch.from_numpy(x[some])
            made.copy_(exact[: len(part)].copy_(torch.from_numpy(part)).sub_(mean).div_(scale))
            # One pass tells of most that all of them fit: with a gap the sum is no number.
            if _is_near(made):
                continue
            missing = torch.isnan(made)
            if missing.any():
                observed = np.ones(x.shape, bool) if observed is None else observed
                observed[some] = ~missing.numpy()
                made[missing] = 0
            if not _is_near(made):
                return None
        if observed is not None and not self._has_gaps[~observed.all(axis=0)].all():
            return None
        return x, observed

    @cached_property
    def is_numeric(self) -> bool:
        """Whether all columns are numbers."""
        return all(column.kind == "numeric" for column in self.columns)

    @cached_property
    def _has_gaps(self) -> np.ndarray:
        return np.array([column.gaps for column in self.columns])

    @cached_property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales of the columns, (columns,) each."""
        return np.array([column.mean for column in self.columns]), np.array([column.scale for column in self.columns])

    def _by_column(self, rows: formats.Rows) -> tuple[np.ndarray, np.ndarray | None]:
        frame = rows.frame
        known = rows.images is None and frame.columns.is_unique and all(c.name in frame for c in self.columns)
        taken = [_taken(c, self._values(c, rows), text=rows.text) for c in self.columns] if known else []
        if not known or not all(sound for _, sound in taken):
            self.require(rows, "table")
        count, (width,) = len(rows), self.shape
        starts = np.cumsum([0, *(c.width for c in self.columns[:-1])])
        numeric = [i for i, column in enumerate(self.columns) if column.kind == "numeric"]
        gaps = {i: found for i in numeric if (found := _gaps(self.columns[i], taken[i][0])) is not None}
        x = np.zeros((count, width), np.float32)
        numbers, exact = np.empty((len(numeric), min(count, _TOGETHER)), np.float32), np.empty(min(count, _TOGETHER))
        for start in range(0, count, _TOGETHER):
            some = slice(start, min(start + _TOGETHER, count))
            room = exact[: some.stop - start]
            # Column by column, which is many times as fast as row by row.
            for place, i in enumerate(numeric):
                np.subtract(taken[i][0][some], self.columns[i].mean, out=room, dtype=np.float64)
                np.divide(room, self.columns[i].scale, out=room)
                if i in gaps:
                    room[gaps[i][some]] = 0
                numbers[place, : len(room)] = room
            _turn(numbers[:, : len(room)], x[some], starts[numeric])
        for i in set(range(len(self.columns))) - {*numeric}:
            positions = taken[i][0]
            if (missing := positions < 0).any():
                gaps[i] = missing
            there = np.flatnonzero(~missing)
            x[there, starts[i] + positions[there]] = 1
        if not gaps:
            return x, None
        observed = np.ones((count, width), bool)
        for i, missing in gaps.items():
            observed[missing, starts[i] : starts[i] + self.columns[i].width] = False
        return x, observed

    def inverse(self, x: np.ndarray, observed: np.ndarray | None = None) -> formats.Rows:
        columns: dict[str, Any] = {}
        at = 0
        for column in self.columns:
            gaps = np.zeros(len(x), bool) if observed is None else ~observed[:, at]
            columns[column.name] = _raw_values(column, x[:, at : at + column.width], gaps)
            at += column.width
        return formats.Rows(pd.DataFrame(columns, index=pd.RangeIndex(len(x))))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "table", "columns": [asdict(c) for c in self.columns], "gap_words": list(self.gap_words)}

    @classmethod
    def learn(cls, rows: formats.Rows, *, categorical: tuple[str, ...] = ()) -> "TableSchema":
        """Learn kinds, statistics and categories from the training rows.

        Text, boolean and category columns are categorical, and so are those named in `categorical`.

        Raises:
            DataError: a column is constant, empty, not finite or of a kind that no model takes.
        """
        schema, problems = cls.examine(rows, categorical=categorical)
        if problems:
            raise DataError("table", problems)
        return schema

    @classmethod
    def examine(
        cls, rows: formats.Rows, *, categorical: tuple[str, ...] = (), domain: formats.Rows | None = None
    ) -> tuple["TableSchema", list[str]]:
        """Return the schema of the columns that can be learned, and what is wrong with the others.

        Args:
            rows: those that statistics are learned from.
            categorical: numeric columns to be taken as categories.
            domain: more rows, which tell just what there may be: which categories, and where gaps. A rare one of
                these need not be among the training rows. By default `rows`.
        """
        columns, problems = [], []
        for name, values in rows.frame.items():
            kind = "categorical" if name in categorical else kind_of(values)
            all_values = values if domain is None else domain.frame[name]
            learned = _learn(str(name), values, kind, all_values)
            words = words_among_numbers(all_values) if kind == "categorical" and name not in categorical else {}
            if any(word.strip().lower() in GAP_WORDS for word in words):
                problems.append(
                    f"column {name!r} holds {counted(words)} among numbers; expected numbers only; say that this means a "
                    f"gap in `gaps: {[*words]}` (CSV) or leave those cells empty, or list the column in `categorical`"
                )
            elif isinstance(learned, Column):
                columns.append(learned)
            else:
                problems.append(learned)
        if not len(rows.frame.columns):
            problems.append("the table has no feature columns; expected at least one besides label and identifiers")
        return cls(tuple(columns), rows.gaps), problems


def _learn(
    name: str, values: pd.Series, kind: Literal["numeric", "categorical"] | None, domain: pd.Series
) -> Column | str:
    """Return a column, or what keeps it from being one."""
    present = _plain(values.dropna())
    gaps = bool(domain.isna().any())
    if present.empty:
        return f"column {name!r} has no value in the training rows; add it to `drop`"
    if kind is None:
        got = f"column {name!r} has values of type {values.dtype}"
        return f"{got}; expected numbers, text or booleans; convert it or add it to `drop`"
    if kind == "categorical":
        seen = as_text(present).unique()
        if len(seen) == 1:
            return f"column {name!r} is constant ({seen[0]!r}); expected two values or more; add it to `drop`"
        categories = tuple(sorted(as_text(_plain(domain.dropna())).unique()))
        dtype = present.to_numpy().dtype.name if present.dtype.kind in "biuf" else "str"
        return Column(name, kind, dtype, categories=categories, gaps=gaps)
    numbers = present.to_numpy(np.float64)
    if not np.isfinite(numbers).all():
        return _column_problems(Column(name, kind, "float64", gaps=True), values, text=False)[0]
    if numbers.min() == numbers.max():
        return f"column {name!r} is constant ({numbers[0]:g}); expected two values or more; add it to `drop`"
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        mean, scale = float(numbers.mean()), float(numbers.std())
    if not 0 < scale < np.inf:
        got = f"column {name!r} has values from {numbers.min():g} to {numbers.max():g}"
        return f"{got}; expected between 1e-150 and 1e+150; give them in another unit"
    return Column(name, kind, present.to_numpy().dtype.name, mean, scale, gaps=gaps)


def schema_from_json(value: Mapping[str, Any]) -> Schema:
    """Return the schema that `to_json` wrote."""
    fields = {k: v for k, v in value.items() if k != "kind"}
    if value["kind"] == "images":
        return ImageSchema(**fields | {"shape": tuple(fields["shape"])})
    columns = tuple(Column(**c | {"categories": tuple(c["categories"])}) for c in fields["columns"])
    return TableSchema(columns, tuple(fields["gap_words"]))


def kind_of(values: pd.Series) -> Literal["numeric", "categorical"] | None:
    """Say how a column is taken: text, truth values and pandas' categories are categories; None if no model takes it."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return "categorical"
    present = _plain(values.dropna())
    if pd.api.types.is_bool_dtype(present) or pd.api.types.is_string_dtype(present):
        return "categorical"
    return "numeric" if pd.api.types.is_any_real_numeric_dtype(present) else None


def as_text(values: pd.Series) -> pd.Series:
    """Categories as text, gaps kept. A whole number is the same text whether it came as integer or float."""
    there = values.notna().to_numpy()
    present = _plain(values[there])
    texts = present.astype(str).to_numpy(object)
    if pd.api.types.is_float_dtype(present):
        numbers = present.to_numpy(np.float64)
        whole = (numbers == np.round(numbers)) & (np.abs(numbers) < 2.0**63)
        texts[whole] = numbers[whole].astype(np.int64).astype(str)
    found = np.full(len(values), None, dtype=object)
    found[there] = texts
    return pd.Series(found, index=values.index, dtype=object)


def _plain(present: pd.Series) -> pd.Series:
    """Values without gaps in the type they have by themselves: not objects or categories if they are numbers."""
    if isinstance(present.dtype, pd.CategoricalDtype):
        present = present.astype(present.cat.categories.dtype)
    return present.infer_objects()


def words_among_numbers(values: pd.Series) -> dict[str, int]:
    """Return the few texts, with their counts, of a column of text that is mostly numbers; else nothing."""
    present = as_text(values).dropna()
    words = present[pd.to_numeric(present, errors="coerce").isna()].value_counts()
    few = len(words) <= 3 and 2 * words.sum() < len(present)
    return {str(word): int(count) for word, count in words.items()} if few else {}


def counted(words: Mapping[str, int]) -> str:
    """Return words and how often each is there as text."""
    return ", ".join(f"{word!r} {'once' if count == 1 else f'{count} times'}" for word, count in words.items())


def _from_text(values: pd.Series, column: Column, gap_words: tuple[str, ...]) -> pd.Series:
    """Turn text of a CSV file into gaps, and into the same categories as training made of it."""
    if gap_words:
        values = values.mask(values.isin(gap_words))
    kind = "U" if column.dtype == "str" else np.dtype(column.dtype).kind
    if kind == "b":
        return values.replace({"TRUE": "True", "true": "True", "FALSE": "False", "false": "False"})
    if kind not in "iuf":
        return values
    gap_numbers = pd.to_numeric(pd.Series(gap_words, dtype="str"), errors="coerce").dropna()
    if column.kind == "numeric" and gap_numbers.empty:
        return values
    numbers = pd.to_numeric(values, errors="coerce")
    values = values.mask(numbers.isin(gap_numbers))  # as pandas does it: -999 names -999.0, too
    if column.kind == "numeric":
        return values
    is_number = numbers.notna() & values.notna()
    plain = numbers[is_number].astype(np.float64 if kind == "f" else numbers.dtype)
    texts = values.astype(object)
    texts[is_number] = as_text(plain)
    return texts


def _numbers(values: pd.Series, *, text: bool) -> np.ndarray:
    """(n,) float64, NaN for gaps and for what is no number.

    Args:
        text: whether a text may be a number, as all of a CSV file are. Elsewhere it may not, nor may a truth value.
    """
    if not text:
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(object)
        if pd.api.types.is_object_dtype(values.dtype):
            values = values.mask(values.map(lambda v: isinstance(v, (str, bytes, bool, np.bool_))))
        elif not pd.api.types.is_any_real_numeric_dtype(values.dtype):
            return np.full(len(values), np.nan)
    if isinstance(values.dtype, pd.StringDtype):
        import pyarrow

        try:  # Several times as fast as pandas, with the same numbers.
            found = pyarrow.array(values).cast(pyarrow.float64())
        except pyarrow.ArrowInvalid:
            pass  # some text is no number, or has blanks around it
        else:
            return np.asarray(found.to_numpy(zero_copy_only=False) + 0.0)  # for -0 is 0, as of whole numbers
    return pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _taken(column: Column, values: pd.Series, *, text: bool) -> tuple[np.ndarray, bool]:
    """Return what `transform` makes of a column, and whether it fits without a closer look, which takes much longer.

    These are (n,) numbers of any type, NaN for gaps, or positions among the categories, -1 for gaps.
    """
    if column.kind == "categorical":
        positions = _positions(values, column.categories)
        missing = positions < 0
        return positions, not missing.any() or (column.gaps and bool(values.isna().to_numpy()[missing].all()))
    plain = not text and isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf"
    numbers = values.to_numpy() if plain else _numbers(values, text=text)
    if not len(numbers):
        return numbers, True
    low, high = numbers.min(), numbers.max()
    if low != low:
        missing = np.isnan(numbers)
        if not column.gaps or not values.isna().to_numpy()[missing].all():
            return numbers, False
        low, high = np.fmin.reduce(numbers), np.fmax.reduce(numbers)
        if low != low:
            return numbers, True  # nothing but gaps
    # Standardising keeps the order, so the ends tell of all between them.
    ends = ((float(end) - column.mean) / column.scale for end in (low, high))
    return numbers, all(abs(end) <= FARTHEST for end in ends)


def _positions(values: pd.Series, categories: Sequence[str]) -> np.ndarray:
    """Return the position of each value's text among the categories, (n,); -1 for a gap and for any other text."""

    known: Any = pd.Series(categories, dtype=object)

    def found(texts: pd.Series) -> np.ndarray:
        return np.asarray(pd.Index(known).get_indexer(pd.Index(texts)))

    if isinstance(values.dtype, pd.CategoricalDtype):
        numbers, kinds = values.cat.codes.to_numpy(), values.cat.categories
    elif _alike(values):
        numbers, kinds = pd.factorize(values)
    else:
        return found(as_text(values))
    distinct: pd.Series = pd.Series(kinds)
    if not _alike(distinct):
        return found(as_text(values))
    # Each distinct value is made a text once; the last place is that of the gaps.
    return np.append(found(as_text(distinct)), -1)[numbers]


def _alike(values: pd.Series) -> bool:
    """Say whether equal values have equal texts, whatever others are beside them: not so of 1 beside True, or of dates."""
    if values.dtype == object:
        return str(pd.api.types.infer_dtype(values, skipna=True)) == "string"
    return any(
        of(values.dtype)
        for of in (pd.api.types.is_bool_dtype, pd.api.types.is_any_real_numeric_dtype, pd.api.types.is_string_dtype)
    )


def _is_near(x: "torch.Tensor") -> bool:
    """Say whether all of these are less than `FARTHEST`, by a sum of squares: not so of one that is no number, nor of some
    that are nearly as far.
    """
    import torch

    return bool(torch.dot(x.flatten(), x.flatten()) < FARTHEST**2 / 4)


def _gaps(column: Column, numbers: np.ndarray) -> np.ndarray | None:
    """Return which of a column's numbers are gaps, (n,); None where there are none."""
    missing = np.isnan(numbers) if column.gaps and numbers.dtype.kind == "f" else None
    return missing if missing is not None and missing.any() else None


def _turn(columns: np.ndarray, x: np.ndarray, places: np.ndarray) -> None:
    """Write (columns, n) to these places of x, (n, width), which lies row by row, as everything later takes it."""
    import torch  # whose copy is three times as fast as NumPy's

    if len(places) == x.shape[1]:
        torch.from_numpy(x).copy_(torch.from_numpy(columns).T)
    else:
        x[:, places] = columns.T


def _raw_values(column: Column, x: np.ndarray, gaps: np.ndarray) -> Any:
    """Turn a column's part of x, (n, width), back into (n,) values in its own unit and type."""
    kind: Any = np.dtype(object if column.dtype == "str" else column.dtype)
    values: Any
    if column.kind == "numeric":
        values = x[:, 0].astype(np.float64) * column.scale + column.mean
        if kind.kind in "iu":
            # Not beyond the type, where numbers would wrap around.
            limits = np.iinfo(kind)
            values = np.rint(np.clip(values, float(limits.min), np.nextafter(float(limits.max), 0.0)))
    else:
        texts = np.array(column.categories, dtype=object)[x.argmax(axis=1)]
        if column.dtype == "str":
            texts[gaps] = None
            return pd.Series(texts, dtype="str")
        values = texts == "True" if kind.kind == "b" else texts.astype(np.float64)
    if not gaps.any():
        return values.astype(kind)
    values = values.astype(object if kind.kind == "b" else np.float64)
    values[gaps] = None if kind.kind == "b" else np.nan
    return values


def _column_problems(column: Column, values: pd.Series, *, text: bool) -> list[str]:
    found = []
    missing = values.isna()
    if missing.any() and not column.gaps:
        first, count = values.index[int(missing.to_numpy().argmax())], int(missing.sum())
        gaps = f"{count} gap{'s' * (count > 1)}"
        found.append(
            f"column {column.name!r} has {gaps} (first: row {first}); the data set it learned from had none; fill them first"
        )
    present = values[~missing]
    if column.kind == "categorical":
        categories = as_text(present)
        fresh = categories[~categories.isin(column.categories)]
        if len(fresh):
            kinds = sorted(fresh.unique())
            found.append(
                f"column {column.name!r} has {len(fresh)} values of new categories {formats.shown(kinds)} (first: row {fresh.index[0]}); "
                f"expected one of {formats.shown(list(column.categories))}; map them to a known one or train again with them"
            )
        return found
    numbers = _numbers(present, text=text)
    none, infinite = np.isnan(numbers), np.isinf(numbers)
    with np.errstate(over="ignore", invalid="ignore"):
        far = ~none & ~infinite & ~(np.abs((numbers - column.mean) / column.scale) <= FARTHEST)
    if none.any():
        first, row = present.iloc[none.argmax()], present.index[none.argmax()]
        first = first.item() if isinstance(first, np.generic) else first
        remedy = "convert, mend or remove them"
        if text and str(first).strip().lower() in GAP_WORDS:
            remedy = f"leave the field empty where a value is missing, or train with `gaps: {[str(first)]}`"
        found.append(
            f"column {column.name!r} has {none.sum()} values that are no numbers (first: {first!r} in row {row}); "
            f"expected numbers; {remedy}"
        )
    if infinite.any():
        found.append(
            f"column {column.name!r} has {infinite.sum()} values that are not finite (first: row {present.index[infinite.argmax()]}); "
            "leave them empty or mend them"
        )
    if far.any():
        first, row = numbers[far.argmax()], present.index[far.argmax()]
        found.append(
            f"column {column.name!r} has {far.sum()} values too large to compute with (first: {first:g} in row {row}); "
            f"expected less than {FARTHEST:g} standard deviations from the mean of the training rows, {column.mean:g} "
            f"with a deviation of {column.scale:g}; mend or remove them"
        )
    return found


def _column_faults(column: Column, values: pd.Series, *, text: bool) -> list[tuple[int, str]]:
    """Return the rows whose value `_column_problems` would complain of, with what is wrong with each."""
    name, gaps = column.name, values.isna().to_numpy()
    found = (
        [] if column.gaps else [(row, f"{name!r} is empty; expected a value") for row in np.flatnonzero(gaps).tolist()]
    )
    if column.kind == "categorical":
        categories = as_text(values)
        fresh = ~gaps & ~categories.isin(column.categories).to_numpy()
        known = formats.shown([*column.categories])
        return found + [
            (row, f"{name!r} is {categories[row]!r}; expected one of {known}") for row in np.flatnonzero(fresh).tolist()
        ]
    numbers = _numbers(values, text=text)
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.abs((numbers - column.mean) / column.scale) <= FARTHEST
    for row in np.flatnonzero(~gaps & ~near).tolist():
        value = values[row].item() if isinstance(values[row], np.generic) else values[row]
        wanted = "a number" if np.isnan(numbers[row]) else f"a finite one near {column.mean:g}"
        found.append((row, f"{name!r} is {value!r}; expected {wanted}"))
    return found


@dataclass(frozen=True)
class Split:
    """Some rows of a data set.

    x: (n, *shape) float32, memory-mapped where it was read from disk.
    observed: (n, *shape) bool, or None where nothing is missing.
    y: (n,) text, or None. It judges and never trains.
    normal: (n,) bool, which rows are of the normal class, or None where the data set names none.
    ids: (n,) the identity of each row: the user's own identifier, or its position in the raw file.
    groups: (n,) text, which rows belong together and resemble each other, or None where the data set names no group.
    fingerprints: (n,) uint64, equal for rows of equal raw values, or None; tells rows again in another split or file.
    """

    x: np.ndarray
    observed: np.ndarray | None
    y: np.ndarray | None
    normal: np.ndarray | None
    ids: np.ndarray
    groups: np.ndarray | None = None
    fingerprints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def only_normal(self) -> "Split":
        """Return the rows of the normal class, or all where the data set names none."""
        if self.normal is None:
            return self
        return self.take(np.flatnonzero(self.normal))

    def take(self, rows: np.ndarray) -> "Split":
        """Return the rows at these positions, in this order."""

        def some(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        return Split(
            self.x[rows],
            some(self.observed),
            some(self.y),
            some(self.normal),
            self.ids[rows],
            some(self.groups),
            some(self.fingerprints),
        )


@dataclass(frozen=True)
class Dataset:
    """Three splits that share no row, and the schema learned from the first."""

    name: str
    schema: Schema
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = field(default=())

    def save(self, folder: Path) -> None:
        """Write the data set as JSON, npy and Parquet. Equal data sets give equal bytes."""
        with files.whole(folder) as draft:
            for name in SPLITS:
                split: Split = getattr(self, name)
                (draft / name).mkdir(parents=True)
                np.save(draft / name / "x.npy", split.x, allow_pickle=False)
                if split.observed is not None:
                    np.save(draft / name / "observed.npy", split.observed, allow_pickle=False)
                side = {"id": split.ids, "label": split.y, "normal": split.normal, "group": split.groups}
                side["fingerprint"] = split.fingerprints
                formats.write(
                    draft / name / "rows.parquet", pd.DataFrame({k: v for k, v in side.items() if v is not None})
                )
            files.write_json(draft / "schema.json", self.schema.to_json())
            files.write_json(draft / "notes.json", list(self.notes))

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Read what `save` wrote; the arrays stay on disk until they are used."""
        splits = {}
        for name in SPLITS:
            part = folder / name
            if not (part / "x.npy").is_file():
                raise FileNotFoundError(
                    f"{part / 'x.npy'} does not exist; run `dvc repro` or `sevenfold run` to make it"
                )
            observed = part / "observed.npy"
            side = formats.read(part / "rows.parquet").frame
            splits[name] = Split(
                x=_mapped(part / "x.npy"),
                observed=_mapped(observed) if observed.is_file() else None,
                y=side["label"].to_numpy() if "label" in side else None,
                normal=side["normal"].to_numpy() if "normal" in side else None,
                ids=side["id"].to_numpy(),
                groups=side["group"].to_numpy() if "group" in side else None,
                fingerprints=side["fingerprint"].to_numpy() if "fingerprint" in side else None,
            )
        schema = schema_from_json(files.read_json(folder / "schema.json"))
        return cls(folder.name, schema, notes=tuple(files.read_json(folder / "notes.json")), **splits)


def _mapped(path: Path) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(values, np.ndarray):
            values.close()
            raise ValueError("it is an archive; expected one array")
    except (OSError, ValueError) as error:
        raise formats.FormatError(
            f"{path} cannot be read: {error}; it may be truncated; remove it and run `dvc repro` or `sevenfold run`"
        ) from None
    return values
