"""What a bundle does to rows: the one place where raw rows become a job's rows, wherever the bundle is used."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from sevenfold import formats, modules
from sevenfold.applications import base
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import TableSchema

Operation = Callable[[Bundle, formats.Rows], formats.Rows]


def encode(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return code_0, code_1, ... for each row, or the names of what a selection selected; every bundle can."""
    if bundle.application.operation == "encode":
        return formats.Rows(pd.DataFrame(_predicted(bundle, rows)))
    x, observed = bundle.schema.transform(rows)
    return formats.Rows(pd.DataFrame(base.code_columns(bundle.model, x, observed)))


def score(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return score, flag, threshold and the features behind it."""
    return formats.Rows(pd.DataFrame(_predicted(bundle, rows)))


def impute(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return the model's columns in their own units and types, with gaps filled, and what was known as it was."""
    filled = pd.DataFrame(_predicted(bundle, rows))
    assert isinstance(bundle.schema, TableSchema)
    for column in bundle.schema.columns:
        if column.kind == "numeric":
            # Samples are of single precision, and a column of whole numbers may hold fractions by now.
            given = pd.to_numeric(rows.frame[column.name], errors="coerce").reset_index(drop=True)
            if not given.isna().all():
                filled[column.name] = filled[column.name].where(given.isna(), given)
    return formats.Rows(filled)


def denoise(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return the images without their noise, in their own range and type."""
    return bundle.schema.inverse(_predicted(bundle, rows)["image"])


def compress(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return each image as a `stream` of bytes, which the same bundle turns back into an image."""
    return formats.Rows(pd.DataFrame(_predicted(bundle, rows)))


def index(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return vector_0, vector_1, ... for each row: what an index holds, and what it is asked for."""
    vectors = _predicted(bundle, rows)["vector"]  # (n, dimensions)
    return formats.Rows(pd.DataFrame({f"vector_{i}": column for i, column in enumerate(vectors.T)}))


def _predicted(bundle: Bundle, rows: formats.Rows) -> base.Columns:
    x, observed = bundle.schema.transform(rows)
    return bundle.application.predict(bundle.model, x, observed, bundle.schema)


def accepting(bundle: Bundle) -> Bundle:
    """Return the bundle as it takes rows: one that fills gaps takes them in columns, too, that had none in training."""
    if bundle.application.operation != "impute" or not isinstance(bundle.schema, TableSchema):
        return bundle
    columns = tuple(replace(column, gaps=True) for column in bundle.schema.columns)
    return replace(bundle, schema=replace(bundle.schema, columns=columns))


OPERATIONS: dict[str, Operation] = {
    "encode": encode,
    "score": score,
    "impute": impute,
    "denoise": denoise,
    "compress": compress,
    "index": index,
}


def get(name: str, bundle: Bundle) -> Operation:
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
