"""What one pass over labels tells of each: its box, its size, its centre.

Consumes labels (H, W), 0 is background; -1 marks pixels whose path was cut short in the flows decoder.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["EXCEEDED", "label_extents", "sums_by_label"]

EXCEEDED = -1
"""In place of a path's end, and of the label of the pixel it left from: the path went beyond its reach."""


@njit(cache=True, nogil=True)
def label_extents(labels: NDArray[np.int32], num_labels: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """By label: box y0, x0, y1, x1 inclusive (n + 1, 4); pixels, sum of y, sum of x, cut-short flag (n + 1, 4)."""
    height, width = labels.shape
    boxes = np.zeros((num_labels + 1, 4), np.int32)
    boxes[:, 0] = height
    boxes[:, 1] = width
    boxes[:, 2:] = -1
    sums = np.zeros((num_labels + 1, 4), np.int64)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label > 0:
                boxes[label, 0] = min(boxes[label, 0], y)
                boxes[label, 1] = min(boxes[label, 1], x)
                boxes[label, 2] = y
                boxes[label, 3] = max(boxes[label, 3], x)
                sums[label, 0] += 1
                sums[label, 1] += y
                sums[label, 2] += x
            elif label == EXCEEDED:
                if y > 0:
                    sums[max(labels[y - 1, x], 0), 3] = 1
                if y + 1 < height:
                    sums[max(labels[y + 1, x], 0), 3] = 1
                if x > 0:
                    sums[max(labels[y, x - 1], 0), 3] = 1
                if x + 1 < width:
                    sums[max(labels[y, x + 1], 0), 3] = 1
    return boxes, sums


@njit(cache=True, nogil=True)
def sums_by_label(labels: NDArray[np.int32], values: NDArray[np.uint8], num_labels: int) -> NDArray[np.int64]:
    """Sum of `values` (H, W) over the pixels of each label (n + 1,)."""
    height, width = labels.shape
    sums = np.zeros(num_labels + 1, np.int64)
    for y in range(height):
        for x in range(width):
            if labels[y, x] > 0:
                sums[labels[y, x]] += values[y, x]
    return sums
