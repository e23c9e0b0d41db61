"""An operation takes what its bundle can work on, and gives it back in the user's own size, type and range."""

import numpy as np
import pandas as pd
import pyarrow
import pytest

import tiny
from sevenfold import bundles, evaluation, formats, operations, preparation, training
from sevenfold.applications import anomaly
from sevenfold.datasets.base import DataError, TableSchema
from sevenfold.models.base import ModelSpec


def rows(pixels):
    return formats.Rows(pd.DataFrame({"path": [f"{i}.png" for i in range(len(pixels))]}), pixels)


def pictures(edges, dtype, channels=None):
    shape = (3, *edges) if channels is None else (3, *edges, channels)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("edges", [(8, 6), (3, 3), (30, 41)])
def test_images_of_any_size_and_whole_type_are_denoised_in_their_own(edges, dtype):
    bundle = operations.accepting(tiny.bundle("images", "denoising"))
    given = pictures(edges, dtype)
    made = operations.denoise(bundle, rows(given)).images
    assert made.shape == given.shape
    assert made.dtype == given.dtype
    assert not np.array_equal(made, given)


def test_16_bits_are_denoised_as_their_8_are():
    bundle = operations.accepting(tiny.bundle("images", "denoising"))
    given = pictures((20, 20), "uint8")
    made = operations.denoise(bundle, rows(given)).images
    deep = operations.denoise(bundle, rows(given.astype(np.uint16) * 257)).images
    assert np.abs(deep / 257 - made).max() < 0.505


def test_images_of_other_channels_or_too_small_are_refused_with_what_would_do():
    bundle = operations.accepting(tiny.bundle("images", "denoising"))
    with pytest.raises(
        DataError, match=r"got images 20x20 with 3 channels; expected images of 3x3 .*; convert them to grey"
    ):
        operations.denoise(bundle, rows(pictures((20, 20), "uint8", 3)))
    with pytest.raises(DataError, match=r"got images 2x20 .*; expected images of 3x3 or more"):
        operations.denoise(bundle, rows(pictures((20, 2), "uint8")))


def test_other_operations_take_images_of_the_trainings_size_alone():
    bundle = operations.accepting(tiny.bundle("images", "reduction"))
    assert bundle.schema == tiny.bundle("images", "reduction").schema
    with pytest.raises(DataError, match=r"got images 41x30 .*; expected images 6x8 with 1 channel; resize or convert"):
        operations.encode(bundle, rows(pictures((30, 41), "uint8")))


@pytest.fixture(scope="module")
def of_numbers():
    """A bundle whose columns are all numbers, one with gaps, and rows as a job reads them."""
    r = np.random.default_rng(0)
    frame = pd.DataFrame(r.normal(size=(500, 4)), columns=["a", "b", "c", "d"])
    frame["whole"], frame["gaps"] = r.integers(0, 99, 500), np.where(r.random(500) < 0.1, np.nan, frame["a"] + 1)
    data = preparation.prepare(
        "numbers", formats.Rows(frame), label=None, normal=None, identifier=None, group=None, drop=(), categorical=(),
        value_range=None, duplicates="error", validation=0.2, test=0.2, seed=0,
    )  # fmt: skip
    spec = ModelSpec.of("pca", data.schema.layout, {"code": 3})
    learn = evaluation.learned_from(anomaly.Anomaly(**tiny.ANOMALY), data)
    model, _ = training.fit(
        spec, learn, data.validation, tiny.SETTINGS, seed=0, device="cpu", on_epoch=lambda epoch: None
    )
    application = anomaly.Anomaly(**tiny.ANOMALY).calibrate(model, learn, data.validation)
    return bundles.Bundle(spec, model, data.schema, "anomaly", application, {}), frame.iloc[:320].assign(id=range(320))


def as_read(frame):
    return formats.ArrowRows(pyarrow.RecordBatch.from_pandas(frame, preserve_index=False))


@pytest.mark.parametrize("operation", ["encode", "score"])
def test_what_is_made_does_not_depend_on_how_many_rows_go_through_together(operation, of_numbers, monkeypatch):
    bundle, frame = of_numbers
    act, together, transform = operations.get(operation, bundle), [], TableSchema.transform
    monkeypatch.setattr(
        TableSchema, "transform", lambda self, rows: together.append(len(rows)) or transform(self, rows)
    )
    whole = act(bundle, as_read(frame)).frame
    pd.testing.assert_frame_equal(act(bundle, formats.Rows(frame)).frame, whole, check_exact=True)
    monkeypatch.setattr(operations, "PIECE", 64)
    pd.testing.assert_frame_equal(act(bundle, as_read(frame)).frame, whole, check_exact=True)
    assert together == [320, 320, *[64] * 5]


def test_a_bad_row_has_its_number_among_all_rows_wherever_they_are_cut(of_numbers, monkeypatch):
    monkeypatch.setattr(operations, "PIECE", 64)
    bundle, frame = of_numbers
    bad = frame.assign(c=frame["c"].where(frame.index != 200))
    with pytest.raises(DataError, match=r"column 'c' has 1 gap \(first: row 200\)"):
        operations.score(bundle, as_read(bad))


def test_columns_that_the_model_does_not_use_go_along_as_they_are(of_numbers):
    bundle, frame = of_numbers
    pd.testing.assert_frame_equal(operations.identifying(bundle, as_read(frame)), frame[["id"]])
