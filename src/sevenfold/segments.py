"""A segment: vectors with their ids and carried columns as files that are written once, read where they lie, never changed.

vectors.f32     (rows, dimensions) float32, little-endian, row after row
ids.arrow       the user's ids, in the same order
carried.arrow   the user's other columns, where there are any
proposer.faiss  what proposes candidates, see `searchers`; the exact kind has none
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sevenfold import conditions, files, searchers
from sevenfold.conditions import Condition

Ids = Literal["positions", "integers", "text"]
"""What ids are: the user's integers or text, or, where none were given, the count of the rows from 0."""

NAMES = ("vectors.f32", "ids.arrow", "carried.arrow", "proposer.faiss")

BLOCK = 1 << 16
"""Rows that are copied from one segment to another at a time."""


@dataclass(frozen=True)
class Part:
    """Some rows of what is to be found.

    vectors: (n, dimensions), finite.
    ids: (n,) integers or text; None for positions.
    carried: n rows of other columns, which searches give back and ask conditions of; None for none.
    """

    vectors: np.ndarray
    ids: Any = None
    carried: pd.DataFrame | pa.Table | None = None


@dataclass(frozen=True)
class Form:
    """What all segments of a folder share. columns: of what is carried."""

    dimensions: int
    ids: Ids
    columns: pa.Schema


@dataclass(frozen=True)
class Entry:
    """What a manifest says of a segment. files: size in bytes and SHA-256 of each."""

    name: str
    rows: int
    tuned: searchers.Tuned
    files: Mapping[str, tuple[int, str]]

    def to_json(self) -> dict[str, Any]:
        sizes = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        return {"name": self.name, "rows": self.rows, **asdict(self.tuned), "files": sizes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError where that is no entry."""
        kinds = {name: value[name] for name in ("settings", "neighbours", "recall", "queries_per_second")}
        if not (isinstance(value["name"], str) and value["name"].isdecimal()) or value["kind"] not in searchers.KINDS:
            raise ValueError("no name or kind of a segment")
        if not set(value["files"]) <= set(NAMES):
            raise ValueError("no file of a segment")
        sizes = {name: (int(one["bytes"]), str(one["sha256"])) for name, one in value["files"].items()}
        return cls(value["name"], int(value["rows"]), searchers.Tuned(value["kind"], **kinds), sizes)


def write(
    folder: Path,
    parts: Iterable[Part],
    *,
    form: Form | None,
    first: int,
    recall: float,
    neighbours: int,
    kind: searchers.Kind | None,
) -> tuple[Entry, Form] | None:
    """Write a segment, whole or not at all, into a new folder; None where the parts hold no row.

    Memory is that of a part, of what `searchers.build` takes, and of 16 bytes per id.

    Args:
        form: of the folder; None for its first segment, which says what it is. Columns that then differ in type from part to
            part come to one that holds all their values, where there is one.
        first: the first position, where the ids are positions.
        recall, neighbours, kind: see `searchers.build`.

    Raises:
        ValueError: parts are not as above or differ from each other or from the form.
    """
    filled = (part for part in parts if len(part.vectors))
    if (start := next(filled, None)) is None:
        return None
    with files.whole(folder) as draft:
        draft.mkdir()
        with _Writing(draft, form, first) as writing:
            for part in itertools.chain([start], filled):
                writing.take(part)
            found = writing.close()
        vectors = _mapped(draft / "vectors.f32", writing.rows, found.dimensions)
        file = draft / "proposer.faiss"
        tuned = searchers.build(vectors, file, recall=recall, neighbours=neighbours, kind=kind)
        there = [name for name in NAMES if (draft / name).is_file()]
        sizes = {name: ((draft / name).stat().st_size, files.digest(draft / name)) for name in there}
    return Entry(folder.name, writing.rows, tuned, sizes), found


def _mapped(file: Path, rows: int, dimensions: int) -> np.ndarray:
    return np.memmap(file, np.dtype("<f4"), "r", shape=(rows, dimensions))


class _Rows:
    """An Arrow file under way. Its batches have `BLOCK` rows, however many came at a time."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.file, self.schema = file, schema
        self._writer = pa.ipc.new_file(str(file), schema)
        self._waiting: list[pa.Table] = []
        self._count = 0

    def take(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._count += table.num_rows
        if self._count >= BLOCK:
            every = pa.concat_tables(self._waiting)
            whole = every.num_rows // BLOCK * BLOCK
            self._write(every.slice(0, whole))
            self._waiting, self._count = [every.slice(whole)], every.num_rows - whole

    def _write(self, table: pa.Table) -> None:
        for start in range(0, table.num_rows, BLOCK):
            # Copied, so that the bytes do not depend on where the rows lay before.
            rows = table.slice(start, BLOCK)
            self._writer.write_table(rows.take(pa.array(np.arange(rows.num_rows))).combine_chunks())

    def close(self) -> None:
        if self._count:
            self._write(pa.concat_tables(self._waiting))
        self._writer.close()

    def abandon(self) -> None:
        self._writer.close()


class _Writing:
    """The parts of a segment on their way into its files."""

    def __init__(self, folder: Path, form: Form | None, first: int) -> None:
        self.rows = 0
        self._folder, self._form, self._first = folder, form, first
        self._open = ExitStack()
        self._vectors = self._open.enter_context((folder / "vectors.f32").open("wb"))
        self._dimensions = None if form is None else form.dimensions
        self._kind: Ids | None = None if form is None else form.ids
        self._ids: _Rows | None = None
        self._names: list[str] | None = None if form is None else form.columns.names
        # What is carried, in as many files as it changed its types.
        self._spools: list[_Rows] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the files, whether or not they were finished."""
        self._open.close()

    def _rows(self, file: Path, schema: pa.Schema) -> _Rows:
        rows = _Rows(file, schema)
        self._open.callback(rows.abandon)
        return rows

    def take(self, part: Part) -> None:
        vectors = checked(part.vectors, self._dimensions, self.rows)
        ids = self._checked_ids(part.ids, len(vectors))
        table = self._table(part.carried, len(vectors))
        self._dimensions = vectors.shape[1]
        self._vectors.write(vectors.astype("<f4", copy=False).data)
        if self._ids is None:
            self._ids = self._rows(self._folder / "ids.arrow", pa.schema([("id", ids.type)]))
        self._ids.take(pa.table([ids], ["id"]))
        if table.column_names:
            if not self._spools or table.schema != self._spools[-1].schema:
                self._spools.append(self._rows(self._folder / f"carried-{len(self._spools)}.spool", table.schema))
            self._spools[-1].take(table)
        self._names = table.column_names
        self.rows += len(vectors)

    def close(self) -> Form:
        """Finish the files, and return their form."""
        self._vectors.close()
        assert self._dimensions is not None
        assert self._kind is not None
        assert self._ids is not None
        self._ids.close()
        for spool in self._spools:
            spool.close()
        if self._kind != "positions":
            _require_unique(_batches(self._folder / "ids.arrow"))
        columns = self._columns()
        carried = self._folder / "carried.arrow"
        if len(self._spools) == 1 and self._spools[0].schema == columns:
            self._spools.pop().file.rename(carried)
        elif self._spools:
            rows = self._rows(carried, columns)
            for spool in self._spools:
                for batch in _batches(spool.file):
                    rows.take(_cast(pa.Table.from_batches([batch]), columns))
                spool.file.unlink()
            rows.close()
        return self._form or Form(self._dimensions, self._kind, columns)

    def _columns(self) -> pa.Schema:
        """Return the types that hold what all parts carried."""
        if self._form is not None:
            return self._form.columns
        if not self._spools:
            return pa.schema([])
        try:
            columns = pa.unify_schemas([spool.schema for spool in self._spools], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"carried columns change their type from part to part ({error}); expected one for each; convert them"
            ) from None
        # A column without any value may get some later, and most likely text.
        return pa.schema([pa.field(f.name, pa.large_string() if pa.types.is_null(f.type) else f.type) for f in columns])

    def _checked_ids(self, ids: Any, count: int) -> pa.Array:
        """Return ids as Arrow's int64 or large_string, or say what is wrong with them."""
        start = self._first + self.rows
        given: Ids = "positions"
        array = pa.array(np.arange(start, start + count, dtype=np.int64))
        if ids is not None:
            try:
                array = ids if isinstance(ids, pa.Array) else pa.array(ids, from_pandas=True)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ValueError(f"ids are of mixed types ({error}); expected integers or text; convert them") from None
            if pa.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            if not pa.types.is_integer(array.type) and _plain_type(array.type) != pa.large_string():
                raise ValueError(f"ids are of type {array.type}; expected integers or text; convert them")
            given = "integers" if pa.types.is_integer(array.type) else "text"
        if len(array) != count:
            raise ValueError(
                f"there are {len(array)} ids for {count} vectors; expected one each; give both from the same rows"
            )
        if array.null_count:
            row = self.rows + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
            raise ValueError(f"{array.null_count} ids are missing (first: row {row}); expected one each; fill them")
        if self._kind not in (None, given):
            got = "not given" if given == "positions" else given
            wanted = (
                "leave them out, since rows are counted here"
                if self._kind == "positions"
                else "give them as the others"
            )
            raise ValueError(f"ids are {got}; expected {self._kind}, as those of the rows before; {wanted}")
        self._kind = given
        try:
            return array.cast(pa.large_string() if given == "text" else pa.int64())
        except pa.ArrowInvalid:
            most = pc.max(array)
            raise ValueError(f"ids reach {most}; expected less than 2 to the power of 63; give them as text") from None

    def _table(self, carried: pd.DataFrame | pa.Table | None, count: int) -> pa.Table:
        """Return what is carried as a table of plain types, as the form has them where there is one."""
        if carried is None:
            carried = pa.table({})
        if isinstance(carried, pd.DataFrame):
            names = [str(name) for name in carried.columns]
            _require_apart(names)
            try:
                table = pa.Table.from_pandas(carried.set_axis(names, axis=1), preserve_index=False)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ValueError(
                    f"carried columns hold values of mixed types ({'; '.join(map(str, error.args))}); "
                    "expected one type in each; convert them"
                ) from None
        else:
            table = carried
        _require_apart(table.column_names)
        table = _cast(table, _plain(table.schema)).replace_schema_metadata(None)
        if table.column_names and table.num_rows != count:
            raise ValueError(
                f"there are {table.num_rows} rows of carried columns for {count} vectors; expected as many; "
                "give both from the same rows"
            )
        wanted = self._names
        if wanted is not None and sorted(table.column_names) != sorted(wanted):
            missing = [f"{name} is missing" for name in wanted if name not in table.column_names]
            more = [f"{name} is new" for name in table.column_names if name not in wanted]
            raise ValueError(
                f"carried columns differ: {', '.join(missing + more)}; expected {', '.join(wanted) or 'none'}; "
                "give the same columns with all rows"
            )
        if wanted is not None:
            table = table.select(wanted)
        return table if self._form is None else _cast(table, self._form.columns)


def checked(vectors: np.ndarray, dimensions: int | None, first: int = 0) -> np.ndarray:
    """Return vectors as contiguous float32, or say what is wrong with them; `first` is the number of their first row."""
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or not vectors.shape[1] or dimensions not in (None, vectors.shape[1]):
        wanted = f"(n, {'dimensions' if dimensions is None else dimensions})"
        raise ValueError(f"vectors have shape {vectors.shape}; expected {wanted}; make them by the index's own model")
    # Squares of larger ones are no numbers of single precision any more.
    if not (sound := (np.abs(vectors) < 1e18).all(axis=1)).all():
        raise ValueError(
            f"{(~sound).sum()} vectors are not finite (first: row {first + sound.argmin()}); expected numbers below 1e18; "
            "leave them out"
        )
    return vectors


def _require_apart(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"carried columns are there twice ({', '.join(twice)}); expected each once; rename them")


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return the types in which columns are kept: categories as what they stand for, and text of any length."""
    return pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    return pa.large_string() if pa.types.is_string(kind) or pa.types.is_string_view(kind) else kind


def _cast(table: pa.Table, columns: pa.Schema) -> pa.Table:
    """Return the columns in these types, or name those whose values they do not hold."""
    made, problems = [], []
    for field in columns:
        try:
            made.append(table.column(field.name).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            problems.append(f"column {field.name!r} is of type {table.schema.field(field.name).type} ({error})")
    if problems:
        wanted = ", ".join(f"{field.name}: {field.type}" for field in columns)
        raise ValueError(f"carried {'; '.join(problems)}; expected {wanted}; convert it")
    return pa.table(made, schema=columns)


def _batches(file: Path) -> list[pa.RecordBatch]:
    """Return what an Arrow file holds, memory-mapped."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _require_unique(batches: Sequence[pa.RecordBatch]) -> None:
    """Refuse ids of which one is there twice."""
    columns = [batch.column("id") for batch in batches]
    if pa.types.is_integer(columns[0].type):
        keys = np.concatenate([column.to_numpy() for column in columns])
    else:
        keys = np.concatenate([pd.util.hash_array(_objects(column), categorize=False) for column in columns])
    keys.sort()
    if not len(alike := np.unique(keys[1:][keys[1:] == keys[:-1]])):
        return
    if pa.types.is_integer(columns[0].type):
        twice = alike.tolist()
    else:
        # Few hashes are alike by chance: the ids themselves say.
        some = [
            column.filter(np.isin(pd.util.hash_array(_objects(column), categorize=False), alike)) for column in columns
        ]
        counts = pc.value_counts(pa.chunked_array(some))
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()
    if twice:
        raise ValueError(f"{listed(twice)} there twice; expected each id once; rename some")


def _objects(column: pa.Array) -> np.ndarray:
    """Return text as Python's own."""
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


def listed(ids: Sequence[Any]) -> str:
    """Name some ids, as the subject of a sentence."""
    shown = ", ".join(map(repr, ids[:5]))
    return f"{len(ids)} id{'s' if len(ids) > 1 else ''} ({shown}{', ...' if len(ids) > 5 else ''}) {'are' if len(ids) > 1 else 'is'}"


class Segment:
    """A segment that was written, read where it lies: what others remove from its folder later stays readable here."""

    def __init__(self, folder: Path, entry: Entry, form: Form) -> None:
        """Open the files.

        Raises:
            FileNotFoundError: one is missing.
            ValueError: one has another size than was written.
        """
        for name, (size, _) in entry.files.items():
            if (found := (folder / name).stat().st_size) != size:
                raise ValueError(
                    f"{folder / name} has {found:,} bytes; expected {size:,}; it is damaged: build the index again"
                )
        self.entry = entry
        self._form = form
        vectors = _mapped(folder / "vectors.f32", entry.rows, form.dimensions)
        self.searcher = searchers.Searcher.open(vectors, entry.tuned, folder / "proposer.faiss")
        self._ids = _batches(folder / "ids.arrow")
        self._carried = _batches(folder / "carried.arrow") if form.columns.names else []

    def __len__(self) -> int:
        return self.entry.rows

    def where(self, asked: Sequence[Condition]) -> np.ndarray:
        """Return (rows,) bool: which meet all the conditions."""
        if not asked:
            return np.ones(len(self), bool)
        names = sorted({one.column for one in asked})
        return np.concatenate([conditions.hold(asked, batch.select(names)) for batch in self._carried])

    def among(self, ids: pa.Array) -> np.ndarray:
        """Return (rows,): each row's place among these ids, -1 where its own is none of them."""
        column = pa.chunked_array([batch.column("id") for batch in self._ids])
        places: np.ndarray = pc.index_in(column, value_set=ids).fill_null(-1).to_numpy()
        return places

    def ids(self, positions: np.ndarray) -> pa.ChunkedArray:
        return _taken(self._ids, positions).column("id")

    def carried(self, positions: np.ndarray) -> pa.Table:
        """Return the carried columns of these rows."""
        if not self._carried:
            return self._form.columns.empty_table()
        return _taken(self._carried, positions)

    def parts(self, kept: np.ndarray) -> Iterator[Part]:
        """Give the rows that are kept, (rows,) bool, in their order and some at a time."""
        for start in range(0, len(self), BLOCK):
            if len(rows := start + np.flatnonzero(kept[start : start + BLOCK])):
                yield Part(self.searcher.vectors[rows], self.ids(rows).combine_chunks(), self.carried(rows))


def _taken(batches: Sequence[pa.RecordBatch], positions: np.ndarray) -> pa.Table:
    """Return rows by position, from those batches alone that hold some."""
    starts = np.concatenate([[0], np.cumsum([batch.num_rows for batch in batches])])
    places, back = np.unique(positions, return_inverse=True)
    home = np.searchsorted(starts, places, side="right") - 1
    some = [batches[at].take(pa.array(places[home == at] - starts[at])) for at in np.unique(home)]
    return pa.Table.from_batches(some, batches[0].schema).take(pa.array(back))


def damage(folder: Path, entry: Entry) -> list[str]:
    """Return what is wrong with a segment's files, each compared with its digest; nothing where they are as written."""
    problems = []
    for name, (_, digest) in entry.files.items():
        if not (folder / name).is_file():
            problems.append(f"{folder.name}/{name} is missing")
        elif files.digest(folder / name) != digest:
            problems.append(f"{folder.name}/{name} is damaged: its SHA-256 is another")
    return problems
