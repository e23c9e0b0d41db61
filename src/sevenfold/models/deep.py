"""Deep undercomplete autoencoder (Hinton and Salakhutdinov, 2006)."""

from torch import Tensor

from sevenfold import networks
from sevenfold.models.base import Autoencoder, Standardiser, squared_error


class DeepAutoencoder(Autoencoder):
    """Fully connected layers down to the code and, mirrored, up again."""

    def __init__(
        self, shape: tuple[int, ...], *, code: int, hidden: list[int], activation: networks.Activation
    ) -> None:
        """Build the layers.

        Args:
            shape: of one sample.
            code: number of values in the code.
            hidden: widths between sample and code, for example [1500] for 3000-1500-200-1500-3000.
            activation: between the layers; "linear" makes a linear autoencoder.
        """
        super().__init__(shape, code)
        self.standardise = Standardiser(self.shape)
        self.encoder = networks.dense([self.size, *hidden, code], activation)
        self.decoder = networks.dense([code, *reversed(hidden), self.size], activation)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.standardise.learn(x, observed)

    def encode(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(self.standardise(x).flatten(1))  # (n, code)
        return z

    def decode(self, z: Tensor) -> Tensor:
        output: Tensor = self.standardise.inverse(self.decoder(z).reshape(-1, *self.shape))  # (n, *shape)
        return output

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        # Relative to the spread of the data, so that one learning rate suits data of any scale.
        return {"reconstruction": squared_error(self(x), x, observed) / self.standardise.spread.square()}
