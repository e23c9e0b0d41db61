"""Judging, choosing and comparing: on which rows each happens, and that the interval is a paired bootstrap's."""

import json
import math
import re
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

import samples
from sevenfold import evaluation, gate
from sevenfold.applications.base import Rival, Scores
from sevenfold.evaluation import Judgement

REDUCTION, ANOMALY = samples.application("reduction"), samples.application("anomaly")


def judgement(validation, test, primary="explained_variance", **values):
    """A judgement whose test rows score `test` each, unless `values` say otherwise."""
    values = values or {"error": np.full(50, 1 - test), "total": np.ones(50)}
    return Judgement(Scores({primary: validation}, values), Scores({primary: test}, values))


def noisy(mean, seed, rows=200, hardness=0.0):
    generator = np.random.default_rng(seed)
    error = (np.random.default_rng(9).random(rows) * hardness + mean + 0.1 * generator.random(rows)).astype(float)
    total = 2 + np.random.default_rng(8).random(rows)
    score = 1 - error.sum() / total.sum()
    return judgement(score, score, error=error, total=total)


def test_the_interval_is_a_paired_bootstrap_of_the_primary_metric():
    ours, theirs = noisy(0.30, 0), noisy(0.32, 1)
    found = evaluation.interval(REDUCTION, ours, theirs)

    def statistic(one, other, total, axis):
        return (other.sum(axis) - one.sum(axis)) / total.sum(axis)

    sample = [ours.test.values["error"], theirs.test.values["error"], ours.test.values["total"]]
    oracle = stats.bootstrap(
        sample,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    width = oracle.high - oracle.low
    assert found.difference == pytest.approx(statistic(*sample, axis=0))
    assert found.low == pytest.approx(oracle.low, abs=0.1 * width)
    assert found.high == pytest.approx(oracle.high, abs=0.1 * width)


def test_what_makes_a_row_hard_for_everybody_does_not_widen_the_interval():
    easy = evaluation.interval(REDUCTION, noisy(0.3, 0), noisy(0.32, 1))
    hard = evaluation.interval(REDUCTION, noisy(0.3, 0, hardness=1.0), noisy(0.32, 1, hardness=1.0))
    assert hard.high - hard.low == pytest.approx(easy.high - easy.low, rel=0.1)


def test_the_interval_of_average_precision_agrees_with_scikit_learns():
    strange = np.arange(120) % 6 == 0
    generator = np.random.default_rng(0)
    made = [ANOMALY.scores(generator.normal(size=120) + shift * strange, strange, 0.0) for shift in (1.5, 1.0)]
    ours, theirs = (Judgement(scores, scores) for scores in made)
    found = evaluation.interval(ANOMALY, ours, theirs)
    differences, oracle = [], np.random.default_rng(1)
    for _ in range(1000):
        rows = oracle.integers(120, size=120)
        pair = [metrics.average_precision_score(strange[rows], s.values["score"][rows]) for s in made]
        differences.append(pair[0] - pair[1])
    low, high = np.quantile(differences, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.12 * (high - low))
    assert found.high == pytest.approx(high, abs=0.12 * (high - low))


def test_the_same_judgement_differs_from_itself_by_nothing():
    one = noisy(0.3, 0)
    assert evaluation.interval(REDUCTION, one, one) == gate.Interval(0.0, 0.0, 0.0)


def test_where_no_draw_has_the_metric_the_interval_is_not_a_number():
    values = {"error": np.zeros(5), "total": np.zeros(5)}
    found = evaluation.interval(REDUCTION, *[judgement(0.5, score, **values) for score in (0.5, 0.4)])
    assert found.difference == pytest.approx(0.1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_judgements_of_different_rows_are_not_compared():
    with pytest.raises(ValueError, match=r"judged on 100 and 200 test rows; expected the same; evaluate both again"):
        evaluation.interval(REDUCTION, noisy(0.3, 0, rows=100), noisy(0.3, 0))


def hold(candidates, rivals, missing=None):
    return evaluation.hold("digits", "reduction", REDUCTION, candidates, rivals, missing or {})


def test_the_candidate_is_chosen_on_validation_and_the_hardest_rival_on_test():
    contest = hold(
        {"lucky": judgement(0.5, 0.9), "steady": judgement(0.6, 0.7)},
        {"weak": judgement(0.9, 0.3), "hard": judgement(0.1, 0.6)},
    )
    assert (contest.chosen, contest.rival) == ("steady", "hard")
    assert contest.against.difference == pytest.approx(0.7 - 0.6)
    assert contest.name == "digits-reduction"
    assert contest.score("lucky") == 0.9
    assert contest.score("weak") == 0.3


def test_a_candidate_without_a_finite_score_is_not_chosen():
    assert hold({"a": judgement(math.nan, 0.9), "b": judgement(0.1, 0.2)}, {}).chosen == "b"


def test_a_name_for_two_is_refused():
    with pytest.raises(
        ValueError, match=r"digits-reduction: pca names both a candidate and a rival; rename the candidate"
    ):
        hold({"pca": judgement(0.5, 0.5)}, {"pca": judgement(0.5, 0.5)})


CLEAR, CLOSE = noisy(0.30, 0), noisy(0.301, 1)
VERDICTS = {
    "no candidate has a result": ({}, {"pca": CLEAR}),
    "deep has no rival to be compared with": ({"deep": CLEAR}, {}),
    r"deep beats the best rival, pca: explained variance 0\.8\d+ against 0\.6\d+ \(higher is better\), by 0\.\d+ to 0\.\d+": (
        {"deep": CLEAR},
        {"pca": noisy(0.8, 1)},
    ),
    r"pca wins here: use it; explained variance 0\.8\d+ against 0\.6\d+ of deep \(higher is better\), by 0\.\d+ to 0\.\d+": (
        {"deep": noisy(0.8, 1)},
        {"pca": CLEAR},
    ),
    r"no proven difference between deep and the best rival, pca: explained variance 0\.8\d+ against 0\.8\d+ "
    r"\(higher is better\), a difference of -0\.\d+ to 0\.\d+": (
        {"deep": CLOSE},
        {"pca": CLEAR},
    ),
    r"no difference that matters between deep and the best rival, pca: explained variance 0\.8\d+": (
        {"deep": CLEAR},
        {"pca": CLEAR},
    ),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_says_in_words_what_the_interval_says_in_numbers(verdict):
    contest = hold(*VERDICTS[verdict])
    assert re.fullmatch(verdict, contest.verdict)


def test_where_the_metric_is_on_no_draw_the_verdict_gives_no_range():
    values = {"error": np.zeros(5), "total": np.zeros(5)}
    contest = hold({"deep": judgement(0.5, 0.5, **values)}, {"pca": judgement(0.5, 0.4, **values)})
    assert contest.verdict == (
        "no proven difference between deep and the best rival, pca: explained variance 0.5000 against 0.4000 "
        "(higher is better)"
    )


def test_beats_rivals_is_true_only_where_the_interval_lies_above_zero():
    for candidates, rivals in VERDICTS.values():
        contest = hold(candidates, rivals)
        summary = json.loads(json.dumps(evaluation.summary(contest), allow_nan=False))
        assert summary["verdict"] == contest.verdict
        assert ("winner" in summary) == bool(candidates)
        if candidates and rivals:
            assert summary["beats_rivals"] == (contest.against.low > 0) == ("beats" in contest.verdict)
            assert summary["score"] == contest.score("deep") == summary["test"]["explained_variance"]
            assert summary["rival"]["score"] == contest.score("pca")
        else:
            assert "beats_rivals" not in summary


def test_judgements_come_back_from_disk_as_they_were(tmp_path):
    _, saved = samples.judged("anomaly", "table")
    saved.save(tmp_path, "average_precision")
    loaded = Judgement.load(tmp_path)
    for part in ("validation", "test"):
        one, two = getattr(saved, part), getattr(loaded, part)
        assert dict(one.metrics) == dict(two.metrics)
        assert one.values.keys() == two.values.keys()
        assert all(np.array_equal(value, two.values[name]) for name, value in one.values.items())
    assert json.loads((tmp_path / "scores.json").read_text())["primary"] == "average_precision"


def test_metrics_that_are_not_finite_are_listed_and_nothing_is_written(tmp_path):
    bad = Judgement(Scores({"auroc": 0.5, "recall": math.nan}, {}), Scores({"auroc": math.inf, "recall": 0.5}, {}))
    message = r"validation.recall is nan, test.auroc is inf; expected finite numbers; give the split a larger share or more rows"
    with pytest.raises(ArithmeticError, match=message):
        bad.save(tmp_path, "auroc")
    assert list(tmp_path.iterdir()) == []


def test_a_rival_with_any_metric_that_is_not_finite_has_no_result_and_says_why():
    data = samples.dataset("table")
    only_odd = samples.split(data.test.x, normal=np.zeros(len(data.test), bool))
    judged, failed = evaluation.judge_rivals(_OneRival(**ANOMALY.options), replace(data, test=only_odd))
    assert judged == {}
    assert failed["pca_error"].startswith(
        "ArithmeticError: test.auroc is nan, test.false_positive_rate is nan; expected finite"
    )


class _OneRival(type(ANOMALY)):
    def rivals(self):
        return {"pca_error": super().rivals()["pca_error"]}


def test_a_calibrated_application_is_judged_again_as_it_is():
    data = samples.dataset("table")
    application, before = samples.judged("anomaly", "table")
    again = evaluation.rejudge(application, samples.trained("pca", "table", "normal"), data)
    assert dict(again.test.metrics) == dict(before.test.metrics)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98765, "0.9877"),
        (0.0, "0.0000"),
        (0.00012345, "0.0001234"),
        (-0.5, "-0.5000"),
        (123.456, "123.5"),
        (math.nan, "nan"),
    ],
)
def test_a_number_has_the_digits_that_a_reader_needs(value, text):
    assert evaluation.number(value) == text


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("average_precision", "average precision"),
        ("knn_accuracy", "k-NN accuracy"),
        ("psnr_gain_25", "PSNR gain 25"),
        ("ms_ssim", "MS-SSIM"),
        ("rmse_mcar", "RMSE MCAR"),
    ],
)
def test_a_metric_is_named_as_people_write_it(metric, text):
    assert evaluation.label(metric) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.1235"), (-0.00012345, "-0.00012"), (6.154e-05, "0.000062"), (-1e-12, "0.0000"), (math.nan, "nan")],
)
def test_a_small_difference_is_written_without_an_exponent(value, text):
    assert evaluation.difference(value) == text


class _Slow(Rival):
    def fit(self, train, validation):
        for _ in range(2000):
            time.sleep(0.01)

    def evaluate(self, split, train):
        raise AssertionError("never reached")


class _Contest(type(REDUCTION)):
    def rivals(self):
        return {"slow": _Slow(), **dict(list(super().rivals().items())[:1])}


def test_a_rival_that_runs_past_its_budget_says_so_and_the_others_are_judged():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rang.append(number))
    former = signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        judged, failed = evaluation.judge_rivals(_Contest(**REDUCTION.options), samples.dataset("table"), seconds=0.3)
        assert failed == {
            "slow": "BudgetError: stopped after its 0.3 seconds; give rivals more by `rivals.seconds`",
        }
        assert list(judged) == ["pca"]
        # An alarm that somebody else had set rings in its own time.
        time.sleep(1.2)
        assert rang == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *former)
        signal.signal(signal.SIGALRM, before)


def test_outside_the_main_thread_rivals_are_judged_without_a_budget():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(evaluation.judge_rivals(REDUCTION, samples.dataset("table"), seconds=1e-3))
    )
    thread.start()
    thread.join()
    assert found[0][1] == {}
