"""Each operation through the command, the flow and Python: the same output, to the byte."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sevenfold import files, formats, index_folders, jobs
from tests import tiny

ROOT = Path(__file__).parents[1]
JOBS = {
    # operation: (bundle, input, output, options of the command, the same in Python)
    "encode": ("anomaly", "rows.csv", "codes.parquet", [], {}),
    "score": ("anomaly", "rows.parquet", "scores", ["--reasons", "flagged"], {"reasons": "flagged"}),
    "impute": ("imputation", "gaps.csv", "filled.csv", ["--no-flags"], {"flags": False}),
    "denoise": ("denoising", "pictures", "clean", [], {}),
    "compress": ("compression", "pictures", "small.7f", ["--psnr", "20"], {"psnr": 20.0}),
    "decompress": ("compression", "small-python.7f", "large", [], {}),
    "index": ("search", "pictures", "found", ["--kind", "exact"], {"kind": "exact"}),
}
FLOWS = """
import json, sys
from prefect.testing.utilities import prefect_test_harness
from flows.batch import batch
from flows.indexes import change, search
with prefect_test_harness(server_startup_timeout=120):
    for call in json.loads(sys.argv[1]):
        batch(**call)
    search("found-flow", "pictures", "neighbours-flow.parquet", k=3, where=["label != column_1"])
    change("remove", "found-flow", ids=[sys.argv[2]])
    change("add", "found-flow", source="removed")
    change("compact", "found-flow")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workspace with a bundle for each application and inputs of all kinds; the current folder is in it."""
    root = tmp_path_factory.mktemp("parity")
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch, tiny.workspace(root) as place:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("SEVENFOLD_WORKSPACE", str(root))
        for name in ("params.yaml", "dvc.yaml"):
            (root / name).touch()
        for name in ("anomaly", "imputation"):
            tiny.saved(root / name, "table", name)
        for name in ("denoising", "compression", "search"):
            tiny.saved(root / name, "images", name)
        rows = tiny.table(150, seed=5).frame
        rows.to_csv(root / "rows.csv", index=False)
        rows.to_parquet(root / "rows.parquet", row_group_size=40)
        rows.assign(age=rows["age"].where(rows.index % 9 != 4)).to_csv(root / "gaps.csv", index=False)
        shown = tiny.images(60, seed=5)
        for i, (pixels, label) in enumerate(zip(shown.images, shown.frame["label"], strict=True)):
            path = root / "pictures" / label.replace(" ", "_") / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        os.chdir(root)
        yield place
        os.chdir(before)


def named(output, way):
    path = Path(output)
    return f"{path.stem}-{way}{path.suffix}"


def content(path):
    """Return what counts of an output: of an index what can be found, of anything else its bytes."""
    return index_folders.Reader(path).manifest.digest if (path / "index.json").is_file() else files.digest(path)


@pytest.mark.slow
def test_every_operation_gives_the_same_three_ways(place):
    calls = []
    for operation, (model, source, output, options, more) in JOBS.items():
        settings = jobs.Settings(options=more, partition_rows=64)
        where = Path(named(output, "python"))
        jobs.run(place, operation=operation, model=model, source=source, destination=where, settings=settings)
        command = [sys.executable, "-m", "sevenfold", operation, model, source, named(output, "command"), *options]
        done = subprocess.run(
            [*command, "--partition-rows", "64", "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        receipt = json.loads(done.stdout)
        assert (receipt["operation"], receipt["model"]) == (operation, model)
        calls.append(
            {"operation": operation, "model": model, "source": source, "destination": named(output, "flow")}
            | {"options": more, "partition_rows": 64}
        )
    first = min(Path("pictures").rglob("*.png")).relative_to("pictures").as_posix()
    (Path("removed") / first).parent.mkdir(parents=True)
    shutil.copy(Path("pictures") / first, Path("removed") / first)
    done = subprocess.run(
        [sys.executable, "-c", FLOWS, json.dumps(calls), first],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for operation, (_, _, output, _, _) in JOBS.items():
        if operation == "index":
            continue  # the flow has changed it since
        python, command, flow = (content(Path(named(output, way))) for way in ("python", "command", "flow"))
        assert python == command == flow, operation
    assert content(Path("found-python")) == content(Path("found-command"))
    assert index_folders.Reader(Path("found-flow")).manifest.count == 60
    found = formats.read(Path("neighbours-flow.parquet")).frame
    assert len(found) == 3 * 60
    assert "column_1" not in set(found["label"])
    # What went in through the codec comes out as images of the same names.
    names = sorted(p.relative_to("pictures").as_posix() for p in Path("pictures").rglob("*.png"))
    assert sorted(p.relative_to("large-flow").as_posix() for p in Path("large-flow").rglob("*.png")) == names
    with Image.open(f"large-flow/{names[0]}") as image:
        assert np.asarray(image).shape == (8, 6)
