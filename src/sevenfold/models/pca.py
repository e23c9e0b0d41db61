"""Principal component analysis: the linear autoencoder of least squared error, in closed form (Baldi and Hornik, 1989)."""

import torch
from torch import Tensor

from sevenfold.models.base import Autoencoder, squared_error


class PrincipalComponents(Autoencoder):
    """Projects a sample on the directions of largest variance; nothing is trained by gradients.

    With gaps the covariance is taken over the pairs of cells that are both observed.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, shape: tuple[int, ...], *, code: int) -> None:
        super().__init__(shape, code)
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("components", torch.eye(code, self.size))

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        flat = x.reshape(len(x), -1).double()  # (n, size)
        seen = torch.ones_like(flat) if observed is None else observed.reshape(len(x), -1).double()
        mean = (flat * seen).sum(dim=0) / seen.sum(dim=0).clamp(min=1)
        centred = (flat - mean) * seen
        covariance = centred.T @ centred / (seen.T @ seen - 1).clamp(min=1)  # (size, size)
        _, vectors = torch.linalg.eigh(covariance)
        components = vectors.flip(1)[:, : self.code].T  # (code, size), largest variance first
        # An eigenvector has no sign of its own: its largest entry is made positive, so that codes stay comparable.
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        self.mean.copy_(mean)
        self.components.copy_(components * largest.sign())

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) @ self.components.T  # (n, code)

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.components + self.mean).reshape(-1, *self.shape)  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        return {"reconstruction": squared_error(self(x), x, observed)}
