"""sevenfold: does an autoencoder help on this data? Seven answers with numbers, and batch jobs for the winners."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevenfold.serving import Model

__version__ = "0.1.0"


def load(model: str) -> "Model":
    """Return a model to work with in Python: `sevenfold.load("digits-denoising").predict(images)`.

    Args:
        model: `NAME` (its champion), `NAME@ALIAS`, `NAME/VERSION`, or a bundle's folder.

    Raises:
        LookupError: there is no such model, version or champion, or no workspace to look in.
        BundleError: its files are damaged or were changed.
    """
    from sevenfold import serving  # which imports PyTorch; the package by itself imports nothing

    return serving.load(model)
