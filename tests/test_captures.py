"""The kernels of a step give what autograd gives, to the bit, for every variant."""

import math
import shutil

import pytest
import torch
from torch import nn

import samples
from sevenfold import arithmetic, captures, modules
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder
from sevenfold.optimizer import AdamW
from sevenfold.steps import Steps

CASES = [(variant, kind) for variant in modules.names("models") for kind in samples.DATASETS]


def batches(kind, count):
    data = samples.dataset(kind).train
    observed = None if data.observed is None else torch.from_numpy(data.observed)
    for first in range(0, 8 * count, 8):
        rows = slice(first, first + 8)
        yield torch.from_numpy(data.x[rows].copy()), None if observed is None else observed[rows]


def trained_by(variant, kind, compiled, count=6, precision="float32", cache=None):
    """Return weights, buffers and losses after some steps, and what the steps had to say."""
    data = samples.dataset(kind).train
    if reason := samples.refusal(variant, data.x.shape[1:]):
        pytest.skip(reason)
    torch.manual_seed(0)
    model = samples.spec(variant, kind).build()
    x = torch.from_numpy(data.x.copy())
    model.prepare(x, None if data.observed is None else torch.from_numpy(data.observed))
    if not any(p.requires_grad for p in model.parameters()):
        pytest.skip("nothing to train")
    model.train()
    low = arithmetic.in_bfloat16(model, precision, torch.device("cpu"), cells=8 * model.size)
    optimizer = AdamW(model, low=low or (), weight_decay=0.01, gradient_clip=1.0)
    steps = Steps(model, optimizer, low=low, size=8, count=count, compiled=compiled, cache=cache)
    losses = []
    for number, (x, observed) in enumerate(batches(kind, count)):
        model.progress.fill_(number / count)
        losses.append(steps.take(x, observed, number, 1.0))
        optimizer.step(0.01)
    return model.state_dict(), torch.stack(losses), steps.notes


@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_kernels_take_the_very_steps_of_autograd(variant, kind, monkeypatch):
    expected, losses, _ = trained_by(variant, kind, False)
    monkeypatch.setattr(arithmetic, "CAPTURE_FROM", 0)
    weights, found, notes = trained_by(variant, kind, False)
    assert notes == []
    assert torch.equal(found, losses)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_kernels_take_the_very_steps_of_autograd_in_bfloat16_too(monkeypatch):
    if not arithmetic.has_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no bfloat16")
    expected, losses, _ = trained_by("deep", "table", False, precision="bfloat16")
    monkeypatch.setattr(arithmetic, "CAPTURE_FROM", 0)
    weights, found, notes = trained_by("deep", "table", False, precision="bfloat16")
    assert notes == []
    assert torch.equal(found, losses)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())


def capture(step, fixed, inputs, buffers=()):
    places = [torch.full_like(tensor, math.nan) for tensor in fixed[: len(fixed) - len(buffers)]]
    return captures.Capture(step, fixed, list(buffers), places, inputs), places


def test_a_buffer_that_a_step_writes_to_is_read_before_and_after_in_the_right_order():
    weight, buffer = torch.ones(3, requires_grad=True), torch.zeros(3)

    def step(weight, buffer, x):
        before = (buffer * 2).sum() + (x * weight).sum()
        buffer.add_(x.detach())
        after = (buffer * 2).sum()
        loss = before + 10 * after
        return torch.stack([loss.detach()]), list(torch.autograd.grad(loss, [weight]))

    x = torch.tensor([1.0, 2.0, 3.0])
    kernels, (place,) = capture(step, [weight, buffer], [x], [buffer])
    assert torch.equal(buffer, torch.zeros(3))
    assert [kernels(x).item() for _ in range(2)] == [6 + 120, 12 + 6 + 240]
    assert torch.equal(place, x)


def test_noise_is_the_same_and_is_told():
    weight = torch.ones(3, requires_grad=True)

    def step(weight, x):
        loss = (weight * (x + torch.randn(3))).sum() + torch.randn(3).sum()
        return torch.stack([loss.detach()]), list(torch.autograd.grad(loss, [weight]))

    torch.manual_seed(5)
    expected = [step(weight, torch.ones(3))[0] for _ in range(3)]
    torch.manual_seed(5)
    kernels, _ = capture(step, [weight], [torch.ones(3)])
    assert [kernels(torch.ones(3)) for _ in range(3)] == expected
    assert kernels.draws


FACTORS = {
    "counts its calls": (lambda x, calls: len(calls), "other numbers than the step itself"),
    "looks at a value": (lambda x, calls: float(x.sum()), "looks at a value"),
    "goes by numpy": (lambda x, calls: torch.from_numpy(x.numpy().cumsum()), "other numbers than the step itself"),
}


@pytest.mark.parametrize("what", FACTORS)
def test_a_step_that_is_more_than_its_kernels_is_refused(what):
    factor, message = FACTORS[what]
    weight, calls = torch.ones(3, requires_grad=True), []

    def step(weight, x):
        calls.append(1)
        loss = ((weight * x) * factor(x, calls)).sum()
        return torch.stack([loss.detach()]), list(torch.autograd.grad(loss, [weight]))

    with pytest.raises(captures.CaptureError, match=message):
        capture(step, [weight], [torch.arange(3.0)])


LAYERS = {
    "needed again after the next kernel": lambda a, b: torch.relu(a) + a * b,
    "needed again by its view": lambda a, b: (a * b) * (a * b).t().exp().t() + a.t().tanh().t(),
    "both arguments": lambda a, b: (p := a * b) * p + p.neg(),
    "an argument and its transpose": lambda a, b: (p := a * b) * p.t(),
    "a smaller argument": lambda a, b: a + (a * b).sum(dim=0, keepdim=True).exp(),
    "another order in memory": lambda a, b: torch.relu((a * b).t() + a.t()).t() * b,
    "a value of its own kind": lambda a, b: torch.sigmoid(a @ b).relu().tanh() @ torch.relu(a),
}


@pytest.mark.parametrize("what", LAYERS)
def test_what_a_kernel_writes_over_is_not_needed_any_more(what):
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step(weight, x):
        value = LAYERS[what](x @ weight, weight * x)
        loss = value.square().mean()
        return torch.stack([loss.detach(), value.detach().sum()]), list(torch.autograd.grad(loss, [weight]))

    kernels, (place,) = capture(step, [weight], [torch.rand(5, 5)])
    for _ in range(4):
        x = torch.rand(5, 5)
        expected, (gradient,) = step(weight, x)
        assert torch.equal(kernels(x), expected)
        assert torch.equal(place, gradient)


def test_the_losses_of_a_step_outlast_the_next_one():
    weight = torch.ones(3, requires_grad=True)

    def step(weight, x):
        losses = (weight * x).exp()
        return losses.detach().mul(1.0), list(torch.autograd.grad(losses.sum(), [weight]))

    kernels, _ = capture(step, [weight], [torch.arange(3.0)])
    first, second = kernels(torch.zeros(3)), kernels(torch.ones(3))
    assert first.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(second, torch.ones(3).exp())


class Convolved(Autoencoder):
    """Writes down how what it convolves lies in memory."""

    def __init__(self, channels):
        super().__init__(Layout((channels, 6, 6)), 1)
        self.convolution = nn.Conv2d(channels, 4, 3)
        self.seen = []

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x[:, :1, 0, 0]

    def decode(self, z):
        return z

    def losses(self, x, observed):
        self.seen += [x.stride(), self.convolution(x).stride()]
        return {"one": self.convolution(x).square().mean()}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_go_through_convolutions_with_their_channels_last(channels):
    model = Convolved(channels)
    taken, _ = steps(model.to(memory_format=torch.channels_last), compiled=False)
    taken.take(torch.rand(4, channels, 6, 6), None, 0, 1.0)
    assert model.seen == [(36 * channels, 1, 6 * channels, channels), (64, 1, 16, 4)]


class Weighted(Autoencoder):
    """A model with a loss of the test's choosing."""

    def __init__(self, loss):
        super().__init__(samples.spec("deep", "table").build().layout, 1)
        self.weight = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.ones(2))
        self._loss = loss

    def prepare(self, x, observed):
        pass

    def encode(self, x, observed=None):
        return x[:, :1]

    def decode(self, z):
        return z

    def losses(self, x, observed):
        return {"one": self._loss(self.weight, x), "other": self.weight.square()}


def steps(model, compiled=True):
    optimizer = AdamW(model, weight_decay=0.0, gradient_clip=1.0)
    return Steps(model, optimizer, low=None, size=4, count=10, compiled=compiled, cache=None), optimizer


def test_a_step_that_cannot_be_captured_is_taken_by_autograd_with_a_note():
    taken, optimizer = steps(Weighted(lambda w, x: w * float(x.sum())))
    for number in range(3):
        assert taken.take(torch.ones(4, 2), None, number, 1.0).tolist() == [8.0, 1.0]
    assert optimizer.gradients[0][0] == 10.0
    assert taken.terms == ("one", "other")
    (note,) = taken.notes
    assert note.startswith("steps are taken by autograd: ")


def test_without_a_compiler_steps_are_taken_by_their_kernels_with_a_note(monkeypatch):
    def none(*arguments, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", none)
    taken, optimizer = steps(Weighted(lambda w, x: w * x.sum()))
    for number in range(3):
        assert taken.take(torch.ones(4, 2), None, number, 1.0).tolist() == [8.0, 1.0]
    assert optimizer.gradients[0][0] == 10.0
    assert taken.notes == ["steps are not compiled: RuntimeError: no C++ compiler"]


@pytest.mark.slow  # a compiler starts
@pytest.mark.parametrize("variant", ["deep", "sparse"])
def test_a_compiled_step_gives_the_same_but_for_rounding_and_leaves_no_pickle(variant, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    expected, losses, _ = trained_by(variant, "table", False)
    weights, found, notes = trained_by(variant, "table", True, cache=tmp_path / "kernels")
    assert notes == []
    kept = [p for p in (tmp_path / "kernels").rglob("*") if p.is_file()]
    assert {p.suffix for p in kept} >= {".cpp", ".so"}
    assert [p for p in kept if p.read_bytes()[:1] == b"\x80"] == []
    torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=1e-3)


def test_rows_of_another_number_are_taken_by_autograd():
    taken, optimizer = steps(Weighted(lambda w, x: w * x.mean()), compiled=False)
    assert taken.take(torch.ones(3, 2), None, 0, 1.0).tolist() == [1.0, 1.0]
    assert optimizer.gradients[0][0] == 3.0


@pytest.mark.parametrize("captured", [False, True])
def test_a_share_of_a_batch_has_its_share_of_losses_and_gradient(captured, monkeypatch):
    monkeypatch.setattr(arithmetic, "CAPTURE_FROM", 0 if captured else 99)
    taken, optimizer = steps(Weighted(lambda w, x: w * x.mean()), compiled=False)
    assert taken.take(torch.ones(4, 2), None, 0, 0.25).tolist() == [0.25, 0.25]
    assert optimizer.gradients[0][0] == 0.75
    assert taken.take(torch.ones(0, 2), None, 1, 0.0).tolist() == [0.0, 0.0]
    assert optimizer.gradients[0][0] == 0.0


@pytest.mark.parametrize(
    "write",
    [
        lambda out, x: out[:, :2].add_(x[:, :2]),
        lambda out, x: out.view(-1).add_(x.reshape(-1)),
        lambda out, x: out.T.add_(x.T),
        lambda out, x: out[:, 0].add_(x[:, 0]),
    ],
    ids=["slice", "view", "transpose", "select"],
)
@pytest.mark.parametrize("made", [torch.zeros_like, lambda x: torch.zeros(len(x), 3)], ids=["like", "new"])
def test_what_is_written_through_a_view_is_made_anew_in_each_step(made, write):
    weight = torch.ones(3, requires_grad=True)

    def step(weight, x):
        with torch.no_grad():
            out = made(x)
            write(out, x)
        loss = (out * weight).square().mean()
        return loss.detach()[None], list(torch.autograd.grad(loss, [weight]))

    x, place = torch.rand(5, 3), torch.zeros(3)
    capture = captures.Capture(step, [weight], [], [place], (x,))
    for _ in range(4):
        x = torch.rand(5, 3)
        expected, (gradient,) = step(weight, x)
        assert torch.equal(capture(x), expected)
        assert torch.equal(place, gradient)
