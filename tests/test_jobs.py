"""A job takes rows and gives rows: in order, with their identifiers, whole or not at all, and with a receipt."""

import decimal
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from sevenfold import bundles, files, formats, index_folders, jobs, operations, outputs, sources
from sevenfold.bundles import BundleError
from sevenfold.datasets.base import DataError
from sevenfold.jobs import JobError
from sevenfold.manifests import ResumeError
from tests import tiny

SUFFIXES = formats.OUTPUT_SUFFIXES


def run(source, destination, operation="score", kind="table", name="anomaly", bundle=None, on_progress=None, **more):
    """Run a job in batches of 7 rows, unless it is told otherwise."""
    return jobs.apply(
        bundle or tiny.bundle(kind, name),
        "model/1",
        "digest",
        operation,
        source,
        destination,
        jobs.Settings(**{"batch_size": 7} | more),
        on_progress=on_progress or (lambda progress: None),
    )


def read(path):
    return formats.read(path).frame


def put(path, rows):
    """Write a table as CSV, Parquet or npz, or images as npz."""
    if rows.images is None:
        formats.write(path, rows.frame)
    else:
        np.savez(path, images=rows.images, **{c: rows.frame[c].to_numpy(np.str_) for c in rows.frame})
    return path


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("given", SUFFIXES)
@pytest.mark.parametrize("wanted", SUFFIXES)
def test_rows_keep_their_order_and_their_identifying_columns(tmp_path, given, wanted):
    rows = tiny.table(30, seed=3)
    if given == ".npz":  # which has no gaps in text, but NaN in numbers
        rows = formats.Rows(rows.frame.assign(vip=rows.frame["vip"].astype(str)))
    # The columns' order is the user's own, too.
    rows = formats.Rows(rows.frame[["income", "kind", "vip", "age", "customer", "city"]])
    run(put(tmp_path / f"in{given}", rows), tmp_path / f"out{wanted}")
    made = read(tmp_path / f"out{wanted}")
    assert list(made) == ["kind", "customer", "score", "flag", "threshold", "top_1", "top_2"]
    kept = made["customer"].astype(str).str.zfill(5)  # which `read` takes for a number in CSV
    assert kept.tolist() == rows.frame["customer"].tolist()
    assert made["kind"].tolist() == rows.frame["kind"].tolist()
    expected = operations.score(tiny.bundle("table", "anomaly"), rows).frame
    np.testing.assert_allclose(made["score"], expected["score"], rtol=1e-4, atol=1e-5)
    assert made["flag"].astype(str).tolist() == expected["flag"].astype(str).tolist()
    assert made[["top_1", "top_2"]].to_numpy().tolist() == expected[["top_1", "top_2"]].to_numpy().tolist()


@pytest.mark.parametrize("wanted", SUFFIXES)
def test_columns_that_the_model_does_not_use_come_back_as_they_were_in_a_csv_file(tmp_path, wanted):
    frame = tiny.table(9).frame
    kept = {"customer": [f"{i:05}" for i in range(9)], "country": ["NA", "None", "nan", *["DE"] * 6]}
    kept |= {
        "price": ["1.50", "", "1e3", *["12345678901234567890"] * 6],
        "when": ["", "2020-01-01", "TRUE", *[" x "] * 6],
    }
    frame.drop(columns="kind").assign(**kept).to_csv(tmp_path / "in.csv", index=False)
    run(tmp_path / "in.csv", tmp_path / f"out{wanted}")
    if wanted == ".csv":
        made = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    else:
        made = read(tmp_path / f"out{wanted}").astype(object).fillna("")
    assert {name: made[name].tolist() for name in kept} == kept
    expected = operations.score(tiny.bundle("table", "anomaly"), formats.Rows(frame)).frame
    np.testing.assert_allclose(made["score"].astype(float), expected["score"], rtol=1e-4, atol=1e-5)


def test_integers_with_gaps_are_not_rounded_in_a_job(tmp_path):
    large = pd.array([2**60 + 1, None, *range(7)], dtype="Int64")
    put(tmp_path / "in.parquet", formats.Rows(tiny.table(9).frame.assign(large=large)))
    for suffix in SUFFIXES:
        run(tmp_path / "in.parquet", tmp_path / f"out{suffix}")
    assert read(tmp_path / "out.parquet")["large"].equals(pd.Series(large))
    wanted = [str(2**60 + 1), "", *map(str, range(7))]
    assert read(tmp_path / "out.npz")["large"].tolist() == wanted
    assert pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)["large"].tolist() == wanted


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
@pytest.mark.parametrize("values", [["31"] * 9, [True] * 9], ids=["text", "truth values"])
def test_numbers_that_are_text_or_truth_values_are_refused_where_the_file_has_types(tmp_path, suffix, values):
    frame = tiny.table(9).frame.drop(columns="vip").assign(age=values, vip=["True"] * 9)
    source = put(tmp_path / f"in{suffix}", formats.Rows(frame))
    with pytest.raises(
        DataError, match=r"'age' has 9 values that are no numbers \(first: .* in row 0\); expected numbers; convert"
    ):
        run(source, tmp_path / "out.csv")


def test_a_word_for_a_gap_is_one_in_a_job_too(tmp_path):
    bundle = tiny.bundle("table", "anomaly")
    taught = replace(bundle, schema=replace(bundle.schema, gap_words=("?",)))
    frame = tiny.table(15).frame
    for name, word in (("empty", ""), ("words", "?")):
        frame.to_csv(tmp_path / f"{name}.csv", index=False, na_rep=word)
        run(tmp_path / f"{name}.csv", tmp_path / f"{name}.out.csv", bundle=taught)
    assert (tmp_path / "words.out.csv").read_bytes() == (tmp_path / "empty.out.csv").read_bytes()
    with pytest.raises(
        DataError, match=r"'income' has 3 values .*\(first: '\?' in row 0\); .*train with `gaps: \['\?'\]`"
    ):
        run(tmp_path / "words.csv", tmp_path / "out.csv")


def test_a_job_writes_what_the_application_predicts(tmp_path):
    """On the rows of the test split, so on what `evaluate` measured."""
    bundle, data = tiny.bundle("table", "anomaly"), tiny.dataset("table")
    rows = tiny.table()
    test = rows.take(np.flatnonzero(rows.frame["customer"].isin(data.test.ids)))
    run(put(tmp_path / "in.parquet", test), tmp_path / "out.parquet")
    predicted = bundle.application.predict(bundle.model, data.test.x, data.test.observed, data.schema)
    made = read(tmp_path / "out.parquet")
    np.testing.assert_allclose(made["score"], predicted["score"], rtol=1e-4, atol=1e-5)
    assert (made["flag"] == (made["score"] > made["threshold"])).all()
    measured = bundle.application.evaluate(bundle.model, data.test, data.train.only_normal()).values["score"]
    np.testing.assert_allclose(made["score"], measured, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operation", ["encode", "score"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_batches_give_what_one_batch_gives(tmp_path, operation, suffix):
    frame = tiny.table(50, seed=4).frame
    # Only the second batch of each shows what type the column has.
    frame["note"] = [None] * 20 + ["late"] * 30
    frame["number"] = [1.0] * 20 + [np.nan] + [2.5] * 29
    source = put(tmp_path / f"in{suffix}", formats.Rows(frame))
    one = run(source, tmp_path / f"one{suffix}", operation, batch_size=1000)
    for more in ({}, {"batch_size": 1}, {"workers": 1}, {"workers": 5}):
        many = run(source, tmp_path / f"many{suffix}", operation, **more)
        assert many.output_digest == one.output_digest
    run(source, tmp_path / f"parted{suffix}", operation, partition_rows=16)
    pd.testing.assert_frame_equal(read(tmp_path / f"parted{suffix}"), read(tmp_path / f"one{suffix}"))


def test_images_keep_what_lies_beside_them(tmp_path):
    rows = tiny.images(20, seed=2)
    receipt = run(put(tmp_path / "in.npz", rows), tmp_path / "out.csv", "encode", "images", "reduction")
    made = read(tmp_path / "out.csv")
    expected = operations.encode(tiny.bundle("images", "reduction"), rows).frame
    assert list(made) == list(receipt.columns) == ["label", "code_0", "code_1"]
    assert made["label"].tolist() == rows.frame["label"].tolist()
    np.testing.assert_allclose(made[["code_0", "code_1"]], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_gap_is_filled_in_any_column_and_what_was_known_comes_back_as_it_was(tmp_path, suffix):
    known = tiny.table(40, seed=3).frame
    given = known.copy()
    given["age"] = (
        given["age"].astype(float) + 0.123456789
    )  # which had no gap in training, and more digits than float32
    given.loc[[3, 8], "age"] = np.nan
    given.loc[5, "city"] = None
    formats.write(tmp_path / f"rows{suffix}", given)
    run(tmp_path / f"rows{suffix}", tmp_path / "filled.parquet", operation="impute", name="imputation")
    filled = formats.read(tmp_path / "filled.parquet").frame
    assert filled["customer"].astype(int).tolist() == known["customer"].astype(int).tolist()
    assert filled[["city", "age", "income", "vip"]].notna().all().all()
    assert filled["city"][5] in {"Bern", "Oslo", "Rome"}
    flags = filled[[c for c in filled if c.endswith("_imputed")]]
    assert flags["age_imputed"].tolist() == given["age"].isna().tolist()
    for name in ("city", "income", "age"):
        there = given[name].notna()
        assert filled.loc[there, name].tolist() == given.loc[there, name].tolist()


def test_images_without_their_noise_are_of_the_kind_they_were(tmp_path):
    rows = tiny.images(20, seed=4)
    formats.write_rows(tmp_path / "noisy.npz", rows)
    images = {"operation": "denoise", "kind": "images", "name": "denoising"}
    run(tmp_path / "noisy.npz", tmp_path / "clean.npz", **images)
    clean = formats.read(tmp_path / "clean.npz")
    assert (clean.images.shape, clean.images.dtype) == (rows.images.shape, np.uint8)
    assert clean.frame["label"].tolist() == rows.frame["label"].tolist()
    with pytest.raises(formats.FormatError, match=r"cannot write '.csv' by `denoise`; expected .npz or a folder"):
        run(tmp_path / "noisy.npz", tmp_path / "clean.csv", **images)


def test_every_bundle_encodes(tmp_path):
    receipt = run(put(tmp_path / "in.csv", tiny.table(9)), tmp_path / "out.csv", "encode")
    assert receipt.columns == ("customer", "kind", "code_0", "code_1")


def test_the_receipt_tells_what_was_done_with_what(tmp_path, monkeypatch):
    source = put(tmp_path / "in.csv", tiny.table(30))
    seen = []
    start = time.perf_counter()
    receipt = run(source, tmp_path / "out.parquet", on_progress=lambda progress: seen.append(progress.rows))
    written = json.loads((tmp_path / "out.parquet.receipt.json").read_text())
    assert written == receipt.to_json()
    assert (receipt.operation, receipt.model, receipt.digest, receipt.rows) == ("score", "model/1", "digest", 30)
    assert (receipt.input, receipt.output) == (str(source), str(tmp_path / "out.parquet"))
    assert receipt.input_digest == files.digest(source)
    assert receipt.output_digest == files.digest(tmp_path / "out.parquet")
    assert 0 < receipt.seconds <= time.perf_counter() - start + 0.001
    assert seen == [7, 14, 21, 28, 30]
    # The output may lie inside the folder that was read; the digest is that of the folder before.
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, pixels in enumerate(tiny.images(3).images):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    before = files.digest(folder)
    receipt = run(folder, folder / "out.csv", "encode", "images", "reduction")
    assert receipt.input_digest == before
    assert read(folder / "out.csv")["path"].tolist() == ["0.png", "1.png", "2.png"]


def test_a_job_that_fails_in_the_middle_leaves_nothing_and_keeps_an_older_output(tmp_path):
    source = put(tmp_path / "in.csv", tiny.table(30))
    before = contents(tmp_path)

    def fail(progress):
        if progress.rows > 7:
            raise OSError("no space left on device")

    said = r"partition 0 \(rows 0 to 29 of in.csv\) failed: no space left on device; nothing was written"
    for suffix in ("", *SUFFIXES):
        with pytest.raises(JobError, match=said):
            run(source, tmp_path / f"out{suffix}", on_progress=fail)
    assert contents(tmp_path) == before
    run(source, tmp_path / "out.csv")
    before = contents(tmp_path)
    with pytest.raises(JobError, match=said):
        run(source, tmp_path / "out.csv", "encode", on_progress=fail)
    assert contents(tmp_path) == before


def test_all_problems_of_all_batches_come_at_once_and_nothing_is_written(tmp_path):
    frame = tiny.table(40).frame
    frame["city"] = frame["city"].astype(object)
    frame["age"] = frame["age"].astype(float)
    frame.loc[3, "city"] = "Atlantis"
    frame.loc[17, "age"] = np.inf
    frame.loc[30, "income"] = -np.inf
    source = put(tmp_path / "in.parquet", formats.Rows(frame.drop(columns="vip")))
    before = contents(tmp_path)
    with pytest.raises(DataError) as failure:
        run(source, tmp_path / "out.parquet")
    text = str(failure.value)
    assert text.startswith(f"{source}: ")
    assert text.count("'vip'") == 1
    for column, value in {"city": "'Atlantis'", "age": "first: row 17", "income": "first: row 30"}.items():
        assert f"'{column}'" in text
        assert value in text
    assert contents(tmp_path) == before


def test_an_error_stays_readable_however_many_batches_have_the_same_trouble(tmp_path, monkeypatch):
    frame = tiny.table(50).frame.assign(age=np.inf)
    monkeypatch.setattr(jobs, "MOST_PROBLEMS", 10)
    frame.to_parquet(tmp_path / "in.parquet", row_group_size=1)
    with pytest.raises(DataError) as failure:
        run(tmp_path / "in.parquet", tmp_path / "out.csv", partition_rows=1)
    assert len(failure.value.problems) == 11
    assert failure.value.problems[-1] == "and 40 more such problems"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns=["age", "city"]), "columns? .*'city', 'age'|columns 'age', 'city'"),
        (lambda f: f.assign(age="old"), r"'age' has 7 values that are no numbers \(first: 'old' in row 0\)"),
        (lambda f: f.assign(age=np.where(f.index == 2, np.nan, 1.0)), r"'age' has 1 gaps? \(first: row 2\)"),
        (lambda f: f.assign(city="Paris"), r"'city' has .*new categories 'Paris'.*'Bern', 'Oslo', 'Rome'"),
        (lambda f: f.assign(score=1), "columns of the names score, too; rename those of the input"),
        (lambda f: f.assign(top_1="a", flag="b"), "columns of the names (flag, top_1|top_1, flag), too"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_a_remedy(tmp_path, change, message):
    source = put(tmp_path / "in.csv", formats.Rows(change(tiny.table(7).frame)))
    before = contents(tmp_path)
    with pytest.raises(DataError, match=message):
        run(source, tmp_path / "out.csv")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: i[:, :5], "got images 6x5 with 1 channel; expected images 6x8 with 1 channel; resize or convert"),
        (lambda i: np.stack([i] * 3, axis=-1), "got images 6x8 with 3 channels; expected images 6x8 with 1 channel"),
        (lambda i: i.astype(float) * 2, "values reach .* to 4.*; expected 0 to 255; check the images' type and scale"),
        (lambda i: np.where(i > 200, np.nan, i), "not finite"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_a_remedy(tmp_path, make, message):
    np.savez(tmp_path / "in.npz", images=make(tiny.images(10).images))
    before = contents(tmp_path)
    with pytest.raises(DataError, match=message):
        run(tmp_path / "in.npz", tmp_path / "out.csv", "encode", "images", "reduction")
    assert contents(tmp_path) == before


def test_image_files_that_do_not_fit_are_named_once_by_size(tmp_path):
    from PIL import Image

    for i, shape in enumerate([(8, 6), (8, 5), (8, 6), (8, 5), (8, 6, 3)]):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError) as failure:
        run(tmp_path, tmp_path / "out.csv", "encode", "images", "reduction")
    told = [problem.split(";")[0] for problem in failure.value.problems]
    assert told == [
        "1.png: got images 5x8 with 1 channel",
        "4.png: got images 6x8 with 3 channels",
    ]


def test_a_table_for_images_and_images_for_a_table_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"got a table with 6 columns; expected images 6x8"):
        run(put(tmp_path / "in.csv", tiny.table(3)), tmp_path / "out.csv", "encode", "images", "reduction")
    with pytest.raises(DataError, match=r"got images \(8, 6\); expected a table with columns 'city', 'age', 'income'"):
        run(put(tmp_path / "in.npz", tiny.images(3)), tmp_path / "out.csv")


def header_only(path):
    tiny.table(3).frame.iloc[:0].to_csv(path, index=False)


def no_row_groups(path):
    tiny.table(3).frame.iloc[:0].to_parquet(path)


def cut_short(path):
    tiny.table(300).frame.to_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("in.csv", header_only, "has no rows; expected at least one"),
        ("in.parquet", no_row_groups, "has no rows; expected at least one"),
        ("in.csv", lambda p: p.write_bytes(b""), "cannot be read as CSV"),
        ("in.parquet", cut_short, "cannot be read as Parquet.*truncated"),
        ("in.xlsx", lambda p: p.write_bytes(b"x"), r"unknown kind of file '?\.xlsx'?; expected \.csv"),
        ("in.csv", lambda p: None, "does not exist; check the path"),
    ],
)
def test_an_input_that_cannot_be_read_is_named_and_leaves_nothing(tmp_path, name, make, message):
    make(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises((formats.FormatError, FileNotFoundError), match=message) as failure:
        run(tmp_path / name, tmp_path / "new" / "out.csv")
    assert str(tmp_path / name) in str(failure.value)
    assert contents(tmp_path) == before


def test_a_missing_output_folder_is_made(tmp_path):
    source = put(tmp_path / "in.csv", tiny.table(9))
    run(source, tmp_path / "2026" / "11" / "out.csv")
    assert len(read(tmp_path / "2026" / "11" / "out.csv")) == 9


def test_a_folder_into_which_somebody_put_a_file_is_not_replaced(tmp_path):
    source = put(tmp_path / "in.csv", tiny.table(9))
    run(source, tmp_path / "out")
    first = (tmp_path / "out" / "part-00000.parquet").read_bytes()
    run(source, tmp_path / "out")  # which holds nothing else
    (tmp_path / "out" / "more").mkdir()
    (tmp_path / "out" / "more" / "notes.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"holds 2 files, and .* wrote 1; .*, also more/notes\.txt; move away what is yours"
    ):
        run(source, tmp_path / "out")
    assert (tmp_path / "out" / "more" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "part-00000.parquet").read_bytes() == first
    (tmp_path / "out" / "more" / "notes.txt").rename(tmp_path / "notes.txt")
    (tmp_path / "out" / "part-00000.parquet").unlink()
    run(source, tmp_path / "out")  # what is gone is nobody's
    assert (tmp_path / "out" / "part-00000.parquet").read_bytes() == first


@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
@pytest.mark.parametrize("begun", ["continue", "restart"])
def test_what_comes_into_a_folder_while_its_job_is_under_way_is_not_replaced(tmp_path, older, begun):
    source, out = put(tmp_path / "in.csv", tiny.table(40)), tmp_path / "out"
    if older:
        run(source, out, partition_rows=8)

    def put_in(progress):
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("mine")

    def put_in_and_stop(progress):
        if progress.rows > 33:  # some partitions are done
            put_in(progress)
            raise KeyboardInterrupt

    def take_out(progress):
        for path in out.glob("*"):
            path.unlink()

    for then, error in ((put_in_and_stop, KeyboardInterrupt), (put_in, FileExistsError)):
        with pytest.raises(error):
            run(source, out, partition_rows=16, workers=1, on_progress=then)
        with pytest.raises(
            FileExistsError, match=r"1 files that came there since the job began, .*: .thesis\.txt.*move away"
        ):
            run(source, out, partition_rows=16, begun=begun)
        assert (out / "thesis.txt").read_text() == "mine"
        (out / "thesis.txt").unlink()
    run(source, out, partition_rows=16, begun=begun, on_progress=take_out)  # what is gone is nobody's
    assert sorted(outputs.names(out)) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]


def test_the_input_behind_a_link_is_still_the_input_and_an_output_there_still_none_of_it(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    put(tmp_path / "real/in.csv", tiny.table(20))
    for _ in range(2):
        assert run(tmp_path / "link", tmp_path / "real/out.csv").rows == 20
    (tmp_path / "real/out.csv").unlink()
    with pytest.raises(ValueError, match=r"the output .*in\.csv is one of the files of the input"):
        run(tmp_path / "link", tmp_path / "real/in.csv")


def test_an_output_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "in.csv", tiny.table(9))
    for name in (".", "/"):
        with pytest.raises(ValueError, match=f"the output is '{name}'; expected the name of a new file or folder"):
            run(tmp_path / "in.csv", Path(name))


@pytest.mark.parametrize("suffix", ["", ".parquet", ".csv", ".npz"])
def test_columns_that_files_keep_in_their_own_ways_come_out_as_one(tmp_path, suffix):
    frame = tiny.table(200).frame
    (tmp_path / "in").mkdir()
    few, many = (
        pd.Series(["a", "b"] * 100, dtype="category"),
        pd.Series([f"n{i}" for i in range(200)], dtype="category"),
    )
    for name, note, size in (("a", few, None), ("b", many, 1.5), ("c", many.astype(str), 2.5), ("d", None, None)):
        frame.assign(note=note, size=size).to_parquet(tmp_path / "in" / f"{name}.parquet")
    run(tmp_path / "in", tmp_path / f"out{suffix}", batch_size=64)
    made = read(tmp_path / f"out{suffix}") if suffix else pd.read_parquet(tmp_path / "out")
    wanted = [*few.astype(str), *many.astype(str), *many.astype(str), *[""] * 200]
    assert made["note"].astype(object).fillna("").tolist() == wanted
    assert made["size"].astype(float).fillna(0).tolist() == [0.0] * 200 + [1.5] * 200 + [2.5] * 200 + [0.0] * 200
    bad = tmp_path / "in" / "e.parquet"
    frame.assign(note=many, size=1.0, city="Atlantis").to_parquet(bad)
    run(tmp_path / "in", tmp_path / "good.parquet", batch_size=64, on_bad_rows="quarantine")
    assert formats.read(jobs.quarantine_path(tmp_path / "good.parquet")).frame["note"].tolist() == many.tolist()


def test_decimals_come_back_as_decimals_with_gaps_filled_whatever_the_batches(tmp_path):
    frame = tiny.table(60).frame.assign(total=[decimal.Decimal(f"{10**20 + i}.5") for i in range(60)])
    kinds = {"income": pyarrow.decimal128(12, 2), "total": pyarrow.decimal128(30, 1)}
    table = pyarrow.Table.from_pandas(frame.assign(income=frame["income"].round(2)), preserve_index=False)
    for name, kind in kinds.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table[name].cast(kind))
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    made = []
    for size in (1, 7, 60):
        run(tmp_path / "in.parquet", tmp_path / "out.parquet", "impute", name="imputation", batch_size=size)
        made.append((tmp_path / "out.parquet").read_bytes())
    assert len(set(made)) == 1
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert {name: found.schema.field(name).type for name in kinds} == kinds
    assert found["total"].equals(table["total"])
    known = table["income"].is_valid()
    assert found["income"].filter(known).equals(table["income"].filter(known))
    assert found["income"].null_count == 0
    run(tmp_path / "in.parquet", tmp_path / "out.npz", "impute", name="imputation")
    made = read(tmp_path / "out.npz")
    np.testing.assert_allclose(made["income"], np.asarray(found["income"], float), atol=0.0051)  # fills rounded there
    assert made["total"].tolist() == [str(value) for value in frame["total"]]
    # A fill is no larger than the column can be.
    few = pyarrow.array([decimal.Decimal("9.98"), None] * 30, pyarrow.decimal128(3, 2))
    narrow = table.set_column(table.schema.get_field_index("income"), "income", few)
    pyarrow.parquet.write_table(narrow, tmp_path / "narrow.parquet")
    run(tmp_path / "narrow.parquet", tmp_path / "narrow-out.parquet", "impute", name="imputation")
    assert pyarrow.parquet.read_table(tmp_path / "narrow-out.parquet")["income"].type == pyarrow.decimal128(3, 2)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (
            "out.xlsx",
            formats.FormatError,
            r"out\.xlsx: cannot write '\.xlsx' by `score`; expected \.parquet, \.csv, \.npz or a folder",
        ),
        ("theirs", FileExistsError, "theirs holds files that no job wrote; expected a new or empty folder"),
        ("theirs/file", FileExistsError, "is a file; expected a folder's name"),
        ("in.csv", ValueError, "input and output are both .*; give the output another name"),
        ("data.parquet", IsADirectoryError, "is a folder; expected a file's name"),
        ("in.csv/out.csv", PermissionError, r"cannot be written: .*in\.csv is no folder that you may write to; choose"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, output, error, message):
    put(tmp_path / "in.csv", tiny.table(9))
    (tmp_path / "data.parquet").mkdir()
    (tmp_path / "data.parquet" / "part.0").write_text("of the user")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("of the user")
    before = contents(tmp_path)
    with pytest.raises(error, match=message):
        run(tmp_path / "in.csv", tmp_path / output)
    assert contents(tmp_path) == before


def test_a_file_of_the_input_is_not_taken_for_an_earlier_output(tmp_path):
    for month in ("jan", "feb"):
        put(tmp_path / f"{month}.csv", tiny.table(20))
    before = (tmp_path / "jan.csv").read_bytes()
    with pytest.raises(ValueError, match=r"the output .*jan\.csv is one of the files of the input"):
        run(f"{tmp_path}/*.csv", tmp_path / "jan.csv")
    assert (tmp_path / "jan.csv").read_bytes() == before
    # One that a job made is left out, and made again.
    assert run(f"{tmp_path}/*.csv", tmp_path / "scores.csv").rows == 40
    assert run(f"{tmp_path}/*.csv", tmp_path / "scores.csv").rows == 40


def test_a_job_that_begins_anew_replaces_an_index_that_an_earlier_one_made(tmp_path):
    def build(source, **more):
        settings = jobs.Settings(options={"id": "customer"}, **more)
        return jobs.apply(
            tiny.bundle("table", "search"), "m", "d", "index", source, tmp_path / "index", settings, record=killed
        )

    def killed(receipt):
        raise KeyboardInterrupt

    first, second = put(tmp_path / "a.parquet", tiny.table(90)), put(tmp_path / "b.parquet", tiny.table(40))
    with pytest.raises(KeyboardInterrupt):
        build(first)
    with pytest.raises(ResumeError, match="--restart"):
        build(second)
    with pytest.raises(KeyboardInterrupt):
        build(second, begun="restart")
    assert index_folders.Reader(tmp_path / "index").manifest.count == 40
    with pytest.raises(KeyboardInterrupt):
        build(second)  # which goes on, and leaves what is there
    assert index_folders.Reader(tmp_path / "index").manifest.count == 40


@pytest.mark.parametrize(("written", "given"), [(" ", r"\s+"), ("^", "^"), (";", None)])
def test_cells_are_told_apart_by_whatever_the_user_says_or_the_header_shows(tmp_path, written, given):
    rows = tiny.table(60).frame
    rows["kind"] = rows["kind"].str.replace(" ", "_")
    rows = rows.assign(income=rows["income"].fillna(30.0))
    rows.to_csv(tmp_path / "plain.csv", index=False)
    rows.to_csv(tmp_path / "other.csv", index=False, sep=written)
    run(tmp_path / "plain.csv", tmp_path / "plain-out.csv")
    if given is not None:
        with pytest.raises(DataError, match=r"its header has 1 column, with .* between them; .* by `--separator`"):
            run(tmp_path / "other.csv", tmp_path / "other-out.csv")
    receipt = run(tmp_path / "other.csv", tmp_path / "other-out.csv", separator=given)
    made, parted = (tmp_path / "other-out.csv").read_text(), "," if written == " " else written
    assert made == (tmp_path / "plain-out.csv").read_text().replace(",", parted)
    assert receipt.details["separator"] == given


def test_partitions_that_were_cut_otherwise_are_not_gone_on_with(tmp_path, monkeypatch):
    rows = put(tmp_path / "in.parquet", tiny.table(90))

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # in the second partition
        run(
            rows, tmp_path / "out", partition_rows=30, workers=1, on_progress=lambda p: stop(p) if p.rows > 30 else None
        )
    with monkeypatch.context() as patch:
        patch.setattr(sources, "PLAN", 3)
        with pytest.raises(ResumeError, match=r"plan was 2 and is 3; .*`--restart`"):
            run(rows, tmp_path / "out", partition_rows=30)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "MOST_IN_LONE_GROUP", 2)  # as if nobody had given the new rules a number
        with pytest.raises(
            ResumeError, match=r"is not what an earlier run has done as number 0, row 0 and on of in\.parq"
        ):
            run(rows, tmp_path / "out", partition_rows=30)
    assert run(rows, tmp_path / "out", partition_rows=30).rows == 90


@pytest.mark.parametrize(("count", "size"), [(3000, 2000), (300_000, 2000), (None, 2000)])
def test_few_rows_are_not_tried_at_several_batch_sizes(tmp_path, monkeypatch, count, size):
    """What is tried is lost: no more than the least batch of a small input."""
    monkeypatch.setattr(jobs, "BATCH_SIZES", (500, size))
    monkeypatch.setattr(jobs, "FIRST_ROWS", 1000)
    tried = []
    monkeypatch.setattr(
        jobs, "_made", lambda bundle, operation, rows, *more, **options: tried.append(len(rows)) or rows
    )
    source = put(tmp_path / ("in.csv" if count is None else "in.parquet"), tiny.table(3000))
    found = sources.open_source(source)
    found = found if count is None else replace(found, total=count)
    first = next(next(found.partitions(1000)).batches(1000))
    if count is None:  # by the bytes of the first rows
        assert jobs._count(first, found) == pytest.approx(3000, rel=0.1)
        assert jobs._count(first, found.limited(1200)) == 1200
    first = next(next(found.partitions(1000)).batches(1000))
    assert jobs._fastest(tiny.bundle("table", "anomaly"), "score", first, found, None) == size
    assert tried == [500]
    monkeypatch.setattr(jobs, "MEASURED_FROM", 2900)
    tried.clear()
    jobs._fastest(tiny.bundle("table", "anomaly"), "score", first, found, None)
    assert tried == [500, size]
    monkeypatch.setattr(jobs, "MEASURED_FROM", 1 << 20)
    monkeypatch.setattr(jobs, "LONGEST_BATCH", 0.0)
    assert jobs._fastest(tiny.bundle("table", "anomaly"), "score", first, found, None) == 500
    monkeypatch.setattr(jobs, "LONGEST_BATCH", 0.5)
    bundle = tiny.bundle("table", "anomaly")
    for most, expected in ((0, size), (1, 500)):  # values fewer than the larger batch has
        monkeypatch.setattr(jobs, "MOST_VALUES", size * int(np.prod(bundle.schema.shape)) - most)
        assert jobs._fastest(bundle, "score", first, found, None) == expected


def test_rows_put_aside_are_parted_as_their_file_is_and_quoted_where_that_is_needed(tmp_path):
    rows = tiny.table(60).frame
    rows["note"] = "a; b"
    rows["income"] = rows["income"].astype(object)
    rows.loc[7, "income"] = "much"
    rows.to_csv(tmp_path / "in.csv", index=False, sep=";")
    run(tmp_path / "in.csv", tmp_path / "out.csv", on_bad_rows="quarantine")
    for name, count in (("out.csv", 59), ("out.csv.quarantine.csv", 1)):
        found = pd.read_csv(tmp_path / name, sep=";")
        assert len(found) == count
        assert set(found["note"]) == {"a; b"}
    assert pd.read_csv(tmp_path / "out.csv.quarantine.csv", sep=";")["_row"].tolist() == [7]


def test_a_separator_is_for_csv_files_alone(tmp_path):
    source = put(tmp_path / "in.parquet", tiny.table(20))
    with pytest.raises(formats.FormatError, match=r"separator is ';', and .* holds no CSV files; leave it out"):
        run(source, tmp_path / "out.csv", separator=";")


def test_a_damaged_line_late_in_a_csv_file_is_told_with_what_was_done(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "FIRST_ROWS", 20)
    rows = put(tmp_path / "in.csv", tiny.table(200))
    with rows.open("a") as file:
        file.write('"customer,Bern\n')
    with pytest.raises(
        formats.FormatError, match=r"partitions before that are done, and nothing was written; .*--restart"
    ):
        run(rows, tmp_path / "out.csv", partition_rows=20, workers=1)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_named(tmp_path):
    put(tmp_path / "in.csv", tiny.table(9))
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="theirs is no folder that you may write to"):
        run(tmp_path / "in.csv", tmp_path / "theirs" / "out.csv")


def test_the_wrong_operation_is_refused_before_anything_is_read(tmp_path):
    nowhere = tmp_path / "nowhere.csv"
    with pytest.raises(ValueError, match=r"is for reduction, which runs as `encode`; .*name another model"):
        run(nowhere, tmp_path / "out.csv", "score", "table", "reduction")
    with pytest.raises(ValueError, match=r"no operation 'scor', did you mean 'score'\?; there are: encode, score"):
        run(nowhere, tmp_path / "out.csv", "scor")


def test_a_folder_is_a_model_and_a_corrupted_one_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    source = put(tmp_path / "in.csv", tiny.table(9))
    folder = tiny.saved(tmp_path / "bundle", "table", "anomaly")
    with tiny.workspace(tmp_path / "place") as place:
        call = {"operation": "score", "model": str(folder), "source": source, "destination": tmp_path / "out.csv"}
        receipt = jobs.run(place, **call)
        assert (receipt.model, receipt.digest) == (str(folder), bundles.digest(folder))
        (tmp_path / "out.csv").unlink()
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
        with pytest.raises(BundleError, match=r"bundle is no sound bundle: model\.safetensors"):
            jobs.run(place, **call)
        assert not (tmp_path / "out.csv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_input(tmp_path):
    """The peak of a job, in a process of its own, over some rows and over many more."""
    folder = tiny.saved(tmp_path / "bundle", "table", "anomaly")
    code = """
import sys
from pathlib import Path
from sevenfold import bundles, jobs
bundle, source = bundles.load(Path(sys.argv[1])), Path(sys.argv[2])
how = jobs.Settings(batch_size=4096, partition_rows=20_000)
jobs.apply(bundle, "m", "d", "encode", source, source.with_name("out.parquet"), how)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    frame = tiny.table(20_000).frame.assign(**{f"note_{i}": 1.5 for i in range(40)})
    peaks = []
    for times in (10, 40):  # by ten partitions, the allocators hold what they go on using
        pd.concat([frame] * times).to_parquet(tmp_path / "in.parquet", row_group_size=20_000)
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / "in.parquet")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) // 1024)
    whole = frame.memory_usage(deep=True).sum() * 30 // 2**20
    assert peaks[1] - peaks[0] < whole / 2, f"{peaks} MiB, where the rows added would fill {whole}"


def test_a_job_that_is_asked_to_end_leaves_nothing_half_written(tmp_path):
    tiny.saved(tmp_path / "bundle", "table", "anomaly")
    tiny.table(60_000).frame.to_parquet(tmp_path / "rows.parquet")
    code = "import sys; from sevenfold import cli; cli.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "score", "bundle", "rows.parquet", "out/scored.parquet"]
    (tmp_path / "params.yaml").touch()
    (tmp_path / "dvc.yaml").touch()
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "SEVENFOLD_WORKSPACE": str(tmp_path)}) as process:
        while process.poll() is None and not list(tmp_path.glob("out/.scored.parquet.partial/parts/.part*/*")):
            time.sleep(0.01)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "out").exists()
