"""Each kind of output gives back what went in, and the same rows give the same bytes, however they come in parts."""

import csv
import datetime
import decimal
import itertools
import re

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevenfold import files, formats, images, jobs, outputs, sinks, sources
from sevenfold.datasets.base import DataError
from sevenfold.formats import FormatError, Rows
from tests import tiny

COUNT = 40
GAPS = np.arange(COUNT) % 5 == 3


def column(values, kind, gaps=GAPS):
    return pyarrow.array([None if gap else value for value, gap in zip(values, gaps, strict=True)], kind)


def moments(i):
    return datetime.datetime(2026, 1, 1) + datetime.timedelta(hours=24 * i if i < 20 else i)


TAGS = [[i, None, 2**60 + i] if i % 2 else [] for i in range(COUNT)]
COLUMNS = {
    "int_with_gaps": column([2**60 + i for i in range(COUNT)], pyarrow.int64()),
    "small_int": pyarrow.array(range(COUNT), pyarrow.int8()),
    "uint64": pyarrow.array([2**64 - 1 - i for i in range(COUNT)], pyarrow.uint64()),
    "uint64_with_gaps": column([2**64 - 1 - i for i in range(COUNT)], pyarrow.uint64()),
    "bool": pyarrow.array([i % 3 == 0 for i in range(COUNT)]),
    "bool_with_gaps": column([i % 3 == 0 for i in range(COUNT)], pyarrow.bool_()),
    "float": pyarrow.array([i / 3 for i in range(COUNT)], pyarrow.float64()),
    "float32_with_gaps": column([i / 3 for i in range(COUNT)], pyarrow.float32()),
    "zoned": column([moments(i) for i in range(COUNT)], pyarrow.timestamp("us", "Europe/Zurich")),
    "nanoseconds": column([1_700_000_000_123_456_789 + i for i in range(COUNT)], pyarrow.timestamp("ns")),
    "midnights": column([moments(i) for i in range(COUNT)], pyarrow.timestamp("ms")),
    "date": column([datetime.date(2026, 1, 1 + i % 28) for i in range(COUNT)], pyarrow.date32()),
    "time": column([datetime.time(i % 24, 30) for i in range(COUNT)], pyarrow.time64("us")),
    "duration": column([datetime.timedelta(days=i) for i in range(COUNT)], pyarrow.duration("ms")),
    "decimal": column([decimal.Decimal(f"{i}.10") for i in range(COUNT)], pyarrow.decimal128(10, 2)),
    "text": column([f'täxt, "{i}"\n{"x" * (i % 7)}' for i in range(COUNT)], pyarrow.string()),
    "large_text": pyarrow.array([f"{i:03}" for i in range(COUNT)], pyarrow.large_string()),
    "late_text": column(["late"] * COUNT, pyarrow.string(), np.arange(COUNT) < 25),
    "late_int": column([7] * COUNT, pyarrow.int32(), np.arange(COUNT) < 25),
    "late_bool": column([True] * COUNT, pyarrow.bool_(), np.arange(COUNT) < 25),
    "nothing": pyarrow.nulls(COUNT),
}
CODED = {
    "categorical": column([f"c{i % 3}" for i in range(COUNT)], pyarrow.string()).dictionary_encode(),
    "numbers_coded": column([100 + i % 3 for i in range(COUNT)], pyarrow.int64()).dictionary_encode(),
}
NESTED = {
    "list": column(TAGS, pyarrow.list_(pyarrow.int64())),
    "fixed": pyarrow.array([[i, i + 0.5] for i in range(COUNT)], pyarrow.list_(pyarrow.float32(), 2)),
    "struct": column([{"a": 2**60 + i, "b": None} for i in range(COUNT)], pyarrow.struct({"a": pyarrow.int64(), "b": pyarrow.string()})),
    "bytes": column([bytes([i]) for i in range(COUNT)], pyarrow.binary()),
}  # fmt: skip
FLAT = {**COLUMNS, **CODED}
ALL = {**FLAT, **NESTED}


def run(source, output, operation="encode", name="anomaly", **more):
    return jobs.apply(
        tiny.bundle("table", name),
        "model/1",
        "digest",
        operation,
        source,
        output,
        jobs.Settings(**{"batch_size": 7, "partition_rows": 10, "workers": 2} | more),
    )


def write(path, columns, row_group_size=10):
    features = pyarrow.Table.from_pandas(tiny.table(COUNT).frame, preserve_index=False)
    table = pyarrow.table({**dict(zip(features.column_names, features.columns, strict=True)), **columns})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def parquet(path):
    return pyarrow.parquet.read_table(path)


def plain(array):
    return array.cast(array.type.value_type) if pyarrow.types.is_dictionary(array.type) else array


@pytest.mark.parametrize("output", ["out", "out.parquet"])
def test_columns_of_every_type_come_back_as_they_were(tmp_path, output):
    source = write(tmp_path / "rows.parquet", ALL)
    run(source, tmp_path / output)
    made, given_ = parquet(tmp_path / output), parquet(source)
    for name in ALL:
        assert plain(made[name]).combine_chunks().equals(plain(given_[name]).combine_chunks()), name
        if name == "categorical":  # of more categories than the input's numbers for them may have room for
            assert made.schema.field(name).type == pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        else:
            assert made.schema.field(name).type == given_.schema.field(name).type, name


@pytest.mark.parametrize("output", ["out.csv", "out.npz"])
def test_text_kinds_of_output_hold_every_flat_type(tmp_path, output):
    source = write(tmp_path / "rows.parquet", FLAT)
    run(source, tmp_path / output)
    rows = 40 * [None]
    if output == "out.csv":
        made = pd.read_csv(tmp_path / output, dtype="str", keep_default_na=False)
    else:
        made = formats.read(tmp_path / output).frame
    for name, values in FLAT.items():
        rows = plain(values).to_pylist() if name not in ("nanoseconds", "duration") else values.to_pandas().tolist()
        found = made[name].tolist()
        for wanted, got in zip(rows, found, strict=True):
            if wanted is None or wanted is pd.NaT:
                assert got == "" or got != got, name
            elif isinstance(wanted, datetime.datetime):
                assert pd.Timestamp(got) == pd.Timestamp(wanted), name
            elif isinstance(wanted, float):
                assert np.float32(got) == np.float32(wanted), name
            else:
                assert str(got) == str(wanted), name


@pytest.mark.parametrize("output", ["out.csv", "out.npz"])
@pytest.mark.parametrize("name", NESTED)
def test_lists_and_bytes_do_not_go_where_they_would_be_lost(tmp_path, output, name):
    source = write(tmp_path / "rows.parquet", {name: NESTED[name], "note": COLUMNS["text"]})
    with pytest.raises(
        FormatError, match=rf"{output} cannot hold lists and bytes, as in '{name}' .*; write \.parquet or a"
    ):
        run(source, tmp_path / output)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]
    run(source, tmp_path / output, columns=("note",))
    assert "note" in formats.read(tmp_path / output).frame


def test_a_named_index_comes_back_as_a_column(tmp_path):
    frame = tiny.table(COUNT).frame.set_index("customer")
    frame.to_parquet(tmp_path / "rows.parquet")
    receipt = run(tmp_path / "rows.parquet", tmp_path / "out.parquet", columns=("customer",))
    assert receipt.columns[0] == "customer"
    assert parquet(tmp_path / "out.parquet")["customer"].to_pylist() == frame.index.tolist()


def test_a_number_index_of_pandas_is_no_column(tmp_path):
    frame = tiny.table(COUNT).frame
    frame.index = np.arange(COUNT)[::-1]
    frame.to_parquet(tmp_path / "rows.parquet")
    run(tmp_path / "rows.parquet", tmp_path / "out.parquet")
    assert parquet(tmp_path / "out.parquet").column_names == ["customer", "kind", "code_0", "code_1"]


TABLES = {"": sinks.Partitions, ".parquet": sinks.OneTable, ".csv": sinks.Csv}


def sink(suffix, schema):
    return sinks.Arrays(schema) if suffix == ".npz" else TABLES[suffix](schema)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, COUNT - 1), max_size=12))
@pytest.mark.parametrize("suffix", [*TABLES, ".npz"])
def test_rows_give_the_same_bytes_however_they_come_in_parts(tmp_path, monkeypatch, suffix, cuts):
    monkeypatch.setattr(sinks, "ROW_GROUP", 16)
    table = pyarrow.table(FLAT if suffix in (".csv", ".npz") else ALL)
    source = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, source, row_group_size=9)
    kinds = {"categorical": pyarrow.dictionary(pyarrow.int32(), pyarrow.string())}
    schema = pyarrow.schema([f.with_type(kinds.get(f.name, f.type)) for f in formats.parquet_schema(source)])
    contents = []
    for edges in ([0, COUNT], [0, *sorted(set(cuts)), COUNT]):
        parts = (
            part
            for start, end in itertools.pairwise(edges)
            for part in formats.parquet_rows(source, start, end - start, 1000)
        )
        with files.whole(tmp_path / f"part{suffix}") as draft:
            sink(suffix, schema).write(draft, parts)
        contents.append((tmp_path / f"part{suffix}").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("suffix", [*TABLES, ".npz"])
def test_partitions_without_rows_do_no_harm(tmp_path, suffix):
    """All rows of a partition may have been put aside."""
    table = pyarrow.table(FLAT)
    source = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, source)
    to = sink(suffix, outputs._fields(tiny.bundle("table", "anomaly"), "encode", sources.open_source(source),
                                      next(formats.parquet_rows(source, 0, 5, 5)).frame, None))  # fmt: skip
    paths = []
    for number, (first, rows) in enumerate([(0, 0), (0, 25), (25, 0), (25, 15), (40, 0)]):
        paths.append(tmp_path / f"part-{number:05}{to.suffix}")
        to.write(paths[-1], formats.parquet_rows(source, first, rows, 6) if rows else [])
    to.finish(paths, tmp_path / f"out{suffix}")
    to.write(tmp_path / f"one{to.suffix}", formats.parquet_rows(source, 0, 40, 40))
    to.finish([tmp_path / f"one{to.suffix}"], tmp_path / f"whole{suffix}")
    if suffix in ("", ".parquet"):
        got, wanted = (parquet(tmp_path / f"{name}{suffix}") for name in ("out", "whole"))
        for name in FLAT:
            assert plain(got[name]).equals(plain(wanted[name])), name
    elif suffix == ".csv":
        assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    else:
        got, wanted = (formats.read(tmp_path / name).frame for name in ("out.npz", "whole.npz"))
        pd.testing.assert_frame_equal(got, wanted)


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.csv", "out.npz"])
def test_a_partition_of_nothing_but_bad_rows_is_left_out(tmp_path, output):
    frame = tiny.table(COUNT).frame
    frame["city"] = frame["city"].astype(object)
    frame.loc[10:19, "city"] = "Atlantis"
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=10)
    receipt = run(tmp_path / "rows.parquet", tmp_path / output, on_bad_rows="quarantine")
    assert (receipt.rows, receipt.details["quarantined"]) == (30, 10)
    made = parquet(tmp_path / output).to_pandas() if output == "out" else formats.read(tmp_path / output).frame
    assert made["customer"].astype(int).tolist() == [*range(10), *range(20, 40)]


def test_the_number_of_partitions_does_not_change_one_file(tmp_path):
    source = write(tmp_path / "rows.parquet", ALL)
    flat = write(tmp_path / "flat.parquet", FLAT)
    for rows in (10, 1000):
        run(source, tmp_path / f"{rows}.parquet", partition_rows=rows)
        run(flat, tmp_path / f"{rows}.csv", partition_rows=rows)
        run(flat, tmp_path / f"{rows}.npz", partition_rows=rows)
    for ending in (".parquet", ".csv"):
        assert (tmp_path / f"10{ending}").read_bytes() == (tmp_path / f"1000{ending}").read_bytes()
    got, wanted = (formats.read(tmp_path / f"{rows}.npz").frame for rows in (10, 1000))
    assert got.astype(str).equals(wanted.astype(str))


def pictures(kind, shape, count=5, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (count, *shape), kind)


@pytest.mark.parametrize(
    ("ending", "kind", "shape"),
    [(".png", np.uint8, (6, 4)), (".png", np.uint16, (6, 4, 3)), (".tif", np.uint16, (6, 4)), (".webp", np.uint8, (6, 4, 3)),
     (".bmp", np.uint8, (6, 4, 3))],
)  # fmt: skip
def test_image_files_come_back_under_their_names(tmp_path, ending, kind, shape):
    names = [f"{folder}{i}{ending}" for folder, i in [("", 0), ("a/", 1), ("a/", 2), ("b/c/", 3), ("", 4)]]
    values = pictures(kind, shape)
    rows = Rows(pd.DataFrame({"path": names}), values)
    to = sinks.ImageFiles()
    for number, part in enumerate((rows.take(np.arange(3)), rows.take(np.arange(3, 5)))):
        to.write(tmp_path / f"part-{number}", [part])
    to.write(tmp_path / "part-2", [])
    to.finish([tmp_path / f"part-{i}" for i in range(3)], tmp_path / "out")
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob(f"*{ending}")) == sorted(
        names
    )
    for name, wanted in zip(names, values, strict=True):
        got = images.load(tmp_path / "out" / name)
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("other", [pictures(np.uint8, (6, 5)), pictures(np.uint16, (6, 4))], ids=["size", "type"])
def test_images_that_differ_do_not_go_into_one_array(tmp_path, other):
    first = Rows(pd.DataFrame(index=range(5)), pictures(np.uint8, (6, 4)))
    second = Rows(pd.DataFrame(index=range(5)), other)
    to, told = (
        sinks.Arrays(pyarrow.schema([])),
        r"images of several sizes or types \('6x.*', '6x.*'\) cannot be in one \.npz file; write to a folder",
    )
    with pytest.raises(FormatError, match=told):
        to.write(tmp_path / "part", [first, second])
    for name, rows in (("0.npz", first), ("1.npz", second)):
        to.write(tmp_path / name, [rows])
    with pytest.raises(FormatError, match=told):
        to.finish([tmp_path / "0.npz", tmp_path / "1.npz"], tmp_path / "out.npz")


def test_two_columns_of_one_name_are_refused(tmp_path):
    source = write(tmp_path / "rows.parquet", {"code_1": COLUMNS["small_int"]})
    with pytest.raises(DataError, match="columns of the names code_1, too; rename those of the input"):
        run(source, tmp_path / "out.parquet")
    run(source, tmp_path / "out.parquet", columns=("customer",))


@pytest.mark.parametrize("text", ["x\ry", "x\r\ny", "x\ny", "\r", 'say "x"\r', "x,\r\n"])
def test_cells_with_ends_of_lines_come_back_from_csv(tmp_path, text):
    frame = tiny.table(9).frame.assign(note=text)
    frame.to_parquet(tmp_path / "rows.parquet")
    bundle = tiny.bundle("table", "anomaly")
    jobs.apply(bundle, "m", "d" * 64, "encode", tmp_path / "rows.parquet", tmp_path / "out.csv")
    made = pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert made["note"].tolist() == [text] * 9
    assert (tmp_path / "out.csv").read_bytes().count(b"\n") == 10 + 9 * text.count("\n")


@pytest.mark.parametrize("output", ["small", "small.7f"])
def test_images_of_several_arrays_keep_apart(tmp_path, output):
    (tmp_path / "arrays").mkdir()
    shown = tiny.images(20, seed=3).images
    for name, some in (("a", shown[:10]), ("b", shown[10:])):
        np.save(tmp_path / "arrays" / f"{name}.npy", some)
    bundle = tiny.bundle("images", "compression")
    jobs.apply(bundle, "m", "d" * 64, "compress", tmp_path / "arrays", tmp_path / output)
    jobs.apply(bundle, "m", "d" * 64, "decompress", tmp_path / output, tmp_path / "back")
    names = sorted(p.relative_to(tmp_path / "back").as_posix() for p in (tmp_path / "back").rglob("*.png"))
    assert names == [f"{folder}/{i:06d}.png" for folder in "ab" for i in range(10)]


def test_a_damaged_container_is_told_with_what_is_lost_and_how_to_have_the_others(tmp_path):
    bundle = tiny.bundle("images", "compression")
    np.save(tmp_path / "shown.npy", tiny.images(20, seed=3).images)
    (tmp_path / "small").mkdir()
    jobs.apply(bundle, "m", "d" * 64, "compress", tmp_path / "shown.npy", tmp_path / "one.7f")
    for name in ("a.7f", "b.7f", "c.7f"):
        (tmp_path / "small" / name).write_bytes((tmp_path / "one.7f").read_bytes())
    for name in ("a.7f", "c.7f"):
        held = bytearray((tmp_path / "small" / name).read_bytes())
        held[len(held) // 2] ^= 255
        (tmp_path / "small" / name).write_bytes(held)
    with pytest.raises(DataError) as raised:
        jobs.apply(bundle, "m", "d" * 64, "decompress", tmp_path / "small", tmp_path / "back", jobs.Settings(workers=1))
    text = str(raised.value)
    for name in ("a.7f", "c.7f"):
        assert re.search(rf"{name}: images? .*`--on-bad-rows quarantine` gives the others", text), text
    assert "unknown kind of file" not in text


def test_two_images_of_one_name_are_refused(tmp_path):
    (tmp_path / "part-1").mkdir()
    (tmp_path / "part-1" / "same.png").write_bytes(b"one")
    (tmp_path / "other.png").write_bytes(b"two")
    (tmp_path / "draft").mkdir()
    sinks.link(tmp_path / "part-1", tmp_path / "draft")
    with pytest.raises(FileExistsError, match=r"two rows become same\.png; expected different names; rename one"):
        sinks.link(tmp_path / "other.png", tmp_path / "draft" / "same.png")
    assert (tmp_path / "part-1" / "same.png").read_bytes() == b"one"


def test_a_name_in_the_header_of_a_csv_file_is_quoted_as_a_cell_would_be(tmp_path):
    names = ["plain", "a\rb", "c;d", 'e"f']
    sink = sinks.Csv(pyarrow.schema([(name, pyarrow.int64()) for name in names]), ";")
    sink.write(tmp_path / "part", [formats.Rows(pd.DataFrame([[1, 2, 3, 4]], columns=names))])
    sink.finish([tmp_path / "part"], tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file, delimiter=";")) == [names, ["1", "2", "3", "4"]]
