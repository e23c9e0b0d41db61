"""A schema turns raw rows into tensors and back: images of every type, tables of every kind of column with gaps."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sevenfold import files, formats
from sevenfold.datasets import base
from sevenfold.datasets.base import DataError, Dataset, ImageSchema, Split, TableSchema, schema_from_json
from sevenfold.formats import Rows

# Tables.


def mixed(n=40):
    """A table with every kind of column, half of them with gaps."""
    r = np.random.default_rng(0)
    hole = np.arange(n) % 5 == 3
    numbers, texts = r.normal(1e4, 3, n), np.where(np.arange(n) % 3, "Zürich", "Lima").astype(object)
    return pd.DataFrame(
        {
            "float": numbers,
            "float32": r.normal(size=n).astype("float32"),
            "float gaps": np.where(hole, np.nan, numbers),
            "Float64": pd.array(np.where(hole, None, numbers), dtype="Float64"),
            "int": r.integers(-9, 9, n),
            "uint8": r.integers(0, 256, n).astype("uint8"),
            "Int64 gaps": pd.array(np.where(hole, None, r.integers(0, 99, n)), dtype="Int64"),
            "object ints": pd.Series(np.where(hole, None, np.arange(n)), dtype=object),
            "text": pd.Series(texts, dtype="str"),
            "text gaps": pd.Series(np.where(hole, None, texts), dtype="str"),
            "object text": pd.Series(np.where(hole, None, texts), dtype=object),
            "category": pd.Categorical(np.where(hole, None, texts)),
            "bool": np.arange(n) % 2 == 0,
            "bool gaps": pd.Series(np.where(hole, None, np.arange(n) % 2 == 0), dtype=object),
            "boolean": pd.array(np.where(hole, None, np.arange(n) % 2 == 0), dtype="boolean"),
            "code": r.integers(1, 4, n),
            "code gaps": np.where(hole, np.nan, r.integers(1, 4, n)),
            "number category": pd.Categorical(np.arange(n) % 3),
        }
    )


CODES = ("code", "code gaps")


@pytest.fixture(scope="module")
def schema():
    return TableSchema.learn(Rows(mixed()), categorical=CODES)


def test_every_kind_of_column_comes_back_in_its_own_unit_and_type(schema):
    raw = mixed()
    x, observed = schema.transform(Rows(raw))
    back = schema.inverse(x, observed).frame
    assert back.columns.tolist() == raw.columns.tolist()
    for name in raw:
        there = raw[name].notna().to_numpy()
        np.testing.assert_array_equal(back[name].notna(), there, err_msg=name)
        got, wanted = back[name][there].tolist(), raw[name][there].tolist()
        assert got == (pytest.approx(wanted, rel=1e-6, abs=1e-6) if isinstance(wanted[0], float) else wanted), name
    for name in ("float", "float32", "int", "uint8", "bool", "code"):
        assert back[name].dtype == raw[name].dtype
    for name in ("text", "text gaps"):
        assert back[name].dtype == "str"


@pytest.mark.parametrize("kind", ["float32", "float64", "int8", "uint16", "int64"])
def test_numbers_are_computed_in_double_precision_and_then_rounded(kind, monkeypatch):
    monkeypatch.setattr(base, "_TOGETHER", 700)
    drawn = np.random.default_rng(0).normal(40, 20, size=(3000, 3)).clip(0, 120).astype(kind)
    frame = pa.table({f"column_{i}": column for i, column in enumerate(drawn.T)}).to_pandas()
    schema = TableSchema.learn(Rows(frame[:1000]))
    x, observed = schema.transform(Rows(frame))
    mean, scale = (np.array([getattr(c, name) for c in schema.columns]) for name in ("mean", "scale"))
    assert np.array_equal(x, ((drawn.astype(np.float64) - mean) / scale).astype(np.float32))
    assert x.flags.c_contiguous
    assert observed is None


def one_by_one(schema, frame):
    """Samples and observed cells by the definition, cell by cell."""
    x, observed = [], []
    for column in schema.columns:
        cells = frame[column.name].tolist()
        known = [cell is not None and cell is not pd.NA and cell == cell for cell in cells]
        if column.kind == "numeric":
            made = [[(float(c) - column.mean) / column.scale if k else 0.0] for c, k in zip(cells, known, strict=True)]
        else:
            texts = [str(int(c)) if isinstance(c, float) and c == c and c == int(c) else str(c) for c in cells]
            made = [[k and t == one for one in column.categories] for t, k in zip(texts, known, strict=True)]
        x.append(np.array(made, float))
        observed.append(np.repeat(np.array(known)[:, None], column.width, axis=1))
    return np.concatenate(x, axis=1).astype(np.float32), np.concatenate(observed, axis=1)


@pytest.mark.parametrize("together", [7, 1000])
def test_a_sample_is_what_the_definition_says_of_each_of_its_cells(schema, together, monkeypatch):
    monkeypatch.setattr(base, "_TOGETHER", together)
    wanted = one_by_one(schema, mixed())
    for got, expected in zip(schema.transform(Rows(mixed())), wanted, strict=True):
        assert np.array_equal(got, expected)
    few = mixed()[:0]
    x, observed = schema.transform(Rows(few))
    assert x.shape == (0, *schema.shape)
    assert observed is None


def plain_numbers(n=40):
    """Numbers of several types as Arrow keeps them; some columns have gaps, and one has them in both of Arrow's ways."""
    r = np.random.default_rng(1)
    hole = np.arange(n) % 5 == 3
    return pa.table(
        {
            "float": r.normal(1e4, 3, n),
            "float32": r.normal(size=n).astype("float32"),
            "gaps": pa.array(np.where(hole, 0, r.normal(size=n)), mask=hole),
            "NaN and gaps": pa.array(np.where(np.arange(n) % 7 == 1, np.nan, r.normal(size=n)), mask=hole),
            "large": r.integers(2**60, 2**62, n),
            "uint8": r.integers(0, 256, n).astype("uint8"),
            "int gaps": pa.array(r.integers(2**55, 2**57, n), mask=hole),
        }
    )


def as_read(table):
    return formats.ArrowRows(table.combine_chunks().to_batches()[0])


@pytest.mark.parametrize("together", [7, 1000])
@pytest.mark.parametrize(
    "names", [None, ["float"], ["float32"], ["gaps", "NaN and gaps"], ["large", "uint8"], ["float", "float32"]]
)
def test_numbers_as_arrow_has_them_are_the_same_samples(names, together, monkeypatch):
    monkeypatch.setattr(base, "_AT_ONCE", together)
    table = plain_numbers().select(names or plain_numbers().column_names)
    frame = as_read(table).frame
    schema = TableSchema.learn(Rows(frame))
    x, observed = one_by_one(schema, frame)
    more = as_read(table.add_column(0, "note", pa.array(["a"] * len(table))))
    for rows in (as_read(table), more, Rows(frame), Rows(frame[frame.columns[::-1]])):
        assert schema.problems(rows) == []
        assert (schema._of_numbers(rows) is not None) == (
            type(rows) is formats.ArrowRows
        )  # the quick way, or the other
        got, seen = schema.transform(rows)
        assert np.array_equal(got, x)
        assert observed.all() if seen is None else np.array_equal(seen, observed)


@pytest.mark.parametrize(
    ("name", "values"),
    [("float", [None]), ("float", [float("nan")]), ("float", [float("inf")]), ("float", [1e300]), ("gaps", [-1e200])],
)
def test_numbers_as_arrow_has_them_are_refused_for_the_same_reasons(name, values):
    table = plain_numbers()
    schema = TableSchema.learn(as_read(table))
    spoiled = pa.array([*table[name].to_pylist()[:-1], *values], pa.float64())
    rows = as_read(table.set_column(table.column_names.index(name), name, spoiled))
    with pytest.raises(DataError) as caught:
        schema.transform(rows)
    with pytest.raises(DataError) as wanted:
        schema.transform(Rows(rows.frame))
    assert [*caught.value.problems] == [*wanted.value.problems] == schema.problems(rows)
    assert "row 39" in str(caught.value)


def test_equal_values_of_two_types_are_two_categories():
    values = pd.Series([1, True, "1", 2.5, None, "True", 1], dtype=object)
    schema = TableSchema.learn(Rows(pd.DataFrame({"a": values})), categorical=("a",))
    assert schema.columns[0].categories == ("1", "2.5", "True")
    x, observed = schema.transform(Rows(pd.DataFrame({"a": values})))
    assert np.where(observed.all(axis=1), x.argmax(axis=1), -1).tolist() == [0, 2, 0, 1, -1, 2, 0]


def test_a_schema_is_the_same_after_json(schema):
    again = schema_from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    x, observed = schema.transform(Rows(mixed()))
    for got, wanted in zip(again.transform(Rows(mixed())), (x, observed), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_numbers_are_standardised_and_categories_one_hot_as_scikit_learn_does_it():
    raw = mixed()
    columns = ["float", "int", "text", "bool"]
    schema = TableSchema.learn(Rows(raw[columns]))
    x, observed = schema.transform(Rows(raw[columns]))
    numbers = StandardScaler().fit_transform(raw[["float", "int"]].astype(float))
    classes = OneHotEncoder(sparse_output=False).fit_transform(raw[["text", "bool"]].astype(str).astype(object))
    assert observed is None
    np.testing.assert_allclose(x, np.hstack([numbers, classes]), rtol=1e-5, atol=1e-6)
    assert schema.shape == (2 + 2 + 2,)
    assert [schema.features[i] for i in schema.feature_of] == ["float", "int", "text", "text", "bool", "bool"]


def test_a_gap_is_0_and_not_observed_in_all_of_its_columns_width(schema):
    raw = mixed()
    x, observed = schema.transform(Rows(raw))
    at = pd.Series(schema.feature_of).map(dict(enumerate(schema.features)))
    for name in raw:
        mine = (at == name).to_numpy()
        np.testing.assert_array_equal(observed[:, mine], np.broadcast_to(raw[name].notna(), (mine.sum(), len(raw))).T)
    assert (x[~observed] == 0).all()


def test_a_row_is_transformed_the_same_alone_and_among_others(schema):
    """Types of a piece differ from those of the whole: a piece without gaps holds integers, one with gaps floats."""
    raw = mixed()
    for name in ("code gaps", "Int64 gaps"):
        raw[name] = raw[name].astype("float64")
    x, observed = schema.transform(Rows(raw))
    for row in range(6):
        one, seen = schema.transform(Rows(raw.iloc[[row]].convert_dtypes().reset_index(drop=True)))
        np.testing.assert_array_equal(one[0], x[row])
        np.testing.assert_array_equal(np.ones(x.shape[1], bool) if seen is None else seen[0], observed[row])


def test_categories_that_are_fractions_do_not_depend_on_their_neighbours():
    schema = TableSchema.learn(Rows(pd.DataFrame({"dose": [1.0, 2.5, 1.0, 2.5]})), categorical=("dose",))
    x, _ = schema.transform(Rows(pd.DataFrame({"dose": [1, 1]})))
    np.testing.assert_array_equal(x, [[1, 0], [1, 0]])
    assert schema.inverse(x).frame["dose"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("index", [[5, 5, 5, 5], ["a", "b", "c", "d"]])
def test_rows_may_carry_any_index(index):
    raw = pd.DataFrame({"a": [1.0, 2, 3, np.nan], "b": [*"xyx", None]})
    schema = TableSchema.learn(Rows(raw))
    got, wanted = schema.transform(Rows(raw.set_axis(index))), schema.transform(Rows(raw))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_a_model_makes_stays_within_the_columns_type():
    schema = TableSchema.learn(Rows(pd.DataFrame({"byte": np.array([0, 10, 250], "uint8"), "long": [-5, 0, 7]})))
    back = schema.inverse(np.float32([[-9, 0], [9, 1e30]])).frame
    assert back["byte"].tolist() == [0, 255]
    assert back["long"][1] > 2**62


def test_the_columns_that_numpy_would_take_for_one_number_come_back_of_the_right_length(schema):
    assert len(schema.inverse(np.zeros((0, *schema.shape), np.float32)).frame) == 0


def test_rows_are_not_changed(schema):
    raw = mixed()
    schema.transform(Rows(raw))
    pd.testing.assert_frame_equal(raw, mixed())


def test_extra_columns_and_another_order_make_no_difference(schema):
    raw = mixed()
    x, observed = schema.transform(Rows(raw.assign(note="?")[["note", *reversed(raw.columns)]]))
    for got, wanted in zip((x, observed), schema.transform(Rows(raw)), strict=True):
        np.testing.assert_array_equal(got, wanted)


# What is wrong with a table.

TABLE = pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [1, 2, 3, 4], "c": list("xyxy")})


def spoilt(column, values, **more):
    frame = TABLE.astype({column: object}) if column in TABLE else TABLE.copy()
    frame[column] = values
    return frame.infer_objects().assign(**more)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (TABLE.drop(columns=["a", "c"]), "columns 'a', 'c' are missing; the model was trained with them; add them, or give back"),
        (TABLE.drop(columns="a"), "column 'a' is missing; the model was trained with it; add it, or give back the old name"),
        (TABLE[["a", "a", "b", "c"]], "column 'a' twice in the rows; rename or leave one out"),
        (spoilt("a", [1, None, 3, None]), r"column 'a' has 2 gaps (first: row 1); the data set it learned from had none; fill"),
        (spoilt("a", [1, 2, None, 3]), r"column 'a' has 1 gap (first: row 2)"),
        (spoilt("b", [1, "?", 3, "4"]), "column 'b' has 2 values that are no numbers (first: '?' in row 1); expected numbers; convert"),
        (spoilt("b", list("1234")), "column 'b' has 4 values that are no numbers (first: '1' in row 0); expected numbers; convert"),
        (spoilt("b", [True, False] * 2), "column 'b' has 4 values that are no numbers (first: True in row 0)"),
        (spoilt("b", [1, True, 3, 4]), "column 'b' has 1 values that are no numbers (first: True in row 1)"),
        (spoilt("b", pd.Categorical(list("1234"))), "column 'b' has 4 values that are no numbers (first: '1' in row 0)"),
        (spoilt("b", pd.to_datetime(["2020-01-01"] * 4)), "column 'b' has 4 values that are no numbers (first: Timestamp("),
        (spoilt("b", [[1], [2], [3], [4]]), "column 'b' has 4 values that are no numbers (first: [1] in row 0)"),
        (spoilt("b", [1j, 2, 3, 4]), "column 'b' has 4 values that are no numbers (first: 1j in row 0)"),
        (spoilt("a", [1, np.inf, -np.inf, 2]), "column 'a' has 2 values that are not finite (first: row 1); leave them empty"),
        (spoilt("a", [1, 2, 3, 1e300]), "column 'a' has 1 values too large to compute with (first: 1e+300 in row 3)"),
        (spoilt("a", [1, 2, -1e25, 3]), "(first: -1e+25 in row 2); expected less than 1e+15 standard deviations from the mean of the "
         "training rows, 2.5 with a deviation of 1.11803; mend or remove them"),
        (spoilt("c", list("xzzy")), "column 'c' has 2 values of new categories 'z' (first: row 1); expected one of 'x', 'y'; map"),
        (spoilt("c", [1, 2, 3, 4]), "column 'c' has 4 values of new categories '1', '2', '3', '4' (first: row 0)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_table_is_said_with_value_expectation_and_remedy(frame, message):
    schema = TableSchema.learn(Rows(TABLE))
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        schema.transform(Rows(frame))
    assert len(caught.value.problems) == 1


def test_what_is_taken_leaves_room_to_compute_with_squares():
    schema = TableSchema.learn(Rows(TABLE))
    x, _ = schema.transform(Rows(spoilt("a", [1, 2, 3, 1e15])))
    with np.errstate(over="raise"):
        assert np.isfinite(np.square(x).sum(dtype=np.float32) * np.float32(1e4))


def test_words_for_gaps_among_numbers_are_refused_until_somebody_says_what_they_are():
    frame = pd.DataFrame({"age": [*"12345678", "NA", "?"], "other": range(10)})
    with pytest.raises(
        DataError,
        match=r"column 'age' holds 'NA' once, '\?' once among numbers; expected numbers only; .* `gaps: \['NA', '\?'\]`.*`categorical`",
    ):
        TableSchema.learn(Rows(frame))
    assert TableSchema.learn(Rows(frame), categorical=("age",)).columns[0].categories[-2:] == ("?", "NA")
    for texts in ([*"12345678", "A7", "B"], ["DE", "NA", "FR", "ES", "IT"] * 2):
        assert TableSchema.learn(Rows(frame.assign(age=texts))).columns[0].kind == "categorical"


def test_a_table_of_csv_text_becomes_what_training_made_of_its_numbers(tmp_path):
    """Every cell of the file as one pass over the whole file types it, and as text of which the schema makes numbers."""
    n = 30
    hole, r = np.arange(n) % 5 == 3, np.random.default_rng(0)

    def words(values):
        return np.where(hole, ["", "NA", "?"] * (n // 3), values)

    frame = pd.DataFrame(
        {
            "float": words([repr(float(v)) for v in r.normal(1e3, 50, n)]),
            "int": [f" {i}" if i % 3 else f"+{i}" for i in range(n)],
            "sentinel": np.where(hole, "-999.0", np.arange(n).astype(str)),
            "code": words(r.integers(1, 4, n).astype(str)),
            "dose": np.where(np.arange(n) % 2, "1.50", "2"),
            "open": words(np.where(np.arange(n) % 2, "TRUE", "false")),
            "zip": np.where(np.arange(n) % 2, "00123", "A7"),
            "city": words(np.where(np.arange(n) % 2, "Lima", "None")),
        }
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    typed = formats.read(tmp_path / "a.csv", gaps=["NA", "?", "-999"])
    schema = TableSchema.learn(typed.take(np.arange(n)), categorical=("code", "dose"))
    schema = schema_from_json(json.loads(json.dumps(schema.to_json())))
    assert schema.gap_words == ("NA", "?", "-999")
    assert [c.kind for c in schema.columns] == ["numeric"] * 3 + ["categorical"] * 5
    x, observed = schema.transform(typed)
    for size in (1, 7, n):
        parts = [schema.transform(part) for part in formats.batches(tmp_path / "a.csv", size)]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), x)
        seen = [np.ones_like(p[0], bool) if p[1] is None else p[1] for p in parts]
        np.testing.assert_array_equal(np.concatenate(seen), observed)
    assert observed.mean() < 1


def test_csv_text_that_is_no_number_is_named_with_what_to_do(tmp_path):
    schema = TableSchema.learn(Rows(TABLE))
    path = tmp_path / "a.csv"
    for text, message in {
        "much": "column 'a' has 1 values that are no numbers (first: 'much' in row 0); expected numbers; convert",
        "nan": "(first: 'nan' in row 0); expected numbers; leave the field empty where a value is missing, or train with `gaps: ['nan']`",
        "NA": "or train with `gaps: ['NA']`",
        "": "column 'a' has 1 gap (first: row 0)",
    }.items():
        path.write_text(f"a,b,c\n{text},1,x\n2,3,y\n")
        (part,) = formats.batches(path, 10)
        with pytest.raises(DataError, match=re.escape(message)):
            schema.transform(part)


def test_all_problems_of_a_table_come_in_one_error():
    schema = TableSchema.learn(Rows(TABLE))
    with pytest.raises(DataError, match=r"^table: .*'b' is missing.*'a' has 1 values that are not finite.*'c' has 4"):
        schema.transform(Rows(pd.DataFrame({"a": [np.inf, 1, 2, 3], "c": list("abcd")})))


def test_images_are_no_table_and_tables_no_images():
    images, table = Rows(pd.DataFrame(index=range(2)), np.zeros((2, 3, 3), np.uint8)), Rows(TABLE)
    with pytest.raises(
        DataError,
        match=r"got images \(3, 3\); expected a table with columns 'a', 'b', 'c', as \.csv or \.parquet",
    ):
        TableSchema.learn(table).transform(images)
    with pytest.raises(DataError, match=r"got a table with 3 columns; expected images 3x3 with 1 channel, as \.npz"):
        ImageSchema.learn(images, value_range=None).transform(table)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([None, np.nan, None, None], "has no value in the training rows; add it to `drop`"),
        ([7, 7, 7, 7], "is constant (7); expected two values or more; add it to `drop`"),
        ([7, None, 7, 7], "is constant (7)"),
        ([0.1, 0.1, 0.1, 0.1], "is constant (0.1)"),  # of which the computed deviation is not quite 0
        ([0.0, 5e-324, 0, 0], "has values from 0 to 4.94066e-324; expected between 1e-150"),
        (["u"] * 4, "is constant ('u'); expected two values or more"),
        ([1, np.inf, 2, np.nan], "has 1 values that are not finite (first: row 1)"),
        ([1e300, -1e300, 0, 1], "has values from -1e+300 to 1e+300; expected between 1e-150 and 1e+150; give them in another unit"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"] * 2), "has values of type datetime64"),
        ([[1], [2], [3], [4]], "has values of type object; expected numbers, text or booleans; convert it or add it to `drop`"),
        ([1, "x", 2, "y"], "has values of type object; expected numbers, text or booleans"),
        ([1j, 2j, 3j, 4j], "has values of type complex128"),
    ],
)  # fmt: skip
def test_a_column_that_cannot_be_learned_is_said_with_its_remedy(column, message):
    frame = TABLE.assign(odd=pd.Series(column))
    with pytest.raises(DataError, match=re.escape(f"table: column 'odd' {message}")):
        TableSchema.learn(Rows(frame))


def test_all_columns_that_cannot_be_learned_come_in_one_error():
    frame = TABLE.assign(flat=1, empty=np.nan, far=[np.inf, 1, 2, 3])
    with pytest.raises(DataError) as caught:
        TableSchema.learn(Rows(frame))
    assert [re.findall("'(.+?)'", p)[0] for p in caught.value.problems] == ["flat", "empty", "far"]
    with pytest.raises(DataError, match="the table has no feature columns; expected at least one besides label"):
        TableSchema.learn(Rows(TABLE[[]]))


# Images.


def noise(dtype, channels, low, high, n=6):
    values = np.random.default_rng(0).uniform(low, high, (n, 5, 4, *([channels] if channels else [])))
    values.flat[:2] = low, high
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else np.rint(values).astype(dtype)


def as_rows(images):
    return Rows(pd.DataFrame(index=pd.RangeIndex(len(images))), images)


@pytest.mark.parametrize("channels", [0, 2, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "low", "high", "given"),
    [
        ("uint8", 0, 255, False),
        ("uint8", 0, 16, True),
        ("uint16", 0, 65535, False),
        ("int16", -1000, 3000, True),
        ("int64", 0, 16, True),
        ("bool", 0, 1, False),
        ("float32", -1, 1, True),
        ("float64", 0, 1, True),
    ],
)
def test_images_of_every_type_and_channels_go_to_0_to_1_and_come_back(dtype, low, high, given, channels):
    images = noise(dtype, channels, low, high)
    schema = ImageSchema.learn(as_rows(images), value_range=(low, high) if given else None)
    assert schema.shape == (channels or 1, 5, 4)
    x, observed = schema.transform(as_rows(images))
    assert x.shape == (6, *schema.shape)
    assert observed is None
    assert (x.min(), x.max()) == (0, 1)
    back = schema.inverse(x).images
    assert (back.dtype, back.shape) == (images.dtype, images.shape)
    if images.dtype.kind == "f":
        np.testing.assert_allclose(back, images, rtol=0, atol=1e-6 * (high - low))
    else:
        np.testing.assert_array_equal(back, images)
    assert schema_from_json(json.loads(json.dumps(schema.to_json()))) == schema


def test_channels_come_first_in_x_and_every_value_has_a_name():
    images = noise("uint8", 3, 0, 255)
    schema = ImageSchema.learn(as_rows(images), value_range=None)
    flat = schema.transform(as_rows(images))[0].reshape(6, -1)
    for at, feature in enumerate(schema.feature_of):
        r, c, k = map(int, re.fullmatch(r"pixel_(\d)_(\d)_(\d)", schema.features[feature]).groups())
        np.testing.assert_allclose(flat[:, at], images[:, r, c, k] / 255, rtol=1e-6)
    grey = ImageSchema((1, 2, 2), 0.0, 1.0, "uint8")
    assert grey.features == ("pixel_0_0", "pixel_0_1", "pixel_1_0", "pixel_1_1")


def test_one_channel_may_have_an_axis_or_none():
    images = noise("uint8", 0, 0, 255)
    schema = ImageSchema.learn(as_rows(images), value_range=None)
    assert ImageSchema.learn(as_rows(images[..., None]), value_range=None) == schema
    np.testing.assert_array_equal(schema.transform(as_rows(images[..., None]))[0], schema.transform(as_rows(images))[0])


def test_what_a_model_makes_stays_within_the_images_range():
    for dtype, wanted in (("uint8", [0, 255]), ("bool", [False, True])):
        schema = ImageSchema((1, 1, 2), 0.0, 255.0 if dtype == "uint8" else 1.0, dtype)
        assert schema.inverse(np.float32([[[[-3, 7]]]])).images[0, 0].tolist() == wanted
    # Three tenths of black and white are nearer to black.
    assert schema.inverse(np.float32([[[[0.3, 0.7]]]])).images[0, 0].tolist() == [False, True]


def put(row, value):
    images = noise("float64", 0, 0, 16).round()
    images[row, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 9), np.uint8), "got images 9x8 with 1 channel; expected images 4x5 with 1 channel; resize or convert them"),
        (np.zeros((2, 5, 4, 3), np.uint8), "got images 4x5 with 3 channels; expected images 4x5 with 1 channel"),
        (np.zeros((2, 20), np.uint8), "got an array of shape (2, 20) and type uint8; expected images 4x5 with 1 channel"),
        (np.full((2, 5, 4), "x"), "and type <U1; expected images 4x5 with 1 channel, as numbers"),
        (put(3, np.nan), "1 images hold values that are not finite (first: row 3); leave them out"),
        (put(2, np.inf), "1 images hold values that are not finite (first: row 2)"),
        (put(2, 17), "values reach from 0 to 17; expected 0 to 16; check the images' type and scale"),
        (put(2, -1), "values reach from -1 to 16; expected 0 to 16"),
        (put(4, 0.5), "1 images hold fractions (first: row 4); expected whole numbers from 0 to 16 (uint8); check the images' scale"),
    ],
)  # fmt: skip
def test_what_does_not_fit_an_image_set_is_said_with_value_expectation_and_remedy(images, message):
    schema = ImageSchema.learn(as_rows(noise("uint8", 0, 0, 16)), value_range=(0, 16))
    assert schema.problems(as_rows(noise("float32", 0, 0, 16).round())) == []
    with pytest.raises(DataError, match=re.escape(f"images: {message}" if message.startswith("got") else message)):
        schema.transform(as_rows(images))


OPEN = ImageSchema((3, 8, 6), 0.0, 255.0, "uint8")


def test_a_schema_for_any_size_is_that_of_the_training_in_json_and_for_its_images():
    for schema in (OPEN.any_size(), OPEN.any_type()):
        assert files.dumps(schema.to_json()) == files.dumps(OPEN.to_json())
        assert schema_from_json(schema.to_json()) == OPEN
        given = as_rows(np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), np.uint8))
        np.testing.assert_array_equal(schema.transform(given)[0], OPEN.transform(given)[0])
        np.testing.assert_array_equal(schema.inverse(OPEN.transform(given)[0]).images, given.images)


@pytest.mark.parametrize("edges", [(1, 1), (8, 6), (100, 7)])
def test_any_size_goes_there_and_back(edges):
    given = as_rows(np.random.default_rng(0).integers(0, 256, (2, *edges, 3), np.uint8))
    x, _ = OPEN.any_size().transform(given)
    assert x.shape == (2, 3, *edges)
    np.testing.assert_array_equal(OPEN.any_size().inverse(x, dtype=given.images.dtype).images, given.images)
    if edges != (8, 6):
        for schema in (OPEN, OPEN.any_type()):
            with pytest.raises(
                DataError, match=r"got images .*; expected images 6x8 with 3 channels; resize or convert"
            ):
                schema.transform(given)


def test_any_size_has_its_channels_and_a_least_edge():
    given = np.zeros((2, 9, 9), np.uint8)
    assert OPEN.any_size().problems(as_rows(given)) == [
        "got images 9x9 with 1 channel; expected images of any size with 3 channels; convert them to RGB"
    ]
    (problem,) = OPEN.any_size(3).problems(as_rows(np.zeros((2, 9, 2, 3), np.uint8)))
    assert problem == (
        "got images 2x9 with 3 channels; expected images of 3x3 or more with 3 channels; enlarge them or leave them out"
    )


@pytest.mark.parametrize(
    ("trained", "given"),
    [
        (("uint8", 0, 255), "uint16"),
        (("uint16", 0, 65535), "uint8"),
        (("float32", 0, 1), "uint8"),
        (("float64", 0, 1), "uint16"),
        (("uint8", 0, 255), "bool"),
    ],
)
def test_images_of_another_whole_type_go_by_that_types_range_and_come_back_in_it(trained, given):
    dtype, low, high = trained
    schema = ImageSchema((1, 8, 6), float(low), float(high), dtype)
    top = 1 if given == "bool" else np.iinfo(given).max
    values = np.random.default_rng(0).integers(0, top, (3, 8, 6), endpoint=True).astype(given)
    for free in (schema.any_size(), schema.any_type()):
        x, _ = free.transform(as_rows(values))
        np.testing.assert_allclose(x[:, 0], values / top, atol=1e-6)
        back = free.inverse(x, dtype=values.dtype).images
        assert back.dtype == values.dtype
        np.testing.assert_array_equal(back, values)


def test_a_range_that_is_not_all_of_a_types_says_what_numbers_of_any_type_mean():
    schema = ImageSchema((1, 8, 6), 0.0, 16.0, "uint8").any_size()
    given = as_rows(np.full((1, 8, 6), 16, np.uint16))
    x, _ = schema.transform(given)
    assert x.max() == 1
    assert schema.inverse(x, dtype=given.images.dtype).images.dtype == np.uint8
    with pytest.raises(DataError, match="values reach from 255 to 255; expected 0 to 16"):
        schema.transform(as_rows(np.full((1, 8, 6), 255, np.uint16)))


def test_the_training_and_what_is_not_for_any_type_take_numbers_as_they_are():
    given = as_rows(np.full((1, 8, 6, 3), 300, np.uint16))
    with pytest.raises(DataError, match="values reach from 300 to 300; expected 0 to 255"):
        OPEN.transform(given)
    assert OPEN.any_type().transform(given)[0].max() == pytest.approx(300 / 65535)


def test_a_range_that_the_images_do_not_tell_has_to_be_given_and_to_ascend():
    with pytest.raises(DataError, match=r"values of type float64 from 0 to 1 have no range .*`range: \[low, high\]`"):
        ImageSchema.learn(as_rows(noise("float64", 0, 0, 1)), value_range=None)
    for low, high in ((16, 0), (3, 3), (0, np.nan)):
        with pytest.raises(DataError, match=f"range is {low} to {high}; expected the lower end first, then a higher"):
            ImageSchema.learn(as_rows(noise("uint8", 0, 0, 16)), value_range=(low, high))


# On disk.


def test_gaps_and_labels_survive_saving(schema, tmp_path):
    x, observed = schema.transform(Rows(mixed()))
    y, normal, ids = np.array(["a", "b"] * 20, object), np.arange(40) % 2 == 0, np.array([f"r{i}" for i in range(40)])
    split = Split(x, observed, y, normal, ids)
    Dataset("demo", schema, split, split, split, ("a note",)).save(tmp_path / "demo")
    loaded = Dataset.load(tmp_path / "demo")
    np.testing.assert_array_equal(loaded.test.observed, observed)
    assert loaded.train.only_normal().ids.tolist() == ids[::2].tolist()
    assert loaded.notes == ("a note",)
    pd.testing.assert_frame_equal(
        loaded.schema.inverse(loaded.test.x, loaded.test.observed).frame, schema.inverse(x, observed).frame
    )


def test_a_prepared_set_that_is_missing_or_damaged_is_named(schema, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"demo/train/x\.npy does not exist; run `dvc repro`"):
        Dataset.load(tmp_path / "demo")
    x, observed = schema.transform(Rows(mixed()))
    split = Split(x, observed, None, None, np.arange(40))
    Dataset("demo", schema, split, split, split).save(tmp_path / "demo")
    whole = (tmp_path / "demo" / "test" / "observed.npy").read_bytes()
    (tmp_path / "demo" / "test" / "observed.npy").write_bytes(whole[:200])
    with pytest.raises(formats.FormatError, match=r"test/observed\.npy cannot be read: .*truncated; remove it and run"):
        Dataset.load(tmp_path / "demo")


def test_text_is_the_number_that_python_makes_of_it_however_many_rows_come_together():
    random = np.random.default_rng(0)
    spellings = [" 5", "5 ", "inf", "-Infinity", "nan", "1e400", "1e-400", "+5", "1.", ".5", "-0", "-0.0", "007", "1E3"]
    spellings += map(str, random.normal(size=300) * 10.0 ** random.integers(-300, 300, 300))
    spellings += map(str, random.integers(-(2**63), 2**63 - 1, 100))
    wanted = np.array([float(text) for text in spellings]) + 0.0
    no_numbers = ["0x1A", "1_0", "  ", "5e", "1,5", "TRUE", "one"]
    for texts, numbers in ((spellings, wanted), (spellings + no_numbers, [*wanted, *[np.nan] * len(no_numbers)])):
        together = base._numbers(pd.Series([*texts, None], dtype="str"), text=True)
        one_by_one = [base._numbers(pd.Series([text], dtype="str"), text=True)[0] for text in [*texts, None]]
        np.testing.assert_array_equal(together, [*numbers, np.nan])
        np.testing.assert_array_equal(one_by_one, together)
