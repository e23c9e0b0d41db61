"""Contractive autoencoder (Rifai et al., 2011): its code changes little where the sample does."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sevenfold import networks
from sevenfold.models.base import Autoencoder, Standardiser, squared_error


class ContractiveAutoencoder(Autoencoder):
    """Fully connected, with a penalty on the Jacobian of the whole encoder, of any depth (Rifai et al., 2011, eq. 7).

    The decoder has the transposed weights of the encoder, as in the paper. With weights of its own the code could shrink
    and the decoder grow: the penalty would fall, and nothing would be more robust than before.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        weight: float,
        probes: int,
    ) -> None:
        """Build the layers.

        Args:
            shape: of one sample.
            code: number of values in the code.
            hidden: widths between sample and code.
            activation: between the layers; "linear" makes the penalty a weight decay.
            weight: of the penalty against the squared error (the paper's lambda), 0 or more.
            probes: random directions per sample and step by which the norm of the Jacobian is estimated; each adds
                about half the time of a step without.

        Raises:
            ValueError: an option is out of range.
        """
        super().__init__(shape, code)
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight is {weight}; expected a finite number of 0 or more; 0.1 is a start")
        if probes < 1:
            raise ValueError(f"probes is {probes}; expected 1 or more; 1 is enough for most data")
        self.weight = weight
        self.probes = probes
        self.standardise = Standardiser(self.shape)
        self.encoder = networks.dense([self.size, *hidden, code], activation)
        self.biases = nn.ParameterList(torch.zeros(width) for width in (*reversed(hidden), self.size))

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.standardise.learn(x, observed)

    def encode(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(self.standardise(x).flatten(1))  # (n, code)
        return z

    def decode(self, z: Tensor) -> Tensor:
        biases = iter(self.biases)
        for layer in reversed(self.encoder):
            z = functional.linear(z, layer.weight.T, next(biases)) if isinstance(layer, nn.Linear) else layer(z)
        return self.standardise.inverse(z.reshape(-1, *self.shape))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        # Relative to the spread of the data, so that one learning rate suits data of any scale.
        return {
            "reconstruction": squared_error(self(x), x, observed) / self.standardise.spread.square(),
            "contraction": self.weight * self.sensitivity(x, observed),
        }

    def sensitivity(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Estimate the squared Frobenius norm of the Jacobian of the code by the standardised sample; a scalar.

        It is the mean over the samples x (n, *shape), divided by the number of values in a sample, as the squared error
        is; cells that are not observed count in neither. For a random v of independent signs, v'J is the gradient of
        v'z, and the expectation of its squared norm is that of J (Hutchinson, 1989), so that the estimate is unbiased.
        In `eval` mode the same signs are drawn every time, so that epochs compare.
        """
        differentiable = torch.is_grad_enabled()
        # Validation runs in inference mode, where there are no gradients to be had.
        with torch.inference_mode(False), torch.enable_grad():
            cells = self.standardise(x).detach().requires_grad_()  # (n, *shape)
            z = self.encoder(cells.flatten(1))  # (n, code)
            generator = None if self.training else torch.Generator(z.device).manual_seed(0)
            norms = []
            for _ in range(self.probes):
                signs = 2 * torch.randint(2, z.shape, generator=generator, device=z.device).to(z.dtype) - 1
                (gradient,) = torch.autograd.grad(z, cells, signs, retain_graph=True, create_graph=differentiable)
                norms.append(squared_error(gradient, torch.zeros_like(gradient), observed))
        return torch.stack(norms).mean()
