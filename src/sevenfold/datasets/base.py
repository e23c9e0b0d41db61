"""What a data set is: the schema of its samples, its three splits, and how they lie on disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from sevenfold import files, formats

Source = Callable[..., formats.Rows]
"""What every file in `datasets/` defines as `fetch`: keyword options in, rows out. No network, same rows every time."""

SPLITS = ("train", "validation", "test")


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
    def features(self) -> tuple[str, ...]:
        channels, height, width = self.shape
        where = [(r, c) for r in range(height) for c in range(width)]
        if channels == 1:
            return tuple(f"pixel_{r}_{c}" for r, c in where)
        return tuple(f"pixel_{r}_{c}_{k}" for k in range(channels) for r, c in where)

    @property
    def feature_of(self) -> np.ndarray:
        return np.arange(int(np.prod(self.shape)))

    def problems(self, rows: formats.Rows) -> list[str]:
        channels, height, width = self.shape
        wanted = f"images {width}x{height} with {channels} channel{'s' * (channels > 1)}"
        if rows.images is None:
            return [
                f"got a table with {len(rows.frame.columns)} columns; expected {wanted}, as .npz, .npy, IDX or a folder"
            ]
        images = rows.images
        got = images.shape[1:] if images.ndim == 4 else (*images.shape[1:], 1)
        if got != (height, width, channels):
            remedy = "resize or convert them"
            return [
                f"got images {got[1]}x{got[0]} with {got[2]} channel{'s' * (got[2] > 1)}; expected {wanted}; {remedy}"
            ]
        found = []
        if images.dtype.kind == "f" and not np.isfinite(images).all():
            bad = ~np.isfinite(images.reshape(len(images), -1)).all(axis=1)
            found.append(
                f"{bad.sum()} images hold values that are not finite (first: row {bad.argmax()}); leave them out"
            )
        elif len(images) and (images.min() < self.low or images.max() > self.high):
            found.append(
                f"values reach from {images.min():g} to {images.max():g}; expected {self.low:g} to {self.high:g}; "
                "check the images' type and scale"
            )
        return found

    def transform(self, rows: formats.Rows) -> tuple[np.ndarray, np.ndarray | None]:
        self.require(rows, "images")
        assert rows.images is not None
        images = rows.images if rows.images.ndim == 4 else rows.images[..., None]  # (n, H, W, C)
        x = (images.astype(np.float32) - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), None  # (n, C, H, W)

    def inverse(self, x: np.ndarray, observed: np.ndarray | None = None) -> formats.Rows:
        images = np.clip(x, 0, 1).transpose(0, 2, 3, 1).astype(np.float64) * (self.high - self.low) + self.low
        kind = np.dtype(self.dtype)
        images = np.rint(images).astype(kind) if kind.kind in "iu" else images.astype(kind)
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
            known = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "bool": (0.0, 1.0)}
            if images.dtype.name not in known:
                got = f"values of type {images.dtype} from {images.min():g} to {images.max():g}"
                raise DataError(
                    "images", [f"{got} have no range of their own; give `range: [low, high]` in params.yaml"]
                )
            value_range = known[images.dtype.name]
        _, height, width, channels = images.shape
        return cls((channels, height, width), float(value_range[0]), float(value_range[1]), images.dtype.name)


@dataclass(frozen=True)
class Column:
    """One column of a table, with its statistics from the training split.

    mean, scale: of the observed values, in the column's own unit (numeric only).
    categories: sorted texts (categorical only); one value of x for each.
    gaps: whether the training split had any, so whether later rows may.
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
    """A table of numeric and categorical columns, gaps allowed where the training split had some.

    Numeric columns are standardised, categorical ones become one value per category (one-hot). A gap is 0 in x, which
    is the mean of a standardised column, and False in `observed`.
    """

    columns: tuple[Column, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (sum(c.width for c in self.columns),)

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    @property
    def feature_of(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.columns)), [c.width for c in self.columns])

    def problems(self, rows: formats.Rows) -> list[str]:
        if rows.images is not None:
            return [
                f"got images {rows.images.shape[1:]}; expected a table with columns {', '.join(self.features[:5])}..."
            ]
        found = []
        names = list(rows.frame.columns)
        if twice := sorted({str(n) for n in names if names.count(n) > 1}):
            found.append(f"column{'s' * (len(twice) > 1)} {_some(twice)} twice in the rows; rename or leave one out")
        if missing := [c.name for c in self.columns if c.name not in rows.frame]:
            many = len(missing) > 1
            found.append(
                f"column{'s' * many} {_some(missing)} {'are' if many else 'is'} missing; the model was trained with them"
            )
        for column in self.columns:
            if column.name in rows.frame and column.name not in twice:
                found += _column_problems(column, rows.frame[column.name])
        return found

    def transform(self, rows: formats.Rows) -> tuple[np.ndarray, np.ndarray | None]:
        self.require(rows, "table")
        count, width = len(rows), self.shape[0]
        x = np.zeros((count, width), np.float32)
        observed = np.ones((count, width), bool)
        at = 0
        for column in self.columns:
            block = slice(at, at + column.width)
            if column.kind == "numeric":
                values = pd.to_numeric(rows.frame[column.name]).to_numpy(np.float64, na_value=np.nan)
                present = ~np.isnan(values)
                x[present, at] = (values[present] - column.mean) / column.scale
            else:
                codes = pd.Categorical(as_text(rows.frame[column.name]), categories=list(column.categories)).codes
                present = codes >= 0
                x[np.flatnonzero(present), at + codes[present]] = 1
            observed[~present, block] = False
            at += column.width
        return x, None if observed.all() else observed

    def inverse(self, x: np.ndarray, observed: np.ndarray | None = None) -> formats.Rows:
        columns: dict[str, Any] = {}
        at = 0
        for column in self.columns:
            gaps = np.zeros(len(x), bool) if observed is None else ~observed[:, at]
            if column.kind == "numeric":
                values = x[:, at].astype(np.float64) * column.scale + column.mean
                if np.dtype(column.dtype).kind in "iu":
                    values = np.rint(values)
                    columns[column.name] = values if gaps.any() else values.astype(column.dtype)
                else:
                    columns[column.name] = values
                columns[column.name][gaps] = np.nan
            else:
                best = x[:, at : at + column.width].argmax(axis=1)
                texts = np.array(column.categories, dtype=object)[best]
                texts[gaps] = None
                columns[column.name] = pd.Series(texts, dtype="str")
            at += column.width
        return formats.Rows(pd.DataFrame(columns))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "table", "columns": [asdict(c) for c in self.columns]}

    @classmethod
    def learn(cls, rows: formats.Rows, *, categorical: tuple[str, ...] = ()) -> "TableSchema":
        """Learn kinds, statistics and categories from the training rows.

        Text, boolean and category columns are categorical, and so are those named in `categorical`.

        Raises:
            DataError: a column is constant, empty, not finite or of a kind that no model takes.
        """
        found, columns = [], []
        for name in rows.frame.columns:
            values = rows.frame[name]
            present = values.dropna()
            if present.empty:
                found.append(f"column {name!r} has no value in the training rows; add it to `drop`")
            elif name not in categorical and _is_number(values):
                numbers = present.to_numpy(np.float64)
                if not np.isfinite(numbers).all():
                    found += _column_problems(Column(str(name), "numeric", str(values.dtype), gaps=True), values)
                elif numbers.min() == numbers.max():
                    found.append(
                        f"column {name!r} is constant ({numbers[0]:g}); expected two values or more; add it to `drop`"
                    )
                else:
                    dtype = "float64" if values.isna().any() else values.dtype.name.lower()
                    gaps = bool(values.isna().any())
                    columns.append(
                        Column(str(name), "numeric", dtype, float(numbers.mean()), float(numbers.std()), (), gaps)
                    )
            elif name in categorical or pd.api.types.is_bool_dtype(values) or is_text(values):
                categories = tuple(sorted(as_text(present).unique()))
                if len(categories) == 1:
                    found.append(
                        f"column {name!r} is constant ({categories[0]!r}); expected two values or more; add it to `drop`"
                    )
                columns.append(Column(str(name), "categorical", "str", 0.0, 1.0, categories, bool(values.isna().any())))
            else:
                found.append(
                    f"column {name!r} has values of type {values.dtype}; expected numbers, text or booleans; convert it or add it to `drop`"
                )
        if not len(rows.frame.columns):
            found.append("the table has no feature columns; expected at least one besides label and identifiers")
        if found:
            raise DataError("table", found)
        return cls(tuple(columns))


def schema_from_json(value: Mapping[str, Any]) -> Schema:
    """Return the schema that `to_json` wrote."""
    fields = {k: v for k, v in value.items() if k != "kind"}
    if value["kind"] == "images":
        return ImageSchema(**fields | {"shape": tuple(fields["shape"])})
    return TableSchema(tuple(Column(**c | {"categories": tuple(c["categories"])}) for c in fields["columns"]))


def is_text(values: pd.Series) -> bool:
    return isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(values.dropna())


def as_text(values: pd.Series) -> pd.Series:
    """Categories as text, gaps kept; whole numbers read as floats because of gaps lose their ".0"."""
    present = values.dropna()
    if pd.api.types.is_float_dtype(present) and (present == present.round()).all():
        present = present.astype("int64")
    return present.astype(str).astype(object).reindex(values.index)


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _column_problems(column: Column, values: pd.Series) -> list[str]:
    found = []
    missing = values.isna()
    if missing.any() and not column.gaps:
        first = int(missing.to_numpy().argmax())
        found.append(
            f"column {column.name!r} has {missing.sum()} gaps (first: row {first}); the training rows had none; fill them first"
        )
    present = values[~missing]
    if column.kind == "categorical":
        text = as_text(present)
        fresh = text[~text.isin(column.categories)]
        if len(fresh):
            kinds = sorted(fresh.unique())
            found.append(
                f"column {column.name!r} has {len(fresh)} values of new categories {_some(kinds)} (first: row {fresh.index[0]}); "
                f"expected one of {_some(list(column.categories))}; map them to a known one or train again with them"
            )
        return found
    numbers = pd.to_numeric(present, errors="coerce")
    bad = numbers.isna()
    if bad.any():
        first = present[bad].iloc[0]
        found.append(
            f"column {column.name!r} has {bad.sum()} values that are no numbers (first: {first!r} in row {present[bad].index[0]}); "
            "expected numbers; mend or remove them"
        )
    infinite = np.isinf(numbers[~bad].to_numpy(np.float64))
    if infinite.any():
        first = numbers[~bad].index[int(infinite.argmax())]
        found.append(
            f"column {column.name!r} has {infinite.sum()} values that are not finite (first: row {first}); leave them empty or mend them"
        )
    return found


@dataclass(frozen=True)
class Split:
    """Some rows of a data set.

    x: (n, *shape) float32, memory-mapped where it was read from disk.
    observed: (n, *shape) bool, or None where nothing is missing.
    y: (n,) text, or None. It judges and never trains.
    normal: (n,) bool, which rows are of the normal class, or None where the data set names none.
    ids: (n,) the identity of each row: the user's own identifier, or its position in the raw file.
    """

    x: np.ndarray
    observed: np.ndarray | None
    y: np.ndarray | None
    normal: np.ndarray | None
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def only_normal(self) -> "Split":
        """Return the rows of the normal class, or all where the data set names none."""
        if self.normal is None:
            return self
        rows = np.flatnonzero(self.normal)
        return Split(
            self.x[rows],
            None if self.observed is None else self.observed[rows],
            None if self.y is None else self.y[rows],
            self.normal[rows],
            self.ids[rows],
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
                side = {"id": split.ids, "label": split.y, "normal": split.normal}
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
            side = pd.read_parquet(part / "rows.parquet")
            splits[name] = Split(
                x=np.load(part / "x.npy", mmap_mode="r"),
                observed=np.load(observed, mmap_mode="r") if observed.is_file() else None,
                y=side["label"].to_numpy() if "label" in side else None,
                normal=side["normal"].to_numpy() if "normal" in side else None,
                ids=side["id"].to_numpy(),
            )
        schema = schema_from_json(files.read_json(folder / "schema.json"))
        return cls(folder.name, schema, notes=tuple(files.read_json(folder / "notes.json")), **splits)
