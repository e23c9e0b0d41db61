"""The rows of a split on their way to the device: at rest on it where they fit, read ahead from disk where they do not."""

import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sevenfold.datasets.base import Split

STRETCH = 2**24
"""Bytes of x that are gathered at a time, in the order of the batches: one copy for many small batches."""

SHARE = 0.5
"""Of the device's free memory that rows may take; the rest is for what a step computes."""

Batch = tuple[Tensor, Tensor | None]


class Loader:
    """x (n, *shape) and observed, of the same shape or None, for a device.

    resident: whether they rest on the device.
    """

    def __init__(self, split: Split, device: str, *, room: int | None = None) -> None:
        """Bring the rows to the device if they fit there.

        Args:
            room: bytes that they may take there; by default a share of what is free.
        """
        self._device = torch.device(device)
        self._arrays = [split.x] + ([] if split.observed is None else [split.observed])
        size = sum(array.nbytes for array in self._arrays)
        # An array that is in memory takes no more of it for being used.
        on_disk = isinstance(split.x, np.memmap) or self._device.type != "cpu"
        limit = (SHARE * _free(self._device) if on_disk else math.inf) if room is None else room
        self.resident = size <= limit
        self._tensors = [self._resident(a) if self.resident else _shared(a) for a in self._arrays]
        self._row_bytes = max(1, split.x.nbytes // max(1, len(split)))

    def __len__(self) -> int:
        return len(self._arrays[0])

    def all(self) -> Batch:
        """Return all rows as tensors: on the device, or on the CPU where they are not resident."""
        return _pair(self._tensors)

    def batches(self, parts: Sequence[Tensor], start: int = 0) -> Iterator[Batch]:
        """Give the rows that each part names by their positions, from the part of number `start` on.

        Stretches begin at the same parts wherever one starts: on some processors a product's last bit depends on where in
        a line of the cache its operands begin.
        """
        rows = max(1, max((len(part) for part in parts), default=1))
        count = max(1, STRETCH // (rows * self._row_bytes))
        firsts = range(start // count * count, len(parts), count)
        for first, stretch in zip(firsts, self._gathered([parts[i : i + count] for i in firsts]), strict=True):
            sizes = [len(part) for part in parts[first : first + count]]
            split = [torch.split(tensor, sizes) for tensor in stretch]
            for index in range(max(start, first) - first, len(sizes)):
                yield _pair([tensors[index] for tensors in split])

    def in_order(self, size: int) -> Iterator[Batch]:
        """Give all rows as they lie, so many at a time."""
        if self.resident:
            for first in range(0, len(self), size):
                yield _pair([tensor[first : first + size] for tensor in self._tensors])
        else:
            yield from self.batches(torch.split(torch.arange(len(self)), size))

    def _gathered(self, stretches: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        if self.resident:
            for parts in stretches:
                order = torch.cat(list(parts)).to(self._device)
                yield [tensor.index_select(0, order) for tensor in self._tensors]
        elif stretches:
            # One stretch is read while the steps of the one before are computed.
            with ThreadPoolExecutor(1, thread_name_prefix="rows") as reader:
                ahead = reader.submit(self._read, stretches[0])
                for following in [*stretches[1:], None]:
                    stretch = ahead.result()
                    if following is not None:
                        ahead = reader.submit(self._read, following)
                    yield [tensor.to(self._device, non_blocking=True) for tensor in stretch]

    def _read(self, parts: Sequence[Tensor]) -> list[Tensor]:
        order = torch.cat(list(parts)).numpy()
        return [self._pinned(array, order) for array in self._arrays]

    def _pinned(self, array: np.ndarray, order: np.ndarray) -> Tensor:
        dtype = torch.bool if array.dtype == bool else torch.float32
        # Only from pinned memory does a copy to a GPU run beside its work.
        buffer = torch.empty((len(order), *array.shape[1:]), dtype=dtype, pin_memory=self._device.type == "cuda")
        np.take(array, order, axis=0, out=buffer.numpy(), mode="clip")  # any other mode copies through a buffer
        return buffer

    def _resident(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self._device)


def _shared(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # That it must not be written to; nothing does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def _pair(tensors: Sequence[Tensor]) -> Batch:
    return tensors[0], tensors[1] if len(tensors) > 1 else None


def _free(device: torch.device) -> float:
    """Return how many bytes of a device's memory are free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as facts:
            return next(1024.0 * int(line.split()[1]) for line in facts if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return math.inf  # a system that does not say; its pages of files are the first to go
