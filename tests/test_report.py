"""The report is one file that opens anywhere: it loads nothing, escapes every name, and shows everybody."""

import html.parser
import math
import re

import numpy as np
import pandas as pd
import pytest

from sevenfold import gate, report
from sevenfold.applications.base import Scores
from sevenfold.evaluation import Contest, Judgement, number

EVIL = "<script>alert('x')</script>&\"quoted\""


def judgement(score, **more):
    scores = Scores({"explained_variance": score, **more}, {"error": np.zeros(3)})
    return Judgement(scores, scores)


def contest(**changes):
    given = {
        "dataset": "digits",
        "application": "reduction",
        "primary": "explained_variance",
        "candidates": {"digits-deep": judgement(0.9, mse=0.01), "digits-shallow": judgement(0.5, mse=0.05)},
        "rivals": {"pca": judgement(0.8, mse=0.02, knn_accuracy=0.7)},
        "missing": {"svd": "ValueError: out of cheese", "digits-wide": "not evaluated"},
        "chosen": "digits-deep",
        "rival": "pca",
        "against": gate.Interval(0.1, 0.05, 0.15),
    }
    return Contest(**given | changes)


def verdict(passed=True, failed=1):
    results = [{"success": i >= failed, "severity": "warning"} for i in range(4)]
    return {"dataset": "digits", "passed": passed, "rows": 1797, "columns": 8, "expectations": results}


CURVES = {
    "digits-deep": pd.DataFrame({"epoch": [1, 2, 3], "validation_loss": [0.9, 0.3, 0.2]}),
    "digits-shallow": pd.DataFrame({"epoch": [1], "validation_loss": [0.5]}),
}


class Read(html.parser.HTMLParser):
    """A page's tags with their attributes, its tables as rows of text, and all of its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.tables, self.text, self.open = [], [], "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link"}:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


def page(*contests, verdicts=None, curves=CURVES):
    return report.page(contests or [contest()], verdicts if verdicts is not None else {"digits": verdict()}, curves)


def test_every_tag_is_closed():
    assert Read(page(contest(), contest(application="anomaly"))).open == []


def test_it_loads_nothing():
    made = page()
    for tag, attributes in Read(made).tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            if name.split(":")[-1] in {"src", "href", "srcset", "action", "data", "poster"}:
                assert value.startswith(("#", "data:")), (tag, name, value)
            assert not name.startswith("on")
    assert "@import" not in made
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]*)", made))


def test_the_same_results_give_the_same_bytes():
    assert page() == page()
    assert page() != page(contest(dataset="other"))


def test_no_name_or_reason_is_taken_for_markup():
    made = page(
        contest(
            dataset=EVIL,
            candidates={EVIL: judgement(0.9)},
            rivals={EVIL + "2": judgement(0.8)},
            missing={EVIL + "3": EVIL},
            chosen=EVIL,
            rival=EVIL + "2",
        ),
        verdicts={EVIL: verdict()},
        curves={EVIL: CURVES["digits-deep"]},
    )
    read = Read(made)
    assert read.open == []
    assert "<script" not in made
    assert read.text.count(EVIL) >= 8
    assert any(attributes.get("aria-label", "").endswith(EVIL) for _, attributes in read.tags)


def test_the_overview_has_every_contest_and_its_verdict():
    one, other = (
        contest(),
        contest(application="anomaly", chosen=None, rival=None, against=None, candidates={}, rivals={}),
    )
    head, *rows = Read(page(one, other)).tables[0]
    assert head == [
        "data set",
        "application",
        "winner",
        "winner's number",
        "best rival",
        "rival's number",
        "verdict",
    ]
    assert rows[0] == ["digits", "reduction", "digits-deep", "0.9000", "pca", "0.8000", one.verdict]
    assert rows[1] == ["digits", "anomaly", "-", "-", "-", "-", "no candidate has a result"]


def test_a_contests_table_has_everybody_best_first_and_the_missing_ones_with_their_reasons():
    one = contest()
    head, *rows = Read(page(one)).tables[2]
    assert head == ["name", "kind", "explained variance", "knn accuracy", "mse"]
    assert rows == [
        ["digits-deep", "autoencoder", "0.9000", "-", number(0.01)],
        ["pca", "rival", "0.8000", "0.7000", number(0.02)],
        ["digits-shallow", "autoencoder", "0.5000", "-", number(0.05)],
        ["svd", "no result: ValueError: out of cheese"],
        ["digits-wide", "no result: not evaluated"],
    ]
    assert f"<p>{one.verdict}.</p>" in page(one)


def test_the_chosen_candidate_stands_out():
    made = page()
    assert len(re.findall(r"<tr class='chosen'><td>digits-deep</td>", made)) == 1
    assert made.count("class='chosen'") == 1


@pytest.mark.parametrize(
    ("against", "tone"),
    [
        (gate.Interval(0.1, 0.05, 0.2), "good"),
        (gate.Interval(0.1, -0.05, 0.2), "bad"),
        (gate.Interval(0.1, math.nan, math.nan), "bad"),
    ],
)
def test_only_a_proven_winner_is_shown_as_one(against, tone):
    assert f"wrap {tone}" in page(contest(against=against, missing={}))


def test_the_state_of_the_data_is_shown():
    made = Read(page(verdicts={"digits": verdict(failed=0), "photos": verdict(passed=False, failed=3)}))
    assert made.tables[1] == [
        ["data set", "validation", "rows", "expectations", "not met"],
        ["digits", "passed", "1797", "4", "0"],
        ["photos", "failed", "1797", "4", "3"],
    ]


def test_a_picture_has_a_text_that_stands_for_it():
    pictures = [attributes for tag, attributes in Read(page()).tags if tag == "svg"]
    assert [p["role"] for p in pictures] == ["img"]
    assert (
        pictures[0]["aria-label"] == "Validation loss above its best by epoch of digits-deep"
    )  # one epoch makes no curve


def test_losses_below_zero_have_a_picture_too():
    curve = pd.DataFrame({"epoch": [1, 2], "validation_loss": [0.5, -3.0]})
    assert "<svg" in page(curves={"digits-deep": curve})
    flat = pd.DataFrame({"epoch": [1, 2], "validation_loss": [0.5, 0.5]})
    assert "<svg" in page(curves={"digits-deep": flat})


def test_curves_of_losses_in_different_units_share_an_axis():
    losses = pd.Series([4.0, 2.0, 1.0, 1.3])
    expected = [1.0, 1 / 3, report.NEAREST, 0.1]
    assert report.above_best(losses).tolist() == pytest.approx(expected)
    assert report.above_best(100 * losses - 77).tolist() == pytest.approx(expected)  # a bound may be below 0


def test_every_heading_cell_says_what_its_column_is():
    read = Read(page())
    assert all(cell for table in read.tables for cell in table[0])
    assert all(attributes["scope"] == "col" for tag, attributes in read.tags if tag == "th")
    assert ("html", {"lang": "en"}) in read.tags


def test_without_a_contest_it_says_so():
    made = report.page([], {}, {})
    assert "No contest has a result." in made
    assert Read(made).open == []


def test_a_curve_whose_first_epoch_is_the_best_stays_on_the_axis():
    assert report.above_best(pd.Series([1.0, 1.1, 1.2])).tolist() == pytest.approx([report.NEAREST, 0.5, 1.0])
    assert report.above_best(pd.Series([1.0, 1.0])).tolist() == [report.NEAREST] * 2
