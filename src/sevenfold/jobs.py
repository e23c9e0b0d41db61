"""Batch jobs: rows in, rows out, and a receipt. The output appears whole or not at all, and what was done is never lost.

The way of a row: `sources` finds it, its partition is worked on by a thread (`work`), `operations` makes of it what was
asked for, a `sinks.Sink` writes it, and `manifests` says that its partition is done. At the end the partitions become the
output, and the receipt is written last.
"""

import functools
import hashlib
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from sevenfold import (
    __version__,
    archives,
    bundles,
    drift,
    files,
    formats,
    index_folders,
    manifests,
    operations,
    outputs,
    placement,
    places,
    processors,
    sources,
)
from sevenfold.bundles import Bundle
from sevenfold.containers import Damage
from sevenfold.datasets.base import DataError
from sevenfold.formats import FormatError, Rows
from sevenfold.index_folders import Maker
from sevenfold.manifests import Entry, Journal, ResumeError
from sevenfold.registry import receipts, tracking, versions
from sevenfold.registry.receipts import Receipt
from sevenfold.registry.versions import Version
from sevenfold.sinks import Csv, IndexFolder, OneTable, Sink
from sevenfold.sources import Partition, Source
from sevenfold.workspace import Workspace

PARTITION_ROWS: Mapping[str, int] = {"encode": 1 << 18}
"""Rows of a partition; of operations that take longer for a row, fewer."""

SLOW_PARTITION_ROWS = 1 << 16

FIRST_ROWS = 10_000
"""Rows that are looked at before the first one is worked on."""

BATCH_SIZES = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
"""Rows at a time that are tried on the first rows."""

MEASURED_FROM = 1 << 20
"""Rows from which on it is worth while to measure which batch size is fastest, on as many rows as all sizes together have."""

ZIPPED = 4
"""Times that a zipped CSV file is about as large when it is read."""

LONGEST_BATCH = 0.5
"""Seconds that a batch may take, so that a job can be seen to go on, and stops soon when it is told to."""

MOST_VALUES = 1 << 22
"""Values of a batch: 16 MB of single precision. The system clears memory before it gives it, which larger ones do not repay."""

BLOCK = 64
"""Rows are worked on in multiples of so many, the last ones filled up: a product of few rows takes another way through the
processor than one of many, and ends with other last digits."""

MOST_PROBLEMS = 50
"""Problems that one error lists; a table of millions of rows may have one in each batch."""


class JobError(RuntimeError):
    """A job ended early. What is done stays, and the same command goes on there."""


@dataclass(frozen=True)
class Settings:
    """How a job runs. None of it changes a value of the output, but for `options`.

    columns: of the input, which go along beside what is made; None for all that the model does not use.
    batch_size: rows at a time; None to measure which is fastest.
    workers: partitions at a time; None for one per processor.
    device: "cpu", "cuda", "cuda:1", ...; "auto" for a GPU where there is one.
    engine: "local" for threads of this process, "ray" for a Ray cluster.
    begun: what to do about an earlier run of the same job that ended early: "continue" with it where there is one,
        "resume" to insist on one, "restart" to begin anew.
    limit: rows of the input, from its first; None for all.
    on_bad_rows: "fail" for an error that lists them, "quarantine" to write them to a file of their own.
    max_drift: the largest population stability index with which the job still starts; None only to tell.
    partition_rows: rows of a partition; None for a default. Files of images are divided by their pixels.
    separator: of CSV files, as of a data set; None to find it from the header of each.
    options: of the operation, by name; see `operations.OPTIONS`.
    """

    columns: tuple[str, ...] | None = None
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    engine: Literal["local", "ray"] = "local"
    begun: Literal["continue", "resume", "restart"] = "continue"
    limit: int | None = None
    on_bad_rows: Literal["fail", "quarantine"] = "fail"
    max_drift: float | None = None
    partition_rows: int | None = None
    separator: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {n: getattr(self, n) for n in ("batch_size", "workers", "limit", "partition_rows")}
        found = [f"{n} is {v}; expected 1 or more" for n, v in numbers.items() if v is not None and v < 1]
        if self.max_drift is not None and not self.max_drift >= 0:
            found.append(f"max_drift is {self.max_drift}; expected 0 or more, such as 0.25")
        if self.engine == "ray" and self.device not in ("auto", "cpu"):
            found.append(
                f"device is {self.device!r} with engine 'ray', whose workers compute on processors; expected cpu"
            )
        choices = {"engine": ("local", "ray"), "begun": ("continue", "resume", "restart")}
        choices["on_bad_rows"] = ("fail", "quarantine")
        for name, known in choices.items():
            if getattr(self, name) not in known:
                found.append(f"{name} is {getattr(self, name)!r}; expected {' or '.join(known)}")
        if found:
            raise ValueError("; ".join(found))


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    rows: done, those of an earlier run counted. total: of all; None where nobody knows. before: done by an earlier run.
    """

    rows: int
    total: int | None
    before: int


@dataclass(frozen=True)
class Task:
    """All that a worker needs beside the bundle and a partition."""

    operation: str
    columns: tuple[str, ...] | None
    batch_size: int
    quarantine: bool
    sink: Sink
    aside: OneTable | None
    parts: Path
    options: Mapping[str, Any]
    listed: bool = False

    def made(self, bundle: Bundle, rows: Rows, subject: str) -> Rows:
        """Return what the operation makes of the rows, with the columns that go along in front.

        Raises:
            DataError: rows do not fit the schema, or two columns have one name.
        """
        if self.operation == "compress":  # which its sink does, by chunks of its own
            bundle.schema.require(rows, subject)
            return rows
        written = self.operation == "impute" and rows.text and isinstance(self.sink, Csv)
        return _made(bundle, self.operation, rows, self.columns, subject, listed=self.listed, written=written)


def receipt_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.receipt.json")


def quarantine_path(output: Path) -> Path:
    suffix = ".csv" if output.suffix == ".csv" else ".parquet"
    return output.with_name(f"{output.name}.quarantine{suffix}")


def aside_name(number: int) -> str:
    """Return the name of the file of a partition's rows that were put aside."""
    return f"aside-{number:05d}.parquet"


def remove(output: Path) -> None:
    """Remove an output with all that lies beside it."""
    shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    for path in (receipt_path(output), manifests.path(output), quarantine_path(output)):
        path.unlink(missing_ok=True)


def run(
    workspace: Workspace,
    *,
    operation: str,
    model: str,
    source: str | Path,
    destination: Path | str,
    settings: Settings | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Receipt:
    """Run one operation of a registered model, or of a bundle's folder, over files.

    The version is resolved once, at the start: a promotion meanwhile does not mix two models in one output, nor does one
    between a run that was interrupted and the one that goes on with it. The job is recorded in the tracking store when
    its output is whole. If the store cannot be reached then, output and receipt stay all the same, a warning is logged,
    and the receipt's run_id is None.

    Args:
        model: `NAME` (its champion), `NAME@ALIAS`, `NAME/VERSION` or a bundle's folder.
        source, destination: see `apply`.
    """
    settings = settings or Settings()
    begun = manifests.begun(*placed(destination)) if settings.begun != "restart" else None
    pinned = str(begun["model"]) if begun and begun["asked"] == model else model
    found = versions.resolve(workspace, pinned)
    bundle = bundles.load(found.folder, expected=found.digest)

    return apply(
        bundle,
        found.label,
        found.digest,
        operation,
        source,
        destination,
        settings,
        on_progress=on_progress,
        record=lambda receipt: recorded(workspace, receipt, found.version),
        asked=model,
    )


def recorded(workspace: Workspace, receipt: Receipt, version: Version | None) -> str | None:
    """Record a job in the tracking store, and return the id of its run; None, and a warning, where that cannot be done."""
    try:
        return receipts.record(workspace, receipt, version)
    except Exception as error:  # whatever a store may say: hours of work do not hang on it
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        logging.getLogger(__name__).warning(
            f"warning: the job was not recorded in the tracking store ({first}); output and receipt are whole"
        )
        return None


def apply(
    bundle: Bundle,
    label: str,
    digest: str,
    operation: str,
    source: str | Path,
    destination: Path | str,
    settings: Settings | None = None,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    record: Callable[[Receipt], str | None] = lambda receipt: None,
    asked: str | None = None,
) -> Receipt:
    """Run one operation of a bundle over files. Rows keep their order, and columns that the model does not use stay.

    Args:
        source: a file, a folder of files, or a pattern; see `sources.open_source`.
        destination: see `outputs.sink`. Text may be an address, such as `s3://bucket/codes`: see `places`.
        record: called when the output is whole and before the receipt is written; returns the id of the job's run.
        asked: what the user called the model.

    Raises:
        FileNotFoundError, FormatError: the input cannot be read or has no rows, or the output's kind is unknown.
        ValueError: there is no such operation or option, the bundle is for another operation, the output would replace
            the input, or what was begun was another job (ResumeError).
        DataError: rows do not fit the model's schema; the message lists the problems of all partitions.
        DriftError: the first rows are too far from those of the training.
        JobError: something went wrong in the middle; what is done stays.
        BlockingIOError: another job writes this output.
        OSError: the output cannot be written.
    """
    start, started = time.perf_counter(), datetime.now(UTC)
    settings = settings or Settings()
    engine = _engine(settings.engine)
    bundle = operations.configured(operations.accepting(bundle), operation, settings.options)
    # A cluster's machines need not have what this one has.
    device = placement.chosen("cpu" if settings.engine == "ray" else settings.device, operation)
    if device.type != "cpu":
        bundle = replace(bundle, model=placement.placed(bundle.model, device))
    destination, elsewhere = placed(destination)
    outputs.check(source, destination, operation)
    # What no job has made is no output of an earlier one, but the user's own: it is not to be left out in silence.
    besides: list[Path | str] = [destination] if destination.is_dir() or outputs.is_ours(destination) else []
    besides += [manifests.workplace(destination), quarantine_path(destination)]
    if elsewhere is not None:
        if operation == "index":
            raise ValueError(
                f"{elsewhere.url}: an index is searched on the disk where it lies; expected a folder of this machine; "
                "build it here, and copy it"
            )
        elsewhere.check(source, manifests.path(destination))
        besides += [elsewhere.url] if not destination.suffix or elsewhere.is_ours(manifests.path(destination)) else []
        besides += [elsewhere.beside(quarantine_path(destination))]
    _require_no_more(destination, elsewhere)
    address = str(destination.absolute()) if elsewhere is None else elsewhere.url
    found = sources.open_source(
        source, besides=besides, room=manifests.inputs(destination), separator=settings.separator
    )
    here = str(destination.resolve()) if elsewhere is None else elsewhere.url
    if here in found.locations():
        raise ValueError(
            f"the output {address} is one of the files of the input {source}; give the output another name"
        )
    found = found.limited(settings.limit)
    if (found.kind == "containers") != (operation == "decompress"):
        wanted = ".7f files, as `compress` makes them" if operation == "decompress" else "what is to be worked on"
        raise formats.FormatError(f"{source} holds {found.kind}; expected {wanted}; name another input")
    rows = settings.partition_rows or PARTITION_ROWS.get(operation, SLOW_PARTITION_ROWS)
    with few_threads(settings.workers) as workers, manifests.journal(destination, elsewhere) as journal:
        job = {
            "asked": asked or label,
            "model": label,
            "digest": digest,
            "operation": operation,
            "options": dict(settings.options),
            "columns": None if settings.columns is None else list(settings.columns),
            "device": str(device),
            "limit": settings.limit,
            "on_bad_rows": settings.on_bad_rows,
            "partition_rows": rows,
            "plan": sources.PLAN,
            "separator": settings.separator,
            "delimiter": found.delimiter,
            "input": found.address,
            "output": address,
            "names": hashlib.sha256("\n".join(f.name for f in found.files).encode()).hexdigest(),
            "files": files.digest_of((f.name, f"{f.size} {f.modified}") for f in found.files),
            "sevenfold": __version__,
        }
        going_on = _goes_on(journal, job, found, settings.begun)
        # Rows may have come to an index that is there already, which stays.
        if journal.known is not None and not (going_on and operation == "index"):
            outputs.require_known(destination, journal.known)
        plan = _planned(bundle, operation, found, destination, settings, rows, journal.parts, Maker(label, digest))
        if not going_on:
            journal.begin(job)
            journal.know(outputs.names(destination))
        before = sum(e.rows + e.quarantined for e in journal.entries.values())
        begun_with = len(journal.entries)
        _work(bundle, plan.task, found, rows, journal, workers, engine, on_progress)
        _finish(plan.task, found, journal, destination, going_on=going_on)
        made = len(outputs.names(destination)) if destination.is_dir() else 1
        if elsewhere is not None:
            elsewhere.publish([quarantine_path(destination), manifests.path(destination)], receipt_path(destination))
        entries = [journal.entries[number] for number in sorted(journal.entries)]
        receipt = Receipt(
            operation=operation,
            model=label,
            digest=digest,
            rows=sum(e.rows for e in entries),
            columns=tuple(plan.columns),
            input=found.address,
            input_digest=found.digest_of(journal.digests),
            output=address,
            output_digest=plan.task.sink.digest(destination, {e.file: e.digest for e in entries}),
            seconds=round(time.perf_counter() - start, 3),
            started=_milliseconds(started),
            ended=_milliseconds(datetime.now(UTC)),
            user=tracking.user(),
            sevenfold=__version__,
            details={
                "partitions": len(entries),
                "partitions_before": begun_with,
                "rows_before": before,
                "quarantined": sum(e.quarantined for e in entries),
                "batch_size": plan.task.batch_size,
                "workers": workers,
                "engine": settings.engine,
                "device": str(device),
                "options": dict(settings.options),
                "limit": settings.limit,
                "separator": settings.separator,
                "files": made,
                "drift": plan.drift,
                "numbers": _summed([entry.numbers for entry in entries]),
            },
        )
        receipt = replace(receipt, run_id=record(receipt))
        files.write_json(receipt_path(destination), receipt.to_json(), journal.folder)
        if elsewhere is not None:
            elsewhere.seal(receipt_path(destination))
        journal.end()
    return receipt


def _require_no_more(destination: Path, elsewhere: places.Output | None) -> None:
    """See that the folder of an earlier job, which this one is to replace, holds no more files than that made.

    Raises:
        FileExistsError: it holds more.
    """
    receipt, there = receipt_path(destination), None
    if elsewhere is not None:
        there = None if elsewhere.begun() else elsewhere.held(receipt)
    elif destination.is_dir() and receipt.is_file() and not outputs.under_way(destination):
        there = receipt.read_bytes(), outputs.names(destination)
    if there is not None:
        outputs.require_no_more(
            str(destination) if elsewhere is None else elsewhere.url, *there, by_age=elsewhere is None
        )


def _summed(numbers: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for one in numbers for name in one)
    return {name: sum(one.get(name, 0) for one in numbers) for name in names}


def placed(destination: Path | str) -> tuple[Path, places.Output | None]:
    """Return where an output is made on this machine, and, if it is to be elsewhere, what puts it there."""
    known = places.parsed(destination) if isinstance(destination, str) else destination
    if isinstance(known, Path):
        return known, None
    elsewhere = places.Output(known)
    return elsewhere.path, elsewhere


def _milliseconds(moment: datetime) -> datetime:
    """Return the moment as a receipt's JSON says it."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


@contextmanager
def few_threads(workers: int | None) -> Iterator[int]:
    """Give the number of workers, of which each has one thread: so no result depends on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield workers or processors.count()
    finally:
        torch.set_num_threads(before)


def _goes_on(journal: Journal, job: Mapping[str, Any], source: Source, begun: str) -> bool:
    """Say whether the job goes on with what an earlier run has done.

    Raises:
        ResumeError: that was another job, or there is none though one was asked for.
    """
    if begun == "restart" or not journal.begun:
        if begun == "resume":
            raise ResumeError(
                f"there is nothing to go on with: no job for {job['output']} ended early; leave out `--resume`"
            )
        return False
    assert journal.job is not None
    apart: dict[str, Any] = {"files": ""}
    if job["on_bad_rows"] == "quarantine":
        apart["on_bad_rows"] = ""  # partitions that are done without it had no bad rows
    differ = manifests.differences(journal.job | apart, {**job, **apart})
    if not differ and journal.job["files"] != job["files"]:
        # Written to or copied since: what counts is whether they are still the same.
        known = [file for file in source.files if file.name in journal.digests]
        if len(known) < len(source.files) or any(file.digest() != journal.digests[file.name] for file in known):
            differ = ["the input has changed since, or nobody can say that it has not"]
    if differ:
        raise ResumeError(
            f"a job for {job['output']} ended early, and this is another one: {'; '.join(differ)}; give that one's "
            "arguments to go on with it, or `--restart` to throw away what it did"
        )
    journal.verify()
    return True


@dataclass(frozen=True)
class _Plan:
    """What is known before the first row is worked on."""

    task: Task
    columns: Sequence[str]
    drift: Mapping[str, Any] | None


def _planned(
    bundle: Bundle,
    operation: str,
    source: Source,
    destination: Path,
    settings: Settings,
    rows: int,
    parts: Path,
    maker: Maker,
) -> _Plan:
    """Look at the headers of all files and at the first rows."""
    if source.kind == "containers":
        with ExitStack() as stack:
            wrong = archives.wrong(bundle, [stack.enter_context(file.beginning()) for file in source.files])
        if wrong:
            raise DataError(source.given, wrong[:MOST_PROBLEMS])
        image = Rows(pd.DataFrame(index=[0]), np.zeros((1, 1, 1)))
        sink = outputs.sink(destination, bundle, operation, source, image, None, {}, maker)
        aside = outputs.aside_of_containers() if settings.on_bad_rows == "quarantine" else None
        return _Plan(Task(operation, None, 1, aside is not None, sink, aside, parts, settings.options), ["path"], None)
    # An image of another size than all others is a bad row.
    images_apart = source.kind == "images" and settings.on_bad_rows == "quarantine"
    problems = [] if images_apart else _header_problems(bundle, source, settings.columns)
    wanted = operations.wanted(bundle, source.fields, settings.columns)
    quarantine = settings.on_bad_rows == "quarantine" and not problems
    first = None if problems else _first_rows(bundle, source, rows, wanted, quarantine=quarantine)
    if first is None:
        _raise_all_problems(bundle, source, rows, problems)
    assert first is not None
    listed = operation == "encode" and bool(settings.options.get("list"))
    some = first.take(np.arange(min(len(first), BLOCK)))
    # What compresses is the sink, by chunks of its own.
    prototype = (
        some
        if operation == "compress"
        else _made(bundle, operation, some, settings.columns, source.given, listed=listed)
    )
    sink = outputs.sink(destination, bundle, operation, source, prototype, settings.columns, settings.options, maker)
    batch_size = settings.batch_size
    if batch_size is None:
        measured = operation not in ("compress", "denoise")
        batch_size = _fastest(bundle, operation, first, source, settings.columns) if measured else BATCH_SIZES[0]
    aside = outputs.aside(first, source) if settings.on_bad_rows == "quarantine" else None
    task = Task(
        operation, settings.columns, batch_size, aside is not None, sink, aside, parts, settings.options, listed
    )
    return _Plan(task, [str(c) for c in prototype.frame.columns], _drift(bundle, first, settings.max_drift))


def _header_problems(bundle: Bundle, source: Source, columns: Sequence[str] | None) -> list[str]:
    found: dict[str, None] = {}
    for file, head in source.heads():
        told = bundle.schema.problems(head)
        if told and source.text:
            count = len(head.frame.columns)
            told.append(
                f"its header has {count} column{'s' * (count > 1)}, with {source.delimiter!r} between them; where another "
                "character is meant, name it by `--separator`"
            )
        missing = [c for c in columns or () if c not in head.frame]
        if missing:
            told.append(
                f"column{'s' * (len(missing) > 1)} {formats.shown(missing)} of `columns` not there; expected some of "
                f"{formats.shown([str(c) for c in head.frame])}"
            )
        found |= dict.fromkeys(f"{file.name}: {problem}" if len(source.files) > 1 else problem for problem in told)
    return [*found]


def _first_rows(
    bundle: Bundle, source: Source, rows: int, columns: Sequence[str] | None, *, quarantine: bool
) -> Rows | None:
    """Return some of the first rows that can be worked on; None where there are bad ones and these are not put aside.

    Small files may have few rows each; of image files those of one partition are enough, for they take time to decode.
    """
    good: list[Rows] = []
    for part in source.partitions(rows, columns):
        for batch in part.batches(1 << 12):
            if bundle.schema.problems(batch):
                if not quarantine:
                    # Those of the first partition stop the job before it begins, others when their turn comes.
                    return formats.joined(good) if part.number and good else None
                batch = batch.take(np.flatnonzero([not fault for fault in bundle.schema.faults(batch)]))
            if len(batch) and (not good or _alike(good[0], batch)):
                good.append(batch)
            if sum(map(len, good)) >= FIRST_ROWS:
                return formats.joined(good)
        if good and part.kind == "images":
            break
    if good:
        return formats.joined(good)
    raise DataError(source.given, ["no row fits the model; nothing is left to work on; look at the first ones"])


def _drift(bundle: Bundle, first: Rows, most: float | None) -> dict[str, Any] | None:
    """Return how far the first rows are from those of the training; None where nobody knows these any more.

    Raises:
        DriftError: they are farther than `most`. ValueError: that cannot be told.
    """
    x, observed = bundle.schema.transform(first)
    if bundle.reference is None or x.shape[1:] != bundle.schema.shape:
        if most is not None:
            why = "of another size" if bundle.reference else "made by a model that does not know its training rows"
            raise ValueError(
                f"max_drift is {most:g}, and nobody can tell how far images {why} are from them; leave it out, or train again"
            )
        return None
    found = drift.compare(bundle.reference, bundle.model, bundle.schema, x, observed)
    if most is not None:
        drift.require(found, most)
    return found.to_json() | {"sentence": found.sentence()}


def _alike(first: Rows, other: Rows) -> bool:
    """Say whether images of both can lie in one array."""
    if first.images is None or other.images is None:
        return first.images is other.images
    return first.images.shape[1:] == other.images.shape[1:] and first.images.dtype == other.images.dtype


def _raise_all_problems(bundle: Bundle, source: Source, rows: int, found: Sequence[str]) -> None:
    """Raise a DataError that tells these problems and those of all rows."""
    problems = dict.fromkeys(found)
    # Heads tell what is wrong with images, and to decode them takes long.
    for part in source.partitions(rows) if source.kind != "images" or not found else ():
        named = _place(part, source)
        problems |= dict.fromkeys(named + problem for problem in _problems(bundle, part, BATCH_SIZES[-1]))
    _refuse(source, [*problems])


def _place(part: Partition, source: Source) -> str:
    """Return what problems of a partition begin with: its file, where there are several; those of images say it."""
    return f"{part.files[0].name}: " if len(source.files) > 1 and part.kind != "images" else ""


def _refuse(source: Source, problems: Sequence[str], *more: str) -> None:
    listed = [*problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        listed.append(f"and {len(problems) - MOST_PROBLEMS} more such problems")
    raise DataError(source.given, [*listed, *more])


def _problems(bundle: Bundle, part: Partition, size: int) -> list[str]:
    """Return what is wrong with the rows of a partition, with their numbers in the file, or with images, by name."""
    problems: dict[str, None] = {}
    at = part.first
    for batch in part.batches(size):
        named = ""
        if part.kind == "images":
            first, *others = batch.frame["path"]
            named = f"{first}{' to ' + others[-1] if others else ''}: "
        shifted = Rows(batch.frame.set_axis(range(at, at + len(batch))), batch.images)
        problems |= dict.fromkeys(named + problem for problem in bundle.schema.problems(shifted))
        at += len(batch)
    return [*problems]


def _made(
    bundle: Bundle,
    operation: str,
    rows: Rows,
    columns: Sequence[str] | None,
    subject: str,
    *,
    listed: bool = False,
    written: bool = False,
) -> Rows:
    act = functools.partial(operations.impute, written=True) if written else operations.get(operation, bundle)
    # That looks to it itself, for images that may be large.
    made = act(bundle, rows) if operation == "denoise" else padded(act, bundle, rows)
    if listed:
        made = operations.listed(made)
    kept = operations.identifying(bundle, rows)
    if columns is not None:
        # Images are known by their paths.
        kept = kept[[c for c in kept.columns if c in columns or (c == "path" and rows.images is not None)]]
    if clash := [str(c) for c in kept.columns if c in made.frame.columns]:
        raise DataError(
            subject, [f"the output has columns of the names {', '.join(clash)}, too; rename those of the input"]
        )
    frame = pd.concat([kept.reset_index(drop=True), made.frame], axis=1)
    if operation == "impute":  # the user's own table comes back, in its own order
        own = [c for c in rows.frame.columns if c in frame.columns]
        frame = frame[[*own, *(c for c in frame.columns if c not in own)]]
    return Rows(frame, made.images)


def padded(act: operations.Operation, bundle: Bundle, rows: Rows) -> Rows:
    """Return what an operation makes of the rows; it gets them in a multiple of `BLOCK`, the last one several times."""
    lacking = -len(rows) % BLOCK
    if not lacking:
        return act(bundle, rows)
    filled = rows.take(np.append(np.arange(len(rows)), np.full(lacking, len(rows) - 1)))
    return act(bundle, filled).take(np.arange(len(rows)))


def _fastest(bundle: Bundle, operation: str, rows: Rows, source: Source, columns: Sequence[str] | None) -> int:
    """Return the number of rows at a time with which the first rows are done fastest, or of few a large one."""
    values = int(np.prod(bundle.schema.shape))
    sizes = [size for size in BATCH_SIZES if size * values <= MOST_VALUES] or [max(1, MOST_VALUES // values)]

    def seconds(size: int) -> float:
        some = rows.take(np.arange(size) % len(rows))
        begin = time.perf_counter()
        _made(bundle, operation, some, columns, "")
        return time.perf_counter() - begin

    if _count(rows, source) < MEASURED_FROM:
        each = seconds(min(sizes[0], len(rows))) / min(sizes[0], len(rows))
        return max([size for size in sizes if each * size <= LONGEST_BATCH] or sizes[:1])
    best, least = sizes[0], float("inf")
    for size in sizes:
        took = seconds(size)
        # The first call warms up; and a larger batch has to be worth its memory.
        if took / size < 0.95 * least:
            best, least = size, took / size
        if took > LONGEST_BATCH:
            break
    return best


def _count(rows: Rows, source: Source) -> float:
    """Return about how many rows a source has, of which the first are given."""
    if source.total is not None:
        return source.total
    if len(rows) < FIRST_ROWS:
        return len(rows)
    some = rows.frame.iloc[:100]  # of text, as it stands in the file, with a separator behind each cell
    length = sum(int(column.str.len().sum()) + len(some) for _, column in some.items()) / len(some)
    size = sum(file.size * (ZIPPED if file.name.lower().endswith(".gz") else 1) for file in source.files)
    return min(size / length, source.limit or math.inf)


def work(bundle: Bundle, task: Task, part: Partition, on_rows: Callable[[int], None] = lambda rows: None) -> Entry:
    """Work on one partition: its rows become a file, whole or not at all.

    Raises:
        DataError: rows do not fit the schema and are not to be put aside.
    """
    keep_memory()
    name = f"part-{part.number:05d}{task.sink.suffix}"
    aside: list[pd.DataFrame] = []
    rows = 0

    def made() -> Iterator[Rows]:
        nonlocal rows
        at = part.first
        for batch in (
            _decompressed(bundle, task, part, aside) if part.kind == "containers" else part.batches(task.batch_size)
        ):
            batch = batch if part.kind == "containers" else _named(batch, task, part, at)
            good = batch
            if task.quarantine and part.kind != "containers" and bundle.schema.problems(batch):
                good = _put_aside(bundle, batch, part, at, aside)
            if len(good):
                yield good if part.kind == "containers" else task.made(bundle, good, part.files[0].name)
            at += len(batch)
            rows += len(good)
            on_rows(len(batch))

    with files.whole(task.parts / name) as draft:
        numbers = task.sink.write(draft, made(), bundle)
    if aside:
        assert task.aside is not None
        with files.whole(task.parts / aside_name(part.number)) as draft:
            task.aside.write(draft, [Rows(frame) for frame in aside])
    if changes := [change for file in part.files if (change := file.changed())]:
        raise places.ChangedError(changes)
    return Entry(
        number=part.number,
        source=part.files[0].name,
        first=part.first,
        rows=rows,
        quarantined=sum(map(len, aside)),
        file=name,
        digest=files.digest(task.parts / name),
        numbers=numbers,
    )


def keep_memory() -> None:
    """Have memory stay with the process when an array goes, for the next batch.

    The C library of Linux would give it back to the system, and have it cleared and take it anew for each batch, up to a fifth
    of a job's time. It keeps as much as the largest array that has gone until then, of 32 MB at most (mallopt(3),
    M_MMAP_THRESHOLD); so one goes here, in which nothing was written. Elsewhere nothing comes of it.
    """
    np.empty(31 << 20, np.uint8)


def _named(rows: Rows, task: Task, part: Partition, at: int) -> Rows:
    """Return the images of an array with their positions as names, where they become files or go into an archive."""
    if task.operation != "compress" or "path" in rows.frame:
        return rows
    folder = f"{PurePosixPath(part.files[0].name).with_suffix('')}/" if part.several else ""
    return Rows(rows.frame.assign(path=[f"{folder}{at + i:06d}.png" for i in range(len(rows))]), rows.images)


def _decompressed(bundle: Bundle, task: Task, part: Partition, aside: list[pd.DataFrame]) -> Iterator[Rows]:
    """Give the images of a container, and put aside what tells of those that are lost.

    Raises:
        DataError: images are lost, and are not to be put aside.
    """
    name = part.files[0].name
    with part.files[0].fetched() as path:
        for one in archives.reader(bundle).read(path):
            if not isinstance(one, Damage):
                yield Rows(one.frame.assign(path=_beside(part, one.frame["path"])), one.images)
            elif not task.quarantine:
                raise DataError(name, [f"{one}; `--on-bad-rows quarantine` gives the others"])
            else:
                last = one.first if one.last is None else one.last
                numbers = np.arange(one.first, last + 1)
                aside.append(pd.DataFrame({"_file": name, "_row": numbers, "_reason": one.reason}))


def _beside(part: Partition, names: pd.Series) -> list[str]:
    """Return the paths of a container's images: one of its own lies where its name says, those of several in a folder each."""
    folder = PurePosixPath(part.files[0].name)
    stem = folder.name.removesuffix(".7f")
    if len(names) == 1 and PurePosixPath(names.iloc[0]).name == stem:
        return [(folder.parent / stem).as_posix()]
    return [(folder.parent / stem / name).as_posix() for name in names] if part.several else [*names]


def _put_aside(bundle: Bundle, batch: Rows, part: Partition, at: int, aside: list[pd.DataFrame]) -> Rows:
    """Return the rows that fit, and keep the others with their place and the reason."""
    faults = pd.Series(bundle.schema.faults(batch), dtype="str")
    bad = faults.notna().to_numpy()
    told = batch.frame[bad].reset_index(drop=True)
    # Images are files of their own, and have no rows.
    rows = np.zeros(int(bad.sum()), np.int64) if part.kind == "images" else at + np.flatnonzero(bad)
    names = told["path"] if part.kind == "images" else part.files[0].name
    aside.append(told.assign(_file=names, _row=rows, _reason=faults[bad].to_numpy()))
    return batch.take(np.flatnonzero(~bad))


def _work(
    bundle: Bundle,
    task: Task,
    source: Source,
    rows: int,
    journal: Journal,
    workers: int,
    engine: "Engine",
    on_progress: Callable[[Progress], None],
) -> None:
    """Work on all partitions that are not done yet; the journal knows each as soon as it is."""
    before = done = sum(e.rows + e.quarantined for e in journal.entries.values())
    lock, stop = threading.Lock(), threading.Event()

    def tell(count: int) -> None:
        nonlocal done
        if stop.is_set():
            raise _StoppedError
        with lock:
            done += count
            on_progress(Progress(done, source.total, before))

    wanted = operations.wanted(bundle, source.fields, task.columns)
    todo = (part for part in _listed(source, rows, wanted, journal) if not _is_done(part, journal))
    hashing = threading.Thread(target=_hash, args=(source, journal, lock, stop), name="digests")
    problems: dict[str, None] = {}
    if not source.elsewhere:  # what is fetched tells its digest by itself
        hashing.start()
    try:
        for part, result in engine(bundle, task, todo, workers, tell, problems):
            if isinstance(result, Entry):
                aside = [task.parts / aside_name(result.number)] if result.quarantined else []
                journal.keep(task.parts / result.file, *aside)
                with lock:
                    journal.add(result)
            elif isinstance(result, DataError):
                # From here on rows are only looked at, so that the error tells of all bad ones at once.
                named = _place(part, source)
                problems |= dict.fromkeys(f"{named}{problem}" for problem in result.problems)
            elif isinstance(result, Exception):
                raise JobError(_told(part, result, len(journal.entries))) from result
    except BaseException:
        stop.set()
        raise
    finally:
        if not source.elsewhere:
            hashing.join()
    if source.elsewhere and not problems:
        _hash(source, journal, lock, stop)
    if problems:
        kept = len(journal.entries)
        said = (
            f"{kept} partitions without such rows are done and stay; put such rows aside by "
            "`--on-bad-rows quarantine`, or mend them and begin anew by `--restart`"
        )
        _refuse(source, [*problems], *([said] if kept else []))


def _is_done(part: Partition, journal: Journal) -> bool:
    """Say whether the journal has a partition.

    Raises:
        ResumeError: it has another one of that number.
    """
    done = journal.entries.get(part.number)
    if done is None:
        return False
    rows = 1 if part.kind == "containers" else done.rows + done.quarantined  # a container has more images than one
    if (done.source, done.first, rows) != (part.files[0].name, part.first, part.rows):
        raise ResumeError(
            f"{part} is not what an earlier run has done as number {done.number}, row {done.first} and on of {done.source}; "
            "give `--restart` to throw away what it did"
        )
    return True


def _listed(source: Source, rows: int, columns: Sequence[str] | None, journal: Journal) -> Iterator[Partition]:
    """Yield the partitions; those of a CSV file are read by that, and a line that is none may come late."""
    try:
        yield from source.partitions(rows, columns)
    except FormatError as error:
        if not journal.entries:
            raise
        stay = f"{len(journal.entries)} partitions before that are done"
        raise FormatError(
            f"{error}; {stay}, and nothing was written; mend the file and begin anew by `--restart`"
        ) from error


class _StoppedError(Exception):
    """Another partition has failed."""


Result = Entry | Exception | None
"""What came of a partition: None where its rows were only looked at, and are good."""


def attempt(
    bundle: Bundle, task: Task, part: Partition, on_rows: Callable[[int], None], *, only_look: bool = False
) -> Result:
    """Work on a partition, or only look at its rows; what goes wrong is returned, and a DataError tells of all its rows."""
    try:
        if not only_look:
            return work(bundle, task, part, on_rows)
        if part.kind == "containers":
            for _ in _decompressed(bundle, task, part, []):
                pass
            return None
        found = _problems(bundle, part, task.batch_size)
        return DataError(part.files[0].name, found) if found else None
    except DataError as error:
        if part.kind == "containers":
            return error
        return DataError(part.files[0].name, _problems(bundle, part, task.batch_size) or [*error.problems])
    except Exception as error:  # of whatever library; the job tells which partition it was
        return error


def _in_threads(
    bundle: Bundle,
    task: Task,
    todo: Iterator[Partition],
    workers: int,
    tell: Callable[[int], None],
    problems: Mapping[str, None],
) -> Iterator[tuple[Partition, Result]]:
    """Work on partitions in threads of this process: while one reads, another computes or writes."""
    stop = threading.Event()

    def telling(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        tell(count)

    with ThreadPoolExecutor(workers, "partition") as pool:
        running: dict[Future[Result], Partition] = {}
        try:
            for part in todo:
                running[pool.submit(attempt, bundle, task, part, telling, only_look=bool(problems))] = part
                while len(running) >= workers:
                    yield from _ended(running)
            while running:
                yield from _ended(running)
        except BaseException:
            stop.set()  # or else the pool would wait for the ends of partitions, which may take minutes
            raise


def _ended(running: dict[Future[Result], Partition]) -> Iterator[tuple[Partition, Result]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=lambda f: running[f].number):
        yield running.pop(future), future.result()


Engine = Callable[
    [Bundle, Task, Iterator[Partition], int, Callable[[int], None], Mapping[str, None]],
    Iterator[tuple[Partition, Result]],
]


def _engine(name: str) -> Engine:
    """Return what works on partitions; Ray is loaded only where it is asked for."""
    if name == "local":
        return _in_threads
    from sevenfold import clusters

    clusters.require()
    return clusters.in_cluster


def _told(part: Partition, error: Exception, done: int) -> str:
    said = str(error).strip() or type(error).__name__
    if isinstance(error, places.ChangedError):
        return f"{part} failed: {said}; give the command again with `--restart` when nobody writes to it"
    are = "partition is done and stays" if done == 1 else "partitions are done and stay"
    stays = f"{done} {are}; the same command goes on with the others" if done else "nothing was written"
    return f"{part} failed: {said}; {stays}"


def _hash(source: Source, journal: Journal, lock: threading.Lock, stop: threading.Event) -> None:
    """Write the digests of the input files into the journal, in groups: each line of it is synced to the disk."""
    found: dict[str, str] = {}
    last = time.monotonic()
    for file in source.files:
        if file.name in journal.digests:
            continue
        try:
            digest = file.digest() if source.elsewhere else files.digest_unless(file.path, stop.is_set)
        except OSError:
            return  # who reads its rows tells what is wrong, or who looks at the end
        if digest is None:
            return
        found[file.name] = digest
        if time.monotonic() - last > 1:
            with lock:
                journal.add_inputs(found)
            found, last = {}, time.monotonic()
    if found:
        with lock:
            journal.add_inputs(found)


def _finish(task: Task, source: Source, journal: Journal, destination: Path, *, going_on: bool) -> None:
    """Make the output of the partitions, and say beside it which there were."""
    if changes := source.changed():
        journal.clear()
        raise JobError(
            f"{places.ChangedError(changes)}; nothing was written; give the command again when nobody writes to it"
        )
    # What could not be read for its digest is tried again: what is done does not hang on it.
    journal.add_inputs({file.name: file.digest() for file in source.files if file.name not in journal.digests})
    entries = [journal.entries[number] for number in sorted(journal.entries)]
    aside = quarantine_path(destination)
    parts = [journal.parts / aside_name(entry.number) for entry in entries if entry.quarantined]
    # An index that is there when a job goes on is this job's own, and rows may have come to it since.
    if not (going_on and isinstance(task.sink, IndexFolder) and (destination / index_folders.MANIFEST).is_file()):
        with files.whole(destination, journal.folder) as draft:
            task.sink.finish([journal.parts / entry.file for entry in entries], draft)
            if journal.known is not None:
                outputs.require_known(destination, journal.known)
            journal.know(outputs.names(draft))
            for older in (receipt_path(destination), manifests.path(destination)):  # which tell of the output before
                older.unlink(missing_ok=True)
    aside.unlink(missing_ok=True)
    if parts and task.aside is not None:
        with files.whole(aside, journal.folder) as draft:
            separator = task.sink.separator if isinstance(task.sink, Csv) else ","
            outputs.finish_aside(task.aside, parts, draft, separator)
    about = [{"name": f.name, "bytes": f.size, "sha256": journal.digests[f.name]} for f in source.files]
    files.write_json(
        manifests.path(destination),
        {
            "format": manifests.FORMAT,
            "job": {k: v for k, v in (journal.job or {}).items() if k != "files"},
            "inputs": about,
            "partitions": [asdict(e) | {"input_sha256": journal.digests[e.source]} for e in entries],
        },
        journal.folder,
    )
