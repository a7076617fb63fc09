"""Compiled steps over whole masks: which cells stand, holes, anchors, numbering.

Consumes labels (H, W) where cell k is k + 1, one 4-connected part each, and -1 marks pixels whose path was cut short.
Each step looks at one cell at a time, in a patch of its bounding box, laid out flat as in `targets`.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.instances.targets import heat_flow_of_patch

__all__ = ["fill_holes", "judge_areas", "judge_masks", "number_by_anchor"]


@njit(cache=True, nogil=True)
def judge_masks(
    labels: NDArray[np.int32],
    flow: NDArray[np.int16],
    flow_scale: int,
    boxes: NDArray[np.int32],
    sums: NDArray[np.int64],
    min_pixels: int,
    max_pixels: int,
    flow_error_max: float,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """By label: whether the cell stands, and whether it has holes.

    It stands when its area, holes filled, is within bounds and the mean squared difference between the flow of its mask
    and the predicted flow is at most `flow_error_max`. Each mask is judged on its own.
    """
    num_labels = len(boxes) - 1
    stands = np.zeros(num_labels + 1, np.bool_)
    holed = np.zeros(num_labels + 1, np.bool_)
    largest = 0
    for label in range(1, num_labels + 1):
        if sums[label, 0] > 0:
            height, width = boxes[label, 2] - boxes[label, 0] + 1, boxes[label, 3] - boxes[label, 1] + 1
            largest = max(largest, (height + 2) * (width + 1) + 2)
    patch = np.zeros(largest, np.float32)
    scratch = np.zeros((4, largest), np.float32)
    outside = np.zeros(largest, np.uint8)
    queue = np.zeros(largest, np.int32)
    for label in range(1, num_labels + 1):
        num_pixels = sums[label, 0]
        if num_pixels == 0 or num_pixels > max_pixels:
            continue
        y0, x0 = boxes[label, 0], boxes[label, 1]
        height, width = boxes[label, 2] - y0 + 1, boxes[label, 3] - x0 + 1
        size = (height + 2) * (width + 1) + 2
        mask = patch[:size]
        num_filled = num_pixels
        if _cut_out(labels, label, boxes[label], mask):
            holed[label] = True
            num_filled = num_pixels + _find_holes(mask, height, width, outside, queue)
        if num_filled < min_pixels or num_filled > max_pixels:
            continue
        sum_y, sum_x = sums[label, 1] - num_pixels * y0, sums[label, 2] - num_pixels * x0
        heat_flow_of_patch(mask, height, width, sum_y, sum_x, num_pixels, scratch)
        error = 0.0
        for y in range(height):
            for x in range(width):
                at = 1 + (y + 1) * (width + 1) + x
                if mask[at] != 0.0:
                    error += (scratch[2, at] - flow[0, y0 + y, x0 + x] / flow_scale) ** 2
                    error += (scratch[3, at] - flow[1, y0 + y, x0 + x] / flow_scale) ** 2
        stands[label] = error <= flow_error_max * num_pixels
    return stands, holed


@njit(cache=True, nogil=True)
def judge_areas(
    labels: NDArray[np.int32],
    boxes: NDArray[np.int32],
    num_pixels: NDArray[np.int32],
    holed: NDArray[np.bool_],
    min_pixels: int,
    max_pixels: int,
) -> NDArray[np.bool_]:
    """By label: whether the cell's area, holes filled, is within bounds. `holed` says which cells have holes."""
    stands = np.zeros(len(boxes), np.bool_)
    for label in range(1, len(boxes)):
        num_filled = num_pixels[label]
        if num_filled == 0 or num_filled > max_pixels:
            continue
        if holed[label]:
            height, width = boxes[label, 2] - boxes[label, 0] + 1, boxes[label, 3] - boxes[label, 1] + 1
            size = (height + 2) * (width + 1) + 2
            mask = np.empty(size, np.float32)
            _cut_out(labels, label, boxes[label], mask)
            num_filled += _find_holes(mask, height, width, np.empty(size, np.uint8), np.empty(size, np.int32))
        stands[label] = min_pixels <= num_filled <= max_pixels
    return stands


@njit(cache=True, nogil=True)
def _cut_out(labels: NDArray[np.int32], label: int, box: NDArray[np.int32], mask: NDArray[np.float32]) -> bool:
    """Lay the cell's mask out flat; returns whether it has holes, from Euler's formula over 2 x 2 windows.

    A hole is background that no 4-connected path joins to the outside. Two pixels of a 4-connected mask that meet at a
    corner only always close off such a hole; without them the mask's Euler number is 1 minus its holes.
    """
    height, width = box[2] - box[0] + 1, box[3] - box[1] + 1
    stride = width + 1
    mask[:] = 0.0
    for y in range(height):
        for x in range(width):
            if labels[box[0] + y, box[1] + x] == label:
                mask[1 + (y + 1) * stride + x] = 1.0
    quarter_turns = 0  # windows of one pixel minus windows of three: 4 x the Euler number
    for at in range(1, (height + 1) * stride + 1):
        a, b, c, d = mask[at - 1], mask[at], mask[at - 1 + stride], mask[at + stride]
        total = a + b + c + d
        if total == 1.0:
            quarter_turns += 1
        elif total == 3.0:
            quarter_turns -= 1
        elif total == 2.0 and a == d:
            return True
    return quarter_turns != 4


@njit(cache=True, nogil=True)
def _find_holes(
    mask: NDArray[np.float32], height: int, width: int, outside: NDArray[np.uint8], queue: NDArray[np.int32]
) -> int:
    """Number of pixels in holes; `outside` is 1 where background reaches the patch's rim by 4-connected steps."""
    stride = width + 1
    size = (height + 2) * stride + 2
    outside[:size] = 0
    outside[0] = 1
    queue[0] = 0
    head, tail = 0, 1
    # rows are joined end to start through the empty column and the empty first and last row: one flat flood
    while head < tail:
        at = queue[head]
        head += 1
        for move in (-stride, -1, 1, stride):
            near = at + move
            if 0 <= near < size and mask[near] == 0.0 and not outside[near]:
                outside[near] = 1
                queue[tail] = near
                tail += 1
    num_holes = 0
    for at in range(size):
        if mask[at] == 0.0 and not outside[at]:
            num_holes += 1
    return num_holes


@njit(cache=True, nogil=True)
def fill_holes(
    labels: NDArray[np.int32],
    boxes: NDArray[np.int32],
    stands: NDArray[np.bool_],
    holed: NDArray[np.bool_],
) -> None:
    """Fill the holes of standing cells. A cell inside another's hole goes (out of `stands`): the outermost wins.

    Cells that do not stand are taken off the labels first.
    """
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label != 0 and (label < 0 or not stands[label]):
                labels[y, x] = 0
    for removes in (True, False):  # first see who lies in a hole, then fill
        for label in range(1, len(boxes)):
            if holed[label] and stands[label]:
                _fill_cell(labels, label, boxes[label], stands, removes)


@njit(cache=True, nogil=True)
def _fill_cell(
    labels: NDArray[np.int32], label: int, box: NDArray[np.int32], stands: NDArray[np.bool_], removes: bool
) -> None:
    y0, x0 = box[0], box[1]
    height, width = box[2] - y0 + 1, box[3] - x0 + 1
    size = (height + 2) * (width + 1) + 2
    mask = np.zeros(size, np.float32)
    outside = np.zeros(size, np.uint8)
    queue = np.zeros(size, np.int32)
    _cut_out(labels, label, box, mask)
    _find_holes(mask, height, width, outside, queue)
    for y in range(height):
        for x in range(width):
            at = 1 + (y + 1) * (width + 1) + x
            if mask[at] == 0.0 and not outside[at]:
                if not removes:
                    labels[y0 + y, x0 + x] = label
                elif labels[y0 + y, x0 + x] > 0:
                    stands[labels[y0 + y, x0 + x]] = False


@njit(cache=True, nogil=True)
def number_by_anchor(
    labels: NDArray[np.int32], boxes: NDArray[np.int32], stands: NDArray[np.bool_], sinks: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Number the standing cells 1..n by their anchors' (y, x), in `labels`.

    The anchor is the sink where the cell holds it, otherwise the cell's pixel nearest to it, ties by (y, x).

    Returns:
        Flat pixel indices of the anchors (n,), and the cells' former labels (n,).
    """
    height, width = labels.shape
    num_cells = 0
    for label in range(1, len(boxes)):
        num_cells += stands[label]
    anchors = np.empty(num_cells, np.int64)
    former = np.empty(num_cells, np.int32)
    at = 0
    for label in range(1, len(boxes)):
        if stands[label]:
            sink_y, sink_x = sinks[label - 1] // width, sinks[label - 1] % width
            anchors[at] = sinks[label - 1]
            if labels[sink_y, sink_x] != label:
                anchors[at] = _nearest_pixel(labels, label, boxes[label], sink_y, sink_x)
            former[at] = label
            at += 1
    order = np.argsort(anchors)
    numbers = np.zeros(len(boxes), np.int32)
    for number in range(num_cells):
        numbers[former[order[number]]] = number + 1
    for y in range(height):
        for x in range(width):
            labels[y, x] = numbers[labels[y, x]]
    return anchors[order], former[order]


@njit(cache=True, nogil=True)
def _nearest_pixel(labels: NDArray[np.int32], label: int, box: NDArray[np.int32], y0: int, x0: int) -> int:
    nearest, nearest_distance = -1, np.int64(1) << 60
    for y in range(box[0], box[2] + 1):
        for x in range(box[1], box[3] + 1):
            distance = (y - y0) ** 2 + (x - x0) ** 2
            if labels[y, x] == label and distance < nearest_distance:
                nearest, nearest_distance = y * labels.shape[1] + x, distance
    return nearest
