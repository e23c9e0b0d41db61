"""Lateness: what becomes of a run whose hour has passed, or that comes while another works."""

from datetime import UTC, datetime, timedelta

from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.states import Cancelled

GRACE = timedelta(minutes=15)
"""How late a scheduled run may begin. What was missed by more, since no worker was there, is not caught up."""


def missed() -> "State[None] | None":
    """Return the state in which the flow run around this call ends if its hour has passed, else None."""
    run = _scheduled()
    if run is None or run.expected_start_time is None:
        return None
    told = late(run.expected_start_time, datetime.now(UTC))
    return Cancelled(name="Missed", message=told) if told else None


def skipped(error: Exception) -> "State[None] | None":
    """Return the state in which the flow run around this call ends where another works; None if a person wants it."""
    return Cancelled(name="Skipped", message=str(error)) if is_scheduled() else None


def is_scheduled() -> bool:
    """Say whether a schedule has created the flow run around this call."""
    return _scheduled() is not None


def _scheduled() -> FlowRun | None:
    """Return the flow run around this call if a schedule has created it and it runs for the first time.

    Who starts one by hand, or retries one, wants it, and wants an error.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run if isinstance(run, FlowRun) and run.auto_scheduled and run.run_count <= 1 else None


def late(due: datetime, now: datetime) -> str | None:
    """Say by how much a run that was due is too late; None where it is not."""
    if now - due <= GRACE:
        return None
    minutes = int((now - due).total_seconds() // 60)
    return (
        f"due {due.astimezone(UTC):%Y-%m-%d %H:%M} UTC, and no worker took it until {minutes:,} minutes later; what is "
        f"later than {GRACE.total_seconds() / 60:.0f} minutes is not caught up: the next one on the schedule does its work, "
        "or start one by hand"
    )
