"""How values are distributed, now and when a model was trained, to be drawn beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sevenfold import drift
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import TableSchema

DRAWN = 6
"""Columns whose distributions are kept, the farthest first."""

BARS = 24
"""Bars of a histogram of numbers; of categories half as many are shown."""


@dataclass(frozen=True)
class Histogram:
    """Shares of rows, then and now.

    edges: of bins of numbers, one more than shares, in the user's own unit; or None.
    labels: of categories; or None.
    mark: a threshold to draw; or None.
    """

    name: str
    then: tuple[float, ...]
    now: tuple[float, ...]
    edges: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    mark: float | None = None


def of_columns(bundle: Bundle, found: drift.Drift, x: np.ndarray, observed: np.ndarray | None) -> list[Histogram]:
    """Return the distributions of the farthest columns, in the user's own units."""
    assert bundle.reference is not None
    names = [m.name for m in found.columns]
    summaries = {} if isinstance(bundle.schema, TableSchema) else drift.summaries(x)
    drawn = []
    for measure in found.ranked[:DRAWN]:
        index = names.index(measure.name)
        reference = bundle.reference.columns[index]
        if isinstance(bundle.schema, TableSchema):
            column = bundle.schema.columns[index]
            at = sum(c.width for c in bundle.schema.columns[:index])
            seen = slice(None) if observed is None else observed[:, at]
            values = x[seen, at : at + column.width]
            if column.kind == "categorical":
                drawn.append(_categories(measure.name, reference, column.categories, values))
                continue
            now, scale, mean = values[:, 0].astype(np.float64), column.scale, column.mean
        else:
            now, scale, mean = summaries[measure.name].astype(np.float64), 1.0, 0.0
        if len(now) and reference.quantiles is not None and reference.counts.any():
            levels = np.arange(drift.LEVELS)
            then = np.interp(np.linspace(0, drift.LEVELS - 1, 1001), levels, reference.quantiles.astype(np.float64))
            # What lies far out goes to the last bars: one row would else make all others one bar.
            low = min(np.quantile(then, 0.01), np.quantile(now, 0.01))
            high = max(np.quantile(then, 0.99), np.quantile(now, 0.99))
            bars = np.linspace(low, max(high, low + 1e-6), BARS + 1)
            edges = tuple((bars * scale + mean).tolist())
            drawn.append(Histogram(measure.name, shares(then, bars), shares(now, bars), edges))
    return drawn


def shares(values: np.ndarray, edges: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, ...]:
    """Return the share of values (n,) in each bin; those beyond the edges, ascending, count in the outermost bins."""
    counts = np.histogram(values.clip(edges[0], edges[-1]), edges, weights=weights)[0]
    return tuple((counts / counts.sum()).tolist())


def _categories(name: str, reference: drift.Distribution, categories: Sequence[str], values: np.ndarray) -> Histogram:
    now = values.sum(axis=0)
    then = reference.counts / max(1, reference.counts.sum())
    now = now / max(1, now.sum())
    first = np.argsort(-np.maximum(then, now), kind="stable")[: BARS // 2]
    labels = tuple(categories[i] for i in first)
    return Histogram(name, tuple(then[first].tolist()), tuple(now[first].tolist()), None, labels)
