"""Rows as they lie in files: CSV, Parquet, npz, npy, IDX and folders of images, in and out.

Data sets and batch jobs read through the same functions, so that what was measured is what runs.
"""

import csv
import functools
import gzip
import json
import math
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

import numpy as np
import pandas as pd

from sevenfold import files

if TYPE_CHECKING:
    import pyarrow

# What the attributes of a frame tell of its origin; they go wherever rows or columns of it go.
_TEXT, _GAPS = "cells are text", "words for gaps"
_WHITE_SPACE = r"\s+"
_SEPARATORS = ",;\t|"
_LONGEST_END = 1 << 20
"""Bytes of a CSV file in which its last line has to begin to be looked at."""


class FormatError(ValueError):
    """A file is not what its name says, or nothing here can read it."""


class NoRowsError(FormatError):
    """A file is sound and holds nothing."""


class Rows:
    """Rows of one source. A table has only `frame`; an image set has `images` and, in `frame`, what else is known of each.

    frame: one row per sample, index 0..n-1.
    images: (n, H, W) or (n, H, W, C), or None.
    """

    def __init__(self, frame: pd.DataFrame, images: np.ndarray | None = None) -> None:
        if images is not None and len(images) != len(frame):
            raise FormatError(f"{len(images)} images but {len(frame)} rows beside them; expected as many")
        self.frame = frame
        self.images = images

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def columns(self) -> list[Any]:
        """The names of the frame's columns."""
        return [*self.frame.columns]

    @property
    def text(self) -> bool:
        """Whether all cells are text as in a CSV file, so that numbers are still to be made of them."""
        return bool(self.frame.attrs.get(_TEXT, False))

    @property
    def gaps(self) -> tuple[str, ...]:
        """The words, beside the empty field, that were read as gaps."""
        return tuple(self.frame.attrs.get(_GAPS, ()))

    def some(self, names: Sequence[Any]) -> pd.DataFrame:
        """Return these columns, which are there, as a frame."""
        return self.frame[[*names]]

    def between(self, start: int, stop: int) -> "Rows":
        """Return the rows from one position up to before another, without a copy of them."""
        images = None if self.images is None else self.images[start:stop]
        return Rows(self.frame.iloc[start:stop].reset_index(drop=True), images)

    def take(self, rows: np.ndarray) -> "Rows":
        """Return the rows at these positions, in this order."""
        images = None if self.images is None else self.images[rows]
        return Rows(self.frame.iloc[rows].reset_index(drop=True), images)


class ArrowRows(Rows):
    """Rows of a table as Arrow reads them. They become a frame when somebody looks at it, which takes longer than to read them.

    batch: with names that are text, each once; none of them is an index of pandas.
    """

    images = None

    def __init__(self, batch: "pyarrow.RecordBatch") -> None:
        self.batch = batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @functools.cached_property
    def frame(self) -> pd.DataFrame:  # type: ignore[override]
        return _exact(self.batch)

    @property
    def columns(self) -> list[Any]:
        return [*self.batch.schema.names]

    @property
    def text(self) -> bool:
        return False

    def some(self, names: Sequence[Any]) -> pd.DataFrame:
        return _exact(self.batch.select([*names]))

    def numbers(self, names: Sequence[str], size: int) -> Iterator[np.ndarray] | None:
        """Give the values of these columns, (`size`, columns) at a time; the last have what is left.

        They are float32 where that is the type of all of the columns, and else float64; gaps are NaN.

        Returns:
            None where a column is missing, or holds anything but integers and fractions.
        """
        import pyarrow

        if not set(names) <= set(self.columns):
            return None
        batch = self.batch.select([*names])
        kinds = {*batch.schema.types}
        if not all(map(_is_plain_number, kinds)):
            return None
        if kinds != {pyarrow.float32()} and kinds != {pyarrow.float64()}:
            wide = pyarrow.schema([(name, pyarrow.float64()) for name in names])
            batch = batch.cast(wide, safe=False)  # as NumPy does it: the largest integers are rounded
        parts = (batch.slice(at, size) for at in range(0, len(batch), size))
        return (part.to_tensor(null_to_nan=True).to_numpy() for part in parts)

    def between(self, start: int, stop: int) -> Rows:
        return ArrowRows(self.batch.slice(start, stop - start))

    def take(self, rows: np.ndarray) -> Rows:
        import pyarrow

        return ArrowRows(self.batch.take(pyarrow.array(rows)))


def _is_plain_number(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_float32(kind) or pyarrow.types.is_float64(kind))


def _exact(batch: "pyarrow.RecordBatch") -> pd.DataFrame:
    """Return a batch as a frame as `parquet_rows` gives it."""
    names = _exact_kinds(batch.schema)
    return _framed(batch, [n for n in names if batch.column(n).null_count], exact=True)


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, which have the same columns, one after the other."""
    if len(parts) == 1:
        return parts[0]
    read = [part.batch for part in parts if isinstance(part, ArrowRows)]
    if len(read) == len(parts) and all(batch.schema.equals(read[0].schema) for batch in read):
        import pyarrow

        whole = pyarrow.Table.from_batches(read).combine_chunks().to_batches()
        if len(whole) == 1:  # text of more than 2 GB takes several
            return ArrowRows(whole[0])
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    frame.attrs = dict(parts[0].frame.attrs)
    shown = [part.images for part in parts if part.images is not None]
    return Rows(frame, np.concatenate(shown) if shown else None)


def read(path: Path, **options: Any) -> Rows:
    """Read a whole file or folder of any supported format.

    Args:
        path: `.csv`, `.parquet`, `.npz`, `.npy`, IDX (`-idx3-ubyte`, `.idx`), a text or IDX file as `.gz` too, or a
            folder of images, whose sub-folders, where it has any, are labels.
        options: `separator` for CSV (found from the header by default); `gaps` for CSV: words that are gaps, as the
            empty field always is; `labels` for IDX and npy: a second file with one label per row, which becomes the
            column `label`.

    Raises:
        FileNotFoundError: nothing is there.
        FormatError: the file is damaged, empty, or of an unknown kind, or its kind has no such option.
    """
    with explained(path):
        return _some(path, _kind(path, options).read(path, options))


def batches(path: Path, size: int, **options: Any) -> Iterator[Rows]:
    """Yield the rows of a file in order, at most `size` at a time; together they are what `read` returns.

    But for CSV, whose cells stay the text that they are in the file: a schema knows which columns are numbers, and
    which words are gaps. Columns of other formats have the types that they have in the whole file, whatever a batch
    holds. Parquet, CSV and npy are never in memory whole.

    Args and Raises: as `read`, without `gaps`.
    """
    with explained(path):
        kind = _kind(path, options)
        if kind.batches is not None:
            count = 0
            for part in kind.batches(path, size, options):
                count += len(part)
                yield part
            if not count:
                raise no_rows(path)
            return
        rows = _some(path, kind.read(path, options))
    for start in range(0, len(rows), size):
        yield rows.take(np.arange(start, min(start + size, len(rows))))


def suffix(path: Path) -> str:
    """Return the shortest ending by which `read` knows a file of this format, such as ".csv.gz"; "" for a folder."""
    kind, name = _kind(path), path.name.lower()
    return kind.suffix + (".gz" if kind.suffix and name.endswith(".gz") else "")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever a library says of a damaged file into an error that names the file and the format."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path, or `dvc pull` if it is tracked by DVC")
    try:
        yield
    except (FormatError, FileNotFoundError):
        raise
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not text in UTF-8 ({error.reason}); save it as UTF-8") from error
    except Exception as error:
        # Every library has its own errors for a damaged file; the user needs to know just which file it is.
        reason = str(error).strip() or type(error).__name__
        raise FormatError(
            f"{path} cannot be read as {_kind(path).title}: {reason}; it may be truncated or of another format than its name says"
        ) from error


def no_rows(path: Path) -> NoRowsError:
    return NoRowsError(f"{path} has no rows; expected at least one")


def _some(path: Path, rows: Rows) -> Rows:
    if not len(rows):
        raise no_rows(path)
    return rows


def _kind(path: Path, options: Mapping[str, Any] | None = None) -> "_Kind":
    name = path.name.lower()
    for kind in (_FOLDER,) if path.is_dir() else _KINDS:
        if (
            path.is_dir()
            or name.endswith(kind.endings)
            or (kind.zipped and name.removesuffix(".gz").endswith(kind.endings))
        ):
            if useless := [o for o in options or {} if o not in kind.options]:
                raise FormatError(f"{path}: {kind.title} has no option {', '.join(useless)}; leave it out")
            return kind
    raise FormatError(
        f"{path}: unknown kind of file {''.join(path.suffixes) or path.name!r}; "
        "expected .csv, .parquet, .npz, .npy, an IDX file or a folder of images"
    )


def separator_of(path: Path, given: str | None) -> str:
    """Return the one character that stands between the cells of a CSV file; a comma in place of white space."""
    found = _separator(path, {"separator": given})
    return "," if found == _WHITE_SPACE else found


def _separator(path: Path, options: Mapping[str, Any]) -> str:
    if given := options.get("separator"):
        # As a shell passes a tab on; and as pandas calls any white space.
        separator = {"\\t": "\t"}.get(given, given)
        if len(separator) != 1 and separator != _WHITE_SPACE:
            raise FormatError(
                rf"{path}: separator is {separator!r}; expected one character, \t for a tab, or \s+ for white space"
            )
        return str(separator)
    with _text(path) as handle:
        header = next((line for line in handle if line.strip()), "")
    # What stands there most often: one that is a part of names, too, parts them more often.
    bare = re.sub(r'"(?:[^"]|"")*(?:"|$)', "", header)
    return max(_SEPARATORS, key=bare.count)  # of a single column the first, a comma


def _text(path: Path) -> Any:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _read_csv(path: Path, options: Mapping[str, Any]) -> Rows:
    words = tuple(options.get("gaps", ()))
    with _long_rows_refused(path):
        frame = pd.read_csv(path, **_csv_settings(path, options, words))
    frame.attrs[_GAPS] = words
    return Rows(frame)


def _batch_csv(path: Path, size: int, options: Mapping[str, Any]) -> Iterator[Rows]:
    # Text stays what it is in the file: an identifier 007 would not come back from a number. Nor does a piece show
    # what a column is: 12 and A7 are text, 12 alone is a number.
    done = 0
    if _separator(path, options) != _WHITE_SPACE:
        import pyarrow

        try:
            for rows in _arrow_csv(path, size, options):
                done += len(rows)
                yield rows
            return
        except (pyarrow.ArrowException, OSError):
            pass  # pandas takes more, such as rows that are short, and says better what is wrong
    with (
        _long_rows_refused(path),
        pd.read_csv(path, chunksize=size, dtype="str", **_csv_settings(path, options, ())) as source,
    ):
        for part in source:
            left = part.iloc[max(done - part.index[0], 0) :]
            if len(left):
                yield _text_rows(left.reset_index(drop=True))


def _arrow_csv(path: Path, size: int, options: Mapping[str, Any]) -> Iterator[Rows]:
    """Yield the rows of a CSV file as `_batch_csv` does, by Arrow, which is ten times as fast as pandas.

    Raises:
        pyarrow.ArrowException, OSError: something is odd; what came before is right.
    """
    import pyarrow
    import pyarrow.csv

    names = csv_header(path, **options).columns
    kinds = {f"f{i}": pyarrow.string() for i in range(len(names))}
    zipped = "gzip" if path.suffix.lower() == ".gz" else None
    with (
        pyarrow.input_stream(path, compression=zipped) as stream,
        pyarrow.csv.open_csv(
            stream,
            # The header counts as a row here: pandas has names for columns without one.
            pyarrow.csv.ReadOptions(use_threads=False, autogenerate_column_names=True, block_size=1 << 22),
            pyarrow.csv.ParseOptions(delimiter=_separator(path, options), newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=kinds, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True
            ),
        ) as source,
    ):
        if source.schema.names != [*kinds] or len(names) == 1:
            raise pyarrow.ArrowInvalid("the header is odd, or a line of blanks may be a row of one column")
        held: list[pyarrow.Table] = []
        count, skipped = 0, False
        for batch in source:
            table = pyarrow.Table.from_batches([batch])
            if not skipped and len(table):
                table, skipped = table.slice(1), True
            held.append(table)
            count += len(table)
            while count >= size:
                whole = pyarrow.concat_tables(held)
                yield _text_rows(whole.slice(0, size).to_pandas().set_axis(names, axis="columns"))
                held, count = [whole.slice(size)], count - size
        if count:
            yield _text_rows(pyarrow.concat_tables(held).to_pandas().set_axis(names, axis="columns"))


def _text_rows(frame: pd.DataFrame) -> Rows:
    frame.attrs[_TEXT] = True
    return Rows(frame)


def _csv_settings(path: Path, options: Mapping[str, Any], gaps: Sequence[str], *, cut: bool = False) -> dict[str, Any]:
    separator = _separator(path, options)
    names = _names(path, separator)
    _check_header(names, path)
    if not cut:
        _check_end(names, path, separator)
    return {
        "sep": separator,
        "compression": "gzip" if path.suffix.lower() == ".gz" else None,
        "low_memory": False,  # which decides on types piece by piece
        "index_col": False,  # or else longer rows shift the names
        "keep_default_na": False,  # NA is Namibia, None a name
        "na_values": ["", *gaps],
    }


def _names(path: Path, separator: str) -> list[str]:
    """Return what the header of a CSV file says."""
    with _text(path) as handle:
        lines = map(str.split, handle) if separator == _WHITE_SPACE else csv.reader(handle, delimiter=separator)
        return next((row for row in lines if row), [])


def _check_header(names: Sequence[str], path: Path) -> None:
    """Refuse a header that is the first row, and names that stand twice, which pandas would rename."""
    odd = [name for name in names if not name.strip() or _is_number(name)]
    if odd and 2 * len(odd) >= len(names):
        raise FormatError(
            f"{path}: in place of {len(odd)} of {len(names)} names the header has a number or nothing ({shown(odd)}); "
            "expected the columns' names; add a header line"
        )
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise FormatError(
            f"{path}: the header has {shown(twice)} more than once; expected each name once; rename or remove a column"
        )


def _check_end(names: Sequence[str], path: Path, separator: str) -> None:
    """Refuse a file that stops within a row, as one may that was not copied to its end, as far as that can be told.

    Short rows elsewhere are gaps: programs leave out what is empty at their end. Of a zipped file, zlib tells.
    """
    if path.suffix.lower() == ".gz":
        return
    with path.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - _LONGEST_END))
        before, _, last = handle.read().replace(b"\r", b"\n").rpartition(b"\n")
    # A line that begins within quotes is not told apart from others.
    if not last.strip() or not before.strip() or b'"' in last:
        return
    text = last.decode("utf-8", errors="replace")
    found = len(text.split()) if separator == _WHITE_SPACE else text.count(separator) + 1
    if found < len(names) - (not names[-1]):  # a separator may end each line
        raise FormatError(
            f"{path} ends within a row: its last line, {text[:60]!r}, has {found} of {len(names)} values and no end of "
            "line; expected a whole file; copy it again, or end the line if it is meant so"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def shown(names: Sequence[str]) -> str:
    """Return the first five names, quoted, and how many more there are."""
    first = ", ".join(repr(n) for n in names[:5])
    return first if len(names) <= 5 else f"{first} and {len(names) - 5} more"


@contextmanager
def _long_rows_refused(path: Path) -> Iterator[None]:
    """pandas only warns of what it cuts off."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except pd.errors.ParserWarning:
        raise FormatError(
            f"{path}: rows have more values than the header has names; expected as many; mend the header, or give the right `separator`"
        ) from None


def _read_parquet(path: Path, options: Mapping[str, Any]) -> Rows:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as source:
        table = source.read()
        with_gaps = _with_gaps(source.schema_arrow, [table])
        return Rows(_framed(_with_ranges(table, _ranges(source.metadata), 0), with_gaps))


def _batch_parquet(path: Path, size: int, options: Mapping[str, Any]) -> Iterator[Rows]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as source:
        names = _exact_kinds(source.schema_arrow)
        with_gaps = _with_gaps(source.schema_arrow, source.iter_batches(columns=names) if names else ())
        ranges, first = _ranges(source.metadata), 0
        for part in source.iter_batches(batch_size=size):
            yield Rows(_framed(_with_ranges(part, ranges, first), with_gaps))
            first += len(part)


def parquet_schema(path: Path | IO[bytes]) -> "pyarrow.Schema":
    """Return names and types of the columns of a Parquet file, as Arrow has them; an index without a name is none."""
    import pyarrow.parquet

    about = pyarrow.parquet.read_metadata(path)
    schema = _with_ranges(about.schema.to_arrow_schema().empty_table(), _ranges(about), 0).schema
    for name in [n for n in schema.names if n.startswith("__index_level_")]:
        schema = schema.remove(schema.get_field_index(name))
    return schema


def parquet_header(path: Path | IO[bytes]) -> pd.DataFrame:
    """Return a frame without rows that has the columns of a Parquet file."""
    return _framed(parquet_schema(path).empty_table(), [])


def parquet_groups(path: Path | IO[bytes]) -> list[int]:
    """Return the number of rows of each row group of a Parquet file."""
    import pyarrow.parquet

    about = pyarrow.parquet.read_metadata(path)
    return [about.row_group(i).num_rows for i in range(about.num_row_groups)]


def parquet_rows(path: Path, first: int, rows: int, size: int, columns: Sequence[str] | None = None) -> Iterator[Rows]:
    """Yield some rows of a Parquet file in order, at most `size` at a time.

    Unlike in `batches`, integers of a batch are of a type that knows gaps only where the batch has some, and lists and
    the like stay as Arrow has them: pandas would round large integers beside gaps in them. So do times with a zone.

    Args:
        first: number of the first of them, from 0.
        columns: names of those that are read; None for all.
    """
    import pyarrow
    import pyarrow.parquet

    last = first + rows
    # Not pre-buffered: that would hold whole row groups. Each column has a buffer of its own, so small ones do.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 17) as source:
        starts = [0]
        for i in range(source.num_row_groups):
            starts.append(starts[-1] + source.metadata.row_group(i).num_rows)
        groups = [i for i in range(source.num_row_groups) if starts[i] < last and starts[i + 1] > first]
        at = starts[groups[0]] if groups else 0
        indexed = any(isinstance(one, str) for one in _told_of(source.schema_arrow).get("index_columns", ()))
        ranges = {n: s if columns is None or n in columns else None for n, s in _ranges(source.metadata).items()}
        held = None if columns is None else [name for name in columns if name not in ranges]
        for part in source.iter_batches(batch_size=size, row_groups=groups, columns=held, use_threads=False):
            begin, end = max(first - at, 0), min(last - at, len(part))
            at += len(part)
            if begin < end:
                part = _with_ranges(part.slice(begin, end - begin), ranges, at - len(part) + begin)
                plain = (
                    not indexed
                    and isinstance(part, pyarrow.RecordBatch)
                    and len({*part.schema.names}) == len(part.schema)
                )
                yield ArrowRows(part) if plain else Rows(_exact(part))
            if at >= last:
                return


def csv_header(path: Path, *, cut: bool = False, **options: Any) -> pd.DataFrame:
    """Return a frame without rows that has the columns of a CSV file.

    Args:
        cut: whether the file is just the beginning of one.
        options: as of `batches`.
    """
    settings = _csv_settings(path, options, (), cut=cut)
    frame: pd.DataFrame = pd.read_csv(path, nrows=0, dtype="str", **settings)
    return _text_rows(frame).frame


def arrays_header(path: Path) -> tuple[Rows, int]:
    """Return no rows with the columns, and the size and type of image, of an npz, npy or IDX file; and how many it has.

    Only the heads of its arrays are read.
    """
    kind = _kind(path)
    if kind.suffix == ".npz":
        heads = {name: (shape, type_) for name, shape, type_ in npz_heads(path)}
    elif kind.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        heads = {"x": (array.shape, array.dtype)}
    else:
        with _opened(path) as handle:
            heads = {"x": _idx_head(handle, path)}
    # One number that is said again and again takes no memory, whatever the shape.
    arrays = {name: np.broadcast_to(np.zeros((), type_), shape) for name, (shape, type_) in heads.items()}
    _check_arrays(arrays, path)
    count = len(next(iter(arrays.values()), ()))
    return _from_arrays({name: array[:0] for name, array in arrays.items()}, path), count


def npz_heads(path: Path) -> Iterator[tuple[str, tuple[int, ...], "np.dtype[Any]"]]:
    """Yield name, shape and type of each array of an npz file."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as handle:
                version = np.lib.format.read_magic(handle)
                read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
                shape, _, kind = read[version[0]](handle)
                yield name.removesuffix(".npy"), shape, kind


def _exact_kinds(schema: Any) -> list[str]:
    """Return the columns of integers and truth values, for which pandas has no gaps in its plain types."""
    import pyarrow

    return [f.name for f in schema if pyarrow.types.is_integer(f.type) or pyarrow.types.is_boolean(f.type)]


def _with_gaps(schema: Any, parts: Iterable[Any]) -> list[str]:
    """Return those of them that have a gap in any part of a Parquet file."""
    names = _exact_kinds(schema)
    found = {name for part in parts for name in names if part.column(name).null_count}
    return sorted(name for name in found if not name.startswith("__index_level_"))


def _framed(table: Any, with_gaps: Sequence[str], *, exact: bool = False) -> pd.DataFrame:
    """Return an Arrow table as a frame with rows 0..n-1 and names as text; an index that has a name is a column.

    Args:
        with_gaps: columns of integers and truth values that have gaps, if not in this part. pandas would make floats
            of such integers, which are rounded beyond 2**53.
        exact: lists and the like, and times with a zone, stay as Arrow has them.
    """
    import pyarrow

    def kept(kind: Any) -> Any:
        zoned = pyarrow.types.is_timestamp(kind) and kind.tz is not None
        return pd.ArrowDtype(kind) if exact and (zoned or pyarrow.types.is_nested(kind)) else None

    # A block for each column takes its memory as it is; blocks of many columns are copied.
    frame: pd.DataFrame = table.to_pandas(split_blocks=True, types_mapper=kept)
    for name in with_gaps:
        if name not in frame:
            continue  # an index, which pandas has set aside
        kind = table.column(name).type
        if str(kind) == "bool":
            frame[name] = frame[name].astype("object") if frame[name].dtype == bool else frame[name]
        else:
            nullable = {"i": "Int", "u": "UInt"}[kind.to_pandas_dtype()().dtype.kind] + str(kind.bit_width)
            frame[name] = table.column(name).to_pandas(types_mapper={kind: pd.api.types.pandas_dtype(nullable)}.get)
    if named := [level for level, name in enumerate(frame.index.names) if name is not None]:
        frame = frame.reset_index(level=named)
    if not frame.index.equals(pd.RangeIndex(len(frame))):
        frame = frame.reset_index(drop=True)
    # Either would copy all values.
    return frame if all(isinstance(name, str) for name in frame.columns) else frame.rename(columns=str)


def _told_of(schema: "pyarrow.Schema") -> Any:
    """Return what pandas wrote of a table into its schema."""
    return json.loads((schema.metadata or {}).get(b"pandas", b"{}"))


def _ranges(about: Any) -> dict[str, range | None]:
    """Return columns of which a Parquet file holds no values, but where they begin and end: named indexes of pandas.

    pandas makes them up, just where as many rows are read at once as the file has; here they are columns like all others. One
    that does not fit the file is None, and no column.
    """
    told = _told_of(about.schema.to_arrow_schema())
    found = [one for one in told.get("index_columns", ()) if isinstance(one, dict) and one.get("name") is not None]
    spans = {str(one["name"]): range(one["start"], one["stop"], one["step"]) for one in found}
    return {name: span if len(span) == about.num_rows else None for name, span in spans.items()}


def _with_ranges(table: Any, ranges: Mapping[str, range | None], first: int) -> Any:
    """Return some rows of a file with these columns before the others; `first` is the number of the first of them."""
    import pyarrow

    if not ranges:
        return table
    table = pyarrow.Table.from_batches([table]) if isinstance(table, pyarrow.RecordBatch) else table
    metadata = table.schema.metadata
    table = table.replace_schema_metadata({**metadata, b"pandas": _without_ranges(metadata[b"pandas"])})
    for name, span in [*ranges.items()][::-1]:
        if span is not None:
            values = np.arange(len(table), dtype=np.int64) * span.step + (span.start + first * span.step)
            table = table.add_column(0, pyarrow.field(name, pyarrow.int64()), pyarrow.array(values))
    return table


@functools.lru_cache(maxsize=4)
def _without_ranges(told: bytes) -> bytes:
    """Return what pandas wrote of its index without what it would make up."""
    about = json.loads(told)
    return json.dumps(
        about | {"index_columns": [one for one in about["index_columns"] if isinstance(one, str)]}
    ).encode()


def _read_npz(path: Path, options: Mapping[str, Any]) -> Rows:
    # np.load leaves a damaged archive open if it opens it itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return _from_arrays({name: archive[name] for name in archive.files}, path)


def _from_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> Rows:
    """One array of 3 or 4 dimensions is the images; a matrix is numbered columns; a vector is a column of its name."""
    _check_arrays(arrays, path)
    images = [a for a in arrays.values() if a.ndim > 2]
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim <= 2:
            more = {name: array} if array.ndim == 1 else {f"{name}_{i}": v for i, v in enumerate(array.T)}
            if twice := sorted(columns.keys() & more.keys()):
                raise FormatError(f"{path}: two arrays give the column {', '.join(twice)}; rename one")
            columns |= more
    count = len(next(iter(arrays.values()), ()))
    return Rows(pd.DataFrame(columns, index=pd.RangeIndex(count)), images[0] if images else None)


def _check_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    images = {n: a for n, a in arrays.items() if a.ndim in (3, 4)}
    odd = {n: a for n, a in arrays.items() if a.ndim not in (1, 2, 3, 4)}
    if odd or len(images) > 1:
        got = ", ".join(f"{n!r} {a.shape}" for n, a in (odd or images).items())
        raise FormatError(
            f"{path}: expected vectors, matrices and at most one array of images (n, H, W) or (n, H, W, C); got {got}"
        )
    if text := [f"{n!r} of type {a.dtype}" for n, a in images.items() if a.dtype.kind not in "biuf"]:
        raise FormatError(f"{path}: expected images of numbers; got {', '.join(text)}")
    lengths = {n: len(a) for n, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise FormatError(f"{path}: arrays of different lengths {lengths}; expected one row per sample in each")


def _read_npy(path: Path, options: Mapping[str, Any]) -> Rows:
    return _from_arrays({"x": np.load(path, allow_pickle=False)} | _labels(path, options), path)


def _batch_npy(path: Path, size: int, options: Mapping[str, Any]) -> Iterator[Rows]:
    arrays = {"x": np.load(path, mmap_mode="r", allow_pickle=False)} | _labels(path, options)
    _check_arrays(arrays, path)
    for start in range(0, len(arrays["x"]), size):
        yield _from_arrays({name: np.array(a[start : start + size]) for name, a in arrays.items()}, path)


def _read_idx(path: Path, options: Mapping[str, Any]) -> Rows:
    return _from_arrays({"x": _load_idx(path)} | _labels(path, options), path)


def _labels(path: Path, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the column `label` from the file that `labels` names, if it names one."""
    if not options.get("labels"):
        return {}
    labels = path.parent / str(options["labels"])
    with explained(labels):
        loaders: dict[str, Callable[[Path], np.ndarray]] = {
            ".idx": _load_idx,
            ".npy": lambda file: np.asarray(np.load(file, allow_pickle=False)),
        }
        if (load := loaders.get(_kind(labels).suffix)) is None:
            raise FormatError(f"{labels}: labels can be in an IDX or a .npy file; convert them")
        values = load(labels)
    if values.ndim != 1:
        raise FormatError(f"{labels} has shape {values.shape}; expected one label per row, (n,)")
    return {"label": values}


def _load_idx(path: Path) -> np.ndarray:
    """Read LeCun's IDX format: two zero bytes, a type, the number of dimensions, the sizes, the values, big-endian."""
    with _opened(path) as handle:
        sizes, kind = _idx_head(handle, path)
        wanted = math.prod(sizes) * kind.itemsize
        body = handle.read()
    if len(body) < wanted:
        raise FormatError(
            f"{path} holds {len(body)} bytes of values; its header {sizes} wants {wanted}; it is truncated"
        )
    if len(body) > wanted:
        raise FormatError(
            f"{path} holds {len(body)} bytes of values; its header {sizes} wants {wanted}; expected no more; it is damaged"
        )
    values = np.frombuffer(body, kind).reshape(sizes)
    return values.astype(kind.newbyteorder("="))


def _idx_head(handle: Any, path: Path) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    head = handle.read(4)
    kinds = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in kinds:
        raise FormatError(
            f"{path} is no IDX file: it begins with {head.hex(' ')!r}; expected two zero bytes and a type"
        )
    return struct.unpack(f">{head[3]}I", handle.read(4 * head[3])), np.dtype(kinds[head[2]])


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _read_images(path: Path, options: Mapping[str, Any]) -> Rows:
    from sevenfold import images as files_of_images  # which gives rows, and so imports this

    names = files_of_images.find(path)
    if not names:
        raise FormatError(
            f"{path} holds no images; expected files ending in {', '.join(sorted(files_of_images.SUFFIXES))}"
        )
    images, kinds, damaged = [], {}, []
    for name in names:
        file = path / name
        try:
            mode, image = files_of_images.decoded(file)
        except Exception as error:
            # Pillow's errors are of many kinds and seldom name the file.
            damaged.append(f"{name} ({str(error).replace(str(file), file.name) or type(error).__name__})")
            continue
        images.append(image)
        kinds[name] = (mode, image.shape[:2])
    if damaged:
        shown = ", ".join(damaged[:5]) + (f" and {len(damaged) - 5} more" if len(damaged) > 5 else "")
        raise FormatError(f"{path}: {len(damaged)} of {len(names)} images cannot be read: {shown}; mend or remove them")
    if len(set(kinds.values())) > 1:
        common = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
        others = {name: kind for name, kind in kinds.items() if kind != common}
        first, (mode, size) = next(iter(others.items()))
        raise FormatError(
            f"{path}: {len(others)} of {len(names)} images differ from the others, which are {common[0]} "
            f"{common[1][1]}x{common[1][0]} (first: {first} is {mode} {size[1]}x{size[0]}); "
            "expected one size and mode; resize or convert them"
        )
    frame = files_of_images.frame(names, labelled=any("/" in name for name in names))
    return Rows(frame, np.stack(images))


@dataclass(frozen=True)
class _Kind:
    """A format: its name in messages, the ending we give it, the endings we know it by, and how it is read.

    batches: reads it piece by piece; None where it is read whole and cut.
    options: those of `read` that it takes.
    """

    title: str
    suffix: str
    endings: tuple[str, ...]
    read: Callable[[Path, Mapping[str, Any]], Rows]
    batches: Callable[[Path, int, Mapping[str, Any]], Iterator[Rows]] | None = None
    options: tuple[str, ...] = ()
    zipped: bool = False


_FOLDER = _Kind("a folder of images", "", (), _read_images)
_KINDS = (
    _Kind("CSV", ".csv", (".csv",), _read_csv, _batch_csv, ("separator", "gaps"), zipped=True),
    _Kind("Parquet", ".parquet", (".parquet",), _read_parquet, _batch_parquet),
    _Kind("npz", ".npz", (".npz",), _read_npz),
    _Kind("npy", ".npy", (".npy",), _read_npy, _batch_npy, ("labels",)),
    _Kind("IDX", ".idx", (".idx", "ubyte"), _read_idx, options=("labels",), zipped=True),
)


ENDINGS = tuple(ending for kind in _KINDS for ending in kind.endings)

OUTPUT_SUFFIXES = (".parquet", ".csv", ".npz")


class _Lines:
    """Takes lines that end in CR and LF, one at a time, and ends them in LF alone.

    Python's own writer quotes just what is in its ends of lines, so that it has to write both to quote a cell with either.
    """

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle

    def write(self, line: str) -> int:
        return self._handle.write(line.removesuffix("\r\n") + "\n" if line.endswith("\r\n") else line)


def write_csv(frame: pd.DataFrame, handle: TextIO, *, header: bool, separator: str = ",") -> None:
    """Write a frame as CSV, with LF between lines; cells with the separator or any end of a line are quoted."""
    lines: Any = _Lines(handle)
    frame.to_csv(lines, header=header, index=False, lineterminator="\r\n", sep=separator)


class Writer:
    """Write rows one after the other to one Parquet, CSV or npz file. Use it on the draft path of `files.whole`.

    npz has no way to append: its rows stay in memory until `close`. It alone takes images, as `images`.
    """

    def __init__(self, path: Path, types: "Mapping[str, pyarrow.DataType] | None" = None) -> None:
        """Begin a file.

        Args:
            types: of columns in Parquet, for those of which the first rows have no value.

        Raises:
            FormatError: the path has another ending.
        """
        if path.suffix not in OUTPUT_SUFFIXES:
            raise FormatError(
                f"{path}: cannot write {path.suffix or path.name!r}; expected {', '.join(OUTPUT_SUFFIXES)}"
            )
        self._path = path
        self._types = types or {}
        self._parquet: Any = None
        self._parts: list[Rows] = []
        self._begun = False

    def write(self, rows: Rows) -> None:
        """Append rows; every call has the same columns.

        Raises:
            FormatError: the rows hold images, and the file is for tables.
        """
        frame = rows.frame
        if rows.images is not None and self._path.suffix != ".npz":
            raise FormatError(f"{self._path.name} is to hold images; expected a name that ends in .npz; choose one")
        if self._path.suffix == ".csv":
            with self._path.open("a", encoding="utf-8", newline="") as handle:
                write_csv(frame, handle, header=not self._begun)
        elif self._path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.Table.from_pandas(frame, preserve_index=False)
            if self._parquet is None:
                # Dictionaries make floats slower to write and no smaller.
                schema = pyarrow.schema([self._known(field) for field in table.schema])
                text = [f.name for f in schema if not pyarrow.types.is_floating(f.type)]
                self._parquet = pyarrow.parquet.ParquetWriter(self._path, schema, use_dictionary=text)
            self._parquet.write_table(table.cast(self._parquet.schema))
        else:
            self._parts.append(rows)
        self._begun = True

    def _known(self, field: "pyarrow.Field") -> "pyarrow.Field":
        """Return a column with its type, where the first rows have no value of it."""
        import pyarrow

        kind = self._types.get(field.name, field.type)
        return (
            field.with_type(kind) if pyarrow.types.is_null(field.type) and not pyarrow.types.is_nested(kind) else field
        )

    def close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
        if self._path.suffix == ".npz" and self._parts:
            columns = {
                str(n): _plain(c) for n, c in pd.concat([p.frame for p in self._parts], ignore_index=True).items()
            }
            if self._parts[0].images is not None:
                columns["images"] = np.concatenate([p.images for p in self._parts if p.images is not None])
            # Not np.savez, which stumbles over a column called "file" and would pickle.
            with zipfile.ZipFile(self._path, "w") as archive:
                for name, column in columns.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as handle:
                        np.lib.format.write_array(handle, column, allow_pickle=False)


def _plain(column: pd.Series) -> np.ndarray:
    """A column as an array that needs no pickle: text becomes fixed-width Unicode, gaps in it the empty text.

    Integers with gaps are text, too: as floats they would be rounded.
    """
    if pd.api.types.is_numeric_dtype(column.dtype) and not column.isna().any():
        return np.asarray(column.to_numpy())
    if pd.api.types.is_float_dtype(column.dtype):
        return column.to_numpy(np.float64, na_value=np.nan)
    return column.astype("object").where(column.notna(), "").astype(str).to_numpy(dtype=np.str_)


def write_rows(path: Path, rows: Rows) -> None:
    """Write images and what is known of each, or a table, as one npz file, whole or not at all."""
    if rows.images is None:
        write(path, rows.frame)
        return
    columns: dict[str, Any] = {str(name): _plain(column) for name, column in rows.frame.items()}
    with files.whole(path) as draft:
        np.savez_compressed(draft, images=rows.images, **columns)


def write(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame as Parquet, CSV or npz, by the suffix of `path`, whole or not at all."""
    with files.whole(path) as draft:
        writer = Writer(draft)
        writer.write(Rows(frame))
        writer.close()
