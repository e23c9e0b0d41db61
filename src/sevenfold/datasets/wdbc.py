"""Wisconsin diagnostic breast cancer, 569 rows of 30 measurements (Street et al., 1993; scikit-learn carries it)."""

import pandas as pd

from sevenfold import formats


def fetch() -> formats.Rows:
    """Return 569 rows: 30 numeric columns under their original names, and `diagnosis`, benign or malignant."""
    from sklearn import datasets

    cancer = datasets.load_breast_cancer()
    frame = pd.DataFrame(cancer.data, columns=[str(name) for name in cancer.feature_names])
    frame["diagnosis"] = [str(cancer.target_names[t]) for t in cancer.target]
    return formats.Rows(frame)
