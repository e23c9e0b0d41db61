"""Index folders: vectors on a disk that are searched, added to and removed from for years, by many at a time.

    index.json       the manifest: what belongs to the folder now, which generation that is, and what made it so
    columns.arrow    the types of the carried columns
    segments/NNNNNN  what the generation of that number added, see `segments`
    removed/         which rows of a segment are removed, a bit each; a file per segment and generation that removed some
    lock             held by who writes; the kernel releases it when its holder dies

A change writes new files beside the old ones, and then replaces the manifest, at once: whoever reads finds one generation or
the next. Who has opened a generation goes on reading it, whatever is written or compacted meanwhile.
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from sevenfold import conditions, files, indexes, searchers, segments
from sevenfold.segments import Entry, Form, Segment
from sevenfold.segments import Part as Part

FORMAT = 1

MANIFEST = "index.json"
_LOCK, _COLUMNS = "lock", "columns.arrow"


@dataclass(frozen=True)
class Maker:
    """The model that makes the vectors of a folder: those of another one mean something else.

    label: for people, such as a version in the registry. digest: of its bundle; it decides.
    """

    label: str
    digest: str


@dataclass(frozen=True)
class Event:
    """What made a generation: "build", "add", "remove" or "compact", of so many rows, at a time in ISO format.

    key: who did it, so that who does not know whether it was done can see; None where nobody asked for that.
    origin: the folder that paths of what was added begin from; None where nobody told.
    """

    generation: int
    what: str
    rows: int
    when: str
    key: str | None = None
    origin: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Piece:
    """A segment as a generation has it.

    removed: its rows that are removed. file: of them, under `removed/`; None for none. digest: SHA-256 of that file.
    """

    entry: Entry
    removed: int = 0
    file: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a folder holds in one generation.

    form: dimensions, kind of ids and carried columns.
    kind: of search that was asked for; None where it is chosen for each segment.
    recall, neighbours: the share of the nearest `neighbours` that a search has to find.
    numbered: how many positions were given out as ids, none of them ever twice.
    """

    maker: Maker
    form: Form
    kind: searchers.Kind | None
    recall: float
    neighbours: int
    numbered: int
    pieces: tuple[Piece, ...]
    events: tuple[Event, ...]

    @property
    def generation(self) -> int:
        return self.events[-1].generation

    @property
    def count(self) -> int:
        """Rows that can be found."""
        return sum(piece.entry.rows - piece.removed for piece in self.pieces)

    @property
    def digest(self) -> str:
        """A digest of all that can be found and how: equal contents, in equal segments, have equal ones.

        What a clock or a stopwatch said is no part of it.
        """
        pieces = [
            [piece.entry.name, piece.digest, *sorted(digest for _, digest in piece.entry.files.values())]
            for piece in self.pieces
        ]
        told = files.dumps([self.maker.digest, self.numbered, str(self.form.columns), self.form.ids, pieces])
        return hashlib.sha256(told.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "generation": self.generation,
            "digest": self.digest,
            "model": asdict(self.maker),
            "dimensions": self.form.dimensions,
            "ids": self.form.ids,
            "numbered": self.numbered,
            "columns": {field.name: str(field.type) for field in self.form.columns},
            "count": self.count,
            "asked": {"kind": self.kind, "recall": self.recall, "neighbours": self.neighbours},
            "segments": [
                piece.entry.to_json()
                | {"removed": piece.removed, "removals": piece.file, "removals_sha256": piece.digest}
                for piece in self.pieces
            ],
            "generations": [event.to_json() for event in self.events],
        }

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what a folder holds now.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is damaged or of another format.
        """
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {MANIFEST}; expected an index folder; build one with `sevenfold index`"
            )
        try:
            value = files.parse_json(folder / MANIFEST)
        except ValueError as error:
            raise ValueError(f"{folder} is no sound index: {MANIFEST} {error}; build it again") from None
        found = value.get("format") if isinstance(value, dict) else None
        if found != FORMAT or "generations" not in value:
            raise ValueError(f"{folder} has index format {found!r}; this version reads {FORMAT}; build the index again")
        try:
            columns = pa.ipc.read_schema(pa.py_buffer((folder / _COLUMNS).read_bytes()))
            pieces = []
            for one in value["segments"]:
                file = one["removals"]
                if file is not None and not re.fullmatch(r"\d+-\d+\.bits", file):
                    raise ValueError(f"{file!r} is no file of removals")
                pieces.append(Piece(Entry.from_json(one), int(one["removed"]), file, one["removals_sha256"]))
            asked = value["asked"]
            return cls(
                maker=Maker(**value["model"]),
                form=Form(int(value["dimensions"]), value["ids"], columns),
                kind=asked["kind"],
                recall=asked["recall"],
                neighbours=asked["neighbours"],
                numbered=int(value["numbered"]),
                pieces=tuple(pieces),
                events=tuple(Event(**event) for event in value["generations"]),
            )
        except (KeyError, TypeError, ValueError, OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{folder} is no sound index: {error}; build it again") from None

    def require_maker(self, folder: Path, maker: Maker) -> None:
        if maker.digest != self.maker.digest:
            raise ValueError(
                f"{folder} holds vectors of {self.maker.label} ({self.maker.digest[:12]}); expected those of {maker.label} "
                f"({maker.digest[:12]}), which this was asked with; name the first, or build another index with the second"
            )

    def holds(self, key: str) -> bool:
        """Say whether what was added with a key is there, and none of it was removed since."""
        added = next((event for event in self.events if event.key == key), None)
        if added is None:
            return False
        for piece in self.pieces:
            if piece.entry.name == _name(added.generation):
                return not piece.removed
        # Compacted into another segment, before which something may have been removed.
        return all(event.what != "remove" for event in self.events if event.generation > added.generation)

    def after(self, what: str, rows: int, *, key: str | None = None, origin: str | None = None, **changes: Any) -> Self:
        """Return the next generation."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        event = Event(self.generation + 1, what, rows, when, key, origin)
        return replace(self, events=(*self.events, event), **changes)


# Changes.


def build(
    folder: Path,
    parts: Iterable[Part],
    *,
    maker: Maker,
    recall: float = 0.95,
    neighbours: int = 10,
    kind: searchers.Kind | None = None,
) -> Manifest:
    """Build an index folder, which appears whole or not at all.

    Args:
        parts: rows as they come; memory does not grow with them, but for 16 bytes per id and what `searchers` tells.
        maker: the model that made the vectors.
        recall: share of the truly nearest that a search has to find; 1 asks for the exact search.
        neighbours: how many a search usually asks for.
        kind: how to search, see `searchers.Kind`; None takes the one with the fewest comparisons of those that find enough.

    Raises:
        FileExistsError: the folder is there already.
        RuntimeError: another process is building it.
        ValueError: there is no row, or parts or options are not as they should be.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}; expected 1 or more")
    indexes.require_recall(recall)
    if kind is not None and kind not in searchers.KINDS:
        raise ValueError(
            f"kind is {kind!r}; expected one of {', '.join(searchers.KINDS)}; leave it out to have one chosen"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock"), folder, fleeting=True):
        # Nobody else builds: these are of a build that was killed.
        for room in folder.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}", room.name) and room.is_dir():
                shutil.rmtree(room)
        if folder.exists():
            raise FileExistsError(
                f"{folder} is there already; expected a new name; add to it with `sevenfold index add`, or remove it"
            )
        with files.whole(folder) as draft:
            draft.mkdir()
            (draft / _LOCK).touch()
            written = segments.write(
                draft / "segments" / _name(1),
                parts,
                form=None,
                first=0,
                recall=recall,
                neighbours=neighbours,
                kind=kind,
            )
            if written is None:
                raise ValueError("there are 0 vectors; expected 1 or more; give the rows that are to be found")
            entry, form = written
            event = Event(1, "build", entry.rows, datetime.now(UTC).isoformat(timespec="seconds"))
            numbered = entry.rows if form.ids == "positions" else 0
            made = Manifest(maker, form, kind, recall, neighbours, numbered, (Piece(entry),), (event,))
            (draft / _COLUMNS).write_bytes(form.columns.serialize().to_pybytes())
            files.write_json(draft / MANIFEST, made.to_json())
    return made


def add(
    folder: Path, parts: Iterable[Part], *, maker: Maker, key: str | None = None, origin: str | None = None
) -> Manifest:
    """Add rows under new ids, as a segment of their own; an id that was removed may be new again.

    Args:
        key, origin: of this change, for its event.

    Raises:
        FileNotFoundError: there is no such folder.
        RuntimeError: another process is writing to it.
        ValueError: another model made the folder's vectors, an id is there already, or the parts are not as the folder's.
    """
    with _writing(folder) as manifest:
        manifest.require_maker(folder, maker)
        name = _name(manifest.generation + 1)
        place = folder / "segments" / name
        written = segments.write(
            place,
            parts,
            form=manifest.form,
            first=manifest.numbered,
            recall=manifest.recall,
            neighbours=manifest.neighbours,
            kind=manifest.kind,
        )
        if written is None:
            return manifest
        entry, _ = written
        if manifest.form.ids != "positions":
            _require_new(folder, manifest, Segment(place, entry, manifest.form))
        numbered = manifest.numbered + (entry.rows if manifest.form.ids == "positions" else 0)
        pieces = (*manifest.pieces, Piece(entry))
        made = manifest.after("add", entry.rows, key=key, origin=origin, pieces=pieces, numbered=numbered)
        return _commit(folder, made)


def _require_new(folder: Path, manifest: Manifest, added: Segment) -> None:
    """Refuse ids that can be found already; the segment that holds them is removed."""
    ids = added.ids(np.arange(len(added))).combine_chunks()
    there: list[Any] = []
    for piece in manifest.pieces:
        places = _opened(folder, piece, manifest.form).among(ids)
        there += ids.take(pa.array(places[(places >= 0) & _kept(folder, piece)])).to_pylist()
    if there:
        shutil.rmtree(folder / "segments" / added.entry.name)
        raise ValueError(f"{segments.listed(sorted(there))} in {folder} already; expected new ones; remove those first")


def remove(folder: Path, ids: Any) -> Manifest:
    """Remove rows by their ids, as one change; no search of a later generation finds them.

    Args:
        ids: integers or text, as the folder's.

    Raises:
        FileNotFoundError: there is no such folder.
        LookupError: an id is not there; nothing is removed.
        RuntimeError: another process is writing to it.
        ValueError: the ids are of another kind.
    """
    with _writing(folder) as manifest:
        wanted = str if manifest.form.ids == "text" else int
        asked = list(dict.fromkeys(np.asarray(ids).ravel().tolist()))
        if wrong := [one for one in asked if type(one) is not wanted]:
            kind = "text" if wanted is str else "integers"
            raise ValueError(f"{segments.listed(wrong)} no id of {folder}; expected {kind}; give them as it has them")
        try:
            array = pa.array(asked, pa.large_string() if wanted is str else pa.int64())
        except OverflowError:
            raise LookupError(f"{max(asked, key=abs)} is not in {folder}; expected some of its ids") from None
        found = np.zeros(len(array), bool)
        generation = manifest.generation + 1
        pieces, masks = [], {}
        for piece in manifest.pieces:
            places = _opened(folder, piece, manifest.form).among(array)
            kept = _kept(folder, piece)
            hit = kept & (places >= 0)
            found[places[hit]] = True
            if hit.any():
                kept &= ~hit
                file = f"{_name(generation)}-{piece.entry.name}.bits"
                masks[file] = np.packbits(kept)
                piece = replace(piece, removed=int((~kept).sum()), file=file)
            pieces.append(piece)
        if not found.all():
            missing = array.filter(pa.array(~found)).to_pylist()
            raise LookupError(f"{segments.listed(missing)} not in {folder}; expected some of its {manifest.count:,}")
        if not len(array):
            return manifest
        digests = {}
        for file, bits in masks.items():
            with files.whole(folder / "removed" / file) as draft:
                draft.write_bytes(bits.tobytes())
            digests[file] = files.digest(folder / "removed" / file)
        pieces = [replace(one, digest=digests[one.file]) if one.file in digests else one for one in pieces]
        return _commit(folder, manifest.after("remove", len(array), pieces=tuple(pieces)))


def compact(folder: Path) -> Manifest:
    """Write all that can be found as one segment, built and tuned anew, and free what was removed.

    Files that no generation needs any more are deleted. Who has opened an older generation goes on reading it.

    Raises:
        FileNotFoundError: there is no such folder.
        RuntimeError: another process is writing to it.
        ValueError: files are damaged; nothing is deleted.
    """
    with _writing(folder) as manifest:
        if len(manifest.pieces) > 1 or any(piece.removed for piece in manifest.pieces):
            if problems := _damage(folder, manifest):
                raise ValueError(f"{folder} is no sound index: {'; '.join(problems)}; build it again")

            def parts() -> Iterator[Part]:
                for piece in manifest.pieces:
                    yield from _opened(folder, piece, manifest.form).parts(_kept(folder, piece))

            # Positions stay what they were; they are given here, and not counted anew.
            given = replace(manifest.form, ids="integers") if manifest.form.ids == "positions" else manifest.form
            written = segments.write(
                folder / "segments" / _name(manifest.generation + 1),
                parts(),
                form=given,
                first=0,
                recall=manifest.recall,
                neighbours=manifest.neighbours,
                kind=manifest.kind,
            )
            pieces = () if written is None else (Piece(written[0]),)
            manifest = _commit(folder, manifest.after("compact", manifest.count, pieces=pieces))
        for path in _unreferenced(folder, manifest):
            _delete(path)
        return manifest


def _name(number: int) -> str:
    return f"{number:06d}"


def _commit(folder: Path, manifest: Manifest) -> Manifest:
    """Make a generation the one that is read from now on, or never: its files are on the disk already."""
    files.write_json(folder / MANIFEST, manifest.to_json())
    return manifest


@contextmanager
def locked(file: Path, folder: Path, *, fleeting: bool = False) -> Iterator[None]:
    """Hold a lock that the kernel releases when its holder dies; a fleeting one leaves no file."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lost = not os.fstat(handle).st_nlink  # its last holder removed the file after it was opened here
        except BlockingIOError:
            lost = True
        if lost:
            raise RuntimeError(f"another process is writing to {folder}; wait for it, and run this again")
        try:
            yield
        finally:
            if fleeting:
                file.unlink()
    finally:
        os.close(handle)


@contextmanager
def _writing(folder: Path) -> Iterator[Manifest]:
    """Hold a folder against other writers, and give its manifest; what a killed one left behind is gone."""
    Manifest.read(folder)
    with locked(folder / _LOCK, folder):
        manifest = Manifest.read(folder)
        for path in _unreferenced(folder, manifest):
            # Those of older generations may be about to be opened, until they are compacted.
            number = re.match(r"\d+", path.name)
            if number is None or int(number[0]) > manifest.generation:
                _delete(path)
        yield manifest


_OURS = re.compile(r"\d{6,}|\d{6,}-\d{6,}\.bits|\.(\d{6,}|\d{6,}-\d{6,}\.bits|index\.json)\.[a-z0-9_]{8}")
"""Names of segments, removals, and drafts of both and of the manifest. What is called otherwise is not ours to delete."""


def _unreferenced(folder: Path, manifest: Manifest) -> list[Path]:
    """Return what lies in a folder and belongs to no row of a generation, the drafts of killed writers among it."""
    needed = {piece.entry.name for piece in manifest.pieces} | {piece.file for piece in manifest.pieces}
    places = [folder.glob("segments/*"), folder.glob("removed/*"), folder.glob(f".{MANIFEST}.*")]
    found = (path for place in places for path in place)
    return sorted(path for path in found if path.name not in needed and _OURS.fullmatch(path.name))


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _opened(folder: Path, piece: Piece, form: Form) -> Segment:
    return Segment(folder / "segments" / piece.entry.name, piece.entry, form)


def _kept(folder: Path, piece: Piece) -> np.ndarray:
    """Return (rows,) bool: which of a segment's rows are not removed."""
    if piece.file is None:
        return np.ones(piece.entry.rows, bool)
    bits = np.frombuffer((folder / "removed" / piece.file).read_bytes(), np.uint8)
    if 8 * len(bits) < piece.entry.rows:
        raise ValueError(f"{folder / 'removed' / piece.file} is damaged: it is too short; build the index again")
    return np.unpackbits(bits, count=piece.entry.rows).astype(bool)


def _damage(folder: Path, manifest: Manifest) -> list[str]:
    problems = []
    for piece in manifest.pieces:
        problems += segments.damage(folder / "segments" / piece.entry.name, piece.entry)
        if piece.file is not None:
            file = folder / "removed" / piece.file
            if not file.is_file():
                problems.append(f"{piece.file} is missing")
            elif files.digest(file) != piece.digest:
                problems.append(f"{piece.file} is damaged: its SHA-256 is another")
    return problems


# Searches.


@dataclass(frozen=True)
class Found:
    """What queries found, nearest first.

    ids: (queries, k), int64 or Python text. distances: (queries, k) float32, Euclidean. carried: queries * k rows, those of the
    first query first.
    """

    ids: np.ndarray
    distances: np.ndarray
    carried: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row for each neighbour: `query` (from 0), `rank` (from 1), `id`, `distance`, and the carried columns.

        A carried column of one of these names comes with "carried_" before it.
        """
        queries, k = self.ids.shape
        own = {
            "query": np.repeat(np.arange(queries), k),
            "rank": np.tile(np.arange(1, k + 1), queries),
            "id": self.ids.ravel(),
            "distance": self.distances.ravel(),
        }
        rest = self.carried.rename(columns={name: f"carried_{name}" for name in own})
        return pd.concat([pd.DataFrame(own), rest], axis=1)


class Reader:
    """One generation of a folder, open for searches; later ones are not seen. Safe to be used by several threads.

    manifest: of the generation.
    """

    def __init__(self, folder: Path, *, maker: Maker | None = None) -> None:
        """Open the generation that there is now.

        Args:
            maker: the model that makes the queries; None for queries whose maker is not known.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is damaged, or another model made its vectors.
        """
        while True:
            self.manifest = Manifest.read(folder)
            try:
                self._segments = [_opened(folder, piece, self.manifest.form) for piece in self.manifest.pieces]
                self._masks = [_kept(folder, piece) for piece in self.manifest.pieces]
                break
            except FileNotFoundError as error:
                # Compacted between the reading of the manifest and the opening, unless it is gone for good.
                if Manifest.read(folder).generation == self.manifest.generation:
                    raise ValueError(
                        f"{folder} is no sound index: {error.filename} is missing; build it again"
                    ) from None
        if maker is not None:
            self.manifest.require_maker(folder, maker)

    def __len__(self) -> int:
        return self.manifest.count

    def search(self, vectors: np.ndarray, k: int, *, where: str | Sequence[str] = ()) -> Found:
        """Return the k nearest of each query, or as many as there are that meet the conditions.

        Args:
            vectors: (queries, dimensions), finite, made by the folder's model.
            where: conditions on carried columns, see `conditions.parse`; all have to hold.

        Raises:
            ValueError: a vector, k or a condition is not as it should be.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected 1 or more")
        vectors = segments.checked(vectors, self.manifest.form.dimensions)
        asked = conditions.parse(where, self.manifest.form.columns)
        near, far, home = [], [], []
        for number, (segment, kept) in enumerate(zip(self._segments, self._masks, strict=True)):
            allowed = kept & segment.where(asked) if asked else kept
            found, distances = segment.searcher.nearest(vectors, k, None if allowed.all() else allowed)
            near.append(found)
            far.append(distances)
            home.append(np.full(found.shape, number))
        if not near:
            near = home = [np.zeros((len(vectors), 0), np.int64)]
            far = [np.zeros((len(vectors), 0), np.float32)]
        every = np.concatenate(far, axis=1)
        order = np.argsort(every, axis=1, kind="stable")[:, :k]
        positions = np.take_along_axis(np.concatenate(near, axis=1), order, axis=1)
        homes = np.take_along_axis(np.concatenate(home, axis=1), order, axis=1)
        ids, carried = self._rows(homes.ravel(), positions.ravel())
        return Found(ids.reshape(order.shape), np.take_along_axis(every, order, axis=1), carried)

    def _rows(self, homes: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
        """Return ids and carried columns of rows, given by the number of their segment and their position there."""
        textual = self.manifest.form.ids == "text"
        ids: np.ndarray = np.zeros(len(positions), object if textual else np.int64)
        tables = [self.manifest.form.columns.empty_table()]
        order = []
        for number in np.unique(homes):
            mine = np.flatnonzero(homes == number)
            segment = self._segments[number]
            ids[mine] = segment.ids(positions[mine]).to_numpy()
            tables.append(segment.carried(positions[mine]))
            order.append(mine)
        if not self.manifest.form.columns.names:
            return ids, pd.DataFrame(index=pd.RangeIndex(len(positions)))
        back = np.argsort(np.concatenate([np.zeros(0, np.int64), *order]), kind="stable")
        table = pa.concat_tables(tables).take(pa.array(back))
        frame = table.to_pandas(use_threads=False)
        for field in table.schema:
            # Beside gaps pandas would make floats of integers, which are rounded beyond 2**53.
            if pa.types.is_integer(field.type) and table.column(field.name).null_count:
                known = pd.api.types.pandas_dtype(str(field.type).replace("int", "Int").replace("uI", "UI"))
                frame[field.name] = table.column(field.name).to_pandas(types_mapper={field.type: known}.get)
        return ids, frame


def search(
    folder: Path,
    vectors: np.ndarray,
    k: int,
    *,
    maker: Maker | None = None,
    where: str | Sequence[str] = (),
) -> Found:
    """Open what a folder holds now and search it once, see `Reader`."""
    return Reader(folder, maker=maker).search(vectors, k, where=where)


# What there is to know.


def inspect(folder: Path) -> dict[str, Any]:
    """Return what the manifest says, the bytes on the disk, and the damage: what is wrong with files, each read and compared.

    Bytes are those of each kind of file, of what nobody needs any more, and of all.
    """
    manifest = Manifest.read(folder)
    while (damage := _damage(folder, manifest)) and (now := Manifest.read(folder)).generation != manifest.generation:
        manifest = now  # which has swept away what was looked for
    sizes: dict[str, int] = {}
    for piece in manifest.pieces:
        for name, (size, _) in piece.entry.files.items():
            sizes[Path(name).stem] = sizes.get(Path(name).stem, 0) + size
    spare = [file for path in _unreferenced(folder, manifest) for file in [path, *path.rglob("*")] if file.is_file()]
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    told = sizes | {"freed by compacting": sum(file.stat().st_size for file in spare), "total": total}
    return manifest.to_json() | {"bytes": told, "damage": damage}


def describe(told: Mapping[str, Any]) -> str:
    """Return what `inspect` found as lines of text."""
    asked, removed = told["asked"], sum(one["removed"] for one in told["segments"])
    lines = {
        "model": f"{told['model']['label']} ({told['model']['digest'][:12]})",
        "rows": f"{told['count']:,} of {told['dimensions']} dimensions" + (f", {removed:,} removed" if removed else ""),
        "ids": told["ids"],
        "columns": ", ".join(f"{name} ({kind})" for name, kind in told["columns"].items()) or "none",
        "asked": f"{asked['kind'] or 'the cheapest kind'} that finds {asked['recall']:.1%} of {asked['neighbours']} neighbours",
        "bytes": ", ".join(f"{name} {size:,}" for name, size in told["bytes"].items()),
    }
    out = [f"{name:<12}{value}" for name, value in lines.items()]
    for one in told["segments"]:
        settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items())
        out.append(
            f"segment {one['name']}: {one['rows']:,} rows, {one['kind']}{f' ({settings})' if settings else ''}, "
            f"recall {one['recall']:.1%}, {one['queries_per_second']:,.0f} queries/s"
        )
    for event in told["generations"][-10:]:
        out.append(f"generation {event['generation']}: {event['what']} {event['rows']:,} rows, {event['when']}")
    if told["damage"]:
        out += ["damaged:", *(f"  {one}" for one in told["damage"])]
    else:
        out.append("every checksum is right")
    return "\n".join(out)
