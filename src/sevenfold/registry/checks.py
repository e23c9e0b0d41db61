"""Checks of champions against the rows that jobs meet: each is a run of an experiment of its own, and is read back from it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sevenfold import files
from sevenfold.registry import runs, tracking
from sevenfold.registry.versions import Version
from sevenfold.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT = "monitoring"
FILE, PAGE = "check.json", "monitoring.html"

MOST = 100
"""Earlier checks that are looked at."""


@dataclass(frozen=True)
class Past:
    """An earlier check of a registered model.

    digest: of the version that was champion then.
    large: whether it found more than was tolerated of what training again may mend.
    newest: the newest job that it saw.
    worst: the largest PSI; None where there was nothing to compare.
    asked: when a retraining was asked for because of it; None where none was.
    """

    when: datetime
    digest: str
    verdict: str
    large: bool
    newest: str
    worst: float | None = None
    asked: datetime | None = None


def record(
    workspace: Workspace,
    version: Version,
    when: datetime,
    *,
    verdict: str,
    large: bool,
    newest: str,
    reasons: Sequence[str],
    metrics: Mapping[str, float],
    page: str,
    told: Mapping[str, Any],
) -> str:
    """Log a check of a version as a finished run, which is linked to the model, and return the run's id.

    Args:
        metrics: by name; characters that the store does not take become underscores.
        page: HTML. told: all that was found, as plain JSON.
    """
    from mlflow.entities import LoggedModelInput, Metric

    client = tracking.client(workspace)
    moment = round(when.timestamp() * 1000)
    tags = {
        "registered_model": version.name,
        "model_version": version.label,
        "digest": version.digest,
        "verdict": verdict,
        "large": str(large).lower(),
        "newest": newest,
        "when": when.isoformat(),
        "mlflow.user": tracking.user(),
        "mlflow.note.content": f"**{verdict}**\n\n" + "\n".join(f"- {reason}" for reason in reasons)[:4500],
    }
    run_id: str = client.create_run(
        runs.experiment(workspace, EXPERIMENT),
        start_time=moment,
        run_name=f"monitoring {when.astimezone(UTC):%Y-%m-%d %H:%M} {version.label}",
        tags=tags,
    ).info.run_id
    named: dict[str, float] = {}
    for name, value in metrics.items():
        named.setdefault(_plain(name), value)
    client.log_batch(run_id, metrics=[Metric(name, float(value), moment, 0) for name, value in named.items()])
    if version.model is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(version.model)])
    client.log_text(run_id, page, PAGE)
    client.log_text(run_id, files.dumps(told), FILE)
    client.set_terminated(run_id)
    return run_id


def _plain(name: str) -> str:
    return re.sub(r"[^\w\-. ]", "_", name)[:250]


def mark_asked(workspace: Workspace, run_id: str, when: datetime, what: str) -> None:
    """Write down that a retraining was asked for because of a check. what: which one, for people."""
    client = tracking.client(workspace)
    client.set_tag(run_id, "retraining", what)
    client.set_tag(run_id, "asked", when.isoformat())


def past(workspace: Workspace, name: str) -> list[Past]:
    """Return the last checks of a registered model, the newest first, and the last that a retraining was asked for after."""
    client = tracking.client(workspace)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        return []
    finished = f"tags.registered_model = '{name}' and attributes.status = 'FINISHED'"
    newest = ["attributes.start_time DESC"]
    page = client.search_runs([found.experiment_id], finished, max_results=MOST, order_by=newest)
    # It may be long ago, and counts as long as its cooldown lasts.
    asked = client.search_runs(
        [found.experiment_id], f"{finished} and tags.asked != ''", max_results=1, order_by=newest
    )
    known = {run.info.run_id for run in page}
    return [_past(run) for run in (*page, *(run for run in asked if run.info.run_id not in known))]


def _past(run: "Run") -> Past:
    told, numbers = run.data.tags, run.data.metrics
    return Past(
        datetime.fromisoformat(told["when"]),
        told["digest"],
        told["verdict"],
        told["large"] == "true",
        told["newest"],
        numbers.get("drift_worst"),
        datetime.fromisoformat(told["asked"]) if "asked" in told else None,
    )
