"""Batch job: run a registered model over new rows."""

import argparse
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from sevenfold import jobs, operations, workspace
from sevenfold.registry import receipts, tracking
from sevenfold.workspace import Workspace


@flow(name="batch", flow_run_name="{operation} with {model}")
def batch(operation: str, model: str, source: str, destination: str, folder: str | None = None) -> dict[str, Any]:
    """Run one operation of a model over a file, and return the receipt.

    Args:
        operation: "encode", "score", "impute" or "denoise".
        model: `NAME` (its champion), `NAME@ALIAS`, `NAME/VERSION` or a bundle's folder.
        source: CSV, Parquet, npz, npy, IDX or a folder of images.
        destination: .parquet, .csv or .npz; the receipt lies beside it.
        folder: the workspace (default: the one around the current folder).
    """
    place = workspace.find(Path(folder) if folder else None)
    place.initialise()
    with place.settled():
        receipt = work(operation, model, Path(source), Path(destination), place)
    lines = "\n".join(f"| {name} | {value} |" for name, value in receipt.to_json().items())
    create_markdown_artifact(
        f"| | |\n| --- | --- |\n{lines}", key="receipt", description=f"{operation} with {receipt.model}"
    )
    return receipt.to_json()


def _trouble_may_pass(task: Any, run: Any, state: Any) -> bool:
    return tracking.may_pass(state.result(raise_on_failure=False))


@task(
    cache_policy=NO_CACHE,
    task_run_name="{operation}",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    # Rows that do not fit the model will not fit it in ten seconds.
    retry_condition_fn=_trouble_may_pass,
)
def work(operation: str, model: str, source: Path, destination: Path, place: Workspace) -> receipts.Receipt:
    """Do the job; the output appears whole or not at all."""
    receipt = jobs.run(place, operation=operation, model=model, source=source, destination=destination)
    get_run_logger().info("%s rows by %s in %s s", receipt.rows, receipt.model, receipt.seconds)
    return receipt


def main() -> int:
    """Run the flow once; 0 after success."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operation", choices=sorted(operations.OPERATIONS))
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("destination")
    given = parser.parse_args()
    try:
        receipt = batch(given.operation, given.model, given.source, given.destination)
    except KeyboardInterrupt:
        print("interrupted; no output was written", file=sys.stderr)
        return 130
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{receipt['output']}: {receipt['rows']:,} rows by {receipt['model']} in {receipt['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
