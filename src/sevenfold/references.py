"""The codes of normal rows, and how far other codes are from the nearest of them.

Among few codes the nearest are looked for in all of them. Many are divided into cells, as inverted files are (Jegou et al.,
2011, section IV): each has a center, and a list of its own codes and of those around it, so that the lists of neighbours
overlap. A code is compared with the list of its cell alone, which takes the same time however many codes there are. Of short
codes that finds nearly always the nearest; of long ones, half of them and others as near but for a few hundredths. Many codes
in cells still tell more of where normal rows are than few do that are all compared.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

EXACT = 4096
"""Codes up to which all are compared."""

MOST_NEIGHBOURS = 64
"""How many of the nearest may be asked for where codes are divided: a list has not many more that are near."""

_LISTED = 256  # codes of a cell's list

_OWN = 64  # codes that are in a cell in the mean: a list reaches well into the cells around

_ROUNDS = 10  # of k-means, which moves little after so many

_SPARE = 3  # codes beyond those asked for, in case that rounding has put one of these behind them

_MULTIPLE = 64  # codes to which groups are filled up

_TOGETHER = 16  # rows in multiples of which a list is compared: products of few rows may round in another way

_DISTANCES = 2**19  # from codes to those of the reference at a time: what a processor core has in its cache

_GROUPS = (16, 8)  # distances of which the smallest is looked at first: among all codes, and in a list


class Reference:
    """Codes that distances are taken to, all of them."""

    def __init__(self, codes: Tensor) -> None:
        """Take (count, code) float32."""
        self._codes = codes
        self._products = _products(codes, -len(codes) % _MULTIPLE)

    def distances(self, z: Tensor, count: int) -> Tensor:
        """Return the distances of codes (n, code) to the nearest here, (n, count), in no order; fewer if there are fewer."""
        count = min(count, len(self._codes))
        found = self._nearest(z.detach(), count)
        # Taken anew, since those that found them are rounded; and gradients go through these few alone. A code of the
        # reference itself is at distance 0, where the root has no gradient.
        near = self._codes.index_select(0, found.flatten()).reshape(*found.shape, -1)  # (n, count or more, code)
        squares = (z[:, None] - near).square().sum(dim=2)
        if found.shape[1] > count:
            squares = squares.sort(dim=1).values[:, :count]
        distances: Tensor = squares.clamp(min=1e-12).sqrt()
        return distances

    def _nearest(self, z: Tensor, count: int) -> Tensor:
        """Return the positions of the nearest, (n, count) or more."""
        full = self._products.shape[1]
        z = _with_ones(z)
        found = np.empty((len(z), count), np.int64)
        step = max(_MULTIPLE, _DISTANCES // full // _MULTIPLE * _MULTIPLE)
        buffer = torch.empty(min(step, len(z)), full)
        for start in range(0, len(z), step):
            some = z[start : start + step]
            compared = torch.mm(some, self._products, out=buffer[: len(some)])  # (rows, full)
            found[start : start + step] = _smallest_of_many(compared, count, _GROUPS[0])
        return torch.from_numpy(found)


class Cells(Reference):
    """The same of many codes, which are divided."""

    def __init__(self, codes: Tensor, centers: Tensor, members: Tensor) -> None:
        """Take what `divided` made.

        Args:
            codes: (count, code) float32.
            centers: (cells, code) float32.
            members: (cells, listed) int64, the positions of the codes that are compared in each cell.
        """
        self._codes = codes
        self._centers = _products(centers, 0)
        self._members = members
        self._products = torch.stack([_products(codes[one], 0) for one in members])  # (cells, code + 1, listed)

    def _nearest(self, z: Tensor, count: int) -> Tensor:
        z, width = _with_ones(z), self._members.shape[1]
        cell = torch.from_numpy(torch.mm(z, self._centers).numpy().argmin(axis=1))  # three times as fast as torch's
        order = torch.argsort(cell, stable=True)
        cell = cell.index_select(0, order)
        starts = torch.searchsorted(cell, torch.arange(len(self._members) + 1)).tolist()
        rows = torch.cat([z.index_select(0, order), z.new_zeros(_TOGETHER, z.shape[1])])
        compared = torch.empty(len(rows), width)
        for number, start in enumerate(starts[:-1]):
            if held := starts[number + 1] - start:
                # Of the rows of the next cells some are compared, too, which they overwrite.
                some = slice(start, start + -(-held // _TOGETHER) * _TOGETHER)
                torch.mm(rows[some], self._products[number], out=compared[some])
        count = min(count + _SPARE, width)
        found = torch.from_numpy(_smallest_of_many(compared[: len(z)], count, _GROUPS[1]))
        nearest = torch.empty_like(found)
        nearest[order] = self._members.flatten()[found + cell[:, None] * width]
        return nearest


def divided(codes: np.ndarray, neighbours: int) -> dict[str, np.ndarray]:
    """Divide codes (count, code) into cells, by k-means from codes that are evenly drawn.

    Equal codes give equal cells, whatever the number of threads. It takes a second for 16,384 codes, and four times as long
    for twice as many.

    Args:
        neighbours: how many of the nearest will be asked for.

    Returns:
        The arrays that `Cells` takes: `centers`, and `members`, int32. Nothing where all codes are to be compared: up to
        `EXACT` of them, or for more than `MOST_NEIGHBOURS`.
    """
    if len(codes) <= EXACT or neighbours > MOST_NEIGHBOURS:
        return {}
    exact = torch.from_numpy(np.ascontiguousarray(codes, np.float64))
    count = -(-len(codes) // _OWN)
    centers = codes[np.linspace(0, len(codes) - 1, count).astype(np.int64)].astype(np.float64)
    for _ in range(_ROUNDS):
        own = _owners(centers, exact)
        sizes = np.bincount(own, minlength=count)
        sums = np.stack([np.bincount(own, column, count) for column in exact.numpy().T], axis=1)
        centers = np.where(sizes[:, None] > 0, sums / sizes.clip(min=1)[:, None], centers)
    centers = centers.astype(np.float32)
    own = _owners(centers, exact)
    members = np.empty((count, _LISTED), np.int32)
    for number, center in enumerate(centers):
        row = _between(center[None], exact)[0]
        inside = np.flatnonzero(own == number)
        if len(inside) <= _LISTED:
            chosen = np.argpartition(np.where(own == number, -1.0, row), _LISTED - 1)[:_LISTED]
        else:
            # Its nearest alone may all be alike, and say nothing of those at its rim.
            ordered = inside[np.argsort(row[inside], kind="stable")]
            chosen = ordered[np.linspace(0, len(ordered) - 1, _LISTED).astype(np.int64)]
        members[number] = np.sort(chosen)
    return {"centers": centers, "members": members}


def _owners(centers: np.ndarray, codes: Tensor) -> np.ndarray:
    """Return the number of the nearest center of each code, (codes,)."""
    pieces = (codes[start : start + EXACT] for start in range(0, len(codes), EXACT))
    return np.concatenate([_between(centers, piece).argmin(axis=0) for piece in pieces])


def reference_of(codes: Tensor, cells: Mapping[str, np.ndarray]) -> Reference:
    """Return codes, (count, code) float32, to take distances to, by the cells of `divided`."""
    if not cells:
        return Reference(codes)
    centers = torch.from_numpy(np.array(cells["centers"], np.float32))
    return Cells(codes, centers, torch.from_numpy(np.array(cells["members"], np.int64)))


def _between(centers: np.ndarray, codes: Tensor) -> np.ndarray:
    """Return the distances of each center to each code, (centers, codes) float64, each computed by itself."""
    apart = torch.cdist(
        torch.from_numpy(centers.astype(np.float64)), codes, compute_mode="donot_use_mm_for_euclid_dist"
    )
    return np.asarray(apart.numpy())


def _products(codes: Tensor, more: int) -> Tensor:
    """Return (code + 1, count + more): what a code, and a 1, are multiplied by for squared distances but for its own square.

    That is the same for all of its row. What is filled up with is infinitely far from everywhere.
    """
    squares = torch.cat([codes.square().sum(dim=1), torch.full((more,), torch.inf)])
    products = torch.cat([-2 * codes, codes.new_zeros(more, codes.shape[1])])
    return torch.cat([products, squares[:, None]], dim=1).T.contiguous()


def _with_ones(z: Tensor) -> Tensor:
    return torch.cat([z, z.new_ones(len(z), 1)], dim=1)


def _smallest_of_many(values: Tensor, count: int, group: int) -> np.ndarray:
    """Return the positions (n, count) of the smallest values of each row, by way of the smallest of each group of them."""
    # The smallest of each group, of each group of groups, ...: among few it is found at once.
    levels = [values]
    while levels[-1].shape[1] % group == 0 and levels[-1].shape[1] // group >= count:
        levels.append(levels[-1].reshape(len(values), group, -1).amin(dim=1))
    # And down again: the nearest are in the groups whose smallest are the smallest.
    places = _smallest(levels[-1].numpy(), count)
    for level in levels[-2::-1]:
        groups = level.reshape(len(values), group, -1)
        chosen = torch.from_numpy(places)[:, None].expand(-1, group, -1)
        inside = _smallest(groups.gather(2, chosen).flatten(1).numpy(), count)
        member = inside // count
        places = np.take_along_axis(places, inside - member * count, axis=1) + member * groups.shape[2]
    return places


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the positions (n, count) of the smallest values of each row, in the order of the positions."""
    rows, width = values.shape
    # NumPy sorts short rows by vector instructions, and many times as fast as it finds positions.
    limit = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    found = np.flatnonzero(values <= limit)
    if len(found) != rows * count:
        # Some are as small as the last of them, or are no numbers.
        return np.sort(np.argpartition(values, count - 1, axis=1)[:, :count], axis=1)
    return found.reshape(rows, count) - np.arange(0, rows * width, width)[:, None]
