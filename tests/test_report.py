"""The report is one file that opens anywhere: it loads nothing, escapes every name, and shows everybody."""

import html.parser
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest

import samples
from sevenfold import evaluation, files, formats, gate, glossary, modules, pictures, report, report_page, stages
from sevenfold.applications.base import Application, Scores
from sevenfold.evaluation import GROUP, Contest, Judgement, number
from sevenfold.pictures import Picture
from sevenfold.report_page import Chapter, Timing
from sevenfold.workspace import Workspace
from tests import tiny

EVIL = "<script>alert('x')</script>&\"quoted\""


def judgement(score, validation=None, values=None, **more):
    values = {"error": np.zeros(3)} if values is None else values
    return Judgement(
        Scores({"explained_variance": score if validation is None else validation, **more}, values),
        Scores({"explained_variance": score, **more}, values),
    )


def contest(**changes):
    given = {
        "dataset": "digits",
        "application": "reduction",
        "primary": "explained_variance",
        "candidates": {"digits-deep": judgement(0.9, 0.85, mse=0.01), "digits-shallow": judgement(0.5, mse=0.05)},
        "rivals": {"pca": judgement(0.8, mse=0.02, knn_accuracy=0.7)},
        "missing": {"svd": "ValueError: out of cheese", "digits-wide": "not evaluated"},
        "chosen": "digits-deep",
        "rival": "pca",
        "against": gate.Interval(0.1, 0.05, 0.15),
    }
    return Contest(**given | changes)


DIFFERENCES = {"pca": gate.Interval(-0.1, -0.15, -0.05), "digits-shallow": gate.Interval(-0.4, -0.5, 0.1)}
NOBODY = {"chosen": None, "rival": None, "against": None, "candidates": {}, "rivals": {}}


def chapter(of=None, **changes):
    given = {
        "variants": {"digits-deep": "deep", "digits-shallow": "deep", "digits-wide": "deep"},
        "differences": DIFFERENCES,
    }
    return Chapter(of or contest(), **given | changes)


def verdict(passed=True, failed=1, name="mean radius"):
    return {
        "dataset": "digits",
        "passed": passed,
        "rows": 1797,
        "columns": 8,
        "expectations": [
            {
                "success": i >= failed,
                "severity": "warning" if passed else "critical",
                "column": name,
                "expected": "at least 0",
                "observed": "3 of 1797 values",
                "unexpected": 3,
                "examples": ["-1", "-2", "-3", "-4"],
            }
            for i in range(4)
        ],
    }


class Read(html.parser.HTMLParser):
    """A page's tags with their attributes, its tables as rows of text, what stands for each, and all of its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.tables, self.labels, self.text, self.open = [], [], [], "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "wbr"}:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
            self.labels.append(self.tags[-2][1]["aria-label"])  # of the box that scrolls
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"td", "th"}:
            self.tables[-1][-1].append("")
        if tag == "span" and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += " | "

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for found, attributes in self.tags if found == tag]


def page(*chapters, verdicts=None):
    return report_page.page(chapters or [chapter()], {"digits": verdict()} if verdicts is None else verdicts)


def picture(name="map", title="A map", description="Dots on a plane.", kind="svg"):
    content = b"<svg xmlns='http://www.w3.org/2000/svg'/>" if kind == "svg" else b"\x89PNG"
    return Picture(name, title, description, kind, content)


FULL = {
    "about": "Judges codes by what they keep.",
    "compared": [picture("bars", "Bars", "Who has what.")],
    "own": [picture(), picture("rows", "Rows", "In and out.", "png")],
    "curves": report.draw_curves({"digits-deep": pd.DataFrame({"epoch": [1, 2], "validation_loss": [0.9, 0.3]})}),
    "remarks": ["2 of 8 code values never change"],
    "timings": {("rivals", "digits"): Timing(3.21, "x86_64, CPU"), ("train", "digits-deep"): None},
}


def test_every_tag_is_closed():
    assert Read(page(chapter(**FULL), chapter(contest(application="anomaly", **NOBODY)))).open == []


def test_it_loads_nothing():
    made = page(chapter(**FULL))
    for tag, attributes in Read(made).tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            if name.split(":")[-1] in {"src", "href", "srcset", "action", "data", "poster"}:
                assert value.startswith(("#", "data:")), (tag, name, value)
            assert not name.startswith("on")
    assert "@import" not in made
    assert "url(" not in made
    policy = next(a["content"] for a in Read(made).all("meta") if "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_same_results_give_the_same_bytes():
    assert page(chapter(**FULL)) == page(chapter(**FULL))
    assert page() != page(chapter(contest(dataset="other")))


def test_no_name_or_reason_is_taken_for_markup():
    evil = contest(
        dataset=EVIL,
        application=EVIL,
        candidates={EVIL: judgement(0.9, **{EVIL: 1.0})},
        rivals={EVIL + "2": judgement(0.8)},
        missing={EVIL + "3": EVIL},
        chosen=EVIL,
        rival=EVIL + "2",
    )
    told = chapter(
        evil,
        variants={EVIL: EVIL},
        differences={EVIL + "2": EVIL},
        compared=[picture(title=EVIL, description=EVIL)],
        remarks=[EVIL],
        timings={("train", EVIL): Timing(1.0, EVIL)},
    )
    made = page(told, verdicts={EVIL: verdict(name=EVIL)})
    read = Read(made)
    assert read.open == []
    assert "<script" not in made
    assert read.text.count(EVIL) >= 20
    assert [image["alt"] for image in read.all("img")] == [EVIL]


def test_every_link_leads_to_a_place_on_the_page_and_no_place_has_the_name_of_another():
    read = Read(
        page(chapter(**FULL), chapter(contest(application="anomaly")), verdicts={"digits": verdict(), "x": verdict()})
    )
    places = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(places) == len(set(places))
    targets = [attributes["href"].removeprefix("#") for attributes in read.all("a")]
    assert set(targets) <= set(places)
    assert {"overview", "data-digits", "data-x", "digits-reduction", "digits-anomaly"} <= set(targets)


def test_the_overview_has_every_contest_its_end_and_its_verdict():
    one, other = contest(), contest(application="anomaly", **NOBODY)
    text = Read(page(chapter(one), chapter(other))).text
    assert "2 contests: 1 won by an autoencoder, 1 without a result." in text
    assert f"digits: reduction▲ autoencoder wins{one.verdict}." in text
    assert "digits: anomaly✕ no resultno candidate has a result." in text


OUTCOMES = {
    ("win", "autoencoder wins"): {},
    ("loss", "rival wins"): {"against": gate.Interval(-0.1, -0.2, -0.05)},
    ("open", "no proven difference"): {"against": gate.Interval(0.1, -0.05, 0.2)},
    ("open", "no difference that matters"): {"rivals": {"pca": judgement(0.90001)}},
    ("open", "no rival"): {"rivals": {}, "rival": None, "against": None},
    ("none", "no result"): NOBODY,
}


@pytest.mark.parametrize(("outcome", "changes"), OUTCOMES.items(), ids=[words for _, words in OUTCOMES])
def test_a_contests_mark_says_what_its_verdict_says(outcome, changes):
    one = contest(**changes)
    assert report_page.outcome(one) == outcome
    assert ("beats" in one.verdict) == (outcome[0] == "win")
    assert ("wins here" in one.verdict) == (outcome[0] == "loss")
    assert outcome[1] in one.verdict or outcome[0] in {"win", "loss", "none"} or outcome[1] == "no rival"


def test_where_nothing_is_known_of_the_difference_nothing_is_proven():
    assert report_page.outcome(contest(against=gate.Interval(0.1, math.nan, math.nan)))[0] == "open"
    made = page(chapter(differences={"pca": gate.Interval(-0.1, math.nan, math.nan)}))
    assert "-0.1000, not known how sure" in made


def test_a_contests_table_has_everybody_best_first_and_the_missing_ones_with_their_reasons():
    head, *rows = Read(page(verdicts={})).tables[0]
    assert head == [
        "name",
        "explained variance ↑",
        "difference to the chosen",
        "drawn",
        "on validation",
        "MSE ↓",
        "k-NN accuracy ↑",
    ]
    assert rows == [
        ["digits-deep | candidate, deep", "0.9000", "chosen", "", "0.8500", number(0.01), "-"],
        ["pca | rival", "0.8000", "-0.1000 worse | -0.1500 to -0.0500", "", "0.8000", number(0.02), "0.7000"],
        ["digits-shallow | candidate, deep", "0.5000", "-0.4000 not proven | -0.5000 to +0.1000", "", "0.5000", number(0.05), "-"],
        ["svd | rival", "no result: ValueError: out of cheese"],
        ["digits-wide | candidate, deep", "no result: not evaluated"],
    ]  # fmt: skip


def test_the_chosen_candidate_stands_out():
    made = page()
    assert len(re.findall(r"<tr class='chosen'><th scope='row'>digits-deep<", made)) == 1
    assert made.count("class='chosen'") == 1


def test_metrics_that_say_most_are_in_the_first_table_and_all_in_another():
    many = {f"psnr_{level}": 20.0 + level for level in (15, 25, 50)} | {"psnr": 30.0, "ssim": 0.9, "odd_one": 1.0}
    both = {
        "candidates": {"digits-deep": judgement(0.9, **many, own_only=2.0)},
        "rivals": {"pca": judgement(0.8, **many)},
    }
    one = contest(**both)
    assert report_page.shown(one) == ["explained_variance", "psnr", "ssim", "psnr_15", "psnr_25"]
    # One of each kind before a second of any.
    levels = {f"{kind}_{level}": 1.0 for level in (15, 25) for kind in ("psnr", "ssim", "level_error")}
    ladder = contest(candidates={"digits-deep": judgement(0.9, **levels)}, rivals={}, rival=None, against=None)
    assert report_page.shown(ladder)[1:] == ["psnr_15", "ssim_15", "level_error_15", "psnr_25"]
    _, (head, *rows) = Read(page(chapter(one), verdicts={})).tables
    assert head == ["metric", "digits-deep", "pca"]
    assert [cells[1:] for cells in rows if cells[0].startswith("own only")] == [["2.0000", "-"]]
    assert [cells[0].split(" | ")[0] for cells in rows] == [
        "explained variance ↑",
        *("odd one", "own only", "PSNR ↑", "PSNR 15 ↑", "PSNR 25 ↑", "PSNR 50 ↑", "SSIM ↑"),
    ]
    assert "peak signal-to-noise ratio" in rows[3][0]


def test_the_longest_term_of_a_name_explains_it_and_the_rest_stands_behind():
    assert glossary.explain("mse").better == "lower"
    assert glossary.explain("explained_variance").better == "higher"
    known = glossary.explain("psnr_gain_blind_25")
    assert known.text.startswith("decibels nearer to the clean image")
    assert known.text.endswith("(noise level estimated from the image, 25)")
    assert glossary.explain("cheese") is None


@pytest.mark.parametrize("name", modules.names("applications"))
def test_the_metric_that_decides_a_contest_is_explained_and_higher_is_better(name):
    primary = modules.member("applications", name, Application).primary
    meaning = glossary.explain(primary)
    assert meaning is not None, f"say in glossary.TERMS what {primary} means"
    assert meaning.better == "higher"


def test_a_chosen_candidate_that_is_not_the_first_on_test_is_said_to_be_so():
    lucky = {"lucky": judgement(0.95), "luckier": judgement(0.96), "digits-deep": judgement(0.9, 0.99)}
    text = Read(page(chapter(contest(candidates=lucky)))).text
    assert (
        "digits-deep was chosen on validation rows; it is third of 3 candidates on the test rows, where luckier has "
        "explained variance 0.9600." in text
    )
    assert "was chosen on validation" not in Read(page()).text
    # What no reader could tell from its number is not said.
    assert (
        "was chosen on"
        not in Read(page(chapter(contest(candidates={**lucky, "digits-deep": judgement(0.95999)})))).text
    )


@pytest.mark.parametrize(
    ("place", "word"), [(2, "second"), (10, "tenth"), (11, "11th"), (12, "12th"), (21, "21st"), (103, "103rd")]
)
def test_places_are_written_as_people_say_them(place, word):
    assert report_page._ordinal(place) == word


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (119.7, "2 min 0 s"),
        (200, "3 min 20 s"),
        (3900, "1 h 5 min"),
    ],
)
def test_times_are_written_as_people_say_them(seconds, text):
    assert report_page.duration(seconds) == text


def test_it_says_on_how_many_rows_and_groups_a_contest_was_judged():
    assert "Judged on 3 test rows." in Read(page()).text
    grouped = {"error": np.zeros(6), GROUP: np.array([0, 0, 1, 1, 2, 2])}
    made = page(chapter(contest(candidates={"digits-deep": judgement(0.9, values=grouped)})))
    assert "Judged on 6 test rows of 3 groups, which are drawn whole." in Read(made).text


def test_remarks_pictures_times_and_commands_are_there():
    read = Read(page(chapter(**FULL)))
    assert "digits-deep: 2 of 8 code values never change." in read.text
    assert [image["alt"] for image in read.all("img")[:3]] == ["Who has what.", "Dots on a plane.", "In and out."]
    assert read.all("img")[3]["alt"].startswith("Each curve falls to its best epoch: digits-deep is best in epoch 2.")
    assert read.tables[-1] == [
        ["step", "time", "on"],
        ["fit, tune and judge the rivals, in all contests on digits", "3.2 s", "x86_64, CPU"],
        ["train digits-deep", "taken from the cache"],
    ]
    assert "Judges codes by what they keep." in read.text
    for command in ("dvc repro rivals@digits", "dvc repro evaluate@digits-deep", "sevenfold run", "sevenfold report"):
        assert command in read.text


def test_among_many_contests_pictures_are_folded():
    few = page(chapter(**FULL))
    many = page(*(chapter(contest(dataset=f"set-{i}"), **FULL) for i in range(report_page.SEVERAL + 1)))
    assert few.count("<details open>") == 2
    assert many.count("<details open>") == 0
    assert many.count("at work</summary>") == report_page.SEVERAL + 1


def test_the_state_of_the_data_is_shown_and_what_failed():
    made = Read(
        page(
            verdicts={"digits": verdict(failed=0), "photos": verdict(passed=False, failed=3), "new": verdict(failed=2)}
        )
    )
    assert "Data passed: 1,797 rows, 8 columns, 4 expectations." in made.text
    assert "Data failed: 1,797 rows, 8 columns; 3 of 4 expectations not met, and no older result counts." in made.text
    assert "Data passed, with 2 warnings: 1,797 rows" in made.text
    head, *rows = made.tables[-2]
    assert head == ["severity", "column", "expected", "observed", "values"]
    assert rows == [["critical", "mean radius", "at least 0", "3 of 1797 values | -1, -2, -3", "3"]] * 3
    assert "The data have not been validated yet." in Read(page(verdicts={})).text


def test_a_bar_shows_an_interval_in_its_place_and_an_arrow_where_it_is_far_out():
    def drawn(interval):
        return report_page._bar(interval, reach=1.0)

    assert "x1='26.0' x2='74.0'" in drawn(gate.Interval(0.0, -0.5, 0.5))
    assert "class='loss'" in drawn(gate.Interval(-0.5, -0.6, -0.4))
    assert "class='win'" in drawn(gate.Interval(0.5, 0.4, 0.6))
    assert "<path" in drawn(gate.Interval(7.0, 6.0, 8.0))
    assert "<circle" not in drawn(None) + drawn(gate.Interval(0.1, math.nan, math.nan))


def test_every_heading_cell_says_what_its_column_is():
    read = Read(page(chapter(**FULL)))
    assert all(cell for table in read.tables for cell in table[0])
    assert {attributes["scope"] for attributes in read.all("th")} == {"col", "row"}
    assert ("html", {"lang": "en"}) in read.tags


def test_without_a_contest_it_says_so():
    made = report_page.page([], {})
    assert "No contest was held" in made
    assert Read(made).open == []


def test_losses_below_zero_have_a_picture_too_and_one_epoch_has_none():
    def drawn(*losses):
        return report.draw_curves(
            {"one": pd.DataFrame({"epoch": range(1, 1 + len(losses)), "validation_loss": losses})}
        )

    assert drawn(0.5, -3.0).description.startswith("Each curve falls to its best epoch: one is best in epoch 2.")
    assert drawn(0.5, 0.5).kind == "svg"
    assert drawn(0.5) is None


def test_curves_of_losses_in_different_units_share_an_axis():
    losses = pd.Series([4.0, 2.0, 1.0, 1.3])
    expected = [1.0, 1 / 3, report.NEAREST, 0.1]
    assert report.above_best(losses).tolist() == pytest.approx(expected)
    assert report.above_best(100 * losses - 77).tolist() == pytest.approx(expected)  # a bound may be below 0


def test_a_curve_whose_first_epoch_is_the_best_stays_on_the_axis():
    assert report.above_best(pd.Series([1.0, 1.1, 1.2])).tolist() == pytest.approx([report.NEAREST, 0.5, 1.0])
    assert report.above_best(pd.Series([1.0, 1.0])).tolist() == [report.NEAREST] * 2


PARAMS = f"""
seed: 0
datasets:
  table: {{path: data/raw/table.parquet, label: kind, normal: normal, id: customer, split: {{validation: 0.2, test: 0.4, seed: 0}}}}
applications:
  table:
    reduction: {json.dumps(samples.application("reduction").options)}
    anomaly: {json.dumps(samples.application("anomaly").options)}
rivals: {{seconds: 600}}
training:
  {{epochs: 2, patience: 2, batch_size: 64, learning_rate: 0.001, warmup: 0.1, weight_decay: 0.0, gradient_clip: 1.0, threads: 1}}
candidates:
  table-pca: {{dataset: table, applications: [reduction], variant: pca, options: {{code: {samples.CODE}}}}}
  table-normal: {{dataset: table, applications: [anomaly], rows: normal, variant: pca, options: {{code: {samples.CODE}}}}}
  table-deep:
    dataset: table
    applications: [reduction]
    variant: deep
    options: {json.dumps(samples.options("deep"))}
gate: {{must_beat_rivals: false, floor: null}}
"""


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals for the metrics and for the page come out of the same few draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "DRAWS", 100)
        yield


@pytest.fixture(scope="module")
def built(few_draws, tmp_path_factory):
    """A workspace in which every stage has run, as `dvc repro` runs them."""
    place = Workspace(tmp_path_factory.mktemp("built"))
    (place.root / "data" / "raw").mkdir(parents=True)
    (place.root / "dvc.yaml").touch()
    place.params.write_text(PARAMS)
    formats.write(place.root / "data" / "raw" / "table.parquet", tiny.table(200).frame)
    files.write_json(place.verdict("table"), verdict())
    for stage in ("prepare", "rivals"):
        stages.run(place, stage, "table")
    for candidate in ("table-pca", "table-normal", "table-deep"):
        for stage in ("train", "evaluate"):
            stages.run(place, stage, candidate)
    stages.run(place, "scorecard", None)
    return place


@pytest.fixture
def place(built, tmp_path):
    shutil.copytree(built.root, tmp_path / "place")
    return Workspace(tmp_path / "place")


def tables(place):
    """Return the first table of each contest of the written report, by the name of the contest."""
    read = Read(report.write(place).read_text())
    return {
        label.removeprefix("Scores of "): {row[0].split(" | ")[0]: row[1:] for row in table}
        for label, table in zip(read.labels, read.tables, strict=True)
        if label.startswith("Scores of ")
    }


def test_the_numbers_of_the_page_are_those_of_the_metrics_and_the_comparison(place):
    metrics, found = files.read_json(place.metrics)["table"], tables(place)
    assert set(found) == {"table-reduction", "table-anomaly"}
    assert set(metrics) == {"reduction", "anomaly"}
    for application, summary in metrics.items():
        rows = found[f"table-{application}"]
        winner, rival = summary["winner"], summary["rival"]
        assert rows[winner][0] == number(summary["score"]) == number(summary["test"][summary["metric"]])
        assert rows[rival["name"]][0] == number(rival["score"])
        assert rows[winner][1] == "chosen"
        ends = [evaluation.difference(-summary["difference"][end]) for end in ("difference", "high", "low")]
        assert re.sub(r"[^-\d. ]|(?<=to) ", "", rows[rival["name"]][1]).split() == ends
        names = {evaluation.label(name): value for name, value in summary["test"].items()}
        for heading, cell in list(zip(rows["name"], rows[winner], strict=True))[4:]:
            assert cell == number(names[heading.rstrip(" ↑↓")])
        assert summary["verdict"] in place.report.read_text()
    comparison = pd.read_csv(place.comparison)
    assert len(comparison) > 9
    assert set(comparison["contest"]) == set(found)
    for line in comparison.itertuples():
        assert found[line.contest][line.name][0] == number(line.score)


def test_differences_are_everybodys_minus_the_chosen_ones(place):
    settings = stages.check(place)
    (one, _) = report.chapters(place, settings)
    application = stages.application(settings, "table", "reduction")
    chosen = one.contest.candidates[one.contest.chosen]
    assert set(one.differences) == {*one.contest.candidates, *one.contest.rivals} - {one.contest.chosen}
    for name, found in one.differences.items():
        other = {**one.contest.candidates, **one.contest.rivals}[name]
        expected = evaluation.interval(application, other, chosen)
        assert found.difference == pytest.approx(expected.difference)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_who_was_judged_on_other_rows_has_a_reason_in_place_of_a_difference(place):
    folder = place.rivals("table") / "reduction" / "random_projection"
    old = Judgement.load(folder)
    shorter = Scores(old.test.metrics, {name: values[:7] for name, values in old.test.values.items()})
    Judgement(old.validation, shorter).save(folder, "explained_variance")
    assert tables(place)["table-reduction"]["random_projection"][1] == (
        "none: judged on 7 and 80 test rows; expected the same; evaluate both again"
    )


def test_pictures_of_the_chosen_candidate_and_its_training_are_on_the_page(place):
    folder = place.evaluation("table-pca") / "reduction" / "pictures"
    folder.mkdir(exist_ok=True)
    pictures.save(folder, [picture("work", "At work", "What it makes of 8 rows.")])
    files.write_json(place.remarks("table-pca"), ["it is linear"])
    read = Read(report.write(place).read_text())
    assert "What it makes of 8 rows." in [image["alt"] for image in read.all("img")]
    assert "table-pca: it is linear." in read.text
    assert sum("is best in epoch" in image["alt"] for image in read.all("img")) == 1


def test_times_are_those_that_the_stages_noted_and_nothing_else_changes_with_them(place):
    first = report.write(place).read_text()
    assert report.write(place).read_text() == first
    note = json.loads(place.timing("train", "table-deep").read_text())
    assert f"<th scope='row'>train table-deep</th><td class='n'>{report_page.duration(note['seconds'])}</td>" in first
    assert first.count("taken from the cache</td>") == 0
    shutil.rmtree(place.private / "timings")
    second = report.write(place).read_text()
    assert second.count("taken from the cache</td>") == 2 + 2 * 3
    cut = re.compile(r"<th scope='row'>(train|judge|fit).*?</tr>")
    assert cut.sub("", first) == cut.sub("", second)


def test_a_candidate_without_result_and_a_failed_rival_are_named_with_the_reason(place):
    shutil.rmtree(place.evaluation("table-deep"))
    shutil.rmtree(place.rivals("table") / "reduction" / "pca")
    files.write_json(place.rivals("table") / "reduction" / "failed.json", {"pca": "MemoryError: too wide"})
    found = tables(place)["table-reduction"]
    assert found["table-deep"] == ["no result: not evaluated"]
    assert found["pca"] == ["no result: MemoryError: too wide"]


def test_before_anything_has_run_the_page_says_what_is_missing(place):
    for folder in ("results", ".sevenfold"):
        shutil.rmtree(place.root / folder)
    text = Read(report.write(place).read_text()).text
    assert "2 contests: 2 without a result." in text
    assert "The data have not been validated yet." in text
    assert text.count("no result: not evaluated") == 3
    assert "taken from the cache" not in text.replace("What was taken from the cache", "")


def test_it_is_written_where_it_is_told_and_never_over_a_folder(place):
    other = place.root / "new" / "page.html"
    assert report.write(place, other) == other
    assert other.read_text() == report.write(place).read_text()
    with pytest.raises(
        IsADirectoryError, match=r"results is a folder; name a file in it, such as .*results/report\.html"
    ):
        report.write(place, place.root / "results")
    assert place.metrics.is_file()
