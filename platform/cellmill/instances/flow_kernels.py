"""Compiled steps of the flow decoder: paths, sinks, components. Integers throughout.

One buffer of the window's size serves three ends in turn, because windows are large: the flow of foreground pixels,
then the number of paths ending at each pixel, then the labels. Everything else has one entry a foreground pixel, in
raster order, or one a cell.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.instances.extents import EXCEEDED

__all__ = [
    "FRACTION_BITS",
    "GROWTH_MIN_PATHS",
    "GROWTH_STEPS",
    "SINK_MIN_PATHS",
    "SINK_RADIUS",
    "count_ends",
    "find_sinks",
    "follow_flows",
    "keep_largest_component",
    "label_by_sink",
    "mask_flows",
    "paint_labels",
]

FRACTION_BITS = 5
"""A position is an integer pixel and a fraction in 1 / 32 px, held in one integer: exact, and the same in every window.
Finer fractions took longer to come to rest (15.6 steps at 1 / 256, 12.7 at 1 / 32) and gave the same cells."""

_FRACTION = (1 << FRACTION_BITS) - 1
_WEIGHTS = 1 << 2 * FRACTION_BITS  # of the four pixels around a position, together
_STEP_SHIFT = FRACTION_BITS + 12  # flows are in 1 / 4096 px
_HALF_STEP = 1 << (_STEP_SHIFT - 1)

SINK_MIN_PATHS = 10  # a sink holds more paths than this,
SINK_RADIUS = 2  # and as many as any pixel this near;
GROWTH_MIN_PATHS = 2  # it grows over neighbours with more paths than this
GROWTH_STEPS = 5  # so many times. All four are Cellpose's.


@njit(cache=True, nogil=True)
def mask_flows(
    flow: NDArray[np.int16], background: NDArray[np.uint8], background_limit: int, packed: NDArray[np.int32]
) -> int:
    """Fill `packed` with dy << 16 | dx where background < limit, 0 elsewhere; returns the number of such pixels."""
    height, width = background.shape
    num_foreground = 0
    for y in range(height):
        for x in range(width):
            if background[y, x] < background_limit:
                packed[y, x] = (np.int32(flow[0, y, x]) << 16) | (np.int32(flow[1, y, x]) & 0xFFFF)
                num_foreground += 1
            else:
                packed[y, x] = 0
    return num_foreground


@njit(cache=True, nogil=True)
def _step(packed: NDArray[np.int32], height: int, width: int, y: int, x: int) -> tuple[int, int]:
    """One Euler step from a fixed-point position, clamped to the window."""
    row, column = y >> FRACTION_BITS, x >> FRACTION_BITS
    fy, fx = y & _FRACTION, x & _FRACTION
    # unsigned, so that the compiler adds no check for negative indices
    at = np.uint64(row * width + column)
    right = np.uint64(column + 1 < width)
    below = np.uint64(width * (row + 1 < height))
    f00, f01, f10, f11 = packed[at], packed[at + right], packed[at + below], packed[at + below + right]
    w11 = fy * fx
    w10 = (fy << FRACTION_BITS) - w11
    w01 = (fx << FRACTION_BITS) - w11
    w00 = _WEIGHTS - (fy << FRACTION_BITS) - w01
    dy = w00 * (f00 >> 16) + w01 * (f01 >> 16) + w10 * (f10 >> 16) + w11 * (f11 >> 16)
    dx = w00 * np.int16(f00) + w01 * np.int16(f01) + w10 * np.int16(f10) + w11 * np.int16(f11)
    next_y, next_x = y + int((dy + _HALF_STEP) >> _STEP_SHIFT), x + int((dx + _HALF_STEP) >> _STEP_SHIFT)
    return (
        min(max(next_y, 0), (height - 1) << FRACTION_BITS),
        min(max(next_x, 0), (width - 1) << FRACTION_BITS),
    )


@njit(cache=True, nogil=True)
def follow_flows(
    packed: NDArray[np.int32],
    background: NDArray[np.uint8],
    background_limit: int,
    num_steps: int,
    max_reach_px: int,
    ends: NDArray[np.int32],
) -> None:
    """Flat index of the pixel where each foreground pixel's path of `num_steps` ends, or EXCEEDED."""
    height, width = background.shape
    flat = packed.ravel()
    index = 0
    for row in range(height):
        for column in range(width):
            if background[row, column] < background_limit:
                ends[index] = _end_of_path(flat, height, width, row, column, num_steps, max_reach_px)
                index += 1


@njit(cache=True, nogil=True)
def _end_of_path(
    flat: NDArray[np.int32], height: int, width: int, row: int, column: int, num_steps: int, max_reach_px: int
) -> int:
    """The end is exactly that of all `num_steps`, though few are walked.

    Positions are integers and each follows from the last alone, so a path that comes to rest stays, and one that comes
    back to where it was goes round for ever. Brent's method notices the latter, and the steps left are taken modulo the
    length of the round.
    """
    start_y, start_x, reach = row << FRACTION_BITS, column << FRACTION_BITS, max_reach_px << FRACTION_BITS
    y, x = start_y, start_x
    saved_y, saved_x, saved_at, next_save = y, x, 0, 1
    step = 0
    while step < num_steps:
        last_y, last_x = y, x
        y, x = _step(flat, height, width, y, x)
        step += 1
        if y == last_y and x == last_x:
            break
        if abs(y - start_y) > reach or abs(x - start_x) > reach:
            return EXCEEDED
        if y == saved_y and x == saved_x:
            for _ in range((num_steps - step) % (step - saved_at)):
                y, x = _step(flat, height, width, y, x)
            break
        if step == next_save:
            saved_y, saved_x, saved_at, next_save = y, x, step, 2 * step
    return (y >> FRACTION_BITS) * width + (x >> FRACTION_BITS)


@njit(cache=True, nogil=True)
def count_ends(ends: NDArray[np.int32], counts: NDArray[np.int32]) -> None:
    """Number of paths ending at each pixel of the window, into `counts` (H, W)."""
    flat = counts.ravel()
    flat[:] = 0
    for end in ends:
        if end != EXCEEDED:
            flat[end] += 1


@njit(cache=True, nogil=True)
def find_sinks(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    """Flat pixel indices of the sinks, most paths first, then (y, x).

    A sink has more paths than `SINK_MIN_PATHS` and than every pixel within `SINK_RADIUS`; of equals in reach of each
    other only the first by (y, x) is a sink, where Cellpose takes both and lets one swallow the other.
    """
    height, width = counts.shape
    found = np.empty(1024, np.int32)
    num_found = 0
    for y in range(height):
        for x in range(width):
            count = counts[y, x]
            if count <= SINK_MIN_PATHS or not _is_peak(counts, y, x, count):
                continue
            if num_found == found.size:
                larger = np.empty(2 * found.size, np.int32)
                larger[:num_found] = found
                found = larger
            found[num_found] = y * width + x
            num_found += 1
    found = found[:num_found]
    flat = counts.ravel()
    return found[np.argsort(-flat[found], kind="mergesort")]


@njit(cache=True, nogil=True)
def _is_peak(counts: NDArray[np.int32], y: int, x: int, count: int) -> bool:
    height, width = counts.shape
    for other_y in range(max(y - SINK_RADIUS, 0), min(y + SINK_RADIUS + 1, height)):
        for other_x in range(max(x - SINK_RADIUS, 0), min(x + SINK_RADIUS + 1, width)):
            other = counts[other_y, other_x]
            if other > count or (other == count and (other_y < y or (other_y == y and other_x < x))):
                return False
    return True


@njit(cache=True, nogil=True)
def label_by_sink(ends: NDArray[np.int32], counts: NDArray[np.int32], sinks: NDArray[np.int32]) -> None:
    """Replace each end by 1 + the index of the sink it belongs to, 0 for none; EXCEEDED stays. Uses up `counts`.

    A sink takes the pixels within `GROWTH_STEPS` that hang together with it through pixels of more than
    `GROWTH_MIN_PATHS` paths; where two want the same pixel the one with more paths has it, then the first by (y, x).
    """
    height, width = counts.shape
    side = 2 * GROWTH_STEPS + 1
    grown = np.zeros((side, side), np.uint8)
    queue = np.empty((side * side, 2), np.int32)
    for index in range(sinks.size):
        y0, x0 = sinks[index] // width - GROWTH_STEPS, sinks[index] % width - GROWTH_STEPS
        grown[:] = 0
        grown[GROWTH_STEPS, GROWTH_STEPS] = 1
        queue[0, 0] = GROWTH_STEPS
        queue[0, 1] = GROWTH_STEPS
        head, tail = 0, 1
        for _ in range(GROWTH_STEPS):
            ring_end = tail
            while head < ring_end:
                y, x = queue[head, 0], queue[head, 1]
                head += 1
                for near_y in range(max(y - 1, -y0, 0), min(y + 2, height - y0, side)):
                    for near_x in range(max(x - 1, -x0, 0), min(x + 2, width - x0, side)):
                        count = counts[y0 + near_y, x0 + near_x]
                        # below 0: already taken, so it had paths enough
                        if not grown[near_y, near_x] and (count > GROWTH_MIN_PATHS or count < 0):
                            grown[near_y, near_x] = 1
                            queue[tail, 0] = near_y
                            queue[tail, 1] = near_x
                            tail += 1
        for at in range(tail):
            y, x = y0 + queue[at, 0], x0 + queue[at, 1]
            if counts[y, x] >= 0:
                counts[y, x] = -(index + 1)
    flat = counts.ravel()
    for at in range(ends.size):
        if ends[at] != EXCEEDED:
            ends[at] = max(0, -flat[ends[at]])


@njit(cache=True, nogil=True)
def _root(parents: NDArray[np.int32], at: int) -> int:
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at


@njit(cache=True, nogil=True)
def keep_largest_component(
    background: NDArray[np.uint8], background_limit: int, num_labels: int, pixel_labels: NDArray[np.int32]
) -> None:
    """Set to 0 all of a label's pixels outside its largest 4-connected part; of equals the first by (y, x) stays.

    `pixel_labels` has one entry a foreground pixel, in raster order.
    """
    height, width = background.shape
    parents = np.arange(pixel_labels.size).astype(np.int32)
    above = np.full(width, -1, np.int32)  # entry of the foreground pixel above, by column
    index = 0
    for y in range(height):
        left = -1
        for x in range(width):
            if background[y, x] >= background_limit:
                left = -1
                above[x] = -1
                continue
            label = pixel_labels[index]
            if label > 0:
                root = index
                if left >= 0 and pixel_labels[left] == label:
                    root = _root(parents, left)
                    parents[index] = root
                if above[x] >= 0 and pixel_labels[above[x]] == label:
                    other = _root(parents, above[x])
                    # the smaller entry is the root, so a root is the first pixel of its part by (y, x)
                    parents[max(root, other)] = min(root, other)
                    parents[index] = min(root, other)
            left = index
            above[x] = index
            index += 1

    sizes = np.zeros(pixel_labels.size, np.int32)
    for index in range(pixel_labels.size):
        if pixel_labels[index] > 0:
            parents[index] = _root(parents, index)
            sizes[parents[index]] += 1
    largest = np.full(num_labels + 1, -1, np.int32)
    for index in range(pixel_labels.size):
        label = pixel_labels[index]
        if label > 0 and parents[index] == index and (largest[label] < 0 or sizes[index] > sizes[largest[label]]):
            largest[label] = index
    for index in range(pixel_labels.size):
        label = pixel_labels[index]
        if label > 0 and parents[index] != largest[label]:
            pixel_labels[index] = 0


@njit(cache=True, nogil=True)
def paint_labels(
    background: NDArray[np.uint8], background_limit: int, pixel_labels: NDArray[np.int32], labels: NDArray[np.int32]
) -> None:
    """Spread one label a foreground pixel over the window; EXCEEDED stays visible."""
    height, width = background.shape
    index = 0
    for y in range(height):
        for x in range(width):
            if background[y, x] < background_limit:
                labels[y, x] = pixel_labels[index]
                index += 1
            else:
                labels[y, x] = 0
