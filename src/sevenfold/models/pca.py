"""Principal component analysis: the linear autoencoder of least squared error, in closed form (Baldi and Hornik, 1989)."""

import torch
from torch import Tensor

from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, pieces, squared_error

WIDE = 1000
"""Values in a sample above which the components are found by random projections: of a covariance of so many values all
eigenvectors would be computed, and few of them kept."""

MORE = 10
"""Random directions beside those that are kept; with the passes below, as Halko et al. advise (2011, sec. 4.5)."""

PASSES = 6
"""Over the data, each of which makes small components smaller against large ones."""


class PrincipalComponents(Autoencoder):
    """Projects a sample on the directions of largest variance; nothing is trained by gradients.

    With gaps the covariance is taken over the pairs of cells that are both observed. Samples of more than `WIDE` values
    are projected at random first (Halko et al., 2011), and a gap counts as the mean.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, layout: Layout, *, code: int) -> None:
        super().__init__(layout, code)
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("components", torch.eye(code, self.size))

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        flat = x.reshape(len(x), -1)  # (n, size)
        seen = None if observed is None else observed.reshape(len(x), -1)
        if self.size > WIDE and 4 * (self.code + MORE) <= min(flat.shape):
            mean, components = _projected(flat, seen, self.code)
        else:
            mean, components = _exact(flat, seen, self.code)
        # An eigenvector has no sign of its own: its largest entry is made positive, so that codes stay comparable.
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        self.mean.copy_(mean)
        self.components.copy_(components * largest.sign())

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        return (x.flatten(1) - self.mean) @ self.components.T  # (n, code)

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.components + self.mean).reshape(-1, *self.shape)  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        return {"reconstruction": squared_error(self(x), x, observed)}


def _exact(x: Tensor, seen: Tensor | None, code: int) -> tuple[Tensor, Tensor]:
    """Return mean (size,) and components (code, size) by the eigenvectors of the covariance of x (n, size)."""
    size = x.shape[1]
    total, count = (torch.zeros(size, dtype=torch.double, device=x.device) for _ in range(2))
    for part, known in pieces(x, seen):
        total += (part * known).sum(dim=0, dtype=torch.double)
        count += known.sum(dim=0)
    mean = total / count.clamp(min=1)
    if seen is None and code <= len(x) < size:
        # Fewer rows than values: their own space is smaller than that of the covariance.
        return mean, torch.linalg.svd(x.double() - mean, full_matrices=False)[2][:code]
    products, pairs = (torch.zeros(size, size, dtype=torch.double, device=x.device) for _ in range(2))
    for part, known in pieces(x, seen):
        centred, there = (part.double() - mean) * known, known.double()
        products += centred.T @ centred
        if seen is not None:
            pairs += there.T @ there
    if seen is None:
        pairs += len(x)
    covariance = products / (pairs - 1).clamp(min=1)  # (size, size)
    _, vectors = torch.linalg.eigh(covariance)
    return mean, vectors.flip(1)[:, :code].T  # largest variance first


def _projected(x: Tensor, seen: Tensor | None, code: int) -> tuple[Tensor, Tensor]:
    """Return mean (size,) and components (code, size) by randomized subspace iteration over x (n, size)."""
    count = len(x) if seen is None else seen.sum(dim=0).clamp(min=1)
    mean = (x if seen is None else x * seen).sum(dim=0, dtype=torch.double) / count
    centred = x - mean.to(x.dtype)
    if seen is not None:
        centred *= seen
    _, _, directions = torch.svd_lowrank(centred, q=code + MORE, niter=PASSES)  # (size, code + MORE)
    return mean, directions[:, :code].T
