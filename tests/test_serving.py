"""A loaded model gives what jobs and MLflow give, and what it says it needs is all that it needs."""

import functools
import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement

import samples
import sevenfold
from sevenfold import bundles, formats, jobs, modules, serving
from sevenfold.bundles import Bundle
from sevenfold.registry import packaging, promotion, versions
from tests import tiny
from tests.test_registry import publish

CHILD = """
import importlib.abc, json, sys, warnings
from pathlib import Path

folders, forbidden = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"{name} is not among the requirements", name=name)

sys.meta_path.insert(0, Blocker())
import numpy as np
import pandas as pd
import sevenfold
for folder in folders:
    model = sevenfold.load(folder)
    place = Path(folder).parent
    images = place / "given.npy"
    rows = np.load(images) if images.exists() else pd.read_json(place / "given.json", dtype=False)
    for op in model.operations:
        assert len(model.predict(rows, op)) == len(rows), op
print("fine")
"""


@functools.cache
def closure(name):
    """Return the distributions that one brings with it, as installed."""
    found, waiting = set(), [name]
    while waiting:
        one = waiting.pop().lower().replace("_", "-")
        if one in found:
            continue
        try:
            needs = metadata.requires(one) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(one)
        asked = [Requirement(need) for need in needs]
        waiting += [r.name for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    return frozenset(found)


def lacking(requirements):
    """Return what cannot be imported where these are installed; what only MLflow itself brings is not there either."""
    installed = set().union(*(closure(r.split("==")[0]) for r in requirements if not r.startswith("mlflow==")))
    names = metadata.packages_distributions().items()
    return {n for n, owners in names if not {o.lower().replace("_", "-") for o in owners} & (installed | {"sevenfold"})}


def saved(folder, bundle):
    bundles.save(folder / "bundle", bundle)
    rows = packaging.example(bundle)
    if isinstance(rows, pd.DataFrame):
        rows.to_json(folder / "given.json")
    else:
        np.save(folder / "given.npy", rows)
    return str(folder / "bundle")


def every_kind():
    """Every application with a trained model, and every variant with weights as they were at its start."""
    origin = {"dataset": "d", "candidate": "c", "data_path": "p", "data_digest": "d" * 64, "seed": 0}
    for name in modules.names("applications"):
        kind = next(k for k in ("table", "images", "gaps") if samples.unsuited(name, k) is None)
        wanted = samples.application(name)
        spec, model = samples.spec("pca", kind), samples.trained("pca", kind, wanted.learns_from)
        calibrated = samples.judged(name, kind)[0]
        yield name, Bundle(spec, model, samples.dataset(kind).schema, name, calibrated, origin)
    for variant in modules.names("models"):
        kind = next(k for k in ("table", "images") if not samples.refusal(variant, samples.dataset(k).schema.shape))
        spec = samples.spec(variant, kind)
        reduction = samples.application("reduction")
        yield variant, Bundle(spec, spec.build(), samples.dataset(kind).schema, "reduction", reduction, origin)


@pytest.mark.slow  # a process that imports everything anew
def test_the_requirements_are_all_that_any_application_or_variant_imports(tmp_path):
    groups = {}
    for _, bundle in every_kind():
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        groups.setdefault(tuple(packaging.requirements(bundle)), []).append(saved(folder, bundle))
    assert any("constriction" in " ".join(g) for g in groups)
    assert any("constriction" not in " ".join(g) for g in groups)
    for requirements, folders in groups.items():
        names = json.dumps(sorted(lacking(requirements)))
        command = [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps(folders), names]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        assert done.stdout == "fine\n", (requirements, done.stderr[-2000:])


@pytest.mark.slow  # a process that imports everything anew
def test_the_blocker_would_see_a_requirement_that_is_missing(tmp_path):
    bundle = next(bundle for name, bundle in every_kind() if name == "compression")
    names = json.dumps(sorted(lacking(r for r in packaging.requirements(bundle) if "constriction" not in r)))
    command = [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps([saved(tmp_path, bundle)]), names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert "constriction is not among the requirements" in done.stderr


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with tiny.workspace(tmp_path) as place:
        (tmp_path / "params.yaml").touch()
        (tmp_path / "dvc.yaml").touch()
        yield place


@pytest.mark.parametrize("form", ["{name}", "{name}@champion", "{name}/1", "{folder}"])
def test_every_way_to_name_a_model_loads_it(place, form):
    folder = tiny.saved(place.root / "bundle", "table", "anomaly")
    version = publish(place, folder)
    promotion.promote(place, version, reasons=["best"])
    model = sevenfold.load(form.format(name=version.name, folder=folder))
    assert model.digest == bundles.digest(folder) == version.digest
    assert model.label == (str(folder) if "folder" in form else "table-anomaly/1")
    assert model.operations == ("score", "encode")


@pytest.mark.parametrize(
    ("kind", "name", "op"),
    [("table", "anomaly", "score"), ("table", "imputation", "impute"), ("images", "denoising", "denoise")],
)
def test_a_loaded_model_gives_what_mlflow_and_jobs_give(place, kind, name, op):
    import mlflow

    version = publish(place, tiny.saved(place.root / "bundle", kind, name), f"{kind}-{name}")
    model = sevenfold.load(version.label)
    served = mlflow.pyfunc.load_model(f"models:/{version.label}")
    rows = tiny.table() if kind == "table" else tiny.images()
    given = rows.frame if rows.images is None else rows.images
    source = place.root / f"rows.{'parquet' if kind == 'table' else 'npz'}"
    formats.write_rows(source, rows)
    for asked in (op, "encode"):
        ours, theirs = model.predict(given, asked), served.predict(given, params={"op": asked})
        destination = place.root / f"{asked}.{'npz' if isinstance(ours, np.ndarray) else 'parquet'}"
        jobs.run(place, operation=asked, model=version.label, source=source, destination=destination)
        written = formats.read(destination)
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(ours, written.images)
        else:
            pd.testing.assert_frame_equal(ours, theirs)
            pd.testing.assert_frame_equal(ours, written.frame[list(ours.columns)], check_dtype=False)
    default = model.predict(given)
    own = model.predict(given, op)
    assert np.array_equal(default, own) if isinstance(own, np.ndarray) else default.equals(own)


def test_the_signature_says_what_comes_out(place):
    for kind, name in (("table", "anomaly"), ("images", "denoising")):
        bundle = tiny.bundle(kind, name)
        outputs = packaging.signature(bundle).outputs
        made = serving.predict(bundle, packaging.example(bundle))
        if isinstance(made, np.ndarray):
            (tensor,) = outputs.inputs
            assert (tensor.type, tensor.shape) == (made.dtype, (-1, *made.shape[1:]))
        else:
            assert outputs.input_names() == list(made.columns)


def test_a_changed_folder_and_a_foreign_operation_are_refused(tmp_path):
    folder = tiny.saved(tmp_path / "bundle", "table", "anomaly")
    with pytest.raises(ValueError, match="runs as `score`; expected one that runs as `denoise`"):
        sevenfold.load(str(folder)).predict(tiny.table().frame, "denoise")
    (folder / "application.safetensors").write_bytes(b"x")
    with pytest.raises(bundles.BundleError, match=r"application\.safetensors is truncated or damaged"):
        sevenfold.load(str(folder))


def test_the_package_by_itself_imports_nothing():
    code = "import sys, sevenfold; print(sorted({'torch', 'mlflow', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_name_without_a_version_says_what_there_is(place):
    publish(place, tiny.saved(place.root / "bundle", "table", "anomaly"))
    with pytest.raises(LookupError, match="table-anomaly has no champion yet"):
        sevenfold.load("table-anomaly")
    assert versions.every(place)
