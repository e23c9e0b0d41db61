"""Bundles on disk: the same content gives the same bytes, what was changed is named, and nothing in them runs."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

import samples
from sevenfold import bundles, drift, files, modules, operations
from sevenfold.bundles import BundleError

CASES = [
    (name, kind)
    for name in modules.names("applications")
    for kind in samples.DATASETS
    if not samples.unsuited(name, kind)
]


PCA = samples.spec("pca", "table").to_json()


def bundle(name="anomaly", kind="table"):
    data = samples.dataset(kind)
    application, _ = samples.judged(name, kind)
    model = samples.trained("pca", kind, application.learns_from)
    reference = drift.Reference.learn(model, data.schema, data.train, data.validation)
    return bundles.Bundle(
        samples.spec("pca", kind), model, data.schema, name, application, {"dataset": kind, "seed": 0}, reference
    )


@pytest.fixture
def folder(tmp_path):
    bundles.save(tmp_path / "bundle", bundle())
    return tmp_path / "bundle"


def edit(folder, **changes):
    """Change entries of bundle.json and its sum, as somebody would who knows how it is made."""
    path = folder / "bundle.json"
    description = json.loads(path.read_text()) | changes
    if isinstance(description["sha256"], dict):
        description["sha256"]["bundle.json"] = bundles.digest_of(description)
    path.write_text(json.dumps(description))


def within(entry, *path, **changes):
    """Return a nested entry of a description with some values changed."""
    if not path:
        return entry | changes
    inner = entry[path[0]]
    changed = within(inner, *path[1:], **changes)
    if isinstance(entry, list):
        return [*entry[: path[0]], changed, *entry[path[0] + 1 :]]
    return entry | {path[0]: changed}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_loaded_bundle_does_to_raw_rows_what_the_saved_one_did(name, kind, tmp_path):
    saved = bundle(name, kind)
    digest = bundles.save(tmp_path / "bundle", saved)
    loaded = bundles.load(tmp_path / "bundle", expected=digest)
    assert (loaded.spec, loaded.schema, loaded.origin) == (saved.spec, saved.schema, saved.origin)
    assert (loaded.application_name, loaded.application.options) == (name, saved.application.options)
    assert loaded.application.state.keys() == saved.application.state.keys()
    test = samples.dataset(kind).test
    rows = saved.schema.inverse(test.x, test.observed)
    operation = operations.OPERATIONS[saved.application.operation]
    got, wanted = operation(loaded, rows), operation(saved, rows)
    pd.testing.assert_frame_equal(got.frame, wanted.frame, check_exact=True)
    assert (got.images is None) == (wanted.images is None)
    assert got.images is None or np.array_equal(got.images, wanted.images)


def test_equal_bundles_have_equal_digests_and_others_have_others(tmp_path):
    one = bundle()
    digest = bundles.save(tmp_path / "one", one)
    assert len(digest) == 64
    assert bundles.save(tmp_path / "two", bundle()) == digest == bundles.digest(tmp_path / "two")
    others = [
        replace(one, origin={**one.origin, "seed": 1}),
        replace(
            one, application=one.application.with_state({**one.application.state, "offset": np.ones(1, np.float32)})
        ),
        bundle("reduction"),
    ]
    found = {bundles.save(tmp_path / f"other-{i}", other) for i, other in enumerate(others)}
    assert len(found | {digest}) == 4


def test_a_bundle_saved_again_after_loading_is_the_same(folder, tmp_path):
    assert bundles.save(tmp_path / "again", bundles.load(folder)) == bundles.digest(folder)


def test_arrays_that_are_not_contiguous_keep_their_values(tmp_path):
    one = bundle()
    wide = np.arange(48, dtype=np.float32).reshape(6, 8)
    state = {**one.application.state, "reference": wide[::2, ::2], "term_center": wide.T}
    bundles.save(tmp_path / "bundle", replace(one, application=one.application.with_state(state)))
    loaded = bundles.load(tmp_path / "bundle").application.state
    assert np.array_equal(loaded["reference"], wide[::2, ::2])
    assert np.array_equal(loaded["term_center"], wide.T)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; expected a bundle's folder"):
        bundles.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", bundles.FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(
        BundleError, match=rf"{folder} is no sound bundle: {name} is missing; take it from the registry again"
    ):
        bundles.load(folder)


def test_an_added_file_is_named_and_a_planted_pickle_never_runs(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BundleError, match=r"model\.pkl does not belong there"):
        bundles.load(folder)
    (folder / "model.pkl").unlink()
    for name in bundles.FILES:
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(BundleError, match=name):
            bundles.load(folder)
        torch.save({"weights": Evil()}, folder / name)
        with pytest.raises(BundleError, match=name):
            bundles.load(folder)
        (folder / name).write_bytes(kept)
    bundles.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", bundles.TENSORS)
@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_a_truncated_file_is_named(folder, name, cut):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:cut])
    with pytest.raises(
        BundleError, match=rf"{name} is truncated or damaged: its {len(content[:cut])} bytes have another SHA-256"
    ):
        bundles.load(folder)


@pytest.mark.parametrize("name", bundles.TENSORS)
@pytest.mark.parametrize("at", [3, 60, -1])
def test_a_single_wrong_bit_is_found_even_where_the_digest_is_not_known(folder, name, at):
    content = bytearray((folder / name).read_bytes())
    content[at] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} is truncated or damaged"):
        bundles.load(folder)


def test_every_problem_is_listed_at_once(folder):
    (folder / "model.safetensors").unlink()
    (folder / "application.safetensors").write_bytes(b"")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("hello")
    message = "model.safetensors is missing.*notes does not belong there.*notes/a.txt does not.*application.safetensors is truncated"
    with pytest.raises(BundleError, match=message):
        bundles.load(folder)


@pytest.mark.parametrize("name", bundles.FILES)
def test_a_link_is_refused_even_to_the_right_content(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=rf"{name} is a link or a folder; expected a plain file"):
        bundles.load(folder)


def test_a_folder_or_a_pipe_in_place_of_a_file_is_refused(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")  # to open it would wait for ever
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").mkdir()
    with pytest.raises(
        BundleError, match=r"bundle\.json is a link or a folder.*model\.safetensors is a link or a folder"
    ):
        bundles.load(folder)


def test_a_bundle_that_is_not_the_expected_one_is_refused(folder):
    edit(folder, origin={"dataset": "other"})
    bundles.load(folder)  # sound in itself
    with pytest.raises(
        BundleError, match=r"its digest is [0-9a-f]{12}; expected 000000000000, so it was changed; take it"
    ):
        bundles.load(folder, expected="0" * 64)


@pytest.mark.parametrize("newer", [bundles.FORMAT + 1, 0, True, None, "3"])
def test_another_format_is_told_before_anything_else(folder, newer):
    edit(folder, format=newer, model={"layout": "unheard of"})
    (folder / "more.safetensors").write_bytes(b"")
    with pytest.raises(
        BundleError,
        match=rf"has bundle format {newer!r}; this version of sevenfold reads 1 to {bundles.FORMAT}; use the .* or a newer one",
    ):
        bundles.load(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"model": {"variant": "../../evil", "shape": [12], "fields": [], "options": {}}},
            r"no '\.\./\.\./evil' in models/",
        ),
        ({"application": {"name": "../evil", "options": {}}}, r"no '\.\./evil' in applications/"),
        ({"application": {"name": "base", "options": {}}}, r"no 'base' in applications/"),
        (
            {"application": {"name": "anomaly", "options": {"neighbours": 3}}},
            r"anomaly: options missing: policy, value, share, references, reasons",
        ),
        ({"application": {}}, r"bundle\.json has no entry 'name'"),
        (
            {"model": {**PCA, "options": {"code": 3}}},
            r"model\.safetensors does not hold the weights of pca",
        ),
        (
            {"model": {**PCA, "options": []}},
            r"the options of pca are \[\]; expected an object",
        ),
        (
            {
                "application": {
                    "name": "anomaly",
                    "options": {
                        "policy": "false-positive-rate",
                        "value": "0.1",
                        "share": None,
                        "neighbours": 3,
                        "references": 4096,
                        "reasons": 2,
                    },
                }
            },
            "anomaly: option 'value' is '0.1': input should be a valid number",
        ),
        (
            {"model": {"variant": "pca", "shape": [15], "fields": [{"width": 15, "gaps": False}], "options": {}}},
            "the schema has other columns than the model",
        ),
        ({"schema": {"kind": "images"}}, r"bundle\.json has no entry 'shape'"),
        ({"sha256": {}}, r"model\.safetensors is truncated or damaged"),
        ({"sha256": [1]}, r"model\.safetensors is truncated or damaged"),
    ],
)
def test_a_description_that_says_something_impossible_is_refused(folder, changes, reason):
    edit(folder, **changes)
    with pytest.raises(BundleError, match=rf"is no sound bundle: .*{reason}.*; take it from the registry again"):
        bundles.load(folder)


def test_a_schema_that_no_training_can_have_written_is_refused(folder, tmp_path):
    schema = json.loads((folder / "bundle.json").read_text())["schema"]
    for change, reason in (
        ({"columns": schema["columns"][1:]}, r"the schema makes samples of shape \(\d+,\); the model wants"),
        (within(schema, "columns", 0, scale=0.0), "has scale 0.0; expected more than 0"),
        (within(schema, "columns", 0, scale=float("nan")), "has scale nan; expected more than 0"),
    ):
        edit(folder, schema=schema | change)
        with pytest.raises(BundleError, match=rf"is no sound bundle: .*{reason}"):
            bundles.load(folder)
    bundles.save(tmp_path / "images", bundle("reduction", "images"))
    edit(
        tmp_path / "images",
        schema=json.loads((tmp_path / "images" / "bundle.json").read_text())["schema"] | {"high": -1},
    )
    with pytest.raises(BundleError, match="expected the lower end first"):
        bundles.load(tmp_path / "images")


@pytest.mark.parametrize(
    "path",
    [
        ("schema", "columns", 0, "mean"),
        ("application", "options", "neighbours"),
        ("origin", "seed"),
        ("sha256", "bundle.json"),
    ],
)
def test_a_changed_number_in_the_description_is_found_even_where_the_digest_is_not_known(folder, path):
    file = folder / "bundle.json"
    description = json.loads(file.read_text())
    *places, name = path
    place = description
    for key in places:
        place = place[key]
    place[name] = "0" * 64 if name == "bundle.json" else place[name] + 1
    file.write_text(json.dumps(description))
    with pytest.raises(BundleError, match=r"bundle\.json is damaged or was changed: what it says has another SHA-256"):
        bundles.load(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "is not valid JSON"), ("[1]", "holds list; expected an object"), ("\xff", "JSON"), ("[" * 10**5, "JSON")],
)
def test_a_description_that_is_no_json_object_is_refused(folder, text, reason):
    (folder / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=rf"bundle\.json {reason}|bundle\.json is not valid JSON"):
        bundles.load(folder)


@pytest.mark.parametrize("name", bundles.TENSORS)
@pytest.mark.parametrize("claimed", [1 << 60, 3 << 10])
def test_tensors_that_announce_nonsense_are_refused_though_their_sum_is_right(folder, name, claimed, monkeypatch):
    monkeypatch.setattr(files, "MOST_HEADER", 2 << 10)
    path = folder / name
    path.write_bytes(claimed.to_bytes(8, "little") + b"{" + b" " * (4 << 10))
    sums = json.loads((folder / "bundle.json").read_text())["sha256"]
    edit(folder, sha256={**sums, name: files.digest(path)})
    with pytest.raises(BundleError, match=rf"is no sound bundle: {name} (claims|has) a header of {claimed:,} bytes"):
        bundles.load(folder)


def test_a_description_too_large_to_be_one_is_not_parsed(folder, monkeypatch):
    monkeypatch.setattr(files, "MOST_JSON", 100)
    with pytest.raises(BundleError, match=r"bundle\.json has [0-9,]+ bytes; expected JSON of at most 100; take it"):
        bundles.load(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "more.safetensors"])
def test_a_path_out_of_the_folder_is_refused_by_name(folder, name):
    sums = json.loads((folder / "bundle.json").read_text())["sha256"]
    edit(folder, sha256={**sums, name: "0" * 64})
    with pytest.raises(
        BundleError, match=rf"bundle\.json names '{name}', which is no file of a bundle and not looked at"
    ):
        bundles.load(folder)


def test_a_failing_save_leaves_the_old_bundle_as_it_was(folder):
    before = bundles.digest(folder)
    with pytest.raises(ValueError, match="not JSON compliant"):
        bundles.save(folder, replace(bundle(), origin={"loss": float("nan")}))
    assert bundles.digest(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_saving_over_a_bundle_replaces_all_of_it(folder):
    (folder / "left over").write_text("from before")
    other = replace(bundle(), origin={"dataset": "other"})
    assert bundles.save(folder, other) == bundles.digest(folder)
    assert bundles.load(folder).origin == {"dataset": "other"}


def test_weights_are_plain_safetensors(folder):
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    model = bundle().model
    assert weights.keys() == model.state_dict().keys()
    assert all(np.array_equal(value, model.state_dict()[name]) for name, value in weights.items())


@pytest.mark.parametrize("kind", samples.DATASETS)
def test_a_bundle_carries_what_its_training_rows_looked_like(kind, tmp_path):
    saved = bundle("reduction", kind)
    bundles.save(tmp_path / "bundle", saved)
    loaded = bundles.load(tmp_path / "bundle")
    test = samples.dataset(kind).test
    one, other = (drift.compare(b.reference, b.model, b.schema, test.x, test.observed) for b in (saved, loaded))
    assert one == other
    assert one.rows_then == len(samples.dataset(kind).train)


def test_a_bundle_without_a_reference_stays_without_one(tmp_path):
    bundles.save(tmp_path / "bundle", replace(bundle(), reference=None))
    loaded = bundles.load(tmp_path / "bundle")
    assert loaded.reference is None
    assert bundles.save(tmp_path / "again", loaded) == bundles.digest(tmp_path / "bundle")


def test_a_reference_of_other_columns_is_refused_though_its_sum_is_right(folder):
    path = folder / "reference.safetensors"
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays | {"missing": arrays["missing"][1:]}, path)
    sums = json.loads((folder / "bundle.json").read_text())["sha256"]
    edit(folder, sha256={**sums, path.name: files.digest(path)})
    with pytest.raises(
        BundleError, match=r"is no sound bundle: the reference of the training rows is wrong: missing has"
    ):
        bundles.load(folder)


def test_damaged_weights_of_a_model_without_application_are_named(tmp_path):
    spec = samples.spec("pca", "table")
    bundles.save_model(tmp_path / "model", spec, samples.trained("pca", "table"))
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(b"12345678")
    with pytest.raises(
        BundleError, match=r"model\.safetensors claims a header of .* it is truncated or no safetensors"
    ):
        bundles.load_model(tmp_path / "model")
    safetensors.numpy.save_file({"other": np.zeros(3)}, path)
    with pytest.raises(BundleError, match=r"model\.safetensors does not hold the weights of pca \{'code': 4\}: "):
        bundles.load_model(tmp_path / "model")
