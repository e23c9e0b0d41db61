"""Convolutional autoencoder (Masci et al., 2011), with strides in place of pooling (Springenberg et al., 2015)."""

from torch import Tensor

from sevenfold import augmentation, networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, Standardiser, squared_error


class ConvolutionalAutoencoder(Autoencoder):
    """Convolutions that halve an image's edges, fully connected layers to the code and, mirrored, up again.

    Images have any size and any number of channels.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        channels: list[int],
        hidden: list[int],
        activation: networks.Activation,
        blocks: int,
        augment: list[augmentation.Change],
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample; its shape is that of an image, (channels, height, width).
            code: number of values in the code.
            channels: after each halving: [16, 32] makes of (1, 28, 28) first (16, 14, 14), then (32, 7, 7).
            hidden: widths between the last convolution and the code; [] for none.
            activation: between the layers.
            blocks: residual blocks at each hidden width, in the encoder and in the decoder; 0 for plain layers.
            augment: what training does to images, each to half of them by chance.

        Raises:
            ValueError: the sample is no image, or an option is out of range.
        """
        super().__init__(layout, code)
        layout.require_image()
        augmentation.require(augment, self.shape)
        self.augment = augment
        self.standardise = Standardiser(self.shape)
        self.encoder, self.decoder = networks.convolutional(
            self.shape, channels, hidden, code, activation, blocks=blocks
        )

    def prepare(self, x: Tensor, observed: Tensor | None) -> None:
        self.standardise.learn(x, observed)

    def encode(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        z: Tensor = self.encoder(self.standardise(x))  # (n, code)
        return z

    def decode(self, z: Tensor) -> Tensor:
        output: Tensor = self.standardise.inverse(self.decoder(z))  # (n, *shape)
        return output

    def losses(self, x: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
        if self.training:
            x, observed = augmentation.vary(self.augment, x, observed, self.standardise.center)
        # Relative to the spread of the data, so that one learning rate suits data of any scale.
        return {"reconstruction": squared_error(self(x), x, observed) / self.standardise.spread.square()}
