"""Partitions are the rows of the files, each once and in order; they depend on the files alone."""

import csv
import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sevenfold import files, formats, sources
from sevenfold.datasets.base import DataError
from sevenfold.formats import FormatError
from tests import tiny

RANDOM = np.random.default_rng(0)


def rows_of(source, partition_rows, size=7, columns=None):
    """Return all rows of all partitions, after looking at what each says of itself."""
    parts = []
    for number, part in enumerate(source.partitions(partition_rows, columns)):
        batches = [*part.batches(size)]
        assert part.number == number
        assert sum(map(len, batches)) == part.rows > 0
        assert all(0 < len(batch) <= size for batch in batches)
        parts += batches
    return parts


def joined(parts):
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    images = None if parts[0].images is None else [image for part in parts for image in part.images]
    return frame, images


def same(parts, paths):
    """Compare with what the files hold, one after the other: text with the words in them, other cells with `formats.read`."""
    frame, images = joined(parts)
    if parts[0].text:
        cells = []
        for path in paths:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            header, *more = csv.reader(content.decode().splitlines())
            cells += more
        assert [*frame] == header
        assert frame.astype(object).fillna("").to_numpy().tolist() == cells
        return
    wanted, wanted_images = joined([formats.read(path) for path in paths])
    pd.testing.assert_frame_equal(frame, wanted)
    if images is not None:
        for one, other in zip(images, wanted_images, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def groups(path, counts, frame=None):
    """Write a Parquet file with row groups of these sizes."""
    table = pyarrow.Table.from_pandas(tiny.table(sum(counts)).frame if frame is None else frame, preserve_index=False)
    with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
        at = 0
        for count in counts:
            writer.write_table(table.slice(at, count), row_group_size=max(1, count))
            at += count
    return path


def idx(path):
    """Write 23 images 3x2 in LeCun's format."""
    values = RANDOM.integers(0, 255, (23, 3, 2), np.uint8)
    content = bytes([0, 0, 8, 3]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


WRITERS = {
    "many small groups.parquet": lambda p: groups(p, [3] * 30),
    "one huge group.parquet": lambda p: groups(p, [400]),
    "uneven groups.parquet": lambda p: groups(p, [1, 200, 5, 5, 40, 1, 1, 90, 0, 2]),
    "rows.csv": lambda p: tiny.table(61).frame.to_csv(p, index=False),
    "rows.csv.gz": lambda p: tiny.table(61).frame.to_csv(p, index=False),
    "rows.npz": lambda p: np.savez(p, x=RANDOM.normal(size=(33, 4)), name=np.array([f"n{i}" for i in range(33)])),
    "images.npz": lambda p: np.savez(p, images=RANDOM.integers(0, 255, (33, 4, 5), np.uint8), label=np.arange(33)),
    "rows.npy": lambda p: np.save(p, RANDOM.normal(size=(33, 4)).astype(np.float32)),
    "images.npy": lambda p: np.save(p, RANDOM.integers(0, 255, (33, 4, 5), np.uint8)),
    "t10k-images-idx3-ubyte": idx,
    "images.idx.gz": idx,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("rows", "size"), [(10, 7), (50, 3), (1000, 1000)])
def test_partitions_together_are_the_file(tmp_path, name, rows, size):
    WRITERS[name](tmp_path / name)
    source = sources.open_source(tmp_path / name)
    parts = rows_of(source, rows, size)
    same(parts, [tmp_path / name])
    count = sum(map(len, parts))
    assert source.total in (count, None)
    assert (source.total is None) == (".csv" in name)  # which tells its rows only when they are read
    for limit in (1, rows, rows + 1, count - 1, count, count + 5):
        cut = source.limited(limit)
        assert sum(map(len, rows_of(cut, rows, size))) == min(limit, count)
        assert cut.total in (min(limit, count), None)
    ((file, head),) = source.heads()
    assert (file.name, len(head), head.text) == (name, 0, parts[0].text)
    assert [*head.frame.columns] == [*parts[0].frame.columns]
    if parts[0].images is not None:
        assert (head.images.shape[1:], head.images.dtype) == (parts[0].images.shape[1:], parts[0].images.dtype)


def test_a_file_without_rows_adds_nothing_and_only_such_files_are_no_input(tmp_path):
    whole = tiny.table(20).frame
    for name, rows in (("a", whole[:12]), ("b", whole[:0]), ("c", whole[12:]), ("d", whole[:0])):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    same(rows_of(sources.open_source(tmp_path), 5), [tmp_path / "a.csv", tmp_path / "c.csv"])
    for name, message in (("b.csv", r"b\.csv has no rows"), ("[bd].csv", rf"{tmp_path} has no rows")):
        with pytest.raises(FormatError, match=message):
            rows_of(sources.open_source(tmp_path / name), 5)


def test_columns_that_hold_the_same_are_the_same_however_they_are_stored(tmp_path):
    frame = tiny.table(40).frame[["customer", "age"]]
    notes = {
        "a": pd.Series(frame["customer"].array, dtype="category"),
        "b": frame["customer"],
        "c": pd.Series([None] * 40, dtype=object),
    }
    for name, note in notes.items():
        frame.assign(note=note).to_parquet(tmp_path / f"{name}.parquet")
    for first, other in itertools.permutations("abc", 2):
        names = [tmp_path / f"{first}.parquet", tmp_path / f"{other}.parquet"]
        (tmp_path / first / other).mkdir(parents=True)
        for number, name in enumerate(names):
            (tmp_path / first / other / f"{number}.parquet").write_bytes(name.read_bytes())
        source = sources.open_source(tmp_path / first / other)
        assert "null" not in str(source.fields.field("note").type)
        assert source.total == 80
    frame.assign(note=1).to_parquet(tmp_path / "a/b/2.parquet")
    frame.assign(more=None).to_parquet(tmp_path / "a/b/3.parquet")
    with pytest.raises(
        DataError, match=r"2\.parquet .*'note' is int64, not string; 3\.parquet .*'note' is missing, 'more' is new"
    ):
        sources.open_source(tmp_path / "a/b")


def test_an_index_with_a_name_is_a_column_whether_or_not_the_file_holds_its_values(tmp_path):
    frame = tiny.table(30).frame
    frame.rename_axis(index="id").to_parquet(tmp_path / "range.parquet")
    frame.set_index(np.arange(30) * 3 + 7).rename_axis(index="id").to_parquet(tmp_path / "steps.parquet")
    frame.set_index(np.arange(30) ** 2).rename_axis(index="id").to_parquet(tmp_path / "held.parquet")
    frame.set_index([pd.Index(range(30), name="id"), pd.Index(range(30))]).to_parquet(tmp_path / "half.parquet")
    frame.set_index([pd.Index(np.arange(30) ** 2, name="id"), frame["city"]]).rename_axis(["id", None]).to_parquet(
        tmp_path / "both.parquet"
    )
    ids = {"range": range(30), "steps": range(7, 97, 3), "half": range(30)}
    for name in ("range", "steps", "held", "half", "both"):
        path = tmp_path / f"{name}.parquet"
        found = formats.read(path).frame
        assert [*found] == ["id", *frame]
        assert found["id"].tolist() == [*ids.get(name, np.arange(30) ** 2)]
        for rows, size in ((7, 7), (7, 30), (30, 7), (30, 30)):
            same(rows_of(sources.open_source(path), rows, size), [path])
        (some,) = rows_of(sources.open_source(path), 30, 30, ("id", "age"))
        assert sorted(some.frame) == ["age", "id"]
        ((_, head),) = sources.open_source(path).heads()
        assert sorted(head.frame) == sorted(found)
    frame[:0].rename_axis(index="id").to_parquet(tmp_path / "empty.parquet")
    assert [*formats.parquet_header(tmp_path / "empty.parquet")] == ["id", *frame]
    # Files of one table that were joined by something else: what the index says holds for none of them.
    with pyarrow.parquet.ParquetWriter(
        tmp_path / "joined.parquet", pyarrow.parquet.read_schema(tmp_path / "range.parquet")
    ) as out:
        for _ in range(2):
            out.write_table(pyarrow.parquet.read_table(tmp_path / "range.parquet"))
    assert [*formats.read(tmp_path / "joined.parquet").frame] == [*frame]


def test_what_does_not_belong_to_the_input_is_known_behind_links_too(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("in", "out"):
        tiny.table(20).frame.to_csv(tmp_path / "real" / f"{name}.csv", index=False)
    for folder, output in itertools.product(("real", "link"), repeat=2):
        found = sources.open_source(tmp_path / folder, besides=[tmp_path / output / "out.csv"])
        assert [file.name for file in found.files] == ["in.csv"]
        assert found.locations() == {str(tmp_path / "real/in.csv")}


def test_files_behind_links_to_folders_belong_to_a_folder_each_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder/sub").mkdir(parents=True)
    tiny.table(20).frame.to_csv(tmp_path / "elsewhere/a.csv", index=False)
    tiny.table(20).frame.to_csv(tmp_path / "folder/sub/b.csv", index=False)
    (tmp_path / "folder/link").symlink_to("../elsewhere")
    (tmp_path / "folder/sub/up").symlink_to("..")
    (tmp_path / "folder/above").symlink_to("../..")
    (tmp_path / "folder/latest").symlink_to("sub")
    (tmp_path / "folder/same").symlink_to("../elsewhere")
    (tmp_path / "folder/latest.csv").symlink_to("sub/b.csv")
    (tmp_path / "folder/gone.csv").symlink_to("nowhere.csv")
    (tmp_path / "folder/.store").mkdir()
    tiny.table(20).frame.to_csv(tmp_path / "folder/.store/c.csv", index=False)
    (tmp_path / "folder/stored").symlink_to(".store")
    (tmp_path / "folder/stored.csv").symlink_to(".store/c.csv")
    found = sources.open_source(tmp_path / "folder")
    assert [file.name for file in found.files] == ["link/a.csv", "stored/c.csv", "stored.csv", "sub/b.csv"]


def test_a_name_that_is_no_text_is_refused(tmp_path):
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.csv")).write_text("a\n1\n")
    with pytest.raises(FormatError, match=r"names are no UTF-8, such as '.*caf\\udce9\.csv'; expected .*; rename it"):
        sources.open_source(tmp_path)


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        ("customer (no, old);city;age", ";"),
        ("\n  \ncity;age", ";"),
        ('"a;b;c;d",city', ","),
        ('date;"amount, EUR"', ";"),
        ('age;"income, total, ""net"", EUR"', ";"),
        ('"a, b"\t"c, d"', "\t"),
        (",".join(f"gene_{i:06d}" for i in range(15_000)), ","),
        ("a\tb, c\td", "\t"),
        ("city|age", "|"),
        ("city", ","),
    ],
)
def test_the_separator_is_what_makes_the_most_of_the_header(tmp_path, header, separator):
    (tmp_path / "rows.csv").write_text(f"{header}\n")
    assert formats.separator_of(tmp_path / "rows.csv", None) == separator


@pytest.mark.parametrize("name", ["many small groups.parquet", "uneven groups.parquet", "rows.csv", "images.npy"])
def test_the_first_rows_are_those_of_the_file(tmp_path, name):
    WRITERS[name](tmp_path / name)
    source = sources.open_source(tmp_path / name)
    found, images = joined(rows_of(source.limited(20), 8))
    whole, all_images = joined(rows_of(source, 8))
    pd.testing.assert_frame_equal(found, whole[:20])
    if images is not None:
        np.testing.assert_array_equal(images, all_images[:20])


def test_a_row_group_of_many_is_not_cut_unless_it_is_large(tmp_path):
    """To read from the middle of one is to read all before it."""
    groups(tmp_path / "rows.parquet", [10, 10, 10, 100, 1601, 30, 100, 100])
    parts = sources.open_source(tmp_path / "rows.parquet").partitions(100)
    assert [(p.first, p.rows) for p in parts] == [(0, 30), (30, 100), *((130 + 101 * i, 101) for i in range(15)), (1645, 86),
                                                  (1731, 30), (1761, 100), (1861, 100)]  # fmt: skip


def test_the_only_row_groups_are_cut_so_that_several_workers_have_something_to_do(tmp_path):
    path = groups(tmp_path / "rows.parquet", [1000])
    assert [p.rows for p in sources.open_source(path).partitions(100)] == [250] * 4
    assert [p.rows for p in sources.open_source(path).partitions(600)] == [500] * 2
    assert [p.rows for p in sources.open_source(path).partitions(1000)] == [1000]
    groups(path, [1000, 100, 300, 1000])
    assert [p.rows for p in sources.open_source(path).partitions(100)] == [500, 500, 100, 150, 150, 500, 500]
    for number in range(7):  # of many files each has a worker
        groups(tmp_path / f"more-{number}.parquet", [1000])
    assert [p.rows for p in sources.open_source(tmp_path).partitions(100)][:3] == [1000, 1000, 1000]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any),
    partition_rows=st.integers(1, 50),
    limit=st.none() | st.integers(1, 300),
    size=st.integers(1, 60),
)
def test_partitions_of_any_size_are_the_first_rows_of_any_file(tmp_path, counts, partition_rows, limit, size):
    path = groups(tmp_path / "rows.parquet", counts, pd.DataFrame({"n": np.arange(sum(counts))}))
    source = sources.open_source(path).limited(limit)
    found = rows_of(source, partition_rows, size)
    assert [n for part in found for n in part.frame["n"]] == [*range(min(limit or 1000, sum(counts)))]
    told = [(p.first, p.rows) for p in source.partitions(partition_rows)]
    assert [first for first, _ in told] == [0, *itertools.accumulate(rows for _, rows in told)][:-1]
    most = sources.MOST_IN_GROUP
    assert all(rows <= max(most * partition_rows, -(-max(counts) // most)) for _, rows in told)
    # To read from the middle of a row group is to read all before it, so few partitions begin there.
    starts = [0, *itertools.accumulate(counts)]
    assert all(sum(low < first < high for first, _ in told) < most for low, high in itertools.pairwise(starts))


def test_only_the_columns_that_are_wanted_are_read(tmp_path):
    groups(tmp_path / "rows.parquet", [30, 30])
    (part, *_) = rows_of(sources.open_source(tmp_path / "rows.parquet"), 100, columns=["age", "city"])
    assert {*part.frame} == {"age", "city"}


SEEDS = itertools.count()


def put(folder, *names, ending=".parquet"):
    """Write tables of 20 rows under these names, and return their paths."""
    paths = [folder / f"{name}{ending}" for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        formats.write(path, tiny.table(20, seed=next(SEEDS)).frame)
    return paths


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_folder_is_its_files_in_the_order_of_their_names_with_those_of_folders_in_it(tmp_path, ending):
    paths = put(tmp_path, "2026/b", "2026/a", "2025/z/deep", "first", ending=ending)
    (tmp_path / "README.md").write_text("of the user")
    source = sources.open_source(tmp_path)
    names = [f"2025/z/deep{ending}", f"2026/a{ending}", f"2026/b{ending}", f"first{ending}"]
    assert [file.name for file in source.files] == names
    same(rows_of(source, 30), [tmp_path / name for name in names])
    assert {*paths} == {file.path for file in source.files}
    assert all(len(part.files) == 1 for part in source.partitions(1000))  # a row's place is in one file


HIDDEN = [".hidden", "_SUCCESS", ".folder/a", "_temporary/a"]


def test_what_begins_with_a_dot_or_an_underscore_is_left_out_unless_it_is_named(tmp_path):
    put(tmp_path, "a", "under/b", *HIDDEN)
    for given_, names in {
        tmp_path: ["a", "under/b"],
        tmp_path / "**" / "*.parquet": ["a", "under/b"],
        tmp_path / "**": ["a", "under/b"],
        tmp_path / "*.parquet": ["a"],
        tmp_path / "*" / "*.parquet": ["under/b"],
        tmp_path / "u*" / "?.parquet": ["under/b"],
        tmp_path / "_*" / "*.parquet": ["_temporary/a"],
        tmp_path / ".h*": [".hidden"],
    }.items():
        source = sources.open_source(given_)
        assert [file.name for file in source.files] == [f"{name}.parquet" for name in names], given_
        same(rows_of(source, 15), [file.path for file in source.files])


def test_a_pattern_is_named_from_the_first_folder_that_is_no_pattern(tmp_path, monkeypatch):
    put(tmp_path, "year/2025/a", "year/2026/a", "year/2026/b")
    monkeypatch.chdir(tmp_path)
    for given_ in ("year/*/a.parquet", str(tmp_path / "year" / "*" / "a.parquet")):
        source = sources.open_source(given_)
        assert [file.name for file in source.files] == ["2025/a.parquet", "2026/a.parquet"]
    assert [file.name for file in sources.open_source("year/2026/[!b].parquet").files] == ["a.parquet"]
    # A file whose own name looks like a pattern is that file.
    put(tmp_path, "year/[!b]")
    assert [file.name for file in sources.open_source("year/[!b].parquet").files] == ["[!b].parquet"]


def test_an_output_inside_the_folder_does_not_belong_to_it(tmp_path):
    put(tmp_path, "a", "out/part-00000")
    source = sources.open_source(tmp_path, besides=[tmp_path / "out"])
    assert [file.name for file in source.files] == ["a.parquet"]


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        (
            "mixed",
            FormatError,
            r"files of several kinds: \.csv \(b\.csv\), \.parquet \(a\.parquet\); expected one; name ",
        ),
        ("mixed/*", FormatError, r"files of several kinds"),
        ("none", FormatError, "holds no images and no tables; expected files ending in"),
        ("none/*.parquet", FileNotFoundError, r"no file matches .*; check the pattern"),
        ("nowhere/*.parquet", FileNotFoundError, "nowhere does not exist, which .* begins with; check the path"),
        ("nowhere", FileNotFoundError, "does not exist; check the path"),
        ("mixed/**.parquet", FormatError, r"is no pattern: .*; expected such as 'sales/\*\*/\*\.parquet'"),
        ("none/notes.md", FormatError, "unknown kind of file"),
    ],
)
def test_what_cannot_be_one_input_is_refused(tmp_path, given_, error, message):
    put(tmp_path / "mixed", "a")
    put(tmp_path / "mixed", "b", ending=".csv")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.md").write_text("of the user")
    with pytest.raises(error, match=message):
        sources.open_source(tmp_path / given_)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".npz"])
def test_tables_of_different_columns_are_refused_by_file_and_column(tmp_path, ending):
    frame = tiny.table(9).frame.astype({"vip": str})
    formats.write(tmp_path / f"a{ending}", frame)
    formats.write(tmp_path / f"b{ending}", frame[[*frame.columns][::-1]])  # the order is free
    assert len(sources.open_source(tmp_path).files) == 2
    formats.write(tmp_path / f"c{ending}", frame.drop(columns="age"))
    formats.write(tmp_path / f"d{ending}", frame.assign(note="new"))
    with pytest.raises(DataError, match="expected one table; convert them, or run a job for each") as failure:
        sources.open_source(tmp_path)
    told = [problem.replace(ending, "") for problem in failure.value.problems[:-1]]
    assert told == ["c has other columns than a: 'age' is missing", "d has other columns than a: 'note' is new"]


def test_parquet_columns_of_another_type_are_refused(tmp_path):
    frame = tiny.table(9).frame
    formats.write(tmp_path / "a.parquet", frame)
    formats.write(tmp_path / "b.parquet", frame.astype({"age": float}))
    with pytest.raises(DataError, match=r"b\.parquet has other columns than a\.parquet: 'age' is double, not int64"):
        sources.open_source(tmp_path)


def test_files_without_rows_among_others_do_no_harm_and_alone_are_an_error(tmp_path):
    frame = tiny.table(20).frame
    for name, part in (("a", frame[:0]), ("b", frame), ("c", frame[:0])):
        formats.write(tmp_path / f"{name}.parquet", part)
    same(rows_of(sources.open_source(tmp_path), 15), [tmp_path / "b.parquet"])
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(FormatError, match="has no rows; expected at least one"):
        sources.open_source(tmp_path)


def pictures(folder, images):
    for name, pixels in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name, **({"lossless": True} if name.endswith(".webp") else {}))


def pixels(*shape, kind=np.uint8):
    return RANDOM.integers(0, np.iinfo(kind).max, shape, kind)


def test_images_of_several_sizes_and_types_come_in_order_with_those_alike_together(tmp_path):
    images = {
        "0.png": pixels(8, 6),
        "1.png": pixels(8, 6),
        "2.png": pixels(8, 6, 3),
        "3.tif": pixels(5, 9),
        "4.png": pixels(5, 9, kind=np.uint16),
        "5.webp": pixels(8, 6, 3),
        "6.bmp": pixels(8, 6),
    }
    pictures(tmp_path, images)
    source = sources.open_source(tmp_path)
    assert (source.kind, source.total) == ("images", 7)
    found = rows_of(source, 1)
    assert [part.frame["path"].tolist() for part in found] == [["0.png", "1.png"], *([n] for n in [*images][2:])]
    for part in found:
        assert [*part.frame] == ["path"]
        for name, image in zip(part.frame["path"], part.images, strict=True):
            assert image.dtype == images[name].dtype
            np.testing.assert_array_equal(image, images[name])
    # Of those alike one head tells.
    heads = [(file.name, rows.images.shape[1:], rows.images.dtype) for file, rows in source.heads()]
    assert heads == [
        ("0.png", (8, 6), np.uint8),
        ("2.png", (8, 6, 3), np.uint8),
        ("3.tif", (5, 9), np.uint8),
        ("4.png", (5, 9), np.uint16),
    ]


def test_sub_folders_are_labels_of_images_in_every_partition(tmp_path, monkeypatch):
    names = [*(f"{i}.png" for i in range(3)), *(f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(7))]
    pictures(tmp_path, {name: pixels(8, 6) for name in names})
    monkeypatch.setattr(sources, "MOST_PIXELS", 2 * 48)
    source = sources.open_source(tmp_path)
    assert [part.rows for part in source.partitions(1000)] == [2] * 8 + [1]
    same(rows_of(source, 1000), [tmp_path])
    for limit in (1, 2, 5, 17):
        frame, _ = joined(rows_of(source.limited(limit), 1000))
        assert frame["path"].tolist() == sorted(names)[:limit]
        assert "label" in frame  # and so in an output of the first rows, as in one of all
    frame, _ = joined(rows_of(sources.open_source(tmp_path / "*" / "1.png"), 1000))
    assert frame["label"].tolist() == ["cat", "dog"]


def test_one_image_is_an_input(tmp_path):
    pictures(tmp_path, {"cat/1.png": pixels(8, 6), "cat/2.png": pixels(8, 6)})
    source = sources.open_source(tmp_path / "cat" / "2.png")
    ((part,),) = ([*p.batches(10)] for p in source.partitions(10))
    assert part.frame.to_dict("list") == {"path": ["2.png"]}
    assert part.images.shape == (1, 8, 6)


def test_a_large_image_is_a_partition_by_itself(tmp_path, monkeypatch):
    pictures(tmp_path, {f"{i}.png": pixels(40 if i == 3 else 4, 5) for i in range(9)})
    monkeypatch.setattr(sources, "MOST_PIXELS", 100)
    parts = sources.open_source(tmp_path).partitions(1)
    assert [[file.name for file in part.files] for part in parts] == [
        ["0.png", "1.png", "2.png"],
        ["3.png"],
        ["4.png", "5.png", "6.png", "7.png", "8.png"],
    ]


def test_a_file_says_what_has_happened_to_it_since(tmp_path):
    put(tmp_path, "a", "b", "c")
    source = sources.open_source(tmp_path)
    assert source.changed() == []
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "b.parquet").write_bytes(b"short")
    (tmp_path / "c.parquet").touch()
    assert [change.removeprefix(str(tmp_path)) for change in source.changed()] == [
        "/a.parquet is gone",
        f"/b.parquet had {source.files[1].size:,} bytes and has 5",
        "/c.parquet was written to",
    ]


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path):
    put(tmp_path, "a", "b")
    source = sources.open_source(tmp_path)
    digests = {file.name: files.digest(file.path) for file in source.files}
    assert source.digest_of(digests) == files.digest(tmp_path)
    one = sources.open_source(Path(tmp_path, "a.parquet"))
    assert one.digest_of(digests) == digests["a.parquet"]
