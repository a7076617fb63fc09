"""Tissue fragments of a slide by their bounding boxes (Háberová and Vykopal 2023, section 4.1, figure 3).

Consumes the tissue found on a coarse grid, (rows, columns) of squares of `stride_px`; produces boxes on the model grid.
A biopsy slide holds three to five fragments, and most of its area is glass that nobody needs to store.
"""

import cv2
import numpy as np
import numpy.typing as npt

from cellmill.grid import Box, TileGeometry
from cellmill.slides.isolated_slide import IsolatedSlide

__all__ = ["fragment_boxes", "slide_fragments"]

_STRIDE_UM = 16.0
"""Side of the squares that tissue is looked for in: finer than the gap between fragments."""


def slide_fragments(slide: IsolatedSlide, *, min_mm2: float) -> tuple[Box, ...]:
    """Boxes of a slide's fragments on its model grid, from the top down.

    Args:
        slide: open.
        min_mm2: fragments with less tissue are dust.
    """
    squares = TileGeometry(max(1, round(_STRIDE_UM / slide.grid.target_mpp)), margin_px=0)
    tissue = slide.find_tissue(squares)
    square_mm2 = (squares.stride_px * slide.grid.target_mpp * 1e-3) ** 2
    boxes = fragment_boxes(tissue.tiles, stride_px=squares.stride_px, min_squares=min_mm2 / square_mm2)
    return tuple(box.clipped(slide.grid.box) for box in boxes)


def fragment_boxes(tissue: npt.NDArray[np.bool_], *, stride_px: int, min_squares: float) -> tuple[Box, ...]:
    """Disjoint boxes around connected tissue, by their upper left corners.

    Boxes that overlap become one, so that no nucleus is in two fragments.

    Args:
        tissue: (rows, columns), one square of `stride_px` each.
        stride_px: side of a square.
        min_squares: fragments of fewer squares are left out.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(tissue.astype(np.uint8), connectivity=8)
    boxes = [
        Box(left, top, left + width, top + height)
        for left, top, width, height, area in stats[1:].tolist()
        if area >= min_squares
    ]
    merged: list[Box] = []
    for box in boxes:
        joined = box
        while met := [other for other in merged if other.clipped(joined).area > 0]:
            merged = [other for other in merged if other not in met]
            joined = Box.around([joined, *met])
        merged.append(joined)
    merged.sort(key=lambda box: (box.y0, box.x0))
    return tuple(Box(box.x0 * stride_px, box.y0 * stride_px, box.x1 * stride_px, box.y1 * stride_px) for box in merged)
