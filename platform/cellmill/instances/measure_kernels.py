"""Compiled sums over cells: everything a cell's row is made of, as integers. One pass over the window's rows."""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["MOMENTS", "OD_SUMS", "PROB_SUMS", "doubled_hull_areas", "paint", "sum_cells"]

MOMENTS = slice(0, 6)
"""Columns of the sums: pixels, x, y, xx, xy, yy, with x and y relative to the cell's anchor."""
OD_SUMS = slice(6, 9)
"""Optical densities of red, green and blue."""
PROB_SUMS = slice(9, None)
"""Probabilities, background first."""


@njit(cache=True, nogil=True)
def sum_cells(
    labels: NDArray[np.int32],
    rows: NDArray[np.int32],
    anchors: NDArray[np.int64],
    prob: NDArray[np.uint8],
    pixels: NDArray[np.uint8],
    od_lookup: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sums (n, 9 + C + 1) as laid out above, and boxes (n, 4) y0, x0, y1, x1 inclusive.

    Args:
        labels: (H, W).
        rows: row of the result for each label, -1 for cells not wanted.
        anchors: (n, 2) x, y within the window, of the wanted cells.
        prob: (C + 1, H, W).
        pixels: (H, W, 3).
        od_lookup: optical density of each grey level.
    """
    height, width = labels.shape
    num_prob = prob.shape[0]
    sums = np.zeros((len(anchors), 9 + num_prob), np.int64)
    boxes = np.empty((len(anchors), 4), np.int64)
    boxes[:, 0] = height
    boxes[:, 1] = width
    boxes[:, 2:] = -1
    for y in range(height):
        for x in range(width):
            row = rows[labels[y, x]]
            if row < 0:
                continue
            near_x, near_y = x - anchors[row, 0], y - anchors[row, 1]
            cell = sums[row]
            cell[0] += 1
            cell[1] += near_x
            cell[2] += near_y
            cell[3] += near_x * near_x
            cell[4] += near_x * near_y
            cell[5] += near_y * near_y
            cell[6] += od_lookup[pixels[y, x, 0]]
            cell[7] += od_lookup[pixels[y, x, 1]]
            cell[8] += od_lookup[pixels[y, x, 2]]
            for index in range(num_prob):
                cell[9 + index] += prob[index, y, x]
            boxes[row, 0] = min(boxes[row, 0], y)
            boxes[row, 1] = min(boxes[row, 1], x)
            boxes[row, 2] = y
            boxes[row, 3] = max(boxes[row, 3], x)
    return sums, boxes


@njit(cache=True, nogil=True)
def touches(
    labels: NDArray[np.int32], numbers: NDArray[np.int64], boxes: NDArray[np.int64], allowed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which cells have a pixel that is not `allowed` (H, W) or meets one by an edge; the window's rim is allowed."""
    height, width = labels.shape
    touching = np.zeros(len(numbers), np.bool_)
    for cell in range(len(numbers)):
        y0, x0, y1, x1 = boxes[cell]
        if allowed[max(y0 - 1, 0) : y1 + 2, max(x0 - 1, 0) : x1 + 2].all():
            continue
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                if labels[y, x] == numbers[cell] and not (
                    allowed[y, x]
                    and allowed[max(y - 1, 0), x]
                    and allowed[min(y + 1, height - 1), x]
                    and allowed[y, max(x - 1, 0)]
                    and allowed[y, min(x + 1, width - 1)]
                ):
                    touching[cell] = True
    return touching


@njit(cache=True, nogil=True)
def doubled_hull_areas(
    labels: NDArray[np.int32], numbers: NDArray[np.int64], boxes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Twice the area of each cell's convex hull, of its pixels' corners."""
    areas = np.zeros(len(numbers), np.int64)
    tallest = 0
    for cell in range(len(numbers)):
        tallest = max(tallest, boxes[cell, 2] - boxes[cell, 0] + 1)
    left = np.empty((2 * tallest, 2), np.int64)
    right = np.empty((2 * tallest, 2), np.int64)
    for cell in range(len(numbers)):
        y0, x0, y1, x1 = boxes[cell]
        num_left, num_right = 0, 0
        for y in range(y0, y1 + 1):
            first = x0
            while labels[y, first] != numbers[cell]:
                first += 1
            last = x1
            while labels[y, last] != numbers[cell]:
                last -= 1
            for corner_y in (y, y + 1):
                num_left = _extend(left, num_left, first, corner_y, 1)
                num_right = _extend(right, num_right, last + 1, corner_y, -1)
        # the area between the chains: the right one's towards x = 0 minus the left one's
        areas[cell] = _area_beside(right, num_right) - _area_beside(left, num_left)
    return areas


@njit(cache=True, nogil=True)
def _extend(chain: NDArray[np.int64], count: int, x: int, y: int, side: int) -> int:
    """Add a point to a convex chain going down; `side` 1 bulges to the left, -1 to the right."""
    if count > 0 and chain[count - 1, 1] == y:  # two corners at one height: the outer one counts
        if side * (chain[count - 1, 0] - x) <= 0:
            return count
        count -= 1
    while count > 1:
        ax, ay = chain[count - 2]
        bx, by = chain[count - 1]
        if side * ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) < 0:
            break
        count -= 1
    chain[count, 0] = x
    chain[count, 1] = y
    return count + 1


@njit(cache=True, nogil=True)
def _area_beside(chain: NDArray[np.int64], count: int) -> int:
    area = 0
    for at in range(count - 1):
        area += (chain[at, 0] + chain[at + 1, 0]) * (chain[at + 1, 1] - chain[at, 1])
    return area


@njit(cache=True, nogil=True)
def paint(labels: NDArray[np.int32], ids: NDArray[np.unsignedinteger], painted: NDArray[np.unsignedinteger]) -> bool:
    """Write the id of each label (`ids[label]`, 0 for background) into `painted`; False where a cell has none."""
    height, width = labels.shape
    complete = True
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            painted[y, x] = ids[label]
            complete &= label == 0 or ids[label] != 0
    return complete
