"""Streams come back, their bytes are real ones, and curves are compared as Bjontegaard did."""

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import interpolate
from sklearn import datasets, decomposition

import samples
from sevenfold import containers, entropy, evaluation, params
from sevenfold.applications import compression
from sevenfold.applications.compression import Compression
from sevenfold.datasets.base import Dataset, ImageSchema
from sevenfold.models.base import Autoencoder, ModelSpec

STEPS = [4.0, 2.0, 1.0, 0.5]


def application(**options):
    return Compression(**{"steps": STEPS, "decibels": 24.0, "chunk": 200} | options)


def digits():
    x = datasets.load_digits().images.astype(np.float32)[:, None] / 16
    parts = [samples.split(x[rows]) for rows in (slice(0, 700), slice(700, 900), slice(900, 1100))]
    return Dataset("digits", ImageSchema((1, 8, 8), 0, 16, "uint8"), *parts)


DATA = digits()


def model(variant, options, x=DATA.train.x):
    torch.manual_seed(0)
    made = ModelSpec(variant, x.shape[1:], options).build().eval()
    made.prepare(torch.from_numpy(x), None)
    return made


PCA = model("pca", {"code": 64})
LADDER = model(
    "compressive",
    {"channels": [20], "hidden": [16], "hyper": [], "groups": 4, "weights": [3.0, 10.0, 30.0], "augment": []},
)
MODELS = {"pca": PCA, "compressive": LADDER}


@pytest.fixture(params=MODELS)
def judged(request):
    """A model, the application calibrated to it, and the judgement."""
    one = MODELS[request.param]
    return one, *evaluation.judge(application(), one, DATA)


def curve(*points):
    return np.array(points, float)


@pytest.mark.parametrize("share", [0.3, 1.0, 2.5])
def test_bytes_saved_is_the_share_of_bytes_that_all_rungs_save(share):
    reference = curve((10, 20), (17, 24), (31, 28), (60, 31))
    ours = reference * [share, 1]
    assert compression.bytes_saved(ours, reference) == pytest.approx(1 - share, abs=1e-9)


def test_bytes_saved_is_the_bd_rate_over_the_shared_range():
    ours, reference = curve((9, 19), (16, 24.5), (35, 30), (80, 36)), curve((10, 20), (17, 24), (31, 28), (60, 31))
    grid = np.linspace(20, 31, 200_001)
    rates = [interpolate.PchipInterpolator(c[:, 1], np.log10(c[:, 0]))(grid) for c in (ours, reference)]
    bd_rate = 10 ** (np.trapezoid(rates[0] - rates[1], grid) / 11) - 1
    assert compression.bytes_saved(ours, reference) == pytest.approx(-bd_rate, abs=1e-6)
    # Rungs come in any order, and one that is beaten in both does not count.
    messy = np.concatenate([ours[::-1], [[50, 29]]])
    assert compression.bytes_saved(messy, reference) == compression.bytes_saved(ours, reference)


@pytest.mark.parametrize(
    "ours",
    [
        curve((10, 40), (20, 45)),  # better than the reference can be: nothing is extrapolated
        curve((10, 10), (20, 12)),
        curve((10, 25), (10, 25)),  # one point makes no curve
        curve((1000, 20), (40000, 31)),
    ],
)
def test_curves_without_a_shared_quality_and_hopeless_ones_have_the_worst_value(ours):
    reference = curve((10, 20), (17, 24), (31, 28), (60, 31))
    assert compression.bytes_saved(ours, reference) == compression.WORST


def test_bytes_of_the_rows_add_up_to_those_of_a_real_container(judged):
    one, calibrated, judgement = judged
    for rung in range(1, calibrated.rungs(one) + 1):
        out = io.BytesIO()
        calibrated.write(one, [DATA.test.x], out, rung)
        total = len(out.getvalue())
        assert judgement.test.values[f"bytes_{rung}"].sum() == pytest.approx(total)
        assert judgement.test.metrics[f"bpp_{rung}"] == pytest.approx(8 * total / DATA.test.x.size)
        found = np.concatenate(list(calibrated.read(one, out.getvalue())))
        error = np.square(found - DATA.test.x).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(judgement.test.values[f"error_{rung}"], error, rtol=1e-4)
        assert judgement.test.metrics[f"psnr_{rung}"] == pytest.approx(-10 * math.log10(error.mean()), rel=1e-4)


def test_higher_rungs_cost_more_and_are_better(judged):
    _, _, judgement = judged
    rungs = sum(name.startswith("psnr") for name in judgement.test.metrics)
    for name in ("bpp", "psnr", "ms_ssim"):
        values = [judgement.test.metrics[f"{name}_{rung}"] for rung in range(1, rungs + 1)]
        assert all(low < high for low, high in itertools.pairwise(values))


def test_a_stream_for_each_row_comes_back(judged):
    one, calibrated, _ = judged
    x, rung = DATA.test.x[:60], int(calibrated.state["rung"][0])
    streams = calibrated.predict(one, x, None, DATA.schema)["stream"]
    assert {type(stream) for stream in streams} == {bytes}
    out = io.BytesIO()
    calibrated.write(one, [x], out)
    (archived,) = calibrated.read(one, out.getvalue())
    restored = calibrated.restore(one, streams, DATA.schema)
    np.testing.assert_allclose(restored, archived, atol=1e-5)
    assert calibrated.restore(one, streams[:0], DATA.schema).shape == (0, 1, 8, 8)
    assert len(out.getvalue()) < sum(map(len, streams))
    (chunk,) = containers.parse(out.getvalue())
    assert (chunk.count, chunk.shape, chunk.rung) == (60, (1, 8, 8), rung)
    with pytest.raises(entropy.DamagedStreamError):
        calibrated.restore(one, [streams[0][:-1]], DATA.schema)


def test_damage_to_a_chunk_loses_its_images_alone(judged):
    one, calibrated, _ = judged
    out = io.BytesIO()
    replace_chunk = calibrated.with_state(calibrated.state)
    replace_chunk.chunk = 40
    replace_chunk.write(one, [DATA.test.x[:120]], out)
    data = bytearray(out.getvalue())
    data[len(data) // 2] ^= 4
    first, lost, last = replace_chunk.read(one, bytes(data))
    assert (lost.first, lost.last) == (40, 79)
    whole = np.concatenate(list(replace_chunk.read(one, out.getvalue())))
    np.testing.assert_array_equal(np.concatenate([first, last]), np.concatenate([whole[:40], whole[80:]]))


def test_a_stream_that_is_no_code_is_named_as_damage(judged):
    one, calibrated, _ = judged
    out = io.BytesIO()
    writer = containers.Writer(out, calibrated.digest(one))
    writer.add(b"no such stream", 7, (1, 8, 8), 1)
    writer.close()
    (lost,) = calibrated.read(one, out.getvalue())
    assert (lost.first, lost.last) == (0, 6)
    assert "fails its checksum" in lost.reason


def test_another_model_is_refused():
    calibrated = {name: evaluation.judge(application(), one, DATA)[0] for name, one in MODELS.items()}
    out = io.BytesIO()
    calibrated["pca"].write(PCA, [DATA.test.x[:5]], out)
    with pytest.raises(containers.ContainerError, match=r"was written by model .*; use the one that wrote it"):
        list(calibrated["compressive"].read(LADDER, out.getvalue()))


def test_images_of_a_size_that_the_model_does_not_take_are_refused():
    calibrated, _ = evaluation.judge(application(), PCA, DATA)
    with pytest.raises(ValueError, match=r"images are \(1, 9, 8\); this model takes \(1, 8, 8\) alone"):
        calibrated.write(PCA, [np.zeros((2, 1, 9, 8), np.float32)], io.BytesIO())
    with pytest.raises(ValueError, match="rung is 5; expected 1 to 4"):
        calibrated.write(PCA, [], io.BytesIO(), 5)


def test_jobs_use_the_first_rung_that_reaches_the_decibels_on_validation_images():
    for wanted in (15.0, 24.0, 60.0):
        calibrated, judgement = evaluation.judge(application(decibels=wanted), PCA, DATA)
        reached = [judgement.validation.metrics[f"psnr_{rung}"] >= wanted for rung in range(1, len(STEPS) + 1)]
        assert calibrated.state["rung"][0] == (reached.index(True) + 1 if any(reached) else len(STEPS))


def test_the_reference_is_principal_components_by_the_textbook():
    calibrated, judgement = evaluation.judge(application(), PCA, DATA)
    reach = calibrated.state["reach"][0]
    x = DATA.train.x.reshape(700, 64).astype(np.float64)
    pca = decomposition.PCA().fit(x)
    spread = np.sqrt(np.square(x - x.mean(axis=0)).mean())
    z = pca.transform(DATA.test.x.reshape(200, 64))
    for rung, step in enumerate(STEPS, 1):
        known, whole = (np.sign(v) * np.floor(np.abs(v) / (step * spread) + reach) for v in (pca.transform(x), z))
        size = np.abs(pca.transform(x)) / (step * spread)
        kinds = [np.abs(known) == 1, np.abs(known) == 2, np.abs(known) > 2]
        shift = [0.0] + [(size - np.abs(known))[kind].mean() if kind.any() else 0 for kind in kinds]
        values = whole + np.sign(whole) * np.array(shift)[np.minimum(np.abs(whole), 3).astype(int)]
        output = np.clip(pca.inverse_transform(values * step * spread), 0, 1)
        error = np.square(output - DATA.test.x.reshape(200, 64)).mean(axis=1)
        # Values on the edge of two cells may fall either way.
        assert np.isclose(judgement.test.values[f"reference_error_{rung}"], error, rtol=1e-3).mean() > 0.97
        # Of training counts alone, the ideal code is longer: it has nothing for what it has not seen.
        tables = entropy.learned_tables(known)
        bits = entropy.information(whole.astype(np.int64), tables).sum()
        assert judgement.test.values[f"reference_bytes_{rung}"].sum() == pytest.approx(bits / 8 + 45, abs=25)


def test_principal_components_as_a_model_are_as_good_as_the_reference():
    _, judgement = evaluation.judge(application(), PCA, DATA)
    # Both quantise the same values; the reference's rounding was chosen, and the steps here were measured.
    assert judgement.test.metrics["bytes_saved"] == pytest.approx(0, abs=0.04)


class Stretched(Autoencoder):
    """Principal components in units that have nothing to do with the image."""

    def __init__(self):
        super().__init__(PCA.layout, PCA.code)
        self.factors = torch.logspace(-1.5, 1.5, PCA.code)

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return PCA.encode(x) * self.factors

    def decode(self, z):
        return PCA.decode(z / self.factors)

    def losses(self, x, observed):
        return {}


def test_the_unit_of_a_code_value_does_not_matter():
    found = [evaluation.judge(application(), one, DATA)[1].test.metrics["bytes_saved"] for one in (PCA, Stretched())]
    assert found[1] == pytest.approx(found[0], abs=0.01)


def test_bytes_saved_of_drawn_rows_is_that_of_their_bytes_and_errors():
    calibrated, judgement = evaluation.judge(application(), LADDER, DATA)
    rows = np.random.default_rng(0).integers(200, size=200)
    values = {name: value[rows] for name, value in judgement.test.values.items()}
    curves = [
        np.array(
            [(values[f"{p}bytes_{r}"].sum(), -10 * np.log10(values[f"{p}error_{r}"].mean())) for r in range(1, n + 1)]
        )
        for p, n in (("", 3), ("reference_", 4))
    ]
    assert calibrated.statistic(values) == pytest.approx(compression.bytes_saved(*curves))


def large(count, seed):
    """Images 40x72 in colours, of a few smooth waves."""
    generator = np.random.default_rng(seed)
    down, right = np.mgrid[:40, :72] / 48
    parts = [
        generator.normal(size=(count, 3, 1, 1)) * np.sin(6 * f * down + generator.normal(size=(count, 1, 1, 1)))
        * np.cos(7 * f * right) for f in (1, 2, 3)
    ]  # fmt: skip
    return np.clip(0.5 + 0.2 * sum(parts), 0, 1).astype(np.float32)


def test_large_images_are_files_of_their_own_with_jpeg_for_reference():
    parts = [samples.split(large(count, seed)) for seed, count in enumerate((40, 10, 6))]
    data = Dataset("waves", ImageSchema((3, 40, 72), 0, 255, "uint8"), *parts)
    one = model(
        "compressive",
        {"channels": [8, 8, 8], "hidden": [], "hyper": [], "groups": 1, "weights": [3.0, 30.0], "augment": []},
        data.train.x,
    )
    calibrated, judgement = evaluation.judge(application(), one, data)
    judgement.require_finite()
    out = io.BytesIO()
    calibrated.write(one, [data.test.x, data.test.x[:2, :, :24, :65]], out, 1)
    shapes = [part.shape for part in calibrated.read(one, out.getvalue())]
    assert shapes == [(1, 3, 40, 72)] * 6 + [(1, 3, 24, 65)] * 2
    rivals, failed = evaluation.judge_rivals(calibrated, data)
    assert failed == {}
    assert rivals["jpeg"].test.metrics["bytes_saved"] >= -1e-9
    file = io.BytesIO()
    image = np.rint(data.test.x[3].transpose(1, 2, 0) * 255).astype(np.uint8)
    Image.fromarray(image).save(file, "JPEG", quality=95, optimize=True, subsampling="4:2:0")
    assert judgement.test.values["reference_bytes_4"][3] == len(file.getvalue())
    difference = np.asarray(Image.open(file), float) / 255 - data.test.x[3].transpose(1, 2, 0)
    assert judgement.test.values["reference_error_4"][3] == pytest.approx(np.square(difference).mean(), rel=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_codecs_see_contact_sheets_of_small_images_and_lose_none(channels):
    x = np.random.default_rng(0).random((11, channels, 6, 5)).astype(np.float32)
    rungs = compression._sheets("JPEG", x, 4, 4, {"subsampling": "4:4:4"})
    errors = [rung.error.mean() for rung in rungs]
    assert errors[0] > 2 * errors[-1]
    assert errors[-1] < 0.002
    assert rungs[0].output.shape == x.shape
    planes = compression._planes(x)
    sheet = compression._sheet(planes)
    np.testing.assert_array_equal(compression._cut(sheet, planes.shape), planes)


@pytest.mark.parametrize("shape", [(2, 3, 40, 48), (3, 1, 33, 50), (4, 2, 8, 8)])
def test_blocks_make_the_images_again(shape):
    x = np.random.default_rng(0).random(shape)
    np.testing.assert_array_equal(compression._whole_images(compression._blocks(x), shape), x)


def test_marks_of_what_images_take_without_loss_are_those_of_the_tools():
    import pyarrow as pa

    found = compression._lossless(DATA.test.x)
    whole = np.rint(DATA.test.x * 255).astype(np.uint8)
    assert found["zstd"] == len(pa.Codec("zstd", compression_level=19).compress(whole.tobytes()))
    assert found["png"] < whole.size / 2


def test_tables_are_no_images():
    reason = application().unsuited(code=4, images=False, labelled=True, normal=True)
    assert reason == "compresses images, and these are tables; use `imputation` or `reduction` for tables"
    assert application().unsuited(code=4, images=None, labelled=True, normal=True) is None


@pytest.mark.parametrize("steps", [[], [1.0], [1.0, 2.0], [2.0, 2.0], [1.0, 0.0]])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps is \[.*\]; expected two numbers or more above 0, each lower"):
        application(steps=steps)


def test_params_yaml_has_a_contest_with_a_ladder_of_its_own_and_one_by_quantised_codes():
    settings = params.load(samples.Path(__file__).parents[1] / "params.yaml")
    variants = {c.variant for c in settings.candidates.values() if "compression" in c.applications}
    assert variants >= {"compressive", "deep"}
