"""Jobs that are looked at again: rows of their inputs, and where those are gone, what their receipts say.

Rows are read evenly spread over each input, and only where it still is what the job has read.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sevenfold import drift, formats, jobs, manifests, operations, places, sources
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import DataError, TableSchema
from sevenfold.formats import Rows
from sevenfold.registry.receipts import Receipt

State = Literal["read", "gone", "changed", "training", "unreadable"]

_MOST_VALUES = 1 << 25  # 128 MB of single precision
_PARTITION_ROWS = 1 << 16
_PARTITIONS = 64  # that are read of one input, evenly spread
_BATCH = 4096  # rows in memory at a time, as they are in the files
_NAMED = 20  # reasons, and values of a category, that are kept


@dataclass(frozen=True)
class Job:
    """A job that was looked at.

    digest: SHA-256 of its input.
    sampled: how many of its rows were read again.
    state: "read"; or why its input was not: it is "gone", "changed" since, the "training" data themselves, or "unreadable".
    note: more of that, in words.
    worst: the farthest column of its first rows and its PSI, as its own receipt has it; None where it was measured against
        another model or not at all.
    by_gaps: whether gaps alone make most of that.
    first_rows: how many rows that is of.
    """

    run_id: str | None
    when: datetime
    operation: str
    model: str
    input: str
    digest: str
    rows: int
    sampled: int
    state: State
    note: str = ""
    worst: tuple[str, float] | None = None
    by_gaps: bool = False
    first_rows: int = 0

    @property
    def stands_in(self) -> bool:
        """Whether the job's own receipt counts, for want of its input."""
        return self.state in ("gone", "changed", "unreadable") and self.worst is not None


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows as the model takes them, and what is known of those that it does not take.

    x: (n, *shape) float32. observed: bool, of the same shape; None where nothing is missing.
    fresh: new categories, by column and value, with the number of rows.
    reasons: all other reasons of refused rows, with their number.
    """

    x: np.ndarray
    observed: np.ndarray | None
    refused: int = 0
    fresh: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)


def resample(
    bundle: Bundle, receipts: Sequence[Receipt], *, digest: str, own: Path | None = None, rows: int
) -> tuple[Sample, tuple[Job, ...]]:
    """Read rows of jobs again, as a model takes them.

    An input that is gone or was changed since is not read; where the job used this very bundle, what its receipt says of
    its first rows stands in its place.

    Args:
        receipts: the newest first; of several with one input the newest counts.
        digest: of the bundle.
        own: the data set's own file, which the model learned from: a job on it tells nothing.
        rows: to read, at most, of all jobs together; of large samples fewer.
    """
    most = max(1, min(rows, _MOST_VALUES // int(np.prod(bundle.schema.shape))))
    latest: dict[tuple[str, Any], Receipt] = {}
    for receipt in receipts:
        latest.setdefault((receipt.input_digest, receipt.details.get("limit")), receipt)
    apart = {id(r): _apart(r, own) for r in latest.values()}
    total = sum(_total(r) for r in latest.values() if apart[id(r)] is None)
    told, kept = [], []
    known: dict[str, str] = {}  # one file may have been the input of many jobs
    with tempfile.TemporaryDirectory(prefix="sevenfold-") as room:
        for receipt in latest.values():
            part, state, note = _looked_at(bundle, receipt, apart[id(receipt)], most, total, Path(room), known)
            if part is not None:
                kept.append(part)
            told.append(_job(receipt, digest, 0 if part is None else len(part.x) + part.refused, state, note))
    return _together(bundle, kept), tuple(told)


def take(bundle: Bundle, batches: Iterable[Rows]) -> Sample:
    """Turn raw rows into a sample. Rows that the schema refuses are counted and named, and raise nothing."""
    xs, masks = [], []
    refused, reasons = 0, Counter[str]()
    fresh: dict[str, Counter[str]] = {}
    for rows in batches:
        part = rows
        if bundle.schema.problems(rows):
            try:
                faults = bundle.schema.faults(rows)
            except DataError as error:  # such as a column that is missing: of no row more can be said
                faults = [" and ".join(error.problems)] * len(rows)
            for fault in filter(None, faults):
                _name(bundle, fault, fresh, reasons)
            good = np.flatnonzero([not fault for fault in faults])
            refused += len(rows) - len(good)
            part = rows.take(good)
        if not len(part):
            continue
        x, observed = bundle.schema.transform(part)
        if x.shape[1:] != bundle.schema.shape:
            _count(reasons, f"images of another size than {bundle.schema.shape[1:]} cannot be compared", len(x))
            refused += len(x)
            continue
        xs.append(x)
        masks.append(observed)
    return Sample(*_stacked(bundle, xs, masks), refused, fresh, reasons)


def _stacked(
    bundle: Bundle, xs: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]
) -> tuple[np.ndarray, np.ndarray | None]:
    x = np.concatenate([np.zeros((0, *bundle.schema.shape), np.float32), *xs])
    if all(mask is None for mask in masks):
        return x, None
    full = [np.ones(x.shape, bool) if mask is None else mask for x, mask in zip(xs, masks, strict=True)]
    return x, np.concatenate(full)


def _name(bundle: Bundle, fault: str, fresh: dict[str, Counter[str]], reasons: Counter[str]) -> None:
    """Count what a row was refused for: by column and value where that is a new category."""
    named = False
    for column in bundle.schema.columns if isinstance(bundle.schema, TableSchema) else ():
        if column.kind != "categorical":
            continue
        if got := re.search(rf"(?:^|; ){re.escape(repr(column.name))} is (.+?); expected one of ", fault):
            _count(fresh.setdefault(column.name, Counter()), got[1].strip("'\""))
            named = True
    if not named:
        _count(reasons, fault)


def _count(counter: Counter[str], text: str, rows: int = 1) -> None:
    known = text in counter or len(counter) < _NAMED
    counter[text if known else "others"] += rows


def _together(bundle: Bundle, parts: Sequence[Sample]) -> Sample:
    fresh: dict[str, Counter[str]] = {}
    reasons = Counter[str]()
    for part in parts:
        for column, values in part.fresh.items():
            for value, count in values.items():
                _count(fresh.setdefault(column, Counter()), value, count)
        for reason, count in part.reasons.items():
            _count(reasons, reason, count)
    x, observed = _stacked(bundle, [p.x for p in parts], [p.observed for p in parts])
    return Sample(x, observed, sum(p.refused for p in parts), fresh, reasons)


def _total(receipt: Receipt) -> int:
    return receipt.rows + int(receipt.details.get("quarantined", 0))


def _apart(receipt: Receipt, own: Path | None) -> tuple[State, str] | None:
    """Return why a job's input is not even opened, if so."""
    if own is not None and receipt.input == str(own.absolute()):
        return "training", "the data set that the model learned from"
    if receipt.operation == "decompress":
        return "unreadable", "compressed images, which are compared where they are compressed"
    return None


def _looked_at(
    bundle: Bundle,
    receipt: Receipt,
    apart: tuple[State, str] | None,
    most: int,
    total: int,
    room: Path,
    known: dict[str, str],
) -> tuple[Sample | None, State, str]:
    """Return rows of a job's input, or why there are none.

    Args:
        known: digests of files, by where they lie; those that are read here are added.
    """
    if apart is not None:
        return None, *apart
    wanted = max(1, most * _total(receipt) // max(total, most))
    try:
        source = _opened(receipt, room)
        where = {file.name: str(file.path) if file.place is None else file.place.url for file in source.files}
        for file in source.files:
            if where[file.name] not in known:
                known[where[file.name]] = file.digest()
        digest = source.digest_of({name: known[place] for name, place in where.items()})
        if digest != receipt.input_digest:
            return None, "changed", f"its SHA-256 was {receipt.input_digest[:12]} and is {digest[:12]}"
        return take(bundle, _spread(bundle, source, _total(receipt), wanted)), "read", ""
    except FileNotFoundError as error:
        return None, "gone", _first_line(error)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        return None, "unreadable", _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _opened(receipt: Receipt, room: Path) -> sources.Source:
    """Open what a job has read, without what it has written beside it."""
    besides: list[Path | str]
    if places.is_url(receipt.output):
        folder, _, name = receipt.output.rstrip("/").rpartition("/")
        besides = [receipt.output, f"{folder}/{jobs.quarantine_path(Path(name)).name}"]
    else:
        output = Path(receipt.output)
        besides = [output, manifests.workplace(output), jobs.quarantine_path(output)]
    separator = receipt.details.get("separator")
    source = sources.open_source(receipt.input, besides=besides, room=room, separator=separator)
    if source.kind == "containers":
        raise formats.FormatError("compressed images, which are compared where they are compressed")
    return source.limited(receipt.details.get("limit"))


def _spread(bundle: Bundle, source: sources.Source, total: int, wanted: int) -> Iterator[Rows]:
    """Yield so many rows, evenly spread over the input; never more than a partition is in memory."""
    columns = operations.wanted(bundle, source.fields, ())
    parts: Iterable[sources.Partition] = source.partitions(_PARTITION_ROWS, columns)
    if source.fields is not None or source.kind == "images":  # else they can only be read from the start
        every = list(parts)
        parts = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(_PARTITIONS, len(every))).astype(int))]
        total = sum(part.rows for part in parts)
    positions = np.arange(min(wanted, total)) * total // max(1, min(wanted, total))
    at = 0
    for part in parts:
        for batch in part.batches(_BATCH):
            first, last = np.searchsorted(positions, (at, at + len(batch)))
            if last > first:
                yield batch.take(positions[first:last] - at)
            at += len(batch)


def _job(receipt: Receipt, digest: str, sampled: int, state: State, note: str) -> Job:
    own = receipt.details.get("drift") if receipt.digest == digest else None
    worst, gaps = None, False
    if own:
        worst = (str(own["worst"]["name"]), float(own["worst"]["psi"]))
        measure = next((m for m in own["columns"] if m["name"] == worst[0]), None)
        if measure is not None:
            shares = measure["missing_then"], measure["missing_now"]
            gaps = gaps_explain(shares, (own["rows_then"], own["rows"]), measure["psi_raw"])
    return Job(
        receipt.run_id,
        receipt.ended,
        receipt.operation,
        receipt.model,
        receipt.input,
        receipt.input_digest,
        _total(receipt),
        sampled,
        state,
        note,
        worst,
        gaps,
        int(own["rows"]) if own else 0,
    )


def stood_in(told: Sequence[Job]) -> tuple[str, float] | None:
    """Return the mean PSI of jobs whose receipts stand in for their inputs, by rows, and the name of what is farthest.

    The mean, since of many small jobs some are far off by chance.
    """
    known = [(job.worst, job.first_rows) for job in told if job.stands_in and job.worst is not None]
    if not known:
        return None
    (name, _), _ = max(known, key=lambda one: one[0][1] * one[1])
    return name, sum(worst[1] * rows for worst, rows in known) / max(1, sum(rows for _, rows in known))


def newest(told: Sequence[Job]) -> Job | None:
    """Return the newest job, of those that tell anything."""
    return max((job for job in told if job.state != "training"), key=lambda job: job.when, default=None)


def newest_worst(told: Sequence[Job]) -> tuple[str, float] | None:
    """Return the name and PSI of what was farthest in the newest job; None where nothing is known of that."""
    job = newest(told)
    return None if job is None else job.worst


def gaps_explain(missing: tuple[float, float], rows: tuple[int, int], raw: float) -> bool:
    """Say whether gaps alone make most of a column's PSI; shares and rows are then and now."""
    shares = np.array(missing)
    counts = np.rint(np.stack([shares, 1 - shares]) * rows)  # (gap or value, then and now)
    return drift.psi(counts[:, 0], counts[:, 1])[0] > raw / 2
