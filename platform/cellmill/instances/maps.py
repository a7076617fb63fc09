"""Dense maps: what a network says of every pixel, quantised so that everything after it is exact.

A network's floats differ in their last bits between batch shapes and devices, and sums of floats depend on their order.
From here on there are integers only: what is decoded from the same maps is the same, whatever window they lie in.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.grid import Box

__all__ = ["FLOW_SCALE", "PROB_SCALE", "DenseMaps", "quantise_flow", "quantise_prob"]

FLOW_SCALE = 4096
"""Units of `DenseMaps.flow` per model pixel a step: a unit vector has length 4096, the largest component is 8 px."""

PROB_SCALE = 255
"""Units of `DenseMaps.prob` for certainty."""


@dataclass(frozen=True)
class DenseMaps:
    """Maps of one window of the model grid."""

    flow: npt.NDArray[np.int16]  # (2, H, W), dy then dx, in 1 / FLOW_SCALE px a step
    prob: npt.NDArray[np.uint8]  # (C + 1, H, W), background first, in 1 / PROB_SCALE
    origin_px: tuple[int, int]
    """Absolute (x, y) of the window's first pixel; it may be negative."""

    def __post_init__(self) -> None:
        if self.flow.ndim != 3 or self.flow.shape[0] != 2 or self.flow.dtype != np.int16:
            raise ValueError(f"flow must be int16 (2, H, W), got {self.flow.dtype} {self.flow.shape}.")
        if self.prob.ndim != 3 or self.prob.shape[0] < 2 or self.prob.dtype != np.uint8:
            raise ValueError(f"prob must be uint8 (C + 1, H, W) with C >= 1, got {self.prob.dtype} {self.prob.shape}.")
        if self.flow.shape[1:] != self.prob.shape[1:]:
            raise ValueError(f"flow is {self.flow.shape[1:]} but prob is {self.prob.shape[1:]}; they share one window.")

    @property
    def box(self) -> Box:
        """The window, absolute."""
        x, y = self.origin_px
        height, width = self.flow.shape[1:]
        return Box(x, y, x + width, y + height)

    def window(self, box: Box) -> "DenseMaps":
        """The part inside `box` (absolute, within the window), as a view.

        Raises:
            ValueError: when `box` reaches outside the window.
        """
        own = self.box
        if own.clipped(box) != box:
            raise ValueError(f"{box} reaches outside the maps' window {own}.")
        rows, columns = slice(box.y0 - own.y0, box.y1 - own.y0), slice(box.x0 - own.x0, box.x1 - own.x0)
        return DenseMaps(self.flow[:, rows, columns], self.prob[:, rows, columns], (box.x0, box.y0))


def quantise_flow(flow: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Unit-scale flows as `DenseMaps.flow` holds them; components beyond 8 px a step are clipped."""
    return np.rint(np.clip(flow * FLOW_SCALE, -32767, 32767)).astype(np.int16)


def quantise_prob(prob: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Probabilities as `DenseMaps.prob` holds them."""
    return np.rint(np.clip(prob, 0, 1) * PROB_SCALE).astype(np.uint8)
