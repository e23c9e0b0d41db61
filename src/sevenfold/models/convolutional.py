"""Convolutional autoencoder (Masci et al., 2011), with strides in place of pooling (Springenberg et al., 2015)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sevenfold import networks
from sevenfold.layouts import Layout
from sevenfold.models.base import Autoencoder, Standardiser, squared_error

Change = Literal["mirror", "flip", "transpose", "negative"]

_MOVES: dict[Change, Callable[[Tensor], Tensor]] = {
    "mirror": lambda image: image.flip(-1),
    "flip": lambda image: image.flip(-2),
    "transpose": lambda image: image.transpose(-1, -2),
}


class ConvolutionalAutoencoder(Autoencoder):
    """Convolutions that halve an image's edges, a fully connected layer to the code and, mirrored, up again.

    Images have any size and any number of channels.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        code: int,
        channels: list[int],
        activation: networks.Activation,
        augment: list[Change],
    ) -> None:
        """Build the layers.

        Args:
            layout: of a sample; its shape is that of an image, (channels, height, width).
            code: number of values in the code.
            channels: after each halving: [16, 32] makes of (1, 28, 28) first (16, 14, 14), then (32, 7, 7).
            activation: between the layers.
            augment: what training does to images, each to half of them by chance: "mirror" left to right, "flip" top to
                bottom, "transpose" (the three make the eight symmetries of a square), "negative" at the mean image.
                Name what makes images that could as well be data: nothing, [], for digits, all of it for textures.

        Raises:
            ValueError: the sample is no image, or an option is out of range.
        """
        super().__init__(layout, code)
        if len(self.shape) != 3:
            raise ValueError(
                f"shape is {self.shape}; expected that of an image, (channels, height, width); use a fully connected "
                "variant for tables, such as 'deep'"
            )
        if "transpose" in augment and self.shape[1] != self.shape[2]:
            raise ValueError(
                f"augment holds 'transpose' for images of {self.shape[1]} x {self.shape[2]}; expected square ones; "
                "leave it out"
            )
        self.augment = augment
        self.standardise = Standardiser(self.shape)
        self.encoder, self.decoder = networks.convolutional(self.shape, channels, code, activation)

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
            x, observed = self.vary(x, observed)
        # Relative to the spread of the data, so that one learning rate suits data of any scale.
        return {"reconstruction": squared_error(self(x), x, observed) / self.standardise.spread.square()}

    def vary(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the images as `augment` changes them, (n, *shape), and the observed cells where they are now."""
        for change in self.augment:
            chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            if change == "negative":
                x = torch.where(chosen, 2 * self.standardise.center - x, x)
            else:
                x = torch.where(chosen, _MOVES[change](x), x)
                observed = None if observed is None else torch.where(chosen, _MOVES[change](observed), observed)
        return x, observed
