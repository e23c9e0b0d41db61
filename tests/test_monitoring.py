"""Monitoring: what drifts on purpose is found and named, what does not is not, and a retraining is asked for by rule."""

import functools
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from sevenfold import (
    checkup,
    cli,
    drift,
    evaluation,
    files,
    formats,
    histograms,
    jobs,
    modules,
    monitoring,
    monitoring_page,
    preparation,
    resampling,
    retraining,
    score_drift,
    sources,
    training,
)
from sevenfold.applications.anomaly import Anomaly
from sevenfold.applications.base import Application
from sevenfold.bundles import Bundle
from sevenfold.models.base import ModelSpec
from sevenfold.registry import checks, promotion, receipts, tracking
from sevenfold.registry.checks import Past
from sevenfold.registry.receipts import Receipt
from sevenfold.resampling import Job
from sevenfold.retraining import Decision, Rule
from tests import seaweed, tiny

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=100)
DIGEST = "d" * 64


def customers(count, seed):
    """Five numbers of which three follow from two others, a city, gaps in one column; one row in ten is odd."""
    random = np.random.default_rng(seed)
    odd = random.random(count) < 0.1
    z = random.normal(size=(count, 2))
    noise = 0.1 * random.normal(size=(count, 3)) + np.where(odd, 2.0, 0.0)[:, None] * random.choice([-1, 1], (count, 3))
    frame = pd.DataFrame({"a": z[:, 0], "b": z[:, 1]})
    frame["sum"], frame["difference"], frame["double"] = noise.T + np.stack(
        [z.sum(axis=1), z[:, 0] - z[:, 1], 2 * z[:, 0]]
    )
    frame["income"] = np.where(random.random(count) < 0.1, np.nan, random.normal(30, 5, count))
    frame["city"] = random.choice(["Bern", "Oslo", "Rome"], count)
    frame["kind"] = np.where(odd, "odd", "normal")
    return frame


@functools.cache
def bundle(labelled=True):
    """Return a model of such customers; unlabelled, it knows only of planted anomalies."""
    frame = customers(3000, 0)
    data = preparation.prepare(
        "customers",
        formats.Rows(frame if labelled else frame.drop(columns="kind")),
        label="kind" if labelled else None,
        normal=["normal"] if labelled else None,
        identifier=None,
        group=None,
        drop=(),
        categorical=(),
        value_range=None,
        duplicates="error",
        validation=0.2,
        test=0.2,
        seed=0,
    )
    application = Anomaly(**tiny.ANOMALY)
    spec = ModelSpec.of("deep", data.schema.layout, tiny.DEEP)
    learn = evaluation.learned_from(application, data)
    settings = replace(tiny.SETTINGS, epochs=12, patience=12)
    model, _ = training.fit(spec, learn, data.validation, settings, seed=0, device="cpu", on_epoch=lambda epoch: None)
    calibrated = application.calibrate(model, learn, application.judged(data).validation)
    reference = drift.Reference.learn(model, data.schema, data.train, data.validation)
    origin = {"dataset": "customers", "candidate": "deep", "data_path": "data/raw/customers.parquet"}
    return Bundle(spec, model, data.schema, "anomaly", calibrated, origin, reference)


def receipt(path, given, count, *, minutes=0, digest=DIGEST, **details):
    """Return what a job on a file would have left, with the drift of its first rows."""
    first = next(iter(formats.batches(path, jobs.FIRST_ROWS)))
    found = jobs._drift(given, first, None)
    when = NOW - timedelta(minutes=minutes)
    return Receipt(
        "score", "customers-anomaly/1", digest, count, (), str(path), files.digest(path), str(path.with_name("out")),
        "0" * 64, 1.0, when, when, "somebody", "0", f"run {minutes}", {"drift": found, "quarantined": 0} | details,
    )  # fmt: skip


def examined(given, *made, **more):
    return monitoring.examine(given, made, model="customers-anomaly/1", digest=DIGEST, when=NOW, **more)


def checked(frame, given=None):
    """Return the check of one table in memory."""
    given = given or bundle()
    sample = resampling.take(given, [formats.Rows(frame)])
    return monitoring.judge(given, sample, (), model="customers-anomaly/1", digest=DIGEST, when=NOW)


def kinds(check):
    return Counter(finding.kind for finding in check.findings)


@pytest.mark.slow
def test_of_200_draws_without_drift_at_most_3_percent_are_told_of(tmp_path):
    """Each with two jobs of 60 to 1,000 rows, read again from their files as a check does, by models with labels and without."""
    told = []
    for draw in range(200):
        made = []
        given, count = bundle(labelled=draw % 2 == 0), (60, 250, 1000)[draw % 3]
        for place in range(2):
            path = tmp_path / f"{place}.parquet"
            customers(count, 1000 + 2 * draw + place).to_parquet(path)
            made.append(receipt(path, given, count, minutes=place))
        check = examined(given, *made)
        if retraining.decide(check, [], Rule(), made=LONG_AGO).verdict != "ok":
            told.append([str(finding) for finding in check.findings])
    assert len(told) <= 0.03 * 200, told


def test_a_column_that_moved_is_found_and_training_again_may_mend_it():
    now = customers(800, 1)
    now["income"] += 10
    check = checked(now)
    finding = check.findings[0]
    assert (finding.kind, finding.what, finding.large, finding.curable) == ("column", "income", True, True)
    assert "column" not in {other.kind for other in check.findings[1:]}
    assert finding.number == check.worst[1] > 0.25
    assert "its values moved (KS" in finding.reading


def test_gaps_are_mended_at_their_source_and_no_reason_to_train_again():
    now = customers(800, 1)
    now.loc[now.index % 2 == 0, "income"] = np.nan
    check = checked(now)
    (finding,) = check.findings
    assert (finding.kind, finding.what, finding.large, finding.curable) == ("gaps", "income", True, False)
    assert "54% gaps in place of 11%" in finding.reading
    decision = retraining.decide(check, [], Rule(checks=1), made=LONG_AGO)
    assert decision.verdict == "tell"


def test_new_categories_and_rows_of_another_type_are_counted_and_named_and_raise_nothing():
    now = customers(400, 1).astype({"a": object})
    now.loc[:39, "city"] = "Paris"
    now.loc[40:43, "city"] = "Lima; or so"
    now.loc[50:51, "a"] = "much"
    check = checked(now)
    assert (check.rows, check.refused) == (354, 46)
    assert kinds(check) == {"categories": 1, "refused": 1}
    fresh, other = check.findings
    assert (fresh.what, fresh.number, fresh.large) == ("city", pytest.approx(0.11), True)
    assert "'Paris', 'Lima; or so'" in fresh.reading
    assert not other.large
    assert "'a' is 'much'; expected a number" in other.reading


def test_a_missing_column_is_told_of_all_rows():
    check = checked(customers(50, 1).drop(columns="sum"))
    assert (check.rows, check.refused, check.drift, check.worst) == (0, 50, None, None)
    assert "column 'sum' is missing" in check.findings[0].reading


def test_columns_that_no_longer_depend_on_each_other_show_in_the_error_alone():
    now = customers(800, 1)
    now["sum"] = np.random.default_rng(0).permutation(now["sum"])
    reduction = modules.member("applications", "reduction", Application)(**tiny.REDUCTION)
    for given in (bundle(), replace(bundle(), application=reduction, application_name="reduction")):
        found = {f.kind: f for f in checked(now, given).findings}
        assert "column" not in found
        assert "columns no longer go together" in found["error"].reading
        # Of a model of anomalies it may be an attack.
        assert found["error"].large
        assert found["error"].curable == (given.application_name == "reduction")


@pytest.mark.parametrize("labelled", [True, False])
def test_more_anomalies_than_expected_are_told_of_and_are_no_reason_to_train_again(labelled):
    rows = customers(12_000, 1)
    now = pd.concat(
        [rows[rows["kind"] == "odd"].head(600), rows[rows["kind"] == "normal"].head(400)], ignore_index=True
    )
    check = checked(now, bundle(labelled))
    flags = next(f for f in check.findings if f.kind == "flags")
    assert flags.number == check.scores.flagged > 1.5 * check.scores.expected
    assert (flags.large, flags.curable) == (True, False)
    assert kinds(check)["scores"] == (not labelled), "held-out scores by folds have another distribution"
    assert check.scores.share == pytest.approx(0.1 if labelled else 0, abs=0.03)


def test_flags_are_counted_against_chance_and_twice_what_is_expected():
    assert not score_drift._unlikely(10, 30, 0.2, 400, 2), "of few rows a third may be by chance"
    assert score_drift._unlikely(160, 300, 0.2, 400, 2)
    assert score_drift._unlikely(120, 300, 0.2, 400, 1.2)
    assert not score_drift._unlikely(2000, 10_000, 0.1, 100_000, 2), "just twice as many"
    assert score_drift._unlikely(0, 1000, 0.1, 400, 2), "a model that finds nothing any more"
    assert not score_drift._unlikely(0, 20, 0.1, 400, 2)
    assert not score_drift._unlikely(300, 300, 0.9, 400, 2), "no more than all can be expected"


def test_expected_flags_are_those_of_the_policy(tmp_path):
    """The threshold flags a tenth of held-out normal rows; with anomalies as frequent as known, these come on top."""
    scores = checked(customers(5000, 3)).scores
    known = bundle().application.known
    wanted = (1 - known.share) * np.mean(known.normal > scores.threshold)
    wanted += known.share * np.mean(known.strange > scores.threshold)
    assert scores.expected == pytest.approx(wanted)
    assert scores.flagged == pytest.approx(wanted, abs=0.06)
    assert scores.ks is None
    lone = checked(customers(5000, 3), bundle(labelled=False)).scores
    assert (lone.share, lone.expected) == (0, pytest.approx(0.1, abs=0.01))
    assert lone.ks < 0.1


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".npz"])
def test_sampled_rows_are_spread_over_the_whole_input(ending, tmp_path):
    frame = pd.DataFrame({"x": np.arange(20_000.0)})
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        frame.to_parquet(path, row_group_size=1500)
    else:
        formats.write(path, frame)
    source = sources.open_source(path)
    found = list(resampling._spread(bundle(), source, 20_000, 100))
    values = np.concatenate([rows.frame.iloc[:, -1].astype(float) for rows in found]) if ending != ".parquet" else None
    assert sum(map(len, found)) == 100
    if values is not None:
        np.testing.assert_array_equal(values, np.arange(100) * 200)


def test_a_check_holds_no_more_rows_than_it_was_told_and_each_job_has_its_share(tmp_path):
    made = []
    for place, count in enumerate((3000, 1000)):
        customers(count, place + 5).to_parquet(tmp_path / f"{place}.parquet")
        made.append(receipt(tmp_path / f"{place}.parquet", bundle(), count, minutes=place))
    check = examined(bundle(), *made, rows=400)
    assert check.rows == 400
    assert [job.sampled for job in check.jobs] == [300, 100]
    assert [job.state for job in check.jobs] == ["read", "read"]


def test_a_job_on_the_first_rows_alone_is_read_no_farther(tmp_path):
    now = customers(600, 5)
    now.loc[300:, "income"] += 40
    now.to_parquet(tmp_path / "rows.parquet")
    made = receipt(tmp_path / "rows.parquet", bundle(), 300, limit=300)
    check = examined(bundle(), replace(made, details=made.details | {"drift": None}))
    assert (check.rows, check.findings) == (300, ())


def test_an_input_that_is_gone_or_changed_is_said_so_and_its_receipt_counts(tmp_path):
    now = customers(500, 5)
    now["income"] += 10
    made = []
    for place, name in enumerate(("gone", "changed", "own", "other")):
        now.assign(note=name).to_parquet(tmp_path / f"{name}.parquet")
        made.append(receipt(tmp_path / f"{name}.parquet", bundle(), 500, minutes=place))
    made[3] = replace(made[3], digest="e" * 64)  # by another version, whose numbers say nothing of this one
    (tmp_path / "gone.parquet").unlink()
    (tmp_path / "other.parquet").unlink()
    now.head(10).to_parquet(tmp_path / "changed.parquet")
    check = examined(bundle(), *made, own=tmp_path / "own.parquet")
    assert [job.state for job in check.jobs] == ["gone", "changed", "training", "gone"]
    assert "gone.parquet" in check.jobs[0].note
    assert "its SHA-256 was" in check.jobs[1].note
    assert (check.rows, check.seen) == (0, 1000)
    assert check.jobs[3].worst is None
    stood, newest = check.findings
    assert (stood.kind, stood.large) == ("job", True)
    assert stood.what == "2 jobs whose input is not there any more"
    assert stood.number == pytest.approx(made[0].details["drift"]["worst"]["psi"], rel=0.01)
    assert newest.what == "income in the newest job, of 2026-11-28 12:00"
    assert retraining.decide(check, [], Rule(checks=1), made=LONG_AGO).verdict == "retrain"


def test_of_many_jobs_whose_input_is_gone_one_that_is_far_off_by_chance_raises_nothing():
    def job(number, psi):
        when = NOW - timedelta(hours=number)
        return Job(
            str(number),
            when,
            "score",
            "customers-anomaly/1",
            "rows",
            str(number),
            30,
            0,
            "gone",
            "",
            ("a", psi),
            False,
            30,
        )

    empty = resampling.take(bundle(), [])
    told = tuple(job(number, 1.2 if number == 7 else 0.0) for number in range(40))
    check = monitoring.judge(bundle(), empty, told, model="customers-anomaly/1", digest=DIGEST, when=NOW)
    assert check.findings == ()
    assert check.worst == ("a", pytest.approx(0.03))


def test_the_newest_job_is_not_hidden_by_those_before_it(tmp_path):
    made = []
    for place, shift in enumerate((5, 0, 0, 0, 0, 0)):
        now = customers(1000, place + 20)
        now["income"] += shift
        now.to_parquet(tmp_path / f"{place}.parquet")
        made.append(receipt(tmp_path / f"{place}.parquet", bundle(), 1000, minutes=place))
    check = examined(bundle(), *made)
    assert check.drift.worst[1] < drift.SOME
    assert [f.what for f in check.findings] == ["income in the newest job, of 2026-11-28 12:00"]
    assert check.large


def test_images_are_compared_by_summaries_and_those_of_another_size_are_counted(tmp_path):
    given = tiny.bundle("images", "anomaly")
    still, bright = tiny.images(60, seed=5), tiny.images(60, seed=6)
    bright = formats.Rows(bright.frame, np.minimum(bright.images.astype(int) + 60, 255).astype(np.uint8))
    for name, rows in (("still", still), ("bright", bright)):
        formats.write_rows(tmp_path / f"{name}.npz", rows)
    made = {name: receipt(tmp_path / f"{name}.npz", given, 60) for name in ("still", "bright")}
    assert monitoring.examine(given, [made["still"]], model="m/1", digest=DIGEST, when=NOW).findings == ()
    found = monitoring.examine(given, [made["bright"]], model="m/1", digest=DIGEST, when=NOW)
    assert found.findings[0].what == "brightness"
    assert len(found.histograms) == len(found.drift.columns) + 1
    odd = resampling.take(given, [still, formats.Rows(still.frame, np.zeros((60, 9, 9), np.uint8))])
    assert (len(odd.x), odd.refused) == (60, 60)
    assert "got images 9x9" in next(iter(odd.reasons))


def test_one_input_counts_once(tmp_path):
    customers(300, 5).to_parquet(tmp_path / "rows.parquet")
    made = [receipt(tmp_path / "rows.parquet", bundle(), 300, minutes=m) for m in range(3)]
    assert [job.run_id for job in examined(bundle(), *made).jobs] == ["run 0"]


def test_a_file_that_each_job_found_written_anew_is_read_once_for_its_digest(tmp_path, monkeypatch):
    path, made = tmp_path / "rows.parquet", []
    for seed in range(3):
        customers(300, seed).to_parquet(path)
        made.insert(0, receipt(path, bundle(), 300, minutes=-seed))
    read, digest = [], sources.File.digest
    monkeypatch.setattr(sources.File, "digest", lambda file: read.append(file.path) or digest(file))
    assert [job.state for job in examined(bundle(), *made).jobs] == ["read", "changed", "changed"]
    assert read == [path]


def test_nobody_can_tell_without_a_reference():
    with pytest.raises(ValueError, match=r"does not know what its training rows looked like.*publish it again"):
        examined(replace(bundle(), reference=None))


@functools.cache
def drifted():
    now = customers(800, 1)
    now["income"] += 10
    check = checked(now)
    job = Job("run 9", NOW, "score", "customers-anomaly/1", "rows", "digest 9", 800, 800, "read")
    return replace(check, jobs=(job,))


def past(hours, *, large=True, digest=DIGEST, newest=None, asked=None):
    when = NOW - timedelta(hours=hours)
    return Past(when, digest, "tell", large, newest or f"job of {when}", 0.5, asked)


@pytest.mark.parametrize(
    ("before", "rule", "made", "reason"),
    [
        ([], Rule(), LONG_AGO, "that is check 1 in a row; expected 2"),
        ([past(1, large=False), past(2)], Rule(), LONG_AGO, "that is check 1 in a row"),
        ([past(1, digest="e" * 64)], Rule(), LONG_AGO, "that is check 1 in a row"),
        ([past(1, newest="digest 9")], Rule(), LONG_AGO, "that is check 1 in a row"),
        ([past(1), past(2)], Rule(checks=4), LONG_AGO, "that is check 3 in a row; expected 4"),
        ([past(1)], Rule(rows=801), LONG_AGO, "800 rows are too few to train again for; expected 801"),
        ([past(1)], Rule(), NOW - timedelta(days=2), "the champion was made on 2026-11-26, less than 7 days ago"),
        (
            [past(1), past(2, asked=NOW - timedelta(hours=2))],
            Rule(),
            LONG_AGO,
            "a retraining was asked for on 2026-11-28",
        ),
        ([past(1)], Rule(), LONG_AGO, None),
        ([past(1), past(500, asked=NOW - timedelta(hours=500))], Rule(), LONG_AGO, None),
        ([past(1, newest="digest 9"), past(2)], Rule(), LONG_AGO, None),
        ([], Rule(checks=1, cooldown=0), NOW, None),
    ],
)
def test_a_retraining_is_asked_for_by_rule_and_else_the_reason_is_told(before, rule, made, reason):
    decision = retraining.decide(drifted(), before, rule, made=made)
    assert decision.verdict == ("retrain" if reason is None else "tell")
    assert any("income" in told for told in decision.reasons)
    assert any(told.startswith(f"no retraining: {reason}") for told in decision.reasons) == (reason is not None)


def test_the_same_rows_again_and_the_training_data_are_no_second_witness():
    check = drifted()
    (job,) = check.jobs
    again = replace(job, run_id="run 10", when=NOW + timedelta(hours=1))
    own = replace(job, run_id="run 11", when=NOW + timedelta(hours=2), digest="data set", state="training")
    for jobs_ in ((again,), (again, own), (own, job)):
        assert replace(check, jobs=jobs_).newest == "digest 9"
    assert replace(check, jobs=(own,)).newest == ""


def test_without_jobs_nothing_is_claimed():
    check = examined(bundle())
    assert retraining.decide(check, [past(1)], Rule(), made=LONG_AGO) == Decision("ok", ("no job to look at",))
    assert check.sentence() == "customers-anomaly/1: no job to look at"


def test_settings_out_of_range_are_told_all_at_once():
    with pytest.raises(ValueError, match=r"psi is 0; expected 0.1 or more.*checks is 0.*rows is -1.*cooldown is nan"):
        Rule(0, 0, -1, float("nan"))


def test_a_check_is_plain_json_of_bounded_size_and_its_metrics_are_finite():
    told = drifted().to_json()
    assert json.loads(files.dumps(told)) == json.loads(json.dumps(told))
    assert len(told["histograms"]) <= histograms.DRAWN + 1
    numbers = drifted().metrics()
    assert {
        "drift_worst",
        "drift_psi.income",
        "error_ratio",
        "missing_worst",
        "flagged_share",
        "rows",
    } <= numbers.keys()
    assert np.isfinite(list(numbers.values())).all()
    assert numbers["drift_worst"] == drifted().worst[1]


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_shows():
    check = drifted()
    columns = tuple(replace(m, name="<script>") if m.name == "income" else m for m in check.drift.columns)
    histograms = tuple(replace(h, name="<script>") if h.name == "income" else h for h in check.histograms)
    check = replace(check, drift=replace(check.drift, columns=columns), histograms=histograms)
    decision = retraining.decide(check, [past(24)], Rule(), made=LONG_AGO)
    page = monitoring_page.page(check, decision, [past(24), past(48, large=False)])
    assert page == monitoring_page.page(check, decision, [past(24), past(48, large=False)])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)='?\"?(?!data:|#)[a-z/]", page)
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == len(check.histograms) + 1
    assert all("alt='" in image and "src='data:image/svg+xml" in image for image in images)
    assert "train again" in page
    assert "The largest PSI of 3 checks, from 0.5 to" in page


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tiny.workspace(tmp_path_factory.mktemp("monitoring")) as workspace:
            yield workspace


@pytest.fixture(scope="module")
def champion(place):
    (place.root / "params.yaml").write_text("")
    (place.root / "dvc.yaml").write_text("")
    version = tiny.published(place, tiny.saved(place.root / "bundle", "table", "anomaly"))
    return promotion.promote(place, version, reasons=["it is the first"], against=None)


def score(place, name, shift=0):
    rows = tiny.table(400, seed=9).frame
    rows["age"] += shift
    formats.write(place.root / f"{name}.csv", rows)
    jobs.run(
        place, operation="score", model="table-anomaly", source=place.root / f"{name}.csv", destination=place.root / f"{name}.parquet"
    )  # fmt: skip


@pytest.mark.slow
def test_a_check_is_a_run_that_is_read_back_and_the_command_ends_with_3_where_something_is_found(
    place, champion, capsys, monkeypatch
):
    monkeypatch.chdir(place.root)
    score(place, "still")
    with pytest.raises(SystemExit) as ended:
        cli.main(["monitor"])
    assert ended.value.code == 0
    assert "table-anomaly/1: ok" in capsys.readouterr().out
    score(place, "moved", 40)
    with pytest.raises(SystemExit) as ended:
        cli.main(["monitor", "table-anomaly", "--json"])
    assert ended.value.code == 3
    (told,) = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "tell"
    newer, older = checks.past(place, "table-anomaly")
    assert (older.verdict, older.large, newer.verdict, newer.large) == ("ok", False, "tell", True)
    assert newer.digest == champion.digest
    assert newer.worst >= told["drift"]["worst"]["psi"] > drift.LARGE
    client = tracking.client(place)
    run = client.get_run(told["run_id"])
    assert client.get_experiment(run.info.experiment_id).name == "monitoring"
    assert run.data.tags["model_version"] == "table-anomaly/1"
    assert [found.model_id for found in run.inputs.model_inputs] == [champion.model]
    assert run.data.metrics["drift_psi.age"] == pytest.approx(told["drift"]["columns"][0]["psi"], rel=1e-4)
    page = client.download_artifacts(told["run_id"], "monitoring.html")
    assert files.digest(place.check("table-anomaly")) == files.digest(formats.Path(page))
    checks.mark_asked(place, told["run_id"], NOW, "training/training, run x")
    assert checks.past(place, "table-anomaly")[0].asked == NOW
    # It counts as long as its cooldown lasts, however many checks come after it.
    monkeypatch.setattr(checks, "MOST", 1)
    later = datetime.now(UTC) + timedelta(hours=1)
    checkup.look(place, "table-anomaly", days=1000, rule=Rule(), now=later)
    assert [one.asked for one in checks.past(place, "table-anomaly")] == [None, NOW]


@pytest.mark.slow
def test_jobs_of_every_version_count_and_those_of_models_with_like_names_do_not(place, champion):
    made = receipts.of_model(place, "table-anomaly", NOW - timedelta(days=36500), 100)
    assert {r.model for r in made} <= {"table-anomaly/1"}
    assert made
    assert receipts.of_model(place, "table_anomaly", NOW - timedelta(days=36500), 100) == []
    assert receipts.of_model(place, "table-anomaly", datetime.now(UTC) + timedelta(days=1), 100) == []
    assert len(receipts.of_model(place, "table-anomaly", NOW - timedelta(days=36500), 1)) == 1


@pytest.mark.slow
def test_a_model_that_is_not_there_is_an_error_that_says_what_is(place, champion):
    with pytest.raises(LookupError, match=r"no model 'table-anomal'.*registered are: table-anomaly"):
        checkup.look(place, "table-anomal", days=7, rule=Rule())
    with pytest.raises(ValueError, match=r"days is 0 .*expected more than 0 days"):
        checkup.look(place, "table-anomaly", days=0, rule=Rule())


@pytest.mark.slow
def test_an_input_in_an_object_store_is_read_there_and_known_by_its_digest(tmp_path, monkeypatch):
    import s3fs

    given = tiny.bundle("table", "anomaly")

    def check():
        return monitoring.examine(given, [made], model="model/1", digest=made.digest, when=NOW)

    with seaweed.server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem(use_listings_cache=False)
        for number in range(3):
            formats.write(tmp_path / "rows.parquet", tiny.table(100, seed=number).frame)
            system.put_file(str(tmp_path / "rows.parquet"), f"data/rows/{number}.parquet")
        made = tiny.job("s3://data/rows", tmp_path / "out.parquet", "score")
        assert (check().jobs[0].state, check().rows) == ("read", 300)
        system.put_file(str(tmp_path / "rows.parquet"), "data/rows/0.parquet")
        assert check().jobs[0].state == "changed"
        system.rm("data/rows", recursive=True)
        assert check().jobs[0].state in ("gone", "unreadable")
