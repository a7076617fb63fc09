"""Separable resampling whose every output pixel depends on its absolute index alone.

Consumes a window of native pixels and the taps of absolute output indices; produces model-grid pixels. Output pixel X
covers native [X * s, (X + 1) * s); its taps are those of an antialiased Catmull-Rom cubic centred there, stretched by
s where s > 1, turned into integers that sum to exactly 1 << WEIGHT_BITS. Sums are integers too, so a pixel is the same
bit for bit in every window, on every machine. At the slide's edge its last native pixels are repeated outwards.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["Taps", "axis_taps", "resample_window"]

WEIGHT_BITS = 14
_MIDDLE_BITS = 6
"""Fraction bits kept between the two passes: 255 << 6 times the cubic's overshoot still fits int16."""


@dataclass(frozen=True)
class Taps:
    """Which native pixels make output pixels X0 .. X0 + n along one axis, and with what integer weights."""

    starts: NDArray[np.int64]  # (n,) first native index, absolute, never outside the slide
    weights: NDArray[np.int32]  # (n, K), each row sums to 1 << WEIGHT_BITS

    @property
    def native_range(self) -> tuple[int, int]:
        """Half-open range of native indices needed."""
        return int(self.starts[0]), int(self.starts[-1]) + self.weights.shape[1]


def axis_taps(first: int, last: int, *, scale: float, native_size: int) -> Taps:
    """Taps of output indices [first, last) along one axis; `scale` is native pixels per output pixel."""
    num_taps = min(math.ceil(4 * max(scale, 1.0)) + 1, native_size)
    starts = np.empty(last - first, np.int64)
    weights = np.zeros((last - first, num_taps), np.int32)
    _fill_taps(first, scale, native_size, starts, weights)
    return Taps(starts, weights)


def resample_window(
    native: NDArray[np.uint8], origin: tuple[int, int], *, taps_x: Taps, taps_y: Taps
) -> NDArray[np.uint8]:
    """Model pixels (n_y, n_x, 3) from native pixels (h, w, 3) whose first pixel is at `origin` (x, y)."""
    return _resample(
        np.ascontiguousarray(native),
        taps_x.starts - origin[0],
        taps_x.weights,
        taps_y.starts - origin[1],
        taps_y.weights,
    )


@njit(cache=True, nogil=True)
def _cubic(distance: float) -> float:
    """Catmull-Rom (a = -0.5), as Pillow's BICUBIC."""
    d = abs(distance)
    if d < 1.0:
        return (1.5 * d - 2.5) * d * d + 1.0
    if d < 2.0:
        return ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return 0.0


@njit(cache=True, nogil=True)
def _fill_taps(
    first: int, scale: float, native_size: int, starts: NDArray[np.int64], weights: NDArray[np.int32]
) -> None:
    num_taps = weights.shape[1]
    width = max(scale, 1.0)
    unclipped_taps = math.ceil(4 * width) + 1
    values = np.empty(unclipped_taps, np.float64)
    for row in range(starts.shape[0]):
        center = (first + row + 0.5) * scale
        begin = math.floor(center - 2 * width)
        total = 0.0
        for k in range(unclipped_taps):
            values[k] = _cubic((begin + k + 0.5 - center) / width)
            total += values[k]
        start = min(max(begin, 0), native_size - num_taps)
        starts[row] = start
        left = 1 << WEIGHT_BITS
        largest, largest_weight = 0, -1
        for k in range(unclipped_taps):
            weight = math.floor(values[k] / total * (1 << WEIGHT_BITS) + 0.5)
            # Taps beyond the slide fall on its edge pixel.
            index = min(max(begin + k, 0), native_size - 1) - start
            weights[row, index] += weight
            left -= weight
            if weight > largest_weight:
                largest, largest_weight = index, weight
        weights[row, largest] += left


@njit(cache=True, nogil=True)
def _resample(
    native: NDArray[np.uint8],
    starts_x: NDArray[np.int64],
    weights_x: NDArray[np.int32],
    starts_y: NDArray[np.int64],
    weights_y: NDArray[np.int32],
) -> NDArray[np.uint8]:
    num_y, num_x, taps_x, taps_y = starts_y.size, starts_x.size, weights_x.shape[1], weights_y.shape[1]
    row_values = native.shape[1] * 3
    flat = native.reshape(native.shape[0], row_values)
    out = np.empty((num_y, num_x, 3), np.uint8)
    sums = np.empty(row_values, np.int32)
    middle = np.empty(row_values, np.int16)
    shift = WEIGHT_BITS - _MIDDLE_BITS
    half = 1 << (shift - 1)
    end_shift = WEIGHT_BITS + _MIDDLE_BITS
    end_half = 1 << (end_shift - 1)
    for y in range(num_y):
        sums[:] = half
        for k in range(taps_y):
            weight = weights_y[y, k]
            source = flat[starts_y[y] + k]
            for position in range(row_values):
                sums[position] += weight * np.int32(source[position])
        for position in range(row_values):
            middle[position] = np.int16(sums[position] >> shift)
        for x in range(num_x):
            base = starts_x[x] * 3
            red = green = blue = np.int32(end_half)
            for k in range(taps_x):
                weight = weights_x[x, k]
                red += weight * np.int32(middle[base + 3 * k])
                green += weight * np.int32(middle[base + 3 * k + 1])
                blue += weight * np.int32(middle[base + 3 * k + 2])
            out[y, x, 0] = min(max(red >> end_shift, 0), 255)
            out[y, x, 1] = min(max(green >> end_shift, 0), 255)
            out[y, x, 2] = min(max(blue >> end_shift, 0), 255)
    return out
