"""The processes that share one training, where torch.distributed was initialised, as under torchrun."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """All processes of one training; `rank` is this one's number, from 0."""

    rank: int
    size: int

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part of a batch; parts differ by one row at most, and may be empty."""
        return torch.tensor_split(rows, self.size)[self.rank]

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        for tensor in tensors:
            distributed.all_reduce(tensor)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, by rank."""
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(found, tensor)
        return found


def group() -> Group | None:
    """Return the processes that this one trains with, or None where it trains alone."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    return Group(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def joined() -> Iterator[tuple[int, str]]:
    """Join the other processes that torchrun has started, if it has; give this one's rank and its device.

    Alone, a process has rank 0 and the first GPU that it may see, or the CPU.

    Raises:
        ValueError: the environment tells of several processes, but not which of this machine's this one is.
    """
    gpus = torch.cuda.device_count()
    if (size := _number("WORLD_SIZE", "1")) == 1:
        yield 0, "cuda" if gpus else "cpu"
        return
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"WORLD_SIZE is {size} and LOCAL_RANK is not set; expected both or neither; start with torchrun, which sets "
            "them, or unset WORLD_SIZE to train with one process"
        )
    local = _number("LOCAL_RANK")
    distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        yield distributed.get_rank(), f"cuda:{local % gpus}" if gpus else "cpu"
    finally:
        distributed.destroy_process_group()


def _number(name: str, default: str = "") -> int:
    """Return the whole number that a variable of the environment holds."""
    value = os.environ.get(name, default)
    if not value.isdecimal():
        raise ValueError(
            f"{name} is {value!r}; expected a whole number from 0; start with torchrun, which sets it, or unset it"
        )
    return int(value)
