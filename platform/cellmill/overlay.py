"""A picture of the cells: outlines in class colours on the slide's own pixels.

In: a cell set and the slide it came from. Out: a PNG of one region, by default where most cells of most types lie, with
a legend and a scale bar. It is what one looks at before believing a table.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from cellmill.grid import Box, SlideGrid
from cellmill.slides.model_grid import ModelGridReader
from cellmill.slides.opening import open_slide
from cellmill_schemas.ontology import Ontology

__all__ = ["OverlayRegion", "busiest_region", "draw_overlay"]

_LEGEND_PX = 34
_BAR_UM = 50.0
Image = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class OverlayRegion:
    """A square of a slide, in um from the slide's origin."""

    x_um: float
    y_um: float
    side_um: float


def busiest_region(cells: pl.DataFrame, *, side_um: float) -> OverlayRegion:
    """The square of `side_um`, on a grid of half that, that shows most: many cells, and of many types.

    Types add up by the square root of their count, so that a mixed region goes before a crowd of one type.

    Args:
        cells: at least the columns x_um, y_um and cell_type.
        side_um: side of the square, in um.
    """
    if cells.is_empty():
        return OverlayRegion(0.0, 0.0, side_um)
    step = side_um / 2
    columns = np.floor(cells["x_um"].to_numpy() / step).astype(np.int64)
    rows = np.floor(cells["y_um"].to_numpy() / step).astype(np.int64)
    names = cells["cell_type"].cast(pl.String).to_numpy()
    shown = np.zeros((rows.max() + 1, columns.max() + 1))
    for name in np.unique(names):
        counts = np.zeros((rows.max() + 2, columns.max() + 2), np.int64)
        np.add.at(counts, (rows[names == name], columns[names == name]), 1)
        shown += np.sqrt(counts[:-1, :-1] + counts[1:, :-1] + counts[:-1, 1:] + counts[1:, 1:])
    row, column = np.unravel_index(np.argmax(shown), shown.shape)
    return OverlayRegion(float(column * step), float(row * step), side_um)


def draw_overlay(
    slide: Path,
    cells: pl.DataFrame,
    ontology: Ontology,
    region: OverlayRegion,
    *,
    mpp: tuple[float, float],
    picture_mpp: float = 0.25,
) -> Image:
    """Pixels of `region` at `picture_mpp` with the outlines of its cells, a legend and a scale bar.

    Args:
        slide: the slide's file.
        cells: rows of the slide's cell table with x_um, y_um, cell_type and geometry.
        ontology: gives names and colours.
        region: what to show.
        mpp: level-0 um/px in x and y, as the cell set used them.
        picture_mpp: um/px of the picture.
    """
    reader = open_slide(slide)
    try:
        level0 = reader.levels[0]
        grid = SlideGrid.of_slide(
            width_level0_px=level0.width_px,
            height_level0_px=level0.height_px,
            mpp_x=mpp[0],
            mpp_y=mpp[1],
            target_mpp=picture_mpp,
        )
        x0, y0 = round(region.x_um / picture_mpp), round(region.y_um / picture_mpp)
        side = round(region.side_um / picture_mpp)
        image = ModelGridReader(reader, grid).read(Box(x0, y0, x0 + side, y0 + side)).pixels.copy()  # (side, side, 3)
    finally:
        reader.close()
    shown = _within(cells, region)
    scale = np.array([grid.scale_x, grid.scale_y])
    for cell_type, rings in zip(shown["cell_type"].to_list(), shown["geometry"].to_list(), strict=True):
        outline = np.array([(vertex["x"], vertex["y"]) for vertex in rings[0]]) / scale - (x0, y0)  # (V, 2)
        color = ontology.classes[ontology.index(cell_type)].color_rgb
        # 4 fractional bits: outlines sit where they were measured, not on whole picture pixels.
        cv2.polylines(image, [np.round(outline * 16).astype(np.int32)], True, color, 1, cv2.LINE_AA, 4)
    _draw_scale_bar(image, picture_mpp)
    return np.concatenate([image, _legend(shown, ontology, width=side)])


def _within(cells: pl.DataFrame, region: OverlayRegion) -> pl.DataFrame:
    margin_um = 30.0
    x, y = pl.col("x_um"), pl.col("y_um")
    return cells.filter(
        x.is_between(region.x_um - margin_um, region.x_um + region.side_um + margin_um)
        & y.is_between(region.y_um - margin_um, region.y_um + region.side_um + margin_um)
    )


def _draw_scale_bar(image: Image, picture_mpp: float) -> None:
    length, (height, width) = round(_BAR_UM / picture_mpp), image.shape[:2]
    right, bottom = width - 12, height - 12
    cv2.rectangle(image, (right - length, bottom - 5), (right, bottom), (20, 20, 20), -1)
    cv2.putText(
        image,
        f"{_BAR_UM:g} um",
        (right - length, bottom - 12),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.5,
        (20, 20, 20),
        1,
        cv2.LINE_AA,
    )


def _legend(cells: pl.DataFrame, ontology: Ontology, *, width: int) -> Image:
    """A strip of (34, width, 3): each class with its colour and how many are shown."""
    strip = np.full((_LEGEND_PX, width, 3), 255, np.uint8)
    counts = dict(cells["cell_type"].cast(pl.String).value_counts().iter_rows())
    x = 10
    for cell_class in ontology.classes:
        text = f"{cell_class.name} {counts.get(cell_class.name, 0)}"
        cv2.circle(strip, (x + 6, _LEGEND_PX // 2), 6, cell_class.color_rgb, -1, cv2.LINE_AA)
        cv2.putText(
            strip, text, (x + 17, _LEGEND_PX // 2 + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30, 30, 30), 1, cv2.LINE_AA
        )
        x += 17 + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0] + 16
    return strip
