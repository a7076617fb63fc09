"""Pairs of cells closer than some um, counted or listed in one pass over a grid of bins.

Pure kernels on points. One pass answers for every pair of types and every radius; two million cells with 150
neighbours each take seconds.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["count_pairs", "list_pairs"]


def count_pairs(
    xy_um: NDArray[np.float64],
    types: NDArray[np.int16],
    *,
    num_types: int,
    radii_um: NDArray[np.float64],
    num_radii_of_cell: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Ordered pairs of different cells no further apart than each radius: (T, T, R), from type, to type, radius.

    Args:
        xy_um: positions (n, 2).
        types: type of each cell (n,), below `num_types`.
        num_types: T.
        radii_um: ascending radii (R,).
        num_radii_of_cell: (n,): a cell counts as the first of a pair only at this many of the smallest radii, which is
            how border correction leaves cells out; None counts every cell at every radius.
    """
    num_radii = len(radii_um)
    # One place more than radii: what ends at a cell's own limit is taken off there, and a running sum does the rest.
    counts = np.zeros((num_types, num_types, num_radii + 1), np.int64)
    if len(xy_um) and num_radii:
        bins = _Bins.of(xy_um, side_um=float(radii_um[-1]))
        limits = np.full(len(xy_um), num_radii, np.int64) if num_radii_of_cell is None else num_radii_of_cell
        order = bins.order
        _count(xy_um[order], types[order], limits[order], bins.starts, bins.shape, bins.column_row, radii_um**2, counts)
    return np.cumsum(counts, axis=2)[..., :num_radii]


def list_pairs(xy_um: NDArray[np.float64], *, radius_um: float) -> NDArray[np.int32]:
    """Unordered pairs (m, 2) of different cells no further apart than `radius_um`, each once."""
    if len(xy_um) == 0:
        return np.zeros((0, 2), np.int32)
    bins = _Bins.of(xy_um, side_um=radius_um)
    placed = xy_um[bins.order]
    num_pairs = _list(placed, bins.starts, bins.shape, bins.column_row, radius_um**2, np.zeros((0, 2), np.int32))
    pairs = np.empty((num_pairs, 2), np.int32)
    _list(placed, bins.starts, bins.shape, bins.column_row, radius_um**2, pairs)
    return bins.order.astype(np.int32)[pairs]


@dataclass(frozen=True)
class _Bins:
    """Points sorted into square bins no smaller than the largest radius: neighbours lie in the 3 x 3 around."""

    order: NDArray[np.int64]  # (n,) points bin by bin
    starts: NDArray[np.int64]  # (bins + 1,)
    shape: tuple[int, int]  # rows, columns
    column_row: NDArray[np.int64]  # (n, 2) of the points in `order`

    @staticmethod
    def of(xy_um: NDArray[np.float64], *, side_um: float) -> "_Bins":
        origin = xy_um.min(axis=0)
        extent = xy_um.max(axis=0) - origin
        # Far-flung points may not ask for more bins than a few a point.
        side_um = max(side_um, float(np.sqrt(extent[0] * extent[1] / (4 * len(xy_um) + 1024))), *(extent / 30_000))
        column_row = np.floor((xy_um - origin) / max(side_um, 1e-9)).astype(np.int64)
        columns, rows = (column_row.max(axis=0) + 1).tolist()
        index = column_row[:, 1] * columns + column_row[:, 0]
        order = np.argsort(index, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(index, minlength=rows * columns))])
        return _Bins(order, starts.astype(np.int64), (rows, columns), column_row[order])


@njit(cache=True, nogil=True)
def _count(
    xy: NDArray[np.float64],
    types: NDArray[np.int16],
    limits: NDArray[np.int64],
    starts: NDArray[np.int64],
    shape: tuple[int, int],
    column_row: NDArray[np.int64],
    radii2: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    num_radii = radii2.size
    for i in range(xy.shape[0]):
        limit = limits[i]
        if limit == 0:
            continue
        column, row = column_row[i, 0], column_row[i, 1]
        for r in range(max(row - 1, 0), min(row + 2, shape[0])):
            first = starts[r * shape[1] + max(column - 1, 0)]
            last = starts[r * shape[1] + min(column + 2, shape[1])]
            for j in range(first, last):
                d2 = (xy[i, 0] - xy[j, 0]) ** 2 + (xy[i, 1] - xy[j, 1]) ** 2
                if j == i or d2 > radii2[num_radii - 1]:
                    continue
                k = 0
                while d2 > radii2[k]:
                    k += 1
                if k < limit:
                    counts[types[i], types[j], k] += 1
                    counts[types[i], types[j], limit] -= 1


@njit(cache=True, nogil=True)
def _list(
    xy: NDArray[np.float64],
    starts: NDArray[np.int64],
    shape: tuple[int, int],
    column_row: NDArray[np.int64],
    radius2: float,
    pairs: NDArray[np.int32],
) -> int:
    """Number of pairs; they are written too where `pairs` has room."""
    found = 0
    for i in range(xy.shape[0]):
        column, row = column_row[i, 0], column_row[i, 1]
        for r in range(max(row - 1, 0), min(row + 2, shape[0])):
            first = starts[r * shape[1] + max(column - 1, 0)]
            last = starts[r * shape[1] + min(column + 2, shape[1])]
            for j in range(max(first, i + 1), last):
                if (xy[i, 0] - xy[j, 0]) ** 2 + (xy[i, 1] - xy[j, 1]) ** 2 <= radius2:
                    if pairs.shape[0]:
                        pairs[found, 0] = i
                        pairs[found, 1] = j
                    found += 1
    return found
