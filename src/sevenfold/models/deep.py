"""Deep undercomplete autoencoder (Hinton and Salakhutdinov, 2006)."""

from torch import Tensor

from sevenfold import augmentation, cells, networks
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
        blocks: int,
        tied: bool,
        augment: list[augmentation.Change],
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
            blocks: residual blocks at each hidden width, in the encoder and in the decoder; 0 for plain layers.
            tied: whether the decoder has the encoder's weights, transposed; without residual blocks.
            augment: what training does to images, each to half of them by chance; [] for tables.
            numbers: how numbers enter the network, and how their error is measured.
            categories: how categories enter it.

        Raises:
            ValueError: an option is out of range, or tied weights are asked for with residual blocks.
        """
        super().__init__(layout, code)
        if tied and blocks:
            raise ValueError(f"blocks is {blocks} with tied weights; expected 0; set `blocks: 0` or `tied: false`")
        augmentation.require(augment, self.shape)
        self.augment = augment
        self.cells = cells.Cells(layout, numbers=numbers, categories=categories)
        bias = activation != "linear"
        up = [code, *reversed(hidden), self.cells.outputs]
        self.encoder = networks.dense([self.cells.inputs, *hidden, code], activation, bias=bias, blocks=blocks)
        self.decoder = (
            networks.Transposed(self.encoder, self.cells.outputs, bias=bias)
            if tied
            else networks.dense(up, activation, bias=bias, blocks=blocks)
        )

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.cells.learn(x, observed)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        z: Tensor = self.encoder(self.cells.enter(x, observed))  # (n, code)
        return z

    def decode(self, z: Tensor) -> Tensor:
        return self.cells.leave(self.decoder(z))  # (n, *shape)

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        if self.training and self.augment:
            x, observed = augmentation.vary(self.augment, x, observed, self.cells.center(x))
        return self.cells.losses(self.decoder(self.encode(x, observed)), x, observed)
