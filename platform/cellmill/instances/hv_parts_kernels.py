"""Compiled steps of the hv decoder over parts: the 4-connected parts of a mask, as runs of pixels, and markers.

A run is the pixels of one row from `first` to `last` inclusive. Runs are in raster order, and so are parts: part 0 is
the one whose first pixel by (y, x) is first. What follows costs as many steps as there are runs, or their pixels.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["find_runs", "join_runs", "order_by_part", "part_boxes", "place_markers"]

_STRETCH = 32  # pixels looked at together where there may be none


@njit(cache=True, nogil=True)
def find_runs(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Index of each row's first run (H + 1,), and runs (n, 3) as y, first x, last x, of a mask of zeros and ones."""
    height, width = mask.shape
    row_starts = np.zeros(height + 1, np.int32)
    runs = np.empty((1024 + width, 3), np.int32)
    count = 0
    for y in range(height):
        if count + width > len(runs):
            larger = np.empty((2 * len(runs), 3), np.int32)
            larger[:count] = runs[:count]
            runs = larger
        row = mask[y]
        x = 0
        while True:
            while x + _STRETCH <= width and not _holds_any(row[x : x + _STRETCH]):
                x += _STRETCH
            while x < width and row[x] == 0:
                x += 1
            if x == width:
                break
            runs[count, 0] = y
            runs[count, 1] = x
            while x < width and row[x]:
                x += 1
            runs[count, 2] = x - 1
            count += 1
        row_starts[y + 1] = count
    return row_starts, runs[:count]


@njit(cache=True, nogil=True)
def _holds_any(pixels: NDArray[np.uint8]) -> bool:
    found = np.uint8(0)
    for x in range(_STRETCH):
        found |= pixels[x]
    return found != 0


@njit(cache=True, nogil=True)
def _root(parents: NDArray[np.int32], at: int) -> int:
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at


@njit(cache=True, nogil=True)
def join_runs(row_starts: NDArray[np.int32], runs: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Part of each run (n,), and the number of parts."""
    parents = np.arange(len(runs)).astype(np.int32)
    for y in range(1, len(row_starts) - 1):
        above, above_end = row_starts[y - 1], row_starts[y]
        for index in range(row_starts[y], row_starts[y + 1]):
            while above < above_end and runs[above, 2] < runs[index, 1]:
                above += 1
            touching = above
            while touching < above_end and runs[touching, 1] <= runs[index, 2]:
                one, other = _root(parents, index), _root(parents, touching)
                # the smaller run is the root, so a root is the first run of its part
                parents[max(one, other)] = min(one, other)
                touching += 1
    num_parts = 0
    for index in range(len(runs)):
        if parents[index] == index:
            parents[index] = num_parts
            num_parts += 1
        else:
            parents[index] = parents[parents[index]]  # an earlier run, numbered already
    return parents, num_parts


@njit(cache=True, nogil=True)
def part_boxes(runs: NDArray[np.int32], parts: NDArray[np.int32], num_parts: int) -> NDArray[np.int32]:
    """Bounding boxes (n, 4) as y0, x0, y1, x1 inclusive."""
    boxes = np.empty((num_parts, 4), np.int32)
    boxes[:, :2] = np.int32(2**31 - 1)
    boxes[:, 2:] = -1
    for index in range(len(runs)):
        box = boxes[parts[index]]
        box[0] = min(box[0], runs[index, 0])
        box[1] = min(box[1], runs[index, 1])
        box[2] = max(box[2], runs[index, 0])
        box[3] = max(box[3], runs[index, 2])
    return boxes


@njit(cache=True, nogil=True)
def order_by_part(parts: NDArray[np.int32], num_parts: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Start of each part (num_parts + 1,) in the runs ordered by part (n,), which stay in raster order within one."""
    starts = np.zeros(num_parts + 1, np.int32)
    for part in parts:
        starts[part + 1] += 1
    for part in range(num_parts):
        starts[part + 1] += starts[part]
    ordered = np.empty(len(parts), np.int32)
    filled = starts[:-1].copy()
    for index in range(len(parts)):
        ordered[filled[parts[index]]] = index
        filled[parts[index]] += 1
    return starts, ordered


@njit(cache=True, nogil=True)
def place_markers(
    runs: NDArray[np.int32],
    parts: NDArray[np.int32],
    num_parts: int,
    energy: NDArray[np.uint16],
    min_pixels: int,
    max_reach_px: int,
    labels: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Write markers of at least `min_pixels` into `labels` as 1, 2 ... in raster order of their first pixels.

    Returns:
        By label (n + 1): its peak y, x, which is the marker's pixel of highest energy, ties by (y, x); and whether the
        whole marker lies within `max_reach_px` of it.
    """
    sizes = np.zeros(num_parts, np.int32)
    for index in range(len(runs)):
        sizes[parts[index]] += runs[index, 2] - runs[index, 1] + 1
    numbers = np.zeros(num_parts, np.int32)
    num_labels = 0
    for part in range(num_parts):
        if sizes[part] >= min_pixels:
            num_labels += 1
            numbers[part] = num_labels
    peaks = np.zeros((num_labels + 1, 2), np.int32)
    highest = np.full(num_labels + 1, -1, np.int32)
    for index in range(len(runs)):
        label = numbers[parts[index]]
        if label == 0:
            continue
        y = runs[index, 0]
        for x in range(runs[index, 1], runs[index, 2] + 1):
            labels[y, x] = label
            if energy[y, x] > highest[label]:
                highest[label] = energy[y, x]
                peaks[label, 0] = y
                peaks[label, 1] = x
    boxes = part_boxes(runs, parts, num_parts)
    within = np.zeros(num_labels + 1, np.bool_)
    for part in range(num_parts):
        label = numbers[part]
        if label > 0:
            y, x = peaks[label, 0], peaks[label, 1]
            within[label] = (
                y - boxes[part, 0] <= max_reach_px
                and boxes[part, 2] - y <= max_reach_px
                and x - boxes[part, 1] <= max_reach_px
                and boxes[part, 3] - x <= max_reach_px
            )
    return peaks, within
