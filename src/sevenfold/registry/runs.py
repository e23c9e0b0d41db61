"""Runs of a contest: one for each candidate's training and each rival, below one for the pipeline run that brought them."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from sevenfold.registry import tracking
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "result_digest"
"""The tag by which a result is logged once."""

RECORDER = "recorder"
"""The tag of a run that says which machine and workspace made it."""

RECORDED = "recorded"
"""The tag of an experiment that says which results were there when it was last looked through."""

MOST_METRICS, MOST_PARAMS = 1000, 100
"""What MLflow takes in one call."""


@dataclass(frozen=True)
class Entry:
    """One candidate's or rival's result in a contest.

    key: digest of the result; while it is the same, there is one run.
    params: nested ones are flattened with dots.
    curves: one row per epoch, with a column `epoch`; None for what has none.
    failure: why there is no result, or None.
    """

    name: str
    kind: Literal["candidate", "rival"]
    key: str
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: pd.DataFrame | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    failure: str | None = None


def title(moment: datetime) -> str:
    """Return the name of the pipeline run that began then, such as "run 2026-11-25 07:10", in UTC."""
    return f"run {moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def experiment(workspace: Workspace, name: str) -> str:
    """Return the id of an experiment, such as a contest's, which is made where there is none and restored where it was deleted."""
    from mlflow.exceptions import MlflowException

    client = tracking.client(workspace)
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=tracking.artifact_location(workspace)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another process was first
                raise
            found = client.get_experiment_by_name(name)
            assert found is not None
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def is_recorded(workspace: Workspace, name: str, keys: Sequence[str]) -> bool:
    """Say, by one question to the store, whether all these results of a contest have runs."""
    found = tracking.client(workspace).get_experiment_by_name(name)
    return found is not None and found.tags.get(RECORDED) == _digest(keys)


def parents(workspace: Workspace, since: datetime, *, by: Workspace) -> list[tuple[str, str]]:
    """Return (contest, run) of each run for a whole pipeline run that began at this moment or later, oldest first.

    Args:
        by: where the pipeline ran. Others may record in the same store meanwhile.
    """
    client = tracking.client(workspace)
    names = {e.experiment_id: e.name for e in client.search_experiments()}
    found = client.search_runs(
        [*names],
        filter_string=f"tags.kind = 'pipeline' and attributes.start_time >= {int(since.timestamp() * 1000)}",
        order_by=["attributes.start_time ASC"],
    )
    own = [run for run in found if run.data.tags.get(RECORDER) == _recorder(by)]
    return [(names[run.info.experiment_id], str(run.info.run_id)) for run in own]


def _recorder(workspace: Workspace) -> str:
    return f"{platform.node()}:{workspace.root.resolve()}"


def _digest(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def record(
    workspace: Workspace,
    name: str,
    entries: Sequence[Entry],
    *,
    pipeline_run: str,
    description: str,
    artifacts: Sequence[Path] = (),
    folders: Mapping[str, Path] | None = None,
    texts: Mapping[str, str],
) -> dict[str, str]:
    """Log what has no run yet, below one for this pipeline run, and return each key's run. Nothing new makes no run.

    The caller holds the contest's lock. Runs that a killed process left unfinished are removed and logged again.

    Args:
        name: of the contest, and of its experiment.
        pipeline_run: name of the parent run, and a tag of all; the same in all contests of one pipeline run.
        description: of the parent run, in Markdown.
        artifacts, folders, texts: files, folders by the name that they get, and contents by file name, which the parent
            run keeps.
    """
    client = tracking.client(workspace)
    identifier = experiment(workspace, name)
    recorder = _recorder(workspace)
    there = _there(client, identifier, recorder)
    new = [entry for entry in entries if entry.key not in there]
    if new:
        parent = _begin(
            client,
            identifier,
            pipeline_run,
            {"kind": "pipeline", "pipeline_run": pipeline_run, RECORDER: recorder},
            description,
        )
        for path in artifacts:
            client.log_artifact(parent, str(path))
        for folder, path in (folders or {}).items():
            client.log_artifacts(parent, str(path), folder)
        for file, text in texts.items():
            client.log_text(parent, text, file)
        for entry in new:
            there[entry.key] = _log(
                client, identifier, entry, parent, {"pipeline_run": pipeline_run, RECORDER: recorder}
            )
        client.set_terminated(parent)
    client.set_experiment_tag(identifier, RECORDED, _digest([entry.key for entry in entries]))
    return {entry.key: there[entry.key] for entry in entries}


def _there(client: "MlflowClient", identifier: str, recorder: str) -> dict[str, str]:
    """Return key -> run of every finished one; what this workspace left unfinished is removed, and nobody else's."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = client.search_runs([identifier], filter_string="tags.kind != ''", max_results=1000, page_token=token)
        for run in page:
            if run.info.status == "RUNNING":
                if run.data.tags.get(RECORDER) == recorder:
                    client.delete_run(run.info.run_id)
            elif KEY in run.data.tags:
                found[run.data.tags[KEY]] = run.info.run_id
        token = page.token
        if not token:
            return found


def _begin(client: "MlflowClient", identifier: str, name: str, tags: Mapping[str, str], description: str) -> str:
    every = {**tags, **({"mlflow.note.content": description} if description else {})}
    return str(client.create_run(identifier, tags=every, run_name=name).info.run_id)


def _log(client: "MlflowClient", identifier: str, entry: Entry, parent: str, common: Mapping[str, str]) -> str:
    from mlflow.entities import Metric, Param

    tags = {
        **entry.tags,
        "kind": entry.kind,
        **common,
        "mlflow.parentRunId": parent,
        KEY: entry.key,
        **({} if entry.failure is None else {"failure": entry.failure[:5000]}),
    }
    description = entry.description if entry.failure is None else f"Failed: {entry.failure}"
    run = _begin(client, identifier, entry.name, tags, description)
    now = int(datetime.now(UTC).timestamp() * 1000)
    metrics = [Metric(name, float(value), now, 0) for name, value in entry.metrics.items()] + points(entry.curves, now)
    params = [Param(name, str(value)[:6000]) for name, value in flattened(entry.params).items()]
    for start in range(0, max(len(metrics), len(params) * MOST_METRICS // MOST_PARAMS), MOST_METRICS):
        some = start // MOST_METRICS * MOST_PARAMS
        client.log_batch(run, metrics[start : start + MOST_METRICS], params[some : some + MOST_PARAMS])
    client.set_terminated(run, "FINISHED" if entry.failure is None else "FAILED")
    return run


def points(curves: pd.DataFrame | None, now: int) -> list[Any]:
    """Return MLflow's metrics, one for each column and epoch; `now` in milliseconds since 1970."""
    from mlflow.entities import Metric

    if curves is None:
        return []
    return [
        Metric(column, float(value), now, int(epoch))
        for column in curves.columns
        if column != "epoch"
        for epoch, value in zip(curves["epoch"], curves[column], strict=True)
    ]


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, whose names are joined by dots."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flattened(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat
