"""What a job reads: files in order, cut into partitions, which depend on the files alone and not on who works on them."""

import functools
import glob
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sevenfold import files, formats, images, places
from sevenfold.datasets.base import DataError
from sevenfold.formats import FormatError, NoRowsError, Rows

if TYPE_CHECKING:
    import pyarrow

MOST_PIXELS = 1 << 22
"""Pixels of the images of a partition, all channels counted; a larger image is one by itself."""

MOST_IMAGES = 4096
"""Image files in a partition at most."""

MOST_IN_GROUP = 16
"""A row group of a Parquet file is a partition where it has up to so many times the rows of one; a larger one is cut."""

FEW, MOST_IN_LONE_GROUP = 8, 4
"""Where there are fewer row groups, those that are larger than a partition are cut, into so many at most."""

PLAN = 2
"""The number of these rules: what was begun by others does not go on by them."""

_PICTURES, _TABLES, _STREAMS = "images", "rows", "containers"


@dataclass(frozen=True)
class File:
    """A file as it was when the job began.

    name: what the job calls it: its path below the folder that was named, or its name.
    path: where it is; of a file elsewhere, only its name.
    size: bytes. modified: of its last change, in nanoseconds since 1970; of a file elsewhere, its version.
    place: where it is, if elsewhere.
    """

    name: str
    path: Path
    size: int
    modified: int | str
    place: places.Found | None = None

    @classmethod
    def at(cls, path: Path, name: str) -> "File":
        there = path.stat()
        return cls(name, path, there.st_size, there.st_mtime_ns)

    def changed(self) -> str | None:
        """Return what has happened to the file since, if anything."""
        if self.place is not None:
            return self.place.changed()
        try:
            now = File.at(self.path, self.name)
        except FileNotFoundError:
            return f"{self.path} is gone"
        if now.size != self.size:
            return f"{self.path} had {self.size:,} bytes and has {now.size:,}"
        return f"{self.path} was written to" if now.modified != self.modified else None

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Give a path to read it from, for as long as the block does."""
        if self.place is None:
            yield self.path
        else:
            with self.place.here(self._room) as path:
                yield path

    @contextmanager
    def here(self) -> Iterator[Path]:
        """The same, where what a library says of damage is explained."""
        with self.fetched() as path, formats.explained(path):
            yield path

    @contextmanager
    def beginning(self, *, whole: bool = False) -> Iterator[Path]:
        """Give a path to read the first line from, or all; what is fetched of a file elsewhere goes again at once."""
        if self.place is None:
            yield self.path
        else:
            with self.place.beginning(whole=whole) as path:
                yield path

    @property
    def _room(self) -> Path:
        """The folder that all names begin from."""
        return _above([self])

    @contextmanager
    def opened(self) -> "Iterator[Path | IO[bytes]]":
        """Give what a little of it can be read from without fetching all; else as `here`."""
        if self.place is None:
            with self.here() as path:
                yield path
            return
        with self.place.opened() as handle:
            try:
                yield handle
            except (FormatError, OSError):
                raise
            except Exception as error:  # as in `formats.explained`
                raise FormatError(f"{self.place.url} cannot be read: {error}; it may be truncated") from error

    def digest(self) -> str:
        """Return the SHA-256 of the file."""
        return files.digest(self.path) if self.place is None else self.place.digest()


@dataclass(frozen=True)
class Partition:
    """A piece of the input that is worked on by itself.

    number: its place, from 0.
    files: those that it is read from, in order; one, but for images.
    first: the number of its first row in its file, from 0; of images, of its first file among all.
    rows: how many it has.
    columns: that are read; None for all.
    held: the rows themselves, of a format that can only be read from its start.
    labels: whether images have labels, which sub-folders are.
    several: whether the input has more files than one, so that names within a file do not tell all rows apart.
    """

    number: int
    files: tuple[File, ...]
    first: int
    rows: int
    kind: Literal["parquet", "images", "containers", "held"]
    columns: tuple[str, ...] | None = None
    held: Rows | None = None
    labels: bool = False
    several: bool = False

    def __str__(self) -> str:
        if self.kind == "images" or self.kind == "containers":
            last = self.files[-1].name
            what = self.files[0].name + (f" to {last}" if len(self.files) > 1 else "")
        else:
            what = f"rows {self.first} to {self.first + self.rows - 1} of {self.files[0].name}"
        return f"partition {self.number} ({what})"

    def batches(self, size: int) -> Iterator[Rows]:
        """Yield its rows in order, at most `size` at a time; images of one size and type together."""
        if self.held is not None:
            for start in range(0, self.rows, size):
                yield self.held.between(start, min(start + size, self.rows))
        elif self.kind == "images":
            with ExitStack() as stack:
                paths = [stack.enter_context(file.fetched()) for file in self.files]
                root = paths[0].parents[len(Path(self.files[0].name).parts) - 1]
                for part in images.batches(root, [file.name for file in self.files], MOST_PIXELS, labelled=self.labels):
                    for start in range(0, len(part), size):
                        yield part.take(np.arange(start, min(start + size, len(part))))
        else:
            with self.files[0].here() as path:
                yield from formats.parquet_rows(path, self.first, self.rows, size, self.columns)


@dataclass(frozen=True)
class Source:
    """The files that were named, in order.

    given: the path or pattern as it was given.
    kind: "rows" of tables or of arrays, "images" in files of their own, or "containers" of compressed ones.
    fields: names and types of a table's columns as the files have them; None where files have no types of their own.
    total: the number of rows; None where that is not known before all is read.
    """

    given: str
    kind: Literal["rows", "images", "containers"]
    files: tuple[File, ...]
    fields: "pyarrow.Schema | None"
    total: int | None
    limit: int | None = None
    separator: str | None = None

    def limited(self, rows: int | None) -> "Source":
        """Return the first rows of it, or all for None."""
        total = self.total if rows is None or self.total is None else min(self.total, rows)
        return replace(self, limit=rows, total=total)

    @property
    def elsewhere(self) -> bool:
        """Whether the files are not on this machine."""
        return self.files[0].place is not None

    @property
    def address(self) -> str:
        """What was given, as it means the same from everywhere."""
        return self.given if self.elsewhere else str(Path(self.given).absolute())

    def locations(self) -> set[str]:
        """Return where the files are: paths with links followed, or addresses."""
        if self.elsewhere:
            return {file.place.url for file in self.files if file.place is not None}
        return {str(path) for path in resolved([file.path for file in self.files])}

    @property
    def text(self) -> bool:
        """Whether the cells are text, as in CSV."""
        return self.kind == _TABLES and _kind(self.files[0].path) == ".csv"

    @property
    def delimiter(self) -> str:
        """What stands between the cells of the first file, if they are text; a comma for all others."""
        if not self.text:
            return ","
        with self.files[0].beginning() as path:
            return formats.separator_of(path, self.separator)

    def heads(self) -> Iterator[tuple[File, Rows]]:
        """Yield no rows of each file, with its columns, or its size and type of image, as far as its head tells them.

        Of image files that are alike only the first one comes.
        """
        seen = set()
        for file in self.files:
            if self.kind == _PICTURES:
                shape, kind = _image_size(file)
                if (shape, kind) not in seen:
                    seen.add((shape, kind))
                    yield file, Rows(pd.DataFrame({"path": []}), np.zeros((0, *shape), kind))
            elif self.kind == _TABLES:
                yield file, _head(file, self.separator)[0]

    def partitions(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[Partition]:
        """Yield the partitions in order, of `rows` rows or so; of images by their pixels.

        A format that can only be read from its start is read as they are asked for, and is in memory so far.

        Args:
            columns: of a Parquet file, those that are wanted; None for all.
        """
        number = done = 0
        for part in self._partitions(rows, None if columns is None else tuple(columns)):
            if self.limit is not None and done + part.rows > self.limit:
                part = _cut(part, self.limit - done)
            if part.rows:
                yield replace(part, number=number)
            number, done = number + 1, done + part.rows
            if done == self.limit:
                return

    def _partitions(self, rows: int, columns: tuple[str, ...] | None) -> Iterator[Partition]:
        if self.kind == _PICTURES:
            yield from _image_partitions(self.files)
        elif self.kind == _STREAMS:
            for at, file in enumerate(self.files):
                yield Partition(0, (file,), at, 1, "containers", several=len(self.files) > 1)
        else:
            empty = True
            for file in self.files:
                if _kind(file.path) == ".parquet":
                    yield from _row_groups(file, rows, columns, beside=len(self.files))
                    empty = False  # their rows were counted before
                    continue
                # A day on which nothing came is no reason to stop, unless nothing came at all.
                with suppress(NoRowsError), file.here() as path:
                    first = 0
                    for part in formats.batches(path, min(rows, _most_images(path)), **_options(self.separator)):
                        yield Partition(0, (file,), first, len(part), "held", held=part, several=len(self.files) > 1)
                        first += len(part)
                        empty = False
            if empty:
                raise formats.no_rows(self.files[0].path if len(self.files) == 1 else _above(self.files))

    def changed(self) -> list[str]:
        """Return what has happened to the files since they were listed."""
        return [change for file in self.files if (change := file.changed())]

    def digest_of(self, digests: "dict[str, str]") -> str:
        """Return the digest of all files, of which each has its own; that of a folder as `files.digest` gives it."""
        alone = glob.has_magic(self.given) or self.given.endswith(f"/{self.files[0].name}")
        if len(self.files) == 1 and (alone if self.elsewhere else not Path(self.given).is_dir()):
            return digests[self.files[0].name]
        return files.digest_of((file.name, digests[file.name]) for file in self.files)


def open_source(
    given: str | Path, *, besides: Sequence[Path | str] = (), room: Path | None = None, separator: str | None = None
) -> Source:
    """Find the files that a path means: one file, a folder of them, or a pattern such as `2026-*/sales-*.parquet`.

    An address such as `s3://bucket/rows` means the same elsewhere.

    Files whose names begin with a dot or an underscore, and those in such folders, are left out, unless a pattern names
    the dot or the underscore.

    Args:
        besides: paths and addresses that do not belong to it: an output that lies in the folder.
        room: a folder for what is fetched from elsewhere.
        separator: of CSV files; by default found from the header of each.

    Raises:
        FileNotFoundError: there is nothing.
        FormatError: the files are of several kinds, or of an unknown one, or the pattern is none.
        DataError: they are tables of different columns.
    """
    text = str(given)
    known = places.parsed(text)
    if isinstance(known, str):
        assert room is not None
        found = _elsewhere(known, besides, room)
    else:
        text = str(known)
        root, paths = _paths(text)
        # By where they are: the one may be named by way of a link, and the other not.
        apart = [p.resolve() for p in besides if isinstance(p, Path)]
        there = zip(paths, resolved(paths), strict=True)
        paths = [path for path, at in there if not any(at == b or b in at.parents for b in apart)]
        if odd := [path for path in paths if _is_undecoded(path)]:
            raise FormatError(
                f"{text}: names are no UTF-8, such as {str(odd[0])!r}; expected such as every program reads; rename "
                f"{'it' if len(odd) == 1 else f'these {len(odd)} files'}"
            )
        found = tuple(File.at(path, path.relative_to(root).as_posix()) for path in paths)
    paths = [file.path for file in found]
    kinds: dict[str, Path] = {}
    for path in paths:
        kinds.setdefault(_group(path), path)
    if len(kinds) > 1:
        shown = ", ".join(f"{kind} ({path.name})" for kind, path in sorted(kinds.items()))
        raise FormatError(
            f"{text} holds files of several kinds: {shown}; expected one; name them by a pattern, as in "
            f"'{text.rstrip('/')}/*{paths[0].suffix}'"
        )
    if not paths:
        endings = ", ".join(sorted({*formats.ENDINGS, *images.SUFFIXES, ".7f"}))
        if Path(text).is_dir() or (places.is_url(text) and not glob.has_magic(text)):
            raise FormatError(f"{text} holds no images and no tables; expected files ending in {endings}")
        raise FileNotFoundError(f"no file matches {text}; expected files ending in {endings}; check the pattern")
    if separator is not None and kinds.keys() != {".csv"}:
        raise FormatError(f"separator is {separator!r}, and {text} holds no CSV files; leave it out")
    kind: Any = {"image": _PICTURES, "container": _STREAMS}.get(next(iter(kinds)), _TABLES)
    if kind != _TABLES:
        return Source(text, kind, found, None, len(found) if kind == _PICTURES else None)
    fields, total = _table_facts(found, separator)
    return Source(text, kind, found, fields, total, separator=separator)


def _elsewhere(url: str, besides: Sequence[Path | str], room: Path) -> tuple[File, ...]:
    places.require(url)
    if not glob.has_magic(url) and Path(url).suffix:
        _group(Path(Path(url).name))
    listed = places.listed(url, lambda name: bool(_group(Path(name), strict=False)))
    apart = [b.rstrip("/") for b in besides if isinstance(b, str)]
    kept = [f for f in listed if not any(f.url == b or f.url.startswith(f"{b}/") for b in apart)]
    return tuple(File(f.name, room / f.name, f.size, f.version, f) for f in kept)


def _paths(text: str) -> tuple[Path, list[Path]]:
    """Return the folder that names begin from, and the files in order."""
    path = Path(text)
    if path.is_dir():
        seen = (p for p in sorted(_below(path)) if not _is_hidden(p.relative_to(path)))
        return path, [p for p in seen if _group(p, strict=False) and p.is_file()]
    if path.exists():
        _group(path)
        return path.parent, [path]
    if glob.has_magic(text):
        parts = path.parts
        magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        fixed, named = Path(*parts[:magic]), "".join(part[0] for part in parts[magic:])
        if not fixed.is_dir():
            raise FileNotFoundError(f"{fixed} does not exist, which {text} begins with; check the path")
        try:
            # A pattern that ends in `**` means all files below, which pathlib takes for all folders.
            every = sorted({*fixed.glob("/".join([*parts[magic:], *(["*"] if parts[-1] == "**" else [])]))})
        except ValueError as error:
            raise FormatError(f"{text} is no pattern: {error}; expected such as 'sales/**/*.parquet'") from error
        return fixed, [p for p in every if p.is_file() and not _is_hidden(p.relative_to(fixed), named)]
    raise FileNotFoundError(f"{text} does not exist; check the path, or `dvc pull` if it is tracked by DVC")


def _below(folder: Path) -> Iterator[Path]:
    """Yield all that is below a folder and no folder, each once: links are followed to what is not there in any case.

    Folders that are hidden are left out.
    """
    root, seen = folder.resolve(), set[Path]()

    def leads_back(path: Path) -> bool:
        if not path.is_symlink():
            return False
        there = path.resolve()
        return root.is_relative_to(there) or (there.is_relative_to(root) and not _is_hidden(there.relative_to(root)))

    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        shown = [] if here in seen else sorted(name for name in folders if not _is_hidden(Path(name)))
        folders[:] = [name for name in shown if not leads_back(Path(place, name))]
        if here not in seen:
            yield from (path for name in names if not leads_back(path := Path(place, name)))
        seen.add(here)


def resolved(paths: Sequence[Path]) -> list[Path]:
    """Return where files are, links followed. It looks once at each folder: a million files may be in one."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return [path.resolve() if path.is_symlink() else folders[path.parent] / path.name for path in paths]


def _is_undecoded(path: Path) -> bool:
    """Say whether a path holds bytes that are no text, which Python keeps as half characters."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return True
    return False


def root(given: str | Path) -> Path:
    """Return the folder that the names of files begin from: one that was named, or that of a file or of a pattern."""
    path = Path(given)
    if path.exists():
        return path if path.is_dir() else path.parent
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    return Path(*fixed)


def _is_hidden(name: Path, unless: str = "") -> bool:
    """Say whether a file or a folder above it begins with a dot or an underscore, other than those in `unless`."""
    return any(part[0] in "._" and part[0] not in unless for part in name.parts)


def _group(path: Path, *, strict: bool = True) -> str:
    """Return "image", "container", or the ending by which a table's format is known; "" for no known one."""
    if path.suffix.lower() in images.SUFFIXES:
        return "image"
    if path.suffix.lower() == ".7f":
        return "container"
    try:
        return _kind(path)
    except FormatError:
        if strict:
            raise
        return ""


def _kind(path: Path) -> str:
    return formats.suffix(path).removesuffix(".gz")


def _options(separator: str | None) -> dict[str, str]:
    return {} if separator is None else {"separator": separator}


def _head(file: File, separator: str | None) -> tuple[Rows, int | None]:
    """Return no rows with the columns of a table or of arrays, and how many there are, where the file tells."""
    if _kind(file.path) == ".parquet":
        with file.opened() as held:
            return Rows(formats.parquet_header(held)), sum(formats.parquet_groups(held))
    text = _kind(file.path) == ".csv"
    with file.beginning(whole=not text) as path, formats.explained(path):
        if not text:
            return formats.arrays_header(path)
        return Rows(formats.csv_header(path, cut=file.place is not None, **_options(separator))), None


def _table_facts(found: Sequence[File], separator: str | None) -> "tuple[pyarrow.Schema | None, int | None]":
    """Return types and number of rows as far as the files tell them, which have to have the same columns."""
    typed = _kind(found[0].path) == ".parquet"
    total: int | None = 0
    count: int | None
    first: dict[str, str] = {}
    fields, problems = None, []
    for file in found:
        if typed:
            with file.opened() as held:
                schema, count = formats.parquet_schema(held), sum(formats.parquet_groups(held))
            columns = {field.name: _plain(field.type) for field in schema}
            fields = schema if fields is None else _typed(fields, schema)
        else:
            head, count = _head(file, separator)
            columns = dict.fromkeys(map(str, head.frame), "")
        total = None if total is None or count is None else total + count
        first = first or columns
        # A column that holds nothing yet is of the type that it has where it holds something.
        first = {name: columns.get(name, kind) if kind == "null" else kind for name, kind in first.items()}
        known = {name: first.get(name, kind) if kind == "null" else kind for name, kind in columns.items()}
        if differ := [name for name in [*first, *columns] if first.get(name) != known.get(name)]:
            told = [f"{name!r} is {_difference(first, columns, name)}" for name in dict.fromkeys(differ)]
            more = f" and {len(told) - 5} more" if len(told) > 5 else ""
            problems.append(f"{file.name} has other columns than {found[0].name}: {', '.join(told[:5])}{more}")
    if problems:
        more = f"and {len(problems) - 20} more such files" if len(problems) > 20 else ""
        told = [*problems[:20], *filter(None, [more]), "expected one table; convert them, or run a job for each"]
        raise DataError(str(_above(found)), told)
    if total == 0:
        raise formats.no_rows(found[0].path if len(found) == 1 else _above(found))
    return fields, total


def _plain(kind: "pyarrow.DataType") -> str:
    """Return what a column holds, however that is stored: text is text, also where a dictionary or long offsets keep it."""
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return "string" if pyarrow.types.is_large_string(kind) else str(kind)


def _typed(fields: "pyarrow.Schema", other: "pyarrow.Schema") -> "pyarrow.Schema":
    """Return the columns with the types of another file where there are none: a column that holds nothing has none."""
    import pyarrow

    known = {field.name: field for field in other}
    return pyarrow.schema([known.get(f.name, f) if pyarrow.types.is_null(f.type) else f for f in fields])


def _difference(first: Mapping[str, str], other: Mapping[str, str], name: str) -> str:
    if name not in first or name not in other:
        return "missing" if name in first else "new"
    return f"{other[name]}, not {first[name]}"


def _above(found: Sequence[File]) -> Path:
    """Return the folder that files are named from."""
    return found[0].path.parents[len(Path(found[0].name).parts) - 1]


def _row_groups(file: File, rows: int, columns: tuple[str, ...] | None, *, beside: int) -> Iterator[Partition]:
    """Join small row groups, and cut large ones: to read from the middle of one is to read all before it.

    Args:
        beside: how many files the input has.
    """
    start = first = 0
    with file.opened() as held:
        groups = formats.parquet_groups(held)
    # Of few groups each is cut into a few, or else there would not be a partition for each worker.
    few = min(MOST_IN_LONE_GROUP, -(-FEW // max(1, len(groups) * beside)))
    for count in [*groups, 0]:
        if start > first and (start - first + count > rows or not count):
            yield Partition(0, (file,), first, start - first, "parquet", columns)
            first = start
        # In so many pieces at most: with more of them time would grow with the square of the rows.
        pieces = MOST_IN_GROUP if count > MOST_IN_GROUP * rows else min(few, -(-count // rows))
        if pieces > 1:
            size = -(-count // pieces)
            for at in range(0, count, size):
                yield Partition(0, (file,), start + at, min(size, count - at), "parquet", columns)
            first = start + count
        start += count


def _image_size(file: File) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of an image; what was fetched for that is fetched once."""
    if file.place is not None:
        return _distant_size(file)
    with file.here() as path:
        return images.size(path)


@functools.lru_cache(1 << 20)
def _distant_size(file: File) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with file.here() as path:
        return images.size(path)


def _most_images(path: Path) -> int:
    """Return how many images of an array file a partition holds; of other files, whatever is asked for."""
    if _kind(path) not in (".npz", ".npy", ".idx"):
        return sys.maxsize
    images_ = formats.arrays_header(path)[0].images
    return sys.maxsize if images_ is None else max(1, MOST_PIXELS // max(1, int(np.prod(images_.shape[1:]))))


def _image_partitions(found: Sequence[File]) -> Iterator[Partition]:
    labels = any("/" in file.name for file in found)
    first, pixels = 0, 0
    for at, file in enumerate(found):
        size = int(np.prod(_image_size(file)[0]))
        if at > first and (pixels + size > MOST_PIXELS or at - first == MOST_IMAGES):
            yield Partition(0, tuple(found[first:at]), first, at - first, "images", labels=labels)
            first, pixels = at, 0
        pixels += size
    yield Partition(0, tuple(found[first:]), first, len(found) - first, "images", labels=labels)


def _cut(part: Partition, rows: int) -> Partition:
    held = None if part.held is None else part.held.take(np.arange(rows))
    kept = part.files[:rows] if part.kind == "images" else part.files
    return replace(part, rows=rows, files=kept, held=held)
