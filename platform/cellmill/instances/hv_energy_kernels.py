"""Compiled first steps of the hv decoder: from distances to energy and markers. Integers throughout.

Energy is high inside nuclei, where distances rise from side to side, and low where they fall from 1 back to -1: at the
border of two nuclei that touch. Markers are where it is high enough, without holes and whiskers: one a nucleus.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

from math import comb

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.instances.maps import HV_SCALE

__all__ = [
    "NUM_LEVELS",
    "SLOPE_ONE",
    "SOBEL_RADIUS_PX",
    "draw_energy",
    "fill_marker_holes",
    "open_markers",
    "sobel_weights",
]

NUM_LEVELS = 512
"""Energies lie below. One level is a slope of 1 / 512 a px."""

_WEIGHT_BITS = 10  # weights of the filters are in 1 / 1024
SOBEL_RADIUS_PX = 7
"""Beyond it the weights of a Sobel filter of 21 px round to nothing."""

SLOPE_ONE = HV_SCALE << _WEIGHT_BITS
"""A slope of 1 a px as it leaves the filters."""

_LEVEL_SHIFT = (SLOPE_ONE // NUM_LEVELS).bit_length() - 1
_HALF = 1 << (_WEIGHT_BITS - 1)
_NUM_ROWS = 2 * SOBEL_RADIUS_PX + 1
_MARGIN = 2  # of marker planes: the radius of the opening
_STRETCH = 64  # pixels looked at together


def sobel_weights(size_px: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The smooth and the slope half of a Sobel filter from its centre out, both (8,), in 1 / 1024.

    They are the binomials of the filter of `size_px`, which is odd and at most 21. A slope of 1 a px comes out as 1.
    """
    middle = size_px // 2
    order, one, radii = 2 * middle, 1 << _WEIGHT_BITS, range(1, SOBEL_RADIUS_PX + 1)
    smooth = [round(one * _choose(order, middle + k) / 2**order) for k in radii]
    steps = [_choose(order - 1, middle + k - 1) - _choose(order - 1, middle + k) for k in radii]
    slope = [round(one * step / 2 ** (order - 1)) for step in steps]
    return np.array([one - 2 * sum(smooth), *smooth], np.int32), np.array([0, *slope], np.int32)


def _choose(number: int, chosen: int) -> int:
    return comb(number, chosen) if chosen <= number else 0


@njit(cache=True, nogil=True)
def draw_energy(
    hv: NDArray[np.int16],
    background: NDArray[np.uint8],
    background_limit: int,
    smooth: NDArray[np.int32],
    slope: NDArray[np.int32],
    lowest_slope: int,
    marker_slope: int,
) -> tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.uint8]]:
    """Energy and foreground (H, W), and raw markers (H + 4, W + 4), all ones in their margin of 2.

    Energy is the lesser of both slopes, in levels above `lowest_slope`, 0 in the background, then a mean of 3 x 3 with
    weights 1 2 1. Markers are foreground whose slopes are both above `marker_slope`. Both limits are in
    1 / SLOPE_ONE a px. Beyond the window maps go on mirrored.
    """
    height, width = background.shape
    energy = np.empty((height, width), np.uint16)
    foreground = np.empty((height, width), np.uint8)
    markers = np.ones((height + 2 * _MARGIN, width + 2 * _MARGIN), np.uint8)
    across = np.empty((_NUM_ROWS, width), np.int16)  # the last rows of horizontal slopes, smoothed along y later
    along = np.empty((_NUM_ROWS, width), np.int16)  # and of vertical distances, smoothed along x
    levels = np.zeros((3, width + 2), np.int32)  # the last rows of energy before the mean
    padded = np.empty(width + 2 * SOBEL_RADIUS_PX, np.int16)
    slope_x = np.empty(width, np.int32)
    slope_y = np.empty(width, np.int32)
    limit = np.int32(background_limit)
    lowest, marker_limit = np.int32(lowest_slope), np.int32(marker_slope)
    num_rows = 0
    for y in range(height + 1):
        if y < height:
            while num_rows <= min(y + SOBEL_RADIUS_PX, height - 1):
                _pad_row(hv[0, num_rows], padded)
                _slope_row(padded, slope, across[num_rows % _NUM_ROWS])
                _pad_row(hv[1, num_rows], padded)
                _smooth_row(padded, smooth, along[num_rows % _NUM_ROWS])
                num_rows += 1
            _smooth_column(across, smooth, y, height, slope_x)
            _slope_column(along, slope, y, height, slope_y)
            level, fore, mark = levels[y % 3][1:-1], foreground[y], markers[y + _MARGIN][_MARGIN:-_MARGIN]
            behind = background[y]
            for x in range(width):
                inside = np.int32(behind[x] < limit)
                least = min(slope_x[x], slope_y[x])
                above_lowest = np.int32(np.int32(least - lowest) >> _LEVEL_SHIFT)
                level[x] = np.int32(min(max(above_lowest, np.int32(0)), np.int32(NUM_LEVELS - 1)) * inside)
                mark[x] = inside & np.int32(least > marker_limit)
                fore[x] = inside
        else:
            levels[y % 3] = 0
        if y > 0:
            _mean_row(levels[(y - 2) % 3], levels[(y - 1) % 3], levels[y % 3], energy[y - 1])
    return energy, foreground, markers


@njit(cache=True, nogil=True)
def _mirrored(at: int, length: int) -> int:
    if at < 0:
        at = -at
    if at >= length:
        at = 2 * (length - 1) - at
    return min(max(at, 0), length - 1)


@njit(cache=True, nogil=True)
def _pad_row(row: NDArray[np.int16], padded: NDArray[np.int16]) -> None:
    width = row.size
    for x in range(width):  # a loop becomes vectors, an assignment of slices does not
        padded[SOBEL_RADIUS_PX + x] = row[x]
    for k in range(1, SOBEL_RADIUS_PX + 1):
        padded[SOBEL_RADIUS_PX - k] = row[_mirrored(-k, width)]
        padded[SOBEL_RADIUS_PX + width - 1 + k] = row[_mirrored(width - 1 + k, width)]


# The four filters are written out, because loops over taps spend most of their time on the sums so far: rows at once,
# columns in passes of few enough rows that the compiler makes vectors of them.


@njit(cache=True, nogil=True)
def _smooth_row(p: NDArray[np.int16], w: NDArray[np.int32], out: NDArray[np.int16]) -> None:
    w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
    for x in range(out.size):
        near = w0 * p[x + 7] + w1 * (p[x + 6] + p[x + 8]) + w2 * (p[x + 5] + p[x + 9]) + w3 * (p[x + 4] + p[x + 10])
        far = w4 * (p[x + 3] + p[x + 11]) + w5 * (p[x + 2] + p[x + 12]) + w6 * (p[x + 1] + p[x + 13])
        out[x] = np.int32(near + far + w7 * (p[x] + p[x + 14]) + _HALF) >> _WEIGHT_BITS


@njit(cache=True, nogil=True)
def _slope_row(p: NDArray[np.int16], w: NDArray[np.int32], out: NDArray[np.int16]) -> None:
    w1, w2, w3, w4, w5, w6, w7 = w[1], w[2], w[3], w[4], w[5], w[6], w[7]
    for x in range(out.size):
        near = w1 * (p[x + 8] - p[x + 6]) + w2 * (p[x + 9] - p[x + 5]) + w3 * (p[x + 10] - p[x + 4])
        far = w4 * (p[x + 11] - p[x + 3]) + w5 * (p[x + 12] - p[x + 2]) + w6 * (p[x + 13] - p[x + 1])
        out[x] = np.int32(near + far + w7 * (p[x + 14] - p[x]) + _HALF) >> _WEIGHT_BITS


@njit(cache=True, nogil=True)
def _ring_row(rows: NDArray[np.int16], y: int, height: int) -> NDArray[np.int16]:
    return rows[_mirrored(y, height) % _NUM_ROWS]


@njit(cache=True, nogil=True)
def _smooth_column(rows: NDArray[np.int16], w: NDArray[np.int32], y: int, height: int, out: NDArray[np.int32]) -> None:
    """Weighted sums of rows around `y`, from a ring of rows."""
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    a, b, c = _ring_row(rows, y - 1, height), _ring_row(rows, y - 2, height), _ring_row(rows, y - 3, height)
    e, f, g = _ring_row(rows, y + 1, height), _ring_row(rows, y + 2, height), _ring_row(rows, y + 3, height)
    d = _ring_row(rows, y, height)
    for x in range(out.size):
        out[x] = w0 * d[x] + w1 * (a[x] + e[x]) + w2 * (b[x] + f[x]) + w3 * (c[x] + g[x])
    for k in (4, 6):
        w0, w1 = w[k], w[k + 1]
        a, b = _ring_row(rows, y - k, height), _ring_row(rows, y - k - 1, height)
        e, f = _ring_row(rows, y + k, height), _ring_row(rows, y + k + 1, height)
        for x in range(out.size):
            out[x] += w0 * (a[x] + e[x]) + w1 * (b[x] + f[x])


@njit(cache=True, nogil=True)
def _slope_column(rows: NDArray[np.int16], w: NDArray[np.int32], y: int, height: int, out: NDArray[np.int32]) -> None:
    w1, w2, w3 = w[1], w[2], w[3]
    a, b, c = _ring_row(rows, y - 1, height), _ring_row(rows, y - 2, height), _ring_row(rows, y - 3, height)
    e, f, g = _ring_row(rows, y + 1, height), _ring_row(rows, y + 2, height), _ring_row(rows, y + 3, height)
    for x in range(out.size):
        out[x] = w1 * (e[x] - a[x]) + w2 * (f[x] - b[x]) + w3 * (g[x] - c[x])
    for k in (4, 6):
        w1, w2 = w[k], w[k + 1]
        a, b = _ring_row(rows, y - k, height), _ring_row(rows, y - k - 1, height)
        e, f = _ring_row(rows, y + k, height), _ring_row(rows, y + k + 1, height)
        for x in range(out.size):
            out[x] += w1 * (e[x] - a[x]) + w2 * (f[x] - b[x])


@njit(cache=True, nogil=True)
def _mean_row(
    above: NDArray[np.int32], level: NDArray[np.int32], below: NDArray[np.int32], out: NDArray[np.uint16]
) -> None:
    for x in range(out.size):
        left = above[x] + 2 * level[x] + below[x]
        middle = above[x + 1] + 2 * level[x + 1] + below[x + 1]
        right = above[x + 2] + 2 * level[x + 2] + below[x + 2]
        out[x] = (left + 2 * middle + right + 8) >> 4


@njit(cache=True, nogil=True)
def fill_marker_holes(markers: NDArray[np.uint8], hole_px: int) -> None:
    """Fill holes of raw markers that are at most `hole_px` wide and high, in place; wider ones stay.

    A hole is a 4-connected part without a marker that stays clear of the margin.
    """
    height, width = markers.shape
    seen_value = 2  # not a marker, and known to be in no hole
    queue = np.empty((hole_px * hole_px, 2), np.int32)
    for y in range(_MARGIN + 1, height - _MARGIN - 1):
        row, above = markers[y], markers[y - 1]
        for start in range(_MARGIN + 1, width - _MARGIN - 1, _STRETCH):
            end = min(start + _STRETCH, width - _MARGIN - 1)
            if not _may_begin_hole(row, above, start, end):
                continue
            for x in range(start, end):
                # the first pixel of a hole by (y, x) has markers above and to the left
                if row[x] == 0 and row[x - 1] == 1 and above[x] == 1:
                    count, is_hole = _flood_hole(markers, y, x, hole_px, queue)
                    value = 1 if is_hole else seen_value
                    for at in range(count):
                        markers[queue[at, 0], queue[at, 1]] = value
    for y in range(_MARGIN, height - _MARGIN):
        row = markers[y]
        for x in range(width):
            row[x] &= 1


@njit(cache=True, nogil=True)
def _may_begin_hole(row: NDArray[np.uint8], above: NDArray[np.uint8], start: int, end: int) -> bool:
    """Whether any pixel of a stretch does, without branches, so that the compiler makes vectors of it."""
    found = np.uint8(0)
    here, left, over = row[start:end], row[start - 1 : end - 1], above[start:end]
    for x in range(end - start):
        found |= np.uint8((here[x] == 0) & (left[x] == 1) & (over[x] == 1))
    return found != 0


@njit(cache=True, nogil=True)
def _flood_hole(markers: NDArray[np.uint8], y: int, x: int, hole_px: int, queue: NDArray[np.int32]) -> tuple[int, bool]:
    """The pixels joined to (y, x), in `queue`, and whether they are all of a hole; stops once they cannot be."""
    height, width = markers.shape
    least_x, most_x = x, x
    queue[0, 0] = y
    queue[0, 1] = x
    markers[y, x] = 3
    head, tail = 0, 1
    while head < tail:
        at_y, at_x = queue[head, 0], queue[head, 1]
        head += 1
        for move_y, move_x in ((-1, 0), (0, -1), (0, 1), (1, 0)):
            near_y, near_x = at_y + move_y, at_x + move_x
            value = markers[near_y, near_x]
            if value in (1, 3):
                continue
            if value == 2:
                return tail, False
            least_x, most_x = min(least_x, near_x), max(most_x, near_x)
            inside = _MARGIN < near_y < height - _MARGIN - 1 and _MARGIN < near_x < width - _MARGIN - 1
            if not inside or most_x - least_x >= hole_px or near_y - y >= hole_px or near_y < y:
                return tail, False
            markers[near_y, near_x] = 3
            queue[tail, 0] = near_y
            queue[tail, 1] = near_x
            tail += 1
    return tail, True


@njit(cache=True, nogil=True)
def open_markers(markers: NDArray[np.uint8], foreground: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Markers (H, W) opened by HoVer-Net's disc of 5 x 5 (rows of 1, 5, 5, 5 and 1 px), where foreground.

    The window's rim does not wear markers down.
    """
    height, width = foreground.shape
    eroded = np.zeros_like(markers)
    rows = np.empty((3, width), np.uint8)
    for y in range(height + 2):
        source, run = markers[y + 1], rows[y % 3]  # row y - 1 of the window
        for x in range(width):
            run[x] = source[x] & source[x + 1] & source[x + 2] & source[x + 3] & source[x + 4]
        if y >= 2:  # rows y - 3, y - 2 and y - 1 are there: erode row y - 2
            first, second, third = rows[(y - 2) % 3], rows[(y - 1) % 3], rows[y % 3]
            top, bottom = markers[y - 2][2 : 2 + width], markers[y + 2][2 : 2 + width]
            out = eroded[y][2 : 2 + width]
            for x in range(width):
                out[x] = first[x] & second[x] & third[x] & top[x] & bottom[x]
    opened = np.empty((height, width), np.uint8)
    for y in range(height + 2):
        source, run = eroded[y + 1], rows[y % 3]
        for x in range(width):
            run[x] = source[x] | source[x + 1] | source[x + 2] | source[x + 3] | source[x + 4]
        if y >= 2:
            first, second, third = rows[(y - 2) % 3], rows[(y - 1) % 3], rows[y % 3]
            top, bottom = eroded[y - 2][2 : 2 + width], eroded[y + 2][2 : 2 + width]
            out, fore = opened[y - 2], foreground[y - 2]
            for x in range(width):
                out[x] = (first[x] | second[x] | third[x] | top[x] | bottom[x]) & fore[x]
    return opened
