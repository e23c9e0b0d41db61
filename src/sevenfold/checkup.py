"""Look after champions: find their recent jobs, compare, decide, and leave page and numbers where people look for them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sevenfold import bundles, files, monitoring, monitoring_page, retraining
from sevenfold.monitoring import Check
from sevenfold.registry import checks, receipts, tracking, versions
from sevenfold.registry.versions import Version
from sevenfold.retraining import Decision, Rule
from sevenfold.workspace import Workspace

MOST_JOBS = 100
"""The newest jobs that a check looks at, at most."""


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    page: on this machine; the run has it too.
    run_id: of the run that records it.
    """

    version: Version
    check: Check
    decision: Decision
    page: Path
    run_id: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON: what was found, what follows, and where more is."""
        return self.check.to_json() | self.decision.to_json() | {"page": str(self.page), "run_id": self.run_id}


def champions(workspace: Workspace) -> list[str]:
    """Return the registered models that have a champion which sevenfold published, by name."""
    tracking.initialise(workspace)
    found = versions.champions(workspace)
    # Of others who share the store nothing is known that rows could be compared with.
    return sorted(name for name, version in found.items() if version.digest and "code_digest" in version.tags)


def look(
    workspace: Workspace,
    name: str,
    *,
    days: float,
    rule: Rule,
    rows: int = monitoring.ROWS,
    now: datetime | None = None,
) -> Outcome:
    """Check a registered model's champion against the jobs of the last days, and record what came of it.

    Args:
        days: how far back jobs count, more than 0. They may have used any version of the model: their rows count.
        rows: to compare, at most.
        now: of the check; by default this moment.

    Raises:
        LookupError: there is no such model, or it has no champion.
        ValueError: a setting is out of range, or the champion's bundle has no reference.
    """
    if not days > 0 or rows < 1:
        raise ValueError(f"days is {days} and rows is {rows}; expected more than 0 days, such as 7, and 1 row or more")
    now = now or datetime.now(UTC)
    tracking.initialise(workspace)
    with workspace.lock(f"monitor-{name}"):  # of two checks at once the second one sees the first
        version = versions.champion(workspace, name)
        if version is None:
            why = "has no champion yet" if versions.registered(workspace, name) else versions.unknown(workspace, name)
            raise LookupError(why if why.startswith("no model") else f"{name} {why}; see `sevenfold models {name}`")
        bundle = bundles.load(versions.bundle_folder(workspace, version), expected=version.digest)
        check = monitoring.examine(
            bundle,
            receipts.of_model(workspace, name, now - timedelta(days=days), MOST_JOBS),
            model=version.label,
            digest=version.digest,
            when=now,
            own=workspace.root / str(bundle.origin["data_path"]),
            rows=rows,
            tolerated=rule.psi,
        )
        before = checks.past(workspace, name)
        decision = retraining.decide(check, before, rule, made=version.published)
        text = monitoring_page.page(check, decision, before)
        files.write_text(workspace.check(name), text)
        run_id = checks.record(
            workspace,
            version,
            now,
            verdict=decision.verdict,
            large=check.large,
            newest=check.newest,
            reasons=decision.reasons,
            metrics=check.metrics(),
            page=text,
            told=check.to_json() | decision.to_json(),
        )
    return Outcome(version, check, decision, workspace.check(name), run_id)
