"""On which device a job's network computes: rows go to it and results come back, whatever an application does with them."""

import copy
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sevenfold.models.base import Autoencoder

METHODS = ("encode", "decode", "forward", "impute", "restore")
"""Of models, those that tensors go into and come out of."""

EXACT = frozenset({"compress", "decompress"})
"""Operations whose sender and receiver have to compute the same numbers: they stay on the processor."""


def chosen(asked: str, operation: str) -> torch.device:
    """Return the device that is meant.

    Args:
        asked: "auto", "cpu", "cuda", "cuda:1", ...

    Raises:
        ValueError: there is no such device, or the operation has to stay on the processor.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and operation not in EXACT else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ValueError(f"device is {asked!r}; expected auto, cpu, cuda or cuda:0, cuda:1, ...") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {asked!r}; expected auto, cpu, cuda or cuda:0, cuda:1, ...")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device is {asked!r}; this machine has {count or 'no'} GPUs that torch can use; use cpu")
        if operation in EXACT:
            raise ValueError(
                f"device is {asked!r}; `{operation}` has to compute the same numbers everywhere; expected cpu; leave it out"
            )
    return device


def placed(model: Autoencoder, device: torch.device) -> Autoencoder:
    """Return a copy of the model that computes on a device; tensors that are given and returned lie in main memory."""
    there = copy.deepcopy(model).to(device)
    depth = threading.local()
    for name in METHODS:
        if hasattr(there, name):
            # nn.Module keeps what is no parameter, buffer or module as a plain attribute, which hides the class's method.
            setattr(there, name, functools.partial(_across, getattr(there, name), device, depth))
    return there


def _across(
    method: Callable[..., Any], device: torch.device, depth: threading.local, /, *arguments: Any, **named: Any
) -> Any:
    """Call a method with its tensors on the device, and bring back what it returns; calls inside of it stay there."""
    if getattr(depth, "inside", False):
        return method(*arguments, **named)
    depth.inside = True
    try:
        return _moved(method(*_moved(arguments, device), **_moved(named, device)), torch.device("cpu"))
    finally:
        depth.inside = False


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(one, device) for one in value)
    if isinstance(value, Mapping):
        return {name: _moved(one, device) for name, one in value.items()}
    return value
