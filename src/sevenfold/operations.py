"""What a bundle does to rows: the one place where raw rows become a job's columns, wherever the bundle is used."""

from collections.abc import Callable

import pandas as pd

from sevenfold import formats, modules
from sevenfold.applications import base
from sevenfold.bundles import Bundle


def encode(bundle: Bundle, rows: formats.Rows) -> pd.DataFrame:
    """Return code_0, code_1, ... for each row; every bundle can."""
    x, observed = bundle.schema.transform(rows)
    return pd.DataFrame(base.code_columns(bundle.model, x, observed))


def score(bundle: Bundle, rows: formats.Rows) -> pd.DataFrame:
    """Return what the bundle's application predicts: for anomalies score, flag, threshold and the features behind it."""
    x, observed = bundle.schema.transform(rows)
    return pd.DataFrame(bundle.application.predict(bundle.model, x, observed, bundle.schema))


OPERATIONS: dict[str, Callable[[Bundle, formats.Rows], pd.DataFrame]] = {"encode": encode, "score": score}


def get(name: str, bundle: Bundle) -> Callable[[Bundle, formats.Rows], pd.DataFrame]:
    """Return the operation of this name.

    Raises:
        ValueError: there is none, or the bundle was made for another one.
    """
    if name not in OPERATIONS:
        raise ValueError(
            f"no operation {name!r}{modules.meant(name, [*OPERATIONS])}; there are: {', '.join(OPERATIONS)}"
        )
    if name not in {"encode", bundle.application.operation}:
        raise ValueError(
            f"this model is for {bundle.application_name}, which runs as `{bundle.application.operation}`; expected one "
            f"that runs as `{name}`; name another model or run that operation"
        )
    return OPERATIONS[name]


def identifying(bundle: Bundle, rows: formats.Rows) -> pd.DataFrame:
    """Return the columns that the model does not use: identifiers, labels, notes. A job keeps them beside its own."""
    used = set() if rows.images is not None else set(bundle.schema.features)
    return rows.frame[[c for c in rows.frame.columns if c not in used]]
