"""Taking a data set in: from a file of any format to an entry, a suite and candidates that hold, or to nothing at all."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sevenfold import cli, enrolment, files, formats, params, pipeline, stages, validation
from sevenfold.datasets.base import DataError, Dataset
from sevenfold.models.base import ModelSpec
from sevenfold.workspace import Workspace

PARAMS = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture
def workspace(tmp_path):
    place = Workspace(tmp_path / "project")
    place.root.mkdir()
    place.params.write_bytes(PARAMS.read_bytes())
    return place


def track(workspace, path):
    """Do on a small scale what `dvc add` does."""
    ignore = path.parent / ".gitignore"
    ignore.write_text((ignore.read_text() if ignore.exists() else "") + f"/{path.name}\n")
    pointer = path.with_name(f"{path.name}.dvc")
    pointer.write_text(files.digest(path))
    return pointer


def add(workspace, path, name="mine", **changes):
    given = {
        "label": None,
        "normal": (),
        "identifier": None,
        "group": None,
        "part": None,
        "drop": (),
        "value_range": None,
    }
    given |= {"categorical": (), "separator": None, "gaps": (), "labels": None}
    return enrolment.add(workspace, name, path, **{**given, "track": track, **changes})


def table(n=80):
    r = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "customer": [f"C{i:04}" for i in range(n)],
            "age": np.where(np.arange(n) % 7 == 2, np.nan, r.integers(18, 90, n)),
            "income": r.normal(3e4, 1e4, n),
            "city": np.where(np.arange(n) % 6 == 1, None, np.where(np.arange(n) % 2, "Lima", "Zürich")),
            "member": np.arange(n) % 2 == 1,
            "paid": np.where(np.arange(n) % 9 == 4, None, np.arange(n) % 4 == 1),
            "churn": np.where(np.arange(n) % 5, "no", "yes"),
        }
    )


ROLES = {"label": "churn", "normal": ("no",), "identifier": "customer"}


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "Customers v1.2.csv"
    table().to_csv(path, index=False)
    return path


def tree(workspace):
    return {p: p.read_bytes() for p in workspace.root.rglob("*") if p.is_file()}


def images(dtype="uint8", high=256):
    return np.random.default_rng(1).integers(0, high, (40, 6, 5)).astype(dtype)


def save_folder(path):
    for i, image in enumerate(images()):
        folder = path / ("even" if i % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")


def save_idx(path):
    path.write_bytes(gzip.compress(b"\0\0\x08\3" + np.array([40, 6, 5], ">u4").tobytes() + images().tobytes()))


MADE = {
    "a.csv": (lambda p: table().to_csv(p, index=False), ROLES),
    "a.CSV.gz": (lambda p: table().to_csv(p, index=False, compression="gzip"), ROLES),
    "a.parquet": (lambda p: table().to_parquet(p), ROLES),
    "no label.parquet": (lambda p: table().to_parquet(p), {"identifier": "customer", "drop": ("churn",)}),
    "a.npz": (lambda p: np.savez(p, images=images(), kind=np.arange(40) % 2), {"label": "kind", "normal": ("0",)}),
    "matrix.npy": (lambda p: np.save(p, np.random.default_rng(0).normal(size=(60, 3))), {}),
    "whole numbers.npy": (lambda p: np.save(p, images("int64", 17)), {}),
    "fractions.npy": (lambda p: np.save(p, images() / 255), {}),
    "given.npy": (lambda p: np.save(p, images() / 255), {"value_range": (-1.0, 1.0)}),
    "train-images-idx3-ubyte.gz": (save_idx, {}),
    "folder": (save_folder, {"label": "label", "normal": ("even",)}),
    "folder without label": (save_folder, {}),
}


@pytest.mark.parametrize("name", MADE)
def test_a_set_of_any_format_has_sound_params_passes_its_suite_and_prepares(name, workspace, tmp_path):
    make, roles = MADE[name]
    make(tmp_path / name)
    made = add(workspace, tmp_path / name, **roles)

    settings = stages.check(workspace)
    assert made.candidates
    assert set(made.candidates) <= set(settings.candidates)
    assert made.raw.is_relative_to(workspace.root / "data" / "raw")
    assert files.digest(made.raw) == files.digest(tmp_path / name)
    assert made.raw.with_name(f"{made.raw.name}.dvc").read_text() == files.digest(made.raw)

    rows = stages.read_raw(workspace, settings, "mine")
    suite = validation.read_suite(made.suite)
    verdict = validation.check(stages.to_validate(rows), suite, dataset="mine")
    assert verdict.failures("critical") == ()
    # Of several dozen values some lie beyond the widened span of the training rows, at most.
    assert len(verdict.failures("warning")) <= 1

    stages.prepare(workspace, "mine")
    dataset = Dataset.load(workspace.prepared("mine"))
    assert sum(len(s) for s in (dataset.train, dataset.validation, dataset.test)) == len(rows)
    for candidate in made.candidates:
        entry = settings.candidates[candidate]
        if "code" in entry.options:
            assert 1 <= entry.options["code"] <= min(len(dataset.train.only_normal()), np.prod(dataset.schema.shape))
        ModelSpec.of(entry.variant, dataset.schema.layout, entry.options).build()
        assert entry.rows == (
            "all" if entry.applications != ("anomaly",) else "normal" if "normal" in roles else "trimmed"
        )
    wanted = {"reduction", "search", "anomaly"}
    wanted |= {"features"} if dataset.train.y is not None else set()
    wanted |= {"imputation"} if dataset.train.observed is not None else set()
    wanted |= {"denoising", "compression"} if len(dataset.schema.shape) == 3 else set()
    assert set(settings.applications["mine"]) == wanted
    assert {a for c in made.candidates for a in settings.candidates[c].applications} == wanted


def test_a_rare_gap_or_category_outside_of_the_training_rows_is_a_warning(workspace, tmp_path):
    frame = table()
    add(workspace, _saved(frame, tmp_path / "first.csv"), **ROLES, name="first")
    stages.prepare(workspace, "first")
    held_out = frame["customer"].isin(Dataset.load(workspace.prepared("first")).test.ids).idxmax()
    frame["city"] = frame["city"].astype(object)
    frame.loc[held_out, "city"] = "Ultima Thule"
    made = add(workspace, _saved(frame, tmp_path / "second.csv"), **ROLES, name="second")
    assert any("Ultima Thule" in note and "only warns" in note for note in made.notes)
    rows = stages.read_raw(workspace, stages.check(workspace), "second")
    verdict = validation.check(stages.to_validate(rows), validation.read_suite(made.suite), dataset="second")
    assert verdict.passed
    assert any(r.column == "city" for r in verdict.failures("warning"))
    stages.prepare(workspace, "second")


def _saved(frame, path):
    frame.to_csv(path, index=False)
    return path


def test_the_entry_says_what_was_said(workspace, csv):
    add(workspace, csv, **ROLES, drop=("age",))
    entry = params.load(workspace.params).datasets["mine"]
    assert (entry.path, entry.label, entry.normal) == ("data/raw/mine.csv", "churn", ("no",))
    assert (entry.id, entry.drop, entry.group, entry.duplicates) == ("customer", ("age",), None, "error")


def test_columns_that_no_model_can_use_are_left_out_with_a_note(workspace, tmp_path):
    odd = table().assign(
        flat=1,
        empty=np.nan,
        day=pd.date_range("2020-01-01", periods=80),
        wait=pd.to_timedelta(np.arange(80), unit="s"),
        note=[f"text {i}" for i in range(80)],
        lists=[[i] for i in range(80)],
    )
    odd.to_parquet(tmp_path / "a.parquet")
    made = add(workspace, tmp_path / "a.parquet", **ROLES)
    left_out = params.load(workspace.params).datasets["mine"].drop
    assert left_out == ("flat", "empty", "day", "wait", "note", "lists")
    for column, reason in zip(
        left_out, ["no two", "no two", "datetime64", "timedelta64", "free text", "object"], strict=True
    ):
        assert any(re.search(rf"column '{column}' is left out \(`drop`\): .*{reason}", note) for note in made.notes)


def test_equal_rows_are_kept_once_and_the_suite_sees_training_rows_only(workspace, tmp_path):
    frame = pd.concat([table().drop(columns="customer")] * 2, ignore_index=True)
    frame.to_csv(tmp_path / "a.csv", index=False)
    made = add(workspace, tmp_path / "a.csv", label="churn")
    assert params.load(workspace.params).datasets["mine"].duplicates == "drop"
    (note,) = [n for n in made.notes if "duplicates: drop" in n]
    assert note.startswith("80 of 160 rows equal an earlier one and are left out (`duplicates: drop`); otherwise ")
    assert re.search(r"\d+ rows of the test split are also in the train split \(first: row \d+\)", note)
    stages.prepare(workspace, "mine")
    train = Dataset.load(workspace.prepared("mine")).train
    suite = json.loads(made.suite.read_text())
    largest = frame["income"][train.ids].max()
    notes = [e["notes"] for e in suite["expectations"] if e["kwargs"].get("column") == "income"]
    (note,) = [n for n in notes if "widened" in n]
    assert f"to {largest:.6g}, widened" in note


def with_words():
    """The same table with words in place of the gaps of a number and of a text, and one word that is a country."""
    frame = table().astype({"age": object})
    age = frame["age"].map(lambda v: "?" if pd.isna(v) else f"{v:.0f}")
    return frame.assign(age=age, city=frame["city"].fillna("?"), country=np.where(np.arange(80) % 3, "NA", "DE"))


def test_a_word_for_a_gap_is_told_with_its_count(workspace, tmp_path):
    odd = with_words().assign(size=["unknown" if i % 40 == 7 else i * 3 for i in range(80)])
    made = add(workspace, _saved(odd, tmp_path / "a.csv"), **ROLES)
    count = int(table()["age"].isna().sum())
    remedy = "; say --gap for a word that means a gap, or --categorical if the column holds no numbers"
    assert (
        f"column 'age' is left out (`drop`): it holds '?' {count} times among {80 - count} numbers{remedy}"
        in made.notes
    )
    assert f"column 'size' is left out (`drop`): it holds 'unknown' 2 times among 78 numbers{remedy}" in made.notes
    assert not any("'city'" in n or "'country'" in n for n in made.notes)
    # A column that is left alone is not taken for text in silence.
    odd["size"] = ["unknown" if i % 40 == 7 else i % 6 for i in range(80)]
    made = add(workspace, _saved(odd, tmp_path / "b.csv"), **ROLES, name="second")
    assert f"column 'size' is taken as text: it holds 'unknown' 2 times among 78 numbers{remedy}" in made.notes


def test_words_for_gaps_hold_for_training_and_for_jobs(workspace, tmp_path):
    path = _saved(with_words(), tmp_path / "a.csv")
    add(workspace, path, **ROLES, gaps=("?",))
    entry = params.load(workspace.params).datasets["mine"]
    assert (entry.gaps, entry.drop) == (("?",), ())
    stages.prepare(workspace, "mine")
    data = Dataset.load(workspace.prepared("mine"))
    assert data.schema.gap_words == ("?",)
    kinds = {c.name: (c.kind, c.gaps) for c in data.schema.columns}
    assert (kinds["age"], kinds["city"], kinds["country"]) == (
        ("numeric", True),
        ("categorical", True),
        ("categorical", False),
    )
    (job,) = formats.batches(path, 1000)
    x, observed = data.schema.transform(job)
    rows = job.frame.set_index("customer").index.get_indexer(data.test.ids)
    np.testing.assert_array_equal(x[rows], data.test.x)
    np.testing.assert_array_equal(observed[rows], data.test.observed)


def test_columns_that_are_said_to_be_categories_are(workspace, tmp_path):
    frame = table().assign(branch=np.arange(80) % 4, doors=["none" if i % 8 == 1 else str(i % 3) for i in range(80)])
    made = add(workspace, _saved(frame, tmp_path / "a.csv"), **ROLES, categorical=("branch", "doors"))
    assert params.load(workspace.params).datasets["mine"].categorical == ("branch", "doors")
    assert not any("doors" in note for note in made.notes)
    stages.prepare(workspace, "mine")
    schema = Dataset.load(workspace.prepared("mine")).schema
    categories = {c.name: c.categories for c in schema.columns}
    assert categories["branch"] == ("0", "1", "2", "3")
    assert categories["doors"] == ("0", "1", "2", "none")


@pytest.mark.parametrize("raw", ["train-images-idx3-ubyte.gz", "images.npy", "matrix.npy"])
@pytest.mark.parametrize("inside", [False, True])
def test_labels_of_a_second_file_become_one_file_with_the_images(raw, inside, workspace, tmp_path):
    """So DVC tracks both, and a change of either reruns what depends on them."""
    folder = workspace.raw("") if inside else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    values = images() if raw != "matrix.npy" else np.random.default_rng(0).normal(size=(40, 3))
    save_idx(folder / raw) if raw.endswith(".gz") else np.save(folder / raw, values)
    np.save(folder / "labels.npy", np.where(np.arange(40) % 2, "odd", "even"))
    made = add(workspace, folder / raw, labels=folder / "labels.npy", normal=("even",))
    assert made.raw == workspace.raw("mine.npz")
    assert made.raw.with_name("mine.npz.dvc").read_text() == files.digest(made.raw)
    assert f"{raw} and labels.npy are one file now, mine.npz, with the labels as column `label`" in made.notes
    entry = params.load(workspace.params).datasets["mine"]
    assert (entry.path, entry.label, entry.normal) == ("data/raw/mine.npz", "label", ("even",))
    rows = stages.read_raw(workspace, stages.check(workspace), "mine")
    assert rows.frame["label"].tolist() == ["odd" if i % 2 else "even" for i in range(40)]
    if raw == "matrix.npy":
        np.testing.assert_array_equal(rows.frame[["x_0", "x_1", "x_2"]], values)
    else:
        np.testing.assert_array_equal(rows.images, values)
    stages.prepare(workspace, "mine")


def test_the_command_takes_every_option(workspace, tmp_path, monkeypatch, capsys):
    (workspace.root / "dvc.yaml").write_bytes((PARAMS.parent / "dvc.yaml").read_bytes())
    monkeypatch.setenv("SEVENFOLD_WORKSPACE", str(workspace.root))
    monkeypatch.setattr(pipeline, "track", track)
    with_words().assign(branch=np.arange(80) % 4).to_csv(tmp_path / "a.csv", sep=":", index=False)
    command = [
        "dataset",
        "add",
        "mine",
        str(tmp_path / "a.csv"),
        "--label",
        "churn",
        "--normal",
        "no",
        "--id",
        "customer",
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main(
            [*command, "--separator", ":", "--gap", "?", "--gap", "-", "--categorical", "branch", "--drop", "income"]
        )
    assert ended.value.code == 0, capsys.readouterr().err
    entry = params.load(workspace.params).datasets["mine"]
    assert entry.read_options == {"separator": ":", "gaps": ("?", "-")}
    assert (entry.categorical, entry.drop) == (("branch",), ("income",))
    np.save(tmp_path / "a.npy", images())
    np.save(tmp_path / "b.npy", np.arange(40) % 2)
    with pytest.raises(SystemExit) as ended:
        cli.main(["dataset", "add", "other", str(tmp_path / "a.npy"), "--labels", str(tmp_path / "b.npy")])
    assert ended.value.code == 0
    assert "a.npy and b.npy are one file now" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main([*command[:2], "third", *command[3:], "--labels", str(tmp_path / "b.npy")])
    assert ended.value.code == 1
    assert "a.csv: CSV has no option labels; leave it out" in capsys.readouterr().err


def test_a_held_out_row_changes_nothing_in_the_draft(workspace, csv):
    rows = formats.read(csv)
    entry = {"label": "churn", "id": "customer"}
    split = {"validation": 0.2, "test": 0.2, "seed": 0}
    before = enrolment.draft_suite("mine", rows, entry, split)
    drawn = enrolment.preparation.training_rows(
        rows, label="churn", identifier="customer", group=None, drop=(), duplicates="error", **split
    )
    held_out = ~rows.frame["customer"].isin(drawn.frame["customer"])
    rows.frame.loc[held_out, "income"] = 1e9
    assert enrolment.draft_suite("mine", rows, entry, split) == before


def test_a_range_that_was_found_is_told(workspace, tmp_path):
    np.save(tmp_path / "a.npy", images() / 255)
    made = add(workspace, tmp_path / "a.npy")
    assert any("`range` is what the images hold, 0 to 1; mend it" in n for n in made.notes)
    assert params.load(workspace.params).datasets["mine"].range == (0, 1)


def test_a_file_that_lies_in_the_raw_folder_stays_where_it_is(workspace, csv):
    raw = workspace.raw("own/customers.csv")
    raw.parent.mkdir(parents=True)
    csv.rename(raw)
    made = add(workspace, raw, **ROLES)
    assert made.raw == raw
    assert params.load(workspace.params).datasets["mine"].path == "data/raw/own/customers.csv"
    assert [p.name for p in workspace.raw("").iterdir()] == ["own"]


def test_a_workspace_behind_a_link_is_a_workspace(workspace, csv, tmp_path):
    (tmp_path / "link").symlink_to(workspace.root, target_is_directory=True)
    add(Workspace(tmp_path / "link"), csv, **ROLES)
    assert params.load(workspace.params).datasets["mine"].path == "data/raw/mine.csv"


def test_a_suite_that_is_there_stays_as_it_is(workspace, csv):
    files.write_text(workspace.suite("mine"), "mine own")
    made = add(workspace, csv, **ROLES)
    assert workspace.suite("mine").read_text() == "mine own"
    assert "data/expectations/mine.json was there and stays as it is" in made.notes


# Nothing half done.


REFUSED = {
    "missing": (
        "nowhere.csv",
        None,
        {},
        FileNotFoundError,
        r"nowhere\.csv does not exist; check the path",
    ),
    "truncated": (
        "a.parquet",
        lambda p: p.write_bytes(b"PAR1" + bytes(50)),
        {},
        formats.FormatError,
        "cannot be read as Parquet",
    ),
    "unknown kind": (
        "a.xlsx",
        lambda p: p.write_bytes(b"PK"),
        {},
        formats.FormatError,
        "unknown kind of file",
    ),
    "wrong column": (
        "a.csv",
        None,
        {"label": "chrun", "identifier": "id"},
        DataError,
        "mine: `label` names column 'chrun'.*; `id` names column 'id'",
    ),
    "unknown class": (
        "a.csv",
        None,
        {"label": "churn", "normal": ("No",)},
        DataError,
        "`normal` names 'No'; the labels are 'no', 'yes'",
    ),
    "one class": (
        "a.csv",
        lambda p: table().assign(churn="no").to_csv(p),
        {"label": "churn"},
        DataError,
        "has one class only",
    ),
    "infinite": (
        "a.csv",
        lambda p: table().assign(income=np.append(np.inf, np.arange(79))).to_csv(p, index=False),
        ROLES,
        DataError,
        "'income' has 1 values that are not finite",
    ),
    "constant": (
        "a.csv",
        lambda p: table()[["member", "churn"]].assign(member=1).to_csv(p, index=False),
        {"label": "churn"},
        DataError,
        "the table has no feature columns",
    ),
    "few rows": (
        "a.csv",
        lambda p: table(2).to_csv(p, index=False),
        {},
        DataError,
        "split is empty",
    ),
    "images not finite": (
        "a.npy",
        lambda p: np.save(p, np.where(images() == 7, np.nan, images() / 255)),
        {},
        DataError,
        "images hold values that are not finite",
    ),
    "range": (
        "a.npy",
        lambda p: np.save(p, images()),
        {"value_range": (9.0, 0.0)},
        DataError,
        "range is 9 to 0; expected the lower end first",
    ),
    "range too narrow": (
        "a.npy",
        lambda p: np.save(p, images()),
        {"value_range": (0.0, 9.0)},
        DataError,
        "expected 0 to 9; check the images' type",
    ),
    "mixed sizes": (
        "f",
        lambda p: (save_folder(p), Image.new("L", (9, 9)).save(p / "odd" / "big.png")),
        {},
        formats.FormatError,
        "1 of 41 images differ",
    ),
    "taken": (
        "a.csv",
        None,
        {"name": "digits"},
        ValueError,
        "data set 'digits' is in params.yaml already; choose another name",
    ),
    "bad name": (
        "a.csv",
        None,
        {"name": "My Data"},
        ValueError,
        "'My Data' is no name for a data set; a name is lower-case letters",
    ),
}


@pytest.mark.parametrize(("file", "make", "changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_a_data_set_is_refused_and_nothing_is_written(
    file, make, changes, error, message, workspace, tmp_path
):
    path = tmp_path / file
    if make is not None:
        make(path)
    elif file == "a.csv":
        table().to_csv(path, index=False)
    before = tree(workspace)
    with pytest.raises(error, match=message):
        add(workspace, path, **changes)
    assert tree(workspace) == before


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("ignored", [None, "/other.csv\n"])
@pytest.mark.parametrize("step", ["track", "suite", "params"])
@pytest.mark.parametrize("error", [OSError("disk is full"), KeyboardInterrupt()])
def test_after_a_failure_at_any_step_everything_is_as_it_was(step, error, inside, ignored, workspace, csv, monkeypatch):
    path = workspace.raw("customers.csv") if inside else csv
    workspace.raw("").mkdir(parents=True)
    if inside:
        csv.rename(path)
    if ignored:
        workspace.raw(".gitignore").write_text(ignored)
    before = tree(workspace)

    def fail(*_):
        raise error

    def track_and_fail(*arguments):
        track(*arguments)
        raise error

    if step != "track":
        monkeypatch.setattr(files, {"suite": "write_json", "params": "write_text"}[step], fail)
    with pytest.raises(type(error)):
        add(workspace, path, **ROLES, track=track_and_fail if step == "track" else track)
    assert tree(workspace) == before
    monkeypatch.undo()
    add(workspace, path, **ROLES)


def test_a_raw_file_of_that_name_is_not_written_over(workspace, csv):
    workspace.raw("").mkdir(parents=True)
    workspace.raw("mine.csv").write_text("precious")
    with pytest.raises(ValueError, match=r"data/raw/mine\.csv exists already; remove it, or choose another name"):
        add(workspace, csv, **ROLES)
    assert workspace.raw("mine.csv").read_text() == "precious"


def test_params_that_are_already_broken_are_named_before_anything_is_read(workspace, csv):
    workspace.params.write_text(workspace.params.read_text().replace("variant: deep", "variant: depe", 1))
    before = tree(workspace)
    with pytest.raises(params.ParamsError, match="no variant 'depe', did you mean 'deep'"):
        add(workspace, csv, **ROLES)
    assert tree(workspace) == before
