"""A contest's results are runs: each logged once, below the pipeline run that brought it, failed ones too."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from sevenfold.registry import runs, tracking
from sevenfold.workspace import Workspace
from tests import tiny

CURVES = pd.DataFrame({"epoch": range(1, 601), "loss": 0.5, "rate": 0.1})
GOOD = runs.Entry(
    "deep", "candidate", "a", {"options": {"code": 2}}, {"test.score": 0.5}, CURVES, {"variant": "deep"}, "**deep**"
)
BAD = runs.Entry("knn", "rival", "b", failure="ValueError: too few rows")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tiny.workspace(tmp_path) as place:
        yield place


def record(place, entries, title="run 1", **more):
    return runs.record(
        place, "table-x", entries, pipeline_run=title, description="**x**", texts={"contest.md": "table"}, **more
    )


def test_each_result_is_logged_whole_and_once_below_its_pipeline_run(place):
    found = record(place, [GOOD])
    assert runs.is_recorded(place, "table-x", ["a"])
    assert not runs.is_recorded(place, "table-x", ["a", "b"])
    both = record(place, [GOOD, BAD], "run 2")
    assert both["a"] == found["a"]
    assert record(place, [GOOD, BAD], "run 3") == both
    client = tracking.client(place)
    every = client.search_runs([runs.experiment(place, "table-x")])
    assert sorted(r.info.run_name for r in every) == ["deep", "knn", "run 1", "run 2"]
    names = {r.info.run_id: r.info.run_name for r in every}
    good, bad = client.get_run(both["a"]), client.get_run(both["b"])
    assert [names[r.data.tags["mlflow.parentRunId"]] for r in (good, bad)] == ["run 1", "run 2"]
    assert good.data.params == {"options.code": "2"}
    assert [m.step for m in client.get_metric_history(both["a"], "loss")] == [
        *range(1, 601)
    ]  # more than one call takes
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert bad.data.tags["failure"] == BAD.failure


def test_a_run_that_was_left_unfinished_is_logged_again(place):
    first = record(place, [GOOD])["a"]
    client = tracking.client(place)
    client.update_run(first, status="RUNNING")
    second = record(place, [GOOD])["a"]
    assert second != first
    assert client.get_run(first).info.lifecycle_stage == "deleted"


def test_the_pipeline_run_keeps_folders_and_is_found_by_when_it_began(place, tmp_path):
    begun = datetime.now(UTC)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "dvc.lock").write_bytes(b"schema: '2.0'\n")
    record(place, [GOOD], folders={"provenance": tmp_path / "kept"})
    ((contest, parent),) = runs.parents(place, begun, by=place)
    assert contest == "table-x"
    there = tracking.client(place).download_artifacts(parent, "provenance/dvc.lock", str(tmp_path))
    assert Path(there).read_bytes() == b"schema: '2.0'\n"
    record(place, [GOOD], "run 2")
    assert len(runs.parents(place, begun, by=place)) == 1
    assert runs.parents(place, datetime.now(UTC) + timedelta(seconds=1), by=place) == []
    assert runs.parents(place, begun, by=Workspace(tmp_path / "elsewhere")) == []
