"""Training rows without the worst of them: those that a model reconstructs worst may be anomalies that nobody labelled."""

import numpy as np
import torch

from sevenfold.datasets.base import Split
from sevenfold.models.base import PIECE, Autoencoder


@torch.inference_mode()
def errors(model: Autoencoder, rows: Split) -> np.ndarray:
    """Return the mean squared error of each row over its observed cells, (n,)."""
    found = []
    for start in range(0, len(rows), PIECE):
        piece = slice(start, start + PIECE)
        x = torch.from_numpy(np.array(rows.x[piece]))
        seen = None if rows.observed is None else torch.from_numpy(np.array(rows.observed[piece]))
        square = (x - model(x, seen)).square().flatten(1)
        if seen is None:
            found.append(square.mean(dim=1))
        else:
            counts = seen.flatten(1)
            found.append((square * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1))
    return torch.cat(found).numpy() if found else np.zeros(0, np.float32)


def trimmed(model: Autoencoder, rows: Split, share: float) -> Split:
    """Return the rows without the share of them that the model reconstructs worst, in their order.

    At least one is kept. Of rows that are equally bad the later ones go.
    """
    count = min(round(share * len(rows)), max(len(rows) - 1, 0))
    best = np.argsort(errors(model, rows), kind="stable")[: len(rows) - count]
    return rows.take(np.sort(best))
