"""Weights of a `lite` network as the compiled kernels take them: batch norm folded in, transformed, packed in panels.

All of it is done in float64 and rounded once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Folded", "fold_convolution", "pack_panels", "padded_width", "panel_width", "winograd_panels"]

_TRANSFORM = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
"""Winograd's transform of a 3-tap kernel for four outputs, points 0, 1, -1, 2, -2 and infinity."""

Tensors = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Folded:
    """One convolution with its batch norm in its weights."""

    weight: npt.NDArray[np.float64]  # (outputs, inputs, kernel, kernel)
    bias: npt.NDArray[np.float64]  # (outputs,)


def fold_convolution(tensors: Tensors, name: str, *, epsilon: float = 1e-5) -> Folded:
    """The convolution `name` of a state dict: a `ConvNorm` (convolution `0`, batch norm `1`), or a bare one."""
    if f"{name}.0.weight" not in tensors:
        return Folded(tensors[f"{name}.weight"], tensors[f"{name}.bias"])
    scale = tensors[f"{name}.1.weight"] / np.sqrt(tensors[f"{name}.1.running_var"] + epsilon)
    bias = tensors[f"{name}.1.bias"] - tensors[f"{name}.1.running_mean"] * scale
    return Folded(tensors[f"{name}.0.weight"] * scale[:, None, None, None], bias)


def padded_width(channels: int) -> int:
    """Channels of a plane that holds `channels`: whole panels."""
    return channels if channels % 24 == 0 else -(-channels // 16) * 16


def panel_width(channels: int) -> int:
    """Columns of a panel for a plane of `channels` (padded): 16, or 24 where only that divides it."""
    return 16 if channels % 16 == 0 else 24


def pack_panels(matrix: npt.NDArray[np.float64], num_columns: int) -> npt.NDArray[np.float32]:
    """(depth, outputs) as (panels, depth, width), with zeros for columns up to `num_columns`."""
    depth, outputs = matrix.shape
    width = panel_width(num_columns)
    whole = np.zeros((depth, num_columns))
    whole[:, :outputs] = matrix
    return np.ascontiguousarray(whole.reshape(depth, -1, width).transpose(1, 0, 2), np.float32)


def winograd_panels(weight: npt.NDArray[np.float64], num_columns: int) -> npt.NDArray[np.float32]:
    """(outputs, inputs, 3, 3) as (36, panels, inputs, width): one product for each position of a patch."""
    moved = np.einsum("ai,ocij,bj->abco", _TRANSFORM, weight, _TRANSFORM)  # (6, 6, inputs, outputs)
    return np.stack([pack_panels(matrix, num_columns) for matrix in moved.reshape(36, *moved.shape[2:])])


def padded_bias(bias: npt.NDArray[np.float64], num_columns: int) -> npt.NDArray[np.float32]:
    """A bias with zeros up to `num_columns`."""
    return np.pad(bias, (0, num_columns - len(bias))).astype(np.float32)


def line_panels(weight: npt.NDArray[np.float64], num_inputs: int, num_columns: int) -> npt.NDArray[np.float32]:
    """(outputs, inputs, k, k) as (panels, k * k * num_inputs, width): lines, then columns, then channels."""
    outputs, inputs, kernel, _ = weight.shape
    whole = np.zeros((kernel, kernel, num_inputs, outputs))
    whole[:, :, :inputs] = weight.transpose(2, 3, 1, 0)
    return pack_panels(whole.reshape(-1, outputs), num_columns)
