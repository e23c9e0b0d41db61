"""Periods: the hours, days, weeks or months between two dates, as names of partitions."""

from datetime import datetime, timedelta
from typing import Literal, get_args

Step = Literal["hour", "day", "week", "month"]

NAMES: dict[Step, str] = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}
"""How a period is written unless somebody wants it otherwise, as of `datetime.strftime`."""

MOST = 100_000
"""Periods in one list; more are a mistake in a year."""


def between(first: str, last: str, step: Step, form: str | None = None) -> list[str]:
    """Return the names of all periods from the one that `first` lies in to the one that `last` lies in, in order.

    Args:
        first, last: moments as ISO 8601 writes them, such as 2026-11-28 or 2026-11-28T15.
        form: how names are written, as of `strftime`; None for `NAMES`.

    Raises:
        ValueError: a moment cannot be read, the last one comes before the first, there are too many, or two periods
            would have one name.
    """
    if step not in get_args(Step):
        raise ValueError(f"the step is {step!r}; expected one of {', '.join(get_args(Step))}")
    moment, end = _start(_moment(first), step), _start(_moment(last), step)
    if moment > end:
        raise ValueError(f"{last} comes before {first}; expected the first one first")
    names: list[str] = []
    while moment <= end:
        names.append(moment.strftime(form or NAMES[step]))
        moment = _next(moment, step)
        if len(names) > MOST:
            raise ValueError(
                f"from {first} to {last} are more than {MOST:,} {step}s; expected fewer; look at the years"
            )
    if len(set(names)) < len(names):
        raise ValueError(
            f"{form!r} gives several {step}s one name, {names[0]!r}; expected one for each; add what differs"
        )
    return names


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        raise ValueError(f"{text!r} is no date; expected one such as 2026-11-28 or 2026-11-28T15") from None


def _start(moment: datetime, step: Step) -> datetime:
    """Return where the period begins that a moment lies in; weeks begin on Monday."""
    if step == "hour":
        return moment.replace(minute=0, second=0, microsecond=0)
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if step == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if step == "month" else day


def _next(moment: datetime, step: Step) -> datetime:
    if step == "month":
        return moment.replace(year=moment.year + moment.month // 12, month=moment.month % 12 + 1)
    return moment + {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}[step]
