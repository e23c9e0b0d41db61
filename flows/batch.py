"""Batch job: run a registered model over new rows."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import task_run

from flows import errors, lateness, process, retries, server
from sevenfold import jobs, places, workspace
from sevenfold.registry import receipts
from sevenfold.workspace import Workspace

BETWEEN_LINES = 30.0
"""Seconds between two lines of the log that tell how far a job is."""

Operation = Literal["encode", "score", "impute", "denoise", "compress", "decompress", "index"]


@flow(name="batch", flow_run_name="{operation} with {model}")
def batch(
    operation: Operation,
    model: str,
    source: str,
    destination: str,
    columns: list[str] | None = None,
    batch_size: int | None = None,
    partition_rows: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: Literal["local", "ray"] = "local",
    begun: Literal["continue", "resume", "restart"] = "continue",
    limit: int | None = None,
    on_bad_rows: Literal["fail", "quarantine"] = "fail",
    max_drift: float | None = None,
    separator: str | None = None,
    options: dict[str, Any] | None = None,
    folder: str | None = None,
) -> "dict[str, Any] | State[None]":
    """Run one operation of a model over files, and return the receipt.

    Args:
        model: `NAME` (its champion), `NAME@ALIAS`, `NAME/VERSION` or a bundle's folder.
        source: a file, a folder of files, or a pattern.
        destination: a file, or a folder (a name without an ending); the receipt lies beside it.
        columns: of the input, which go along; null for all that the model does not use.
        batch_size: rows at a time; null to measure.
        partition_rows: rows of a partition, which is done or not.
        workers: partitions at a time; null for one per processor.
        device: cpu, cuda, ...; auto for a GPU where there is one.
        engine: threads of one process, or a Ray cluster.
        begun: what to do about a run of the same job that ended early.
        limit: rows of the input; null for all.
        on_bad_rows: whether rows that do not fit are an error, or go to a file of their own.
        max_drift: the largest population stability index with which the job still starts; null only to tell.
        separator: of CSV files; null to find it from the header of each.
        options: of the operation, by name, such as {"reasons": "flagged"} of score.
        folder: the workspace (default: the one around the current folder).
    """
    if missed := lateness.missed():
        return missed
    settings = jobs.Settings(
        columns=None if columns is None else tuple(columns),
        batch_size=batch_size,
        partition_rows=partition_rows,
        workers=workers,
        device=device,
        engine=engine,
        begun=begun,
        limit=limit,
        on_bad_rows=on_bad_rows,
        max_drift=max_drift,
        separator=separator,
        options=options or {},
    )
    place = workspace.find(Path(folder) if folder else None)
    place.initialise()
    with place.settled():
        receipt = work(operation, model, source, places.parsed(destination), place, settings)
    create_markdown_artifact(_page(receipt), key="receipt", description=f"{operation} with {receipt.model}")
    return receipt.to_json()


def _page(receipt: receipts.Receipt) -> str:
    """Return a receipt as a table, what matters to people first."""
    told = receipt.to_json()
    details = told.pop("details")
    drift = details.pop("drift", None)
    first = ("operation", "model", "rows", "seconds", "input", "output")
    lines = [f"| {name} | {told.pop(name)} |" for name in first]
    lines += [f"| drift | {drift['sentence']} |"] if drift else []
    lines += [f"| {name} | {value} |" for name, value in (details | told).items() if value not in (None, {}, [])]
    return "\n".join(["| | |", "| --- | --- |", *lines])


@task(
    cache_policy=NO_CACHE,
    task_run_name="{operation}",
    **retries.AGAIN,
)
def work(
    operation: str, model: str, source: str, destination: Path | str, place: Workspace, settings: jobs.Settings
) -> receipts.Receipt:
    """Do the job, or go on with it; the output appears whole or not at all."""
    log = get_run_logger()
    said = time.monotonic()

    def tell(progress: jobs.Progress) -> None:
        nonlocal said
        if time.monotonic() - said > BETWEEN_LINES:
            said = time.monotonic()
            log.info("%s of %s rows", f"{progress.rows:,}", f"{progress.total:,}" if progress.total else "unknown")

    if task_run.run_count > 1:  # what the attempt before has done stays
        settings = replace(settings, begun="continue")
    receipt = jobs.run(
        place,
        operation=operation,
        model=model,
        source=source,
        destination=destination,
        settings=settings,
        on_progress=tell,
    )
    log.info("%s rows by %s in %s s", receipt.rows, receipt.model, receipt.seconds)
    return receipt


def main() -> int:
    """Run the flow once; 0 after success."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operation", choices=get_args(Operation))
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="more parameters of the flow")
    given = parser.parse_args()
    process.leash()
    try:
        server.join("flows.batch")
        receipt: Any = batch(given.operation, given.model, given.source, given.destination, **given.settings)
    except KeyboardInterrupt:
        print("interrupted; what is done stays, and the same call goes on there", file=sys.stderr)
        return 130
    except Exception as error:
        return errors.tell(error)
    print(f"{receipt['output']}: {receipt['rows']:,} rows by {receipt['model']} in {receipt['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
