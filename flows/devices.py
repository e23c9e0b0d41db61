"""The devices of this machine, each lent to one stage at a time."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sevenfold.workspace import Workspace

MOST_SLOTS = 8
"""Stages at once on CPU: with more, DVC's own lock is what they wait for."""


@dataclass(frozen=True)
class Device:
    """One GPU, or a share of the CPU's cores.

    environment: variables that hold a process to this device.
    """

    name: str
    environment: Mapping[str, str]

    @property
    def is_gpu(self) -> bool:
        return self.name.startswith("cuda")


def there_are(*, threads: int) -> list[Device]:
    """Return every visible GPU, and as many CPU slots as give each stage `threads` cores of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return arrange(visible_gpus(), cores=cores, threads=threads)


def arrange(gpus: Sequence[str], *, cores: int, threads: int) -> list[Device]:
    """Return a device for each GPU identifier, and CPU slots that together take no more than `cores` threads."""
    slots = max(1, min(MOST_SLOTS, cores // threads))
    # An empty list hides every GPU from a stage that runs on the CPU.
    found = [Device(f"cpu-{i}", {"CUDA_VISIBLE_DEVICES": ""}) for i in range(slots)]
    return found + [Device(f"cuda-{gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus]


def visible_gpus() -> list[str]:
    """Return the identifiers of the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    named = [n.strip() for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return named[:count] if named else [str(i) for i in range(count)]


class Desk:
    """Lends devices within one run: training goes to a GPU where there is one, everything else to the CPU."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._free = list(devices)
        self._training_on_gpu = any(device.is_gpu for device in devices)

    def lend(self, kind: str) -> Device | None:
        """Return a free device for a kind of stage, such as "train", or None where all are taken."""
        wants_gpu = self._training_on_gpu and kind == "train"
        chosen = next((device for device in self._free if device.is_gpu == wants_gpu), None)
        if chosen is not None:
            self._free.remove(chosen)
        return chosen

    def give_back(self, device: Device) -> None:
        self._free.append(device)


@contextmanager
def held(workspace: Workspace, device: Device) -> Iterator[None]:
    """Hold a GPU against other processes too, by a lock that the kernel releases when this process dies."""
    if not device.is_gpu:
        yield
        return
    with workspace.lock(f"device-{device.name}"):
        yield
