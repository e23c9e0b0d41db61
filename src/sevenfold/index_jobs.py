"""Index folders filled and asked by models: rows or images go in, and rows of neighbours come out."""

import hashlib
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sevenfold import (
    bundles,
    files,
    formats,
    index_folders,
    jobs,
    manifests,
    neighbours_page,
    operations,
    places,
    sources,
)
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import ImageSchema
from sevenfold.formats import FormatError, Rows
from sevenfold.index_folders import Found, Maker, Manifest, Reader
from sevenfold.registry import versions
from sevenfold.registry.receipts import Receipt
from sevenfold.registry.versions import Version
from sevenfold.sinks import parts_of
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow

AT_A_TIME = 4096
"""Queries that are asked together."""


@dataclass(frozen=True)
class Answer:
    """What some queries found.

    rows: the queries as they were read: what is known of each, and images where they are some.
    first: the number of the first of them.
    columns: names and types of what is carried.
    span: the lowest and highest value that pixels have by the model's schema; None where no model was asked, or no image.
    """

    rows: Rows
    found: Found
    first: int
    columns: "pyarrow.Schema"
    span: tuple[float, float] | None = None

    @property
    def table(self) -> pd.DataFrame:
        """A row for each neighbour, as `Found.table`; queries are counted over all, and image files have their `asked` path."""
        table = self.found.table
        names = self.rows.frame.get("path")
        if names is not None:
            table.insert(1, "asked", names.to_numpy()[table["query"]])
        return table.assign(query=table["query"] + self.first)


@dataclass(frozen=True)
class Added:
    """What came of adding to a folder.

    manifest: of the folder now. receipt: of the job that made the vectors.
    aside: the file of rows that did not fit; None where all did.
    """

    manifest: Manifest
    receipt: Receipt
    aside: Path | None


def add(
    workspace: Workspace,
    folder: Path,
    source: str | Path,
    *,
    model: str | None = None,
    settings: jobs.Settings | None = None,
    on_progress: Callable[[jobs.Progress], None] = lambda progress: None,
) -> Added:
    """Add rows or images to an index folder. All of them are in it afterwards, or none. The job is recorded in the store.

    Args:
        model: where the model lies that made the folder, if it is not the version that the folder names any more.
        settings: as for the job that built the folder; `id` among its options names the column of ids.

    Raises:
        ValueError: the model is another one, an id is there already, or columns differ from those of the folder.
        RuntimeError: another process adds to the folder, or writes to it just now.
        DataError, FormatError, JobError: as a job's.
    """
    manifest = Manifest.read(folder)
    bundle, maker, version = _maker(workspace, manifest, model)
    folder = folder.resolve()
    room = adding(folder)
    # One at a time from the first row to the last: all make their vectors in one place.
    with index_folders.locked(room.with_name(f"{room.name}.lock"), folder, fleeting=True):
        return _added(workspace, folder, source, bundle, maker, version, settings or jobs.Settings(), on_progress)


def _added(
    workspace: Workspace,
    folder: Path,
    source: str | Path,
    bundle: Bundle,
    maker: Maker,
    version: Version | None,
    settings: jobs.Settings,
    on_progress: Callable[[jobs.Progress], None],
) -> Added:
    room = adding(folder)
    # Written before the folder changes, with a key that its change has, too: who comes after a kill knows whether it did.
    note = room.with_name(f"{room.name}.json")
    # Vectors as rows: a job that goes on where it was, and whose output is gone once the folder has it.
    taken = replace(settings, options={**settings.options, "vectors": True})
    receipt = jobs.apply(bundle, maker.label, maker.digest, "index", source, room, taken, on_progress=on_progress)
    told = files.parse_json(note) if note.is_file() else {}
    manifest = Manifest.read(folder)
    if told.get("input") != receipt.input_digest or not manifest.holds(told["key"]):
        told = {"input": receipt.input_digest, "key": uuid.uuid4().hex}
        files.write_json(note, told)
        paths = sorted(room.glob("*.parquet"))
        identifier = settings.options.get("id") or _identifier(folder, manifest, formats.parquet_schema(paths[0]).names)
        try:
            origin = None if places.is_url(str(source)) else str(sources.root(source).absolute())
            index_folders.add(folder, parts_of(paths, identifier), maker=maker, key=told["key"], origin=origin)
        except (ValueError, LookupError):  # these rows will never do
            jobs.remove(room)
            note.unlink()
            raise
    manifest = Manifest.read(folder)
    aside = None
    if jobs.quarantine_path(room).is_file():
        (generation,) = [event.generation for event in manifest.events if event.key == told["key"]]
        # One for each time that rows came: those of the others are nowhere else.
        aside = jobs.quarantine_path(folder.with_name(f"{folder.name}.add-{generation:06d}"))
        jobs.quarantine_path(room).rename(aside)
    receipt = replace(receipt, output=str(folder), output_digest=manifest.digest)
    receipt = replace(receipt, run_id=jobs.recorded(workspace, receipt, version))
    jobs.remove(room)
    note.unlink()
    return Added(manifest, receipt, aside)


def adding(folder: Path) -> Path:
    """Return where the vectors are that are being made for a folder."""
    folder = folder.resolve()
    return folder.with_name(f".adding-{hashlib.sha256(folder.name.encode()).hexdigest()[:8]}")


def search(
    workspace: Workspace,
    folder: Path,
    query: str | Path,
    *,
    k: int,
    where: Sequence[str] = (),
    vectors: bool = False,
    model: str | None = None,
    limit: int | None = None,
    separator: str | None = None,
) -> Iterator[Answer]:
    """Find the k nearest of each query, some queries at a time.

    Args:
        query: rows or images of any format that jobs read, which the model of the folder turns into vectors.
        where: conditions on carried columns, see `conditions`.
        vectors: the query holds vectors themselves, as an array or in columns of numbers; no model is asked.
        model: as of `add`.
        limit: of the queries, only the first.
        separator: of queries in CSV files, as of a job's.

    Raises:
        ValueError: the model is another one, or the vectors have another size, or the limit is none.
        DataError, FormatError: the query cannot be read, or does not fit the model.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected 1 or more")
    bundle = None if vectors else _maker(workspace, Manifest.read(folder), model)[0]
    with jobs.few_threads(None), tempfile.TemporaryDirectory() as room:
        reader = Reader(folder)
        schema = None if bundle is None else bundle.schema
        span = (schema.low, schema.high) if isinstance(schema, ImageSchema) else None
        first = 0
        found = sources.open_source(query, room=Path(room), separator=separator).limited(limit)
        if found.kind == "containers":
            raise FormatError(
                f"{query} holds compressed images; expected images, rows or vectors; `decompress` it first"
            )
        for part in found.partitions(AT_A_TIME):
            for rows in part.batches(AT_A_TIME):
                asked = _given(rows, str(query)) if bundle is None else _made(bundle, rows)
                yield Answer(rows, reader.search(asked, k, where=where), first, reader.manifest.form.columns, span)
                first += len(rows)


def _maker(workspace: Workspace, manifest: Manifest, model: str | None) -> tuple[Bundle, Maker, Version | None]:
    """Return the model that made a folder, and its version in the registry, if it has one.

    Raises:
        ValueError: what is found under its name is another one. LookupError: there is none.
    """
    maker = manifest.maker
    found = versions.resolve(workspace, model or maker.label)
    if found.digest != maker.digest:
        raise ValueError(
            f"{found.label} has digest {found.digest[:12]}; the folder was made by {maker.label}, {maker.digest[:12]}; name that "
            "one by `--model`, or build the folder anew"
        )
    return operations.accepting(bundles.load(found.folder, expected=found.digest)), maker, found.version


def _identifier(folder: Path, manifest: Manifest, columns: Sequence[str]) -> str | None:
    """Return the column of ids, as when the folder was built; None where rows are counted."""
    if manifest.form.ids == "positions":
        return None
    try:
        given = files.parse_json(manifests.path(folder))["job"]["options"].get("id")
    except (OSError, KeyError, ValueError):
        given = None  # the folder was moved alone
    name = given or "path"
    if name not in columns:
        raise ValueError(
            f"ids of {folder} are {manifest.form.ids}; expected a column of such; name it by `--id COLUMN`"
        )
    return str(name)


def _made(bundle: Bundle, rows: Rows) -> np.ndarray:
    frame = jobs.padded(operations.get("index", bundle), bundle, rows).frame
    return np.ascontiguousarray(frame.to_numpy(np.float32))


def _given(rows: Rows, subject: str) -> np.ndarray:
    """Return the vectors that rows are."""
    frame = rows.frame
    if rows.text:  # as of a CSV file
        parsed = {name: pd.to_numeric(values, errors="coerce") for name, values in frame.items()}
        frame = pd.DataFrame({name: values for name, values in parsed.items() if values.notna().all()})
    numbers = frame.select_dtypes("number")
    if rows.images is not None or not len(numbers.columns):
        raise FormatError(f"{subject} holds no vectors; expected columns of numbers, or an array (n, dimensions)")
    if own := [c for c in numbers.columns if re.fullmatch(r"vector_\d+", str(c))]:
        numbers = numbers[own]  # beside ids and the like
    return numbers.to_numpy(np.float32)


def texts(frame: pd.DataFrame) -> list[list[str]]:
    """Return a table's cells as text for a terminal, its header first."""
    shown = frame.copy()
    for name in shown.columns:
        if pd.api.types.is_float_dtype(shown[name]):
            shown[name] = [f"{value:.6g}" for value in shown[name]]
    return [[str(c) for c in shown.columns], *shown.astype(str).to_numpy().tolist()]


def page(
    answers: Iterable[Answer],
    folder: Path,
    output: Path,
    *,
    images: Path | None = None,
    label: str | None = None,
    most: int = 50,
) -> Path:
    """Write a page that shows the first queries and what they found, and return its path.

    Args:
        answers: of which so many are taken as are shown.
        images: the folder that the paths of the index begin from; None for those that it was built of and added to from.
        label: the carried column that stands below each neighbour.
        most: queries that it shows.

    Raises:
        ValueError: the queries are no images, or the index carries no paths of any.
    """
    roots = _roots(folder) if images is None else [images]
    parts: list[Found] = []
    queries: list[np.ndarray | str] = []
    drawn: list[np.ndarray | str] = []
    names: list[str] = []
    for answer in answers:
        if answer.rows.images is None or "path" not in answer.found.carried:
            what = "the index carries no `path`" if answer.rows.images is not None else "the queries are no images"
            raise ValueError(f"{what}; expected images in files on both sides; use `--output` for a table")
        count, k = answer.found.ids.shape
        more = min(count, most - len(queries))
        part = Found(answer.found.ids[:more], answer.found.distances[:more], answer.found.carried.iloc[: more * k])
        parts.append(part)
        queries += [_lit(image, answer.span) for image in answer.rows.images[:more]]
        found_at = [next((r / n for r in roots if (r / n).is_file()), roots[0] / n) for n in part.carried["path"]]
        drawn += [_lit(neighbours_page.picture(path), answer.span) for path in found_at]
        known = answer.rows.frame.get("path", pd.Series(range(answer.first, answer.first + count)))
        names.extend(known.astype(str)[:more])
        if len(queries) == most:
            break
    found = Found(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.distances for part in parts]),
        pd.concat([part.carried for part in parts], ignore_index=True),
    )
    html = neighbours_page.page(
        found,
        queries,
        [drawn[i * k : (i + 1) * k] for i in range(len(queries))],
        title=f"Nearest images in {folder.name}",
        about=[index_folders.describe(index_folders.inspect(folder)).splitlines()[0]],
        names=names,
        label=label,
    )
    files.write_text(output, html)
    return output


def _lit(image: np.ndarray | str, span: tuple[float, float] | None) -> np.ndarray | str:
    """Return an image with values from 0 to 1 by the range that they have, which need not be that of their type."""
    if isinstance(image, str) or span is None:
        return image
    lit: np.ndarray = np.clip((image.astype(np.float32) - span[0]) / (span[1] - span[0]), 0, 1)
    return lit


def _roots(folder: Path) -> list[Path]:
    """Return where paths of an index may begin: where it was added to from, the last first, and where it was built of."""
    added = [Path(event.origin) for event in reversed(Manifest.read(folder).events) if event.origin is not None]
    try:
        built = sources.root(files.parse_json(jobs.receipt_path(folder))["input"])
    except (OSError, KeyError, ValueError):
        built = Path()  # the folder was moved alone
    return [*added, built]


def written(answers: Iterator[Answer], output: Path) -> int:
    """Write all neighbours to one Parquet or CSV file, whole or not at all; return how many queries there were.

    Raises:
        ValueError: the output is an address.
    """
    if places.is_url(str(output).replace(":/", "://", 1)):  # as a path has it
        raise ValueError(f"the output is {output}; expected a file on this machine; copy it from there")
    count, writer = 0, None
    with files.whole(output) as draft:
        for answer in answers:
            # The first neighbours may lack what later ones have.
            writer = writer or formats.Writer(draft, {field.name: field.type for field in answer.columns})
            writer.write(Rows(answer.table))
            count += len(answer.rows)
        if writer is not None:
            writer.close()
    return count
