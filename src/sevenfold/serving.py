"""A bundle in use: a table or images in, a table or images out, in raw units; MLflow's models and `load` share it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sevenfold import bundles, formats, operations
from sevenfold.bundles import Bundle


def predict(bundle: Bundle, given: pd.DataFrame | np.ndarray, op: str | None = None) -> pd.DataFrame | np.ndarray:
    """Run one operation of a bundle.

    Args:
        given: raw rows: a table with the model's columns, of which others are left out; or images, (n, H, W) or
            (n, H, W, C).
        op: the operation; None stands for the one that the bundle was made for.

    Returns:
        One entry per row, in the order of the rows: a table, index 0..n-1; or images as those that were given.

    Raises:
        ValueError: there is no such operation, or the bundle is for another one.
        DataError: rows do not fit the model's schema.
    """
    if isinstance(given, pd.DataFrame):
        rows = formats.Rows(given.reset_index(drop=True))
    else:
        images = np.asarray(given)
        rows = formats.Rows(pd.DataFrame(index=pd.RangeIndex(len(images))), images)
    bundle = operations.accepting(bundle)
    made = operations.get(op or bundle.application.operation, bundle)(bundle, rows)
    return made.frame if made.images is None else made.images


@dataclass(frozen=True)
class Model:
    """A model that was loaded to work in this process.

    label: the registered name and version, or the bundle's folder.
    digest: of its bundle, hexadecimal.
    """

    label: str
    digest: str
    bundle: Bundle

    @property
    def operations(self) -> tuple[str, ...]:
        """What `predict` takes as `op`; the one that the model was made for comes first."""
        return tuple(dict.fromkeys([self.bundle.application.operation, "encode"]))

    def predict(self, rows: pd.DataFrame | np.ndarray, op: str | None = None) -> pd.DataFrame | np.ndarray:
        """Return what a batch job writes for these rows, as `serving.predict` does; rows are taken all at once."""
        return predict(self.bundle, rows, op)


def load(model: str) -> Model:
    """Return a model to work with in Python. A version that is named is loaded only if its bundle has its digest.

    Args:
        model: `NAME` (its champion), `NAME@ALIAS`, `NAME/VERSION`, or a bundle's folder. A name is looked up in the
            workspace around the current folder, or in that of `SEVENFOLD_WORKSPACE`; a folder needs no workspace.

    Raises:
        LookupError: there is no such model, version or champion, or no workspace to look in.
        BundleError: its files are damaged or were changed.
    """
    folder = Path(model)
    if any((folder / name).exists() for name in bundles.FILES):
        digest = bundles.digest(folder)
        return Model(str(folder), digest, bundles.load(folder, expected=digest))

    from sevenfold import workspace
    from sevenfold.registry import versions

    place = workspace.find()
    place.initialise()
    with place.settled():
        found = versions.resolve(place, model)
        return Model(found.label, found.digest, bundles.load(found.folder, expected=found.digest))
