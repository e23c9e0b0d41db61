"""A published model works without this project: in an environment of its own requirements, with pickle forbidden."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sevenfold import operations
from sevenfold.registry import promotion, versions
from tests import test_registry, tiny

pytestmark = pytest.mark.slow

MODELS = {"table-anomaly": ("table", "anomaly"), "images-denoising": ("images", "denoising")}
OPERATIONS = {"table-anomaly": ("score", "encode"), "images-denoising": ("denoise", "encode")}

CONSUMER = """
import importlib.metadata, importlib.util, json, sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

folder, name, *ops = sys.argv[1:]
folder = Path(folder)
found = {"spec": importlib.util.find_spec("sevenfold") is not None}
found["installed"] = sorted(d.metadata["Name"].lower() for d in importlib.metadata.distributions())

unpickled = []
sys.addaudithook(lambda event, about: unpickled.append(str(about)) if event == "pickle.find_class" else None)
model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
table = folder / f"{name}.parquet"
rows = pd.read_parquet(table) if table.is_file() else np.load(folder / f"{name}.npy", allow_pickle=False)
for op in ops:
    made = model.predict(rows, params={"op": op})
    if isinstance(made, pd.DataFrame):
        made.to_parquet(folder / f"{name}-{op}-made.parquet")
    else:
        np.save(folder / f"{name}-{op}-made.npy", made, allow_pickle=False)
found["unpickled"] = unpickled

import sevenfold, torch
found |= {"sevenfold": sevenfold.__file__, "torch": torch.__version__, "prefix": sys.prefix}
print(json.dumps(found))
"""


def run(command, cwd, environment, seconds):
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder that has nothing of this project."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def champions(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root)
        with tiny.workspace(root) as place:
            found = {}
            for name, what in MODELS.items():
                version = test_registry.publish(place, tiny.saved(root / name, *what), name=name)
                found[name] = promotion.promote(place, version, reasons=["the first"])
            yield place, found


def published(place, version):
    return versions.bundle_folder(place, version).parents[1]


@pytest.fixture(scope="module")
def python(champions, elsewhere):
    """The interpreter of an environment that has what the models' requirements say, from pip's own index."""
    place, found = champions
    lists = [published(place, version) / "requirements.txt" for version in found.values()]
    environment = elsewhere / "environment"
    run([sys.executable, "-m", "venv", environment], elsewhere, clean(), 120)
    made = environment / "bin" / "python"
    asked = [argument for file in lists for argument in ("-r", file)]
    run([made, "-m", "pip", "install", "--quiet", "--no-input", *asked], elsewhere, clean(), 600)
    return made


def clean():
    """The variables of this process, without what would lead another one to this project."""
    names = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "SEVENFOLD_WORKSPACE", "MLFLOW_TRACKING_URI"}
    return {n: v for n, v in os.environ.items() if n not in names}


@pytest.mark.parametrize("name", MODELS)
def test_a_champion_gives_in_a_bare_environment_what_jobs_give_here(champions, python, elsewhere, name):
    place, found = champions
    version, ops = found[name], OPERATIONS[name]
    bundle = tiny.bundle(*MODELS[name])
    rows = tiny.table(40, seed=5) if rows_are_tables(name) else tiny.images(20, seed=5)
    if rows.images is None:
        rows.frame.to_parquet(elsewhere / f"{name}.parquet")
    else:
        np.save(elsewhere / f"{name}.npy", rows.images, allow_pickle=False)

    settings = {"MLFLOW_TRACKING_URI": place.tracking_uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = run([python, "-c", CONSUMER, elsewhere, name, *ops], elsewhere, clean() | settings, 240)
    said = json.loads(done.stdout.splitlines()[-1])

    assert not said["spec"]
    assert "sevenfold" not in said["installed"]
    assert Path(said["sevenfold"]) == published(place, version) / "code" / "sevenfold" / "__init__.py"
    assert Path(said["prefix"]) == python.parents[1]
    required = dict(line.split("==") for line in (published(place, version) / "requirements.txt").read_text().split())
    assert said["torch"].split("+")[0] == required["torch"]
    assert said["unpickled"] == []
    assert "mismatch" not in done.stderr  # MLflow's word where the environment is none that the model asks for

    for op in ops:
        wanted = operations.get(op, bundle)(operations.accepting(bundle), rows)
        if wanted.images is None:
            made = pd.read_parquet(elsewhere / f"{name}-{op}-made.parquet")
            pd.testing.assert_frame_equal(made, wanted.frame, rtol=1e-4, atol=1e-5)
        else:
            made = np.load(elsewhere / f"{name}-{op}-made.npy", allow_pickle=False)
            assert (made.dtype, made.shape) == (wanted.images.dtype, wanted.images.shape)
            assert np.abs(made.astype(float) - wanted.images).max() <= 1  # of 255: how one machine rounds, and another


def rows_are_tables(name):
    return MODELS[name][0] == "table"
