"""The two ends of the network, compiled: pixels into the first plane, the head's outputs into quantised maps.

Pixels enter and leave in 2 x 2 groups (pixel unshuffle and shuffle), so both ends work at half resolution.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.instances.maps import FLOW_SCALE, PROB_SCALE
from cellmill.models.lite_cpu.product_kernels import multiply_rows
from cellmill.models.lite_cpu.vectors import (
    LANES,
    Vector,
    divide,
    fma,
    interleave_int16,
    interleave_uint8,
    largest,
    load,
    nearest,
    power_of_two,
    splat,
    store,
)

__all__ = ["pixels_to_plane", "plane_to_maps"]

_FLOW_LIMIT = 32767.0
_LOWEST_EXPONENT = -87.0  # exp of less is below the smallest normal float, and far below half a probability step


@njit(cache=True, nogil=True)
def pixels_to_plane(
    tile: NDArray[np.uint8], normalised: NDArray[np.float32], plane: NDArray[np.float32], rows: tuple[int, int]
) -> None:
    """Rows `rows` of the first plane from a tile (H, W, 3) uint8.

    `normalised` (3, 256) is what each value of each colour becomes. Channel `4 * colour + 2 * dy + dx` of plane pixel
    (y, x) is image pixel (2 y + dy, 2 x + dx), as in `torch.nn.functional.pixel_unshuffle`.
    """
    for y in range(rows[0], rows[1]):
        for x in range(tile.shape[1] // 2):
            for colour in range(3):
                for dy in range(2):
                    for dx in range(2):
                        value = normalised[colour, tile[2 * y + dy, 2 * x + dx, colour]]
                        plane[y + 1, x + 1, 4 * colour + 2 * dy + dx] = value


@njit(cache=True, nogil=True)
def plane_to_maps(
    plane: NDArray[np.float32],
    head: NDArray[np.float32],
    margin_px: int,
    flow: NDArray[np.int16],
    prob: NDArray[np.uint8],
    rows: tuple[int, int],
    columns: tuple[int, int],
    packed: NDArray[np.float32],
    lines: NDArray[np.float32],
    flow_line: NDArray[np.int16],
    prob_line: NDArray[np.uint8],
) -> None:
    """The head and all that follows it, for the map pixels that plane rows `rows` hold.

    Here the plane's pixels are the columns of the product and the head's outputs its rows, so that each map's line
    comes out in one piece.

    Args:
        plane: what the head works on, (rows + 2, columns + 2, channels).
        head: (4 * maps, channels + 1): the head's weights, its bias last. Row `(2 * dy + dx) * maps + map` gives that
            map at pixel (2 y + dy, 2 x + dx) of the tile for plane pixel (y, x). Maps: dy, dx, then the logits.
        margin_px: what the core leaves out of the tile on each side.
        flow: (2, stride, stride), of the core.
        prob: (maps - 2, stride, stride), of the core.
        rows: rows of the plane to work on.
        columns: columns of the plane that the core needs.
        packed: scratch (columns / 16, rounded up, channels + 1, 16), its last channel holding ones, for the bias.
        lines: scratch (4 * maps, columns rounded up to 16).
        flow_line: scratch (2 * columns rounded up to 16,).
        prob_line: the same.
    """
    num_maps, depth, num_columns = head.shape[0] // 4, head.shape[1], lines.shape[1]
    line_bytes = 4 * num_columns
    first = margin_px - 2 * columns[0]  # of a line, the first pixel in the core
    stride = flow.shape[1]
    whole = first == 0 and stride == 2 * num_columns
    for y in range(rows[0], rows[1]):
        _pack(plane, y + 1, columns, packed)
        multiply_rows(
            head.shape[0], head.ctypes.data, 4 * depth, 1, 0, depth, packed.ctypes.data, num_columns, 16, 0,
            np.float32(-np.inf), 0, 0, 0, 0, lines.ctypes.data, line_bytes,
        )  # fmt: skip
        for dy in range(2):
            row = 2 * y + dy - margin_px
            if not 0 <= row < stride:
                continue
            even = lines.ctypes.data + 2 * dy * num_maps * line_bytes
            odd = even + num_maps * line_bytes
            _quantise(even, line_bytes, num_columns, num_maps)
            _quantise(odd, line_bytes, num_columns, num_maps)
            for number in range(num_maps):
                at = number * line_bytes
                if number < 2:
                    # Where a map's line begins and ends with whole vectors it is written in place.
                    end = flow.ctypes.data + 2 * (number * stride + row) * stride if whole else flow_line.ctypes.data
                    for x in range(0, num_columns, LANES):
                        interleave_int16(end + 4 * x, load(even + at + 4 * x), load(odd + at + 4 * x))
                    if not whole:
                        flow[number, row] = flow_line[first : first + stride]
                else:
                    end = prob.ctypes.data + ((number - 2) * stride + row) * stride if whole else prob_line.ctypes.data
                    for x in range(0, num_columns, LANES):
                        interleave_uint8(end + 2 * x, load(even + at + 4 * x), load(odd + at + 4 * x))
                    if not whole:
                        prob[number - 2, row] = prob_line[first : first + stride]


@njit(cache=True, nogil=True)
def _pack(plane: NDArray[np.float32], row: int, columns: tuple[int, int], packed: NDArray[np.float32]) -> None:
    """One line of the plane as panels of 16 pixels."""
    for panel in range(packed.shape[0]):
        start = columns[0] + 1 + 16 * panel
        for pixel in range(min(16, columns[1] + 1 - start)):
            for channel in range(plane.shape[2]):
                packed[panel, channel, pixel] = plane[row, start + pixel, channel]


@njit(cache=True, nogil=True)
def _quantise(lines: int, step: int, num_columns: int, num_maps: int) -> None:
    """Flows to steps of 1 / FLOW_SCALE, logits to shares in steps of 1 / PROB_SCALE; lines are `step` bytes apart."""
    limit, scale, zero = splat(np.float32(_FLOW_LIMIT)), splat(np.float32(PROB_SCALE)), splat(np.float32(0))
    for first in range(0, num_columns, LANES):
        at = lines + 4 * first
        for number in range(2):
            scaled = load(at + number * step) * splat(np.float32(FLOW_SCALE))
            # The smaller of two is minus the larger of their negatives.
            bounded = zero - largest(zero - largest(scaled, zero - limit), zero - limit)
            store(at + number * step, nearest(bounded))
        highest = load(at + 2 * step)
        for number in range(3, num_maps):
            highest = largest(highest, load(at + number * step))
        total = zero
        for number in range(2, num_maps):
            weight = _exp(load(at + number * step) - highest)
            total = total + weight
            store(at + number * step, weight)
        factor = divide(scale, total)
        for number in range(2, num_maps):
            store(at + number * step, nearest(load(at + number * step) * factor))


@njit(cache=True, nogil=True)
def _exp(value: Vector) -> Vector:
    """e to a value of 0 or less: 2 to a whole number times e to at most half of ln 2, as a Taylor polynomial.

    The relative error is below 1e-6, a thousandth of what would move a probability by a step.
    """
    value = largest(value, splat(np.float32(_LOWEST_EXPONENT)))
    whole = nearest(value * splat(np.float32(1.4426950408889634)))
    # ln 2 in two parts, so that the rest keeps its last bits.
    rest = fma(whole, splat(np.float32(-0.693145751953125)), value)
    rest = fma(whole, splat(np.float32(-1.4286068203094172e-06)), rest)
    series = splat(np.float32(1 / 720))
    for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = fma(series, rest, splat(np.float32(factor)))
    return series * power_of_two(whole)
