"""The registry keeps every bundle once, serves what jobs compute, and its champion always loads."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sevenfold import bundles, formats, operations
from sevenfold.bundles import BundleError
from sevenfold.registry import promotion, tracking, versions
from sevenfold.workspace import Workspace
from tests import tiny

CURVES = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [0.9, 0.5, 0.4], "validation_loss": [1.0, 0.6, 0.7]})


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with tiny.workspace(tmp_path) as place:
        yield place


@pytest.fixture
def contest(place):
    """Two versions of "table-anomaly" that differ in their seed; none is champion."""
    return [publish(place, tiny.saved(place.root / f"bundle-{s}", "table", "anomaly", s)) for s in (0, 1)]


def publish(place, folder, name="table-anomaly", **more):
    arguments = {"params": {}, "metrics": {}, "curves": CURVES, "artifacts": [], "tags": {}, "description": ""}
    return versions.publish(place, name, folder, **arguments | more)[0]


def client(place):
    import mlflow

    return mlflow.MlflowClient(place.tracking_uri, place.tracking_uri)


def test_several_processes_on_a_fresh_database_leave_it_sound_and_publish_one_version(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Workspace(tmp_path)
    place.initialise()
    folder = tiny.saved(tmp_path / "bundle", "table", "anomaly")
    code = f"""
from pathlib import Path
from sevenfold.registry import tracking
from sevenfold.workspace import Workspace
from tests import test_registry
place = Workspace(Path({str(tmp_path)!r}))
with place.settled():
    tracking.initialise(place)
    print(test_registry.publish(place, Path({str(folder)!r})).label)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    root = Path(__file__).parents[1]
    started = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    done = [(*process.communicate(timeout=300), process.returncode) for process in started]
    assert [(out, code) for out, _, code in done] == [("table-anomaly/1\n", 0)] * 4, done
    database = place.private / "mlflow" / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert len(connection.execute("SELECT version_num FROM alembic_version").fetchall()) == 1
    assert database.stat().st_mode & 0o077 == 0
    with place.settled():
        assert [v.digest for v in versions.every(place)] == [bundles.digest(folder)]


def test_a_database_that_cannot_be_set_up_is_named_with_a_remedy_and_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Workspace(tmp_path)
    place.initialise()
    database = place.private / "mlflow" / "mlflow.db"
    database.write_bytes(b"no database" * 1000)
    with pytest.raises(RuntimeError, match=r"cannot set up .*mlflow.db: .*not a database.*; .*doctor.*; restore it"):
        tracking.initialise(place)
    assert database.read_bytes() == b"no database" * 1000
    assert [p.name for p in database.parent.iterdir() if p.is_file()] == ["mlflow.db"]


def test_a_server_looks_after_its_own_database(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tracking.initialise(Workspace(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_version_tells_its_whole_history(place):
    folder = tiny.saved(place.root / "bundle", "table", "anomaly")
    report = place.root / "report.html"
    report.write_text("<p>numbers</p>")
    version = publish(
        place,
        folder,
        params={"candidate": {"options": {"code": 2, "hidden": [8]}}, "seed": 0},
        metrics={"test.average_precision": 0.75},
        artifacts=[report],
        tags={"dataset": "table", "beats_rivals": True},
        description="**table-anomaly**: good.",
    )
    mlflow = client(place)
    run = mlflow.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "table-deep"
    assert run.data.params == {"candidate.options.code": "2", "candidate.options.hidden": "[8]", "seed": "0"}
    assert run.data.metrics["test.average_precision"] == 0.75
    for curve in ("train_loss", "validation_loss"):
        history = mlflow.get_metric_history(version.run_id, curve)
        assert [(m.step, m.value) for m in history] == list(zip(CURVES["epoch"], CURVES[curve], strict=True))
    assert [a.path for a in mlflow.list_artifacts(version.run_id)] == ["report.html"]
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("table", "d" * 32)
    assert "data/raw/table.parquet" in used.dataset.source
    for tags in (run.data.tags, version.tags):
        assert (tags["digest"], tags["dataset"], tags["beats_rivals"]) == (bundles.digest(folder), "table", "True")
    assert mlflow.get_experiment(run.info.experiment_id).name == version.name == "table-anomaly"
    assert "**table-anomaly**: good." in (run.data.tags["mlflow.note.content"],)


def test_curves_longer_than_one_request_are_kept_whole(place):
    long = pd.DataFrame({"epoch": np.arange(1, 1202), "validation_loss": np.linspace(1, 0.1, 1201)})
    version = publish(place, tiny.saved(place.root / "bundle", "table", "anomaly"), curves=long)
    history = client(place).get_metric_history(version.run_id, "validation_loss")
    assert [m.value for m in history] == list(long["validation_loss"])


def test_the_same_digest_is_published_once_and_another_is_a_version_of_its_own(place, contest):
    first, second = contest
    assert (first.number, second.number) == (1, 2)
    assert first.digest != second.digest
    again, new = versions.publish(
        place,
        first.name,
        tiny.saved(place.root / "copy", "table", "anomaly", 0),
        params={},
        metrics={},
        curves=CURVES,
        artifacts=[],
        tags={},
        description="",
    )
    assert (again.label, new) == (first.label, False)
    assert [v.number for v in versions.every(place, first.name)] == [1, 2]
    # The name is part of the key: one bundle may stand in two contests.
    assert publish(place, place.root / "copy", name="other").label == "other/1"
    assert [v.label for v in versions.every(place)] == ["other/1", "table-anomaly/1", "table-anomaly/2"]


def test_a_version_whose_files_are_lost_can_be_published_again(place, contest):
    damage(place, contest[0])
    assert publish(place, place.root / "bundle-0").number == 3


def test_a_damaged_bundle_is_not_published(place):
    folder = tiny.saved(place.root / "bundle", "table", "anomaly")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        publish(place, folder)
    assert versions.every(place) == []
    assert client(place).search_experiments(filter_string="name = 'table-anomaly'") == []


def artifacts(place, version):
    folder = versions.bundle_folder(place, version)
    return folder.parents[1]


def damage(place, version):
    (versions.bundle_folder(place, version) / "model.safetensors").write_bytes(b"\0" * 16)


def test_no_file_of_a_published_model_can_execute_on_loading_but_its_own_code(place, contest):
    # Python leaves caches beside code that it has loaded; they are none of what was published.
    every = [p for p in artifacts(place, contest[0]).rglob("*") if p.is_file()]
    found = [p for p in every if "__pycache__" not in p.parts]
    assert {p.suffix for p in found} <= {".py", ".json", ".yaml", ".txt", ".safetensors", ".typed", ""}
    assert {p.name for p in found if not p.suffix} <= {"MLmodel", "registered_model_meta"}
    assert not [p for p in found if p.read_bytes()[:1] == b"\x80"]  # how a pickle begins
    model = (artifacts(place, contest[0]) / "MLmodel").read_text()
    assert "loader_module: mlflow.pyfunc.loaders.code_model" in model
    assert "python_model" not in model


def test_requirements_are_the_releases_that_are_installed(place, contest):
    lines = (artifacts(place, contest[0]) / "requirements.txt").read_text().splitlines()
    required = dict(line.split("==") for line in lines)
    assert {"numpy", "pandas", "safetensors", "torch"} <= required.keys()
    # A local part such as the one of 1.0+cpu is in no index.
    assert required == {name: metadata.version(name).split("+")[0] for name in required}


@pytest.fixture
def load(place):
    import mlflow

    return lambda version: mlflow.pyfunc.load_model(f"models:/{version.name}/{version.number}")


def test_a_served_table_model_gives_what_jobs_give(place, load):
    bundle = tiny.bundle("table", "anomaly")
    served = load(publish(place, tiny.saved(place.root / "bundle", "table", "anomaly")))
    rows = tiny.table(30, seed=5)
    assert rows.frame["income"].isna().any()
    expected = {name: operations.get(name, bundle)(bundle, rows) for name in ("encode", "score")}
    pd.testing.assert_frame_equal(served.predict(rows.frame), expected["score"].frame)
    for name, made in expected.items():
        pd.testing.assert_frame_equal(served.predict(rows.frame, params={"op": name}), made.frame)
    # A slice keeps its own order, whatever its index says.
    some = served.predict(rows.frame.iloc[[20, 3]])
    # Two rows are summed up in another order than thirty: single precision, near 0.
    wanted = expected["score"].frame["score"].iloc[[20, 3]].tolist()
    assert some["score"].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("vip", [[True, False], ["True", "False"]])
def test_a_served_model_takes_categories_as_jobs_take_them(place, load, vip):
    rows = tiny.table(2).frame.assign(vip=vip)
    bundle = tiny.bundle("table", "anomaly")
    served = load(publish(place, tiny.saved(place.root / "bundle", "table", "anomaly")))
    pd.testing.assert_frame_equal(served.predict(rows), operations.score(bundle, formats.Rows(rows)).frame)


def test_a_served_image_model_gives_what_jobs_give(place, load):
    bundle = tiny.bundle("images", "reduction")
    served = load(publish(place, tiny.saved(place.root / "bundle", "images", "reduction"), name="images-reduction"))
    rows = tiny.images(20, seed=5)
    pd.testing.assert_frame_equal(served.predict(rows.images), operations.encode(bundle, rows).frame)


def test_a_served_model_says_what_it_takes(place, load):
    served = load(publish(place, tiny.saved(place.root / "bundle", "table", "anomaly")))
    columns = {c["name"]: (c["type"], c["required"]) for c in served.metadata.signature.inputs.to_dict()}
    assert columns == {
        "city": ("any", True),
        "age": ("long", True),
        "income": ("double", False),
        "vip": ("any", True),
    }
    (parameter,) = served.metadata.signature.params.to_dict()
    assert (parameter["name"], parameter["default"]) == ("op", "score")
    assert served.input_example is not None
    assert len(served.predict(served.input_example)) == 2
    with pytest.raises(Exception, match="no operation 'sing'"):
        served.predict(tiny.table(3).frame, params={"op": "sing"})


@pytest.mark.parametrize("kind", ["table", "images"])
def test_a_served_model_refuses_the_operation_of_another_application(place, load, kind):
    served = load(publish(place, tiny.saved(place.root / "bundle", kind, "reduction"), name=kind))
    rows = tiny.table(3).frame if kind == "table" else tiny.images(3).images
    with pytest.raises(Exception, match="this model is for reduction, which runs as `encode`; expected one that runs"):
        served.predict(rows, params={"op": "score"})


def test_a_model_is_named_by_champion_alias_version_or_folder(place, contest, monkeypatch):
    first, second = contest
    promotion.promote(place, first, reasons=["first"])
    promotion.challenge(place, second)
    for model, version in {
        "table-anomaly": first,
        "table-anomaly@champion": first,
        "table-anomaly@challenger": second,
        "table-anomaly/2": second,
    }.items():
        found = versions.resolve(place, model)
        assert (found.label, found.digest) == (version.label, version.digest)
        assert bundles.digest(found.folder) == version.digest
    folder = place.root / "bundle-1"
    assert versions.resolve(place, str(folder)) == versions.Resolved(folder, str(folder), second.digest)
    # A folder that shares a model's name, such as a job's output, is not meant.
    (place.root / "table-anomaly").mkdir()
    assert versions.resolve(place, "table-anomaly").label == first.label


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("table-anomaly", r"has no champion yet: .*table-anomaly/1, table-anomaly/2 \(challenger\).*`sevenfold run`"),
        ("table-anomaly@champion", "has no champion yet"),
        ("table-anomaly@best", r"no version with the alias 'best'; there are: .*/2 \(challenger\)"),
        ("table-anomaly/7", r"has no version 7; there are: table-anomaly/1, table-anomaly/2 \(challenger\)"),
        ("table-anomly", r"no model 'table-anomly', did you mean 'table-anomaly'\?.*registered are: table-anomaly;"),
        ("it's", r"no model \"it's\""),
        ("table-anomaly/latest", "no bundle's folder and no model's name; expected NAME, NAME@ALIAS, NAME/VERSION"),
        ("table-anomaly@", "no bundle's folder and no model's name"),
        ("table-anomaly@challenger/1", "no bundle's folder and no model's name"),
        ("results/none/", "no bundle's folder and no model's name"),
        ("", "no bundle's folder and no model's name"),
    ],
)
def test_a_model_that_does_not_exist_is_an_error_that_says_what_there_is(place, contest, model, message):
    promotion.challenge(place, contest[1])
    with pytest.raises(LookupError, match=message):
        versions.resolve(place, model)


def test_in_an_empty_registry_there_is_no_model(place):
    assert versions.every(place) == []
    assert versions.every(place, "table-anomaly") == []
    assert versions.champion(place, "table-anomaly") is None
    with pytest.raises(LookupError, match="registered are: none; `sevenfold run` makes them"):
        versions.resolve(place, "table-anomaly")


def test_all_models_are_listed_however_many_there_are(place):
    mlflow = client(place)
    for number in range(103):  # MLflow gives them in pages of 100
        mlflow.create_registered_model(f"m{number:03}")
        if number >= 100:
            mlflow.create_model_version(f"m{number:03}", "s3://bucket/model", tags={"digest": str(number)})
    assert [v.digest for v in versions.every(place)] == ["100", "101", "102"]


def test_annotations_are_kept_with_the_version(place, contest):
    versions.annotate(place, contest[0], {"decision": "none", "rival": "pca"})
    versions.annotate(place, contest[0], {"decision": "champion"})
    tags = versions.every(place, "table-anomaly")[0].tags
    assert (tags["decision"], tags["rival"]) == ("champion", "pca")
    assert json.loads(json.dumps(dict(tags)))["digest"] == contest[0].digest
