"""Batch jobs: rows in, rows out, and a receipt. The output appears whole or not at all."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from sevenfold import __version__, bundles, files, formats, operations
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import DataError
from sevenfold.registry import receipts, tracking, versions
from sevenfold.registry.receipts import Receipt
from sevenfold.workspace import Workspace

BATCH_SIZE = 8192
"""Rows in memory at a time."""

MOST_PROBLEMS = 50
"""Problems that one error lists; a table of millions of rows may have one in each batch."""


def receipt_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.receipt.json")


def run(
    workspace: Workspace,
    *,
    operation: str,
    model: str,
    source: Path,
    destination: Path,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Receipt:
    """Run one operation of a registered model, or of a bundle's folder, over a file.

    The version is resolved once, at the start: a promotion meanwhile does not mix two models in one output. The job is
    recorded in the tracking store when its output is whole. If the store cannot be reached then, output and receipt stay
    all the same, a warning is logged, and the receipt's run_id is None.

    Args:
        model: `NAME` (its champion), `NAME@ALIAS`, `NAME/VERSION` or a bundle's folder.
        on_rows: called with the number of rows done so far.
    """
    found = versions.resolve(workspace, model)
    bundle = bundles.load(found.folder, expected=found.digest)

    def record(receipt: Receipt) -> str | None:
        try:
            return receipts.record(workspace, receipt, found.version)
        except Exception as error:  # whatever a store may say: hours of work do not hang on it
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            logging.getLogger(__name__).warning(
                f"warning: the job was not recorded in the tracking store ({first}); output and receipt are whole"
            )
            return None

    return apply(bundle, found.label, found.digest, operation, source, destination, on_rows, record)


def apply(
    bundle: Bundle,
    label: str,
    digest: str,
    operation: str,
    source: Path,
    destination: Path,
    on_rows: Callable[[int], None] = lambda rows: None,
    record: Callable[[Receipt], str | None] = lambda receipt: None,
) -> Receipt:
    """Run one operation of a bundle over a file. Rows keep their order, and columns that the model does not use stay.

    Args:
        record: called when the output is whole and before the receipt is written; returns the id of the job's run.

    Raises:
        FileNotFoundError, FormatError: the input cannot be read or has no rows, or the output's kind is unknown.
        ValueError: there is no such operation, the bundle is for another one, or the output would replace the input.
        DataError: rows do not fit the model's schema; the message lists the problems of all batches.
        OSError: the output cannot be written.
    """
    start, started = time.perf_counter(), datetime.now(UTC)
    bundle = operations.accepting(bundle)
    act = operations.get(operation, bundle)
    _check_output(source, destination)
    _check_rows(bundle, source)
    # Before the output exists: it may lie inside a folder of images.
    input_digest = files.digest(source)
    rows, columns = 0, tuple[str, ...]()
    with files.whole(destination) as draft:
        writer = formats.Writer(draft)
        for part in formats.batches(source, BATCH_SIZE):
            made = act(bundle, part)
            kept = operations.identifying(bundle, part)
            if clash := [str(c) for c in kept.columns if c in made.frame.columns]:
                raise DataError(
                    str(source),
                    [f"the output has columns of the names {', '.join(clash)}, too; rename those of the input"],
                )
            frame = pd.concat([kept.reset_index(drop=True), made.frame], axis=1)
            writer.write(formats.Rows(frame, made.images))
            rows, columns = rows + len(part), tuple(str(c) for c in frame.columns)
            on_rows(rows)
        writer.close()
    receipt = Receipt(
        operation=operation,
        model=label,
        digest=digest,
        rows=rows,
        columns=columns,
        input=str(source.absolute()),
        input_digest=input_digest,
        output=str(destination.absolute()),
        output_digest=files.digest(destination),
        seconds=round(time.perf_counter() - start, 3),
        started=_milliseconds(started),
        ended=_milliseconds(datetime.now(UTC)),
        user=tracking.user(),
        sevenfold=__version__,
    )
    receipt = replace(receipt, run_id=record(receipt))
    files.write_json(receipt_path(destination), receipt.to_json())
    return receipt


def _milliseconds(moment: datetime) -> datetime:
    """Return the moment as a receipt's JSON says it."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _check_output(source: Path, destination: Path) -> None:
    formats.Writer(destination)  # which refuses an unknown kind, and writes nothing yet
    if source.resolve() == destination.resolve():
        raise ValueError(f"input and output are both {source}; give the output another name")
    if destination.is_dir():
        raise IsADirectoryError(f"the output {destination} is a folder; expected a file's name; name a file inside it")
    place = next(p for p in destination.resolve().parents if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{destination} cannot be written: {place} is no folder that you may write to; choose another"
        )


def _check_rows(bundle: Bundle, source: Path) -> None:
    """Report the problems of every batch at once, before the first row is written."""
    problems: dict[str, None] = {}
    at = 0
    for part in formats.batches(source, BATCH_SIZE):
        shifted = formats.Rows(part.frame.set_axis(range(at, at + len(part))), part.images)
        problems |= dict.fromkeys(bundle.schema.problems(shifted))
        at += len(part)
    if problems:
        listed = list(problems)
        more = [f"and {len(listed) - MOST_PROBLEMS} more such problems"] if len(listed) > MOST_PROBLEMS else []
        raise DataError(str(source), listed[:MOST_PROBLEMS] + more)
