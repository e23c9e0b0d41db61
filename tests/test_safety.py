"""No code path unpickles: a pickle in the place of any file that is read is refused, and never runs."""

import io
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import samples
from sevenfold import bundles, checkpoints, files, formats, indexes, params, pictures, report, stages
from sevenfold.datasets.base import Dataset
from sevenfold.workspace import Workspace
from tests import test_election, tiny

REFUSALS = (ValueError, LookupError, OSError, RuntimeError, ArithmeticError)


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def planted(mark):
    """Return the same pickle in every dress in which a reader may take it."""
    evil = Evil(mark)
    dressed, array, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weights": evil}, dressed)
    objects = np.array([evil], dtype=object)
    np.save(array, objects, allow_pickle=True)
    np.savez(archive, x=objects, images=objects, y=objects, **{"test.error": objects, "validation.error": objects})
    return {
        "pickle": pickle.dumps(evil),
        "torch": dressed.getvalue(),
        "npy": array.getvalue(),
        "npz": archive.getvalue(),
    }


def test_the_pickles_are_live(tmp_path):
    made = planted(tmp_path / "ran")
    for read in (
        lambda: pickle.loads(made["pickle"]),
        lambda: np.load(io.BytesIO(made["npy"]), allow_pickle=True),
        lambda: np.load(io.BytesIO(made["npz"]), allow_pickle=True)["x"],
        lambda: torch.load(io.BytesIO(made["torch"]), weights_only=False),
    ):
        read()
        assert (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A workspace after its stages, with every kind of file that one of them leaves."""
    place = Workspace(tmp_path_factory.mktemp("safety"))
    (place.root / "data" / "raw").mkdir(parents=True)
    (place.root / "dvc.yaml").touch()
    formats.write(place.root / "data" / "raw" / "table.parquet", tiny.table(200).frame)
    test_election.build(place)
    stages.scorecard(place)
    report.write(place)
    return place


def readers(place):
    """Return, for each folder that stages write, what reads its files."""
    settings = params.load(place.params)

    def contest():
        return stages.contest(place, settings, "table", "reduction")

    return {
        place.prepared("table"): lambda: Dataset.load(place.prepared("table")),
        place.candidate("good"): lambda: (bundles.load_model(place.candidate("good")), report.write(place)),
        place.history("good").parent: lambda: report.write(place),
        place.evaluation("good") / "reduction" / "bundle": lambda: bundles.load(
            place.evaluation("good") / "reduction" / "bundle"
        ),
        place.evaluation("good") / "reduction" / "pictures": lambda: pictures.load(
            place.evaluation("good") / "reduction" / "pictures"
        ),
        place.evaluation("good") / "reduction": contest,
        place.rivals("table"): contest,
        place.root / "data" / "raw": lambda: stages.read_raw(place, settings, "table"),
    }


UNREAD = {"applications.json"}
"""Written for people and DVC; nothing reads it."""


def test_a_pickle_in_the_place_of_any_file_of_a_stage_is_refused_and_never_runs(built, tmp_path):
    mark = tmp_path / "ran"
    shutil.copytree(built.root, tmp_path / "place")
    place = Workspace(tmp_path / "place")
    folders = readers(place)
    seen, taken = set(), []
    for path in sorted(p for p in (place.root / "results").rglob("*") if p.is_file()) + sorted(
        p for p in (place.root / "data").rglob("*") if p.is_file()
    ):
        owner = next((f for f in [path.parent, *path.parents] if f in folders), None)
        if owner is None or path.name in UNREAD:
            continue
        kept = path.read_bytes()
        for dress, content in planted(mark).items():
            path.write_bytes(content)
            try:
                folders[owner]()
            except REFUSALS:
                pass
            else:
                taken.append((str(path.relative_to(place.root)), dress))
            assert not mark.exists(), f"{path} ran as {dress}"
        path.write_bytes(kept)
        seen.add(path.suffix)
    assert seen >= {".json", ".npy", ".npz", ".safetensors", ".parquet", ".csv"}
    # A picture's bytes go into the report as they are, and the browser says what they are not.
    assert [(path, dress) for path, dress in taken if not path.endswith((".png", ".svg"))] == []


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv", ".parquet", ".idx", ".pkl", ".pt"])
def test_a_pickle_as_a_jobs_input_is_refused_and_never_runs(suffix, tmp_path):
    for content in planted(tmp_path / "ran").values():
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(content)
        with pytest.raises(REFUSALS):
            formats.read(path)
        assert not (tmp_path / "ran").exists()


def test_a_pickle_as_a_checkpoint_is_none_and_never_runs(tmp_path):
    for content in planted(tmp_path / "ran").values():
        (tmp_path / "state.safetensors").write_bytes(content)
        assert checkpoints.Checkpoint(tmp_path / "state.safetensors", "identity", 1.0).load() is None
        assert not (tmp_path / "ran").exists()


def test_a_pickle_in_an_index_is_refused_by_name_and_never_runs(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    folder = tmp_path / "index"
    indexes.Index.build(vectors, np.arange(40), model="d" * 64, recall=0.9, neighbours=3).save(folder)
    for path in sorted(folder.iterdir()):
        kept = path.read_bytes()
        for content in planted(tmp_path / "ran").values():
            path.write_bytes(content)
            with pytest.raises(REFUSALS, match=path.name.replace(".", r"\.")):
                indexes.Index.load(folder, model="d" * 64)
            assert not (tmp_path / "ran").exists()
        path.write_bytes(kept)
    indexes.Index.load(folder, model="d" * 64)


@pytest.mark.parametrize("name", ["../../scores", "/etc/passwd", "link"])
def test_a_picture_out_of_its_folder_is_refused_by_name(tmp_path, name):
    (tmp_path / "link.svg").symlink_to(tmp_path / "elsewhere.svg")
    entry = {"name": name, "title": "", "description": "", "kind": "svg"}
    files.write_json(tmp_path / "pictures.json", [entry])
    with pytest.raises(ValueError, match=rf"names '{name}\.svg'; expected plain files beside it"):
        pictures.load(tmp_path)


def test_json_too_deep_or_too_large_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    path.write_text("[" * 10**6)
    with pytest.raises(ValueError, match=r"facts\.json is not valid JSON"):
        files.read_json(path)
    monkeypatch.setattr(files, "MOST_JSON", 1000)
    path.write_text(json.dumps(["x" * 2000]))
    with pytest.raises(ValueError, match=r"facts\.json has 2,004 bytes; expected JSON of at most 1,000"):
        files.read_json(path)


def test_a_sample_of_every_kind_loads_without_pickle(tmp_path):
    """What we write needs none: the readers above refuse pickles, and read what we write."""
    for name in ("table", "images"):
        samples.dataset(name).save(tmp_path / name)
        assert len(Dataset.load(tmp_path / name).train) == len(samples.dataset(name).train)


def test_each_hole_that_is_passed_over_names_a_pinned_package_and_says_why():
    root = Path(__file__).parent.parent
    pinned = {line.partition("==")[0].lower() for line in (root / "constraints.txt").read_text().splitlines()}
    holes = [line.split(None, 2) for line in (root / ".ci/known-holes").read_text().splitlines() if line[:1] != "#"]
    assert holes
    for number, package, why in holes:
        assert re.fullmatch(r"(CVE|GHSA|PYSEC)-[\w-]+", number)
        assert package in pinned, f"{package} is not installed any more; remove its line"
        assert len(why) > 40
