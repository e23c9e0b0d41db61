"""Which output a name asks for: a folder of partitions, one file of rows, image files, ... and the columns that it has."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sevenfold import formats, index_folders, manifests
from sevenfold.applications.search import Search
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import ImageSchema, TableSchema
from sevenfold.formats import FormatError, Rows
from sevenfold.index_folders import Maker
from sevenfold.sinks import (
    Archive,
    Arrays,
    Containers,
    Csv,
    ImageFiles,
    IndexFolder,
    OneTable,
    Partitions,
    Sink,
    no_identifier,
    uncoded,
)
from sevenfold.sources import Source

if TYPE_CHECKING:
    import pyarrow

_TABLES = ("", ".parquet", ".csv", ".npz")
SUFFIXES = {"denoise": ("", ".npz"), "compress": ("", ".7f"), "decompress": ("", ".npz"), "index": ("",)}
"""The endings that the outputs of an operation may have, "" for a folder; of others those of tables."""


def check(source: str | Path, destination: Path, operation: str) -> None:
    """Refuse an output that cannot be written, before anything is read.

    Raises:
        FormatError: its name has an ending of no kind that the operation gives.
        ValueError: it is the input. IsADirectoryError: it is a folder of other things. PermissionError: nobody may write it.
    """
    if not destination.name:
        raise ValueError(f"the output is {str(destination)!r}; expected the name of a new file or folder; give one")
    suffixes = SUFFIXES.get(operation, _TABLES)
    if destination.suffix not in suffixes:
        kinds = " or ".join(filter(None, [", ".join(s for s in suffixes if s), "a folder (a name without an ending)"]))
        raise FormatError(f"{destination}: cannot write {destination.suffix!r} by `{operation}`; expected {kinds}")
    if Path(source).resolve() == destination.resolve():
        raise ValueError(f"input and output are both {source}; give the output another name")
    if destination.is_dir() and destination.suffix:
        raise IsADirectoryError(f"the output {destination} is a folder; expected a file's name; name a file inside it")
    if destination.is_file() and not destination.suffix:
        raise FileExistsError(f"the output {destination} is a file; expected a folder's name; give another one")
    if operation == "index" and (destination / index_folders.MANIFEST).is_file() and not under_way(destination):
        raise FileExistsError(
            f"{destination} is an index already; expected a new name; add to it with `sevenfold index add`, or remove it"
        )
    if destination.is_dir() and any(destination.iterdir()) and not is_ours(destination):
        raise FileExistsError(
            f"the output {destination} holds files that no job wrote; expected a new or empty folder, or one that a job "
            "made; give another name"
        )
    place = next(p for p in destination.resolve().parents if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{destination} cannot be written: {place} is no folder that you may write to; choose another"
        )


def names(folder: Path) -> list[str]:
    """Return the paths in a folder of all files below it, the newest first; nothing of what is no folder."""
    if not folder.is_dir():
        return []
    found = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_ctime_ns, reverse=True)
    return [p.relative_to(folder).as_posix() for p in found]


def require_no_more(output: str, receipt: bytes, names: Sequence[str], *, by_age: bool) -> None:
    """See that a folder holds no more files than the job made whose output it is, since a new output replaces all.

    Args:
        receipt: the content of the job's receipt; where it does not say how many files, nothing is asked.
        names: of the files that are there.
        by_age: whether the newest come first, which are told.

    Raises:
        FileExistsError: it holds more.
    """
    try:
        made = json.loads(receipt)["details"]["files"]
    except (ValueError, KeyError, TypeError):
        return
    if isinstance(made, int) and len(names) > made:
        newest = f", also {', '.join(names[: min(5, len(names) - made)])}" if by_age else ""
        raise FileExistsError(
            f"the output {output} holds {len(names)} files, and the job that made it wrote {made}; a new output would replace "
            f"them all{newest}; move away what is yours, or give another name"
        )


def require_known(output: Path, known: Collection[str]) -> None:
    """See that nothing has come into a folder that a job is to replace, since it began.

    Args:
        known: names of files that may be there.

    Raises:
        FileExistsError: there are others.
    """
    if new := [name for name in names(output) if name not in known]:
        raise FileExistsError(
            f"the output {output} holds {len(new)} files that came there since the job began, which replaces it with all that "
            f"is in it: {formats.shown(new)}; move away what is yours, and give the same command again"
        )


def is_ours(output: Path) -> bool:
    """Say whether a job made what is there, or has begun to."""
    return manifests.path(output).is_file() or under_way(output)


def under_way(output: Path) -> bool:
    """Say whether a job for this output has not ended: it may have been killed just when the output had come."""
    return (manifests.workplace(output) / "journal.jsonl").is_file()


def sink(
    destination: Path,
    bundle: Bundle,
    operation: str,
    source: Source,
    made: Rows,
    columns: Sequence[str] | None,
    options: Mapping[str, Any],
    maker: Maker,
) -> Sink:
    """Return where rows such as those in `made` go.

    Args:
        columns: of the input, which go along; None for all that the model does not use.
        options: of the operation.
        maker: the model as it was asked for.

    Raises:
        FormatError: a list cannot be in a CSV or npz file, or an image not in such an output.
    """
    suffix = destination.suffix
    if operation == "compress" and made.images is not None:
        kind = Archive if suffix else Containers
        return kind(options.get("rate"), options.get("psnr"), bool(options.get("lossless_if_smaller")))
    fields = _fields(bundle, operation, source, made.frame, columns)
    if suffix in (".csv", ".npz"):
        listed = operation == "encode" and bool(options.get("list"))
        _require_flat(fields, destination, "leave out `--list`" if listed else "name other columns by `--columns`")
    if made.images is not None:
        if suffix == ".npz":
            return Arrays(fields)
        if source.kind != "rows":
            return ImageFiles()
        raise FormatError(
            f"{destination.name} is to hold images that come from no files; expected a name ending in .npz"
        )
    if suffix == ".npz":
        return Arrays(_unscaled(bundle, fields) if operation == "impute" else fields)
    if operation == "index" and not options.get("vectors"):
        return _index_folder(fields, bundle, options, maker)
    if suffix == ".csv":
        return Csv(fields, source.delimiter)
    return OneTable(fields) if suffix == ".parquet" else Partitions(fields)


def _index_folder(fields: "pyarrow.Schema", bundle: Bundle, options: Mapping[str, Any], maker: Maker) -> IndexFolder:
    """Return an index folder whose ids are the column that is named, or the paths of images, or else positions."""
    assert isinstance(bundle.application, Search)
    identifier = options.get("id") or (
        "path" if isinstance(bundle.schema, ImageSchema) and "path" in fields.names else None
    )
    if identifier is not None and identifier not in fields.names:
        raise no_identifier(identifier, fields.names)
    recall, neighbours = options.get("recall"), options.get("neighbours")
    return IndexFolder(
        uncoded(fields),
        maker,
        identifier,
        bundle.application.recall if recall is None else recall,
        bundle.application.neighbours if neighbours is None else neighbours,
        options.get("kind"),
    )


def _require_flat(fields: "pyarrow.Schema", destination: Path, remedy: str) -> None:
    import pyarrow

    is_binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_fixed_size_binary)
    odd = [f for f in fields if pyarrow.types.is_nested(f.type) or any(check(f.type) for check in is_binary)]
    if odd:
        what = ", ".join(f"{f.name!r} ({'list' if 'list' in str(f.type) else f.type})" for f in odd[:5])
        raise FormatError(
            f"{destination.name} cannot hold lists and bytes, as in {what}; expected numbers and text; write .parquet or a "
            f"folder, or {remedy}"
        )


def _fields(
    bundle: Bundle, operation: str, source: Source, frame: pd.DataFrame, columns: Sequence[str] | None
) -> "pyarrow.Schema":
    """Return names and types of the output: those that the input has, where it has them, whatever a batch holds."""
    import pyarrow

    found = pyarrow.Schema.from_pandas(frame, preserve_index=False)
    features = bundle.schema.features if isinstance(bundle.schema, TableSchema) else ()
    fields = []
    for field in found:
        kind = field.type
        given = source.fields.field(field.name).type if source.fields and field.name in source.fields.names else None
        kept = field.name not in features and (columns is None or field.name in columns)
        if operation == "impute" and isinstance(bundle.schema, TableSchema) and field.name in features:
            kind = _filled(bundle.schema, field.name, given)
        elif given is not None and kept:
            kind = _coded(given.value_type) if pyarrow.types.is_dictionary(given) else given
        elif pyarrow.types.is_null(kind) or pyarrow.types.is_large_string(kind):
            kind = pyarrow.string()
        fields.append(pyarrow.field(field.name, kind))
    return pyarrow.schema(fields)


def _filled(schema: TableSchema, name: str, given: "pyarrow.DataType | None") -> "pyarrow.DataType":
    """Return the type of a column whose gaps are filled: the input's own, unless it has no room for what comes in."""
    import pyarrow

    column = next(c for c in schema.columns if c.name == name)
    if column.kind == "categorical":
        if given is None:
            return pyarrow.string() if column.dtype == "str" else pyarrow.from_numpy_dtype(np.dtype(column.dtype))
        return _coded(given.value_type) if pyarrow.types.is_dictionary(given) else given
    if given is None:
        return pyarrow.float64()
    whole = column.dtype[:3] in ("int", "uin")
    return pyarrow.float64() if pyarrow.types.is_integer(given) and not whole else given


def _unscaled(bundle: Bundle, fields: "pyarrow.Schema") -> "pyarrow.Schema":
    """Return the columns with features as numbers that arrays have, which are no decimals."""
    import pyarrow

    features = bundle.schema.features if isinstance(bundle.schema, TableSchema) else ()
    scaled = {f.name for f in fields if pyarrow.types.is_decimal(f.type)}.intersection(features)
    return pyarrow.schema([f.with_type(pyarrow.float64()) if f.name in scaled else f for f in fields])


def _coded(values: "pyarrow.DataType") -> "pyarrow.DataType":
    """Return the type of a column of categories, of any number: of text, and without an order, as Parquet keeps them."""
    import pyarrow

    is_text = pyarrow.types.is_string(values) or pyarrow.types.is_large_string(values)
    return pyarrow.dictionary(pyarrow.int32(), values) if is_text else values


def aside(first: Rows, source: Source) -> OneTable:
    """Return where rows go that do not fit: as they are, with the file and the row that they come from, and why."""
    import pyarrow

    found = source.fields or pyarrow.Schema.from_pandas(first.frame, preserve_index=False)
    read = [field for field in found if field.name in first.frame.columns]
    if clash := [name for name in ("_file", "_row", "_reason") if name in first.frame.columns]:
        raise ValueError(
            f"the input has columns {', '.join(clash)}, which rows that are put aside have, too; expected other names; rename them"
        )
    places = [("_file", pyarrow.string()), ("_row", pyarrow.int64()), ("_reason", pyarrow.string())]
    is_coded, is_null = pyarrow.types.is_dictionary, pyarrow.types.is_null
    kinds = (_coded(f.type.value_type) if is_coded(f.type) else f.type for f in read)
    fields = [
        pyarrow.field(f.name, pyarrow.string() if is_null(kind) else kind) for f, kind in zip(read, kinds, strict=True)
    ]
    return OneTable(pyarrow.schema([*fields, *(pyarrow.field(*place) for place in places)]))


def aside_of_containers() -> OneTable:
    """Return where it is told which images are lost."""
    import pyarrow

    return OneTable(
        pyarrow.schema([("_file", pyarrow.string()), ("_row", pyarrow.int64()), ("_reason", pyarrow.string())])
    )


def finish_aside(table: OneTable, parts: Sequence[Path], draft: Path, separator: str) -> None:
    """Make one file, CSV or Parquet by its name, of the rows that were put aside."""
    if draft.suffix != ".csv":
        table.finish(parts, draft)
        return
    frames = (formats.read(part).frame for part in parts)
    for number, frame in enumerate(frames):
        with draft.open("a", encoding="utf-8", newline="") as handle:
            formats.write_csv(frame, handle, header=number == 0, separator=separator)
