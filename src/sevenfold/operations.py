"""What a bundle does to rows: the one place where raw rows become a job's rows, wherever the bundle is used."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sevenfold import formats, modules
from sevenfold.applications import base
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import DataError, ImageSchema, TableSchema
from sevenfold.models.base import Compressor

if TYPE_CHECKING:
    import pyarrow

Operation = Callable[[Bundle, formats.Rows], formats.Rows]

PIECE = 4096
"""Rows that go from raw values to what is made of them together; a multiple of all that applications take together."""


def encode(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return code_0, code_1, ... for each row, or the names of what a selection selected; every bundle can."""
    if bundle.application.operation == "encode":
        return formats.Rows(pd.DataFrame(_predicted(bundle, rows)))
    return formats.Rows(
        pd.DataFrame(_in_pieces(lambda x, seen: base.code_columns(bundle.model, x, seen), bundle, rows))
    )


def listed(codes: formats.Rows) -> formats.Rows:
    """Return codes as one column `code`, of a list of single precision; its values are in the order of the columns."""
    import pyarrow

    values = codes.frame.to_numpy(np.float32)
    flat = pyarrow.array(values.ravel())
    column = pd.arrays.ArrowExtensionArray(pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1]))
    return formats.Rows(pd.DataFrame({"code": column}))


def score(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return score, flag, threshold and the features behind it."""
    return formats.Rows(pd.DataFrame(_predicted(bundle, rows)))


def impute(bundle: Bundle, rows: formats.Rows, *, written: bool = False) -> formats.Rows:
    """Return the model's columns in their own units and types, with gaps filled, and what was known as it was.

    Args:
        written: rows of a CSV file become one again: known cells stay the text that they are, and fills become text.
    """
    schema = bundle.schema
    assert isinstance(schema, TableSchema)
    x, observed = schema.transform(rows)
    filled = pd.DataFrame(bundle.application.predict(bundle.model, x, observed, schema))
    seen = np.ones(x.shape, bool) if observed is None else observed
    places = np.flatnonzero(np.diff(schema.feature_of, prepend=-1))
    for column, known in zip(schema.columns, seen[:, places].T, strict=True):
        given = rows.frame[column.name].reset_index(drop=True)
        if written:
            text = given.astype(object)
            text[~known] = [text_of(value) for value in filled[column.name][~known]]
            filled[column.name] = text
        elif column.kind == "numeric" and known.any():
            # Samples are of single precision, and a column of whole numbers may hold fractions by now.
            if isinstance(given.iloc[known.argmax()], Decimal):
                fills = filled[column.name].map(lambda value: Decimal(text_of(value)))
                filled[column.name] = fills.astype(object).where(~known, given)
            else:
                filled[column.name] = filled[column.name].where(~known, pd.to_numeric(given, errors="coerce"))
    return formats.Rows(filled)


def text_of(value: object) -> str:
    """Return a value as text, with as many digits as single precision has."""
    return np.format_float_positional(np.float32(value), trim="-") if isinstance(value, float) else str(value)


def denoise(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return the images without their noise, in their own range and type."""
    assert isinstance(bundle.schema, ImageSchema)
    assert rows.images is not None
    return bundle.schema.inverse(_predicted(bundle, rows)["image"], dtype=rows.images.dtype)


def compress(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return each image as a `stream` of bytes, which the same bundle turns back into an image."""
    return formats.Rows(pd.DataFrame(_predicted(bundle, rows)))


def decompress(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return the images of a column `stream` that `compress` made."""
    from sevenfold.applications.compression import Compression

    assert isinstance(bundle.application, Compression)
    return bundle.schema.inverse(bundle.application.restore(bundle.model, [*rows.frame["stream"]], bundle.schema))


def index(bundle: Bundle, rows: formats.Rows) -> formats.Rows:
    """Return vector_0, vector_1, ... for each row: what an index holds, and what it is asked for."""
    vectors = _predicted(bundle, rows)["vector"]  # (n, dimensions)
    return formats.Rows(pd.DataFrame({f"vector_{i}": column for i, column in enumerate(vectors.T)}))


def _predicted(bundle: Bundle, rows: formats.Rows) -> base.Columns:
    act, model, schema = bundle.application.predict, bundle.model, bundle.schema
    return _in_pieces(lambda x, observed: act(model, x, observed, schema), bundle, rows)


def _in_pieces(
    act: Callable[[np.ndarray, np.ndarray | None], base.Columns], bundle: Bundle, rows: formats.Rows
) -> base.Columns:
    """Return what is made of the samples of these rows, of plain numbers a piece at a time.

    Samples are used while they are in the processor's cache: to write all of them to memory, and to read them from there,
    would take as long as a small network does. Others take so long column by column that it is better done for many rows.
    """
    plain = isinstance(rows, formats.ArrowRows) and isinstance(bundle.schema, TableSchema) and bundle.schema.is_numeric
    if len(rows) <= PIECE or not plain:
        return act(*bundle.schema.transform(rows))
    starts = range(0, len(rows), PIECE)
    try:
        made = [act(*bundle.schema.transform(rows.between(at, min(at + PIECE, len(rows))))) for at in starts]
    except DataError:
        bundle.schema.require(rows, "table")  # which tells of all rows, by their numbers
        raise
    return {name: np.concatenate([part[name] for part in made]) for name in made[0]}


def accepting(bundle: Bundle) -> Bundle:
    """Return the bundle as it takes rows.

    One that fills gaps takes them in columns, too, that had none in training. One that denoises takes images of any size,
    and so does one that compresses, if its network can; both take other whole types than the training's, by their ranges.
    """
    schema = bundle.schema
    if isinstance(schema, TableSchema) and bundle.application.operation == "impute":
        columns = tuple(replace(column, gaps=True) for column in schema.columns)
        return replace(bundle, schema=replace(schema, columns=columns))
    if isinstance(schema, ImageSchema) and bundle.application.operation == "denoise":
        from sevenfold.applications import denoising

        return replace(bundle, schema=schema.any_size(denoising.SMALLEST))
    if isinstance(schema, ImageSchema) and bundle.application.operation == "compress":
        free = isinstance(bundle.model, Compressor) and bundle.model.any_size
        return replace(bundle, schema=schema.any_size() if free else schema.any_type())
    return bundle


OPERATIONS: dict[str, Operation] = {
    "encode": encode,
    "score": score,
    "impute": impute,
    "denoise": denoise,
    "compress": compress,
    "decompress": decompress,
    "index": index,
}


ALSO = {"compress": ("decompress",)}
"""What bundles can do beside the operation that they were made for."""

OPTIONS: dict[str, dict[str, str]] = {
    "encode": {"list": "whether the code is one column, a list, in place of one for each value"},
    "score": {"reasons": "whose features are told: of `all` rows, of `flagged` ones, or of `none`"},
    "impute": {
        "flags": "whether each column comes with one that says which of its cells were filled",
        "draws": "fills of each gap with the uncertainty that is left, for multiple imputation",
    },
    "compress": {
        "rate": "bits per pixel, at most",
        "psnr": "decibels, at least",
        "lossless_if_smaller": "whether an image whose stream is larger than a lossless file is stored as that one",
    },
    "index": {
        "id": "the column of ids; by default the paths of image files, else positions",
        "recall": "share of the truly nearest that a search has to find; by default as the model was judged",
        "neighbours": "how many a search usually asks for; by default as the model was judged",
        "kind": "how to search; by default what takes the fewest comparisons",
        "vectors": "whether the vectors are written as rows, in place of an index",
    },
}
"""What operations can be told for one job, beside what the bundle was made with; by operation and name."""


def configured(bundle: Bundle, name: str, options: Mapping[str, Any]) -> Bundle:
    """Return the bundle as it works with these options.

    Raises:
        ValueError: the operation has no such option, or not such a value of it.
    """
    get(name, bundle)
    known = OPTIONS.get(name, {})
    if unknown := [option for option in options if option not in known]:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"`{name}` has no option {', '.join(unknown)}; {has}; leave it out")
    if name == "index":
        _require_index_options(options)
    # Not above: a model that is loaded elsewhere brings the packages of its own application alone.
    from sevenfold.applications.anomaly import Anomaly
    from sevenfold.applications.imputation import Imputation

    application = bundle.application
    if isinstance(application, Anomaly) and name == "score" and "reasons" in options:
        application = application.explaining(options["reasons"])
    if isinstance(application, Imputation) and name == "impute" and options:
        application = application.giving(**options)
    return replace(bundle, application=application)


def _require_index_options(options: Mapping[str, Any]) -> None:
    """Raise a ValueError before hours of work, and not after them."""
    from sevenfold import indexes, searchers

    if (kind := options.get("kind")) is not None and kind not in searchers.KINDS:
        raise ValueError(
            f"kind is {kind!r}; expected one of {', '.join(searchers.KINDS)}; leave it out to have one chosen"
        )
    if (recall := options.get("recall")) is not None:
        indexes.require_recall(recall)
    if (neighbours := options.get("neighbours")) is not None and neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}; expected 1 or more, such as 10")


def wanted(bundle: Bundle, fields: "pyarrow.Schema | None", columns: Sequence[str] | None) -> list[str] | None:
    """Return the columns of a Parquet file that have to be read; None for all.

    Args:
        columns: that go along beside what is made; None for all.
    """
    if fields is None or columns is None:
        return None
    used = set(bundle.schema.features) | set(columns)
    return [name for name in fields.names if name in used]


def get(name: str, bundle: Bundle) -> Operation:
    """Return the operation of this name.

    Raises:
        ValueError: there is none, or the bundle was made for another one.
    """
    if name not in OPERATIONS:
        raise ValueError(
            f"no operation {name!r}{modules.meant(name, [*OPERATIONS])}; there are: {', '.join(OPERATIONS)}"
        )
    if name not in {"encode", *ALSO.get(bundle.application.operation, ()), bundle.application.operation}:
        raise ValueError(
            f"this model is for {bundle.application_name}, which runs as `{bundle.application.operation}`; expected one "
            f"that runs as `{name}`; name another model or run that operation"
        )
    return OPERATIONS[name]


def identifying(bundle: Bundle, rows: formats.Rows) -> pd.DataFrame:
    """Return the columns that the model does not use: identifiers, labels, notes. A job keeps them beside its own."""
    used = set() if rows.images is not None else set(bundle.schema.features)
    return rows.some([c for c in rows.columns if c not in used])
