"""Targets: what networks learn of masks. Consumes a label image, int32 (H, W), 0 is background.

Flows, for networks of the flows family, and what their decoder checks its masks against: unit vectors, float32
(2, H, W), [0] = dy, [1] = dx, that lead each pixel of a mask to the mask's centre. The definition is Cellpose's
(Stringer et al., Nature Methods 2021): heat is let in at the centre pixel and spreads over the mask for
`2 * (height + width + 2)` steps of a 3 x 3 mean; the flow is the direction of its gradient. Two differences make the
flow of a mask depend on that mask alone, which Cellpose's does not: the number of steps is each mask's own, not that of
the largest mask in the image, and the heat of a touching neighbour does not enter the gradient.

Horizontal and vertical distances, for networks of the hv family: float32 (2, H, W), [0] across, [1] down, from the
centre of a pixel's mask, -1 and 1 where the mask ends (Graham et al., "HoVer-Net", Medical Image Analysis 2019).
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.instances.extents import label_extents

__all__ = ["heat_flow_of_patch", "masks_to_flows", "masks_to_hv"]


def masks_to_flows(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Unit flows of every mask.

    Args:
        labels: (H, W), one positive integer per mask; 0 and below are background. A mask may have several parts; only
            the part that holds its centre gets a flow, the others stay 0.

    Returns:
        (2, H, W), dy then dx; length 1 inside masks (0 where heat has no gradient, e.g. a mask of one pixel).
    """
    dense = _densely_labelled(labels)
    flows = np.zeros((2, *dense.shape), np.float32)
    if dense.size > 0:
        _flows_of_all(dense, flows)
    return flows


def masks_to_hv(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Horizontal and vertical distances of every mask's pixels from its centre, the centre of mass rounded to a pixel.

    Distances to the left and up are negative, and each side is scaled by itself, so that a mask reaches from -1 to 1
    however lopsided it is. The centre has 0, where HoVer-Net's own code is one pixel off; a side that ends at the
    centre has no pixels.

    Args:
        labels: (H, W), one positive integer per mask; 0 and below are background.

    Returns:
        (2, H, W), horizontal then vertical; 0 in the background.
    """
    dense = _densely_labelled(labels)
    hv = np.zeros((2, *dense.shape), np.float32)
    if dense.size > 0:
        boxes, sums = label_extents(dense, max(int(dense.max()), 0))
        _hv_of_all(dense, boxes, sums, hv)
    return hv


def _densely_labelled(labels: NDArray[np.integer]) -> NDArray[np.int32]:
    """The labels, numbered anew where they are those of a large slide, so that tables by label stay small."""
    if labels.ndim != 2:
        raise ValueError(f"labels must be (H, W), got shape {labels.shape}.")
    dense = np.ascontiguousarray(labels, np.int32)
    if dense.size > 0 and int(dense.max()) > dense.size:
        values, inverse = np.unique(np.maximum(dense, 0), return_inverse=True)
        dense = inverse.reshape(dense.shape).astype(np.int32) + np.int32(values[0] > 0)
    return dense


@njit(cache=True, nogil=True)
def _hv_of_all(
    labels: NDArray[np.int32], boxes: NDArray[np.int32], sums: NDArray[np.int64], hv: NDArray[np.float32]
) -> None:
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label <= 0:
                continue
            num_pixels = sums[label, 0]
            center_x = (2 * sums[label, 2] + num_pixels) // (2 * num_pixels)
            center_y = (2 * sums[label, 1] + num_pixels) // (2 * num_pixels)
            hv[0, y, x] = _signed_share(x, center_x, boxes[label, 1], boxes[label, 3])
            hv[1, y, x] = _signed_share(y, center_y, boxes[label, 0], boxes[label, 2])


@njit(cache=True, nogil=True)
def _signed_share(at: int, center: int, first: int, last: int) -> float:
    """How far `at` is on the way from the centre to the mask's first or last pixel, -1 to 1."""
    if at < center:
        return (at - center) / (center - first)
    return (at - center) / (last - center) if at > center else 0.0


@njit(cache=True, nogil=True)
def _flows_of_all(labels: NDArray[np.int32], flows: NDArray[np.float32]) -> None:
    boxes, sums = label_extents(labels, max(labels.max(), 0))
    largest = 0
    for label in range(1, len(boxes)):
        if sums[label, 0] > 0:
            height, width = boxes[label, 2] - boxes[label, 0] + 1, boxes[label, 3] - boxes[label, 1] + 1
            largest = max(largest, (height + 2) * (width + 1) + 2)
    weight = np.zeros(largest, np.float32)
    scratch = np.zeros((4, largest), np.float32)

    for label in range(1, len(boxes)):
        num_pixels = sums[label, 0]
        if num_pixels == 0:
            continue
        y0, x0 = boxes[label, 0], boxes[label, 1]
        height, width = boxes[label, 2] - y0 + 1, boxes[label, 3] - x0 + 1
        patch = weight[: (height + 2) * (width + 1) + 2]
        patch[:] = 0.0
        for y in range(height):
            for x in range(width):
                if labels[y0 + y, x0 + x] == label:
                    patch[1 + (y + 1) * (width + 1) + x] = 1.0
        sum_y, sum_x = sums[label, 1] - num_pixels * y0, sums[label, 2] - num_pixels * x0
        heat_flow_of_patch(patch, height, width, sum_y, sum_x, num_pixels, scratch)
        for y in range(height):
            for x in range(width):
                if labels[y0 + y, x0 + x] == label:
                    at = 1 + (y + 1) * (width + 1) + x
                    flows[0, y0 + y, x0 + x] = scratch[2, at]
                    flows[1, y0 + y, x0 + x] = scratch[3, at]


@njit(cache=True, nogil=True)
def heat_flow_of_patch(
    weight: NDArray[np.float32],
    height: int,
    width: int,
    sum_y: int,
    sum_x: int,
    num_pixels: int,
    scratch: NDArray[np.float32],
) -> None:
    """Flow of one mask, left in `scratch[2]` (dy) and `scratch[3]` (dx); `weight` is used up.

    The mask is flat: pixel (y, x) of its bounding box is `weight[1 + (y + 1) * (width + 1) + x]`, 1.0 inside and 0.0
    elsewhere. One empty column between rows, an empty row above and below and a guard at either end let both passes of
    the 3 x 3 sum run over the whole patch as single loops without a branch, which the compiler turns into vectors.
    `sum_y`, `sum_x` are sums over the mask's pixels relative to the box. Scratch rows are at least as long as `weight`.
    """
    stride = width + 1
    size = weight.size
    inner = size - 2
    heat = scratch[0][:size]
    rows = scratch[1][:size]
    heat[:] = 0.0
    rows[:] = 0.0
    center = _center(weight, height, width, sum_y, sum_x, num_pixels)
    ninth = np.float32(1.0 / 9.0)
    for at in range(size):
        weight[at] *= ninth

    left, middle, right, target = heat[0:inner], heat[1 : inner + 1], heat[2 : inner + 2], rows[1 : inner + 1]
    num_core = height * stride
    first = 1 + stride
    above, level, below = rows[1 : 1 + num_core], rows[first : first + num_core], rows[first + stride : size - 1]
    core, inside = heat[first : first + num_core], weight[first : first + num_core]
    for _ in range(2 * (height + width + 2)):
        heat[center] += np.float32(1.0)
        for at in range(inner):
            target[at] = left[at] + middle[at] + right[at]
        for at in range(num_core):
            core[at] = (above[at] + level[at] + below[at]) * inside[at]

    for at in range(first, first + num_core):
        if weight[at] == 0.0:
            continue
        dy = np.float64(heat[at + stride]) - np.float64(heat[at - stride])
        dx = np.float64(heat[at + 1]) - np.float64(heat[at - 1])
        length = np.sqrt(dy * dy + dx * dx)
        if length > 0.0:
            scratch[2, at] = np.float32(dy / length)
            scratch[3, at] = np.float32(dx / length)
        else:
            scratch[2, at] = 0.0
            scratch[3, at] = 0.0


@njit(cache=True, nogil=True)
def _center(weight: NDArray[np.float32], height: int, width: int, sum_y: int, sum_x: int, num_pixels: int) -> int:
    """Flat index of the mask pixel nearest to the rounded centre of mass; ties by (y, x)."""
    center_y = (2 * sum_y + num_pixels) // (2 * num_pixels)
    center_x = (2 * sum_x + num_pixels) // (2 * num_pixels)
    stride = width + 1
    at = 1 + (center_y + 1) * stride + center_x
    if weight[at] != 0.0:
        return at
    best, best_distance = at, (height + width) ** 2
    for y in range(height):
        for x in range(width):
            candidate = 1 + (y + 1) * stride + x
            if weight[candidate] != 0.0:
                distance = (y - center_y) ** 2 + (x - center_x) ** 2
                if distance < best_distance:
                    best, best_distance = candidate, distance
    return best
