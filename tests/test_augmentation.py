"""Images are changed in training only, each to half of them, and the gaps go along."""

import collections

import numpy as np
import pytest
import torch

from sevenfold import augmentation
from sevenfold.models.base import ModelSpec

COMMON = {"code": 3, "activation": "silu"}
VARIANTS = {
    "convolutional": COMMON | {"channels": [4], "hidden": [], "blocks": 0},
    "compressive": {"channels": [4], "hidden": [], "hyper": [], "groups": 1, "weights": [1.0]},
    "residual": {"channels": [4], "blocks": 1, "activation": "silu", "shuffle": 1, "levels": [0.0, 0.1], "doubt": 0.0},
    "deep": COMMON | {"hidden": [8], "blocks": 0, "tied": False, "numbers": "standard", "categories": "one-hot"},
}


PLAIN = ("convolutional", "deep")
"""Variants whose loss is the squared error of what they were shown, and nothing beside."""


@pytest.fixture(params=VARIANTS)
def build(request):
    def built(shape, augment):
        options = {"augment": augment} | VARIANTS[request.param]
        return ModelSpec(request.param, shape, options).build()

    return built


def images(height=4, width=4, count=400):
    """Images whose cells all differ, and which of them were observed."""
    generator = np.random.default_rng(0)
    shape = (count, 2, height, width)
    x = torch.from_numpy(generator.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32))
    return x, torch.from_numpy(generator.random(shape) < 0.8)


CHANGES = {
    "mirror": lambda image, mean: image[..., ::-1],
    "flip": lambda image, mean: image[..., ::-1, :],
    "transpose": lambda image, mean: np.swapaxes(image, -1, -2),
    "negative": lambda image, mean: mean + (mean - image),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_done_to_half_of_the_images_and_takes_the_gaps_along(change):
    x, seen = images()
    varied, where = augmentation.vary([change], x, seen, x.mean(dim=0))
    changed = CHANGES[change](x.numpy(), x.numpy().mean(axis=0))
    moved = CHANGES[change](seen.numpy(), None) if change != "negative" else seen.numpy()
    done = np.array([not torch.equal(one, other) for one, other in zip(varied, x, strict=True)])
    chosen = done[:, None, None, None]
    np.testing.assert_allclose(varied, np.where(chosen, changed, x), rtol=1e-6)
    np.testing.assert_array_equal(where, np.where(chosen, moved, seen))
    assert done.mean() == pytest.approx(0.5, abs=0.1)  # four standard deviations


def test_three_changes_make_the_eight_symmetries_of_a_square_alike_often():
    x = images()[0][:1].expand(4000, -1, -1, -1)
    varied, _ = augmentation.vary(["mirror", "flip", "transpose"], x, None, x.mean(dim=0))
    one = x[0].numpy()
    eight = {np.rot90(side, turns, (-2, -1)).tobytes() for side in (one, one[..., ::-1]) for turns in range(4)}
    found = collections.Counter(image.numpy().tobytes() for image in varied)
    assert set(found) == eight
    assert max(abs(count - 500) for count in found.values()) < 4 * np.sqrt(4000 * 1 / 8 * 7 / 8)


def test_a_warp_is_slight_and_its_own_for_half_of_the_images():
    height, width = 16, 12
    down, right = np.mgrid[:height, :width]
    blob = np.exp(-((down - 7.5) ** 2 + (right - 5.5) ** 2) / 8).astype(np.float32)
    x = torch.from_numpy(np.tile(blob, (2000, 1, 1, 1)))
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[..., 0] = False
    varied, where = augmentation.vary(["warp"], x, seen, x.mean(dim=0))
    changed = (varied - x).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert changed.float().mean() == pytest.approx(0.5, abs=0.05)
    assert len(varied[changed].flatten(1).unique(dim=0)) == changed.sum()
    total = varied.sum(dim=(1, 2, 3)).numpy()
    center = (varied.numpy()[:, 0] * right).sum(axis=(1, 2)) / total
    # As far as an eighth of half an edge, to both sides alike, and hardly smaller or larger.
    reach = augmentation.MOVE * width / 2
    assert reach * 0.8 < np.abs(center - 5.5).max() < reach * 1.3
    assert center.mean() == pytest.approx(5.5, abs=0.05)
    assert np.abs(total / total[~changed.numpy()][0] - 1).max() < 0.25
    assert (where.float().mean(dim=0)[0, :, 0] == 0).sum() < height  # some gaps moved out
    assert (where[changed][..., 1].float().mean() < 0.99).item()  # and some moved in
    assert torch.equal(where[~changed], seen[~changed])


@pytest.mark.parametrize("build", PLAIN, indirect=True)
def test_images_are_changed_in_training_only_and_the_target_with_them(build):
    x, seen = images(6, 5)
    model = build(x.shape[1:], augment=["mirror", "negative"])
    model.prepare(x, seen)
    before = x.clone()
    for training in (True, False):
        model.train(training)
        torch.manual_seed(3)
        loss = model.losses(x, seen)["reconstruction"].item()
        torch.manual_seed(3)
        center = torch.from_numpy(np.ma.masked_array(x, ~seen).mean(axis=0).filled()).float()
        changes = ["mirror", "negative"] if training else []
        shown, where = augmentation.vary(changes, x, seen, center)
        errors = np.ma.masked_array((model(shown, where) - shown).square().detach().numpy(), ~where.numpy())
        rest = np.ma.masked_array(x.numpy(), ~seen.numpy())
        assert loss == pytest.approx(errors.mean() / ((rest - rest.mean(axis=0)) ** 2).mean(), rel=1e-4)
    assert torch.equal(x, before)


def test_every_variant_with_the_option_changes_images_in_training_and_never_in_eval_mode(build, monkeypatch):
    x, seen = images(6, 5)
    model = build(x.shape[1:], augment=["mirror"])
    model.prepare(x, seen)
    asked = []
    vary = augmentation.vary
    monkeypatch.setattr(
        augmentation, "vary", lambda changes, *rest: asked.append(list(changes)) or vary(changes, *rest)
    )
    model.eval().losses(x, seen)
    assert asked == []
    model.train().losses(x, seen)
    assert asked == [["mirror"]]


def test_only_square_images_can_be_transposed(build):
    with pytest.raises(ValueError, match=r"augment holds 'transpose' for images of 6 x 5; expected square ones"):
        build((1, 6, 5), augment=["transpose"])


def test_an_unknown_change_is_named(build):
    with pytest.raises(ValueError, match=r"option 'augment' is \['turn'\]: input should be 'mirror', 'flip'"):
        build((1, 8, 8), augment=["turn"])


def test_tables_cannot_be_changed():
    options = {"augment": ["mirror"]} | VARIANTS["deep"]
    with pytest.raises(
        ValueError, match=r"augment is \['mirror'\] for samples of shape \(6,\); expected none but for im"
    ):
        ModelSpec("deep", (6,), options).build()
