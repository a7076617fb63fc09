"""Convolutions of one tile, compiled: 3 x 3 by Winograd's algorithm, 3 x 3 of stride 2 and 1 x 1 as plain products.

A plane holds one layer's activations, float32 (rows + 2, columns + 2, channels), channels last and padded to a multiple
of 8, inside a frame of zeros that is never written: a convolution needs no case for the border. Rows and columns in the
plane are rounded up to whole Winograd tiles. Positions given to these functions do not count the frame.

Winograd F(4 x 4, 3 x 3) (Lavin and Gray 2015, points 0, 1, -1, 2, -2) takes 36 products where the definition takes
144: 6 x 6 inputs are transformed, multiplied by weights at each of the 36 positions, and transformed to 4 x 4 outputs.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cellmill.models.lite_cpu.product_kernels import multiply_rows
from cellmill.models.lite_cpu.vectors import LANES, VECTOR_BYTES, Vector, fma, largest, load, splat, store

__all__ = ["PATCH", "TILE", "convolve_3x3", "convolve_3x3_stride2", "pointwise"]

TILE = 4
"""Outputs of a Winograd tile, along one side."""
PATCH = TILE + 2
"""Inputs of a Winograd tile, along one side."""

Plane = NDArray[np.float32]


@njit(cache=True, nogil=True)
def convolve_3x3(
    source: Plane,
    panels: NDArray[np.float32],
    bias: NDArray[np.float32],
    floor: np.float32,
    residual: Plane,
    has_residual: bool,
    target: Plane,
    tile_rows: tuple[int, int],
    tile_columns: tuple[int, int],
    limits: tuple[int, int],
    num_at_once: int,
    patches: NDArray[np.float32],
    sums: NDArray[np.float32],
) -> None:
    """3 x 3 convolution of stride 1, then bias, residual and floor.

    Args:
        source: plane of inputs.
        panels: (36, panels, depth, width), from `weights.winograd_panels`; depth may be below source's channels.
        bias: (channels of target,).
        floor: outputs below it are raised to it.
        residual: plane added to the outputs; any plane where `has_residual` is off.
        has_residual: whether it is added.
        target: plane of outputs.
        tile_rows: half-open range of Winograd tiles from top to bottom.
        tile_columns: the same from left to right.
        limits: rows and columns of the target that exist; beyond them nothing is written.
        num_at_once: tiles that are transformed, multiplied and transformed back together.
        patches: scratch (36, >= tiles at once * channels of source).
        sums: scratch (36, >= tiles at once * channels of target).
    """
    num_inputs, num_outputs = source.shape[2], target.shape[2]
    depth, width = panels.shape[2], panels.shape[3]
    num_columns = tile_columns[1] - tile_columns[0]
    num_tiles = (tile_rows[1] - tile_rows[0]) * num_columns
    # Helpers get addresses: handing over an array costs two atomic counts, more than the work on a vector.
    source_line, target_line = 4 * source.shape[1] * num_inputs, 4 * target.shape[1] * num_outputs
    patch_step, sum_step = 4 * patches.shape[1], 4 * sums.shape[1]
    to_residual = residual.ctypes.data - target.ctypes.data if has_residual else 0
    for first in range(0, num_tiles, num_at_once):
        num_here = min(num_at_once, num_tiles - first)
        for tile in range(num_here):
            row = TILE * (tile_rows[0] + (first + tile) // num_columns)
            column = TILE * (tile_columns[0] + (first + tile) % num_columns)
            # The frame is one wide: the patch of outputs from (row, column) on begins there in the framed plane.
            begin = source.ctypes.data + row * source_line + 4 * column * num_inputs
            end = patches.ctypes.data + 4 * tile * num_inputs
            _transform_patch(begin, source_line, num_inputs, end, patch_step)
        for position in range(PATCH * PATCH):
            multiply_rows(
                num_here, patches.ctypes.data + position * patch_step, 4 * num_inputs, 1, 0, depth,
                panels.ctypes.data + 4 * position * depth * num_outputs, num_outputs, width, 0,
                np.float32(-np.inf), 0, 0, 0, 0, sums.ctypes.data + position * sum_step, 4 * num_outputs,
            )  # fmt: skip
        for tile in range(num_here):
            row = TILE * (tile_rows[0] + (first + tile) // num_columns)
            column = TILE * (tile_columns[0] + (first + tile) % num_columns)
            begin = sums.ctypes.data + 4 * tile * num_outputs
            end = target.ctypes.data + (row + 1) * target_line + 4 * (column + 1) * num_outputs
            _transform_sums(
                begin, sum_step, bias.ctypes.data, floor, has_residual, to_residual, end, target_line, num_outputs,
                min(TILE, limits[0] - row), min(TILE, limits[1] - column),
            )  # fmt: skip


@njit(cache=True, nogil=True)
def _transform_patch(source: int, line_bytes: int, num_channels: int, patches: int, step: int) -> None:
    """The 6 x 6 inputs of one tile from `source` on, to the 36 positions of `patches`, `step` bytes apart."""
    pixel = 4 * num_channels
    for _ in range(0, num_channels, LANES):
        for x in range(PATCH):  # down each column
            at = source + x * pixel
            a, b, c, d, e, f = _input_line(
                load(at), load(at + line_bytes), load(at + 2 * line_bytes), load(at + 3 * line_bytes),
                load(at + 4 * line_bytes), load(at + 5 * line_bytes),
            )  # fmt: skip
            _store_line(patches + x * step, PATCH * step, a, b, c, d, e, f)
        for y in range(PATCH):  # then along each line, in place
            at = patches + PATCH * y * step
            a, b, c, d, e, f = _input_line(
                load(at), load(at + step), load(at + 2 * step), load(at + 3 * step), load(at + 4 * step),
                load(at + 5 * step),
            )  # fmt: skip
            _store_line(at, step, a, b, c, d, e, f)
        source += VECTOR_BYTES
        patches += VECTOR_BYTES


@njit(cache=True, nogil=True)
def _store_line(at: int, step: int, a: Vector, b: Vector, c: Vector, d: Vector, e: Vector, f: Vector) -> None:
    store(at, a)
    store(at + step, b)
    store(at + 2 * step, c)
    store(at + 3 * step, d)
    store(at + 4 * step, e)
    store(at + 5 * step, f)


@njit(cache=True, nogil=True)
def _input_line(
    d0: Vector, d1: Vector, d2: Vector, d3: Vector, d4: Vector, d5: Vector
) -> tuple[Vector, Vector, Vector, Vector, Vector, Vector]:
    """Winograd's transform of six inputs along one axis."""
    two, four, five = splat(np.float32(2)), splat(np.float32(4)), splat(np.float32(-5))
    even, odd = fma(splat(np.float32(-4)), d2, d4), fma(splat(np.float32(-4)), d1, d3)
    near, far = d4 - d2, two * (d3 - d1)
    first, last = fma(four, d0, fma(five, d2, d4)), fma(four, d1, fma(five, d3, d5))
    return first, even + odd, even - odd, near + far, near - far, last


@njit(cache=True, nogil=True)
def _output_line(
    m0: Vector, m1: Vector, m2: Vector, m3: Vector, m4: Vector, m5: Vector
) -> tuple[Vector, Vector, Vector, Vector]:
    """Winograd's transform of six sums along one axis to four outputs."""
    sum_1, difference_1, sum_2, difference_2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + sum_1 + sum_2,
        fma(splat(np.float32(2)), difference_2, difference_1),
        fma(splat(np.float32(4)), sum_2, sum_1),
        fma(splat(np.float32(8)), difference_2, difference_1 + m5),
    )


@njit(cache=True, nogil=True)
def _transform_sums(
    sums: int,
    step: int,
    bias: int,
    floor: np.float32,
    has_residual: bool,
    to_residual: int,
    target: int,
    line_bytes: int,
    num_channels: int,
    num_lines: int,
    num_pixels: int,
) -> None:
    """The 36 sums of one tile, `step` bytes apart, to its outputs from `target` on (4 x 4, fewer at the far borders).

    A residual lies `to_residual` bytes from where the output goes.
    """
    pixel = 4 * num_channels
    low = splat(floor)
    for _ in range(0, num_channels, LANES):
        for y in range(PATCH):  # along each line, in place of the sums
            at = sums + PATCH * y * step
            a, b, c, d = _output_line(
                load(at), load(at + step), load(at + 2 * step), load(at + 3 * step), load(at + 4 * step),
                load(at + 5 * step),
            )  # fmt: skip
            store(at, a)
            store(at + step, b)
            store(at + 2 * step, c)
            store(at + 3 * step, d)
        start = load(bias)
        for x in range(num_pixels):  # then down each column
            at = sums + x * step
            down = PATCH * step
            a, b, c, d = _output_line(
                load(at), load(at + down), load(at + 2 * down), load(at + 3 * down), load(at + 4 * down),
                load(at + 5 * down),
            )  # fmt: skip
            there = target + x * pixel
            _put(a + start, low, has_residual, to_residual, there)
            if num_lines > 1:
                _put(b + start, low, has_residual, to_residual, there + line_bytes)
            if num_lines > 2:
                _put(c + start, low, has_residual, to_residual, there + 2 * line_bytes)
            if num_lines > 3:
                _put(d + start, low, has_residual, to_residual, there + 3 * line_bytes)
        sums += VECTOR_BYTES
        bias += VECTOR_BYTES
        target += VECTOR_BYTES


@njit(cache=True, nogil=True)
def _put(value: Vector, low: Vector, has_residual: bool, to_residual: int, there: int) -> None:
    if has_residual:
        value = value + load(there + to_residual)
    store(there, largest(value, low))


@njit(cache=True, nogil=True)
def convolve_3x3_stride2(
    source: Plane,
    panels: NDArray[np.float32],
    bias: NDArray[np.float32],
    floor: np.float32,
    target: Plane,
    rows: tuple[int, int],
    num_columns: int,
) -> None:
    """3 x 3 convolution of stride 2 and padding 1, then bias and floor, for rows `rows` of the target.

    `panels` is (panels, 3 * 3 * channels of source, width).
    """
    num_inputs, num_outputs, width = source.shape[2], target.shape[2], panels.shape[2]
    source_line, target_line = 4 * source.shape[1] * num_inputs, 4 * target.shape[1] * num_outputs
    for row in range(rows[0], rows[1]):
        multiply_rows(
            num_columns, source.ctypes.data + 2 * row * source_line, 8 * num_inputs, 3, source_line, 3 * num_inputs,
            panels.ctypes.data, num_outputs, width, bias.ctypes.data, floor, 0, 0, 0, 0,
            target.ctypes.data + (row + 1) * target_line + 4 * num_outputs, 4 * num_outputs,
        )  # fmt: skip


@njit(cache=True, nogil=True)
def pointwise(
    source: Plane,
    panels: NDArray[np.float32],
    bias: NDArray[np.float32],
    coarse: Plane,
    has_coarse: bool,
    target: Plane,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> None:
    """1 x 1 convolution and bias; adds `coarse`, a plane of half the size, with each of its pixels taken 2 x 2 times.

    `panels` is (panels, channels of source, width).
    """
    num_inputs, num_outputs, width = source.shape[2], target.shape[2], panels.shape[2]
    source_line, target_line = 4 * source.shape[1] * num_inputs, 4 * target.shape[1] * num_outputs
    coarse_line = 4 * coarse.shape[1] * num_outputs
    none = np.float32(-np.inf)
    for row in range(rows[0], rows[1]):
        begin = source.ctypes.data + (row + 1) * source_line + 4 * (columns[0] + 1) * num_inputs
        end = target.ctypes.data + (row + 1) * target_line + 4 * (columns[0] + 1) * num_outputs
        add = coarse.ctypes.data + (row // 2 + 1) * coarse_line + 4 * num_outputs if has_coarse else 0
        multiply_rows(
            columns[1] - columns[0], begin, 4 * num_inputs, 1, 0, num_inputs, panels.ctypes.data, num_outputs, width,
            bias.ctypes.data, none, add, 4 * num_outputs, columns[0], 1, end, 4 * num_outputs,
        )  # fmt: skip
