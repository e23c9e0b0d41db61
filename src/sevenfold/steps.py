"""From a batch to its losses and their gradient: by autograd, by the kernels it calls, or compiled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sevenfold import arithmetic
from sevenfold.captures import Capture, CaptureError
from sevenfold.models.base import Autoencoder
from sevenfold.optimizer import AdamW


class Steps:
    """Computes the gradients of a training.

    terms: names of the losses, once there was a step.
    part: rows that go through the device at a time, where a batch does not fit its memory; else None.
    notes: what a reader should know of how it went.
    """

    def __init__(
        self,
        model: Autoencoder,
        optimizer: AdamW,
        *,
        low: frozenset[str] | None,
        size: int,
        count: int,
        compiled: arithmetic.Compile,
        cache: Path | None,
    ) -> None:
        """Take note of what to compute and how.

        Args:
            low: as of `arithmetic.in_bfloat16`.
            size: rows of all batches but an epoch's last.
            count: steps of the training.
            compiled: whether the step is compiled.
            cache: a private folder for the compiler, or None.
        """
        self.terms: tuple[str, ...] = ()
        self.part: int | None = None
        self.notes: list[str] = []
        self._model, self._optimizer, self._low = model, optimizer, low
        self._losses = _Losses(model)
        self._device = optimizer.places[0].device
        self._size, self._count, self._compiled, self._cache = size, count, compiled, cache
        self._images = arithmetic.convolves(model)
        self._captures = arithmetic.captures(count, compiled)
        self._kernels: Capture | None = None
        self._waits = True

    def take(self, x: Tensor, observed: Tensor | None, step: int, share: float) -> Tensor:
        """Leave the gradient of a batch in the optimizer; return its losses, (terms,); both times `share`.

        Args:
            x: (n, *shape); n may be 0.
            observed: of the same shape, or None.
            step: its number, from 0.
            share: of the batch that these rows are, where several processes share it.

        Raises:
            MemoryError: the device's memory does not take a single row.
        """
        count = x.shape[0]
        if not count:
            self._optimizer.clear()
            return torch.zeros(len(self.terms), device=self._device)
        if self._images:
            x = _pixel_by_pixel(x)
        while True:
            try:
                if self.part is None and self._captures and count == self._size:
                    return self._by_kernels(x, observed, step, share)
                return self._by_autograd(x, observed, share)
            except torch.OutOfMemoryError as error:
                if self.part == 1 or count == 1:
                    raise MemoryError(
                        f"a single row does not fit the memory of {self._device}; expected one or more; use a smaller model"
                    ) from error
                self.part = -(-(self.part or count) // 2)
                self._note(f"batches go through {self._device} in parts of {self.part} rows, for want of memory")

    def _note(self, text: str) -> None:
        if text not in self.notes:  # a training that was taken up has its notes already
            self.notes.append(text)

    def _by_autograd(self, x: Tensor, observed: Tensor | None, share: float) -> Tensor:
        values = None
        parts = torch.split(x, self.part or len(x))
        seen = [None] * len(parts) if observed is None else torch.split(observed, self.part or len(x))
        for part, cells in zip(parts, seen, strict=True):
            own = share * len(part) / len(x)
            losses, gradients = self._differentiated(self._optimizer.leaves, part, cells)
            self._optimizer.take(gradients, own, add=values is not None)
            values = losses * own if values is None else values + losses * own
        assert values is not None
        return values

    def _by_kernels(self, x: Tensor, observed: Tensor | None, step: int, share: float) -> Tensor:
        inputs = (x,) if observed is None else (x, observed)
        if self._kernels is None:
            try:
                self._kernels = self._captured(inputs)
            except CaptureError as error:
                self._captures = False
                self._note(f"steps are taken by autograd: {error}")
                return self._by_autograd(x, observed, share)
        if self._waits and arithmetic.compiles(
            self._compiled, step, self._count, convolves=self._images, draws=self._kernels.draws
        ):
            self._waits = False
            try:
                self._kernels.compile(inputs, self._cache)
            except CaptureError as error:
                self._note(f"steps are not compiled: {error}")
        values = self._kernels(*inputs)
        if share != 1.0:
            values = values * share
            for gradient in self._optimizer.gradients:
                gradient.mul_(share)
        return values

    def _captured(self, inputs: Sequence[Tensor]) -> Capture:
        leaves = self._optimizer.leaves
        buffers = dict(self._losses.model.named_buffers())
        names, count = list(leaves), len(leaves)

        def step(*tensors: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            own = dict(zip(buffers, tensors[count:], strict=False))
            x, *seen = tensors[count + len(buffers) :]
            return self._differentiated(
                dict(zip(names, tensors, strict=False)), x, seen[0] if seen else None, buffers=own
            )

        fixed = [*leaves.values(), *buffers.values()]
        return Capture(step, fixed, list(buffers.values()), self._optimizer.places, inputs)

    def _differentiated(
        self, leaves: dict[str, Tensor], x: Tensor, observed: Tensor | None, buffers: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the losses (terms,) and the gradient of their sum by each leaf."""
        with arithmetic.autocast(self._device, self._low):
            if self._low is None and buffers is None:
                losses = self._model.losses(x, observed)
            else:
                own = {f"model.{name}": value for name, value in (leaves | (buffers or {})).items()}
                losses = torch.func.functional_call(self._losses, own, (x, observed))
        self.terms = tuple(losses)
        values = list(losses.values())
        total = sum(values[1:], start=values[0])
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return torch.stack([value.detach() for value in values]), list(gradients)


def _pixel_by_pixel(x: Tensor) -> Tensor:
    """Return images with their channels last in memory, and with strides that say so.

    Those of a single channel lie in memory either way; by their strides convolutions decide how their own output lies, and
    kernels that meet both ways in one call are ten times as slow.
    """
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1).view(n, h, w, c).permute(0, 3, 1, 2)


class _Losses(nn.Module):
    """A model's losses as what calling it gives."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, observed: Tensor | None) -> Any:
        return self.model.losses(x, observed)
