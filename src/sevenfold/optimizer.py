"""AdamW (Loshchilov and Hutter, 2019) with clipped gradients, over all weights of a model as one vector.

One kernel for all weights takes the time of one, which is what counts for narrow networks. For wide ones it is the memory: a
step reads and writes every weight and both of its moments.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

LINE = 16
"""Numbers in a line of a CPU's cache; every tensor begins on one, which products are faster with."""

PIECE = 2**17
"""Numbers that are updated at a time where they lie in two precisions: few enough to stay in a core's cache."""

DECAYS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """The trainable weights of a model, in float32 like their moments, and how they go down a gradient.

    leaves: by the parameter's name, the tensors to differentiate by: the parameters themselves or, of those that are
        computed with in bfloat16, a copy, which is made anew after each step.
    places: memory for the gradient of each leaf, in the same order.
    """

    def __init__(
        self, model: nn.Module, *, low: Collection[str] = (), weight_decay: float, gradient_clip: float
    ) -> None:
        """Move the parameters into vectors.

        Args:
            model: on its device.
            low: names of the parameters that are computed with in bfloat16.
            weight_decay: as in torch.optim.AdamW.
            gradient_clip: largest norm of a step's gradient.
        """
        self._weight_decay = weight_decay
        self._gradient_clip = gradient_clip
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        plain = {name: p for name, p in trainable.items() if name not in low}
        vectors = [_Vector(plain)] if plain else []
        if len(plain) < len(trainable):
            vectors.append(_Halved({name: p for name, p in trainable.items() if name in low}))
        self._vectors = vectors
        self.leaves: dict[str, Tensor] = {name: leaf for v in vectors for name, leaf in v.leaves.items()}
        self.places = [place for v in vectors for place in v.places]
        self._steps = torch.zeros((), device=self.places[0].device)

    def take(self, gradients: Sequence[Tensor | None], share: float, *, add: bool) -> None:
        """Let a share of the gradients of the leaves, None being 0, be the gradient, or add it to what is there."""
        if not add:
            self.clear()
        pairs = [(p, g) for p, g in zip(self.places, gradients, strict=True) if g is not None]
        torch._foreach_add_([p for p, _ in pairs], [g for _, g in pairs], alpha=share)

    def clear(self) -> None:
        """Set the gradient to 0."""
        for vector in self._vectors:
            vector.gradient.zero_()

    @property
    def gradients(self) -> list[Tensor]:
        """The vectors that hold the gradient."""
        return [vector.gradient for vector in self._vectors]

    def step(self, rate: float) -> None:
        """Go one step down the gradient at this learning rate."""
        with torch.inference_mode():
            norms = [norm for vector in self._vectors for norm in vector.norms()]
            norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
            scale = norm.div_(self._gradient_clip).clamp_(1.0)
            self._steps.add_(1)
            for vector in self._vectors:
                vector.descend(self._steps, scale, rate, self._weight_decay)

    def state(self) -> dict[str, Tensor]:
        """Return all that a step depends on, but for the weights."""
        moments = {f"{i}.mean": v.mean for i, v in enumerate(self._vectors)}
        return moments | {f"{i}.square": v.square for i, v in enumerate(self._vectors)} | {"steps": self._steps}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back a state, after the weights have been put back into the model."""
        for name, value in self.state().items():
            value.copy_(state[name])
        for vector in self._vectors:
            vector.renew()

    def release(self) -> None:
        """Give each parameter memory of its own again."""
        for vector in self._vectors:
            for parameter in vector.parameters.values():
                parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


class _Vector:
    """Parameters that lie in one vector, with their gradient and moments."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self._spans = [-(-p.numel() // LINE) * LINE for p in parameters.values()]
        self.values = self._empty(torch.float32)
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        for parameter, place in zip(parameters.values(), self._views(self.values), strict=True):
            place.copy_(parameter.data)
            parameter.data = place
        self.leaves: Mapping[str, Tensor] = parameters
        self.gradient = torch.zeros_like(self.values)
        self.places = self._views(self.gradient)

    def norms(self) -> list[Tensor]:
        """Return norms whose own norm is that of the gradient."""
        return [torch.linalg.vector_norm(self.gradient)]

    def descend(self, steps: Tensor, scale: Tensor, rate: float, decay: float) -> None:
        _descend(self.values, self.gradient, self.mean, self.square, steps, scale, rate, decay)

    def renew(self) -> None:
        """Take notice that the weights were written to."""

    def _empty(self, dtype: torch.dtype) -> Tensor:
        (device,) = {p.device for p in self.parameters.values()}
        return torch.zeros(sum(self._spans), dtype=dtype, device=device)

    def _views(self, vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, self._spans)
        return [_like(part[: p.numel()], p) for p, part in zip(self.parameters.values(), parts, strict=True)]


class _Halved(_Vector):
    """Parameters that are computed with in bfloat16, and whose gradients come in it."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(parameters)
        self._low = self._empty(torch.bfloat16)
        copies = [view.detach().requires_grad_() for view in self._views(self._low)]
        self.leaves = dict(zip(parameters, copies, strict=True))
        self.gradient = torch.zeros_like(self._low)
        self.places = self._views(self.gradient)
        size = PIECE if self.values.device.type == "cpu" else len(self.values)
        vectors = (self.values, self.gradient, self.mean, self.square, self._low)
        self._pieces = list(zip(*(torch.split(vector, size) for vector in vectors), strict=True))
        self._wide = torch.empty_like(self.values[:size])
        self.renew()

    def norms(self) -> list[Tensor]:
        # Each piece has one in bfloat16, of two or three digits; their errors cancel. In float32 it takes ten times as long.
        return [norm.float() for norm in torch._foreach_norm([piece[1] for piece in self._pieces])]

    def descend(self, steps: Tensor, scale: Tensor, rate: float, decay: float) -> None:
        for values, gradient, mean, square, low in self._pieces:
            wide = self._wide[: len(gradient)].copy_(gradient)
            _descend(values, wide, mean, square, steps, scale, rate, decay)
            low.copy_(values)

    @torch.no_grad()
    def renew(self) -> None:
        self._low.copy_(self.values)


def _like(flat: Tensor, parameter: Tensor) -> Tensor:
    """Return a view of a vector with a parameter's shape, and with its axes in the same order in memory."""
    if (
        parameter.dim() == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
    ):
        n, c, h, w = parameter.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)
    return flat.view(parameter.shape)


def _descend(
    values: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    scale: Tensor,
    rate: float,
    decay: float,
) -> None:
    # What torch.optim.AdamW(fused=True) calls, without what it does before, which takes longer than a narrow network does.
    torch._fused_adamw_(
        [values], [gradient], [mean], [square], [], [steps], lr=rate, beta1=DECAYS[0], beta2=DECAYS[1],
        weight_decay=decay, eps=EPSILON, amsgrad=False, maximize=False, grad_scale=scale, found_inf=None,
    )  # fmt: skip
