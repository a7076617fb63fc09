"""Compiled last steps of the hv decoder: what each marker has claimed becomes a cell, in one piece, with its anchor."""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.instances.extents import EXCEEDED

__all__ = ["keep_within_reach", "mark_seams", "measure_extents", "take_pieces"]


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
        y, x, last = runs[index, 0], runs[index, 1], runs[index, 2]
        row = labels[y]
        while x <= last:
            label, end = abs(row[x]), x + 1
            while end <= last and abs(row[end]) == label:
                end += 1
            least_x, most_x = x, end - 1  # of this stretch of one label, what is kept
            if not within[label]:
                row[x:end] = 0
            else:
                if abs(y - peaks[label, 0]) > max_reach_px:
                    least_x, most_x = end, end - 1
                else:
                    least_x = min(max(x, peaks[label, 1] - max_reach_px), end)
                    most_x = max(min(end - 1, peaks[label, 1] + max_reach_px), least_x - 1)
                row[x:least_x] = EXCEEDED
                row[least_x : most_x + 1] = label
                row[most_x + 1 : end] = EXCEEDED
                in_pieces[label] |= is_wide[index] or most_x - least_x < end - 1 - x
            x = end
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
        y, x, last = runs[index, 0], runs[index, 1], runs[index, 2]
        row, levels = labels[y], energy[y]
        while x <= last:
            value, end = labels[y, x], x + 1
            while end <= last and row[end] == value:
                end += 1
            if value > 0 and in_pieces[value]:
                row[x:end] = 0
            elif value not in (0, EXCEEDED):
                label = value if value > 0 else _unmarked(int(value))
                best = highest[label]
                for at in range(x, end):
                    row[at] = label
                    if levels[at] > best:
                        best = np.int32(levels[at])
                        anchors[label - 1] = y * width + at
                highest[label] = best
            x = end
    return anchors


@njit(cache=True, nogil=True)
def measure_extents(
    labels: NDArray[np.int32], runs: NDArray[np.int32], num_labels: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
    """By label, from 0: box y0, x0, y1, x1 inclusive; pixels; whether it meets `EXCEEDED`; whether it has holes.

    Cells are 4-connected, and holes are what no 4-connected path leads out of. Take a cell's stretches in rows as knots
    and their meetings, corner to corner too, as ties: each hole is then one tie more than a tree has.
    """
    height, width = labels.shape
    boxes = np.zeros((num_labels + 1, 4), np.int32)
    boxes[:, 0] = height
    boxes[:, 1] = width
    boxes[:, 2:] = -1
    num_pixels = np.zeros(num_labels + 1, np.int32)
    meets_exceeded = np.zeros(num_labels + 1, np.bool_)
    num_loops = np.ones(num_labels + 1, np.int32)  # ties - knots + 1
    nothing = np.zeros(width, np.int32)
    for index in range(len(runs)):
        y, x, last = runs[index, 0], runs[index, 1], runs[index, 2]
        row = labels[y]
        above = labels[y - 1] if y > 0 else nothing
        while x <= last:
            label, end = row[x], x + 1
            while end <= last and row[end] == label:
                end += 1
            if label == EXCEEDED:
                if x > 0:
                    meets_exceeded[max(row[x - 1], 0)] = True
                if end < width:
                    meets_exceeded[max(row[end], 0)] = True
                for at in range(x, end):
                    meets_exceeded[max(above[at], 0)] = True
            elif label > 0:
                boxes[label, 0] = min(boxes[label, 0], y)
                boxes[label, 1] = min(boxes[label, 1], x)
                boxes[label, 2] = y
                boxes[label, 3] = max(boxes[label, 3], end - 1)
                num_pixels[label] += end - x
                num_ties = 0
                before = 0
                for at in range(max(x - 1, 0), min(end + 1, width)):
                    num_ties += (above[at] == label) & (before != label)
                    before = above[at]
                num_loops[label] += num_ties - 1
                for at in range(x, end):
                    meets_exceeded[label] |= above[at] == EXCEEDED
            x = end
    return boxes, num_pixels, meets_exceeded, num_loops > 0


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
