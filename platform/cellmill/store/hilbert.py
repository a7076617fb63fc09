"""Hilbert order of anchors: the row order of every cell table.

In: anchor pixels (x, y) on the model grid. Out: one key each, unique in the slide. The curve's side is the power of two
that covers the slide, so keys depend on the slide alone; all keys of an aligned square block of side 2^b are
consecutive, which is what lets a commit merge block by block and a region query skip row groups.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from cellmill.grid import SlideGrid

__all__ = ["hilbert_keys", "hilbert_order"]


def hilbert_order(grid: SlideGrid) -> int:
    """Number of bits of each coordinate: the curve covers a square of side 2^order px."""
    return max(1, (max(grid.width_px, grid.height_px) - 1).bit_length())


def hilbert_keys(x_px: npt.NDArray[np.int64], y_px: npt.NDArray[np.int64], *, order: int) -> npt.NDArray[np.int64]:
    """Position of each point along the curve."""
    assert order <= 31, order
    return _keys(np.ascontiguousarray(x_px), np.ascontiguousarray(y_px), order)


@njit(cache=True, nogil=True)
def _keys(x_px: npt.NDArray[np.int64], y_px: npt.NDArray[np.int64], order: int) -> npt.NDArray[np.int64]:
    keys = np.empty(x_px.size, np.int64)
    last = (1 << order) - 1
    for n in range(x_px.size):
        x, y, key = x_px[n], y_px[n], 0
        for bit in range(order - 1, -1, -1):
            right, below = (x >> bit) & 1, (y >> bit) & 1
            key = (key << 2) | ((3 * right) ^ below)
            if below == 0:
                if right == 1:
                    x, y = last - x, last - y
                x, y = y, x
        keys[n] = key
    return keys
