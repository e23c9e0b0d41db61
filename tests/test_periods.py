"""Periods: the days or months of a backfill, by name."""

import pandas as pd
import pytest

from sevenfold import periods


@pytest.mark.parametrize(("step", "alias"), [("hour", "h"), ("day", "D"), ("week", "W-SUN"), ("month", "M")])
def test_periods_are_those_of_pandas(step, alias):
    first, last = "2023-11-29T22", "2024-03-02T03"
    theirs = pd.period_range(first, last, freq=alias).start_time.strftime(periods.NAMES[step])
    assert periods.between(first, last, step) == [*theirs]


def test_one_moment_has_one_period():
    assert periods.between("2026-02-28", "2026-02-28", "day") == ["2026-02-28"]
    assert periods.between("2026-12-31", "2027-01-01", "month", "%m/%Y") == ["12/2026", "01/2027"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2026-02-30", "2026-03-01", "day"), "'2026-02-30' is no date; expected one such as"),
        (("2026-03-02", "2026-03-01", "day"), "2026-03-01 comes before 2026-03-02"),
        (("2026-03-02", "2026-03-03", "year"), "the step is 'year'; expected one of hour, day"),
        (("1026-03-02", "2026-03-03", "hour"), "more than 100,000 hours"),
        (("2026-03-02", "2026-03-03", "day", "%Y"), "'%Y' gives several days one name, '2026'"),
    ],
)
def test_what_is_no_list_of_periods_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        periods.between(*arguments)
