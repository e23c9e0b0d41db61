"""Parts of the test rows: those of one label, or of one category of a column, and how models do on them."""

from collections.abc import Mapping, Sequence

import numpy as np

from sevenfold import evaluation, gate
from sevenfold.applications.base import Application, Scores
from sevenfold.datasets.base import Dataset, TableSchema, as_text
from sevenfold.evaluation import Judgement

MOST_CATEGORIES = 100
"""Of a column; one with more is no division into slices but an identifier."""

Members = dict[str, np.ndarray]
"""By a slice's name, such as "city=Bern": the positions of its test rows."""


def columns(dataset: Dataset, label: str | None) -> list[str]:
    """Return the columns that test rows can be sliced by: the label, and a table's categorical features."""
    found = [label] if label is not None and dataset.test.y is not None else []
    if isinstance(dataset.schema, TableSchema):
        found += [c.name for c in dataset.schema.columns if c.kind == "categorical"]
    return found


def members(dataset: Dataset, wanted: Sequence[str], *, label: str | None) -> Members:
    """Return the test rows of each slice.

    Args:
        wanted: columns.
        label: the name of the data set's label column.

    Raises:
        ValueError: a column is no label and no categorical feature, or has too many categories; the message lists all.
    """
    there = columns(dataset, label)
    problems = [
        f"{name!r} is no label and no categorical feature; there are: {', '.join(there) or 'none'}"
        for name in wanted
        if name not in there
    ]
    found: Members = {}
    for name in (n for n in wanted if n in there):
        values = _values(dataset, name, label)
        known = sorted(set(values))
        if len(known) > MOST_CATEGORIES:
            problems.append(f"{name!r} has {len(known)} values in the test rows; expected at most {MOST_CATEGORIES}")
        else:
            found |= {f"{name}={value}": np.flatnonzero(values == value) for value in known}
    if problems:
        raise ValueError("; ".join(problems))
    return found


def _values(dataset: Dataset, name: str, label: str | None) -> np.ndarray:
    """Return what each test row has in a column, as text, (n,)."""
    import pandas as pd

    if name == label:
        assert dataset.test.y is not None
        column = pd.Series(dataset.test.y)
    else:
        column = dataset.schema.inverse(dataset.test.x, dataset.test.observed).frame[name]
    return np.asarray(as_text(column).fillna("(gap)"), object)


def scores(
    application: Application, judgement: Judgement, parts: Mapping[str, np.ndarray]
) -> dict[str, tuple[int, float]]:
    """Return the rows of each slice, and the deciding metric on them; NaN where it is not defined there."""
    return {
        name: (len(rows), application.statistic(application.within(judgement.test.values, rows)))
        for name, rows in parts.items()
    }


def against(
    application: Application, ours: Judgement, theirs: Judgement, parts: Mapping[str, np.ndarray]
) -> tuple[gate.Slice, ...]:
    """Compare two that were judged on the same test rows, in each slice of these rows."""
    found = []
    for name, rows in parts.items():
        interval = None
        if len(rows) >= gate.FEWEST_IN_SLICE:  # smaller ones are not judged
            interval = evaluation.interval(
                application, _within(application, ours, rows), _within(application, theirs, rows)
            )
        found.append(gate.Slice(name, len(rows), interval))
    return tuple(found)


def _within(application: Application, judgement: Judgement, rows: np.ndarray) -> Judgement:
    values = application.within(judgement.test.values, rows)
    return Judgement(judgement.validation, Scores({application.primary: application.statistic(values)}, values))
