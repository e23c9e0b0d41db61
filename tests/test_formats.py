"""Every format reads whole and in batches alike, and says in one sentence what is wrong with a file that it cannot read."""

import gzip
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sevenfold import formats
from sevenfold.formats import FormatError


def frame(n=20):
    r = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "size": r.normal(size=n),
            "count": r.integers(-5, 5, n),
            "city": np.where(np.arange(n) % 3, "Kyoto", "Lima"),
            "open": np.arange(n) % 2 == 0,
        }
    )


def idx(array):
    """Write LeCun's format by its description."""
    code = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}[array.dtype.name]
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


IMAGES = np.random.default_rng(1).integers(0, 256, (7, 4, 3)).astype(np.uint8)
COLOUR = np.random.default_rng(2).integers(0, 256, (7, 4, 3, 3)).astype(np.uint8)
LABELS = np.arange(7) % 2


def folder(path, labelled=True, images=IMAGES):
    for i, image in enumerate(images):
        file = path / (("cat" if i < 3 else "dog") if labelled else "") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def write_csv(path):
    frame().to_csv(path, index=False)


WRITERS = {
    "t.csv": write_csv,
    "T.CSV": write_csv,
    "t.csv.gz": write_csv,
    "t.parquet": lambda p: frame().to_parquet(p, row_group_size=6),
    "t.npz": lambda p: np.savez(p, x=np.eye(5), label=np.arange(5), name=np.array(list("abcde"))),
    "images.npz": lambda p: np.savez(p, images=COLOUR, label=LABELS),
    "t.npy": lambda p: np.save(p, np.eye(5)),
    "images.npy": lambda p: np.save(p, IMAGES),
    "t10k-images-idx3-ubyte": lambda p: p.write_bytes(idx(IMAGES)),
    "t10k-images.idx3-ubyte.gz": lambda p: p.write_bytes(gzip.compress(idx(IMAGES))),
    "t.idx": lambda p: p.write_bytes(idx(np.random.default_rng(3).normal(size=(5, 2)).astype(np.float32))),
    "folder": folder,
    "plain folder": lambda p: folder(p, labelled=False),
}


@pytest.fixture(params=WRITERS)
def path(request, tmp_path):
    path = tmp_path / request.param
    WRITERS[request.param](path)
    return path


def together(parts):
    parts = list(parts)
    images = None if parts[0].images is None else np.concatenate([p.images for p in parts])
    return formats.Rows(pd.concat([p.frame for p in parts], ignore_index=True), images)


def equal(one, other):
    pd.testing.assert_frame_equal(one.frame, other.frame)
    assert (one.images is None) == (other.images is None)
    if one.images is not None:
        assert one.images.dtype == other.images.dtype
        np.testing.assert_array_equal(one.images, other.images)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_batches_are_the_rows_of_the_file_in_order_and_number_them_from_0(path, size):
    whole, parts = formats.read(path), list(formats.batches(path, size))
    if parts[0].text:  # only a schema knows what is a number
        assert together(parts).frame.to_csv() == whole.frame.to_csv()
    else:
        equal(together(parts), whole)
    assert all(len(p) <= size for p in parts)
    assert all(p.frame.index.equals(pd.RangeIndex(len(p))) for p in [whole, *parts])


def test_each_format_gives_what_was_written(tmp_path):
    def read(name):
        WRITERS[name](tmp_path / name)
        return formats.read(tmp_path / name)

    for name in ("t.csv", "t.csv.gz", "t.parquet"):
        pd.testing.assert_frame_equal(read(name).frame, frame())
    wanted = pd.DataFrame(np.eye(5), columns=[f"x_{i}" for i in range(5)])
    pd.testing.assert_frame_equal(read("t.npy").frame, wanted)
    pd.testing.assert_frame_equal(read("t.npz").frame, wanted.assign(label=np.arange(5), name=list("abcde")))
    np.testing.assert_array_equal(read("images.npz").images, COLOUR)
    for name in ("images.npy", "t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz", "plain folder", "folder"):
        np.testing.assert_array_equal(read(name).images, IMAGES)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "int32", "float32", "float64"])
def test_idx_files_of_every_type_read_in_the_machines_own_byte_order(kind, tmp_path):
    values = np.random.default_rng(0).normal(0, 50, (3, 2, 2)).astype(kind)
    (tmp_path / "a.idx").write_bytes(idx(values))
    got = formats.read(tmp_path / "a.idx").images
    assert got.dtype == values.dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("name", ["images.npy", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("labels", ["labels.npy", "labels-idx1-ubyte.gz"])
def test_labels_come_from_a_second_file(name, labels, tmp_path):
    WRITERS[name](tmp_path / name)
    if labels.endswith(".npy"):
        np.save(tmp_path / labels, LABELS)
    else:
        (tmp_path / labels).write_bytes(gzip.compress(idx(LABELS.astype(np.uint8))))
    whole = formats.read(tmp_path / name, labels=labels)
    np.testing.assert_array_equal(whole.frame["label"], LABELS)
    equal(together(formats.batches(tmp_path / name, 2, labels=labels)), whole)


def test_folders_give_labels_and_paths_and_leave_hidden_files_alone(tmp_path):
    folder(tmp_path / "f")
    (tmp_path / "f" / "cat" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "f" / ".thumbnails").mkdir()
    (tmp_path / "f" / ".thumbnails" / "0.png").write_bytes(b"")
    (tmp_path / "f" / "notes.txt").write_text("not an image")
    Image.fromarray(IMAGES[0]).save(tmp_path / "f" / "loose.png")
    rows = formats.read(tmp_path / "f")
    assert rows.frame["label"].dropna().tolist() == ["cat"] * 3 + ["dog"] * 4
    assert rows.frame.loc[rows.frame["label"].isna(), "path"].tolist() == ["loose.png"]
    assert rows.frame["path"][0] == "cat/0.png"


@pytest.mark.parametrize(("mode", "shape"), [("1", (4, 3)), ("L", (4, 3)), ("RGB", (4, 3, 3)), ("RGBA", (4, 3, 4))])
def test_images_of_every_mode_keep_their_channels(mode, shape, tmp_path):
    image = Image.fromarray(COLOUR[0]).convert(mode)
    image.save(tmp_path / "a.png")
    got = formats.read(tmp_path).images[0]
    assert got.shape == shape
    np.testing.assert_array_equal(got, np.asarray(image))


def test_an_image_with_a_palette_gives_its_colours_and_not_their_numbers(tmp_path):
    Image.fromarray(COLOUR[0]).quantize(4).save(tmp_path / "a.png")
    got = formats.read(tmp_path).images[0]
    np.testing.assert_array_equal(got, np.asarray(Image.open(tmp_path / "a.png").convert("RGB")))


# The cells of a CSV file, and the types of other columns, which are those of the whole file.

CELLS = pd.DataFrame(
    {
        "pid": ["00000", "00001", "1e3"],
        "country": ["NA", "None", "null"],
        "price": ["1.50", "", "12345678901234567890"],
        "open": ["TRUE", "nan", " x, y "],
    }
)


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_the_cells_of_a_csv_file_come_in_batches_as_the_text_they_are(name, size, tmp_path):
    CELLS.to_csv(tmp_path / name, index=False)
    parts = list(formats.batches(tmp_path / name, size))
    assert all(part.text and (part.frame.dtypes == "str").all() for part in parts)
    assert all(part.frame.index.equals(pd.RangeIndex(len(part))) for part in parts)
    pd.testing.assert_frame_equal(together(parts).frame.fillna(""), CELLS.astype("str"))
    assert together(parts).frame.isna().to_numpy().sum() == 1
    formats.write(tmp_path / f"again {name[:5]}", together(parts).frame)
    assert (tmp_path / f"again {name[:5]}").read_text() == CELLS.to_csv(index=False)


def test_only_the_empty_field_is_a_gap_and_whatever_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("country,size\nNA,1\nDE,\nnull,?\nDE,4\n")
    rows = formats.read(path)
    assert rows.frame["country"].tolist() == ["NA", "DE", "null", "DE"]
    assert rows.frame["size"].fillna("gap").tolist() == ["1", "gap", "?", "4"]
    assert (rows.gaps, rows.text) == ((), False)
    rows = formats.read(path, gaps=("?", "NA"))
    assert rows.frame["country"].fillna("gap").tolist() == ["gap", "DE", "null", "DE"]
    np.testing.assert_array_equal(rows.frame["size"], [1, np.nan, np.nan, 4])
    assert rows.take(np.array([0])).gaps == ("?", "NA")


ODD = {
    "quotes": 'a,b\n"x, y","say ""so"""\n5" pipe,"two\nlines"\n"","q"x\n',
    "blank lines": "\na,b\n\n1,2\n   \n\n3,4\n",
    "short rows": "a,b,c\n1,2,3\n4\n5,6\n",
    "no name": "a,,c\n1,2,3\n4,5,6\n",
    "windows": 'a,b\r\n1,"x\r\ny"\r\n,\r\n',
    "old mac": "a,b\r1,2\r3,4\r",
    "no end of line": "a,b\n1,2\n3,",
    "one column": "a\n1\n\n  \n2\n",
    "byte order mark": "\ufeffa,b\n1,2\n",
    "blanks": "a,b\n x ,  \n\t,NA\n",
    "long": "a,b\n" + "\n".join(f"{i},{'x' * 9000}" for i in range(1200)),
    "short at the end": "a,b\n" + "1,2\n" * 50_000 + "3\n" + "4,5\n" * 10,
    "a row as long as a block": "a,b\n1,2\n" + f"{'x' * (9 << 20)},3\n4,5\n",
    "other separator": "a;b\n1,5;2\n",
    "accents": "größe,b\nüber,ß\n",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
@pytest.mark.parametrize("zipped", [False, True])
def test_odd_csv_files_are_read_as_pandas_reads_them(text, zipped, tmp_path):
    path = tmp_path / ("t.csv.gz" if zipped else "t.csv")
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    separator = ";" if ";" in text else ","
    wanted = pd.read_csv(path, dtype="str", sep=separator, keep_default_na=False, na_values=[""], index_col=False)
    for size in (2, 7000):
        if len(text) > 100_000 and size < 100:
            continue
        parts = list(formats.batches(path, size))
        assert [len(p) for p in parts[:-1]] == [size] * (len(parts) - 1)
        assert all(part.text for part in parts)
        pd.testing.assert_frame_equal(together(parts).frame, wanted)


CUT = {
    "two of three": ("a,b,c\n1,2,3\n4,5", "'4,5', has 2 of 3 values and no end of line"),
    "windows": ("a,b,c\r\n1,2,3\r\n4", "'4', has 1 of 3 values"),
    "other separator": ("a;b;c\n1;2;3\n4,5;6", "'4,5;6', has 2 of 3 values"),
    "within a letter": ("a,b\n1,2\n\udcc3", "has 1 of 2 values"),
}


@pytest.mark.parametrize(("text", "message"), CUT.values(), ids=CUT)
def test_a_csv_file_that_ends_within_a_row_is_refused_before_its_first_row(text, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for act in (lambda: formats.read(path), lambda: next(formats.batches(path, 1)), lambda: formats.csv_header(path)):
        with pytest.raises(formats.FormatError, match=f"a.csv ends within a row: its last line, .*{message}"):
            act()
    # The same is a row with a gap where its line has an end.
    if "\udcc3" not in text:
        path.write_text(f"{text}\n")
        assert formats.read(path).frame.iloc[-1].isna().any()


def test_a_line_of_blanks_or_the_end_of_a_quoted_text_is_no_row_that_was_cut(tmp_path):
    path = tmp_path / "a.csv"
    for text, rows in (
        ("a,b\n1,2\n  ", 1),
        ('a,b\n1,"x\ny"', 1),
        ("a\n1", 1),
        ("a,b\n1,", 1),
        ("a,b,\n1,2,\n3,4", 2),
    ):
        path.write_text(text)
        assert len(formats.read(path)) == rows, text


def test_a_long_csv_column_is_not_numbers_in_one_piece_and_text_in_another(tmp_path):
    path = tmp_path / "a.csv"
    header, row = ",".join(f"c{i}" for i in range(32)), ",".join(["007"] * 32)  # pandas takes 2**20 values at a time
    path.write_text(f"{header}\n" + f"{row}\n" * 40_000 + f"x{row}\n")
    values = formats.read(path).frame["c0"]
    assert values.iloc[0] == values.iloc[39_999] == "007"


def test_a_parquet_column_has_one_type_wherever_its_gaps_are(tmp_path):
    gaps = pd.DataFrame(
        {
            "n": pd.array([1, 2, None, 4], dtype="Int64"),
            "open": pd.array([True, False, None, True], dtype="boolean"),
            "name": ["a", "b", None, "d"],
            "day": pd.to_datetime(["2020-01-01", None, "2020-01-03", "2020-01-04"]),
        }
    )
    nullable, plain = tmp_path / "nullable.parquet", tmp_path / "plain.parquet"
    gaps.to_parquet(nullable)
    import pyarrow.parquet

    # As other programs write it: without the types that pandas notes down.
    pyarrow.parquet.write_table(pyarrow.Table.from_pandas(gaps).replace_schema_metadata(), plain)
    for path in (nullable, plain):
        whole = formats.read(path)
        for part in formats.batches(path, 1):
            assert part.frame.dtypes.equals(whole.frame.dtypes)
        equal(together(formats.batches(path, 1)), whole)
    assert formats.read(nullable).frame["n"].dtype == "Int64"
    assert formats.read(plain).frame["n"].dtype == "Int64"


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integers_with_gaps_are_not_rounded_on_their_way_through_any_format(kind, tmp_path):
    import pyarrow.parquet

    values = [int(np.iinfo(kind).max), None, int(np.iinfo(kind).min)]
    table = pyarrow.table({"n": pyarrow.array(values, getattr(pyarrow, kind)())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = formats.read(tmp_path / "a.parquet")
    assert [None if pd.isna(v) else int(v) for v in rows.frame["n"]] == values
    equal(together(formats.batches(tmp_path / "a.parquet", 1)), rows)
    for suffix in formats.OUTPUT_SUFFIXES:
        formats.write(tmp_path / f"b{suffix}", rows.frame)
    assert pyarrow.parquet.read_table(tmp_path / "b.parquet").equals(table.replace_schema_metadata())
    assert (tmp_path / "b.csv").read_text().split("\n") == ["n", str(values[0]), '""', str(values[2]), ""]
    with np.load(tmp_path / "b.npz") as archive:
        assert archive["n"].tolist() == [str(values[0]), "", str(values[2])]


def test_an_index_with_a_name_is_a_column_and_names_are_text(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({0: [1.0, 2.0, 3.0]}, index=pd.Index(["x", "y", "z"], name="customer")).to_parquet(path)
    rows = formats.read(path)
    assert rows.frame.columns.tolist() == ["customer", "0"]
    assert rows.frame["customer"].tolist() == ["x", "y", "z"]
    equal(together(formats.batches(path, 2)), rows)
    pd.DataFrame({"a": [1, 2]}, index=[7, 9]).to_parquet(path)  # without a name it says nothing
    assert formats.read(path).frame.columns.tolist() == ["a"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_in_the_header(separator, tmp_path):
    frame().to_csv(tmp_path / "a.csv", sep=separator, index=False)
    pd.testing.assert_frame_equal(formats.read(tmp_path / "a.csv").frame, frame())


def test_one_column_and_a_given_separator_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("speed\n1\n2\n")
    assert formats.read(path).frame["speed"].tolist() == [1, 2]
    path.write_text("a,b:c\n1:2\n")
    assert formats.read(path, separator=":").frame.columns.tolist() == ["a,b", "c"]
    path.write_text("a  b\n1 2\n")
    assert formats.read(path, separator=r"\s+").frame.columns.tolist() == ["a", "b"]
    path.write_text("a,c\tb\n1\t2\n")
    assert formats.read(path, separator=r"\t").frame.columns.tolist() == ["a,c", "b"]
    with pytest.raises(
        FormatError, match=r"separator is '::'; expected one character, \\t for a tab, or \\s\+ for white space"
    ):
        formats.read(path, separator="::")
    path.write_text("a,b\n1,2,\n3,4,\n")  # a separator after the last value is common, and no value
    assert formats.read(path).frame.to_numpy().tolist() == [[1, 2], [3, 4]]
    path.write_bytes("\ufeffa,b\n1,2\n".encode())
    assert formats.read(path).frame.columns.tolist() == ["a", "b"]


def test_a_batch_of_an_npy_file_does_not_take_the_memory_of_the_whole(tmp_path):
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(100_000, 64, 64)).flush()  # 400 MB, and sparse
    tracemalloc.start()
    first = next(formats.batches(path, 10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first.images.shape == (10, 64, 64)
    assert peak < 10e6


# What cannot be read.


def test_a_missing_file_is_named():
    for read in (formats.read, lambda p: next(formats.batches(p, 5))):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist; check the path, or `dvc pull`"):
            read(formats.Path("nowhere.csv"))


def test_a_file_of_unknown_kind_is_refused_with_the_kinds_there_are(tmp_path):
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"PK")
    for read in (formats.read, lambda p: next(formats.batches(p, 5))):
        with pytest.raises(FormatError, match=r"unknown kind of file '\.xlsx'; expected \.csv, \.parquet, \.npz"):
            read(path)


DAMAGED = {
    "t.csv.gz": "cannot be read as CSV",
    "t.parquet": "cannot be read as Parquet",
    "t.npz": "cannot be read as npz",
    "t.npy": "cannot be read as npy",
    "t10k-images-idx3-ubyte": r"holds 60 bytes of values; its header \(7, 4, 3\) wants 84; it is truncated",
    "t10k-images.idx3-ubyte.gz": "cannot be read as IDX",
}


@pytest.mark.parametrize(("name", "message"), DAMAGED.items(), ids=DAMAGED)
@pytest.mark.parametrize("way", ["read", "batches"])
def test_a_truncated_file_is_named(name, message, way, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    path.write_bytes(path.read_bytes()[:-24])
    with pytest.raises(FormatError, match=f"{re.escape(str(path))} {message}"):
        formats.read(path) if way == "read" else list(formats.batches(path, 2))


@pytest.mark.parametrize(("name", "title"), [(k.suffix, k.title) for k in formats._KINDS])
def test_a_file_that_is_something_else_than_its_name_says_is_named(name, title, tmp_path):
    path = tmp_path / f"a{name}"
    path.write_bytes(b"\x89PNG\xff\xfe\x00" * 5)
    with pytest.raises(FormatError, match=r"a\.(csv is not text in UTF-8|\w+ cannot be read as|idx is no IDX file)"):
        formats.read(path)
    with pytest.raises(FormatError, match=re.escape(str(path))):
        list(formats.batches(path, 2))


def save(name, **arrays):
    return lambda p: np.savez(p / name, **arrays)


BROKEN = {
    "header only": ("a.csv", lambda p: p.write_text("a,b\n"), "has no rows; expected at least one"),
    "empty text": ("a.csv", lambda p: p.write_text(""), "cannot be read as CSV: No columns to parse"),
    "one long row": (
        "a.csv",
        lambda p: p.write_text("a,b\n1,2,3\n4,5\n"),
        "more values than the header has names; .*mend the header",
    ),
    "long rows": (
        "a.csv",
        lambda p: p.write_text("a,b\n1,2,3\n4,5,6\n"),
        "more values than the header has names; expected as many; mend",
    ),
    "ragged rows": ("a.csv", lambda p: p.write_text("a,b\n1,2\n4,5,6\n"), "cannot be read as CSV: .*Expected 2 fields"),
    "no header": (
        "a.csv",
        lambda p: p.write_text("1.5,2,Lima\n2,3,Oslo\n"),
        r"in place of 2 of 3 names the header has a number or nothing \('1\.5', '2'\); expected the columns' names; add a header line",
    ),
    "no header, with gaps": (
        "a.csv",
        lambda p: p.write_text("Lima;;2\nOslo;1;2\n"),
        r"in place of 2 of 3 names .*\('', '2'\)",
    ),
    "no header, one column": ("a.csv", lambda p: p.write_text("7\n8\n"), "in place of 1 of 1 names"),
    "doubled header": (
        "a.csv",
        lambda p: p.write_text('\ufeffa,a,c,"b, c","b, c"\n1,2,3,4,5\n'),
        "the header has 'a', 'b, c' more than once; expected each name once; rename or remove a column",
    ),
    "open quote": ("a.csv", lambda p: p.write_text('a,b\n1,"2\n3,4\n'), "cannot be read as CSV: .*inside string"),
    "other encoding": (
        "a.csv",
        lambda p: p.write_bytes("a,b\n1,Zürich\n".encode("latin-1")),
        "not text in UTF-8.*save it as UTF-8",
    ),
    "no rows": ("a.parquet", lambda p: frame(0).to_parquet(p), "has no rows"),
    "no images": ("a.npy", lambda p: np.save(p, np.zeros((0, 2, 2))), "has no rows"),
    "pickle": (
        "a.npy",
        lambda p: np.save(p, np.array([{}], dtype=object)),
        "cannot be read as npy: .*(allow_pickle=False|Python objects)",
    ),
    "one number": ("a.npy", lambda p: np.save(p, np.float64(3)), r"expected vectors, matrices .* got 'x' \(\)"),
    "five axes": (
        "a.npz",
        lambda p: np.savez(p, v=np.zeros((2, 2, 2, 2, 2))),
        r"at most one array of images .*got 'v' \(2, 2",
    ),
    "two image sets": (
        "a.npz",
        lambda p: np.savez(p, a=IMAGES, b=COLOUR),
        r"at most one array of images .*'a' .7.*'b' .7",
    ),
    "text images": (
        "a.npz",
        lambda p: np.savez(p, a=np.full((2, 2, 2), "x")),
        "expected images of numbers; got 'a' of type <U1",
    ),
    "lengths": (
        "a.npz",
        lambda p: np.savez(p, a=IMAGES, y=np.arange(3)),
        "different lengths {'a': 7, 'y': 3}; expected one row per",
    ),
    "one name twice": (
        "a.npz",
        lambda p: np.savez(p, a=np.eye(2), a_1=np.arange(2)),
        "two arrays give the column a_1; rename one",
    ),
    "nothing": ("a.npz", lambda p: np.savez(p), "has no rows"),
    "no idx": ("a.idx", lambda p: p.write_bytes(b"\0\1\2\3\4"), "is no IDX file: it begins with '00 01 02 03'"),
    "cut header": ("a.idx", lambda p: p.write_bytes(b"\0\0\x08\3\0\0"), "cannot be read as IDX"),
    "absurd sizes": ("a.idx", lambda p: p.write_bytes(b"\0\0\x08\3" + b"\xff" * 12), "it is truncated"),
    "long idx": (
        "a.idx",
        lambda p: p.write_bytes(idx(IMAGES) + b"more"),
        r"88 bytes of values; its header \(7, 4, 3\) wants 84; .*damaged",
    ),
    "empty folder": ("f", lambda p: p.mkdir(), r"holds no images; expected files ending in \.bmp, \.jpeg"),
}


@pytest.mark.parametrize(("name", "make", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("way", ["read", "batches"])
def test_what_is_wrong_with_a_file_is_said(name, make, message, way, tmp_path):
    path = tmp_path / name
    make(path)
    with pytest.raises(FormatError, match=f"{re.escape(str(path))}.*{message}"):
        formats.read(path) if way == "read" else list(formats.batches(path, 1))


def test_all_damaged_images_of_a_folder_are_named(tmp_path):
    folder(tmp_path / "f")
    (tmp_path / "f" / "cat" / "0.png").write_bytes((tmp_path / "f" / "cat" / "0.png").read_bytes()[:-30])
    (tmp_path / "f" / "dog" / "5.png").write_bytes(b"no image")
    with pytest.raises(
        FormatError, match=r"2 of 7 images cannot be read: cat/0\.png \(.+\), dog/5\.png .*mend or remove"
    ):
        formats.read(tmp_path / "f")


@pytest.mark.parametrize(
    ("other", "says"),
    [(Image.new("L", (9, 4)), "L 9x4"), (Image.new("RGB", (3, 4)), "RGB 3x4")],
)
def test_images_of_another_size_or_mode_are_counted_and_named(other, says, tmp_path):
    folder(tmp_path / "f")
    other.save(tmp_path / "f" / "dog" / "odd.png")
    with pytest.raises(
        FormatError,
        match=rf"1 of 8 images differ from the others, which are L 3x4 \(first: dog/odd\.png is {says}\); .*resize",
    ):
        formats.read(tmp_path / "f")


def test_labels_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, IMAGES)
    np.save(tmp_path / "short.npy", LABELS[:3])
    np.save(tmp_path / "wide.npy", np.eye(7))
    (tmp_path / "text.csv").write_text("a\n1\n")
    for read in (formats.read, lambda p, **o: list(formats.batches(p, 2, **o))):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.npy does not exist"):
            read(path, labels="nowhere.npy")
        with pytest.raises(FormatError, match=r"different lengths \{'x': 7, 'label': 3\}"):
            read(path, labels="short.npy")
        with pytest.raises(FormatError, match=r"wide\.npy has shape \(7, 7\); expected one label per row"):
            read(path, labels="wide.npy")
        with pytest.raises(FormatError, match=r"text\.csv: labels can be in an IDX or a \.npy file; convert them"):
            read(path, labels="text.csv")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("t.csv", {"labels": "labels.npy"}, "CSV has no option labels; leave it out"),
        ("t.parquet", {"separator": ";", "gaps": ["NA"]}, "Parquet has no option separator, gaps; leave it out"),
        ("folder", {"gaps": ["NA"]}, "a folder of images has no option gaps"),
    ],
)
def test_an_option_that_a_format_does_not_know_is_refused(name, options, message, tmp_path):
    WRITERS[name](tmp_path / name)
    for read in (formats.read, lambda p, **o: list(formats.batches(p, 2, **o))):
        with pytest.raises(FormatError, match=f"{name}: {message}"):
            read(tmp_path / name, **options)


def test_a_few_odd_names_are_no_missing_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",a,2020,b,c\n0,1,2,3,4\n")
    assert formats.read(path).frame.columns.tolist() == ["Unnamed: 0", "a", "2020", "b", "c"]


def test_rows_keep_images_and_columns_together():
    with pytest.raises(FormatError, match="7 images but 3 rows beside them; expected as many"):
        formats.Rows(pd.DataFrame(index=range(3)), IMAGES)
    taken = formats.Rows(pd.DataFrame({"i": range(7)}), IMAGES).take(np.array([4, 2]))
    assert taken.frame["i"].tolist() == [4, 2]
    np.testing.assert_array_equal(taken.images, IMAGES[[4, 2]])


def test_the_shortest_ending_is_one_that_reads_the_file_again(path):
    again = path.with_name(f"copy{formats.suffix(path)}")
    path.rename(again)
    assert len(formats.read(again)) > 1


# Writing.


@pytest.mark.parametrize("suffix", formats.OUTPUT_SUFFIXES)
def test_frames_written_one_after_the_other_come_back(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    writer = formats.Writer(path)
    for part in (frame().iloc[:6], frame().iloc[6:]):
        writer.write(formats.Rows(part))
    writer.close()
    pd.testing.assert_frame_equal(formats.read(path).frame, frame())
    formats.write(path, frame())
    pd.testing.assert_frame_equal(formats.read(path).frame, frame())


def test_images_go_into_an_npz_file_with_what_is_known_of_each_and_into_no_table(tmp_path):
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    writer = formats.Writer(tmp_path / "out.npz")
    for rows in (slice(0, 2), slice(2, 5)):
        writer.write(formats.Rows(pd.DataFrame({"taken": [*range(rows.start, rows.stop)]}), pixels[rows]))
    writer.close()
    again = formats.read(tmp_path / "out.npz")
    assert np.array_equal(again.images, pixels)
    assert again.frame["taken"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(formats.FormatError, match=r"out.csv is to hold images; expected a name that ends in .npz"):
        formats.Writer(tmp_path / "out.csv").write(again)


def test_npz_output_needs_no_pickle_whatever_the_columns_are_called_and_hold(tmp_path):
    odd = pd.DataFrame(
        {
            "file": pd.array([1, None], dtype="Int64"),
            "allow_pickle": ["a", None],
            "open": pd.array([True, None], dtype="boolean"),
            "part": pd.Categorical(["x", "y"]),
        }
    )
    formats.write(tmp_path / "a.npz", odd)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["file"].tolist() == ["1", ""]
        assert archive["allow_pickle"].tolist() == ["a", ""]
        assert archive["open"].tolist() == ["True", ""]
        assert archive["part"].tolist() == ["x", "y"]


@pytest.mark.parametrize("suffix", formats.OUTPUT_SUFFIXES)
def test_equal_frames_give_equal_bytes(suffix, tmp_path):
    for name in "ab":
        formats.write(tmp_path / f"{name}{suffix}", frame())
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_an_output_of_unknown_kind_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(FormatError, match=r"out\.xlsx: cannot write '\.xlsx'; expected \.parquet, \.csv, \.npz"):
        formats.write(tmp_path / "out.xlsx", frame())
    assert list(tmp_path.iterdir()) == []


def test_npz_members_are_named_as_numpy_names_them(tmp_path):
    formats.write(tmp_path / "a.npz", frame())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.namelist() == [f"{c}.npy" for c in frame()]


def test_rows_as_arrow_has_them_are_those_of_their_frame(tmp_path):
    import pyarrow
    import pyarrow.parquet

    whole = pyarrow.table(
        {
            "id": ["a", None, "c", "d"],
            "gaps": pyarrow.array([2**60 + 1, None, 3, 4]),
            "when": pyarrow.array([0, 1, None, 3], pyarrow.timestamp("us", "Europe/Zurich")),
            "list": [[1], [2, 3], None, []],
            "number": [0.5, 1.5, 2.5, 3.5],
        }
    )
    pyarrow.parquet.write_table(whole, tmp_path / "a.parquet")

    def read(first=0, count=4):
        return next(formats.parquet_rows(tmp_path / "a.parquet", first, count, 4))

    rows, frame = read(), read().frame
    assert type(rows) is formats.ArrowRows
    assert frame["gaps"].tolist()[0] == 2**60 + 1
    assert (len(rows), rows.columns, rows.text, rows.gaps, rows.images) == (4, [*frame], False, (), None)
    pd.testing.assert_frame_equal(rows.some(["number", "gaps"]), frame[["number", "gaps"]])
    assert rows.some([]).shape == (4, 0)
    without_gaps = frame.iloc[[2, 0]].reset_index(drop=True).astype({"gaps": "int64"})
    pd.testing.assert_frame_equal(read().take(np.array([2, 0])).frame, without_gaps)
    pd.testing.assert_frame_equal(
        read().take(np.array([], np.int64)).frame.astype(object), frame.iloc[:0].astype(object)
    )
    parts = [read(0, 1), read(1, 2), read(3, 1)]
    pd.testing.assert_frame_equal(formats.joined(parts).frame, frame)
    mixed = [parts[0], formats.Rows(parts[1].frame), parts[2]]
    assert formats.joined(mixed).frame["id"].tolist() == frame["id"].tolist()
    # What is cut first is the same as what is read alone, whose integers have a gap or none.
    pd.testing.assert_frame_equal(read().between(2, 4).frame, read(2, 2).frame)
    assert rows.numbers(["gaps", "list"], 4) is rows.numbers(["gaps", "other"], 4) is None
    some = [*read().numbers(["number", "gaps"], 3)]
    np.testing.assert_array_equal(np.concatenate(some), [[0.5, 2**60], [1.5, np.nan], [2.5, 3], [3.5, 4]])
    assert [len(part) for part in some] == [3, 1]


def test_an_index_that_has_a_name_is_a_column_of_a_jobs_rows(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0]}, index=pd.Index(["x", "y"], name="customer"))
    frame.to_parquet(tmp_path / "a.parquet")
    rows = next(formats.parquet_rows(tmp_path / "a.parquet", 0, 2, 2))
    assert rows.columns == [*rows.frame] == ["customer", "a"]
    pd.testing.assert_frame_equal(rows.some(["customer"]), frame.reset_index()[["customer"]])
