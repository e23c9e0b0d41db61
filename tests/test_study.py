"""Larger studies: their settings are sound, and each runs in a workspace of its own as the real one does."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import skimage.io

from conftest import ROOT, make_project
from sevenfold import files, params, stages
from sevenfold.models.base import ModelSpec

sys.path.insert(0, str(ROOT / "benchmarks"))
import study

NAMES = sorted(path.stem for path in (ROOT / "params").glob("*.yaml"))
SHAPES = {"fashion-mnist": (1, 28, 28), "photographs": (1, study.PATCH, study.PATCH)}


def test_every_study_has_settings_and_a_reader():
    assert NAMES == sorted(study.READERS) == sorted(SHAPES)


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_a_study_are_sound(name):
    settings = params.load(ROOT / "params" / f"{name}.yaml")
    assert settings.candidates
    for candidate in settings.candidates:
        entry = settings.candidates[candidate]
        model = ModelSpec(entry.variant, SHAPES[name], dict(entry.options)).build()
        for application in entry.applications:
            contest = stages.application(settings, entry.dataset, application)
            data = {"images": True, "labelled": settings.datasets[entry.dataset].label is not None, "normal": False}
            assert contest.unsuited(code=model.code, **data) is None
        settings.settings(candidate)


def idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """The four files, as small as they may be."""
    folder = tmp_path_factory.mktemp("fashion")
    generator = np.random.default_rng(0)
    for stem, count in (("train", 240), ("t10k", 60)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = generator.integers(0, 60, (count, 28, 28)) + 15 * labels[:, None, None]
        idx(folder / f"{stem}-images-idx3-ubyte.gz", images.astype(np.uint8))
        idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)
    return folder


def test_the_test_images_of_fashion_mnist_stay_test_images(fashion):
    rows = study.fashion_mnist(fashion)
    assert rows.images.shape == (300, 28, 28)
    assert (rows.frame["part"] == ["train"] * 240 + ["test"] * 60).all()
    assert list(rows.frame["label"][:12]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_photographs_become_patches_that_know_where_they_are_from(tmp_path):
    camera = skimage.data.camera()
    (tmp_path / "more").mkdir()
    skimage.io.imsave(tmp_path / "one.png", camera[:100, :150], check_contrast=False)
    skimage.io.imsave(tmp_path / "more" / "other.png", np.stack([camera[:60, :60]] * 3, axis=-1), check_contrast=False)
    rows = study.photographs(tmp_path)
    assert rows.images.shape == (2 * 3 + 1, study.PATCH, study.PATCH)
    assert list(rows.frame["photograph"]) == ["more/other.png"] + ["one.png"] * 6
    assert np.array_equal(rows.images[2], camera[: study.PATCH, study.PATCH : 2 * study.PATCH])
    assert np.abs(rows.images[0].astype(int) - camera[: study.PATCH, : study.PATCH]).max() <= 1  # grey, from colours
    deep = tmp_path / "deep"
    deep.mkdir()
    skimage.io.imsave(deep / "ramp.png", np.tile(np.arange(0, 60000, 1000, dtype=np.uint16), (60, 1)))
    assert (np.diff(study.photographs(deep).images[0].astype(int), axis=1) > 0).all()  # 16 bits become 8, in order
    with pytest.raises(FileNotFoundError, match="holds no PNG or JPEG of 48 x 48 pixels or more; name another folder"):
        study.photographs(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_study_runs_in_a_workspace_of_its_own(fashion, tmp_path):
    project = make_project(tmp_path / "project")
    for old, new in (("epochs: 24", "epochs: 2"), ("[32, 64]", "[4, 8]"), ("batch_size: 256", "batch_size: 32")):
        project.edit("params/fashion-mnist.yaml", old, new)
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-aqm", "smaller")
    command = ["python", "benchmarks/study.py", "fashion-mnist", str(fashion), "--workspace", str(tmp_path / "study")]
    done = project.run(*command, "--only", "fashion-mnist-16-convolutional")
    assert "fashion-mnist-16-reduction: fashion-mnist-16-convolutional explained_variance" in done.stdout
    scores = files.read_json(
        tmp_path / "study" / "results" / "evaluations" / "fashion-mnist-16-convolutional" / "reduction" / "scores.json"
    )
    assert {"mse", "knn_accuracy"} <= set(scores["test"])
    again = project.run(*command, "--only", "fashion-mnist-16-convolutional")
    assert "Data and pipelines are up to date" in again.stdout
    assert not (project.root / "data" / "raw").exists()  # the repository itself stays as it was
