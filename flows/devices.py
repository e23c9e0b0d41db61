"""The devices of this machine or of a cluster, each lent to one stage at a time."""

import fcntl
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sevenfold import processors

MOST_SLOTS = 8
"""Stages at once on CPU: with more, DVC's own lock is what they wait for."""

MOST_ELSEWHERE = 24
"""Stages at once on processors of other machines, and as many on their GPUs: each has a process of DVC's here."""


@dataclass(frozen=True)
class Device:
    """One GPU, or a share of the CPU's cores, here or on a machine of a cluster.

    environment: variables that hold a process to this device.
    is_shared: other processes of this machine may want it, too, and a lock decides.
    """

    name: str
    environment: Mapping[str, str]
    is_gpu: bool = False
    is_shared: bool = False


def there_are(*, threads: int) -> list[Device]:
    """Return every visible GPU, and as many CPU slots as give each stage `threads` cores of its own."""
    return arrange(visible_gpus(), cores=processors.count(), threads=threads)


def arrange(gpus: Sequence[str], *, cores: int, threads: int) -> list[Device]:
    """Return a device for each GPU identifier, and CPU slots that together take no more than `cores` threads."""
    slots = max(1, min(MOST_SLOTS, cores // threads))
    # An empty list hides every GPU from a stage that runs on the CPU.
    found = [Device(f"cpu-{i}", {"CUDA_VISIBLE_DEVICES": ""}) for i in range(slots)]
    return found + [Device(f"cuda-{gpu}", {"CUDA_VISIBLE_DEVICES": gpu}, is_gpu=True, is_shared=True) for gpu in gpus]


def elsewhere(environment: Mapping[str, str], *, slots: int, gpus: int) -> list[Device]:
    """Return as many devices as a cluster has, which itself decides on which of its machines a stage runs.

    Args:
        environment: what makes a stage go there.
    """
    found = [Device(f"cluster-gpu-{i}", environment, is_gpu=True) for i in range(min(gpus, MOST_ELSEWHERE))]
    return found + [Device(f"cluster-{i}", environment) for i in range(min(slots, MOST_ELSEWHERE))]


def visible_gpus() -> list[str]:
    """Return the identifiers of the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    named = [n.strip() for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return named[:count] if named else [str(i) for i in range(count)]


class Desk:
    """Lends devices to stages: a training that wants a GPU gets one where there are some, everything else a CPU slot.

    What is lent is nobody else's: a GPU is held against all of this user's runs on this machine by a lock on a file, which
    the kernel releases when the last process that has it open is gone. The desk itself is such a process, and each stage
    that gets `descriptors`. All locks are released at the end of its block.
    """

    def __init__(self, devices: Iterable[Device], folder: Path | None = None) -> None:
        """Lend `devices`; locks lie in `folder` (default: one that all workspaces of this user share)."""
        self._free = list(devices)
        self._has_gpus = any(device.is_gpu for device in self._free)
        self._folder = folder
        self._locks: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._locks):
            os.close(self._locks.pop(name))

    def lend(self, *, wants_gpu: bool) -> Device | None:
        """Return a free device, or None where all are taken, by this run or by another one."""
        for device in self._free:
            if device.is_gpu == (wants_gpu and self._has_gpus) and self._take(device):
                self._free.remove(device)
                return device
        return None

    def give_back(self, device: Device) -> None:
        if device.name in self._locks:
            os.close(self._locks.pop(device.name))
        self._free.append(device)

    def descriptors(self, device: Device) -> tuple[int, ...]:
        """Return the open files that a stage on this device has to keep open, so that it holds its lock, too."""
        return (self._locks[device.name],) if device.name in self._locks else ()

    def _take(self, device: Device) -> bool:
        if not device.is_shared:
            return True
        folder = self._folder or _common()
        lock = os.open(
            folder / f"{device.name.replace(os.sep, '-')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._locks[device.name] = lock
        return True


def _common() -> Path:
    """Return a folder of this user's on this machine, whatever the workspace."""
    folder = Path(tempfile.gettempdir()) / f"sevenfold-{os.getuid()}" / "devices"
    for part in (folder.parent, folder):
        part.mkdir(exist_ok=True, mode=0o700)
    if folder.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder.parent} is somebody else's, so a lock there is worth nothing; remove it")
    return folder
