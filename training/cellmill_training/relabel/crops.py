"""Crops of single cells, as the classifiers see them.

Consumes an image (H, W, 3), its instance map (H, W) and the numbers of some instances; produces uint8 (n, S, S, 3).
After Shvetsov et al. 2025, section 2: a box around each instance, grown by 15 px on every side so that its neighbours
show, the image mirrored where the box leaves it, cut out and resized to 64 x 64 px by bicubic interpolation. What the
paper leaves open and is decided here: the box keeps its shape (a long nucleus is squeezed into the square, as "crop and
resize" says); the 15 px are those of its 0.25 um/px data, so another scale gets the same context in um.

The other framing, "window", is that of Háberová and Vykopal 2023, section 4.1: a square of fixed size around the
nucleus (32 x 32 px there), so that a small nucleus looks small.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from cellmill.instances.extents import label_extents

__all__ = ["CropConfig", "cell_boxes", "cell_crops"]


@dataclass(frozen=True)
class CropConfig:
    """How a cell is cut out."""

    side_px: int = 64
    """Side of a crop."""
    context_px: int = 15
    """How far a crop reaches beyond its cell's box, in px of `context_mpp`; a window has its own reach."""
    context_mpp: float = 0.25
    """um per px of the data the context is stated for (40x); the scale of a window."""
    framing: Literal["box", "window"] = "box"
    """`box`: the cell's box with its context, resized. `window`: `side_px` at `context_mpp` around the box's middle."""

    def __post_init__(self) -> None:
        if self.side_px < 8 or self.context_px < 0 or self.context_mpp <= 0:
            raise ValueError(
                "Crops need side_px >= 8, context_px >= 0 and context_mpp > 0, got "
                f"{self.side_px}, {self.context_px} and {self.context_mpp}."
            )

    def margin_px(self, mpp: float) -> int:
        """How far crops can reach beyond their cells' boxes, in px of an image at `mpp`."""
        if self.framing == "window":
            return -(-self.window_px(mpp) // 2)
        return round(self.context_px * self.context_mpp / mpp)

    def window_px(self, mpp: float) -> int:
        """Side of a window in px of an image at `mpp`."""
        return max(1, round(self.side_px * self.context_mpp / mpp))


def cell_boxes(instances: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Half-open boxes (n, 4) as (x0, y0, x1, y1) of instances 1..n of a map (H, W).

    Raises:
        ValueError: when a number between 1 and the largest has no pixel.
    """
    boxes, sums = label_extents(np.ascontiguousarray(instances, np.int32), int(instances.max(initial=0)))
    empty = np.flatnonzero(sums[1:, 0] == 0) + 1
    if len(empty):
        raise ValueError(f"Instances must be numbered without gaps; number {empty[0]} has no pixel.")
    y0, x0, y1, x1 = boxes[1:].astype(np.int64).T
    return np.stack([x0, y0, x1 + 1, y1 + 1], axis=1)


def cell_crops(
    image: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.int64],
    *,
    mpp: float,
    config: CropConfig,
) -> npt.NDArray[np.uint8]:
    """Crops (n, S, S, 3) of the cells whose boxes (n, 4) as (x0, y0, x1, y1) lie in an image (H, W, 3)."""
    margin, side = config.margin_px(mpp), config.side_px
    # Mirrored once for all cells: a grown box then lies inside, and cutting it out copies nothing.
    mirrored = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REFLECT_101)
    crops = np.empty((len(boxes), side, side, 3), np.uint8)
    for crop, (x0, y0, x1, y1) in zip(crops, _frames(boxes, mpp=mpp, config=config).tolist(), strict=True):
        cv2.resize(mirrored[y0:y1, x0:x1], (side, side), dst=crop, interpolation=cv2.INTER_CUBIC)
    return crops


def _frames(boxes: npt.NDArray[np.int64], *, mpp: float, config: CropConfig) -> npt.NDArray[np.int64]:
    """What is cut out of the image mirrored by the margin: boxes (n, 4) as (x0, y0, x1, y1)."""
    margin = config.margin_px(mpp)
    if config.framing == "box":
        return boxes + np.array([0, 0, 2 * margin, 2 * margin])
    window = config.window_px(mpp)
    corners = (boxes[:, :2] + boxes[:, 2:] - window) // 2 + margin
    return np.concatenate([corners, corners + window], axis=1)
