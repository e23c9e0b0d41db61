"""Every job is a run of the tracking store, found by what it used and what it made; and no job is lost with the store."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sevenfold import bundles, cli, files, formats, jobs
from sevenfold.registry import receipts, tracking
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with tiny.workspace(tmp_path_factory.mktemp("receipts")) as workspace:
            yield workspace


@pytest.fixture(scope="module")
def bundle(place):
    return tiny.saved(place.root / "bundle", "table", "anomaly")


@pytest.fixture(scope="module")
def version(place, bundle):
    return tiny.published(place, bundle)


@pytest.fixture
def rows(tmp_path):
    formats.write(tmp_path / "rows.csv", tiny.table(20).frame)
    return tmp_path / "rows.csv"


def work(place, model, rows, name="scores.parquet"):
    return jobs.run(place, operation="score", model=model, source=rows, destination=rows.with_name(name))


def test_a_job_is_a_run_that_says_what_the_receipt_says(place, version, rows):
    receipt = work(place, version.label, rows)
    client = tracking.client(place)
    run = client.get_run(receipt.run_id)
    beside = json.loads(jobs.receipt_path(rows.with_name("scores.parquet")).read_text())
    kept = client.download_artifacts(receipt.run_id, "receipt.json")
    assert beside == json.loads(Path(kept).read_text()) == receipt.to_json()
    assert client.get_experiment(run.info.experiment_id).name == "batch jobs"
    assert run.info.run_name == f"score with {version.label}"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["rows"] == 20
    assert run.data.metrics["rows_per_second"] == pytest.approx(20 / receipt.seconds)
    assert run.data.tags["model_version"] == version.label
    assert run.data.tags["output_digest"] == files.digest(rows.with_name("scores.parquet"))
    assert (run.info.start_time, run.info.end_time) == tuple(
        round(moment.timestamp() * 1000) for moment in (receipt.started, receipt.ended)
    )
    model = client.get_model_version(version.name, str(version.number)).source.removeprefix("models:/")
    assert model.startswith("m-")
    assert [found.model_id for found in run.inputs.model_inputs] == [model]
    assert [found.dataset.name for found in run.inputs.dataset_inputs] == ["rows.csv"]


def test_jobs_are_found_by_the_model_and_by_the_output_newest_first(place, version, bundle, rows, monkeypatch):
    monkeypatch.setattr(receipts, "_LONGEST_TAG", 10)  # so that the columns come from the artifact
    first = work(place, version.label, rows, "first.csv")
    time.sleep(0.01)
    second = work(place, str(bundle), rows, "second.csv")  # of the same digest, without a version
    found = receipts.of(place, version.digest)
    assert found[:2] == [second, first]
    assert all(receipt.digest == bundles.digest(bundle) for receipt in found)
    assert "model_version" not in tracking.client(place).get_run(second.run_id).data.tags
    assert set(receipts.of_output(place, first.output_digest)) >= {first, second}  # the same rows
    assert receipts.of(place, "0" * 64) == []
    assert receipts.of(place, "' or 1 = 1") == []


def test_a_receipt_comes_back_from_its_json_and_from_nothing_else(place, version, rows):
    receipt = work(place, version.label, rows)
    assert receipts.Receipt.from_json(json.loads(files.dumps(receipt.to_json()))) == receipt
    assert receipt.started.tzinfo == UTC
    assert timedelta() <= receipt.ended - receipt.started <= timedelta(seconds=receipt.seconds + 1)
    assert datetime.now(UTC) - receipt.ended < timedelta(minutes=5)
    with pytest.raises((KeyError, TypeError, ValueError)):
        receipts.Receipt.from_json({"rows": 3})


def test_output_and_receipt_stay_when_the_store_is_away(place, bundle, rows, monkeypatch, capsys):
    monkeypatch.setattr(receipts, "ATTEMPTS", 1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (place.root / "params.yaml").touch()
    (place.root / "dvc.yaml").touch()
    monkeypatch.setenv("SEVENFOLD_WORKSPACE", str(place.root))
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", str(bundle), str(rows), str(rows.with_name("out.csv"))])
    assert ended.value.code == 0
    receipt = json.loads(rows.with_name("out.csv.receipt.json").read_text())
    assert receipt["run_id"] is None
    assert receipt["output_digest"] == files.digest(rows.with_name("out.csv"))
    assert len(formats.read(rows.with_name("out.csv")).frame) == 20


def test_the_warning_of_a_store_that_is_away_says_what_stays(place, bundle, rows, monkeypatch, caplog):
    def away(*arguments):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(receipts, "record", away)
    assert work(place, str(bundle), rows).run_id is None
    assert "was not recorded in the tracking store (nobody answers); output and receipt are whole" in caplog.text


def test_a_store_whose_trouble_passes_is_asked_again(place, bundle, rows, monkeypatch):
    calls, real = [], receipts._record

    def flaky(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise ConnectionError("for a moment")
        return real(*arguments)

    monkeypatch.setattr(receipts, "_record", flaky)
    assert work(place, str(bundle), rows).run_id is not None
    assert len(calls) == 2


def test_recording_takes_well_under_a_second(place, version, rows):
    receipt = work(place, version.label, rows)
    start = time.perf_counter()
    receipts.record(place, receipt, version)
    assert time.perf_counter() - start < 1
