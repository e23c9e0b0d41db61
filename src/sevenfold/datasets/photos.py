"""Patches of scikit-image's photographs, only those that its documentation gives as public domain or CC0."""

import numpy as np
import pandas as pd

from sevenfold import formats

# Those that are CC0 or released into the public domain by their photographer or agency, as scikit-image documents them.
# "No known restrictions" is not enough, and drawings, scans of text and stereo pairs are no photographs.
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cell",
    "chelsea",
    "clock",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "retina",
    "rocket",
)

SMALLEST = 300  # pixels


def fetch(*, size: int, patches: int, seed: int) -> formats.Rows:
    """Return grey patches (size, size) uint8 with the column `photograph`.

    Args:
        size: edge of a patch in pixels.
        patches: at most so many from each photograph, drawn from a grid without overlap.
        seed: of the draw.

    Raises:
        ValueError: no patch of this size fits into each photograph, or none is asked for.
    """
    import skimage.data
    from skimage import color

    if not 2 <= size <= SMALLEST or patches < 1:
        raise ValueError(
            f"photos: got size {size} and patches {patches}; expected a size from 2 to {SMALLEST}, the shortest edge of a "
            "photograph, and 1 patch or more"
        )
    generator = np.random.default_rng(seed)
    images, names = [], []
    for name in PHOTOGRAPHS:
        photograph = getattr(skimage.data, name)()
        grey = np.rint(255 * color.rgb2gray(photograph)) if photograph.ndim == 3 else photograph
        tiles = _tiles(grey.astype(np.uint8), size)
        chosen = np.sort(generator.permutation(len(tiles))[:patches])
        images.append(tiles[chosen])
        names += [name] * len(chosen)
    return formats.Rows(pd.DataFrame({"photograph": names}), np.concatenate(images))


def _tiles(image: np.ndarray, size: int) -> np.ndarray:
    """Cut (H, W) into (n, size, size), leaving out what does not fill a tile, flat tiles, and repeated ones."""
    rows, columns = image.shape[0] // size, image.shape[1] // size
    grid = image[: rows * size, : columns * size].reshape(rows, size, columns, size)
    tiles = grid.transpose(0, 2, 1, 3).reshape(-1, size, size)  # (n, size, size)
    # Saturated sky and empty space say nothing, and are the same tile in many places.
    tiles = tiles[tiles.std(axis=(1, 2)) > 2]
    _, first = np.unique(tiles.reshape(len(tiles), -1), axis=0, return_index=True)
    unique: np.ndarray = tiles[np.sort(first)]
    return unique
