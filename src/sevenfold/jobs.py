"""Batch jobs: rows in, rows out, and a receipt. The output appears whole or not at all."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sevenfold import bundles, files, formats, operations
from sevenfold.bundles import Bundle
from sevenfold.datasets.base import DataError
from sevenfold.registry import versions
from sevenfold.workspace import Workspace

BATCH_SIZE = 8192
"""Rows in memory at a time."""

MOST_PROBLEMS = 50
"""Problems that one error lists; a table of millions of rows may have one in each batch."""


@dataclass(frozen=True)
class Receipt:
    """What a job did. It lies beside the output, as `<output>.receipt.json`.

    model: the registered name and version, or the bundle's folder.
    seconds: wall clock time of reading, computing and writing.
    """

    operation: str
    model: str
    digest: str
    rows: int
    columns: tuple[str, ...]
    input: str
    input_digest: str
    output: str
    output_digest: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"columns": list(self.columns)}


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

    The version is resolved once, at the start: a promotion meanwhile does not mix two models in one output.

    Args:
        model: `NAME` (its champion), `NAME@ALIAS`, `NAME/VERSION` or a bundle's folder.
        on_rows: called with the number of rows done so far.
    """
    found = versions.resolve(workspace, model)
    bundle = bundles.load(found.folder, expected=found.digest)
    return apply(bundle, found.label, found.digest, operation, source, destination, on_rows)


def apply(
    bundle: Bundle,
    label: str,
    digest: str,
    operation: str,
    source: Path,
    destination: Path,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Receipt:
    """Run one operation of a bundle over a file. Rows keep their order, and columns that the model does not use stay.

    Raises:
        FileNotFoundError, FormatError: the input cannot be read or has no rows, or the output's kind is unknown.
        ValueError: there is no such operation, the bundle is for another one, or the output would replace the input.
        DataError: rows do not fit the model's schema; the message lists the problems of all batches.
        OSError: the output cannot be written.
    """
    start = time.perf_counter()
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
        input=str(source),
        input_digest=input_digest,
        output=str(destination),
        output_digest=files.digest(destination),
        seconds=round(time.perf_counter() - start, 3),
    )
    files.write_json(receipt_path(destination), receipt.to_json())
    return receipt


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
