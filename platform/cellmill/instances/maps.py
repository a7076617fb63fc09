"""Dense maps: what a network says of every pixel, quantised so that everything after it is exact.

A network's floats differ in their last bits between batch shapes and devices, and sums of floats depend on their order.
From here on there are integers only: what is decoded from the same maps is the same, whatever window they lie in.

Each family of models has its record: `DenseMaps` for flows, `HvMaps` for horizontal-vertical distances. What comes
after decoding needs probabilities alone and takes either, as `ClassMaps`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cellmill.grid import Box

__all__ = [
    "FLOW_SCALE",
    "HV_SCALE",
    "PROB_SCALE",
    "ClassMaps",
    "ClassSums",
    "DenseMaps",
    "HvMaps",
    "quantise_flow",
    "quantise_hv",
    "quantise_prob",
]

FLOW_SCALE = 4096
"""Units of `DenseMaps.flow` per model pixel a step: a unit vector has length 4096, the largest component is 8 px."""

HV_SCALE = 4096
"""Units of `HvMaps.hv` for the distance from a nucleus's centre to its far side; the largest value is 8 of those."""

PROB_SCALE = 255
"""Units of `prob` for certainty."""


class ClassMaps(Protocol):
    """Class probabilities of one window, whatever else the maps hold."""

    @property
    def prob(self) -> npt.NDArray[np.uint8]:
        """(C + 1, H, W), background first, in 1 / PROB_SCALE."""
        ...

    @property
    def origin_px(self) -> tuple[int, int]:
        """Absolute (x, y) of the window's first pixel; it may be negative."""
        ...

    @property
    def box(self) -> Box:
        """The window, absolute."""
        ...


@dataclass(frozen=True)
class ClassSums:
    """Class probabilities of a window's cells, summed where the maps lie: all that measuring needs of them."""

    sums: npt.NDArray[np.int64]  # (n, C + 1), a cell of the window each, in 1 / PROB_SCALE
    box: Box
    """The window, absolute."""


@dataclass(frozen=True)
class DenseMaps:
    """Maps of one window of the model grid, of the flows family."""

    flow: npt.NDArray[np.int16]  # (2, H, W), dy then dx, in 1 / FLOW_SCALE px a step
    prob: npt.NDArray[np.uint8]  # (C + 1, H, W), background first, in 1 / PROB_SCALE
    origin_px: tuple[int, int]
    """Absolute (x, y) of the window's first pixel; it may be negative."""

    def __post_init__(self) -> None:
        _check_maps("flow", self.flow, self.prob)

    @property
    def box(self) -> Box:
        """The window, absolute."""
        return _box(self.prob, self.origin_px)

    def window(self, box: Box) -> "DenseMaps":
        """The part inside `box` (absolute, within the window), as a view.

        Raises:
            ValueError: when `box` reaches outside the window.
        """
        rows, columns = _slices(self.box, box)
        return DenseMaps(self.flow[:, rows, columns], self.prob[:, rows, columns], (box.x0, box.y0))


@dataclass(frozen=True)
class HvMaps:
    """Maps of one window of the model grid, of the hv family (HoVer-Net, CellViT).

    The nuclear branch gives the background, 1 - p; the type branch says how the rest is shared among the classes.
    """

    hv: npt.NDArray[np.int16]  # (2, H, W), horizontal then vertical, -1 to 1 across a nucleus, in 1 / HV_SCALE
    prob: npt.NDArray[np.uint8]  # (C + 1, H, W), background first, in 1 / PROB_SCALE
    origin_px: tuple[int, int]
    """Absolute (x, y) of the window's first pixel; it may be negative."""

    def __post_init__(self) -> None:
        _check_maps("hv", self.hv, self.prob)

    @property
    def box(self) -> Box:
        """The window, absolute."""
        return _box(self.prob, self.origin_px)

    def window(self, box: Box) -> "HvMaps":
        """The part inside `box` (absolute, within the window), as a view.

        Raises:
            ValueError: when `box` reaches outside the window.
        """
        rows, columns = _slices(self.box, box)
        return HvMaps(self.hv[:, rows, columns], self.prob[:, rows, columns], (box.x0, box.y0))


def _check_maps(name: str, vectors: npt.NDArray[np.int16], prob: npt.NDArray[np.uint8]) -> None:
    if vectors.ndim != 3 or vectors.shape[0] != 2 or vectors.dtype != np.int16:
        raise ValueError(f"{name} must be int16 (2, H, W), got {vectors.dtype} {vectors.shape}.")
    if prob.ndim != 3 or prob.shape[0] < 2 or prob.dtype != np.uint8:
        raise ValueError(f"prob must be uint8 (C + 1, H, W) with C >= 1, got {prob.dtype} {prob.shape}.")
    if vectors.shape[1:] != prob.shape[1:]:
        raise ValueError(f"{name} is {vectors.shape[1:]} but prob is {prob.shape[1:]}; they share one window.")


def _box(prob: npt.NDArray[np.uint8], origin_px: tuple[int, int]) -> Box:
    x, y = origin_px
    height, width = prob.shape[1:]
    return Box(x, y, x + width, y + height)


def _slices(own: Box, box: Box) -> tuple[slice, slice]:
    if own.clipped(box) != box:
        raise ValueError(f"{box} reaches outside the maps' window {own}.")
    return slice(box.y0 - own.y0, box.y1 - own.y0), slice(box.x0 - own.x0, box.x1 - own.x0)


def quantise_flow(flow: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Unit-scale flows as `DenseMaps.flow` holds them; components beyond 8 px a step are clipped."""
    return _quantised(flow, FLOW_SCALE)


def quantise_hv(hv: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Distances, -1 to 1 across a nucleus, as `HvMaps.hv` holds them; those beyond 8 are clipped."""
    return _quantised(hv, HV_SCALE)


def _quantised(values: npt.NDArray[np.floating], scale: int) -> npt.NDArray[np.int16]:
    return np.rint(np.clip(values * scale, -32767, 32767)).astype(np.int16)


def quantise_prob(prob: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Probabilities as `prob` holds them."""
    return np.rint(np.clip(prob, 0, 1) * PROB_SCALE).astype(np.uint8)
