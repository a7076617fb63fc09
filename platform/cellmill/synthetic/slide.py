"""A synthetic slide of a given size: windows of pixels and truth without any file.

In: seed, size, mpp. Out: `SyntheticSlide`, whose `render` and `truth` answer for any window, and which the writer turns
into a file. Coordinates are level-0 px of the slide.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellmill.grid import Box
from cellmill.synthetic.style import TissueStyle, draw_style
from cellmill.synthetic.tissue import SyntheticCells, SyntheticRegion, render_labels, render_region

__all__ = ["SyntheticSlide"]


@dataclass(frozen=True)
class SyntheticSlide:
    """One slide with glass around its tissue, a pen stroke and a blurred patch."""

    seed: int
    width_px: int
    height_px: int
    mpp: float
    style: TissueStyle

    @staticmethod
    def draw(seed: int, *, width_mm: float, height_mm: float, mpp: float) -> "SyntheticSlide":
        """The slide called `seed` of the given size.

        Raises:
            ValueError: when a size is not positive or the slide would be smaller than 64 px.
        """
        if not (mpp > 0 and width_mm > 0 and height_mm > 0):
            raise ValueError(f"Slide sizes must be positive, got {width_mm} x {height_mm} mm at {mpp} um/px.")
        width_px, height_px = round(width_mm * 1000.0 / mpp), round(height_mm * 1000.0 / mpp)
        if min(width_px, height_px) < 64:
            raise ValueError(
                f"A slide of {width_mm} x {height_mm} mm at {mpp} um/px is {width_px} x {height_px} px; "
                "make it at least 64 px on each side."
            )
        style = draw_style(seed, extent_um=(width_px * mpp, height_px * mpp))
        return SyntheticSlide(seed=seed, width_px=width_px, height_px=height_px, mpp=mpp, style=style)

    def render(self, box: Box) -> SyntheticRegion:
        """Picture and truth of a window; beyond the slide there is more glass."""
        return render_region(self.seed, box, mpp=self.mpp, style=self.style)

    def truth(self, box: Box) -> SyntheticRegion:
        """Truth of a window without its picture."""
        return render_labels(self.seed, box, mpp=self.mpp, style=self.style)

    def mask_ids(self, cells: SyntheticCells) -> NDArray[np.uint64]:
        """1 + index of the pixel that holds each cell's centre: the cell's value in the slide's label mask."""
        x, y = np.floor(cells.centers_px).astype(np.int64).T
        return (1 + y * self.width_px + x).astype(np.uint64)

    def is_obscured(self, cells: SyntheticCells) -> NDArray[np.bool_]:
        """Cells under ink or out of focus, whole or in part."""
        x, y = (cells.centers_px * self.mpp).T
        hidden = np.zeros(len(x), bool)
        marks = self.style.marks
        for mark in (marks.pen, marks.blur) if marks else ():
            if mark is not None:
                hidden |= mark.covers(x, y, margin_um=8.0)
        return hidden
