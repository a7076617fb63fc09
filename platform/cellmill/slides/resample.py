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

__all__ = ["Taps", "axis_taps", "resample_into"]

WEIGHT_BITS = 14
_MIDDLE_BITS = 6
"""Fraction bits kept between the two passes: 255 << 6 times the cubic's overshoot still fits int16."""
_GROUP = 3
"""Taps added at once."""
_SLACK = 3
"""Native pixels by which an output pixel may start off its run's lattice: the least that makes up a group."""
_LONG_RUN_PX = 64
"""Mean length of a run, in output pixels, from which on more taps cost more than fewer runs save; measured."""


@dataclass(frozen=True)
class Taps:
    """Which native pixels make output pixels X0 .. X0 + n along one axis, and with what integer weights."""

    starts: NDArray[np.int64]  # (n,) first native index, absolute, never outside the slide
    weights: NDArray[np.int32]  # (n, K), each row sums to 1 << WEIGHT_BITS

    @property
    def native_range(self) -> tuple[int, int]:
        """Half-open range of native indices needed."""
        return int(self.starts[0]), int(self.starts[-1]) + self.weights.shape[1]

    def part(self, first: int, last: int) -> "Taps":
        """Taps of the output pixels [first, last) of these, counted from 0."""
        return Taps(self.starts[first:last], self.weights[first:last])


def axis_taps(first: int, last: int, *, scale: float, native_size: int) -> Taps:
    """Taps of output indices [first, last) along one axis; `scale` is native pixels per output pixel."""
    num_taps = min(math.ceil(4 * max(scale, 1.0)) + 1, native_size)
    starts = np.empty(last - first, np.int64)
    weights = np.zeros((last - first, num_taps), np.int32)
    _fill_taps(first, scale, native_size, starts, weights)
    return Taps(starts, weights)


def resample_into(
    pixels: NDArray[np.uint8],
    at: tuple[int, int],
    native: NDArray[np.uint8],
    origin: tuple[int, int],
    *,
    taps_x: Taps,
    taps_y: Taps,
) -> None:
    """Fill a box of model pixels.

    Args:
        pixels: (H, W, 3), contiguous; the box of taps_x by taps_y in it is filled.
        at: left and top of that box in `pixels`.
        native: (h, w, 3), contiguous, all native pixels that the taps need.
        origin: native x and y of its first pixel.
        taps_x: of the columns.
        taps_y: of the rows.
    """
    _resample(
        native,
        (taps_x.starts - origin[0], taps_x.weights),
        (taps_y.starts - origin[1], taps_y.weights),
        pixels.reshape(pixels.shape[0], -1),
        at,
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
    taps_x: tuple[NDArray[np.int64], NDArray[np.int32]],
    taps_y: tuple[NDArray[np.int64], NDArray[np.int32]],
    out: NDArray[np.uint8],
    at: tuple[int, int],
) -> None:
    """Rows first, then along each row; `out` is (rows, columns x 3), filled from column and row `at` on.

    Inner loops run over neighbouring values, so that the compiler makes vector instructions of them; `_runs` says how
    that is had along a row too. Three taps are taken at once, since taking one at a time is spent on loading and
    storing sums. Sums of integers are the same in any order.
    """
    (starts_x, weights_x), (starts_y, weights_y), (left, top) = taps_x, taps_y, at
    num_y, num_x = starts_y.size, starts_x.size
    row_values = native.shape[1] * 3
    flat = native.reshape(native.shape[0], row_values)
    step = _step(starts_x)
    begins, lattice = _runs(starts_x, step, 0)
    if num_x < _LONG_RUN_PX * lattice.size:
        begins, lattice = _runs(starts_x, step, _SLACK)
    weights = _spread(weights_x, starts_x, begins, lattice, step)
    sums = np.empty(row_values, np.int32)
    phases = _phases(native.shape[1], step, weights.shape[0])
    ends = np.empty(num_x * 3, np.int32)
    shift = WEIGHT_BITS - _MIDDLE_BITS
    end_shift = WEIGHT_BITS + _MIDDLE_BITS
    for y in range(num_y):
        _sum_rows(flat, starts_y[y], weights_y[y], sums, 1 << (shift - 1))
        _split(sums, phases, shift)
        ends[:] = 1 << (end_shift - 1)
        for run in range(lattice.size):
            _add_run(ends, weights, phases, (begins[run], begins[run + 1], lattice[run]))
        row = out[top + y, 3 * left : 3 * (left + num_x)]
        for position in range(row.size):
            row[position] = min(max(ends[position] >> end_shift, 0), 255)


@njit(cache=True, nogil=True)
def _step(starts: NDArray[np.int64]) -> int:
    """Native pixels from one output pixel to the next, in whole numbers, as a rule."""
    if starts.size < 2:
        return 1
    return max(1, round((starts[-1] - starts[0]) / (starts.size - 1)))


@njit(cache=True, nogil=True)
def _runs(starts: NDArray[np.int64], step: int, slack: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of output pixels that lie `step` native pixels apart, give or take.

    In a run, tap k of neighbouring outputs falls on every `step`-th native pixel: on neighbours, once the row is split
    into `step` phases. A scale of 1.98 has runs of 50 px. With `slack` a run goes on while its pixels start within
    that many native pixels of such a lattice; taps of no weight then make up the difference.

    Returns:
        Where runs begin, with the end of the last; native start of each run's lattice.
    """
    begins, lattice = np.empty(starts.size + 1, np.int64), np.empty(starts.size, np.int64)
    count, begin, low, high = 0, 0, 0, 0
    for index in range(1, starts.size):
        off = starts[index] - starts[begin] - step * (index - begin)
        if max(high, off) - min(low, off) > slack:
            begins[count], lattice[count] = begin, starts[begin] + low
            count, begin, low, high = count + 1, index, 0, 0
        else:
            low, high = min(low, off), max(high, off)
    begins[count], lattice[count] = begin, starts[begin] + low
    begins[count + 1] = starts.size
    return begins[: count + 2], lattice[: count + 1]


@njit(cache=True, nogil=True)
def _spread(
    weights: NDArray[np.int32],
    starts: NDArray[np.int64],
    begins: NDArray[np.int64],
    lattice: NDArray[np.int64],
    step: int,
) -> NDArray[np.int32]:
    """Weights by tap from the lattice on, each output pixel's three times over; whole groups of taps."""
    most_off = 0
    for run in range(lattice.size):
        for x in range(begins[run], begins[run + 1]):
            most_off = max(most_off, starts[x] - lattice[run] - step * (x - begins[run]))
    num_taps = -(-(weights.shape[1] + most_off) // _GROUP) * _GROUP
    spread = np.zeros((num_taps, weights.shape[0] * 3), np.int32)
    for run in range(lattice.size):
        for x in range(begins[run], begins[run + 1]):
            off = starts[x] - lattice[run] - step * (x - begins[run])
            for k in range(weights.shape[1]):
                spread[k + off, 3 * x : 3 * x + 3] = weights[x, k]
    return spread


@njit(cache=True, nogil=True)
def _phases(num_pixels: int, num_phases: int, num_taps: int) -> NDArray[np.int32]:
    """Room for a row split into phases, and for the taps of no weight beyond its ends."""
    return np.zeros((num_phases, 3 * (num_pixels // num_phases + 2 * _SLACK + num_taps + 2)), np.int32)


@njit(cache=True, nogil=True)
def _sum_rows(
    flat: NDArray[np.uint8], start: int, weights: NDArray[np.int32], sums: NDArray[np.int32], initial: int
) -> None:
    num_values = sums.size
    sums[:] = initial
    for k in range(0, weights.size - 2, _GROUP):
        first, second, third = flat[start + k], flat[start + k + 1], flat[start + k + 2]
        a, b, c = weights[k], weights[k + 1], weights[k + 2]
        for position in range(num_values):
            sums[position] += (
                a * np.int32(first[position]) + b * np.int32(second[position]) + c * np.int32(third[position])
            )
    for k in range(weights.size // _GROUP * _GROUP, weights.size):
        a, first = weights[k], flat[start + k]
        for position in range(num_values):
            sums[position] += a * np.int32(first[position])


@njit(cache=True, nogil=True)
def _split(sums: NDArray[np.int32], phases: NDArray[np.int32], shift: int) -> None:
    """Pixel i of a row to place i // step of phase i % step; the first `_SLACK` places stay empty."""
    step = phases.shape[0]
    if step == 1:
        row = phases[0, 3 * _SLACK :]
        for position in range(sums.size):
            row[position] = sums[position] >> shift
        return
    num_pixels = sums.size // 3
    for phase in range(step):
        row = phases[phase, 3 * _SLACK :]
        for place in range((num_pixels - phase + step - 1) // step):
            position = 3 * (place * step + phase)
            row[3 * place] = sums[position] >> shift
            row[3 * place + 1] = sums[position + 1] >> shift
            row[3 * place + 2] = sums[position + 2] >> shift


@njit(cache=True, nogil=True)
def _add_run(
    ends: NDArray[np.int32],
    weights: NDArray[np.int32],
    phases: NDArray[np.int32],
    run: tuple[int, int, int],
) -> None:
    """All taps of a run of output pixels: its begin and end, and the native pixel its lattice starts at."""
    begin, end, start = run
    step = phases.shape[0]
    start += _SLACK * step
    count = 3 * (end - begin)
    sums = ends[3 * begin : 3 * end]
    for k in range(0, weights.shape[0], _GROUP):
        native = start + k
        a = weights[k, 3 * begin :]
        b = weights[k + 1, 3 * begin :]
        c = weights[k + 2, 3 * begin :]
        first = phases[native % step, 3 * (native // step) :]
        second = phases[(native + 1) % step, 3 * ((native + 1) // step) :]
        third = phases[(native + 2) % step, 3 * ((native + 2) // step) :]
        for position in range(count):
            sums[position] += (
                a[position] * first[position] + b[position] * second[position] + c[position] * third[position]
            )
