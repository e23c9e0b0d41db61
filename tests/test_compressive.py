"""Streams hold what was encoded, are as long as the rate says, and trade their length for quality."""

import copy
import functools
import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn import datasets

import samples
from sevenfold import bundles, entropy
from sevenfold.models import compressive
from sevenfold.models.base import ModelSpec

BASE = {"channels": [6, 4], "hidden": [], "hyper": [], "groups": 1, "weights": [3.0, 10.0, 30.0], "augment": []}
PRIORS = {
    "factorized": {},
    "scale": {"hyper": [8, 6]},
    "groups": {"groups": 4},
    "scale and groups": {"hyper": [8], "groups": 2},
}
KINDS = PRIORS | {"layers": {"channels": [96], "hidden": [64], "groups": 4}}
RUNGS = len(BASE["weights"])
TRAIN = 320  # mosaics


def spec(shape, **options):
    return ModelSpec("compressive", tuple(shape), BASE | options)


def build(shape, **options):
    torch.manual_seed(0)
    return spec(shape, **options).build().eval()


@functools.cache
def mosaics(count, seed):
    """Images 32x32 of four by four digits each, (count, 1, 32, 32) in [0, 1]."""
    digits = datasets.load_digits().images.astype(np.float32) / 16
    chosen = digits[np.random.default_rng(seed).integers(0, len(digits), count * 16)]
    return chosen.reshape(count, 4, 4, 8, 8).transpose(0, 1, 3, 2, 4).reshape(count, 1, 32, 32)


@functools.cache
def trained(kind, seed=0):
    """A model of mosaics. Shared: who changes it takes a copy."""
    of = spec((1, 32, 32), **{"channels": [12, 24, 16]} | KINDS[kind])
    settings = replace(samples.SETTINGS, epochs=16, patience=16)
    return samples.fit(
        of, samples.split(mosaics(TRAIN, 1)), samples.split(mosaics(60, 2)), seed=seed, settings=settings
    )[0]


@functools.cache
def unseen():
    return torch.from_numpy(mosaics(200, 3))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=range(1, RUNGS + 1))
def rung(request):
    return request.param


@pytest.fixture
def model(kind):
    return trained(kind)


@pytest.mark.parametrize("edges", [(1, 1), (1, 9), (2, 3), (8, 8), (13, 6), (17, 31)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("hyper", [[], [3], [3, 2]])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_image_of_any_size_and_channels_comes_out_of_its_stream(edges, channels, hyper, groups):
    shape = (channels, *edges)
    model = build(shape, hyper=hyper, groups=groups)
    x = torch.randn(5, *shape)
    model.prepare(x, None)
    z = model.encode(x)
    assert z.shape == (5, 4 * math.ceil(edges[0] / 4) * math.ceil(edges[1] / 4))
    assert torch.equal(z, z.round())
    streams = model.compress(x)
    assert torch.equal(model.unpack(streams), z)
    torch.testing.assert_close(model.decompress(streams), model(x))
    assert model.decompress(streams).shape == x.shape
    assert model.decompress([]).shape == (0, *shape)
    assert model.compress(x[:0]) == []


def test_four_halvings_of_small_patches_leave_one_place():
    assert build((1, 16, 16), channels=[4, 4, 4, 16]).code == 16


def test_the_border_is_repeated():
    x = torch.randn(3, 2, 5, 7)
    model, larger = build((2, 5, 7)), build((2, 8, 8))
    padded = torch.nn.functional.pad(x, (0, 1, 1, 2), mode="replicate")
    torch.testing.assert_close(model.encode(x), larger.encode(padded))
    z = model.encode(x)
    torch.testing.assert_close(model.decode(z), larger.decode(z)[:, :, 1:6, :7])


def test_the_rate_is_the_length_of_the_streams(model, rung):
    x = unseen()[:100]
    lengths = 8 * np.array([len(stream) for stream in model.compress(x, rung)]) - entropy.OVERHEAD
    with torch.inference_mode():
        rate = model.rate(x, rung)
    # Half a byte of padding at the end, in the mean.
    assert rate.sum().item() == pytest.approx(lengths.sum() - 4 * len(x), rel=0.03)
    assert np.abs(lengths - rate.numpy()).max() < 30  # the last byte's padding, and what rounded tables cost
    stream, bits = model.compress_together(x, rung)
    torch.testing.assert_close(bits, rate)
    assert 8 * len(stream) - entropy.OVERHEAD == pytest.approx(rate.sum().item(), rel=0.03)


def test_a_stream_of_many_images_holds_what_their_own_streams_hold(model, rung):
    x = unseen()[:9]
    stream, _ = model.compress_together(x, rung)
    together = model.decompress_together(stream, len(x), rung, x.shape[2:])
    torch.testing.assert_close(together, model.decompress(model.compress(x, rung), rung))
    torch.testing.assert_close(together, model.image(model.whole(x, rung), rung, x.shape[2:]))


def test_each_rung_costs_more_and_is_better_than_the_one_below(model, kind):
    x = unseen()
    with torch.inference_mode():
        rates = [model.rate(x, rung).mean() for rung in range(1, RUNGS + 1)]
        images = [model.image(model.whole(x, rung), rung, x.shape[2:]) for rung in range(1, RUNGS + 1)]
    errors = [(image - x).square().mean() for image in images]
    assert model.rungs == RUNGS
    assert all(low < 0.85 * high for low, high in itertools.pairwise(rates))
    assert all(good < poor for poor, good in itertools.pairwise(errors))
    assert kind == "layers" or errors[-1] < 0.8 * errors[0]
    torch.testing.assert_close(images[-1], model(x))


@pytest.mark.parametrize("edges", [(32, 64), (17, 9), (80, 33)])
@pytest.mark.parametrize("kind", PRIORS)
def test_images_of_other_sizes_than_those_of_the_training_come_back(kind, edges, rung):
    model = trained(kind)
    x = torch.from_numpy(mosaics(12, 5)).reshape(3, 2, 2, 32, 32).transpose(2, 3).reshape(3, 1, 64, 64)
    x = torch.nn.functional.pad(x, (0, 40, 0, 40), mode="replicate")[..., : edges[0], : edges[1]]
    streams = model.compress(x, rung)
    found = model.decompress(streams, rung, edges)
    assert found.shape == x.shape
    torch.testing.assert_close(found, model.image(model.whole(x, rung), rung, edges))
    stream, _ = model.compress_together(x, rung)
    torch.testing.assert_close(model.decompress_together(stream, len(x), rung, edges), found)
    if rung == RUNGS and edges == (32, 64):  # where digits stand as they do in the training
        assert (found - x).square().mean() < 0.3 * x.var()


@pytest.mark.parametrize("kind", PRIORS)
@pytest.mark.parametrize("edges", [(70, 33), (32, 129), (1, 65), (96, 96)])
def test_a_large_image_goes_through_tiles_without_a_seam(kind, edges, rung, monkeypatch):
    model = trained(kind)
    x = torch.from_numpy(np.random.default_rng(0).random((1, 1, *edges), np.float32))
    with torch.no_grad():
        y = model.whole(x, rung)
        image = model.image(y, rung, edges)
        monkeypatch.setattr(compressive, "TILE", 32)
        assert model.tiles(edges) == math.ceil(edges[0] / 32) * math.ceil(edges[1] / 32)
        # Sums of other lengths round otherwise, which moves a latent that lies between two whole numbers.
        assert (model.whole(x, rung) - y).abs().max() <= 1
        assert (model.whole(x, rung) != y).double().mean() < 0.001
        torch.testing.assert_close(model.image(y, rung, edges), image, atol=1e-5, rtol=1e-5)
        streams = model.compress_tiles(x, rung)
        assert len(streams) == model.tiles(edges)
        found = model.decompress_tiles(streams, rung, edges)
        assert torch.equal(found, model.image(model.whole(x, rung), rung, edges))


def test_tiles_of_another_image_are_refused(monkeypatch):
    monkeypatch.setattr(compressive, "TILE", 32)
    model, x = trained("groups"), torch.from_numpy(np.random.default_rng(0).random((1, 1, 70, 33), np.float32))
    streams = model.compress_tiles(x, 1)
    with pytest.raises(entropy.DamagedStreamError, match="5 streams; an image of 33x70 has 6, one for each tile"):
        model.decompress_tiles(streams[1:], 1, (70, 33))
    # Which of the two it is hangs on the byte where the stream is cut, and so on how this processor rounds.
    with pytest.raises(entropy.DamagedStreamError, match=r"fails its checksum|ends in a zero"):
        model.decompress_tiles([streams[0][:-2], *streams[1:]], 1, (70, 33))


@pytest.mark.parametrize("kind", ["layers", "scale and groups"])
def test_a_copy_of_double_precision_reads_the_same_integers_and_nearly_the_same_pixels(kind, rung):
    model, x = trained(kind), unseen()[:9]
    precise = copy.deepcopy(model).double()
    stream, _ = model.compress_together(x, rung)
    found = precise.decompress_together(stream, len(x), rung, x.shape[2:])
    assert found.dtype == torch.double
    torch.testing.assert_close(found.float(), model.decompress_together(stream, len(x), rung, x.shape[2:]))


def test_fully_connected_layers_take_images_of_one_size():
    model = trained("layers")
    with pytest.raises(ValueError, match=r"images are \(2, 1, 32, 40\); expected \(n, 1, 32, 32\), as those of the tr"):
        model.compress(torch.zeros(2, 1, 32, 40))
    with pytest.raises(ValueError, match=r"images are \(2, 3, 32, 40\); expected \(n, 1, height, width\)"):
        trained("factorized").compress(torch.zeros(2, 3, 32, 40))


@pytest.mark.parametrize("rung", [0, RUNGS + 1])
def test_a_rung_that_is_not_there_is_refused(model, rung):
    with pytest.raises(ValueError, match=f"rung is {rung}; expected 1 to {RUNGS}"):
        model.compress(unseen()[:2], rung)


@pytest.mark.parametrize("transform", [{"channels": [10], "hidden": [16]}, {"channels": [5, 4, 10]}])
def test_without_its_layers_a_transform_keeps_what_principal_components_do(transform):
    x = unseen()[:, :, 8:16, 8:16]
    model = build(x.shape[1:], **transform, weights=[1e9])  # so fine a step that rounding costs nothing
    model.prepare(x, None)
    with torch.no_grad():
        near = (model(x) - x).square().mean().item()
        for layers in (model.transform.analysis, model.transform.synthesis):
            for parameter in layers.parameters():
                parameter.zero_()
        error = (model(x) - x).square().mean().item()
    flat = x.flatten(1).double().numpy()
    flat -= flat.mean(axis=0 if "hidden" in transform else None)  # convolutions know the mean of a channel
    values = np.linalg.svd(flat, compute_uv=False)
    assert error == pytest.approx((values[10:] ** 2).sum() / x.numel(), rel=1e-3)
    assert near == pytest.approx(error, rel=0.1)  # as yet, the layers add next to nothing


def test_zeros_of_a_code_have_no_sign(model):
    z = model.encode(unseen())
    assert (z < 0).any()
    assert (z == 0).any()
    assert not torch.signbit(z[z == 0]).any()


def test_streams_hold_the_very_integers_in_batches_of_any_size(model):
    x = unseen()[:20]
    z = model.encode(x)
    streams = model.pack(z)
    assert torch.equal(model.unpack(streams), z)
    assert [model.pack(row[None])[0] for row in z] == streams
    assert torch.equal(torch.cat([model.unpack([stream]) for stream in streams]), z)
    assert torch.equal(model.unpack(streams[::-1]), z.flip(0))


@pytest.mark.parametrize("kind", ["layers", "scale and groups"])
def test_streams_are_read_by_a_fresh_process_with_other_threads(kind, tmp_path):
    model = trained(kind)
    of = spec((1, 32, 32), **{"channels": [12, 24, 16]} | KINDS[kind])
    bundles.save_model(tmp_path / "model", of, model)
    z = model.encode(unseen()[:6]).detach()
    for index, stream in enumerate(model.pack(z)):
        (tmp_path / f"{index}.stream").write_bytes(stream)
    program = """if True:
        import pathlib, sys, numpy, torch
        from sevenfold import bundles
        folder = pathlib.Path(sys.argv[1])
        torch.set_num_threads(2)
        model = bundles.load_model(folder / "model")[1]
        streams = [path.read_bytes() for path in sorted(folder.glob("*.stream"))]
        numpy.save(folder / "codes.npy", model.unpack(streams).numpy())
        assert model.pack(model.unpack(streams)) == streams
    """
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), z.numpy())


def integers(values, before, behind):
    """Return the whole numbers that stand for values with so many binary digits."""
    return np.rint(np.clip(values, -(2.0**before), 2.0**before) * 2**behind).astype(np.int64)


def doubled(x, weight, bias):
    """A transposed convolution of 4x4 at a stride of 2, in whole numbers, (c, h, w) -> (d, 2h, 2w)."""
    _, height, width = x.shape
    out = np.zeros((weight.shape[1], 2 * height + 2, 2 * width + 2), np.int64)
    for i, j, k, m in itertools.product(range(height), range(width), range(4), range(4)):
        out[:, 2 * i + k, 2 * j + m] += weight[:, :, k, m].T @ x[:, i, j]
    return out[:, 1:-1, 1:-1] + bias[:, None, None]


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_scales_are_chosen_by_integer_arithmetic(size):
    hyperprior = build((1, 12, 20), hyper=[5, 7], channels=[4, 3], weights=[1.0]).prior
    with torch.no_grad():
        for parameter in hyperprior.parameters():
            parameter.mul_(3)
        hyperprior.scales.fill_(0.25)  # of the rung: two levels more
    z = torch.round(size * 8 * torch.randn(6, 7, 1, 2))
    generator = np.random.default_rng(0)
    first, second = ([p.detach().double().numpy() for p in layer.parameters()] for layer in hyperprior.doubling)
    last = [p.detach().double().numpy() for p in hyperprior.last.parameters()]
    found = []
    for one in z.numpy():
        x = integers(one / compressive.GAIN, 10, 8)
        for weight, bias in (first, second):
            order = generator.permutation(len(x))  # exact sums come in any order
            total = doubled(x[order], integers(weight, 3, 14)[order], integers(bias, 3, 14) << 8)
            x = integers(np.maximum(total, 0) / 2**22, 10, 8)
        weight, bias = integers(last[0], 3, 14), integers(last[1], 3, 14) << 8
        wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(1, 2))
        total = np.einsum("chwij,dcij->dhw", windows, weight) + bias[:, None, None]
        level = np.clip(total * compressive.STRIDE / 2**22 + 34, 0, 63)
        found.append(np.rint(level)[:, :3, 1:6])  # cropped from 4x8 to 3x5
    np.testing.assert_array_equal(hyperprior.levels(z, (3, 5)).detach(), found)
    assert len(np.unique(found)) > 5


def test_extreme_images_have_streams_too(model):
    x = torch.stack([scale * unseen()[0] for scale in (0, 1e3, -1e3, 1e6, 1e30, -1e38)])
    z = model.encode(x)
    streams = model.pack(z)
    assert torch.equal(model.unpack(streams), z)
    assert torch.isfinite(model.rate(x)).all()
    assert torch.isfinite(model.decompress(streams)).all()


def test_no_integer_is_impossible(model):
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-9, 10, (8, model.code), generator=generator).float()
    z *= 10.0 ** torch.arange(8)[:, None]
    z = z.clamp(-compressive.LARGEST, compressive.LARGEST)
    assert torch.equal(model.unpack(model.pack(z)), z)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(model, value):
    x = unseen()[:2].clone()
    x[1, 0, 3, 4] = value
    with pytest.raises(
        ValueError, match=rf"1 values are not finite \(first: {value}\); expected numbers; mend or drop"
    ):
        model.compress(x)


def test_what_is_no_code_is_refused(model):
    z = model.encode(unseen()[:2])
    with pytest.raises(ValueError, match=r"1 code values are no whole numbers .*\(first: 0\.5\)"):
        model.pack(z.index_put((torch.tensor(1), torch.tensor(7)), torch.tensor(0.5)))


def test_damage_is_found(model):
    (stream,) = model.compress(unseen()[:1])
    damaged = [stream[:size] for size in range(0, len(stream), 7)]
    for bit in range(0, 8 * len(stream), 5):
        flipped = bytearray(stream)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    assert len(damaged) > 50
    for one in damaged:
        with pytest.raises(entropy.DamagedStreamError, match=f"a stream of {len(one)} bytes"):
            model.decompress([stream, one])


def test_the_stream_of_another_model_rung_or_size_is_refused(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.prior.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    message = "or use the model that wrote it"
    with pytest.raises(entropy.DamagedStreamError, match=message):
        other.decompress(model.compress(unseen()[:1]))
    with pytest.raises(entropy.DamagedStreamError, match=message):
        model.decompress(model.compress(unseen()[:1], 2), 3)
    with pytest.raises(entropy.DamagedStreamError, match=message):
        model.decompress_together(model.compress_together(unseen()[:3], 2)[0], 4, 2, (32, 32))


@pytest.mark.parametrize("kind", ["groups", "layers"])
def test_what_decoders_know_of_a_group_is_what_came_before(kind):
    """Whoever looks at its own group, or a later one, cannot be decoded."""
    model = trained(kind)
    y = model.whole(unseen()[:5], 2).double()
    number, gain = torch.full((5,), 1), model.gains[1][None, :, None, None]
    prior = model.prior
    given = prior._given(prior._offset(number), y, number, gain)
    size = y.shape[1] // prior.groups
    for group in range(prior.groups):
        changed = y.clone()
        changed[:, group * size :] += 100
        for before, after in zip(given, prior._given(prior._offset(number), changed, number, gain), strict=True):
            assert torch.equal(before[:, : (group + 1) * size], after[:, : (group + 1) * size])
    assert not torch.equal(given[1], prior._given(prior._offset(number), y + 100, number, gain)[1])


@pytest.mark.parametrize("seen", [None, 0.7])
def test_losses_are_bits_per_value_and_the_weighted_share_of_variance(model, kind, seen):
    x = unseen()
    observed = None if seen is None else torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < seen
    bits, error = 0, 0
    with torch.inference_mode():
        losses = model.losses(x, observed)
        for rung, weight in enumerate(BASE["weights"], 1):  # each has every third image
            own = x[rung - 1 :: RUNGS]
            squares = (model.image(model.whole(own, rung), rung, x.shape[2:]) - own).square()
            error += weight * (squares if seen is None else squares * observed[rung - 1 :: RUNGS]).sum().item()
            bits += model.rate(own, rung).sum().item()
    train = mosaics(TRAIN, 1)
    # Layers know each pixel's mean; convolutions, which take images of any size, one for all.
    variance = np.square(train - train.mean(axis=0 if kind == "layers" else None)).mean()
    count = x.numel() if seen is None else observed.sum().item()
    assert losses["distortion"].item() == pytest.approx(error / count / variance, rel=1e-4)
    assert losses["rate"].item() == pytest.approx(bits / count, rel=1e-5)


@pytest.mark.parametrize("gaps", [False, True])
def test_convolutions_centre_each_channel(gaps):
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(50, 2, 6, 7)) * [[[1.0]], [[3.0]]] + [[[4.0]], [[-2.0]]]).astype(np.float32)
    seen = generator.random(x.shape) > 0.3 * gaps
    model = build((2, 6, 7))
    model.prepare(torch.from_numpy(x * seen), torch.from_numpy(seen) if gaps else None)
    masked = np.ma.masked_array(x, ~seen)
    center = masked.mean(axis=(0, 2, 3), keepdims=True)
    np.testing.assert_allclose(model.standardise.center, center[0], rtol=1e-4)
    assert float(model.standardise.spread) == pytest.approx(np.sqrt(((masked - center) ** 2).mean()), rel=1e-4)


def test_noise_in_training_costs_what_rounding_does(model):
    x = unseen()
    torch.manual_seed(0)
    with torch.inference_mode():
        rounded = model.losses(x, None)
        noisy = model.train().losses(x, None)
        model.eval()
    assert noisy["rate"].item() == pytest.approx(rounded["rate"].item(), rel=0.1)
    assert noisy["rate"] != rounded["rate"]
    # Of the rounded latents in both, though every image has another rung.
    torch.testing.assert_close(noisy["distortion"], rounded["distortion"], rtol=0.05, atol=0)


def at_one_rung(y):
    """The rung of each sample, from 0, and the gains."""
    return torch.zeros(len(y), dtype=torch.long), torch.ones(1, y.shape[1])


def fitted(prior, y, rate, steps=300):
    """A prior fitted to latents (n, *grid), and its bits per sample of them."""
    optimizer = torch.optim.Adam(prior.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        batch = y[torch.randint(len(y), (128,))]
        prior.train().bits(batch + torch.rand_like(batch) - 0.5, batch, *at_one_rung(batch)).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return prior.eval().bits(y, y, *at_one_rung(y)).mean().item()


def test_a_factorized_prior_comes_near_the_entropy_of_its_latents():
    generator = np.random.default_rng(0)
    n = 4000
    two_humps = np.where(generator.random(n) < 0.3, generator.normal(-12, 2, n), generator.normal(6, 4, n))
    columns = [two_humps, generator.normal(3, 10, n), generator.laplace(0, 3, n), generator.normal(0, 0.5, n)]
    y = np.rint(np.stack(columns, axis=1))
    ideal = sum(scipy.stats.entropy(np.unique(c, return_counts=True)[1], base=2) for c in y.T)
    prior = compressive.FactorizedPrior(4, torch.ones(1))
    bits = fitted(prior, torch.from_numpy(y).float()[:, :, None, None], 0.03)
    assert ideal < bits < 1.02 * ideal


def test_a_scale_hyperprior_knows_where_latents_are_large():
    generator = np.random.default_rng(0)
    scale = np.where(generator.random((600, 1, 2, 2)) < 0.5, 0.3, 15.0).repeat(2, axis=2).repeat(2, axis=3)
    y = np.rint(scipy.stats.logistic(0, scale).rvs((600, 8, 4, 4), random_state=generator))
    # Each latent by the scale that it was drawn from, and one bit for each choice of a scale.
    lower, upper = (scipy.stats.logistic(0, scale).cdf(y + half) for half in (-0.5, 0.5))
    ideal = -np.log2(upper - lower).sum(axis=(1, 2, 3)).mean() + 4
    y = torch.from_numpy(y).float()
    torch.manual_seed(0)
    factorized = fitted(compressive.FactorizedPrior(8, torch.ones(1)), y, 0.03)
    scaled = fitted(compressive.ConditionalPrior((8, 4, 4), [8], 1, torch.ones(1)), y, 0.01, steps=400)
    assert scaled < factorized - 0.35 * (factorized - ideal)
    assert scaled > ideal


def test_groups_of_channels_tell_of_each_other():
    generator = np.random.default_rng(0)
    first = np.rint(scipy.stats.logistic(0, 6).rvs((2000, 1, 1, 1), random_state=generator))
    scale = np.where(first > 0, 0.5, 4.0)
    y = np.concatenate([first, np.rint(first / 2 + scale * generator.logistic(size=first.shape))], axis=1)
    alone = scipy.stats.entropy(np.unique(first, return_counts=True)[1], base=2)
    edges = (scipy.stats.logistic(first / 2, scale).cdf(y[:, 1:] + half) for half in (-0.5, 0.5))
    ideal = alone - np.log2(np.diff(np.stack([*edges]), axis=0)).mean()
    y = torch.from_numpy(y).float()
    torch.manual_seed(0)
    grouped = fitted(compressive.ConditionalPrior((2, 1, 1), [], 2, torch.ones(1)), y, 0.02)
    factorized = fitted(compressive.FactorizedPrior(2, torch.ones(1)), y, 0.03)
    assert ideal < grouped < ideal + 0.3 * (factorized - ideal)


def test_bits_are_the_information_in_a_mixture_of_logistic_distributions():
    prior = compressive.FactorizedPrior(2, torch.ones(3)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_()
        y = torch.round(10 * torch.randn(5, 2, 3, 4))
        found = prior.bits(y, y, torch.full((5,), 1), torch.ones(3, 2))
    logits, means, scales = (p.detach()[:, 1].double().numpy() for p in (prior.logits, prior.means, prior.log_scales))
    shares = np.exp(logits) / np.exp(logits).sum(axis=0)
    expected = np.zeros(5)
    for channel in range(2):
        values = y[:, channel].double().numpy()
        mass = 0
        for share, mean, scale in zip(shares[:, channel], means[:, channel], scales[:, channel], strict=True):
            component = scipy.stats.logistic(compressive.GAIN * mean, compressive.GAIN * np.exp(scale))
            mass += share * (component.cdf(values + 0.5) - component.cdf(values - 0.5))
        expected -= np.log2(mass).sum(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_mass_is_right_far_out_and_draws_back():
    x = torch.tensor([0.0, 3.0, -80.0, 5000.0, -1e6], requires_grad=True)
    found = compressive.log_mass(x, torch.tensor(math.log(2.0)))
    far = np.abs(x.detach().double().numpy())
    # By symmetry the mass is that of the lower tail, where cumulative values keep their digits.
    upper, lower = (scipy.stats.logistic.logcdf((-far + half) / 2) for half in (0.5, -0.5))
    np.testing.assert_allclose(found.detach(), upper + np.log1p(-np.exp(lower - upper)), rtol=1e-5)
    found.sum().backward()
    np.testing.assert_allclose(x.grad[2:], [0.5, -0.5, 0.5], rtol=1e-3)


@pytest.mark.parametrize("inverse", [False, True])
def test_normalisation_divides_by_the_root_of_weighted_squares(inverse):
    layer = compressive.Normalisation(3, inverse=inverse)
    with torch.no_grad():
        layer.weight.normal_()
        layer.constant.normal_()
    x = torch.randn(2, 3, 4, 5)
    weight, constant = np.abs(layer.weight.detach().numpy()), np.abs(layer.constant.detach().numpy()) + 1e-3
    root = np.sqrt(constant[:, None, None] + np.einsum("ij,njhw->nihw", weight, x.numpy() ** 2))
    expected = x.numpy() * root if inverse else x.numpy() / root
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-4, atol=1e-6)


def test_a_training_step_compiles_as_one_graph(kind):
    model = build((1, 32, 32), **KINDS[kind]).train()
    x = unseen()[:4]
    model.prepare(x, None)
    compiled = torch.compile(model.losses, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    found = compiled(x, None)
    torch.manual_seed(0)
    torch.testing.assert_close(found, model.losses(x, None))


def test_training_in_bfloat16_counts_the_same_bits(model):
    x = unseen()
    found = []
    for low in (False, True):
        torch.manual_seed(0)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            found.append({name: loss.item() for name, loss in model.train().losses(x, None).items()})
    model.eval()
    assert found[1] == pytest.approx(found[0], rel=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encode(x)
        assert torch.equal(model.unpack(model.pack(z)), z)


@pytest.mark.parametrize("shape", [(30,), (6, 5), (1, 2, 3, 4)])
def test_what_is_no_image_is_refused_with_its_shape_and_a_remedy(shape):
    message = (
        rf"shape is {re.escape(str(shape))}; expected that of an image, .*; use a fully connected variant for tables"
    )
    with pytest.raises(ValueError, match=message):
        build(shape)


@pytest.mark.parametrize("channels", [[], [8, 0], [-4]])
def test_impossible_channels_are_refused(channels):
    with pytest.raises(
        ValueError, match=rf"channels is {re.escape(str(channels))}; expected one number or more, each 1"
    ):
        build((1, 8, 8), channels=channels)


def test_impossible_channels_of_the_hyperprior_are_refused():
    with pytest.raises(ValueError, match=r"hyper is \[4, 0\]; expected numbers of 1 or more, or none"):
        build((1, 8, 8), hyper=[4, 0])


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [-1.0], [3.0, 2.0], [2.0, 2.0]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(
        ValueError, match=rf"weights is {re.escape(str(weights))}; expected numbers above 0, each higher"
    ):
        build((1, 8, 8), weights=weights)


@pytest.mark.parametrize("groups", [0, 3])
def test_impossible_groups_are_refused(groups):
    with pytest.raises(ValueError, match=rf"groups is {groups}; expected 1, or a divisor of the last .*\[4\]"):
        build((1, 8, 8), groups=groups)


def test_options_of_layers_are_checked_all_at_once():
    message = r"hidden is \[0\]; expected widths.*; channels is \[6, 4\] with hidden.*; hyper is \[3\] with hidden layers; exp"
    with pytest.raises(ValueError, match=message):
        build((1, 8, 8), hidden=[0], hyper=[3])
