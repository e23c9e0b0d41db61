"""Deep undercomplete autoencoder (Hinton and Salakhutdinov, 2006)."""

from torch import Tensor

from sevenfold import cells, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder


class DeepAutoencoder(Autoencoder):
    """Fully connected layers down to the code and, mirrored, up again."""

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        hidden: list[int],
        activation: networks.Activation,
        tied: bool,
        numbers: cells.Numbers,
        categories: cells.Categories,
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample.
            code: number of values in the code.
            hidden: widths between sample and code, for example [1500] for 3000-1500-200-1500-3000.
            activation: between the layers; "linear" makes a linear autoencoder, which has no bias: what enters is
                centred.
            tied: whether the decoder has the encoder's weights, transposed.
            numbers: how numbers enter the network, and how their error is measured.
            categories: how categories enter it.
        """
        super().__init__(layout, code)
        self.cells = cells.Cells(layout, numbers=numbers, categories=categories)
        bias = activation != "linear"
        self.encoder = networks.dense([self.cells.inputs, *hidden, code], activation, bias=bias)
        self.decoder = networks.decoder(self.encoder, self.cells.outputs, tied=tied, bias=bias)

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.cells.learn(x, observed)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        z: Tensor = self.encoder(self.cells.enter(x, observed))  # (n, code)
        return z

    def decode(self, z: Tensor) -> Tensor:
        return self.cells.leave(self.decoder(z))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        return self.cells.losses(self.decoder(self.encode(x, observed)), x, observed)
