"""Eight float32 at once, for numba kernels: a vector type, loads and stores by address, fused multiply-add.

LLVM vectorises simple loops by itself, but not a matrix product with its sums kept in registers, which is what a
convolution needs to come near a core's peak. A kernel written with these functions says which sums live in registers;
LLVM turns each call into one AVX instruction (two of NEON). The arithmetic is fixed here, operation by operation: no
reordering, one rounding for a fused multiply-add. So results do not depend on threads.

Addresses are integers (`array.ctypes.data`). Nothing checks them: kernels get arrays, and compute addresses inside.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

__all__ = [
    "LANES",
    "VECTOR_BYTES",
    "Vector",
    "broadcast",
    "divide",
    "emit_broadcast",
    "emit_fma",
    "emit_largest",
    "emit_load",
    "emit_spread",
    "emit_store",
    "emit_zero",
    "fma",
    "instruction",
    "interleave_int16",
    "interleave_uint8",
    "largest",
    "load",
    "nearest",
    "power_of_two",
    "splat",
    "store",
]

LANES = 8
VECTOR_BYTES = 4 * LANES

Vector = Any
"""A vector in a kernel's signature; numba knows it as `float32x8`."""

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INT_VECTOR = ir.VectorType(_INT, LANES)


class Float32x8(types.Type):
    """The type of a vector as numba sees it."""

    def __init__(self) -> None:
        super().__init__(name="float32x8")


float32x8 = Float32x8()


@register_model(Float32x8)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _operator(symbol: Callable[..., Any], instruction: str) -> None:
    @type_callable(symbol)
    def _typed(context: Any) -> Any:
        del context

        def typer(left: Any, right: Any) -> Any:
            return float32x8 if left is float32x8 and right is float32x8 else None

        return typer

    @lower_builtin(symbol, float32x8, float32x8)
    def _lowered(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return getattr(builder, instruction)(*arguments)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")


def instruction(define: Callable[..., Any]) -> Callable[..., Any]:
    """numba's `intrinsic`, typed as what kernels call: without the compiler's context."""
    return intrinsic(define)


def emit_zero() -> Any:
    """A vector of zeros."""
    return ir.Constant(_VECTOR, [0.0] * LANES)


def emit_load(builder: Any, address: Any) -> Any:
    """Eight floats from an address, aligned to 4 bytes or better."""
    value = builder.load(builder.inttoptr(address, _VECTOR.as_pointer()))
    value.align = 4
    return value


def emit_store(builder: Any, address: Any, value: Any) -> None:
    """Eight floats to an address."""
    builder.store(value, builder.inttoptr(address, _VECTOR.as_pointer())).align = 4


def emit_spread(builder: Any, value: Any) -> Any:
    """One float, eight times."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INT_VECTOR, [0] * LANES))


def emit_broadcast(builder: Any, address: Any) -> Any:
    """The float at an address, eight times."""
    value = builder.load(builder.inttoptr(address, _FLOAT.as_pointer()))
    value.align = 4
    return emit_spread(builder, value)


def emit_fma(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    """`left * right + addend`, rounded once."""
    return _emit_call(builder, "fma", left, right, addend)


def emit_largest(builder: Any, left: Any, right: Any) -> Any:
    """The larger of each pair; `right` where `left` is not a number."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def _emit_call(builder: Any, name: str, *arguments: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v8f32"), arguments)


@instruction
def load(context: Any, address: Any) -> Any:
    """Eight floats from `address`, aligned to 4 bytes or better."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_load(builder, arguments[0])

    return float32x8(types.intp), lower


@instruction
def store(context: Any, address: Any, value: Any) -> Any:
    """Eight floats to `address`."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit_store(builder, *arguments)
        return context.get_dummy_value()

    return types.void(types.intp, float32x8), lower


@instruction
def broadcast(context: Any, address: Any) -> Any:
    """The float at `address`, eight times."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_broadcast(builder, arguments[0])

    return float32x8(types.intp), lower


@instruction
def splat(context: Any, value: Any) -> Any:
    """`value`, eight times."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_spread(builder, arguments[0])

    return float32x8(types.float32), lower


@instruction
def fma(context: Any, left: Any, right: Any, addend: Any) -> Any:
    """`left * right + addend`, rounded once."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_fma(builder, *arguments)

    return float32x8(float32x8, float32x8, float32x8), lower


@instruction
def largest(context: Any, left: Any, right: Any) -> Any:
    """The larger of each pair; `right` where `left` is not a number."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit_largest(builder, *arguments)

    return float32x8(float32x8, float32x8), lower


@instruction
def divide(context: Any, left: Any, right: Any) -> Any:
    """`left / right`."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fdiv(*arguments)

    return float32x8(float32x8, float32x8), lower


@instruction
def nearest(context: Any, value: Any) -> Any:
    """The nearest whole number, halves to even."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _emit_call(builder, "rint", *arguments)

    return float32x8(float32x8), lower


@instruction
def power_of_two(context: Any, exponent: Any) -> Any:
    """2 to whole exponents from -126 to 127."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = builder.fptosi(arguments[0], _INT_VECTOR)
        biased = builder.add(whole, ir.Constant(_INT_VECTOR, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(_INT_VECTOR, [23] * LANES)), _VECTOR)

    return float32x8(float32x8), lower


def _interleaving(bits: int) -> Callable[..., Any]:
    pairs = ir.VectorType(ir.IntType(2 * bits), LANES)

    def interleave(context: Any, address: Any, even: Any, odd: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address, even, odd = arguments
            even, odd = builder.fptosi(even, _INT_VECTOR), builder.fptosi(odd, _INT_VECTOR)
            # A pair is one integer of twice the width, its first half in the low bits (little-endian).
            low = builder.and_(even, ir.Constant(_INT_VECTOR, [(1 << bits) - 1] * LANES))
            both = builder.or_(low, builder.shl(odd, ir.Constant(_INT_VECTOR, [bits] * LANES)))
            if bits < 16:
                both = builder.trunc(both, pairs)
            builder.store(both, builder.inttoptr(address, pairs.as_pointer())).align = bits // 8
            return context.get_dummy_value()

        return types.void(types.intp, float32x8, float32x8), lower

    return instruction(interleave)


interleave_int16 = _interleaving(16)
"""Sixteen int16 to an address: whole numbers of two vectors, taken by turns."""

interleave_uint8 = _interleaving(8)
"""Sixteen uint8 to an address: whole numbers of two vectors, taken by turns."""
