"""Run a larger study than `make run` has time for: the settings of params/NAME.yaml over data that you have.

    python benchmarks/study.py fashion-mnist /path/to/the/four/IDX/files
    python benchmarks/study.py photographs /path/to/photographs --only photographs-residual

The study gets a workspace of its own, a clone of this repository with these settings as its params.yaml, by default
.sevenfold/studies/NAME; there everything is as usual: `dvc repro`, `sevenfold run`, the pages. A second call goes on
where the first one ended. With --only, just these candidates are trained and judged.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.io
import skimage.util

from sevenfold import enrolment, files, formats, params
from sevenfold.workspace import Workspace

ROOT = Path(__file__).parents[1]

PATCH = 48
"""Pixels of an edge of a patch of a photograph."""


def fashion_mnist(folder: Path) -> formats.Rows:
    """Read the four files of Fashion-MNIST (Xiao et al., 2017), which say what is for training and what is for testing."""
    images, sides = [], []
    for stem, part in (("train", "train"), ("t10k", "test")):
        rows = formats.read(folder / f"{stem}-images-idx3-ubyte.gz", labels=folder / f"{stem}-labels-idx1-ubyte.gz")
        assert rows.images is not None
        images.append(rows.images)
        sides.append(rows.frame[["label"]].assign(part=part))
    return formats.Rows(pd.concat(sides, ignore_index=True), np.concatenate(images))


def photographs(folder: Path) -> formats.Rows:
    """Cut the grey photographs of a folder into patches, side by side."""
    patches, names = [], []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")):
        image = skimage.util.img_as_ubyte(skimage.io.imread(path, as_gray=True))
        for top in range(0, image.shape[0] - PATCH + 1, PATCH):
            for left in range(0, image.shape[1] - PATCH + 1, PATCH):
                patches.append(image[top : top + PATCH, left : left + PATCH])
                names.append(path.relative_to(folder).as_posix())
    if not patches:
        raise FileNotFoundError(
            f"{folder} holds no PNG or JPEG of {PATCH} x {PATCH} pixels or more; name another folder"
        )
    return formats.Rows(pd.DataFrame({"photograph": names}), np.stack(patches))


READERS: dict[str, Callable[[Path], formats.Rows]] = {"fashion-mnist": fashion_mnist, "photographs": photographs}


def make(place: Workspace, name: str, folder: Path) -> None:
    """Clone the repository, and put settings, data and drafted suites into the clone."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(place.root)], check=True)
    shutil.copyfile(ROOT / "params" / f"{name}.yaml", place.params)
    for leftover in (place.root / "dvc.lock", place.metrics):
        leftover.unlink(missing_ok=True)
    rows = READERS[name](folder)
    settings = params.load(place.params)
    for dataset, entry in settings.datasets.items():
        raw = place.root / entry.path
        if not raw.exists():
            formats.write_rows(raw, rows)
        roles = {"label": entry.label, "id": entry.id, "group": entry.group, "part": entry.part}
        suite = enrolment.draft_suite(dataset, rows, roles | {"duplicates": entry.duplicates}, entry.split.model_dump())
        files.write_json(place.suite(dataset), suite)


def run(place: Workspace, only: Sequence[str]) -> int:
    """Bring the study up to date; return what the command returned."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = os.pathsep.join([str(place.root / "src"), str(place.root)])
    stages = [f"evaluate@{candidate}" for candidate in only]
    command = ["dvc", "repro", *stages] if stages else ["sevenfold", "run"]
    environment = os.environ | {"PATH": path, "PYTHONPATH": code, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=place.root, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(READERS))
    parser.add_argument("folder", type=Path, help="where the data are")
    parser.add_argument("--workspace", type=Path, help="where the study is; by default .sevenfold/studies/NAME")
    parser.add_argument("--only", nargs="+", default=[], metavar="CANDIDATE", help="just these candidates")
    given = parser.parse_args()
    if not given.folder.is_dir():
        parser.error(f"{given.folder} is no folder; name the one that holds the data")
    place = Workspace((given.workspace or ROOT / ".sevenfold" / "studies" / given.name).resolve())
    if place.root.exists():
        if (ROOT / "params" / f"{given.name}.yaml").read_bytes() != place.params.read_bytes():
            print(f"{place.root} has settings of its own, which count; remove it to begin anew", file=sys.stderr)
    else:
        with files.whole(place.root) as draft:
            make(Workspace(draft), given.name, given.folder)
    return run(place, given.only)


if __name__ == "__main__":
    sys.exit(main())
