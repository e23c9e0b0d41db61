"""Streams hold what was encoded, are as long as the rate says, and trade their length for quality."""

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

PRIORS = {"factorized": [], "scale": [8, 6]}
TRAIN = 320  # mosaics


def spec(shape, **options):
    return ModelSpec(
        "compressive", tuple(shape), {"channels": [6, 4], "hyper": [], "weight": 30.0, "augment": []} | options
    )


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
def trained(prior, weight=30.0):
    """A model of mosaics. Shared: who changes it takes a copy."""
    of = spec((1, 32, 32), channels=[12, 24, 16], hyper=PRIORS[prior], weight=weight)
    settings = replace(samples.SETTINGS, epochs=12)
    return samples.fit(of, samples.split(mosaics(TRAIN, 1)), samples.split(mosaics(60, 2)), settings=settings)[0]


@functools.cache
def unseen():
    return torch.from_numpy(mosaics(200, 3))


@pytest.fixture(params=PRIORS)
def prior(request):
    return request.param


@pytest.fixture
def model(prior):
    return trained(prior)


@pytest.mark.parametrize("edges", [(1, 1), (1, 9), (2, 3), (8, 8), (13, 6), (17, 31)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("hyper", [[], [3], [3, 2]])
def test_an_image_of_any_size_and_channels_comes_out_of_its_stream(edges, channels, hyper):
    shape = (channels, *edges)
    model = build(shape, hyper=hyper)
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


def test_the_rate_is_the_length_of_the_streams(model):
    x = unseen()
    lengths = 8 * np.array([len(stream) for stream in model.compress(x)]) - entropy.OVERHEAD
    with torch.inference_mode():
        rate = model.rate(x)
    assert rate.sum().item() == pytest.approx(lengths.sum(), rel=0.03)
    assert np.abs(lengths - rate.numpy()).max() < 30  # the last byte's padding, and what rounded tables cost


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


def test_streams_are_read_by_a_fresh_process_with_other_threads(prior, model, tmp_path):
    of = spec((1, 32, 32), channels=[12, 24, 16], hyper=PRIORS[prior])
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
    hyperprior = build((1, 12, 20), hyper=[5, 7], channels=[4, 3]).prior
    with torch.no_grad():
        for parameter in hyperprior.parameters():
            parameter.mul_(3)
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
        level = np.clip(total * compressive.STRIDE / 2**22 + 32, 0, 63)
        found.append(np.rint(level)[:, :3, 1:6])  # cropped from 4x8 to 3x5
    np.testing.assert_array_equal(hyperprior.levels(z).detach(), found)
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


def test_the_stream_of_another_model_is_refused(prior, model):
    other = trained(prior, 3.0)
    with pytest.raises(entropy.DamagedStreamError, match="or use the model that wrote it"):
        other.decompress(model.compress(unseen()[:1]))


def test_more_weight_on_the_distortion_buys_quality_with_bits(prior):
    x = unseen()
    with torch.inference_mode():
        (low, poor), (high, good) = (
            (model.rate(x).mean(), (model(x) - x).square().mean()) for model in (trained(prior, 3.0), trained(prior))
        )
    assert low < 0.8 * high
    assert good < 0.8 * poor


@pytest.mark.parametrize("seen", [None, 0.7])
def test_losses_are_bits_per_value_and_the_weighted_share_of_variance(model, seen):
    x = unseen()
    observed = None if seen is None else torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < seen
    with torch.inference_mode():
        losses = model.losses(x, observed)
        error = np.ma.masked_array((model(x) - x).numpy(), False if observed is None else ~observed.numpy())
        bits = model.rate(x).sum().item()
    train = mosaics(TRAIN, 1)
    variance = np.square(train - train.mean(axis=0)).mean()
    assert losses["distortion"].item() == pytest.approx(30 * (error**2).mean() / variance, rel=1e-4)
    assert losses["rate"].item() == pytest.approx(bits / error.count(), rel=1e-5)


def test_noise_in_training_costs_what_rounding_does(model):
    x = unseen()
    torch.manual_seed(0)
    with torch.inference_mode():
        rounded = model.losses(x, None)
        noisy = model.train().losses(x, None)
        model.eval()
    assert noisy["rate"].item() == pytest.approx(rounded["rate"].item(), rel=0.1)
    assert noisy["rate"] != rounded["rate"]
    torch.testing.assert_close(noisy["distortion"], rounded["distortion"])  # of the rounded latents in both


def fitted(prior, y, rate, steps=300):
    """A prior fitted to latents (n, *grid), and its bits per sample of them."""
    optimizer = torch.optim.Adam(prior.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        batch = y[torch.randint(len(y), (128,))]
        prior.train().bits(batch + torch.rand_like(batch) - 0.5, batch).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return prior.eval().bits(y, y).mean().item()


def test_a_factorized_prior_comes_near_the_entropy_of_its_latents():
    generator = np.random.default_rng(0)
    n = 4000
    two_humps = np.where(generator.random(n) < 0.3, generator.normal(-12, 2, n), generator.normal(6, 4, n))
    columns = [two_humps, generator.normal(3, 10, n), generator.laplace(0, 3, n), generator.normal(0, 0.5, n)]
    y = np.rint(np.stack(columns, axis=1))
    ideal = sum(scipy.stats.entropy(np.unique(c, return_counts=True)[1], base=2) for c in y.T)
    prior = compressive.FactorizedPrior((4, 1, 1))
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
    factorized = fitted(compressive.FactorizedPrior((8, 4, 4)), y, 0.03)
    scaled = fitted(compressive.ScaleHyperprior((8, 4, 4), [8]), y, 0.01)
    assert scaled < factorized - 0.35 * (factorized - ideal)
    assert scaled > ideal


def test_bits_are_the_information_in_a_mixture_of_logistic_distributions():
    prior = compressive.FactorizedPrior((2, 3, 4)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_()
        y = torch.round(10 * torch.randn(5, 2, 3, 4))
        found = prior.bits(y, y)
    logits, means, scales = (p.detach().double().numpy() for p in (prior.logits, prior.means, prior.log_scales))
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


def test_a_training_step_compiles_as_one_graph(prior):
    model = build((1, 32, 32), hyper=PRIORS[prior]).train()
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


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(ValueError, match=rf"weight is {weight}; expected a number above 0"):
        build((1, 8, 8), weight=weight)
