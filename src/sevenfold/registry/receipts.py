"""Receipts of batch jobs: each job is a run of an experiment of its own, found again by what it used and what it made."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sevenfold import files
from sevenfold.registry import runs, tracking
from sevenfold.registry.versions import Version
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "batch jobs"
FILE = "receipt.json"
ATTEMPTS = 3
"""How often a job is offered to a store whose trouble may pass, a second apart; the rows are there by then."""

_LONGEST_TAG = 5000
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Receipt:
    """What a job did. It lies beside the output, as `<output>.receipt.json`, and with the job's run.

    model: the registered name and version, or the bundle's folder.
    digest, input_digest, output_digest: SHA-256 of the model's weights and settings, of what was read, and of what was made.
    seconds: wall clock time of reading, computing and writing.
    input, output: absolute paths on the machine that ran it.
    started, ended: in UTC.
    user: who ran it, as the machine calls them.
    sevenfold: the version of this package.
    run_id: of the run that records it; None where the store could not be reached.
    details: how it was done, as plain JSON: partitions, rows put aside, batch size, workers, options, drift, ...
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
    started: datetime
    ended: datetime
    user: str
    sevenfold: str
    run_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        times = {name: getattr(self, name).isoformat(timespec="milliseconds") for name in ("started", "ended")}
        return asdict(self) | {"columns": list(self.columns)} | times

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the receipt that `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no receipt.
        """
        times = {name: datetime.fromisoformat(value[name]) for name in ("started", "ended")}
        return cls(**{**value, **times, "columns": tuple(value["columns"])})


def record(workspace: Workspace, receipt: Receipt, version: Version | None) -> str:
    """Record a job as a finished run, linked to the model version that it used, and return the run's id.

    Raises:
        MlflowException, OSError: the store cannot be reached, even after some attempts.
    """
    with _hurried():
        for attempt in range(1, ATTEMPTS + 1):
            try:
                tracking.initialise(workspace)
                return _record(workspace, receipt, version)
            except Exception as error:
                if attempt == ATTEMPTS or not tracking.may_pass(error):
                    raise
                time.sleep(1)
    raise AssertionError("the last attempt returns or raises")


def _record(workspace: Workspace, receipt: Receipt, version: Version | None) -> str:
    from mlflow.entities import Metric, RunTag

    client = tracking.client(workspace)
    start, end = (round(moment.timestamp() * 1000) for moment in (receipt.started, receipt.ended))
    run_id: str = client.create_run(
        runs.experiment(workspace, EXPERIMENT),
        start_time=start,
        run_name=f"{receipt.operation} with {receipt.model}",
        tags={"mlflow.user": receipt.user},
    ).info.run_id
    whole = replace(receipt, run_id=run_id)
    apart = {"rows", "seconds", "columns", "run_id", "details"}
    told = {k: v for k, v in whole.to_json().items() if k not in apart}
    for name in ("columns", "details"):
        if len(text := json.dumps(whole.to_json()[name])) <= _LONGEST_TAG:
            told[name] = text
    told["mlflow.note.content"] = f"{receipt.rows:,} rows of `{receipt.input}` by {receipt.model}: `{receipt.output}`."
    rate = receipt.rows / max(receipt.seconds, 1e-9)
    numbers = {"rows": float(receipt.rows), "seconds": receipt.seconds, "rows_per_second": rate}
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, end, 0) for name, value in numbers.items()],
        tags=[RunTag(name, value) for name, value in told.items()],
    )
    _link(client, run_id, receipt, version)
    client.log_text(run_id, files.dumps(whole.to_json()), FILE)
    client.set_terminated(run_id, end_time=end)
    return run_id


def _link(client: "MlflowClient", run_id: str, receipt: Receipt, version: Version | None) -> None:
    """Say in MLflow's own terms what the run read: the model, and the input as a data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput

    place = json.dumps({"uri": receipt.input})
    data = Dataset(Path(receipt.input).name[:500], receipt.input_digest[:32], "local", place)
    models = []
    if version is not None:
        client.set_tag(run_id, "model_version", version.label)
        source = client.get_model_version(version.name, str(version.number)).source or ""
        if source.startswith("models:/"):
            models = [LoggedModelInput(source.removeprefix("models:/"))]
    client.log_inputs(run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "batch")])], models=models)


@contextmanager
def _hurried() -> Iterator[None]:
    """Keep MLflow from waiting minutes for a server that is away: its own way is seven attempts, ever further apart."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    ours = name not in os.environ
    if ours:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if ours:
            os.environ.pop(name, None)


def of(workspace: Workspace, digest: str) -> list[Receipt]:
    """Return the receipts of all jobs that used a bundle of this digest, newest first."""
    return _search(workspace, "digest", digest)


def of_output(workspace: Workspace, digest: str) -> list[Receipt]:
    """Return the receipts of all jobs whose output had this digest, newest first."""
    return _search(workspace, "output_digest", digest)


def of_model(workspace: Workspace, name: str, since: datetime, most: int) -> list[Receipt]:
    """Return the receipts of jobs that used any version of a registered model and began since then, the newest first.

    Args:
        most: how many, at most; 1 to 1000.
    """
    begun = f"attributes.start_time >= {round(since.timestamp() * 1000)}"
    found = _found(workspace, f"tags.model LIKE '{name}/%' and {begun}", most)
    # To the store an underscore is any character, and not all stores tell small letters from capitals.
    return [receipt for receipt in found if receipt.model.rpartition("/")[0] == name]


def _search(workspace: Workspace, tag: str, digest: str) -> list[Receipt]:
    return _found(workspace, f"tags.{tag} = '{digest}'") if _SHA256.fullmatch(digest) else []


def _found(workspace: Workspace, condition: str, most: int | None = None) -> list[Receipt]:
    client = tracking.client(workspace)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    found: list[Receipt] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            f"{condition} and attributes.status = 'FINISHED'",
            max_results=most or 1000,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        found += [_receipt(client, run) for run in page]
        token = page.token
        if not token or most is not None:
            return found


def _receipt(client: "MlflowClient", run: "Run") -> Receipt:
    told = run.data.tags
    if {"columns", "details"} <= told.keys():
        columns, details = json.loads(told["columns"]), json.loads(told["details"])
    else:
        from mlflow.artifacts import load_dict

        kept = load_dict(f"runs:/{run.info.run_id}/{FILE}")
        columns, details = kept["columns"], kept.get("details", {})  # which the first ones had not
    names = ("operation", "model", "digest", "input", "input_digest", "output", "output_digest", "user", "sevenfold")
    return Receipt(
        **{name: told[name] for name in names},
        rows=round(run.data.metrics["rows"]),
        columns=tuple(columns),
        seconds=run.data.metrics["seconds"],
        started=datetime.fromisoformat(told["started"]).astimezone(UTC),
        ended=datetime.fromisoformat(told["ended"]).astimezone(UTC),
        run_id=run.info.run_id,
        details=details,
    )
