"""Which arithmetic a training uses: precision, threads, and when a compiler is worth its time.

By rules, not by stopwatch: other arithmetic rounds differently, and equal trainings have to give equal weights. The rules come
from measurements (docs/decisions/0007-rules-decide-the-arithmetic.md) and look at the model, the settings, the number of rows
and the kind of processor only.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto"] | bool

WIDE = 256
"""From this width on a layer's products gain more by bfloat16 than its conversions cost."""

MANY_PIXELS = 2**14
"""Values in a batch of images from which on convolutions gain by bfloat16."""

MANY = 2**24
"""Products of a batch with the weights from which on a second thread gains anything."""

CAPTURE_FROM = 200
"""Steps of a training from which on a capture saves more time than it takes."""

COMPILE_AFTER = {"convolutions": 2000, "dense layers": 50_000}
"""Steps that a training takes, and has left to take, before it is compiled: a compiler takes about as long as it saves over
so many. Who waits for as long as the wait costs has lost half at most, whatever comes (the ski rental problem)."""


def has_bfloat16(device: torch.device) -> bool:
    """Say whether a device multiplies in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Intel's and AMD's from about 2021 on. Others compute it too, by way of float32.
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def in_bfloat16(model: nn.Module, wanted: Precision, device: torch.device, *, cells: int) -> frozenset[str] | None:
    """Return the names of the weights that are computed with in bfloat16, or None where nothing is.

    Args:
        cells: values in a batch of samples.

    Raises:
        ValueError: bfloat16 is wanted on a device that does not have it.
    """
    if wanted == "float32" or (wanted == "auto" and not (has_bfloat16(device) and _gains_by_bfloat16(model, cells))):
        return None
    if not has_bfloat16(device):
        raise ValueError(
            f"precision is bfloat16; {device} has no fast one; expected auto or float32; set `precision: auto`"
        )
    # Other weights, those of convolutions above all, are so few that it costs nothing to convert them in each step.
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    return frozenset(f"{name}.weight" for name, layer in layers if layer.weight.requires_grad)


def autocast(device: torch.device, low: frozenset[str] | None) -> AbstractContextManager[object]:
    """Return the context in which losses are computed."""
    return nullcontext() if low is None else torch.autocast(device.type, torch.bfloat16)


def threads(model: nn.Module, batch: int, most: int) -> int:
    """Return how many CPU threads a training uses, of those that it may: a small network loses by a second one.

    Args:
        batch: rows of a step.
    """
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return most if weights * batch >= MANY or convolves(model) else 1


def convolves(model: nn.Module) -> bool:
    """Say whether a model has convolutions, which want their images pixel by pixel in memory, channels last."""
    return any(isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) for layer in model.modules())


def captures(steps: int, compiled: Compile) -> bool:
    """Say whether a training of so many steps is taken by the kernels of a captured step. It changes no number."""
    return steps >= CAPTURE_FROM or compiled is True


def compiles(compiled: Compile, step: int, steps: int, *, convolves: bool, draws: bool) -> bool:
    """Say whether the step of this number, and all after it, are compiled.

    Args:
        steps: of the whole training.
        convolves: whether the model has convolutions.
        draws: whether a step draws random numbers; a compiled one is slow at that.
    """
    if compiled != "auto":
        return compiled
    after = COMPILE_AFTER["convolutions" if convolves else "dense layers"]
    return step >= after and steps >= 2 * after and not draws


def _gains_by_bfloat16(model: nn.Module, cells: int) -> bool:
    if convolves(model):
        return cells >= MANY_PIXELS
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    wide = sum(layer.weight.numel() for layer in layers if min(layer.weight.shape) >= WIDE)
    return 2 * wide > sum(layer.weight.numel() for layer in layers)  # most of the work is in wide layers
