"""When tasks that talk to the tracking server are tried again."""

from typing import Any

from sevenfold.registry import tracking


def trouble_may_pass(task: Any, run: Any, state: Any) -> bool:
    """Say whether a task failed on the way to the tracking server: rows that do not fit will not fit in ten seconds."""
    error = state.result(raise_on_failure=False)
    return tracking.may_pass(error) or tracking.may_pass(error.__cause__)


AGAIN: dict[str, Any] = {"retries": 3, "retry_delay_seconds": [2, 10, 30], "retry_condition_fn": trouble_may_pass}
"""Options of such a task."""
