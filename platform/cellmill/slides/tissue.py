"""Which tiles of a slide are analysed: those with tissue, those in a region drawn by someone, or all.

Consumes an open slide, its grid and the tile geometry; produces a `TissueMap`, one decision a tile core. A tile counts
as soon as a small share of its core does: pale stroma and fat hold nuclei too, and an empty tile costs less than a
missed cell.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cellmill.grid import SlideGrid, TileGeometry
from cellmill.slides.overview import Overview, read_overview
from cellmill.slides.reader import SlideReader
from cellmill.slides.regions import read_regions, tiles_in_regions

__all__ = ["TissueMap", "find_tissue", "tissue_mask"]

MIN_CHROMA, MAX_CHROMA = 8, 12
"""Bounds of the threshold between glass and tissue, grey levels between the strongest and weakest channel once glass is
white. Glass has 0 to 4 after JPEG, the palest tissue with nuclei met (fatty breast) about 10. Between them Otsu's
threshold decides, so a slide of nothing but glass yields nothing and one covered all over yields everything; with an
upper bound of 20 the nuclei between fat cells were lost."""
_MIN_OBJECT_UM2 = 800.0
_MAX_HOLE_UM2 = 5e4
_CLOSING_UM = 16.0
_GROW_UM = 16.0
_MIN_TILE_SHARE = 0.02


@dataclass(frozen=True)
class TissueMap:
    """What is analysed of a slide, decided per tile, and the figures behind it."""

    tiles: NDArray[np.bool_]  # (rows j, columns i): analysed
    tile_mm2: NDArray[np.float64]  # (rows, columns): area of each core within the slide
    mode: Literal["auto", "none", "region"]
    figures: str
    """What was measured, for the reason of a slide without tissue."""

    def analysed(self, i: int, j: int) -> bool:
        """Whether tile (column i, row j) is analysed; tiles outside the slide are not."""
        rows, columns = self.tiles.shape
        return 0 <= i < columns and 0 <= j < rows and bool(self.tiles[j, i])

    @property
    def num_tiles(self) -> int:
        """Tiles analysed."""
        return int(self.tiles.sum())

    @property
    def slide_mm2(self) -> float:
        """Area of the slide."""
        return float(self.tile_mm2.sum())

    @property
    def analysed_mm2(self) -> float:
        """Area of the tiles analysed."""
        return float(self.tile_mm2[self.tiles].sum())

    @property
    def background_mm2(self) -> float:
        """Area left out as glass."""
        return float(self.tile_mm2[~self.tiles].sum()) if self.mode == "auto" else 0.0

    @property
    def outside_region_mm2(self) -> float:
        """Area left out because it lies in no region of the region file."""
        return float(self.tile_mm2[~self.tiles].sum()) if self.mode == "region" else 0.0


def find_tissue(
    reader: SlideReader,
    grid: SlideGrid,
    tiles: TileGeometry,
    *,
    mode: Literal["auto", "none"] | Path = "auto",
    overview: Overview | None = None,
) -> TissueMap:
    """Decide which tiles are analysed.

    Args:
        reader: the open slide; only mode "auto" reads pixels.
        grid: its model grid.
        tiles: the model's tile geometry.
        mode: "auto" finds tissue, "none" analyses everything, a path names a GeoJSON file of regions in level-0 px.
        overview: the slide's small picture where it was read already.

    Raises:
        RegionFileError: when the region file cannot be used, naming it and the feature.
    """
    tile_mm2 = _tile_areas_mm2(grid, tiles)
    if mode == "none":
        return TissueMap(np.ones(tile_mm2.shape, np.bool_), tile_mm2, "none", "every tile was analysed")
    if isinstance(mode, Path):
        regions = read_regions(mode)
        inside = tiles_in_regions(regions, grid, tiles, shape=tile_mm2.shape)
        return TissueMap(inside, tile_mm2, "region", f"{len(regions)} regions cover {int(inside.sum())} tiles")
    mpp = (grid.target_mpp / grid.scale_x, grid.target_mpp / grid.scale_y)
    overview = overview or read_overview(reader, mpp=mpp)
    mask, threshold = tissue_mask(overview)
    share = float(mask.mean())
    analysed = _tile_shares(mask, overview, grid, tiles, shape=tile_mm2.shape) >= _MIN_TILE_SHARE
    figures = f"{share:.2%} of the slide is more coloured than glass (threshold {threshold} of 255 grey levels)"
    return TissueMap(analysed, tile_mm2, "auto", figures)


def tissue_mask(overview: Overview) -> tuple[NDArray[np.bool_], int]:
    """Tissue pixels of an overview, and the chroma threshold used. What cannot be read counts as tissue, so that the
    reading of its tiles reports it."""
    chroma = _chroma(overview.pixels, glass=_glass_colour(overview.pixels[~overview.unreadable]))
    chroma[overview.unreadable] = 0
    otsu, _ = cv2.threshold(chroma, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    threshold = int(min(max(otsu, MIN_CHROMA), MAX_CHROMA))
    mask = (chroma >= threshold).astype(np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disc(_CLOSING_UM, overview)), np.uint8)
    pixel_um2 = overview.mpp_x * overview.mpp_y
    mask = _without_small(mask, min_px=_MIN_OBJECT_UM2 / pixel_um2)
    mask = 1 - _without_small(1 - mask, min_px=_MAX_HOLE_UM2 / pixel_um2)
    grown = np.asarray(cv2.dilate(mask, _disc(_GROW_UM, overview)), np.bool_)
    return grown | overview.unreadable, threshold


def _glass_colour(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colour of the brightest nearly grey pixels (n, 3); white where too few are."""
    low, high = pixels.min(-1), pixels.max(-1)
    candidates = pixels[(low >= 180) & (high - low <= 14)]
    if len(candidates) < max(16, len(pixels) // 500):
        return np.full(3, 255.0)
    brightness = candidates.sum(-1, dtype=np.int64)
    return candidates[brightness >= np.percentile(brightness, 75)].mean(0)


def _chroma(pixels: NDArray[np.uint8], *, glass: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Strongest minus weakest channel (H, W) once glass is white. Grey dirt, shadows and black borders have none."""
    table = np.minimum(np.arange(256)[:, None] * (255.0 / glass), 255).round().astype(np.uint8)  # (256, 3)
    channels = [table[pixels[..., index], index] for index in range(3)]
    return np.maximum.reduce(channels) - np.minimum.reduce(channels)


def _disc(radius_um: float, overview: Overview) -> NDArray[np.uint8]:
    radius_x, radius_y = round(radius_um / overview.mpp_x), round(radius_um / overview.mpp_y)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_x + 1, 2 * radius_y + 1)).astype(np.uint8)


def _without_small(mask: NDArray[np.uint8], *, min_px: float) -> NDArray[np.uint8]:
    """The mask without its components of fewer than `min_px` pixels; those the border cuts may be larger than seen."""
    _, found, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    labels = np.asarray(found, np.int32)
    keep = (stats[:, cv2.CC_STAT_AREA] >= min_px).astype(np.uint8)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        keep[border] = 1
    keep[0] = 0
    return keep[labels]


def _tile_areas_mm2(grid: SlideGrid, tiles: TileGeometry) -> NDArray[np.float64]:
    """Area of each tile core within the slide (rows, columns)."""

    def sides_mm(size_px: int) -> NDArray[np.float64]:
        starts = np.arange(0, size_px, tiles.stride_px)
        return (np.minimum(starts + tiles.stride_px, size_px) - starts).astype(np.float64) * (grid.target_mpp * 1e-3)

    return sides_mm(grid.height_px)[:, None] * sides_mm(grid.width_px)


def _tile_shares(
    mask: NDArray[np.bool_], overview: Overview, grid: SlideGrid, tiles: TileGeometry, *, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Share of tissue among the overview pixels that meet each tile's core (rows, columns)."""
    sums = cv2.integral(mask.astype(np.uint8)).astype(np.int64)  # (H + 1, W + 1)
    y0, y1 = _overview_ranges(shape[0], tiles.stride_px * grid.scale_y / overview.step_y_level0_px, mask.shape[0])
    x0, x1 = _overview_ranges(shape[1], tiles.stride_px * grid.scale_x / overview.step_x_level0_px, mask.shape[1])
    inside = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    return np.asarray(inside / np.outer(y1 - y0, x1 - x0), np.float64)


def _overview_ranges(num_tiles: int, step: float, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and past-the-last overview index of each tile along one axis, at least one pixel each."""
    indices = np.arange(num_tiles)
    first = np.minimum(np.floor(indices * step).astype(np.int64), size - 1)
    last = np.minimum(np.ceil((indices + 1) * step).astype(np.int64), size)
    return first, np.maximum(last, first + 1)
