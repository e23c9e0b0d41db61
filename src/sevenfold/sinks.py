"""Where the rows of a job go: each partition becomes a file or folder by itself, and all of them together the output."""

import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sevenfold import archives, files, formats, images, index_folders, operations, searchers
from sevenfold.bundles import Bundle
from sevenfold.formats import FormatError, Rows
from sevenfold.index_folders import Maker

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

ROW_GROUP = 1 << 16
"""Rows in a row group of Parquet: as many are in memory before they are written."""


class Sink(ABC):
    """One kind of output. The same rows give the same bytes, however they come in parts."""

    suffix: str
    """Of the file that a partition becomes; "" for a folder."""

    @abstractmethod
    def write(self, draft: Path, parts: Iterable[Rows], bundle: Bundle) -> Mapping[str, int]:
        """Write the rows of one partition to a path that is not there yet; of no rows, an empty one.

        Returns:
            What it counted, by name, of which the receipt has the sums; nothing for most.
        """

    @abstractmethod
    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        """Make the output of the partitions, in order, which stay as they are."""

    def digest(self, output: Path, parts: Mapping[str, str]) -> str:
        """Return the SHA-256 of the output, as `files.digest` gives it.

        Args:
            parts: names and digests of the partitions' files.
        """
        return files.digest(output)


@dataclass(frozen=True)
class Table(Sink, ABC):
    """Rows with columns of given types, in Parquet until the end.

    fields: names and types of the columns, in order.
    """

    fields: "pyarrow.Schema"
    suffix = ".parquet"

    def write(self, draft: Path, parts: Iterable[Rows], bundle: Bundle | None = None) -> Mapping[str, int]:
        import pyarrow
        import pyarrow.parquet

        # Dictionaries make floats slower to write and no smaller.
        text = [f.name for f in self.fields if not _is_dense(f.type)]
        with pyarrow.parquet.ParquetWriter(draft, self.fields, use_dictionary=text) as writer:
            for group in _regrouped((self.arrow(part) for part in parts), ROW_GROUP):
                writer.write_table(self._coded(group), row_group_size=ROW_GROUP)
        return {}

    def arrow(self, rows: Rows) -> "pyarrow.Table":
        """Return rows as an Arrow table of the sink's own types, those of a dictionary as plain values."""
        import pyarrow

        schema = uncoded(self.fields)
        given = [
            _decimals(rows.frame[f.name], f.type) if pyarrow.types.is_decimal(f.type) else rows.frame[f.name]
            for f in schema
        ]
        columns = [
            pyarrow.Array.from_pandas(column, type=f.type, safe=True) for column, f in zip(given, schema, strict=True)
        ]
        return pyarrow.Table.from_arrays(columns, schema=schema)

    def _coded(self, group: "pyarrow.Table") -> "pyarrow.Table":
        """Make dictionaries of whole groups: those of parts would depend on how many there are."""
        return group if group.schema.equals(self.fields) else group.combine_chunks().cast(self.fields)


@dataclass(frozen=True)
class Partitions(Table):
    """The same as a folder of Parquet files, one for each partition."""

    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        """Put the partitions beside each other, as `part-00000.parquet` and so on."""
        draft.mkdir()
        for part in parts:
            link(part, draft / part.name)

    def digest(self, output: Path, parts: Mapping[str, str]) -> str:
        # The files are the partitions, of which each was read for its digest already.
        return files.digest_of(parts.items())


@dataclass(frozen=True)
class OneTable(Table):
    """The same in one Parquet file."""

    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        import pyarrow.parquet

        if len(parts) == 1:
            link(parts[0], draft)
            return
        text = [f.name for f in self.fields if not _is_dense(f.type)]
        with pyarrow.parquet.ParquetWriter(draft, self.fields, use_dictionary=text) as writer:
            for group in _regrouped((g.cast(uncoded(self.fields)) for g in _groups(parts)), ROW_GROUP):
                writer.write_table(self._coded(group), row_group_size=ROW_GROUP)


@dataclass(frozen=True)
class Csv(Table):
    """The same as one CSV file with a header."""

    separator: str = ","
    suffix = ".csv"

    def write(self, draft: Path, parts: Iterable[Rows], bundle: Bundle | None = None) -> Mapping[str, int]:
        with draft.open("w", encoding="utf-8", newline="") as handle:
            for part in parts:
                frame = part.frame[self.fields.names]
                frame = frame.assign(**{str(n): _moments(c) for n, c in frame.items() if c.dtype.kind in "mM"})
                formats.write_csv(frame, handle, header=False, separator=self.separator)
        return {}

    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        import pandas

        with draft.open("w", encoding="utf-8", newline="") as handle:
            names = pandas.DataFrame(columns=self.fields.names)
            formats.write_csv(names, handle, header=True, separator=self.separator)
        with draft.open("ab") as whole:
            for part in parts:
                with part.open("rb") as rows:
                    shutil.copyfileobj(rows, whole, 1 << 20)


@dataclass(frozen=True)
class IndexFolder(Table):
    """Vectors as a folder to be searched; see `index_folders`.

    maker: the model that makes them.
    identifier: the column of ids; None to count rows.
    recall, neighbours, kind: as of `index_folders.build`.
    """

    maker: Maker
    identifier: str | None
    recall: float
    neighbours: int
    kind: searchers.Kind | None

    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        index_folders.build(
            draft,
            parts_of(parts, self.identifier),
            maker=self.maker,
            recall=self.recall,
            neighbours=self.neighbours,
            kind=self.kind,
        )


def parts_of(paths: Sequence[Path], identifier: str | None) -> Iterator[index_folders.Part]:
    """Give the vectors of partitions, columns vector_0, vector_1, ..., with what is carried beside them.

    Args:
        identifier: the column of ids, which is not carried, unless it is the path of an image.

    Raises:
        ValueError: there is no such column.
    """
    for table in _groups(paths):
        if identifier is not None and identifier not in table.column_names:
            raise no_identifier(identifier, table.column_names)
        vectors = _vectors(table.column_names)
        carried = [
            name for name in table.column_names if name not in vectors and (name != identifier or name == "path")
        ]
        # Else integers beside a gap would be floats, and the gap no gap.
        ids = None if identifier is None else table.column(identifier).to_pandas(integer_object_nulls=True).to_numpy()
        yield index_folders.Part(
            np.stack([table.column(name).to_numpy() for name in vectors], axis=1),
            ids,
            table.select(carried) if carried else None,
        )


def _vectors(columns: Sequence[str]) -> Sequence[str]:
    """Return the columns vector_0, vector_1, ..., which are the last: one that is carried may have such a name, too."""
    return columns[-1 - int(columns[-1].removeprefix("vector_")) :]


def no_identifier(name: str, columns: Sequence[str]) -> ValueError:
    carried = columns[: len(columns) - len(_vectors(columns))]
    return ValueError(
        f"id is {name!r}; expected a column that goes along, one of {formats.shown(carried) or 'none'}; name another"
    )


@dataclass(frozen=True)
class Arrays(Sink):
    """Columns, and images where there are some, as arrays of one npz file.

    fields: names and types of the columns.
    """

    fields: "pyarrow.Schema"
    suffix = ".npz"

    def write(self, draft: Path, parts: Iterable[Rows], bundle: Bundle | None = None) -> Mapping[str, int]:
        found = [*parts]
        _require_alike([(part.images.shape, part.images.dtype) for part in found if part.images is not None])
        if not found:
            with zipfile.ZipFile(draft, "w"):
                return {}
        writer = formats.Writer(draft)
        for part in found:
            writer.write(Rows(part.frame.assign(**self._numbers(part.frame)), part.images))
        writer.close()
        return {}

    def _numbers(self, frame: "pd.DataFrame") -> "dict[str, pd.Series[Any]]":
        """Return columns of numbers that are objects here: gaps alone, or decimals of which some are fills."""
        import pandas
        import pyarrow

        found = {}
        for field in self.fields:
            column, kind = frame[field.name], field.type
            if pyarrow.types.is_floating(kind) and column.dtype == object:
                found[field.name] = pandas.to_numeric(column, errors="coerce").astype("float64")
        return found

    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        """Join the arrays one after the other, each of a type that holds them all."""
        heads: dict[str, list[tuple[tuple[int, ...], np.dtype[Any]]]] = {}
        full = []
        for part in parts:
            own = [*formats.npz_heads(part)]
            full += [part] if own else []
            for name, shape, kind in own:
                heads.setdefault(name, []).append((shape, kind))
        if len(full) == 1:
            link(full[0], draft)
            return
        for found in heads.values():
            if len(found[0][0]) > 1:
                _require_alike(found)
        with zipfile.ZipFile(draft, "w") as archive:
            for name, found in heads.items():
                kind = np.result_type(*(kind for _, kind in found))
                shape = (sum(shape[0] for shape, _ in found), *found[0][0][1:])
                with archive.open(f"{name}.npy", "w", force_zip64=True) as handle:
                    about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(handle, about)
                    for part in full:
                        with part.open("rb") as file, np.load(file, allow_pickle=False) as one:
                            handle.write(np.ascontiguousarray(one[name], kind).tobytes())


@dataclass(frozen=True)
class ImageFiles(Sink):
    """Images as files under the paths that they came from."""

    suffix = ""

    def write(self, draft: Path, parts: Iterable[Rows], bundle: Bundle | None = None) -> Mapping[str, int]:
        draft.mkdir()
        inexact = 0
        for part in parts:
            assert part.images is not None
            inexact += int((~part.frame["exact"]).sum()) if "exact" in part.frame else 0
            for name, image in zip(part.frame["path"], part.images, strict=True):
                path = draft / images.fitting(name, image)
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    raise FileExistsError(
                        f"two images become {path.name}; expected different names; rename one in the input"
                    )
                images.save(path, image)
        return {"inexact": inexact} if inexact else {}

    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        draft.mkdir()
        for part in parts:
            link(part, draft)


@dataclass(frozen=True)
class Containers(Sink):
    """Images compressed, each as a `.7f` file of its own under the path that it came from; see `archives`.

    rate, psnr, lossless_if_smaller: as of `archives.pack`.
    """

    rate: float | None
    psnr: float | None
    lossless_if_smaller: bool
    suffix = ""

    def write(self, draft: Path, parts: Iterable[Rows], bundle: Bundle | None = None) -> Mapping[str, int]:
        assert bundle is not None
        return self._pack(archives.pack_each, draft, parts, bundle)

    def _pack(
        self, pack: "Callable[..., list[archives.Entry]]", draft: Path, parts: Iterable[Rows], bundle: Bundle
    ) -> Mapping[str, int]:
        told = pack(bundle, parts, draft, rate=self.rate, psnr=self.psnr, lossless_if_smaller=self.lossless_if_smaller)
        return {
            "bytes": sum(one.size for one in told),
            "pixels": sum(one.shape[0] * one.shape[1] for one in told),
            "lossless": sum(one.rung == 0 for one in told),
            "larger_than_lossless": sum(bool(one.larger) for one in told),
            "missed_target": sum(one.reached is False for one in told),
        }

    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        draft.mkdir()
        for part in parts:
            link(part, draft)


@dataclass(frozen=True)
class Archive(Containers):
    """The same as one archive."""

    suffix = ".7f"

    def write(self, draft: Path, parts: Iterable[Rows], bundle: Bundle | None = None) -> Mapping[str, int]:
        assert bundle is not None
        return self._pack(archives.pack, draft, parts, bundle)

    def finish(self, parts: Sequence[Path], draft: Path) -> None:
        archives.join(parts, draft)


def uncoded(fields: "pyarrow.Schema") -> "pyarrow.Schema":
    """Return the same columns with plain values in place of dictionaries."""
    import pyarrow

    is_coded = pyarrow.types.is_dictionary
    return pyarrow.schema([f.with_type(f.type.value_type) if is_coded(f.type) else f for f in fields])


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or those of a folder, below another folder; by copying where the disk has no links."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                link(path, target / path.relative_to(source))
        return
    if target.exists():
        raise FileExistsError(f"two rows become {target.name}; expected different names; rename one in the input")
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _require_alike(images: "Sequence[tuple[tuple[int, ...], np.dtype[Any]]]") -> None:
    """Refuse images that cannot be in one array, or would be in one as darker or brighter than they are.

    Raises:
        FormatError: they differ.
    """
    kinds = {f"{'x'.join(map(str, shape[1:]))} {kind}" for shape, kind in images}
    if len(kinds) > 1:
        shown = formats.shown(sorted(kinds))
        raise FormatError(
            f"images of several sizes or types ({shown}) cannot be in one .npz file; write to a folder instead"
        )


def _decimals(column: "pd.Series[Any]", kind: "pyarrow.DataType") -> list[Decimal | None]:
    """Return a column as decimal numbers of a type: fills are rounded to its digits, and no larger than it holds."""
    digits, context = Decimal(1).scaleb(-kind.scale), Context(prec=76)
    most = (Decimal(10) ** kind.precision - 1).scaleb(-kind.scale, context)
    known = [None if gap else value for value, gap in zip(column, column.isna(), strict=True)]
    held = (v if isinstance(v, Decimal) or v is None else Decimal(operations.text_of(v)) for v in known)
    return [None if value is None else max(-most, min(most, value)).quantize(digits, context=context) for value in held]


def _moments(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return points or lengths of time as text, each by itself: pandas leaves out what is 0 in all rows that it sees."""
    import pyarrow

    if column.dtype.kind == "m":
        return column.map(str, na_action="ignore").astype("str")
    array = pyarrow.Array.from_pandas(column)
    text: pd.Series[Any] = array.cast(pyarrow.string()).to_pandas()
    return text.set_axis(column.index)


def _is_dense(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    floating = pyarrow.types.is_floating(kind)
    return bool(floating or (pyarrow.types.is_fixed_size_list(kind) and pyarrow.types.is_floating(kind.value_type)))


def _regrouped(tables: "Iterable[pyarrow.Table]", rows: int) -> "Iterator[pyarrow.Table]":
    """Yield the same rows, in tables of just so many rows, but for the last."""
    import pyarrow

    held: list[pyarrow.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        if count >= rows:
            whole = pyarrow.concat_tables(held)
            at = 0
            while count - at >= rows:
                yield whole.slice(at, rows)
                at += rows
            held, count = [whole.slice(at)], count - at
    if count:
        yield pyarrow.concat_tables(held)


def _groups(parts: Sequence[Path]) -> "Iterator[pyarrow.Table]":
    import pyarrow.parquet

    for part in parts:
        with pyarrow.parquet.ParquetFile(part, pre_buffer=False, buffer_size=1 << 20) as source:
            for i in range(source.num_row_groups):
                yield source.read_row_group(i, use_threads=False)
