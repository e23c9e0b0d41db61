"""Today's champion is judged again, by today's options and on today's rows, and what cannot be compared is named."""

import shutil

import numpy as np
import pytest

from sevenfold import bundles, election, evaluation, formats, gate, params, rematch, stages
from sevenfold.applications import denoising
from sevenfold.applications.denoising import Denoising
from sevenfold.datasets.base import Dataset
from sevenfold.registry import versions
from sevenfold.workspace import Workspace
from tests import test_election, tiny

TABLE, PICTURES = "table-reduction", "images-denoising"


def write_params(place, candidate, options="{levels: [0.1], known: true}"):
    place.params.write_text(f"""
seed: 0
datasets:
  images:
    path: data/raw/images.npz
    label: label
    split: {{validation: 0.2, test: 0.5, seed: 0}}
applications:
  images:
    denoising: {options}
training:
  {{epochs: 1, patience: 1, batch_size: 64, learning_rate: 0.001, warmup: 0.1, weight_decay: 0.0, gradient_clip: 1.0, threads: 1}}
candidates:
  {candidate}: {{dataset: images, applications: [denoising], variant: pca, options: {{code: {candidate[-1]}}}}}
rivals: {{seconds: 600}}
gate: {{must_beat_rivals: false}}
""")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A table and images, with what was trained on each."""
    place = Workspace(tmp_path_factory.mktemp("built"))
    (place.root / "data" / "raw").mkdir(parents=True)
    (place.root / "dvc.yaml").touch()
    formats.write(place.root / "data" / "raw" / "table.parquet", tiny.table(200).frame)
    formats.write_rows(place.root / "data" / "raw" / "images.npz", tiny.images(160))
    write_params(place, "pca-1")
    stages.prepare(place, "images")
    train(place, "pca-1")
    test_election.write_params(place)
    stages.prepare(place, "table")
    train(place, *test_election.CANDIDATES)
    return place


def train(place, *candidates):
    for candidate in candidates:
        stages.train(place, candidate)
        stages.evaluate(place, candidate)


@pytest.fixture
def place(built, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(built.root, tmp_path / "place")
    with tiny.workspace(tmp_path / "place") as place:
        yield place


@pytest.fixture
def table(place):
    """The place with a champion of tables, "weak"."""
    test_election.write_params(place, "weak")
    assert election.hold(place, TABLE).promoted
    test_election.write_params(place)
    return place


@pytest.fixture
def pictures(place):
    """The place with a champion of images, "pca-1"."""
    write_params(place, "pca-1")
    assert election.hold(place, PICTURES).promoted
    return place


def meet(place, name, **options):
    """Compare who is best on validation with the champion."""
    dataset, application = name.split("-")
    contest = stages.contest(place, params.load(place.params), dataset, application)
    bundle = place.evaluation(contest.chosen) / application / "bundle"
    return rematch.against(place, contest, bundle, versions.champion(place, name), **options)


def gain(application, model, test, level):
    """The mean PSNR gain over images with noise of one known level, by hand."""
    found = []
    for clean, noisy in denoising._parts(test, level):
        restored = application.restored(model, noisy, np.full(len(noisy), level))
        error, noise = (((one - clean) ** 2).reshape(len(clean), -1).mean(axis=1) for one in (restored, noisy))
        found.append(10 * np.log10(noise / error))
    return np.concatenate(found).mean()


def test_under_other_options_the_champion_is_judged_by_those_of_today(pictures):
    stored = evaluation.Judgement.load(pictures.evaluation("pca-1") / "denoising").test.metrics["psnr_gain"]
    write_params(pictures, "pca-4", "{levels: [0.4], known: true}")
    train(pictures, "pca-4")
    met = meet(pictures, PICTURES)
    data = Dataset.load(pictures.prepared("images"))
    scores = []
    for version in (
        pictures.evaluation("pca-4") / "denoising" / "bundle",
        versions.bundle_folder(pictures, versions.champion(pictures, PICTURES)),
    ):
        model = bundles.load(version).model
        today = Denoising(levels=[0.4], known=True).calibrate(model, data.train, data.validation)
        scores.append(gain(today, model, data.test, 0.4))
    assert met.interval.difference == pytest.approx(scores[0] - scores[1], abs=1e-3)
    assert abs(met.interval.difference - (scores[0] - stored)) > 0.5  # its stored number is of another noise
    assert met.notes == (
        f"{PICTURES}/1 was calibrated anew for the comparison, since options have changed: levels was [0.1] and is [0.4]",
    )


def test_the_same_weights_under_other_options_are_no_better_than_the_champion_and_the_reason_says_which(pictures):
    write_params(pictures, "pca-1", "{levels: [0.1, 0.3], known: false}")
    stages.evaluate(pictures, "pca-1")
    met = meet(pictures, PICTURES)
    assert met.interval == gate.Interval(0.0, 0.0, 0.0)
    assert "levels was [0.1] and is [0.1, 0.3], known was True and is False" in met.notes[0]
    outcome = election.hold(pictures, PICTURES)
    assert (outcome.published, outcome.promoted, outcome.champion) == (True, False, 1)
    assert any("not proven better than today's champion (by +0.0000, " in reason for reason in outcome.reasons)
    assert met.notes[0] in outcome.reasons
    assert election.pending(pictures) == []


def test_under_the_same_options_the_champion_is_not_calibrated_again(pictures, monkeypatch):
    write_params(pictures, "pca-4")
    train(pictures, "pca-4")

    def refuse(*arguments, **keywords):
        raise AssertionError("calibrated, though nothing has changed")

    monkeypatch.setattr(Denoising, "calibrate", refuse)
    met = meet(pictures, PICTURES)
    assert (met.slices, met.notes) == ((), ())
    mine, theirs = (
        evaluation.Judgement.load(pictures.evaluation(name) / "denoising").test for name in ("pca-4", "pca-1")
    )
    assert met.interval.difference == pytest.approx(mine.metrics["psnr_gain"] - theirs.metrics["psnr_gain"], abs=1e-6)


def test_a_champion_whose_model_does_not_suit_todays_options_is_named_with_the_reason(table):
    text = table.params.read_text()
    table.params.write_text(text.replace("reduction: {code: 2,", "reduction: {code: 3,").replace("code: 2", "code: 3"))
    train(table, *test_election.CANDIDATES)
    met = meet(table, TABLE)
    assert met.interval is None
    (note,) = met.notes[-1:]
    assert note.startswith(f"{TABLE}/1 cannot be judged on today's data: its model does not suit today's options: ")


def test_a_broken_champion_is_named_and_what_is_broken(table):
    folder = versions.bundle_folder(table, versions.champion(table, TABLE))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    met = meet(table, TABLE, columns=("vip",), label="kind")
    assert (met.interval, met.slices) == (None, ())
    assert met.notes[0].startswith(f"{TABLE}/1 cannot be judged on today's data: ")
    assert "model.safetensors is truncated or damaged" in met.notes[0]


def test_a_champion_that_lacks_a_column_of_today_is_named_with_the_column(table):
    frame = tiny.table(200).frame.rename(columns={"age": "years"})
    formats.write(table.root / "data" / "raw" / "table.parquet", frame)
    test_election.write_params(table, "good")
    stages.prepare(table, "table")
    train(table, "good")
    met = meet(table, TABLE)
    assert met.interval is None
    assert met.notes[-1].startswith(f"{TABLE}/1 cannot be judged on today's data: ")
    assert "'age'" in met.notes[-1]


def test_slices_are_of_the_rows_that_both_are_compared_on(table):
    met = meet(table, TABLE, columns=("kind", "vip"), label="kind")
    data = Dataset.load(table.prepared("table"))
    rows = tiny.table(200).frame.set_index("customer").loc[data.test.ids]
    assert {part.name: part.rows for part in met.slices} == {
        f"{column}={value}": count for column in ("kind", "vip") for value, count in rows[column].value_counts().items()
    }
    judged = {n: evaluation.Judgement.load(table.evaluation(n) / "reduction").test.values for n in ("good", "weak")}
    inside = ~rows["vip"].to_numpy(bool)
    good, weak = (1 - v["error"][inside].sum() / v["total"][inside].sum() for v in judged.values())
    (part,) = [p for p in met.slices if p.name == "vip=False"]
    assert part.against_champion.difference == pytest.approx(good - weak, abs=1e-5)


def test_where_the_label_is_gone_its_slice_is_named_with_what_there_is(table):
    met = meet(table, TABLE, columns=("vip", "kind"), label=None)
    assert met.interval is not None
    (part,) = met.slices
    assert part.problem == "'kind' is no label and no categorical feature; there are: city, vip"
    standing = gate.Standing(0.9, 0.9, None, met.interval, slices=met.slices)
    choice = gate.choose({"good": standing}, gate.Rule(False, slices=("vip", "kind")))
    assert choice.winner is None
    assert f"the slice vip, kind cannot be judged: {part.problem}" in choice.reasons
