"""The contract of every built-in data set: the same rows each time, no network, splits that share nothing, the way back."""

import dataclasses
import importlib.metadata
import inspect
import re
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sevenfold import files, formats, modules, params, preparation, validation
from sevenfold.datasets import base, photos

ROOT = Path(__file__).parents[1]
NAMES = modules.names("datasets")
SETTINGS = params.load(ROOT / "params.yaml")


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def rows(name):
    return modules.load("datasets", name).fetch(**SETTINGS.fetch[name].options)


def prepare(name, rows, **changes):
    entry = SETTINGS.datasets[name]
    given = {
        "label": entry.label,
        "normal": entry.normal,
        "identifier": entry.id,
        "group": entry.group,
        "drop": entry.drop,
        "categorical": entry.categorical,
        "value_range": entry.range,
        "duplicates": entry.duplicates,
        **entry.split.model_dump(),
    }
    return preparation.prepare(name, rows, **given | changes)


@pytest.fixture(scope="module")
def dataset(name, rows):
    return prepare(name, rows)


def splits(dataset):
    return {part: getattr(dataset, part) for part in base.SPLITS}


def equal(one, other):
    pd.testing.assert_frame_equal(one.frame, other.frame)
    assert (one.images is None) == (other.images is None)
    if one.images is not None:
        assert one.images.dtype == other.images.dtype
        np.testing.assert_array_equal(one.images, other.images)


def test_there_are_built_in_sets_of_both_kinds():
    kinds = {modules.load("datasets", n).fetch(**SETTINGS.fetch[n].options).images is None for n in NAMES}
    assert kinds == {True, False}
    assert sorted(SETTINGS.fetch) == NAMES


def test_fetching_gives_the_same_rows_each_time_and_needs_no_network(name, rows, monkeypatch):
    def refuse(*_):
        raise AssertionError("a built-in data set went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    equal(modules.load("datasets", name).fetch(**SETTINGS.fetch[name].options), rows)


def test_an_unknown_option_is_named(name):
    fetch = modules.load("datasets", name).fetch
    assert modules.option_problems(fetch, SETTINGS.fetch[name].options, of=name) == []
    assert any("'colour'" in p for p in modules.option_problems(fetch, {"colour": 1}, of=name))


def test_splits_share_no_row_and_together_are_all_rows(rows, dataset):
    ids = np.concatenate([s.ids for s in splits(dataset).values()])
    assert len(np.unique(ids)) == len(ids) == len(rows)
    values = [{row.tobytes() for row in s.x} for s in splits(dataset).values()]
    assert not values[0] & values[1]
    assert not values[0] & values[2]
    assert not values[1] & values[2]


def test_splits_have_the_shares_that_params_ask_for(name, rows, dataset):
    entry = SETTINGS.datasets[name]
    if entry.group:  # groups are of different sizes
        return
    for part, share in (("validation", entry.split.validation), ("test", entry.split.test)):
        assert len(splits(dataset)[part]) == pytest.approx(share * len(rows), abs=1.5)


def test_another_seed_gives_other_splits_and_the_same_seed_the_same(name, rows, dataset):
    again = prepare(name, rows)
    other = prepare(name, rows, seed=SETTINGS.datasets[name].split.seed + 1)
    for part in base.SPLITS:
        np.testing.assert_array_equal(splits(again)[part].ids, splits(dataset)[part].ids)
        assert set(splits(other)[part].ids) != set(splits(dataset)[part].ids)


def test_labels_are_those_of_the_rows(name, rows, dataset):
    entry = SETTINGS.datasets[name]
    for split in splits(dataset).values():
        if entry.label is None:
            assert split.y is None
            continue
        np.testing.assert_array_equal(split.y, rows.frame[entry.label].astype(str).to_numpy()[split.ids])
        if entry.normal is not None:
            np.testing.assert_array_equal(split.normal, np.isin(split.y, entry.normal))


def test_samples_are_finite_float32_of_the_schemas_shape(dataset):
    for split in splits(dataset).values():
        assert split.x.dtype == np.float32
        assert split.x.shape == (len(split), *dataset.schema.shape)
        assert np.isfinite(split.x).all()
    assert len(dataset.schema.feature_of) == np.prod(dataset.schema.shape)
    assert dataset.schema.feature_of.max() == len(dataset.schema.features) - 1


def test_the_schema_takes_samples_back_to_raw_units(rows, dataset):
    for split in splits(dataset).values():
        back, raw = dataset.schema.inverse(split.x, split.observed), rows.take(split.ids)
        if raw.images is not None:
            assert back.images.dtype == raw.images.dtype
            np.testing.assert_array_equal(back.images, raw.images)
        else:
            wanted = raw.frame[list(dataset.schema.features)]
            pd.testing.assert_frame_equal(back.frame, wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().max())


def test_the_schema_is_learned_from_the_training_rows_only(name, rows, dataset):
    held_out = np.concatenate([dataset.validation.ids, dataset.test.ids])
    if rows.images is not None:
        changed = rows.images.copy()
        changed[held_out] = changed[held_out][:, ::-1]
        after = prepare(name, formats.Rows(rows.frame, changed))
    else:
        frame = rows.frame.copy()
        frame.loc[held_out, list(dataset.schema.features)] *= 3
        after = prepare(name, formats.Rows(frame))
    assert after.schema == dataset.schema
    np.testing.assert_array_equal(after.train.x, dataset.train.x)
    assert not np.array_equal(after.test.x, dataset.test.x)


def test_a_saved_set_comes_back_whole_and_mapped_and_saving_it_again_gives_the_same_bytes(dataset, tmp_path):
    dataset.save(tmp_path / "a" / dataset.name)
    loaded = base.Dataset.load(tmp_path / "a" / dataset.name)
    assert (loaded.name, loaded.schema, loaded.notes) == (dataset.name, dataset.schema, dataset.notes)
    for part, split in splits(loaded).items():
        assert isinstance(split.x, np.memmap)
        for field in dataclasses.fields(split):
            np.testing.assert_array_equal(getattr(split, field.name), getattr(getattr(dataset, part), field.name))
    loaded.save(tmp_path / "b" / dataset.name)
    assert files.digest(tmp_path / "a") == files.digest(tmp_path / "b")


def test_the_suite_in_git_passes(name, rows):
    from sevenfold import stages

    suite = validation.read_suite(ROOT / "data" / "expectations" / f"{name}.json")
    verdict = validation.check(stages.to_validate(rows), suite, dataset=name)
    assert verdict.failures() == ()


# What only the photographs promise.


def test_every_photograph_lies_in_scikit_images_wheel_and_is_cc0_or_public_domain():
    import skimage.data

    shipped = {f.name for f in importlib.metadata.files("scikit-image") if f.parent.as_posix() == "skimage/data"}
    assert len(photos.PHOTOGRAPHS) >= 10
    for photograph in photos.PHOTOGRAPHS:
        function = getattr(skimage.data, photograph)
        (file,) = re.findall(r"""["']data/(.+?)["']""", inspect.getsource(function))
        assert file in shipped, photograph
        assert re.search(r"CC0|public\s+domain", function.__doc__), photograph


def test_no_photograph_is_in_two_splits():
    rows = photos.fetch(**SETTINGS.fetch["photos"].options)
    names = [set(rows.frame["photograph"].to_numpy()[s.ids]) for s in splits(prepare("photos", rows)).values()]
    assert sum(map(len, names)) == len(set.union(*names)) == len(photos.PHOTOGRAPHS)
    assert all(names)


def test_patches_are_cut_from_their_photograph_without_overlap():
    import skimage.data

    size = 50
    rows = photos.fetch(size=size, patches=10**6, seed=0)
    camera = skimage.data.camera()
    cut = [camera[r : r + size, c : c + size] for r in range(0, 512 - size, size) for c in range(0, 512 - size, size)]
    found = rows.images[(rows.frame["photograph"] == "camera").to_numpy()]
    assert {p.tobytes() for p in found} == {p.tobytes() for p in cut if p.std() > 2}


def test_patches_that_no_photograph_can_give_are_refused():
    import skimage.data

    with pytest.raises(
        ValueError, match="got size 301 and patches 5; expected a size from 2 to 300, the shortest edge"
    ):
        photos.fetch(size=301, patches=5, seed=0)
    with pytest.raises(ValueError, match=r"got size 16 and patches 0; .*1 patch or more"):
        photos.fetch(size=16, patches=0, seed=0)
    edges = [min(getattr(skimage.data, n)().shape[:2]) for n in photos.PHOTOGRAPHS]
    assert min(edges) == photos.SMALLEST
