"""A model card says what was measured, and its slices are the worst parts of the test rows, as a reader would sort them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from sevenfold import card, evaluation, formats, gate, publication
from sevenfold.applications.base import Scores
from sevenfold.applications.denoising import Denoising
from sevenfold.applications.reduction import Reduction
from sevenfold.evaluation import Contest, Judgement
from tests import tiny

METRIC = "explained_variance"


def judged(score, validation=0.5):
    return Judgement(Scores({METRIC: validation}, {}), Scores({METRIC: score}, {}))


CONTEST = Contest(
    dataset="table",
    application="reduction",
    primary=METRIC,
    candidates={"good": judged(0.8125), "weak": judged(0.25)},
    rivals={"pca": judged(0.75), "worst|named": judged(0.5), "other": judged(0.875)},
    missing={"slow": "TimeoutError: after\n600 s"},
    chosen="good",
    rival="other",
    against=gate.Interval(-0.0625, -0.125, 0.01),
)
FACTS = card.Facts(
    contest=CONTEST,
    about="Makes rows short.",
    variant="deep",
    operation="encode",
    digest="d" * 64,
    rows={"training": 1200, "validation": 40, "test": 80},
    validation="passed, 0 of 9 expectations not met",
    against={
        "pca": gate.Interval(0.0625, 0.03125, 0.125),
        "worst|named": "judged on 80 and 79 test rows",
        "other": gate.Interval(-0.0625, -0.125, 0.0078125),
    },
    slices={"city=Bern": (40, 0.75), "city=Oslo": (40, 0.5)},
    undivided=(),
    takes="a table with the 4 columns that it learned from, of which 1 may have gaps",
    refuses=("Gaps are refused in 'age'.",),
    megabytes=0.00234,
    milliseconds=1234.4,
    remarks=("It stopped early.",),
    provenance={"git_commit": "c" * 40},
)


def table(text, title):
    """Return the lines of the table under a title, without its head, as lists of cells."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")] for line in lines[2:]]


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_rivals_are_listed_by_their_score_with_the_difference_and_who_wins():
    assert table(card.markdown(FACTS), "Against its rivals") == [
        ["**good** (this model)", "0.8125", "", "", ""],
        ["other", "0.8750", "-0.0625", "-0.1250 to +0.0078", "not proven"],
        ["pca", "0.7500", "+0.0625", "+0.0312 to +0.1250", "this model"],
        ["worst\\|named", "0.5000", "", "judged on 80 and 79 test rows", "not compared"],
    ]
    assert "Without a result: slow (TimeoutError: after 600 s)." in card.markdown(FACTS)


def test_slices_are_listed_the_worst_first_the_small_after_them_and_the_undefined_last():
    few = gate.FEWEST_IN_SLICE - 1
    facts = replace(
        FACTS,
        slices={
            "city=Bern": (1000, 0.75),
            "city=Rome": (few, 0.125),
            "vip=True": (50, math.nan),
            "city=Oslo": (gate.FEWEST_IN_SLICE, 0.5),
            "vip=a|b": (60, 0.625),
        },
        undivided=("street",),
    )
    text = card.markdown(facts)
    assert table(text, "Slices") == [
        ["city=Oslo", "30", "0.5000"],
        ["vip=a\\|b", "60", "0.6250"],
        ["city=Bern", "1,000", "0.7500"],
        ["city=Rome", "29", "0.1250"],
        ["vip=True", "50", "not defined"],
    ]
    said = section(text, "Slices")
    assert "fewer than 30 rows" in said
    assert "Where explained variance is not defined" in said
    assert "Not divided by street: too many values." in said
    assert "all normal" not in said
    plain = section(card.markdown(FACTS), "Slices")
    assert "fewer than" not in plain
    assert "not defined" not in plain
    assert "Not divided" not in plain


def test_of_many_slices_the_worst_twenty_are_shown_and_the_others_counted():
    order = np.random.default_rng(0).permutation(27)
    facts = replace(FACTS, slices={f"label={i}": (100, float(i) / 32) for i in order})
    text = card.markdown(facts)
    assert [line[0] for line in table(text, "Slices")] == [f"label={i}" for i in range(20)]
    assert "7 more are left out." in section(text, "Slices")


def test_there_is_no_section_on_slices_without_any():
    assert "Slices" not in card.markdown(replace(FACTS, slices={}))


def test_anomalies_say_with_whom_a_part_of_one_kind_is_judged():
    facts = replace(FACTS, contest=replace(CONTEST, application="anomaly"))
    assert "A part that is all normal, or all anomalies, is judged together" in section(card.markdown(facts), "Slices")


@pytest.mark.parametrize(
    ("megabytes", "milliseconds", "said"),
    [
        (0.00234, 1234.4, "0.00234 MB on disk; 1,234 ms for 1,000 rows by `encode`"),
        (12.345, 0.5678, "12.3 MB on disk; 0.568 ms"),
        (0.0001, 99.96, "0.000 MB on disk; 100 ms"),
    ],
)
def test_the_cost_is_told_in_megabytes_and_milliseconds(megabytes, milliseconds, said):
    text = card.markdown(replace(FACTS, megabytes=megabytes, milliseconds=milliseconds))
    assert section(text, "Cost").strip().startswith(said)


def test_limits_say_what_is_taken_what_is_refused_and_that_far_rows_are_not_judged():
    said = [line.removeprefix("- ") for line in section(card.markdown(FACTS), "Limits").splitlines() if line]
    assert said[0].startswith(f"It takes {FACTS.takes};")
    assert said[1] == "Gaps are refused in 'age'."
    assert "Rows far from those of training are computed all the same" in said[2]
    assert said[3] == "It stopped early."


def test_on_a_page_there_is_room_between_columns_and_nothing_else_is_changed():
    text = card.markdown(FACTS)
    page = card.on_a_page(text)
    assert page.replace("&nbsp;", "") != page
    for before, after in zip(text.splitlines(), page.splitlines(), strict=True):
        assert after.replace("&nbsp;&nbsp;&nbsp;", "") == before
        if before.startswith("| ") and "---" not in before:
            assert after.count("&nbsp;&nbsp;&nbsp; | ") == before.count(" | ")
        else:
            assert after == before


def test_what_a_card_says_is_refused_is_refused():
    schema = tiny.dataset("table").schema
    said = " ".join(publication._refused(schema))
    rows = tiny.table(30)
    for column, bad, sentence in (
        ("city", "Atlantis", "Categories that its data set did not have are refused in 'city', 'vip'."),
        ("age", None, "Gaps are refused in 'city', 'age', 'vip', which had none in training."),
        ("income", 1e30, "farther than 1e+15 standard deviations from the mean, are refused."),
        ("income", math.inf, "Numbers that are not finite"),
    ):
        assert sentence in said
        frame = rows.frame.astype({"age": float})
        frame.loc[3, column] = bad
        assert schema.problems(formats.Rows(frame)), column
    frame = rows.frame.copy()
    frame.loc[3, "income"] = 1e9  # far, and computed all the same
    assert not schema.problems(formats.Rows(frame))


def test_slices_are_those_of_the_label_and_the_categories_by_the_applications_own_metric():
    data, application = tiny.dataset("table"), Reduction(**tiny.REDUCTION)
    count = len(data.test)
    values = {"error": np.arange(count, dtype=float), "total": np.full(count, 2.0 * count)}
    judgement = Judgement(Scores({}, {}), Scores({METRIC: 0.5}, values))
    found, undivided = publication._divided(application, judgement, data, "kind")
    assert undivided == []
    assert {name.partition("=")[0] for name in found} == {"kind", "city", "vip"}
    assert sum(rows for rows, _ in found.values()) == 3 * count
    for kind in ("normal", "odd"):
        of = [i for i in range(count) if data.test.y[i] == kind]
        assert found[f"kind={kind}"] == (len(of), pytest.approx(1 - sum(of) / (2.0 * count * len(of))))
    # Without the label's name there is no slice by it.
    assert {n.partition("=")[0] for n in publication._divided(application, judgement, data, None)[0]} == {"city", "vip"}


def test_there_are_no_slices_where_values_are_not_of_single_test_rows():
    data, application = tiny.dataset("images"), Denoising(**tiny.OPTIONS["denoising"])
    twice = {"anything": np.zeros(2 * len(data.test))}
    judgement = Judgement(Scores({}, {}), Scores({application.primary: 1.0}, twice))
    assert publication._divided(application, judgement, data, "label") == ({}, [])


def test_a_summary_of_everybody_puts_the_best_on_test_first_and_names_who_failed():
    lines = [[c.strip() for c in line.strip("|").split(" | ")] for line in card.scores(CONTEST).splitlines()[2:]]
    assert [line[0] for line in lines] == ["other", "**good** (chosen)", "pca", "worst\\|named", "weak", "slow"]
    assert lines[-1][1:] == ["no result", "", "TimeoutError: after 600 s"]
    assert json.dumps(evaluation.summary(CONTEST))  # what is kept beside it can be written
