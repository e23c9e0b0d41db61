"""Handwritten digits, 1,797 grey images 8x8 with values 0..16 (Alpaydin and Kaynak, 1998; scikit-learn carries them)."""

import numpy as np
import pandas as pd

from sevenfold import formats


def fetch() -> formats.Rows:
    """Return 1,797 images (8, 8) uint8 with the column `label`, 0 to 9."""
    from sklearn import datasets

    digits = datasets.load_digits()
    return formats.Rows(pd.DataFrame({"label": digits.target.astype(np.int64)}), digits.images.astype(np.uint8))
