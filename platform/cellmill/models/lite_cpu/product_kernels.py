"""Matrix products of activations (rows) and packed weights (columns), with their sums in registers.

A row is one output position, a column one output channel. The inputs of a row are `num_runs` runs of `depth` floats
that lie `run_bytes` apart: one run for a 1 x 1 convolution, three (the kernel's lines) for a 3 x 3. Columns come in
panels of 16 or 24, each packed (num_runs * depth, width), so that 12 vectors of sums, the panel's vectors and one
broadcast input fill the 16 vector registers of AVX2. What follows a sum is applied before it is stored: the bias, where
the sums begin; a residual; and the floor that makes a ReLU (minus infinity: none).

Every address is an integer in bytes; 0 for a bias or a residual means that there is none.
"""
# Compiled functions take no keyword-only arguments:
# ruff: noqa: PLR0917

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from cellmill.models.lite_cpu.vectors import (
    VECTOR_BYTES,
    emit_broadcast,
    emit_fma,
    emit_largest,
    emit_load,
    emit_spread,
    emit_store,
    emit_zero,
    instruction,
)

__all__ = ["multiply_rows"]

_ADDRESS = ir.IntType(64)


def _block(num_rows: int, num_vectors: int) -> Callable[..., Any]:
    """An instruction that computes `num_rows` rows of `num_vectors` vectors, written out for the compiler.

    Its arguments are those of `multiply_rows` from `source` on, for one panel; `panel_row` is the panel's bytes a row.
    """

    def block(
        context: Any,
        source: Any,
        source_row: Any,
        num_runs: Any,
        run_bytes: Any,
        depth: Any,
        panel: Any,
        panel_row: Any,
        bias: Any,
        floor: Any,
        residual: Any,
        residual_row: Any,
        first_row: Any,
        shift: Any,
        target: Any,
        target_row: Any,
    ) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit_block(builder, num_rows, num_vectors, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8, types.float32, *[types.intp] * 6), lower

    return instruction(block)


def _emit_block(
    builder: Any,
    num_rows: int,
    num_vectors: int,
    source: Any,
    source_row: Any,
    num_runs: Any,
    run_bytes: Any,
    depth: Any,
    panel: Any,
    panel_row: Any,
    bias: Any,
    floor: Any,
    residual: Any,
    residual_row: Any,
    first_row: Any,
    shift: Any,
    target: Any,
    target_row: Any,
) -> None:
    none = ir.Constant(_ADDRESS, 0)
    starts = [cgutils.alloca_once_value(builder, emit_zero()) for _ in range(num_vectors)]
    with builder.if_then(builder.icmp_signed("!=", bias, none)):
        for vector, start in enumerate(starts):
            builder.store(emit_load(builder, _past(builder, bias, vector)), start)
    # One slot on the stack for each sum; LLVM turns all of them into registers.
    sums = [[cgutils.alloca_once_value(builder, builder.load(start)) for start in starts] for _ in range(num_rows)]
    weights = cgutils.alloca_once_value(builder, panel)
    with cgutils.for_range(builder, num_runs) as run:
        begin = builder.add(source, builder.mul(run.index, run_bytes))
        with cgutils.for_range(builder, depth) as step:
            here = builder.load(weights)
            columns = [emit_load(builder, _past(builder, here, vector)) for vector in range(num_vectors)]
            for row, row_sums in enumerate(sums):
                at = builder.add(begin, builder.mul(source_row, ir.Constant(_ADDRESS, row)))
                value = emit_broadcast(builder, builder.add(at, builder.mul(step.index, ir.Constant(_ADDRESS, 4))))
                for column, total in zip(columns, row_sums, strict=True):
                    builder.store(emit_fma(builder, value, column, builder.load(total)), total)
            builder.store(builder.add(here, panel_row), weights)
    with builder.if_then(builder.icmp_signed("!=", residual, none)):
        for row, row_sums in enumerate(sums):
            number = builder.ashr(builder.add(first_row, ir.Constant(_ADDRESS, row)), shift)
            at = builder.add(residual, builder.mul(number, residual_row))
            for vector, total in enumerate(row_sums):
                added = builder.fadd(builder.load(total), emit_load(builder, _past(builder, at, vector)))
                builder.store(added, total)
    lowest = emit_spread(builder, floor)
    for row, row_sums in enumerate(sums):
        at = builder.add(target, builder.mul(target_row, ir.Constant(_ADDRESS, row)))
        for vector, total in enumerate(row_sums):
            emit_store(builder, _past(builder, at, vector), emit_largest(builder, builder.load(total), lowest))


def _past(builder: Any, address: Any, vectors: int) -> Any:
    return builder.add(address, ir.Constant(_ADDRESS, vectors * VECTOR_BYTES))


_one_by_8 = _block(1, 1)
_six_by_16 = _block(6, 2)
_four_by_24 = _block(4, 3)


@njit(cache=True, nogil=True)
def multiply_rows(
    num_rows: int,
    source: int,
    source_row: int,
    num_runs: int,
    run_bytes: int,
    depth: int,
    panels: int,
    num_columns: int,
    width: int,
    bias: int,
    floor: np.float32,
    residual: int,
    residual_row: int,
    first_row: int,
    shift: int,
    target: int,
    target_row: int,
) -> None:
    """Write `num_rows` rows of `num_columns` sums to `target`.

    Args:
        num_rows: rows to compute.
        source: address of the first row's inputs.
        source_row: bytes from one row's inputs to the next row's.
        num_runs: runs of inputs of a row.
        run_bytes: bytes from one run to the next.
        depth: inputs in a run.
        panels: address of the packed weights.
        num_columns: a multiple of `width`.
        width: columns of a panel, 16 or 24.
        bias: address of a float for each column; 0 for none.
        floor: sums below it are raised to it.
        residual: address of what is added: row `(first_row + row) >> shift` of it belongs to a row. 0 for nothing.
        residual_row: bytes of a residual's row.
        first_row: number of the first row, for the residual.
        shift: 1 where two rows share a residual's row, else 0.
        target: address of the first output; what is there is not an input.
        target_row: bytes from one row's outputs to the next row's.
    """
    at_once = 6 if width == 16 else 4
    panel_bytes = 4 * num_runs * depth * width
    for first in range(0, num_columns, width):
        for row in range(0, num_rows, at_once if num_rows >= at_once else 1):
            # The last rows are computed with some before them once more: the same sums are stored again.
            begin = max(0, min(row, num_rows - at_once)) if num_rows >= at_once else row
            inputs, number = source + begin * source_row, first_row + begin
            for column in range(first, first + width, 8 if num_rows < at_once else width):
                panel = panels + first // width * panel_bytes + 4 * (column - first)
                start = bias + 4 * column if bias != 0 else 0
                add = residual + 4 * column if residual != 0 else 0
                end = target + begin * target_row + 4 * column
                if num_rows < at_once:
                    _one_by_8(inputs, source_row, num_runs, run_bytes, depth, panel, 4 * width, start, floor,
                              add, residual_row, number, shift, end, target_row)  # fmt: skip
                elif width == 16:
                    _six_by_16(inputs, source_row, num_runs, run_bytes, depth, panel, 4 * width, start, floor,
                               add, residual_row, number, shift, end, target_row)  # fmt: skip
                else:
                    _four_by_24(inputs, source_row, num_runs, run_bytes, depth, panel, 4 * width, start, floor,
                                add, residual_row, number, shift, end, target_row)  # fmt: skip
