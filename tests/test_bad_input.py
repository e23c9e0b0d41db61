"""What bad data and bad params get from the stages: one error that lists everything, exit code 1, nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sevenfold import cli, formats, profiling
from tiny import table

ROOT = Path(__file__).parents[1]

PARAMS = """
seed: 0
datasets:
  mine:
    path: data/raw/mine.csv
    label: kind
    normal: [normal]
    id: customer
    split: {validation: 0.2, test: 0.2, seed: 0}
applications:
  mine:
    anomaly: {policy: false-positive-rate, value: 0.1, share: null, neighbours: 3, references: 4096, reasons: 2}
training: {epochs: 3, patience: 3, batch_size: 32, learning_rate: 0.01, warmup: 0.1, weight_decay: 0.0, gradient_clip: 1.0, threads: 1}
candidates:
  mine-deep:
    dataset: mine
    applications: [anomaly]
    rows: normal
    variant: deep
    options: {code: 2, hidden: [8], activation: silu, blocks: 0, tied: false, augment: [], numbers: standard, categories: one-hot}
rivals: {seconds: 600}
gate: {must_beat_rivals: true, floor: null}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A workspace with one sound data set and its suite."""
    root = tmp_path / "project"
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data" / "expectations").mkdir()
    (root / "params.yaml").write_text(PARAMS)
    shutil.copy(ROOT / "dvc.yaml", root)
    frame = table().frame
    frame.to_csv(root / "data/raw/mine.csv", index=False)
    suite = profiling.draft(frame, name="mine", ignored=["customer"])
    (root / "data/expectations/mine.json").write_text(json.dumps(suite))
    monkeypatch.setenv("SEVENFOLD_WORKSPACE", str(root))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    return root


@pytest.fixture
def stage(capsys):
    """Run one stage; returns its exit code and what it wrote to stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(["stage", *arguments])
        return caught.value.code, capsys.readouterr().err

    return run


def files(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def edit(place, change):
    path = place / "data/raw/mine.csv"
    frame = change(pd.read_csv(path, dtype={"customer": str}))
    frame.to_csv(path, index=False)


def test_sound_data_go_all_the_way(place, stage):
    for call in (
        ["validate", "mine"],
        ["prepare", "mine"],
        ["rivals", "mine"],
        ["train", "mine-deep"],
        ["evaluate", "mine-deep"],
    ):
        assert stage(*call) == (0, "")
    assert stage("scorecard") == (0, "")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: f.rename(columns={"kind": "sort"}), ["`label` names column 'kind', which is not there", "there are: customer"]),
        (lambda f: f.assign(kind="normal"), ["label 'kind' has one class only (normal)", "expected two or more", "leave `label` out"]),
        (lambda f: f.assign(age=7), ["column 'age' is constant (7)", "expected two values or more", "add it to `drop`"]),
        (lambda f: f.assign(age=np.inf), ["column 'age' has", "values that are not finite", "row 0"]),
        (lambda f: f.assign(age=7, vip=True), ["column 'age' is constant", "column 'vip' is constant"]),
        (lambda f: pd.concat([f, f.assign(customer="b" + f.customer)]), ["split are also in the", "expected none", "`duplicates: drop`"]),
        (lambda f: f.assign(customer="00001"), ["id 'customer' repeats in 119 rows", "expected one per row"]),
    ],
)  # fmt: skip
def test_bad_data_stop_preparation_with_all_that_is_wrong(place, stage, change, parts):
    edit(place, change)
    before = files(place)
    code, error = stage("prepare", "mine")
    assert code == 1
    assert error.startswith("error: mine: ")
    assert [part for part in parts if part not in error] == [], error
    assert "Traceback" not in error
    assert files(place) == before


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda path: path.unlink(), ["mine.csv does not exist", "dvc pull"]),
        (lambda path: path.write_bytes(b""), ["mine.csv", "cannot be read as CSV"]),
        (lambda path: path.write_bytes(path.read_bytes() + b'"open quote'), ["mine.csv"]),
        (lambda path: path.write_text(path.read_text().splitlines()[0]), ["mine.csv has no rows"]),
    ],
)
@pytest.mark.parametrize("name", ["validate", "prepare"])
def test_a_missing_or_truncated_file_is_named(place, stage, damage, parts, name):
    damage(place / "data/raw/mine.csv")
    before = files(place)
    code, error = stage(name, "mine")
    assert code == 1
    assert [part for part in parts if part not in error] == [], error
    assert "Traceback" not in error
    assert files(place) == before


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: f.drop(columns="age"), ["column 'age'", "no such column"]),
        (lambda f: f.assign(age="old"), ["column 'age'", "numbers", "120"]),
        (lambda f: f.assign(city=f.city.where(f.index > 4, "Atlantis")), ["column 'city'", "Atlantis", "5"]),
    ],
)
def test_validation_names_column_expectation_value_and_count_and_leaves_its_verdict(place, stage, change, parts):
    edit(place, change)
    code, error = stage("validate", "mine")
    assert code == 1
    assert "critical expectation" in error
    assert [part for part in parts if part not in error] == [], error
    # The verdict is what a person looks at next, so it is there, and says the same.
    assert '"passed": false' in (place / "results/validation/mine.json").read_text()
    assert (place / "results/validation/mine.html").is_file()


def test_fewer_rows_than_the_code_has_dimensions_are_refused(place, stage):
    rows = table(30)
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 60)), columns=[f"c{i}" for i in range(60)])
    pd.concat([rows.frame[["customer", "kind"]], wide], axis=1).to_csv(place / "data/raw/mine.csv", index=False)
    text = (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(text.replace("code: 2", "code: 40"))
    assert stage("prepare", "mine")[0] == 0
    before = files(place)
    code, error = stage("train", "mine-deep")
    assert code == 1
    assert "training rows for a code of 40; expected at least" in error
    assert files(place) == before


def test_misspelled_keys_and_variants_are_all_named(place, stage):
    text = (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(
        text.replace("variant: deep", "variant: deap").replace("label: kind", "lable: kind")
    )
    before = files(place)
    code, error = stage("train", "mine-deep")
    assert code == 1
    assert "lable" in error
    assert "did you mean 'label'?" in error
    assert "did you mean 'deep'?" in error
    assert files(place) == before


def test_images_of_another_size_or_mode_are_named(place, stage):
    from PIL import Image

    folder = place / "data/raw/pictures"
    for i in range(6):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i}.png")
    Image.new("RGB", (9, 8)).save(folder / "a" / "odd.png")
    with pytest.raises(formats.FormatError, match=r"1 of 7 images differ.*odd\.png is RGB 9x8"):
        formats.read(folder)
    text = (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(
        text.replace("mine.csv", "pictures")
        .replace("    id: customer\n", "")
        .replace("label: kind", "label: label")
        .replace("[normal]", "[a]")
    )
    before = files(place)
    code, error = stage("prepare", "mine")
    assert code == 1
    assert "odd.png is RGB 9x8" in error
    assert files(place) == before
