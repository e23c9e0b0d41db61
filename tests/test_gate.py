"""Who becomes champion: laws of the gate over all scores there can be."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevenfold import gate
from sevenfold.gate import Interval, Rule, Slice, Standing

patient = settings(deadline=None, derandomize=True)  # a busy machine is no failure
anything = st.floats(allow_nan=True, allow_infinity=True)
scores = st.floats(-1, 1)
METRICS = ("auroc", "recall")
SLICES = ("city=Bern", "city=Oslo", "city=Rome", "vip=True")


def optional(values):
    return st.none() | values


def rules(values, positive):
    return st.builds(
        Rule,
        must_beat_rivals=st.booleans(),
        floor=optional(values),
        floors=st.dictionaries(st.sampled_from(METRICS), values),
        margin=positive,
        slices=st.sampled_from([(), ("city", "vip")]),
        slice_tolerance=positive,
        max_megabytes=optional(positive),
        max_milliseconds=optional(positive),
    )


def intervals(values):
    return st.builds(Interval, values, values, values)


def standings(values, positive):
    slices = st.dictionaries(
        st.sampled_from(SLICES), st.tuples(st.sampled_from([5, 29, 30, 60]), optional(intervals(values)))
    )
    return st.builds(
        Standing,
        values,
        values,
        optional(intervals(values)),
        optional(intervals(values)),
        st.dictionaries(st.sampled_from(METRICS), values),
        slices.map(lambda found: tuple(Slice(name, rows, interval) for name, (rows, interval) in found.items())),
        optional(positive),
        optional(positive),
    )


def fields(values, positive):
    return st.dictionaries(st.sampled_from("abcdef"), standings(values, positive), max_size=5)


@st.composite
def decent(draw):
    """A candidate and a rule that it often passes, so that the laws of winners have winners to look at."""
    high, low, cost = st.floats(0.5, 1), st.floats(-1, 0.6), st.floats(1, 10)
    won = st.builds(lambda a, b, c: Interval(a + b, a, a + b + c), st.floats(0.1, 0.5), *[st.floats(0, 0.5)] * 2)
    rule = draw(rules(low, st.floats(0, 0.15)))
    rule = replace(rule, **{limit: draw(optional(st.floats(8, 20))) for limit in ("max_megabytes", "max_milliseconds")})
    parts = draw(st.lists(st.sampled_from(SLICES), unique=True))
    one = Standing(
        draw(high),
        draw(high),
        draw(won),
        draw(optional(won)),
        {name: draw(high) for name in METRICS},
        tuple(Slice(name, draw(st.sampled_from([5, 30])), draw(won)) for name in parts),
        draw(cost),
        draw(cost),
    )
    return one, rule


positive = st.floats(0, 1)
cases = st.tuples(fields(scores, positive), rules(scores, positive)) | decent().map(lambda c: ({"one": c[0]}, c[1]))

WON = Interval(0.1, 0.05, 0.15)
LOST = Interval(-0.1, -0.15, -0.05)
GOOD = Standing(0.9, 0.9, WON, None)


def finite(*intervals):
    return all(math.isfinite(n) for i in intervals for n in (i.difference, i.low, i.high))


def missed(one, rule):
    """Count the conditions that a candidate misses, each said in its own words here."""
    found = [rule.floor is not None and one.test < rule.floor]
    found += [name not in one.metrics or one.metrics[name] < floor for name, floor in rule.floors.items()]
    found += [rule.must_beat_rivals and (one.against_rival is None or one.against_rival.low <= rule.margin)]
    found += [one.against_champion is not None and one.against_champion.low <= rule.margin]
    for part in one.slices if rule.slices else ():
        interval = part.against_champion
        found += [part.rows >= 30 and (interval is None or interval.high < -rule.slice_tolerance)]
    found += [rule.max_megabytes is not None and (one.megabytes is None or one.megabytes > rule.max_megabytes)]
    found += [
        rule.max_milliseconds is not None and (one.milliseconds is None or one.milliseconds > rule.max_milliseconds)
    ]
    return sum(found)


@patient
@given(fields(anything, anything), rules(anything, anything))
def test_nobody_passes_with_a_number_that_is_none(candidates, rule):
    winner = gate.choose(candidates, rule).winner
    if winner is not None:
        one = candidates[winner]
        assert math.isfinite(one.validation)
        assert math.isfinite(one.test)
        assert one.against_champion is None or finite(one.against_champion)
        assert not rule.must_beat_rivals or finite(one.against_rival)
        assert all(math.isfinite(one.metrics[name]) for name in rule.floors)
        assert not rule.slices or finite(*(part.against_champion for part in one.slices if part.rows >= 30))
        assert rule.max_megabytes is None or math.isfinite(one.megabytes)
        assert rule.max_milliseconds is None or math.isfinite(one.milliseconds)
        assert not any(math.isnan(number) for number in (*rule.floors.values(), rule.floor or 0))


SPOILT = {
    "validation": lambda one: replace(one, validation=math.nan),
    "test": lambda one: replace(one, test=math.nan),
    "a metric": lambda one: replace(one, metrics={**one.metrics, "auroc": math.nan}),
    "an infinite metric": lambda one: replace(one, metrics={**one.metrics, "auroc": math.inf}),
    "against the rival": lambda one: replace(one, against_rival=Interval(0.1, 0.05, math.nan)),
    "against the champion": lambda one: replace(one, against_champion=Interval(math.nan, 0.05, 0.2)),
    "a slice": lambda one: replace(one, slices=(Slice("vip=True", 40, Interval(0.1, math.nan, 0.2)),)),
    "size": lambda one: replace(one, megabytes=math.nan),
    "no size": lambda one: replace(one, megabytes=-math.inf),
    "no time": lambda one: replace(one, milliseconds=-math.inf),
    "time": lambda one: replace(one, milliseconds=math.nan),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_one_number_that_is_none_is_enough_to_be_refused(spoil):
    rule = Rule(True, 0.5, {"auroc": 0.5}, 0.0, ("vip",), 0.0, 10, 10)
    one = Standing(0.9, 0.9, WON, WON, {"auroc": 0.9}, (Slice("vip=True", 40, WON),), 1.0, 1.0)
    assert gate.choose({"new": one}, rule).winner == "new"
    assert gate.choose({"new": spoil(one)}, rule).winner is None


@patient
@given(cases)
def test_a_winner_meets_every_condition_and_of_a_refused_one_every_missed_one_is_told(case):
    candidates, rule = case
    choice = gate.choose(candidates, rule)
    if not candidates:
        assert choice == gate.Choice(None, ("no candidate has a finite score on validation",))
        return
    best = min(candidates, key=lambda name: (-candidates[name].validation, name))
    count = missed(candidates[best], rule)
    assert choice.winner == (None if count else best)
    assert choice.reasons[0].startswith(f"{best} is best on validation")
    if count:
        assert len(choice.reasons) == 1 + count


@patient
@given(cases, st.randoms())
def test_the_order_of_candidates_of_slices_and_of_metrics_does_not_matter(case, random):
    candidates, rule = case

    def shuffled(items):
        items = list(items)
        random.shuffle(items)
        return items

    other = {
        name: replace(one, slices=tuple(shuffled(one.slices)), metrics=dict(shuffled(one.metrics.items())))
        for name, one in shuffled(candidates.items())
    }
    mine, yours = gate.choose(candidates, rule), gate.choose(other, rule)
    assert mine.winner == yours.winner
    assert len(mine.reasons) == len(yours.reasons)
    listed = "there are: "  # metrics are listed as they come
    assert [r for r in mine.reasons if listed not in r] == [r for r in yours.reasons if listed not in r]


@patient
@given(cases, *[st.floats(0, 1)] * 4)
def test_a_winner_that_gets_better_stays_the_winner(case, more, wider, cheaper, thinner):
    candidates, rule = case
    winner = gate.choose(candidates, rule).winner
    if winner is None:
        return

    def raised(interval):
        return interval and Interval(interval.difference + wider, interval.low + wider, interval.high + wider)

    old = candidates[winner]
    better = Standing(
        old.validation + more,
        old.test + more,
        raised(old.against_rival),
        raised(old.against_champion),
        {name: value + more for name, value in old.metrics.items()},
        tuple(replace(part, against_champion=raised(part.against_champion)) for part in old.slices),
        old.megabytes and old.megabytes * cheaper,
        old.milliseconds and old.milliseconds * thinner,
    )
    assert gate.choose({**candidates, winner: better}, rule).winner == winner


@patient
@given(cases, rules(scores, positive))
def test_a_stricter_rule_lets_nobody_new_pass(case, other):
    candidates, rule = case

    def most(*values):
        return max((v for v in values if v is not None), default=None)

    def least(*values):
        return min((v for v in values if v is not None), default=None)

    strict = Rule(
        rule.must_beat_rivals or other.must_beat_rivals,
        most(rule.floor, other.floor),
        {name: most(rule.floors.get(name), other.floors.get(name)) for name in {**rule.floors, **other.floors}},
        max(rule.margin, other.margin),
        rule.slices or other.slices,
        min(rule.slice_tolerance, other.slice_tolerance),
        least(rule.max_megabytes, other.max_megabytes),
        least(rule.max_milliseconds, other.max_milliseconds),
    )
    assert gate.choose(candidates, strict).winner in (gate.choose(candidates, rule).winner, None)


@patient
@given(decent(), st.floats(0, 1))
def test_whoever_is_equal_to_the_champion_never_replaces_it(case, spread):
    one, rule = case
    equal = replace(one, against_champion=Interval(0.0, -spread, spread))
    assert gate.choose({"new": equal}, rule).winner is None


@patient
@given(decent())
def test_a_rule_that_asks_for_nothing_lets_any_first_candidate_pass(case):
    one = replace(case[0], against_champion=None, slices=(Slice("vip=True", 40, LOST),))
    assert gate.choose({"new": one}, Rule(False)).winner == "new"


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
        (
            replace(GOOD, metrics={"auroc": 0.8}),
            Rule(False, floors={"auroc": 0.8}),
            "new",
            "its auroc on test, 0.8000, reaches the floor of 0.8",
        ),
        (
            replace(GOOD, metrics={"auroc": 0.8}),
            Rule(False, floors={"auroc": 0.9}),
            None,
            "its auroc on test, 0.8000, is below the floor of 0.9",
        ),
        (
            replace(GOOD, metrics={"auroc": 0.8, "recall": 0.7}),
            Rule(False, floors={"auroc ": 0.9}),
            None,
            "it has no metric auroc , for which there is a floor; there are: auroc, recall",
        ),
        (GOOD, Rule(False, floors={"auroc": 0.9}), None, "for which there is a floor; there are: none"),
        (
            GOOD,
            Rule(True, margin=0.02),
            "new",
            "it beats the best rival by more than 0.02 (by +0.1000, 95 % interval +0.0500 to +0.1500)",
        ),
        (
            replace(GOOD, against_champion=WON),
            Rule(False, margin=0.05),
            None,
            "it is not proven better than today's champion by more than 0.05 (by +0.1000, 95 % interval +0.0500",
        ),
        (
            replace(GOOD, slices=(Slice("city=Bern", 40, LOST),)),
            Rule(False, slices=("city",)),
            None,
            "it is proven worse than today's champion in the slice city=Bern (40 rows) (by -0.1000, 95 % interval -0.1500",
        ),
        (
            replace(GOOD, slices=(Slice("city=Bern", 40, LOST),)),
            Rule(False, slices=("city",), slice_tolerance=0.05),
            "new",
            "it is not proven worse in the slice city=Bern (40 rows) (by -0.1000, ",
        ),
        (
            replace(GOOD, slices=(Slice("city=Bern", 40, None),)),
            Rule(False, slices=("city",)),
            None,
            "the metric is not defined in the slice city=Bern (40 rows); leave that column out of `slices`",
        ),
        (
            replace(GOOD, slices=(Slice("town", 0, None, "'town' is no label"),)),
            Rule(False, slices=("town",)),
            None,
            "the slice town cannot be judged: 'town' is no label",
        ),
        (
            replace(GOOD, slices=tuple(Slice(f"city={i:02d}", 29, LOST) for i in range(12))),
            Rule(False, slices=("city",)),
            "new",
            "not judged, with fewer than 30 rows each: the slices city=00, city=01, city=02, city=03, city=04, city=05, "
            "city=06, city=07, city=08, city=09 and 2 more",
        ),
        (
            replace(GOOD, megabytes=2.5),
            Rule(False, max_megabytes=2.5),
            "new",
            "its bundle has 2.5 MB, within the limit of 2.5 MB",
        ),
        (
            replace(GOOD, megabytes=2.6),
            Rule(False, max_megabytes=2.5),
            None,
            "its bundle has 2.6 MB, above the limit of 2.5 MB",
        ),
        (
            replace(GOOD, milliseconds=12.34),
            Rule(False, max_milliseconds=20),
            "new",
            "1,000 rows take 12.34 ms, within the limit of 20 ms",
        ),
        (
            replace(GOOD, milliseconds=120.0),
            Rule(False, max_milliseconds=20),
            None,
            "1,000 rows take 120 ms, above the limit of 20 ms",
        ),
        (GOOD, Rule(False, max_megabytes=2), None, "the size of its bundle was not measured, and the limit is 2 MB"),
        (
            GOOD,
            Rule(False, max_milliseconds=2),
            None,
            "its time for 1,000 rows was not measured, and the limit is 2 ms",
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
