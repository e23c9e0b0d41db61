"""Contractive autoencoder (Rifai et al., 2011): its code changes little where the sample does."""

import math

import torch
from torch import Tensor

from sevenfold import cells, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, squared_error


class ContractiveAutoencoder(Autoencoder):
    """Fully connected, with a penalty on the Jacobian of the whole encoder, of any depth (Rifai et al., 2011, eq. 7).

    The decoder has the transposed weights of the encoder, as in the paper. With weights of its own the code could shrink
    and the decoder grow: the penalty would fall, and nothing would be more robust than before.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        weight: float,
        probes: int,
        numbers: cells.Numbers,
        categories: cells.Categories,
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample.
            code: number of values in the code.
            hidden: widths between sample and code.
            activation: between the layers; "linear" makes the penalty a weight decay.
            weight: of the penalty against the squared error (the paper's lambda), 0 or more.
            probes: random directions per sample and step by which the norm of the Jacobian is estimated; each adds
                about half the time of a step without.
            numbers: how numbers enter the network, and how their error is measured.
            categories: how categories enter it.

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(layout, code)
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight is {weight}; expected a finite number of 0 or more; 0.1 is a start")
        if probes < 1:
            raise ValueError(f"probes is {probes}; expected 1 or more; 1 is enough for most data")
        self.weight = weight
        self.probes = probes
        self.cells = cells.Cells(layout, numbers=numbers, categories=categories)
        self.encoder = networks.dense([self.cells.inputs, *hidden, code], activation)
        self.decoder = networks.Transposed(self.encoder, self.cells.outputs, bias=True)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.cells.learn(x, observed)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        z: Tensor = self.encoder(self.cells.enter(x, observed))  # (n, code)
        return z

    def decode(self, z: Tensor) -> Tensor:
        return self.cells.leave(self.decoder(z))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        losses = self.cells.losses(self.decoder(self.encode(x, observed)), x, observed)
        return losses | {"contraction": self.weight * self.sensitivity(x, observed)}

    def sensitivity(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Estimate the squared Frobenius norm of the Jacobian of the code by the values that enter; a scalar.

        It is the mean over the samples x (n, *shape), divided by the number of values that enter, as the squared error
        is; cells that are not observed count in neither, nor do the flags of gaps. For a random v of independent signs,
        v'J is the gradient of v'z, and the expectation of its squared norm is that of J (Hutchinson, 1989), so that the
        estimate is unbiased.
        In `eval` mode the same signs are drawn every time, so that epochs compare.
        """
        differentiable = torch.is_grad_enabled()
        with torch.no_grad():
            entering = self.cells.enter(x, observed)  # (n, inputs)
            seen = None if observed is None else self.cells.seen(observed)  # (n, outputs)
        # Validation runs in inference mode, where there are no gradients to be had.
        with torch.inference_mode(False), torch.enable_grad():
            values = entering.clone().requires_grad_()
            z = self.encoder(values)  # (n, code)
            generator = None if self.training else torch.Generator(z.device).manual_seed(0)
            norms = []
            for _ in range(self.probes):
                signs = 2 * torch.randint(2, z.shape, generator=generator, device=z.device).to(z.dtype) - 1
                (gradient,) = torch.autograd.grad(z, values, signs, retain_graph=True, create_graph=differentiable)
                own = gradient[:, : self.cells.outputs]
                norms.append(squared_error(own, torch.zeros_like(own), seen))
        return torch.stack(norms).mean()
