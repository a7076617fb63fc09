"""Pooling: features of tile cores, and which of their positions each cell's pixels lie on, to one vector a cell.

A cell's vector is the mean over its pixels of the feature at each pixel's position, from whichever tile's core holds
the pixel. Features are taken as whole multiples of 2^-16 and summed as integers, so that the sum does not depend on how
a cell's pixels were cut into tiles or in which order those came; only the mean is rounded, once, to float16.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

__all__ = ["CellPool", "Cover", "cover_of_labels", "cover_of_pixels"]

_ONE = float(1 << 16)
_LARGEST = float(np.finfo(np.float16).max)

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cover:
    """Which positions of a tile core's features cells lie on; entry k is one cell at one position."""

    rows: Integers  # (k,) the cell
    positions: Integers  # (k,) index into the core's positions, row by row
    num_pixels: Integers  # (k,) of the cell at that position


def cover_of_labels(labels: npt.NDArray[np.integer], cell_of_label: Integers, *, side: int, stride_px: int) -> Cover:
    """Of a mask's pixels.

    Args:
        labels: (h, w) mask ids of a core, or of the part of it inside the slide; 0 is background.
        cell_of_label: (n,) mask ids of the cells, ascending; row k is cell k.
        side: positions a side of a core.
        stride_px: pixels a side of a position.

    Raises:
        ValueError: when a label is no cell's.
    """
    y, x = np.nonzero(labels)
    ids = labels[y, x].astype(np.int64)
    rows = np.searchsorted(cell_of_label, ids)
    if (rows == len(cell_of_label)).any() or (cell_of_label[np.minimum(rows, len(cell_of_label) - 1)] != ids).any():
        raise ValueError("The mask holds a cell that the table does not; verify_cellset says what else is wrong.")
    return _cover(rows, y, x, side=side, stride_px=stride_px)


def cover_of_pixels(rows: Integers, y: Integers, x: Integers, *, side: int, stride_px: int) -> Cover:
    """Of pixels by their place in the core: rows (k,) of cells, y and x (k,) from the core's corner."""
    return _cover(rows, y, x, side=side, stride_px=stride_px)


def _cover(rows: Integers, y: Integers, x: Integers, *, side: int, stride_px: int) -> Cover:
    positions = y // stride_px * side + x // stride_px
    keys, counts = np.unique(rows * (side * side) + positions, return_counts=True)
    return Cover(keys // (side * side), keys % (side * side), counts.astype(np.int64))


class CellPool:
    """Sums of cells under way. Rows are taken out in their order, so that memory holds those of a few rows of tiles."""

    def __init__(self, num_dimensions: int) -> None:
        self._first = 0
        self._sums = np.zeros((0, num_dimensions), np.int64)
        self._num_pixels = np.zeros(0, np.int64)

    def add(self, cover: Cover, features: npt.NDArray[np.float32]) -> None:
        """Add a core's features (h, w, D) to the cells that lie on it."""
        if not len(cover.rows):
            return
        low, high = int(cover.rows.min()), int(cover.rows.max()) + 1
        assert low >= self._first, "a row was taken before its last tile came"
        self._hold(high)
        whole = np.rint(features.reshape(-1, features.shape[-1]) * np.float64(_ONE)).astype(np.int64)
        weights = csr_array((cover.num_pixels, (cover.rows - low, cover.positions)), shape=(high - low, len(whole)))
        part = slice(low - self._first, high - self._first)
        self._sums[part] += weights @ whole
        self._num_pixels[part] += np.bincount(cover.rows - low, weights=cover.num_pixels, minlength=high - low).astype(
            np.int64
        )

    def take(self, stop: int) -> tuple[Integers, npt.NDArray[np.float16]]:
        """Rows before `stop` that were not taken yet and have any pixel, and their vectors (n, D)."""
        self._hold(stop)
        num = stop - self._first
        counts = self._num_pixels[:num]
        means = self._sums[:num] / (np.maximum(counts, 1)[:, None] * _ONE)
        rows = np.flatnonzero(counts > 0)
        vectors = np.clip(means[rows], -_LARGEST, _LARGEST).astype(np.float16)
        self._sums, self._num_pixels = self._sums[num:].copy(), self._num_pixels[num:].copy()
        self._first, first = stop, self._first
        return rows + first, vectors

    def _hold(self, stop: int) -> None:
        missing = stop - self._first - len(self._sums)
        if missing > 0:
            self._sums = np.pad(self._sums, ((0, missing), (0, 0)))
            self._num_pixels = np.pad(self._num_pixels, (0, missing))
