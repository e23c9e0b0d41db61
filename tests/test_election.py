"""An election chooses on validation, judges on the same rows, asks the gate, and repeats nothing."""

import functools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from sevenfold import bundles, election, evaluation, files, formats, rematch, stages
from sevenfold.datasets.base import Dataset
from sevenfold.registry import promotion, versions
from sevenfold.workspace import Workspace
from tests import tiny

NAME = "table-reduction"
PLAIN = "blocks: 0, tied: false, augment: [], numbers: standard, categories: one-hot"
CANDIDATES = {
    "good": "variant: pca, options: {code: 2}",
    "weak": f"variant: deep, options: {{code: 2, hidden: [4], activation: silu, {PLAIN}}}",
}


def write_params(place, *candidates, gate="{must_beat_rivals: false, floor: null}", seed=0, split=0):
    chosen = "\n".join(
        f"  {c}: {{dataset: table, applications: [reduction], {CANDIDATES[c]}}}" for c in candidates or CANDIDATES
    )
    place.params.write_text(f"""
seed: {seed}
datasets:
  table:
    path: data/raw/table.parquet
    label: kind
    id: customer
    split: {{validation: 0.2, test: 0.4, seed: {split}}}
applications:
  table:
    reduction: {{code: 2, neighbours: 3}}
training:
  {{epochs: 1, patience: 1, batch_size: 64, learning_rate: 0.0001, warmup: 0.1, weight_decay: 0.0, gradient_clip: 1.0, threads: 1}}
candidates:
{chosen}
rivals: {{seconds: 600}}
gate: {gate}
""")


def build(place, *candidates, **settings):
    """Do what `dvc repro` does for these candidates."""
    write_params(place, *candidates, **settings)
    stages.prepare(place, "table")
    stages.rivals(place, "table")
    for candidate in candidates or CANDIDATES:
        stages.train(place, candidate)
        stages.evaluate(place, candidate)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    place = Workspace(tmp_path_factory.mktemp("built"))
    (place.root / "data" / "raw").mkdir(parents=True)
    (place.root / "dvc.yaml").touch()
    formats.write(place.root / "data" / "raw" / "table.parquet", tiny.table(200).frame)
    build(place)
    return place


@pytest.fixture
def place(built, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(built.root, tmp_path / "place")
    with tiny.workspace(tmp_path / "place") as place:
        yield place


@pytest.fixture
def hold(place):
    return functools.partial(election.hold, place, NAME)


def champion(place):
    version = versions.champion(place, NAME)
    return version and version.tags["candidate"]


def challenger(place):
    version = versions.by_alias(place, NAME, versions.CHALLENGER)
    return version and version.number


def explained(model, x, observed):
    """The share of variance that a model keeps, computed by hand."""
    with torch.inference_mode():
        output = model(torch.from_numpy(np.array(x))).numpy()
    seen = np.ones(x.shape, bool) if observed is None else observed
    mean = np.where(seen, x, 0).sum(axis=0) / seen.sum(axis=0)
    return 1 - ((output - x) ** 2)[seen].sum() / ((x - mean) ** 2)[seen].sum()


def test_the_best_on_validation_stands_whatever_the_test_split_says(place, hold):
    assert election.contests(place) == [NAME]
    for candidate, on_validation, on_test in (("good", 0.2, 0.9), ("weak", 0.3, 0.1)):
        path = place.evaluation(candidate) / "reduction" / "scores.json"
        scores = files.read_json(path)
        scores["validation"]["explained_variance"] = on_validation
        scores["test"]["explained_variance"] = on_test
        files.write_json(path, scores)
    outcome = hold()
    assert (outcome.winner, outcome.score, outcome.metric) == ("weak", 0.1, "explained_variance")


def test_the_first_winner_is_published_with_its_story_and_promoted(place, hold):
    assert election.pending(place) == [NAME]
    outcome = hold()
    assert (outcome.name, outcome.dataset, outcome.application, outcome.winner) == (NAME, "table", "reduction", "good")
    assert (outcome.published, outcome.promoted, outcome.version, outcome.champion) == (True, True, 1, 1)
    data = Dataset.load(place.prepared("table"))
    bundle = bundles.load(place.evaluation("good") / "reduction" / "bundle")
    assert outcome.score == pytest.approx(explained(bundle.model, data.test.x, data.test.observed), abs=1e-4)
    version = versions.champion(place, NAME)
    assert version.digest == bundles.digest(place.evaluation("good") / "reduction" / "bundle")
    assert version.tags["data_digest"] == files.digest(place.prepared("table"))
    assert version.tags["rival"] == outcome.rival
    assert version.tags["verdict"] == outcome.verdict
    assert version.tags["git_commit"] == "none"
    assert (version.tags["decision"], version.tags["decided_against"]) == ("champion", "none")
    assert version.tags["decided_because"].splitlines() == list(outcome.reasons)
    assert '"must_beat_rivals": false' in version.tags["decided_by"]
    import mlflow

    run = mlflow.get_run(version.run_id)
    assert run.data.params["candidate.variant"] == "pca"
    assert run.data.params["training.epochs"] == "1"
    assert run.data.params["application.code"] == "2"
    assert run.data.metrics["test.explained_variance"] == outcome.score
    assert run.data.metrics[f"rival.{outcome.rival}.explained_variance"] == outcome.rival_score
    assert "validation_loss" in run.data.metrics


def refuse(*arguments, **keywords):
    raise AssertionError("called, though nothing has changed")


@pytest.mark.parametrize("gate", ["{must_beat_rivals: false, floor: null}", "{must_beat_rivals: false, floor: 0.999}"])
def test_a_second_election_publishes_and_judges_nothing(place, hold, monkeypatch, gate):
    write_params(place, "weak")
    hold()
    write_params(place, "weak", "good", gate=gate)
    first = hold()
    before = versions.every(place)
    for module, name in (
        (evaluation, "rejudge"),
        (versions, "publish"),
        (promotion, "promote"),
        (versions, "annotate"),
    ):
        monkeypatch.setattr(module, name, refuse)
    assert election.pending(place) == []
    again = hold()
    assert (again.published, again.promoted) == (False, False)
    assert replace(again, reasons=(), published=True, promoted=True) == replace(
        first, reasons=(), published=True, promoted=True
    )
    assert again.reasons == (("good is champion already",) if first.promoted else first.reasons)
    assert versions.every(place) == before


def change_rule(place):
    write_params(place, gate="{must_beat_rivals: false, floor: 0.01}")


def change_rivals(place):
    shutil.rmtree(place.rivals("table") / "reduction" / "pca")


def change_champion(place):
    promotion.promote(place, versions.every(place, NAME)[0], reasons=["rolled back by hand"])


def change_scores(place):
    path = place.evaluation("good") / "reduction" / "scores.json"
    scores = files.read_json(path)
    scores["test"]["mse"] = 12.5
    files.write_json(path, scores)


def lose_files(place):
    shutil.rmtree(place.model_artifacts)


@pytest.mark.parametrize("change", [change_rule, change_rivals, change_champion, change_scores, lose_files])
def test_whatever_a_decision_rests_on_opens_it_again_when_it_changes(place, hold, change):
    write_params(place, "weak")
    hold()
    write_params(place)
    assert hold().promoted
    assert election.pending(place) == []
    change(place)
    assert election.pending(place) == [NAME]
    outcome = hold()
    assert outcome.promoted == (change in {change_champion, lose_files})
    assert outcome.published == (change is lose_files)
    assert champion(place) == "good"
    versions.resolve(place, NAME)
    assert election.pending(place) == []


def test_the_champion_is_judged_again_on_todays_rows_that_it_never_saw_and_not_by_its_stored_number(place, hold):
    write_params(place, "weak")
    hold()
    before = Dataset.load(place.prepared("table"))
    known = np.concatenate([before.train.ids, before.validation.ids])
    old = bundles.load(place.evaluation("weak") / "reduction" / "bundle")
    # Another split: other test rows, and another mean and scale of every column.
    build(place, "good", split=1)
    outcome = hold()
    assert outcome.promoted
    assert champion(place) == "good"
    data = Dataset.load(place.prepared("table"))
    assert data.schema.to_json() != old.schema.to_json()
    new = bundles.load(place.evaluation("good") / "reduction" / "bundle")
    raw = tiny.table(200)
    fresh = np.setdiff1d(data.test.ids, known)
    assert rematch.FEWEST_ROWS <= len(fresh) < len(data.test)
    test = raw.take(np.flatnonzero(raw.frame["customer"].isin(fresh)))
    difference = explained(new.model, *data.schema.transform(test)) - explained(old.model, *old.schema.transform(test))
    (reason,) = [r for r in outcome.reasons if "beats today's champion" in r]
    assert float(reason.split("by ")[1].split(",")[0]) == pytest.approx(difference, abs=2e-4)
    assert any(f"on the {len(fresh)} test rows that it has never seen" in r for r in outcome.reasons)
    assert versions.champion(place, NAME).tags["decided_against"] == f"{NAME}/1"


def test_a_champion_that_has_seen_most_of_todays_test_rows_is_not_compared_by_what_it_learned(place, hold, monkeypatch):
    write_params(place, "good")
    hold()
    monkeypatch.setattr(rematch, "FEWEST_ROWS", 80)
    build(place, "weak", split=1)
    outcome = hold()
    assert outcome.promoted
    assert any(f"{NAME}/1 has never seen" in r and "needs 80; it is not compared" in r for r in outcome.reasons)


def test_who_is_not_proven_better_than_the_champion_becomes_challenger(place, hold):
    write_params(place, "good")
    hold()
    write_params(place, "weak")
    outcome = hold()
    assert (outcome.published, outcome.promoted, outcome.version, outcome.champion) == (True, False, 2, 1)
    assert any("not proven better than today's champion" in reason for reason in outcome.reasons)
    assert (champion(place), challenger(place)) == ("good", 2)
    assert versions.every(place, NAME)[1].tags["decision"] == "challenger"


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ("{must_beat_rivals: true, floor: null}", "not proven better than the best rival"),
        ("{must_beat_rivals: false, floor: 0.999}", "is below the floor of 0.999"),
        ("{must_beat_rivals: true, floor: null}\ngates: {table-reduction: {must_beat_rivals: false}}", None),
    ],
)
def test_the_gates_rule_is_honoured(place, hold, gate, reason):
    write_params(place, gate=gate)
    outcome = hold()
    assert outcome.published
    assert outcome.promoted == (reason is None)
    if reason:
        assert any(reason in r for r in outcome.reasons)
        assert (champion(place), challenger(place)) == (None, 1)
        with pytest.raises(LookupError, match="has no champion yet"):
            versions.resolve(place, NAME)
    else:
        assert (champion(place), challenger(place)) == ("good", None)


def test_a_champion_that_cannot_take_todays_data_cannot_defend_its_place(place, hold):
    write_params(place, "good")
    hold()
    frame = tiny.table(200).frame.rename(columns={"age": "years"})
    formats.write(place.root / "data" / "raw" / "table.parquet", frame)
    build(place, "weak")
    outcome = hold()
    assert outcome.promoted
    assert champion(place) == "weak"
    assert any(f"{NAME}/1 cannot be judged on today's data" in r and "'age'" in r for r in outcome.reasons)


def test_an_evaluation_of_weights_that_have_changed_does_not_count(place, hold):
    write_params(place, seed=1)
    stages.train(place, "weak")
    stages.train(place, "good")  # in closed form, so the same weights whatever the seed
    assert hold().winner == "good"
    write_params(place, "weak", seed=1)
    with pytest.raises(LookupError, match=r"no candidate has a result \(weak: .*does not count\); look at what failed"):
        hold()
    assert election.pending(place) == []
    stages.evaluate(place, "weak")
    assert hold().winner == "weak"


def test_an_election_that_broke_off_is_finished_by_the_next(place, hold, monkeypatch):
    def no_network(*arguments, **keywords):
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "promote", no_network)
        with pytest.raises(ConnectionError):
            hold()
    assert (len(versions.every(place)), champion(place)) == (1, None)
    assert election.pending(place) == [NAME]
    outcome = hold()
    assert (outcome.published, outcome.promoted, outcome.champion) == (False, True, 1)


def test_a_store_that_is_away_for_a_moment_replaces_no_champion(place, hold, monkeypatch):
    write_params(place, "good")
    hold()
    build(place, "weak")

    def away(*arguments, **keywords):
        raise ConnectionError("the store is away")

    import mlflow

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "download_artifacts", away)
        with pytest.raises(ConnectionError):
            hold()
    assert champion(place) == "good"
    assert not hold().promoted


def test_a_contest_that_does_not_exist_is_an_error_that_says_what_there_is(place):
    with pytest.raises(LookupError, match=f"no contest 'table-reducton', did you mean '{NAME}'\\?; there are: {NAME}"):
        election.hold(place, "table-reducton")


def test_nothing_trained_is_nothing_to_hold(place, hold):
    for candidate in CANDIDATES:
        shutil.rmtree(place.evaluation(candidate))
    assert election.contests(place) == election.pending(place) == []
    with pytest.raises(LookupError, match="good: not evaluated; weak: not evaluated"):
        hold()
    assert versions.every(place) == []


def test_the_sample_job_runs_a_champion_on_the_raw_rows_of_its_data_set(place, hold):
    assert election.sample(place) is None
    hold()
    raw = place.root / "data" / "raw" / "table.parquet"
    assert election.sample(place) == ("encode", NAME, raw)
    raw.unlink()
    assert election.sample(place) is None


def better_but_in(place, column, value):
    """Let "good" be as it is on "weak" in some rows, five percent worse there, and faultless in all others."""
    data = Dataset.load(place.prepared("table"))
    rows = tiny.table(200).frame.set_index("customer").loc[data.test.ids]
    inside = (rows[column] == value).to_numpy()
    weak = evaluation.Judgement.load(place.evaluation("weak") / "reduction")
    folder = place.evaluation("good") / "reduction"
    good = evaluation.Judgement.load(folder)
    error = np.where(inside, 1.05 * weak.test.values["error"], 0)
    values = {**good.test.values, "error": error.astype(good.test.values["error"].dtype)}
    score = 1 - error.sum() / values["total"].sum()
    scores = evaluation.Scores({**good.test.metrics, "explained_variance": float(score)}, values)
    evaluation.Judgement(good.validation, scores).save(folder, "explained_variance")
    return int(inside.sum())


@pytest.mark.parametrize(
    ("rule", "promoted"),
    [
        ("", True),
        (", slices: [vip]", False),
    ],
)
def test_a_candidate_that_is_better_on_the_whole_and_worse_in_a_slice_is_refused_by_the_slices_name(
    place, hold, rule, promoted
):
    write_params(place, "weak")
    hold()
    count = better_but_in(place, "vip", False)
    write_params(place, gate=f"{{must_beat_rivals: false{rule}}}")
    outcome = hold()
    assert (outcome.winner, outcome.promoted) == ("good", promoted)
    if promoted:
        assert any(reason.startswith("it beats today's champion (by +") for reason in outcome.reasons)
        assert not any("proven worse than" in reason for reason in outcome.reasons)
        return
    (reason,) = outcome.reasons[1:]
    assert reason.startswith(f"it is proven worse than today's champion in the slice vip=False ({count} rows) (by -")
    assert reason in versions.every(place, NAME)[1].tags["decided_because"]
    assert election.pending(place) == []


def test_a_slice_that_does_not_exist_is_named_and_lets_nobody_pass(place, hold):
    write_params(place, "weak")
    hold()
    write_params(place, gate="{must_beat_rivals: false, slices: [town, kind, age]}")
    outcome = hold()
    assert not outcome.promoted
    (reason,) = outcome.reasons[1:]
    for name in ("town", "age"):
        assert f"{name!r} is no label and no categorical feature; there are: kind, city, vip" in reason


LIMITS = "{must_beat_rivals: false, floors: {trustworthiness: 0.01}, max_megabytes: 50, max_milliseconds: 100000}"


@pytest.mark.parametrize(
    ("gate", "refusals"),
    [
        (LIMITS, []),
        (
            "{must_beat_rivals: false, max_megabytes: 50}\ngates:\n  reduction: {floor: 0.1, max_megabytes: 0.001}"
            "\n  table-reduction: {floor: 0.999, max_milliseconds: 0.001, floors: {trust: 1, trustworthiness: 0.9999}}",
            [
                "its score on test, ",
                "it has no metric trust, for which there is a floor; there are: ",
                "its trustworthiness on test, ",
                "its bundle has ",
                "1,000 rows take ",
            ],
        ),
    ],
)
def test_floors_of_other_metrics_and_limits_on_size_and_time_hold_and_all_that_fail_are_told(
    place, hold, gate, refusals
):
    write_params(place, gate=gate)
    outcome = hold()
    assert outcome.promoted == (not refusals)
    if refusals:
        assert len(outcome.reasons) == 1 + len(refusals)
        for reason, start in zip(outcome.reasons[1:], refusals, strict=True):
            assert reason.startswith(start)
    else:
        size = sum(p.stat().st_size for p in (place.evaluation("good") / "reduction" / "bundle").iterdir()) / 1e6
        (told,) = (reason for reason in outcome.reasons if reason.startswith("its bundle has "))
        assert float(told.split()[3]) == pytest.approx(size, abs=6e-4)
        assert any(r.startswith("1,000 rows take ") and "within the limit of 100000 ms" in r for r in outcome.reasons)
        scores = evaluation.Judgement.load(place.evaluation("good") / "reduction").test.metrics
        assert any(f"its trustworthiness on test, {scores['trustworthiness']:.4f}" in r for r in outcome.reasons)


def test_what_a_person_replaced_is_not_promoted_again_by_a_run(place, hold):
    write_params(place, "weak")
    hold()
    write_params(place)
    assert hold().promoted
    promotion.rollback(place, NAME, reason="the clinic asked for it")
    assert election.pending(place) == [NAME]
    outcome = hold()
    assert (outcome.winner, outcome.published, outcome.promoted, outcome.version, outcome.champion) == (
        "good",
        False,
        False,
        2,
        1,
    )
    (reason,) = outcome.reasons
    move = promotion.history(place, NAME)[-1]
    assert f"but {move.by} replaced it by version 1 on {move.at:%Y-%m-%d} (the clinic asked for it); " in reason
    assert f"`sevenfold promote {NAME} 2 --reason ...`" in reason
    assert (champion(place), challenger(place), election.pending(place)) == ("weak", 2, [])
    assert hold().reasons == outcome.reasons
    change_rule(place)
    assert election.pending(place) == [NAME]
    assert not hold().promoted
    assert (champion(place), election.pending(place)) == ("weak", [])
    # Until a person takes it again.
    promotion.promote(place, versions.every(place, NAME)[1], reasons=["they changed their mind"], by_hand=True)
    assert hold().reasons == ("good is champion already",)
    assert (champion(place), election.pending(place)) == ("good", [])


@pytest.mark.parametrize(("first", "second", "promoted"), [("weak", "good", True), ("good", "weak", False)])
def test_a_champion_that_moved_since_it_was_looked_at_is_looked_at_again(
    place, hold, monkeypatch, first, second, promoted
):
    write_params(place, first, gate="{must_beat_rivals: false, floor: 0.999}")
    assert not hold().promoted
    write_params(place, second)
    promote, calls = promotion.promote, []

    def somebody_was_faster(workspace, version, **keywords):
        calls.append(version.number)
        if len(calls) == 1:
            promote(workspace, versions.every(workspace, NAME)[0], reasons=["faster"], by_hand=True)
        return promote(workspace, version, **keywords)

    monkeypatch.setattr(promotion, "promote", somebody_was_faster)
    outcome = hold()
    assert calls == ([2, 2] if promoted else [2])
    assert (outcome.promoted, outcome.champion) == (promoted, 2 if promoted else 1)
    assert versions.every(place, NAME)[1].tags["decided_against"] == f"{NAME}/1"
    told = "it beats today's champion" if promoted else "it is not proven better than today's champion"
    assert any(reason.startswith(told) for reason in outcome.reasons)
    assert election.pending(place) == []


def test_a_champion_that_moves_at_each_look_ends_in_a_conflict_and_leaves_the_contest_pending(place, hold, monkeypatch):
    promote, calls = promotion.promote, []

    def always_too_late(workspace, version, **keywords):
        calls.append(version.number)
        return promote(workspace, version, **keywords | {"against": 7})

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "promote", always_too_late)
        with pytest.raises(promotion.ConflictError, match="was not promoted: it was decided against version 7"):
            hold()
    assert len(calls) == election.LOOKS
    assert (champion(place), election.pending(place)) == (None, [NAME])
    assert hold().promoted
