"""Compiled last steps of the hv decoder: what each marker has claimed becomes a cell, in one piece, with its anchor."""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.instances.mask_kernels import EXCEEDED

__all__ = ["keep_within_reach", "mark_seams", "take_pieces"]


@njit(cache=True, nogil=True)
def keep_within_reach(
    labels: NDArray[np.int32],
    runs: NDArray[np.int32],
    is_wide: NDArray[np.bool_],
    peaks: NDArray[np.int32],
    within: NDArray[np.bool_],
    max_reach_px: int,
) -> NDArray[np.bool_]:
    """Make marker pixels k and claimed pixels -k alike k; further from the marker's peak than its reach is `EXCEEDED`.

    Pixels of markers that are not `within` reach of their own peak become 0. `is_wide` is by run.

    Returns:
        By label, whether it may be in pieces: it lost pixels, or was flooded tile by tile.
    """
    in_pieces = np.zeros(len(peaks), np.bool_)
    for index in range(len(runs)):
        y = runs[index, 0]
        for x in range(runs[index, 1], runs[index, 2] + 1):
            label = abs(labels[y, x])
            if not within[label]:
                label = 0
            elif abs(y - peaks[label, 0]) > max_reach_px or abs(x - peaks[label, 1]) > max_reach_px:
                in_pieces[label] = True
                label = EXCEEDED
            elif is_wide[index]:
                in_pieces[label] = True
            labels[y, x] = label
    return in_pieces


@njit(cache=True, nogil=True)
def mark_seams(labels: NDArray[np.int32], crossings: NDArray[np.int32], num_labels: int) -> NDArray[np.bool_]:
    """By label: whether the cell ends at a tile's rim though the tile would have it go on, or begins there instead."""
    height, width = labels.shape
    cut = np.zeros(num_labels, np.bool_)
    for index in range(len(crossings)):
        y, x, outer_y, outer_x, label = crossings[index]
        if not (0 <= outer_y < height and 0 <= outer_x < width) or labels[y, x] != label:
            continue
        other = labels[outer_y, outer_x]
        if other != label:
            cut[label] = True
            cut[max(other, 0)] = True
    cut[0] = False
    return cut


@njit(cache=True, nogil=True)
def take_pieces(
    labels: NDArray[np.int32],
    energy: NDArray[np.uint16],
    runs: NDArray[np.int32],
    in_pieces: NDArray[np.bool_],
    peaks: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Keep of each cell that may be `in_pieces` the 4-connected one with its marker's peak; the rest becomes 0.

    Returns:
        By label - 1, flat index of the cell's pixel of highest energy, ties by (y, x).
    """
    height, width = labels.shape
    queue = np.empty(4096, np.int32)
    for label in range(1, len(peaks)):
        if in_pieces[label]:
            start = peaks[label, 0] * width + peaks[label, 1]
            queue = _mark_piece(labels.ravel(), height, width, label, start, queue)
    anchors = np.zeros(len(peaks) - 1, np.int32)
    highest = np.full(len(peaks), -1, np.int32)
    for index in range(len(runs)):
        y = runs[index, 0]
        for x in range(runs[index, 1], runs[index, 2] + 1):
            label = labels[y, x]
            if label in (0, EXCEEDED):
                continue
            if label > 0 and in_pieces[label]:
                labels[y, x] = 0
                continue
            if label < 0:
                label = _unmarked(label)
                labels[y, x] = label
            if energy[y, x] > highest[label]:
                highest[label] = energy[y, x]
                anchors[label - 1] = y * width + x
    return anchors


@njit(cache=True, nogil=True)
def _unmarked(label: int) -> int:
    """The label that `_mark_piece` writes, and back."""
    return -label - 1


@njit(cache=True, nogil=True)
def _mark_piece(
    flat: NDArray[np.int32], height: int, width: int, label: int, start: int, queue: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Write -label - 1 on the piece of `label` that holds `start`; returns the queue, which may have grown."""
    if flat[start] != label:
        return queue
    marked = _unmarked(label)
    flat[start] = marked
    queue[0] = start
    head, tail = 0, 1
    while head < tail:
        at = queue[head]
        head += 1
        if tail + 4 > len(queue):
            larger = np.empty(2 * len(queue), np.int32)
            larger[:tail] = queue[:tail]
            queue = larger
        x = at % width
        if at >= width and flat[at - width] == label:
            flat[at - width] = marked
            queue[tail] = at - width
            tail += 1
        if x > 0 and flat[at - 1] == label:
            flat[at - 1] = marked
            queue[tail] = at - 1
            tail += 1
        if x + 1 < width and flat[at + 1] == label:
            flat[at + 1] = marked
            queue[tail] = at + 1
            tail += 1
        if at + width < height * width and flat[at + width] == label:
            flat[at + width] = marked
            queue[tail] = at + width
            tail += 1
    return queue
