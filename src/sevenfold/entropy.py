"""Entropy coding: whole numbers to bytes and back, by tables of how likely each is.

The coder is constriction's asymmetric numeral system (Duda et al., 2015), a stack of which what was pushed last comes off
first. Its state starts at a checksum of the numbers and returns to it when all of them are off again: what such a coder
needs for a start anyway, 25 bits, tells a damaged stream from a sound one.
"""

import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import constriction
import numpy as np

FORMAT = 1
"""Of the streams. It is part of their checksum: a stream of another format is refused as damaged."""

OVERHEAD = 25
"""Bits of a stream beyond the information of its numbers; the padding to a whole byte comes on top."""

UNIT = 1 << 24
"""The weight that stands for certainty; constriction rounds probabilities to multiples of 1 / UNIT."""

WIDEST = 1 << 11
"""Numbers further than this from 0 are in no table: they escape."""

SMOOTHING = 64
"""Numbers that a learned table adds to those it has seen, spread as the logistic distribution of their mean and spread."""

TAIL = 12.0
"""Where a table of logistic distributions ends, in scales from their means: beyond lie 6 numbers in a million."""

LIMIT = 1 << 31
"""Numbers are below this in size, escaped ones too."""

_CHECK = 1 << 24
_BYTES = (LIMIT.bit_length() + 7) // 8
# Two parts of ln 2, the first with few enough digits for exact products with whole numbers.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


class DamagedStreamError(ValueError):
    """A stream is not what an encoder with the same tables wrote."""


@dataclass(frozen=True)
class Table:
    """How likely whole numbers from `lowest` on are.

    weights: (numbers + 1,) int64, each 1 or more; the last one is for all numbers outside the table, which take one to four
        bytes more, and two bits for how many.
    """

    lowest: int
    weights: np.ndarray

    def symbols(self, values: np.ndarray) -> np.ndarray:
        """Return the place of each number among the weights."""
        places = values - self.lowest
        escape = len(self.weights) - 1
        return np.where((places < 0) | (places >= escape), escape, places)


def logistic_tables(weights: np.ndarray, means: np.ndarray, scales: np.ndarray) -> list[Table]:
    """Return tables of mixtures of logistic distributions, whose mass from k - 1/2 to k + 1/2 is that of k.

    Equal arguments give equal tables on every machine: there are only operations whose last bit IEEE 754 fixes, one
    number at a time.

    Args:
        weights, means, scales: (tables, components), finite, scales and weights above 0; the weights of a table add up
            to 1.
    """
    lows = np.clip(np.floor((means - TAIL * scales).min(axis=1)), -WIDEST, WIDEST).astype(np.int64)
    highs = np.clip(np.ceil((means + TAIL * scales).max(axis=1)), -WIDEST, WIDEST).astype(np.int64)
    tables = []
    for low, high, *components in zip(lows, highs, weights, means, scales, strict=True):
        edges = np.arange(low, high + 2) - 0.5
        below = np.zeros(len(edges))
        for weight, mean, scale in zip(*components, strict=True):  # np.sum may add in another order elsewhere
            below += weight / (1 + exp(-(edges - mean) / scale))
        inside = np.diff(below)
        outside = below[0] + (1 - below[-1])
        # One more, so that nothing is impossible.
        tables.append(Table(int(low), np.floor(np.append(inside, outside) * UNIT).clip(min=0).astype(np.int64) + 1))
    return tables


def learned_tables(values: np.ndarray) -> list[Table]:
    """Return tables of how often each whole number was seen, one for each column of values (n, columns), n >= 1.

    Between and beyond what was seen they follow the logistic distribution of the column's mean and spread: a histogram of
    few rows has gaps that mean nothing. They are to be kept, not made again: numpy rounds otherwise on other machines.
    """
    tables = []
    for column in np.clip(np.asarray(values, np.int64), -WIDEST, WIDEST).T:
        mean, scale = column.mean(), max(column.std() * math.sqrt(3) / math.pi, 0.05)
        low, high = (
            int(np.clip(end, -WIDEST, WIDEST))
            for end in (
                min(column.min(), math.floor(mean - TAIL * scale)),
                max(column.max(), math.ceil(mean + TAIL * scale)),
            )
        )
        below = 1 / (1 + exp((mean + 0.5 - np.arange(low, high + 2)) / scale))
        seen = np.bincount(column - low, minlength=high - low + 1)
        inside = seen + SMOOTHING * np.diff(below)
        outside = SMOOTHING * (below[0] + 1 - below[-1])
        shares = np.append(inside, outside) / (len(column) + SMOOTHING)
        tables.append(Table(low, np.floor(shares * UNIT).astype(np.int64) + 1))
    return tables


def information(values: np.ndarray, tables: Sequence[Table]) -> np.ndarray:
    """Return the information in whole numbers (n, columns), each column by its table, (n, columns) in bits."""
    bits = np.empty(values.shape)
    for i, (column, table) in enumerate(zip(np.asarray(values, np.int64).T, tables, strict=True)):
        symbols = table.symbols(column)
        bits[:, i] = np.log2(table.weights.sum() / table.weights[symbols])
        escaped = symbols == len(table.weights) - 1
        bits[escaped, i] += 8 * _lengths(_folded(column[escaped])) + math.log2(_BYTES)
    return bits


def exp(x: np.ndarray) -> np.ndarray:
    """Return e to the x, alike to the last bit on every machine, which numpy does not promise.

    The error is within 4e-16 of the result, which is held to the range 1e-300 to 1e300.
    """
    x = np.clip(np.asarray(x, np.float64), -690.0, 690.0)
    doublings = np.rint(x / _LN2_HIGH)
    rest = (x - doublings * _LN2_HIGH) - doublings * _LN2_LOW  # |rest| < 0.35
    total = np.ones_like(rest)
    for n in range(14, 0, -1):  # the series, by Horner's rule
        total = total * rest / n + 1
    result: np.ndarray = np.ldexp(total, doublings.astype(np.int64))
    return result


class Coder:
    """Tables, made ready for constriction."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = list(tables)
        # Floats, but whole numbers that they hold exactly.
        self.models = [
            constriction.stream.model.Categorical(t.weights.astype(np.float64), perfect=False) for t in self.tables
        ]


class Writer:
    """Collects numbers and makes one stream of them."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, Coder]] = []

    def write(self, values: np.ndarray, which: np.ndarray, coder: Coder) -> None:
        """Add numbers; `which` (n,) says by which of the coder's tables each of them goes.

        Raises:
            ValueError: a number's size is not below LIMIT.
        """
        values = np.asarray(values, np.int64)
        if len(values) and max(-int(values.min()), int(values.max())) >= LIMIT:
            raise ValueError(
                f"numbers from {values.min()} to {values.max()}; expected them between -{LIMIT} and {LIMIT}; use "
                "coarser steps"
            )
        self._parts.append((values, np.asarray(which, np.int64), coder))

    def stream(self) -> bytes:
        """Return all that was added, as bytes."""
        check = FORMAT
        for values, _, _ in self._parts:
            check = _checksum(values, check)
        ans = constriction.stream.stack.AnsCoder(np.array([_CHECK | check % _CHECK], np.uint32))
        bytewise, lengthwise = _bytewise()
        for values, which, coder in reversed(self._parts):
            order, groups = _groups(which, coder)
            ordered = values[order]
            symbols = np.concatenate([coder.tables[t].symbols(ordered[rows]) for t, rows in groups] or [ordered])
            escapes = np.array([len(coder.tables[t].weights) - 1 for t in which[order]], np.int64)
            folded = _folded(ordered[symbols == escapes])
            lengths = _lengths(folded)
            digits = (folded[:, None] >> (8 * np.arange(_BYTES))) & 255  # (escaped, bytes)
            ans.encode_reverse(digits[np.arange(_BYTES) < lengths[:, None]].astype(np.int32), bytewise)
            ans.encode_reverse((lengths - 1).astype(np.int32), lengthwise)
            for table, rows in reversed(groups):
                ans.encode_reverse(symbols[rows].astype(np.int32), coder.models[table])
        # The zero bytes at the end of the last word say nothing.
        stream: bytes = ans.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        return stream


class Reader:
    """Takes a stream apart, in the order in which it was written."""

    def __init__(self, stream: bytes) -> None:
        """Open a stream.

        Raises:
            DamagedStreamError: no stream looks like this.
        """
        if not stream or stream[-1] == 0:
            raise DamagedStreamError(
                f"a stream of {len(stream)} bytes{' that ends in a zero' if stream else ''}; expected one as `compress` "
                "wrote it; take it from where it was written to once more"
            )
        words = np.frombuffer(stream + bytes(-len(stream) % 4), "<u4").astype(np.uint32)
        self._ans = constriction.stream.stack.AnsCoder(words)
        self._size = len(stream)
        self._check = FORMAT

    def read(self, which: np.ndarray, coder: Coder) -> np.ndarray:
        """Return the next numbers, (n,) int64, one for each entry of `which`; they are proven only by `close`."""
        which = np.asarray(which, np.int64)
        order, groups = _groups(which, coder)
        ordered = np.zeros(len(which), np.int64)
        escaped = np.zeros(len(which), bool)
        for t, rows in groups:
            symbols = self._ans.decode(coder.models[t], rows.stop - rows.start)
            ordered[rows] = symbols.astype(np.int64) + coder.tables[t].lowest
            escaped[rows] = symbols == len(coder.tables[t].weights) - 1
        bytewise, lengthwise = _bytewise()
        lengths = self._ans.decode(lengthwise, int(escaped.sum())).astype(np.int64) + 1
        digits = np.zeros((len(lengths), _BYTES), np.int64)
        digits[np.arange(_BYTES) < lengths[:, None]] = self._ans.decode(bytewise, int(lengths.sum()))
        folded = (digits << (8 * np.arange(_BYTES))).sum(axis=1)
        ordered[escaped] = np.where(folded % 2, -(folded // 2) - 1, folded // 2)
        values = np.zeros_like(ordered)
        values[order] = ordered
        self._check = _checksum(values, self._check)
        return values

    def close(self) -> None:
        """Check that this was all, and that it is what was written.

        Raises:
            DamagedStreamError: it is not; what was read is worthless.
        """
        if self._ans.get_compressed().tolist() != [_CHECK | self._check % _CHECK]:
            raise DamagedStreamError(
                f"a stream of {self._size} bytes fails its checksum; expected one of this very model and format, whole "
                "and unchanged; take it from where it was written to once more, or use the model that wrote it"
            )


def _groups(which: np.ndarray, coder: Coder) -> tuple[np.ndarray, list[tuple[int, slice]]]:
    """Return an order of numbers in which those of one table stand together, and where those of each table stand."""
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(len(coder.tables) + 1))
    return order, [(t, slice(a, b)) for t, (a, b) in enumerate(itertools.pairwise(bounds)) if a < b]


def _bytewise() -> tuple[constriction.stream.model.Uniform, constriction.stream.model.Uniform]:
    """Return the models of an escaped number's bytes, and of how many they are, less one."""
    return constriction.stream.model.Uniform(256), constriction.stream.model.Uniform(_BYTES)


def _folded(values: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2, ... -> 0, 1, 2, 3, 4, ..."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def _lengths(folded: np.ndarray) -> np.ndarray:
    """Return how many bytes each number takes, 1 or more."""
    return np.searchsorted(1 << 8 * np.arange(1, _BYTES), folded, side="right") + 1


def _checksum(values: np.ndarray, start: int) -> int:
    return zlib.crc32(values.astype("<i8").tobytes(), start)
