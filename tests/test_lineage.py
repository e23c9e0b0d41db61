"""From a model, a receipt or an output, the same story is told; what was changed since is said so."""

import dataclasses

import pandas as pd
import pytest

from sevenfold import files, formats, jobs, lineage, provenance
from sevenfold.registry import tracking, versions
from tests import tiny
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        root = tmp_path_factory.mktemp("lineage")
        (root / "params.yaml").write_text(SMALL)
        with tiny.workspace(root) as workspace:
            yield workspace


def publish(place, seed, tags):
    made, _ = versions.publish(
        place,
        "table-anomaly",
        tiny.saved(place.root / f"bundle-{seed}", "table", "anomaly", seed),
        params={"dataset": {"path": "data/raw/table.parquet"}},
        metrics={},
        curves=pd.DataFrame({"epoch": [0], "loss": [1.0]}),
        artifacts=[],
        tags={"dataset": "table", "candidate": "table-deep", "variant": "deep", "verdict": "it wins", **tags},
        description="",
    )
    return made


@pytest.fixture(scope="module")
def version(place):
    made = publish(place, 0, {"git_commit": "c" * 40, "git_dirty": "true", "lock_digest": "l" * 64})
    provenance.write(place, place.root / "kept", provenance.collect(place))
    (place.root / "kept" / "uncommitted.patch").write_text("a patch")
    client = tracking.client(place)
    client.log_artifacts(made.run_id, str(place.root / "kept"), "provenance")
    return made


@pytest.fixture
def job(place, version, tmp_path):
    formats.write(tmp_path / "rows.csv", tiny.table(20, seed=7).frame)
    return jobs.run(
        place,
        operation="encode",
        model=version.label,
        source=tmp_path / "rows.csv",
        destination=tmp_path / "codes.parquet",
    )


def test_model_receipt_and_output_lead_to_the_same_origin_and_to_the_job(place, version, job, tmp_path):
    output = tmp_path / "codes.parquet"
    stories = [lineage.trace(place, str(w)) for w in (version.label, output, jobs.receipt_path(output))]
    for story in stories:
        assert story["model"]["label"] == version.label
        assert story["digest"] == version.digest
        assert story["run"]["id"] == version.run_id
        assert story["code"] == {"commit": "c" * 40, "dirty": True, "patch": "kept", "here": False}
        assert story["params"]["digest"] == files.digest(place.params)
        assert story["lock_digest"] == "l" * 64
        assert story["environment"] == provenance.environment(1)
        assert job.to_json() | {"state": "unchanged"} == story["jobs"][0]
        assert story.keys() == stories[0].keys()
    assert stories[0]["job"] is None
    assert stories[1]["job"] == stories[2]["job"] == job.to_json()


def test_an_output_is_known_by_its_bytes_and_a_changed_one_is_called_changed(place, job, tmp_path):
    output = tmp_path / "codes.parquet"
    output.rename(tmp_path / "moved.parquet")
    assert lineage.trace(place, str(tmp_path / "moved.parquet"))["job"]["output_digest"] == job.output_digest
    assert lineage.trace(place, str(output))["output"]["state"] == "missing"
    output.write_bytes(b"something else")
    story = lineage.trace(place, str(output))
    assert story["output"]["state"] == "changed"
    assert "CHANGED since the job wrote it" in lineage.text(story)
    (tmp_path / "stranger.csv").write_text("a\n1\n")
    with pytest.raises(LookupError, match="no job of this store wrote these bytes"):
        lineage.trace(place, str(tmp_path / "stranger.csv"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist, nor does a receipt beside it"):
        lineage.trace(place, str(tmp_path / "nowhere.csv"))
    (tmp_path / "bad.receipt.json").write_text("{}")
    with pytest.raises(ValueError, match="is no receipt"):
        lineage.trace(place, str(tmp_path / "bad.receipt.json"))


def test_a_moved_threshold_leads_back_to_what_was_trained(place, version):
    moved = publish(place, 1, {"moved_from": version.label, "moved_threshold": "from a to b"})
    story = lineage.trace(place, moved.label)
    assert story["model"]["moved_from"] == [version.label]
    assert story["run"]["id"] == version.run_id
    assert story["code"]["commit"] == "c" * 40


def test_a_job_that_the_store_does_not_know_is_told_from_its_receipt(place, tmp_path):
    formats.write(tmp_path / "rows.csv", tiny.table(20).frame)
    jobs.apply(
        tiny.bundle("table", "anomaly"), "a/folder", "f" * 64, "score", tmp_path / "rows.csv", tmp_path / "o.csv"
    )
    story = lineage.trace(place, str(tmp_path / "o.csv"))
    assert story["model"] is None
    assert len(story["jobs"]) == 1
    assert "not registered here" in lineage.text(story)


def test_the_text_fits_a_terminal(place, version, job):
    text = lineage.text(lineage.trace(place, version.label))
    long = [line for line in text.splitlines() if len(line) > 80 and not line.startswith(("    from", "    to"))]
    assert long == []
    assert {"Model", "Code", "Data", "Environment"} <= set(text.splitlines())


def test_an_output_in_a_store_is_elsewhere(job):
    assert lineage.state(dataclasses.replace(job, output="s3://bucket/out.parquet")) == "elsewhere"
