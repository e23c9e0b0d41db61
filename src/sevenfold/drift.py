"""How far some rows are from those that a model learned from, in numbers with names.

A `Reference` travels in the bundle: how the values of each column were distributed among the training rows, and how the
reconstruction errors of validation rows were. Pixels say little one by one, so of images a few summaries of each stand in
their place. Rows are compared with it column by column:

- by the population stability index, PSI = sum of (now - then) log(now / then) over bins (Siddiqi, 2006, Credit Risk
  Scorecards). Bins of numbers lie between the deciles of the training rows, categories are bins of their own, and so are gaps;
- by the Kolmogorov-Smirnov distance of numbers, the largest difference between two distribution functions, and the total
  variation of categories, the largest difference between two probabilities; both over observed values, from 0 to 1.

Few rows differ from many by chance alone, and the PSI grows by it: without any drift it is about (1/n + 1/m) times a
chi-squared variable of as many degrees of freedom as there are bins but one, for n rows now and m then (Yurdakul and
Naranjo, 2020, Statistical properties of the population stability index). What that explains does not count here. Where rows
of the data set come in groups, such as the pieces of one photograph, m is the number of groups.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sevenfold.datasets.base import Schema, Split, TableSchema
from sevenfold.models.base import PIECE, Autoencoder

LEVELS = 101
"""Quantiles that a reference has of each column of numbers: 0 %, 1 %, ..., 100 %."""

BINS = 10
"""Bins of a column of numbers."""

SOME, LARGE = 0.1, 0.25
"""The usual reading of a PSI (Siddiqi, 2006): stable below the first, large above the second."""

FALSE_ALARM = 0.01
"""Share of batches without drift in which any column may have a PSI above 0."""

ERROR = "reconstruction error"

SHOWN = 50
"""Columns that the JSON of a drift lists."""

_MOST_ROWS = 20_000
_MOST_CELLS = 1 << 27
"""Of each split a reference is learned from so many rows at most, and so many values."""

_CELLS = 1 << 22
"""Values that go through a model at a time."""

_LARGEST = float(np.finfo(np.float32).max)


class DriftError(ValueError):
    """Rows are farther from those of the training than somebody allows."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """How the values of one column are distributed.

    counts: (bins,) int64, rows in each bin: (BINS,) for numbers, one for each category else.
    missing: rows without a value.
    units: of the rows, how many are independent of each other: groups where rows come in groups, else rows.
    quantiles: (LEVELS,) float32, ascending, each a value that was there; zeros where no value was. None for categories.
    """

    counts: np.ndarray
    missing: int
    units: int
    quantiles: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return int(self.counts.sum()) + self.missing


@dataclass(frozen=True, eq=False)
class Reference:
    """What the rows looked like that a model learned from.

    columns: in the schema's order, of the training rows; numbers are standardised, as the model takes them. For images one
        for each of `summaries`.
    error: of the mean squared errors of validation rows.
    """

    columns: tuple[Distribution, ...]
    error: Distribution

    @classmethod
    def learn(cls, model: Autoencoder, schema: Schema, train: Split, validation: Split) -> "Reference":
        """Look at some thousands of rows, evenly spread.

        Args:
            train: the rows that the model learned from, at least one; also those that were left out for their class, where
                a job will meet such rows too.
            validation: rows like these that it did not learn from.
        """
        train, validation = _some(train), _some(validation)
        columns = _columns(schema, train.x, train.observed)
        error = _errors_column(model, validation.x, validation.observed)
        return cls(tuple(_distribution(c, _units(train)) for c in columns), _distribution(error, _units(validation)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all as named arrays, the error last, from which `from_arrays` makes the same reference again."""
        every = [*self.columns, self.error]
        numbers = [d for d in every if d.quantiles is not None]
        categories = [d.counts for d in every if d.quantiles is None]
        return {
            "bins": np.stack([d.counts for d in numbers]),
            "categories": np.concatenate([np.zeros(0, np.int64), *categories]),
            "missing": np.array([d.missing for d in every], np.int64),
            "quantiles": np.stack([d.quantiles for d in numbers if d.quantiles is not None]),
            "units": np.array([d.units for d in every], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], schema: Schema) -> "Reference":
        """Return the reference of a schema's columns that `arrays` wrote.

        Raises:
            ValueError: the arrays are not what `arrays` writes for this schema; the message lists every problem.
        """
        widths = [0 if column is None else column for column in _widths(schema).values()]
        numbers = widths.count(0) + 1
        counted = np.dtype(np.int64)
        wanted = {
            "bins": ((numbers, BINS), counted),
            "categories": ((sum(widths),), counted),
            "missing": ((len(widths) + 1,), counted),
            "units": ((len(widths) + 1,), counted),
            "quantiles": ((numbers, LEVELS), np.dtype(np.float32)),
        }
        problems = [] if arrays.keys() == wanted.keys() else [f"it holds {', '.join(sorted(arrays)) or 'nothing'}"]
        problems += [
            f"{name} has shape {arrays[name].shape} and type {arrays[name].dtype}"
            for name, (shape, kind) in wanted.items()
            if name in arrays and (arrays[name].shape != shape or arrays[name].dtype != kind)
        ]
        if not problems:
            problems += [f"{name} holds numbers below 0" for name in list(wanted)[:-1] if (arrays[name] < 0).any()]
            if not np.isfinite(arrays["quantiles"]).all() or (np.diff(arrays["quantiles"]) < 0).any():
                problems.append("quantiles are not finite and ascending")
        if problems:
            listed = ", ".join(f"{name} {shape} {kind}" for name, (shape, kind) in wanted.items())
            raise ValueError(f"the reference of the training rows is wrong: {'; '.join(problems)}; expected {listed}")
        found, number, category = [], 0, 0
        for width, missing, units in zip(
            [*widths, 0], *(arrays[n].tolist() for n in ("missing", "units")), strict=True
        ):
            if width:
                found.append(Distribution(arrays["categories"][category : category + width], missing, units))
                category += width
            else:
                found.append(Distribution(arrays["bins"][number], missing, units, arrays["quantiles"][number]))
                number += 1
        # There may be no held-out rows, and so no errors; there always are training rows.
        fewest = [1] * len(widths) + [min(1, found[-1].rows)]
        if wrong := sum(not least <= d.units <= d.rows for least, d in zip(fewest, found, strict=True)):
            raise ValueError(
                f"the reference of the training rows is wrong: {wrong} columns have more independent rows than rows, or none; "
                "expected some"
            )
        return cls(tuple(found[:-1]), found[-1])


@dataclass(frozen=True)
class Measure:
    """How far one column is from that of the training rows.

    psi: what is left of it when chance has its share: 0 where chance alone may have made all of it.
    psi_raw: as it was measured.
    distance: Kolmogorov-Smirnov distance of numbers, total variation of categories; None where one side has no values.
    missing_then, missing_now: share of gaps.
    """

    name: str
    categorical: bool
    psi: float
    psi_raw: float
    distance: float | None
    missing_then: float
    missing_now: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "psi": _rounded(self.psi),
            "psi_raw": _rounded(self.psi_raw),
            "total_variation" if self.categorical else "ks": _rounded(self.distance),
            "missing_then": _rounded(self.missing_then),
            "missing_now": _rounded(self.missing_now),
        }


@dataclass(frozen=True)
class Drift:
    """How far some rows are from those of the training.

    rows, rows_then: how many were compared, and with how many.
    units_then: of these, how many are independent of each other.
    columns: in the schema's order.
    error: of the reconstruction error, against validation rows; None where there are none to compare.
    error_ratio: its median now over that then; None where either is missing or 0.
    error_rose: whether more rows than then are in the worst tenth. A lower error, as of the training rows themselves, is no
        cause for alarm.
    """

    rows: int
    rows_then: int
    units_then: int
    columns: tuple[Measure, ...]
    error: Measure | None
    error_ratio: float | None
    error_rose: bool

    @property
    def ranked(self) -> tuple[Measure, ...]:
        """Return the columns, the farthest first; equal ones in their order."""
        return tuple(sorted(self.columns, key=lambda m: (-m.psi, -m.psi_raw)))

    @property
    def worst(self) -> tuple[str, float]:
        """Return the name and the PSI of the farthest column, or of the reconstruction error if that rose and is farther."""
        first = self.ranked[0]
        if self.error is not None and self.error_rose and self.error.psi > first.psi:
            first = self.error
        return first.name, first.psi

    @property
    def reading(self) -> str:
        """Return "stable", "some" or "large", by the usual reading of the largest PSI."""
        largest = self.worst[1]
        return "stable" if largest < SOME else "some" if largest <= LARGE else "large"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON of bounded size: the `SHOWN` columns that are farthest, and how many there are."""
        name, value = self.worst
        return {
            "rows": self.rows,
            "rows_then": self.rows_then,
            "units_then": self.units_then,
            "reading": self.reading,
            "worst": {"name": name, "psi": _rounded(value)},
            "columns_compared": len(self.columns),
            "columns": [measure.to_json() for measure in self.ranked[:SHOWN]],
            "reconstruction_error": None
            if self.error is None
            else self.error.to_json() | {"ratio": _rounded(self.error_ratio), "rose": self.error_rose},
        }

    def sentence(self) -> str:
        """Return what a person should know, in one line: the farthest columns, and how to read their numbers."""
        count = len(self.columns)
        moved = [m for m in self.ranked if m.psi > 0]
        against = f"{self.rows:,} row{'s' * (self.rows != 1)} against {self.rows_then:,} of the training"
        if self.units_then != self.rows_then:
            against += f" in {self.units_then:,} group{'s' * (self.units_then != 1)}"
        parts = [f"{m.name} {_shown(m)}" for m in moved[:3]]
        if len(moved) > 3:
            parts[-1] += f" and {len(moved) - 3} more of {count} measures"
        if not moved:
            parts = [f"no more than chance makes in {count} measure{'s' * (count != 1)}"]
        if self.error is not None:
            ratio = [] if self.error_ratio is None else [f"{self.error_ratio:.3g} times that of held-out rows"]
            alarm = [_shown(self.error)] if self.error.psi > 0 and self.error_rose else []
            parts += [f"{ERROR} {', '.join(ratio + alarm)}"] if ratio or alarm else []
        reading = f"a PSI below {SOME:g} is stable, up to {LARGE:g} some drift, above it large"
        return f"drift of {against}: {'; '.join(parts)} ({reading})"


def compare(
    reference: Reference, model: Autoencoder, schema: Schema, x: np.ndarray, observed: np.ndarray | None
) -> Drift:
    """Compare rows with those that the model learned from.

    Args:
        x: as the schema makes them, (n, *shape), at least one; some thousands tell all that there is to tell.
        observed: bool, of the same shape; None where nothing is missing.

    Raises:
        ValueError: there are no rows, or not of this shape, or the reference is of another schema.
    """
    if x.shape[1:] != schema.shape or not len(x):
        raise ValueError(
            f"x has shape {x.shape}; expected (n, {', '.join(map(str, schema.shape))}) with n of 1 or more"
        )
    if len(reference.columns) != len(_widths(schema)):
        raise ValueError(
            f"the reference has {len(reference.columns)} columns; expected {len(_widths(schema))}, as the schema has; take "
            "both from one bundle"
        )
    tests = len(reference.columns) + 1
    names = list(_widths(schema))
    measures = [
        _measure(name, then, column, tests)
        for name, then, column in zip(names, reference.columns, _columns(schema, x, observed), strict=True)
    ]
    column = _errors_column(model, x, observed)
    error, ratio, rose = None, None, False
    if reference.error.counts.any() and len(column.values):
        assert reference.error.quantiles is not None
        error = _measure(ERROR, reference.error, column, tests)
        before = float(reference.error.quantiles[LEVELS // 2])
        after = float(np.median(column.values.astype(np.float64)))  # two of the largest float32 have no mean in float32
        ratio = after / before if before > 0 and after > 0 else None
        now = _binned(column, reference.error)
        rose = bool(now[-1] * reference.error.counts.sum() > reference.error.counts[-1] * now.sum())
    first = reference.columns[0]
    return Drift(len(x), first.rows, first.units, tuple(measures), error, ratio, rose)


def require(drift: Drift, most: float) -> None:
    """Raise a DriftError if the largest PSI is above `most`, a number of 0 or more."""
    if not most >= 0:
        raise ValueError(f"the largest PSI to allow is {most}; expected 0 or more, such as {LARGE:g}")
    name, value = drift.worst
    if value > most:
        raise DriftError(
            f"the PSI of {name} is {value:.3g} in the first {drift.rows:,} row{'s' * (drift.rows != 1)}; expected at most "
            f"{most:g}; mend the rows, train again with rows like these, or allow more drift"
        )


def psi(then: np.ndarray, now: np.ndarray) -> tuple[float, int]:
    """Return the population stability index between two counts of rows in the same bins, and the bins that hold any.

    An empty bin would make it infinite. Then each bin has half a row more (Jeffreys, 1946), and now half a row for each bin
    is added in the proportions of then (Fienberg and Holland, 1973, Simultaneous estimation of multinomial cell
    probabilities): so few rows are taken for rows like those before, as far as they say nothing else. Bins that are empty
    both times do not count.

    Args:
        then, now: (bins,), each of one row at least.
    """
    used = (then > 0) | (now > 0)
    then, now = then[used], now[used]
    expected = (then + 0.5) / (then.sum() + 0.5 * len(then))
    weight = 0.5 * len(then)
    got = (now + weight * expected) / (now.sum() + weight)
    return float(((got - expected) * np.log(got / expected)).sum()), len(then)


def beyond_chance(raw: float, *, bins: int, then: int, now: int, tests: int) -> float:
    """Return what a PSI has over its expectation without drift, (bins - 1)(1/then + 1/now); 0 where it may be by chance.

    That is where such a value or a larger one comes up without drift in more than `FALSE_ALARM` of all batches, in any of
    the `tests` columns that are looked at (Bonferroni).

    Args:
        then, now: numbers of rows that are independent of each other.
    """
    from scipy import special

    if bins < 2:
        return 0.0
    scale = 1 / then + 1 / now
    limit = scale * float(special.chdtri(bins - 1, FALSE_ALARM / tests))
    return raw - scale * (bins - 1) if raw > limit else 0.0


def ks(quantiles: np.ndarray, values: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of values from a distribution that is known by its quantiles.

    It is that of the two samples to within one step of the quantiles, 0.01.

    Args:
        quantiles: (LEVELS,), ascending.
        values: (n,), ascending, at least one.
    """
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    below, upto = first / len(values), np.append(first[1:], len(values)) / len(values)
    # Between two values one distribution function is flat and the other one rises: they are farthest apart at an end.
    left, right = _distribution_function(quantiles.astype(np.float64), values[first].astype(np.float64))
    return float(max(np.abs(below - left).max(), np.abs(upto - right).max()))


def summaries(x: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is compared of images (n, channels, height, width) in place of their pixels, each (n,) float32.

    brightness: the mean. contrast: the standard deviation. sharpness: root mean square of the differences between
    neighbours. clipped: share of values at an end of the range. colour, of several channels: the mean deviation
    between the channels of a pixel.
    """
    parts = [_summaries(x[start : start + _piece(x)]) for start in range(0, len(x), _piece(x))]
    return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}


@torch.inference_mode()
def errors(model: Autoencoder, x: np.ndarray, observed: np.ndarray | None) -> np.ndarray:
    """Return the mean squared error of each row over its observed cells, (n,) float32.

    It is NaN where nothing was observed, and the largest float32 where it is not finite.
    """
    found, device = [np.zeros(0, np.float32)], model.progress.device
    for start in range(0, len(x), _piece(x)):
        piece = slice(start, start + _piece(x))
        rows = torch.from_numpy(np.array(x[piece])).to(device)
        seen = None if observed is None else torch.from_numpy(np.array(observed[piece])).to(device)
        # What is placed on a device for a job brings its results back by itself.
        square = (rows - model(rows, seen).to(device)).square().flatten(1).nan_to_num(nan=torch.inf)  # (rows, size)
        if seen is None:
            mean = square.mean(dim=1)
        else:
            counted = seen.flatten(1)
            count = counted.sum(dim=1)
            mean = torch.where(counted, square, 0).sum(dim=1) / count  # 0 / 0 where nothing was observed
        found.append(mean.clamp(max=_LARGEST).float().cpu().numpy())
    return np.concatenate(found)


@dataclass(frozen=True)
class _Column:
    """What some rows hold in one column.

    values: (observed rows,): numbers, ascending, float32; or the positions of categories.
    missing: rows without a value.
    width: the number of categories; None for numbers.
    """

    values: np.ndarray
    missing: int
    width: int | None = None


def _widths(schema: Schema) -> dict[str, int | None]:
    """Return the name of each column that is compared, and its number of categories; None for numbers."""
    if isinstance(schema, TableSchema):
        return {c.name: c.width if c.kind == "categorical" else None for c in schema.columns}
    return dict.fromkeys(_summaries(np.zeros((1, *schema.shape), np.float32)))


def _columns(schema: Schema, x: np.ndarray, observed: np.ndarray | None) -> Iterator[_Column]:
    if not isinstance(schema, TableSchema):
        yield from (_Column(np.sort(values), 0) for values in summaries(x).values())
        return
    at = 0
    for column in schema.columns:
        seen = slice(None) if observed is None else observed[:, at]
        values = x[seen, at : at + column.width]  # (observed rows, width)
        missing, width = len(x) - len(values), column.width if column.kind == "categorical" else None
        yield _Column(np.sort(values[:, 0]) if width is None else values.argmax(axis=1), missing, width)
        at += column.width


def _errors_column(model: Autoencoder, x: np.ndarray, observed: np.ndarray | None) -> _Column:
    found = errors(model, x, observed)
    values = np.sort(found[~np.isnan(found)])
    return _Column(values, len(found) - len(values))


def _distribution(column: _Column, units: int) -> Distribution:
    if column.width is not None:
        return Distribution(np.bincount(column.values, minlength=column.width), column.missing, units)
    count = len(column.values)
    if not count:
        return Distribution(np.zeros(BINS, np.int64), column.missing, units, np.zeros(LEVELS, np.float32))
    # The inverse of the distribution function, which gives values that were there: a column of whole numbers has no others.
    at = np.maximum(-(-np.arange(LEVELS) * count // (LEVELS - 1)) - 1, 0)
    quantiles = column.values[at]
    return Distribution(_in_bins(column.values, quantiles), column.missing, units, quantiles)


def _binned(column: _Column, then: Distribution) -> np.ndarray:
    """Return the rows in each bin of the reference, (bins,)."""
    if then.quantiles is None:
        return np.bincount(column.values, minlength=len(then.counts))
    return _in_bins(column.values, then.quantiles)


def _in_bins(values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Return how many ascending values lie in each bin between deciles, (BINS,) int64; a decile itself ends its bin.

    A value that many rows share is several deciles at once. It has a bin of its own, so that what lies just below it shows.
    """
    step = (LEVELS - 1) // BINS
    deciles = quantiles[step:-step:step]  # (BINS - 1,)
    start = np.append(deciles[:-1] == deciles[1:], False) & np.append(True, deciles[1:] != deciles[:-1])
    edges = np.where(start, np.nextafter(deciles, np.float32(-np.inf)), deciles)
    upto = np.searchsorted(values, edges, side="right")
    return np.diff(upto, prepend=0, append=len(values)).astype(np.int64)


def _distribution_function(quantiles: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares below each value, and up to it, by straight lines between quantiles, which may repeat."""
    found = []
    last = len(quantiles) - 1
    for side in ("left", "right"):
        after = np.searchsorted(quantiles, at, side=side)
        low, high = quantiles[np.clip(after - 1, 0, last)], quantiles[np.clip(after, 0, last)]
        width = np.where(high > low, high - low, 1)
        share = (after - 1 + (at - low) / width) / last
        found.append(np.where(after == 0, 0.0, np.where(after > last, 1.0, share)))
    return found[0], found[1]


def _measure(name: str, then: Distribution, column: _Column, tests: int) -> Measure:
    now = _binned(column, then)
    counts = (np.append(then.counts, then.missing), np.append(now, column.missing))
    raw, bins = psi(*counts)
    rows = len(column.values) + column.missing
    distance = None
    if then.counts.any() and len(column.values):
        if then.quantiles is None:
            distance = float(np.abs(then.counts / then.counts.sum() - now / now.sum()).sum() / 2)
        else:
            distance = ks(then.quantiles, column.values)
    psi_beyond = beyond_chance(raw, bins=bins, then=then.units, now=rows, tests=tests)
    shares = then.missing / then.rows, column.missing / rows
    return Measure(name, column.width is not None, psi_beyond, raw, distance, *shares)


def _summaries(x: np.ndarray) -> dict[str, np.ndarray]:
    flat = x.reshape(len(x), -1)
    down, right = np.square(np.diff(x, axis=2)), np.square(np.diff(x, axis=3))
    pairs = max(1, (down.size + right.size) // max(1, len(x)))
    found = {
        "brightness": flat.mean(axis=1),
        "contrast": flat.std(axis=1),
        "sharpness": np.sqrt((down.sum(axis=(1, 2, 3)) + right.sum(axis=(1, 2, 3))) / pairs),
        "clipped": ((flat <= 0) | (flat >= 1)).mean(axis=1),
    }
    return found | ({"colour": x.std(axis=1).mean(axis=(1, 2))} if x.shape[1] > 1 else {})


def _some(split: Split) -> Split:
    """Return rows of a split, evenly spread, in memory."""
    most = min(_MOST_ROWS, max(1, _MOST_CELLS // math.prod(split.x.shape[1:])))
    return split.take(np.arange(0, len(split), max(1, -(-len(split) // most))))


def _units(split: Split) -> int:
    return len(split) if split.groups is None else len(np.unique(split.groups))


def _piece(x: np.ndarray) -> int:
    return min(PIECE, max(1, _CELLS // math.prod(x.shape[1:])))


def _shown(measure: Measure) -> str:
    parts = [f"PSI {measure.psi:.3g}"]
    if measure.distance is not None:
        parts.append(f"{'total variation' if measure.categorical else 'KS'} {measure.distance:.2f}")
    if abs(measure.missing_now - measure.missing_then) >= 0.01:
        parts.append(f"gaps {measure.missing_then:.0%} then and {measure.missing_now:.0%} now")
    return ", ".join(parts)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
