"""Who becomes champion: laws of the gate over all scores there can be."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevenfold import gate
from sevenfold.gate import Interval, Rule, Standing

patient = settings(deadline=None, derandomize=True)  # a busy machine is no failure
anything = st.floats(allow_nan=True, allow_infinity=True)
scores = st.floats(-1, 1)
floors = st.none() | scores
rules = st.builds(Rule, must_beat_rivals=st.booleans(), floor=floors)


def standings(values):
    intervals = st.none() | st.builds(Interval, values, values, values)
    return st.builds(Standing, values, values, intervals, intervals)


def fields(values):
    return st.dictionaries(st.sampled_from("abcdef"), standings(values), max_size=5)


WON = Interval(0.1, 0.05, 0.15)
GOOD = Standing(0.9, 0.9, WON, None)


@patient
@given(fields(anything), rules)
def test_nobody_passes_with_a_number_that_is_none(candidates, rule):
    winner = gate.choose(candidates, rule).winner
    if winner is not None:
        passed = candidates[winner]
        assert math.isfinite(passed.validation)
        assert math.isfinite(passed.test)
        asked = [passed.against_champion] + [passed.against_rival] * rule.must_beat_rivals
        assert not any(math.isnan(number) for i in asked if i for number in (i.difference, i.low))


@patient
@given(fields(scores), rules)
def test_a_winner_meets_every_condition_and_a_refused_one_misses_one(candidates, rule):
    choice = gate.choose(candidates, rule)
    if not candidates:
        assert choice == gate.Choice(None, ("no candidate has a finite score on validation",))
        return
    best = min(candidates, key=lambda name: (-candidates[name].validation, name))
    one = candidates[best]
    rival = one.against_rival is not None and one.against_rival.low > 0
    passes = (
        (rule.floor is None or one.test >= rule.floor)
        and (rival or not rule.must_beat_rivals)
        and (one.against_champion is None or one.against_champion.low > 0)
    )
    assert choice.winner == (best if passes else None)
    assert choice.reasons[0].startswith(f"{best} is best on validation")


@patient
@given(fields(scores), rules, st.randoms())
def test_the_order_of_candidates_does_not_matter(candidates, rule, random):
    names = list(candidates)
    random.shuffle(names)
    assert gate.choose({name: candidates[name] for name in names}, rule) == gate.choose(candidates, rule)


@patient
@given(fields(scores), rules, st.floats(0, 1), st.floats(0, 1))
def test_a_winner_that_gets_better_stays_the_winner(candidates, rule, more, wider):
    winner = gate.choose(candidates, rule).winner
    if winner is None:
        return

    def raised(interval):
        return interval and Interval(interval.difference + wider, interval.low + wider, interval.high + wider)

    old = candidates[winner]
    better = Standing(old.validation + more, old.test + more, raised(old.against_rival), raised(old.against_champion))
    assert gate.choose({**candidates, winner: better}, rule).winner == winner


@patient
@given(fields(scores), scores, st.booleans())
def test_a_higher_floor_lets_nobody_new_pass(candidates, floor, must_beat):
    lenient, strict = (gate.choose(candidates, Rule(must_beat, f)).winner for f in (floor, floor + 0.1))
    assert strict in (lenient, None)


@patient
@given(st.dictionaries(st.text(min_size=1), anything))
def test_the_best_is_the_highest_finite_score_and_of_equals_the_first_by_name(found):
    finite = sorted(((-value, name) for name, value in found.items() if math.isfinite(value)))
    assert gate.best(found) == (finite[0][1] if finite else None)


@pytest.mark.parametrize(
    "against",
    [Interval(0.0, 0.0, 0.0), Interval(0.1, 0.0, 0.2), Interval(0.1, -0.01, 0.2), Interval(0.1, math.nan, 0.2)],
)
def test_a_tie_keeps_the_champion(against):
    choice = gate.choose({"new": replace(GOOD, against_champion=against)}, Rule(False, None))
    assert choice.winner is None
    assert choice.reasons[0] == "new is best on validation but does not pass"
    assert choice.reasons[1].startswith("it is not proven better than today's champion (by +0.")


def test_only_the_best_on_validation_stands_for_the_rest():
    lower = Standing(0.8, 0.99, WON, WON)
    assert gate.choose({"a": replace(GOOD, against_rival=None), "b": lower}, Rule(True, None)).winner is None


@pytest.mark.parametrize(
    ("standing", "rule", "winner", "reason"),
    [
        (GOOD, Rule(True, None), "new", "it beats the best rival (by +0.1000, 95 % interval +0.0500 to +0.1500)"),
        (replace(GOOD, against_champion=WON), Rule(False, None), "new", "it beats today's champion (by +0.1000, "),
        (GOOD, Rule(False, 0.9), "new", "its score on test, 0.9000, reaches the floor of 0.9"),
        (GOOD, Rule(False, 0.95), None, "its score on test, 0.9000, is below the floor of 0.95"),
        (GOOD, Rule(False, math.nan), None, "its score on test, 0.9000, is below the floor of nan"),
        (replace(GOOD, test=math.nan), Rule(False, None), None, "its score on test is nan"),
        (
            replace(GOOD, against_rival=Interval(math.nan, 0.1, 0.2)),
            Rule(True, None),
            None,
            "it is not proven better than",
        ),
        (replace(GOOD, against_rival=None), Rule(True, None), None, "no rival has a result that it could beat"),
        (
            replace(GOOD, against_rival=Interval(0.1, -0.1, 0.3)),
            Rule(True, None),
            None,
            "not proven better than the best rival",
        ),
        (
            replace(GOOD, against_rival=Interval(-0.1, -0.2, 0)),
            Rule(False, None),
            "new",
            "new is best on validation (0.9000)",
        ),
    ],
)
def test_every_reason_is_told(standing, rule, winner, reason):
    choice = gate.choose({"new": standing}, rule)
    assert choice.winner == winner
    assert any(reason in told for told in choice.reasons)


def test_an_interval_is_valid_json_also_where_it_is_not_known():
    assert json.loads(json.dumps(WON.to_json())) == {"difference": 0.1, "low": 0.05, "high": 0.15}
    assert Interval(0.1, math.nan, math.inf).to_json() == {"difference": 0.1, "low": None, "high": None}
