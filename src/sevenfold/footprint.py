"""What a model costs whoever runs it: bytes on disk, and time for rows."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sevenfold import bundles, formats, operations

MOST_ROWS = 1000
REPEATS = 3


@dataclass(frozen=True)
class Footprint:
    """size: of the bundle's files, in bytes. milliseconds: for 1,000 rows on this machine; the median of three."""

    size: int
    milliseconds: float

    @property
    def megabytes(self) -> float:
        return self.size / 1e6


def measure(folder: Path, rows: formats.Rows) -> Footprint:
    """Measure a bundle at its own operation, raw rows in, the job's rows out.

    Args:
        rows: some that the model takes; at most 1,000 of them are used.
    """
    bundle = operations.accepting(bundles.load(folder))
    act = operations.get(bundle.application.operation, bundle)
    some = rows.take(np.arange(min(len(rows), MOST_ROWS)))
    act(bundle, some.take(np.arange(min(len(some), 2))))  # the first call pays for what later ones have
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        act(bundle, some)
        seconds.append(time.perf_counter() - start)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Footprint(size, 1000 * statistics.median(seconds) * 1000 / len(some))
