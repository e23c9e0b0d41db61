"""Our AdamW against torch's own."""

import pytest
import torch
from torch import nn

from sevenfold.optimizer import AdamW


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def loss(model, number):
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(number))
    return (model(x) - x[:, :3].sin()).square().mean() * 10


def computed(model, leaves, number):
    with torch.autocast("cpu", torch.bfloat16, enabled=any(leaf.dtype != torch.float32 for leaf in leaves.values())):
        return loss(lambda x: torch.func.functional_call(model, dict(leaves), x), number)


def ours(model, clip, steps=20, **options):
    optimizer = AdamW(model, weight_decay=0.1, gradient_clip=clip, **options)
    for number in range(steps):
        own = optimizer.leaves
        value = computed(model, own, number)
        optimizer.take(torch.autograd.grad(value, list(own.values())), 1.0, add=False)
        optimizer.step(0.01 * (1 + number % 3))
    return optimizer


@pytest.mark.parametrize("clip", [0.1, 1e9])
def test_steps_are_those_of_torchs_adamw_with_torchs_clipping(clip):
    model, theirs = network(), network()
    ours(model, clip)
    reference = torch.optim.AdamW(theirs.parameters(), weight_decay=0.1)
    for number in range(20):
        reference.zero_grad()
        loss(theirs, number).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        for group in reference.param_groups:
            group["lr"] = 0.01 * (1 + number % 3)
        reference.step()
    for one, other in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("piece", [16, 2**17])
def test_weights_in_bfloat16_are_copies_of_weights_that_stay_float32(piece, monkeypatch):
    monkeypatch.setattr("sevenfold.optimizer.PIECE", piece)
    model, exact = network(), network()
    optimizer = ours(model, 1.0, low={"0.weight", "2.weight"})
    ours(exact, 1.0)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        if name.endswith("weight"):
            assert torch.equal(optimizer.leaves[name], parameter.to(torch.bfloat16))
            assert not torch.equal(parameter, parameter.to(torch.bfloat16).float())
        torch.testing.assert_close(parameter, exact.get_parameter(name), rtol=0.1, atol=0.03)


@pytest.mark.parametrize("low", [(), ("0.weight",)])
def test_a_state_put_back_goes_on_the_same(low):
    model = network()
    optimizer = ours(model, 1.0, steps=5, low=low)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in optimizer.state().items()}

    def on(optimizer, model):
        value = computed(model, optimizer.leaves, 99)
        optimizer.take(torch.autograd.grad(value, list(optimizer.leaves.values())), 1.0, add=False)
        optimizer.step(0.01)
        return [p.detach().clone() for p in model.parameters()]

    expected = on(optimizer, model)
    fresh = network()
    again = AdamW(fresh, low=low, weight_decay=0.1, gradient_clip=1.0)
    fresh.load_state_dict(kept)
    again.restore(state)
    assert all(torch.equal(a, b) for a, b in zip(on(again, fresh), expected, strict=True))


def test_gradients_add_up_and_none_is_zero():
    model = network()
    optimizer = AdamW(model, weight_decay=0.0, gradient_clip=1.0)
    ones = [torch.ones_like(leaf) for leaf in optimizer.leaves.values()]
    optimizer.take(ones, 1.0, add=False)
    optimizer.take([None, *ones[1:]], 0.25, add=True)
    assert [float(place.mean()) for place in optimizer.places] == [1.0, 1.25, 1.25, 1.25]
    optimizer.take([None, *ones[1:]], 0.5, add=False)
    assert [float(place.mean()) for place in optimizer.places] == [0.0, 0.5, 0.5, 0.5]


def test_released_parameters_have_memory_of_their_own_and_are_contiguous():
    model = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    before = model.weight.detach().clone()
    optimizer = AdamW(model, weight_decay=0.0, gradient_clip=1.0)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    optimizer.release()
    assert torch.equal(model.weight, before)
    assert model.weight.is_contiguous()
    assert model.weight.untyped_storage().nbytes() == 4 * model.weight.numel()
