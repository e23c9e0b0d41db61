"""Thresholds: what a policy sets, what a table of settings says, and that a moved one is used from then on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import samples
from sevenfold import bundles, cli, election, formats, publication, recalibration, stages, thresholds
from sevenfold.registry import versions
from sevenfold.workspace import Workspace
from tests import tiny

GENERATOR = np.random.default_rng(0)
NORMAL, STRANGE = np.sort(GENERATOR.normal(size=400)), np.sort(GENERATOR.normal(3, 1, size=80))
NAME = "table-anomaly"


def known(share=0.0, strange=STRANGE):
    return thresholds.HeldOut(NORMAL, strange, share)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_a_false_positive_rate_flags_that_share_of_normal_rows(rate):
    found = thresholds.place("false-positive-rate", rate, known())
    assert thresholds.flagged(NORMAL, found) == pytest.approx(rate, abs=1 / len(NORMAL))


@pytest.mark.parametrize("value", [0.5, 0.9, 0.99])
def test_a_quantile_leaves_that_share_of_all_rows_below_it(value):
    assert thresholds.place("quantile", value, known()) == np.quantile(NORMAL, value)
    found = thresholds.place("quantile", value, known(share=0.2))
    below = 0.8 * (found >= NORMAL).mean() + 0.2 * (found >= STRANGE).mean()
    assert below == pytest.approx(value, abs=0.01)


def test_deviations_are_counted_from_the_median():
    middle = np.median(NORMAL)
    assert thresholds.place("mad", 3.0, known()) == pytest.approx(
        middle + 3 * 1.4826 * np.median(np.abs(NORMAL - middle))
    )


@pytest.mark.parametrize("miss", [0.01, 1.0, 10.0, 1e6])
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_no_threshold_costs_less_than_the_one_of_the_least_expected_cost(miss, share):
    def cost(at):
        return (1 - share) * (at < NORMAL).mean() + share * miss * (at >= STRANGE).mean()

    found = thresholds.place("cost", miss, known(share))
    assert cost(found) <= min(cost(at) for at in np.linspace(-6, 8, 2000)) + 1e-12


def test_expected_cost_is_not_told_without_a_share_or_anomalies():
    for one in (known(), known(0.1, STRANGE[:0])):
        with pytest.raises(
            ValueError, match=r"needs to know how many of the rows to come are anomalies, .* give the share"
        ):
            thresholds.place("cost", 10.0, one)


def test_a_setting_out_of_range_is_named():
    for policy, value, expected in (
        ("false-positive-rate", 1.0, "value is 1.0; expected a share between 0 and 1"),
        ("quantile", 0.0, "value is 0.0; expected a share between 0 and 1"),
        ("mad", 0.0, "value is 0.0; expected more than 0 deviations"),
        ("cost", -1.0, "value is -1.0; expected more than 0 false alarms"),
    ):
        (problem,) = thresholds.problems(policy, value, None)
        assert problem.startswith(expected)
    (problem,) = thresholds.problems("mad", 3.0, 1.5)
    assert problem.startswith("share is 1.5; expected a share of anomalies between 0 and 1")


def test_a_summary_of_many_scores_sets_the_same_thresholds():
    many = np.random.default_rng(1).gamma(2, size=100_000)
    summary = thresholds.summary(many)
    assert len(summary) == thresholds.LARGEST_SAMPLE
    for policy, value in (("false-positive-rate", 0.001), ("quantile", 0.9), ("mad", 5.0)):
        exact = thresholds.place(policy, value, thresholds.HeldOut(np.sort(many), STRANGE, 0))
        assert thresholds.place(policy, value, thresholds.HeldOut(summary, STRANGE, 0)) == pytest.approx(
            exact, rel=1e-3
        )
    assert np.array_equal(thresholds.summary(many[:9]), np.sort(many[:9]))


def test_what_a_setting_says_it_flags_is_what_a_moved_model_flags():
    data = samples.dataset("table")
    model = samples.trained("pca", "table", "normal")
    application, _ = samples.judged("anomaly", "table")
    score = application.score(model, data.test.x, data.test.observed)
    found = recalibration.effects(application, None, scored=score)
    assert {e.setting.policy for e in found} == set(thresholds.POLICIES)  # the samples have labelled anomalies
    assert sum(e.used for e in found) == 1
    for e in found:
        moved = application.moved(e.setting.policy, e.setting.value, e.setting.share)
        columns = moved.predict(model, data.test.x, data.test.observed, data.schema)
        assert np.array_equal(columns["score"], score)
        assert columns["flag"].sum() == e.rows
        assert e.normal == (application.state["normal_scores"] > moved.threshold).mean()
        assert moved.moved(application.policy, application.value, application.share).threshold == application.threshold


def test_calibrating_with_a_setting_and_moving_to_it_give_the_same_bundle():
    data = samples.dataset("table")
    model = samples.trained("pca", "table", "normal")
    application, _ = samples.judged("anomaly", "table")
    moved = application.moved("mad", 4.0, None)
    options = {**application.options, "policy": "mad", "value": 4.0}
    calibrated = type(application)(**options).calibrate(model, data.train.only_normal(), data.validation)
    assert calibrated.options == moved.options
    assert calibrated.threshold == moved.threshold
    np.testing.assert_allclose(
        calibrated.score(model, data.test.x[:40], None),
        moved.score(model, data.test.x[:40], None),
        rtol=1e-5,
        atol=1e-5,
    )


def test_where_no_anomaly_is_labelled_a_cost_is_told_by_planted_ones_and_a_share():
    data = samples.dataset("table")
    model = samples.trained("pca", "table", "normal")
    normal = data.validation.only_normal()
    options = {**samples.application("anomaly").options, "policy": "cost", "value": 10.0}
    kind = type(samples.application("anomaly"))
    with pytest.raises(ValueError, match="give the share that you expect"):
        kind(**options).calibrate(model, data.train.only_normal(), normal)
    calibrated = kind(**options | {"share": 0.05}).calibrate(model, data.train.only_normal(), normal)
    assert not calibrated.labelled
    columns = calibrated.predict(model, data.test.x, data.test.observed, data.schema)
    assert columns["flag"][~data.test.normal].mean() > 0.5 > 0.2 > columns["flag"][data.test.normal].mean()


PARAMS = """
seed: 0
datasets:
  table:
    path: data/raw/table.parquet
    label: kind
    normal: [normal]
    id: customer
    duplicates: drop
    split: {validation: 0.2, test: 0.4, seed: 0}
applications:
  table:
    anomaly: {policy: false-positive-rate, value: 0.1, share: null, neighbours: 3, references: 4096, reasons: 2}
training: {epochs: 1, patience: 1, batch_size: 64, learning_rate: 0.0001, warmup: 0.1, weight_decay: 0.0, gradient_clip: 1.0, threads: 1}
candidates:
  good: {dataset: table, applications: [anomaly], rows: normal, variant: pca, options: {code: 2}}
rivals: {seconds: 600}
gate: {must_beat_rivals: false, floor: null}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A workspace after `dvc repro`, with a contest and no version."""
    place = Workspace(tmp_path_factory.mktemp("built"))
    (place.root / "data" / "raw").mkdir(parents=True)
    (place.root / "dvc.yaml").touch()
    formats.write(place.root / "data" / "raw" / "table.parquet", tiny.table(300).frame)
    place.params.write_text(PARAMS)
    stages.prepare(place, "table")
    stages.rivals(place, "table")
    stages.train(place, "good")
    stages.evaluate(place, "good")
    return place


@pytest.fixture
def place(built, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SEVENFOLD_WORKSPACE", str(tmp_path / "place"))
    shutil.copytree(built.root, tmp_path / "place")
    with tiny.workspace(tmp_path / "place") as place:
        yield place


@pytest.fixture
def call(capsys):
    """Run the command line; returns (exit code, what it printed, what it complained of)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return run


def scored(place, call, model):
    rows, out = place.root / "data" / "raw" / "table.parquet", place.root / "scores.csv"
    assert call("score", model, rows, out)[0] == 0
    return pd.read_csv(out)


def explanation(place, version):
    """Return the files of a version's run, by their path there."""
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(run_id=version.run_id))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_moved_champion_flags_by_its_new_threshold_and_outlives_the_next_election(place, call):
    election.hold(place, NAME)
    first = versions.champion(place, NAME)
    before = scored(place, call, NAME)
    code, out, _ = call("threshold", NAME, "--policy", "quantile", "--value", "0.6", "--move")
    assert code == 0
    assert out.splitlines()[-1] == f"{NAME}/2: {NAME}/1 with its threshold moved to quantile 0.6, champion now"
    champion = versions.champion(place, NAME)
    assert (champion.number, champion.tags["moved_from"]) == (2, f"{NAME}/1")
    assert champion.tags["moved_threshold"] == "from false-positive-rate 0.1 to quantile 0.6"
    assert champion.tags["promoted_over"] == f"{NAME}/1"
    assert champion.tags["candidate"] == "good"
    folders = [versions.bundle_folder(place, version) for version in (first, champion)]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    after = scored(place, call, NAME)
    assert np.array_equal(before["score"], after["score"])
    assert np.array_equal(after["flag"], after["score"] > after["threshold"])
    assert after["flag"].sum() > before["flag"].sum()

    # The candidate that it was made from stands again, and leaves it in its place; then all is decided.
    assert election.pending(place) == [NAME]
    outcome = election.hold(place, NAME)
    assert (outcome.published, outcome.promoted, outcome.version, outcome.champion) == (False, False, 1, 2)
    assert "was champion, but" in outcome.reasons[0]
    assert "replaced it by version 2" in outcome.reasons[0]
    assert election.pending(place) == []
    assert versions.champion(place, NAME).number == 2

    # What the next election knows of a version, it knows of a moved one.
    assert (
        versions.artifact(place, champion, publication.SEEN).read_bytes()
        == versions.artifact(place, first, publication.SEEN).read_bytes()
    )
    import mlflow

    runs = [mlflow.get_run(version.run_id) for version in (first, champion)]
    assert runs[0].data.params == runs[1].data.params
    lost = {name for name in runs[0].data.metrics if name not in runs[1].data.metrics}
    assert lost == {f"{part}.{m}" for part in ("validation", "test") for m in ("false_positive_rate", "recall")}
    assert all(runs[0].data.metrics[n] == v for n, v in runs[1].data.metrics.items() if n in runs[0].data.metrics)

    # What explains it is what explains the one that it was made from, but for its card, which says what was moved.
    texts = [explanation(place, version) for version in (first, champion)]
    cards = [found.pop("card.md").decode() for found in texts]
    assert texts[0] == texts[1]
    assert any(name.startswith("pictures/") for name in texts[0])
    assert {"provenance/params.yaml", "scorecard.json", "seen.npy"} <= texts[0].keys()
    moved = f"{NAME}/1 with its threshold moved from false-positive-rate 0.1 to quantile 0.6."
    page = mlflow.MlflowClient().get_model_version(NAME, "2").description
    for text in (cards[1], page):
        assert text.startswith(f"**{moved}** What follows is the card of {NAME}/1.")
        assert "test.false_positive_rate, test.recall hold no longer" in text.partition("\n")[0]
    assert cards[1].endswith(cards[0])
    assert "Against its rivals" in page

    # Back again it is the version that there was.
    code, out, _ = call("threshold", NAME, "--policy", "false-positive-rate", "--value", "0.1", "--move")
    assert out.splitlines()[-1].startswith(f"{NAME}/1: {NAME}/2 with its threshold moved")
    assert versions.champion(place, NAME).number == 1
    assert len(versions.every(place, NAME)) == 2


def test_a_challenger_that_is_moved_stays_none_of_the_champions(place, call):
    place.params.write_text(PARAMS.replace("floor: null", "floor: 2.0"))
    election.hold(place, NAME)
    code, out, _ = call("threshold", f"{NAME}/1", "--policy", "mad", "--value", "3", "--move")
    assert code == 0
    assert out.splitlines()[-1] == f"{NAME}/2: {NAME}/1 with its threshold moved to mad 3"
    assert versions.champion(place, NAME) is None


def test_a_table_shows_settings_and_marks_the_one_in_use(place, call):
    folder = place.evaluation("good") / "anomaly" / "bundle"
    rows = place.root / "data" / "raw" / "table.parquet"
    code, out, _ = call("threshold", folder, rows)
    assert code == 0
    lines = out.splitlines()[2:]
    marked = [line for line in lines if line.startswith("*")]
    assert len(marked) == 1
    assert marked[0].split()[1:3] == ["false-positive-rate", "0.1"]
    counted = int(marked[0].split()[-2])
    assert counted == scored(place, call, folder)["flag"].sum()
    assert ("cost" in out) == bundles.load(folder).application.labelled
    _, out, _ = call("threshold", folder, "--share", "0.01")
    assert "cost" in out
    _, out, _ = call("threshold", folder, "--policy", "mad", "--value", "3")
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["*", "mad"]


def test_a_folders_threshold_moves_to_another_folder(place, call, tmp_path):
    folder, out = place.evaluation("good") / "anomaly" / "bundle", tmp_path / "moved"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    move = ("threshold", folder, "--policy", "mad", "--value", "3", "--move")
    code, _, error = call(*move)
    assert (code, error) == (
        1,
        f"error: {folder} is a folder, which stays as it is; name another one by --output FOLDER\n",
    )
    assert call(*move, "--output", out)[0] == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert (out / "model.safetensors").read_bytes() == before["model.safetensors"]
    assert (out / "reference.safetensors").read_bytes() == before["reference.safetensors"]
    assert bundles.load(out).reference is not None
    moved = bundles.load(out).application
    assert (moved.policy, moved.value) == ("mad", 3.0)
    assert json.loads((out / "bundle.json").read_text())["application"]["options"]["policy"] == "mad"
    np.testing.assert_allclose(scored(place, call, out)["threshold"], moved.threshold, rtol=1e-5)
    code, _, error = call(*move, "--output", out)
    assert (code, error) == (1, f"error: {out} exists already; name a folder that does not\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "mad"], "got one of --policy and --value; expected both or none"),
        (
            ["--policy", "mod", "--value", "3"],
            "--policy is 'mod'; expected one of false-positive-rate, quantile, mad, cost",
        ),
        (["--move"], "--move without a setting; say where to"),
        (["--output", "there"], "--output without --move writes nothing"),
        (["--policy", "quantile", "--value", "1.5"], "value is 1.5; expected a share between 0 and 1"),
    ],
)
def test_a_call_that_makes_no_sense_is_told_what_would(place, call, arguments, message):
    code, out, error = call("threshold", place.evaluation("good") / "anomaly" / "bundle", *arguments)
    assert (code, out) == (1, "")
    assert error.startswith(f"error: {message}")


def test_a_model_without_a_threshold_says_so(place, call, tmp_path):
    folder = tiny.saved(tmp_path / "codes", "table", "reduction")
    code, _, error = call("threshold", folder)
    assert (code, error) == (1, "error: this model is for reduction, which has no threshold; name an anomaly model\n")
