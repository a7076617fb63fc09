"""Pixels for a slide's page: its small picture, what was left out, and the regions of interest.

Consumes a slide's file, read in a process of its own, and its status; produces JPEGs and rings in um. Nothing but the
pyramid's pixels is asked for: no label, no macro image, no header text.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellmill.cohort.tiles import Verdict
from cellmill.grid import Box, SlideGrid, TileGeometry
from cellmill.overlay import OverlayRegion
from cellmill.report.exclusions import ExcludedTiles, find_excluded, outline_of
from cellmill.slides.errors import SlideError
from cellmill.slides.isolation import IsolatedReader
from cellmill.slides.model_grid import ModelGridReader
from cellmill.slides.overview import read_overview
from cellmill.slides.reader import SlideReader
from cellmill_schemas.slides import SlideStatus

__all__ = ["SlideImagery", "jpeg_uri", "png_uri", "read_imagery"]

_THUMBNAIL_PX = 1400
_REGION_MPP = 0.3
_JPEG_QUALITY = 82
Rings = list[NDArray[np.float64]]


@dataclass(frozen=True)
class SlideImagery:
    """What a slide shows."""

    thumbnail_uri: str
    analysed: Rings
    """Around everything that was analysed, in um."""
    excluded: Mapping[str, Rings]
    """By reason: outside_region, unreadable, pen, blur."""
    excluded_agrees: bool
    """Whether these areas are those of the status."""
    knows_excluded: bool
    region_uris: tuple[str, ...]
    """A picture for each region asked for."""


def read_imagery(
    path: Path,
    status: SlideStatus,
    config: Mapping[str, Any],
    *,
    regions: Sequence[OverlayRegion],
    anchors_px: NDArray[np.int64],
) -> SlideImagery:
    """Read what a page needs.

    Args:
        path: the slide's file or folder.
        status: how the slide ended; it must be the file the status is of.
        config: the cell set's settings.
        regions: squares to show.
        anchors_px: (n, 2) x and y of the cells' anchors on the model grid.

    Raises:
        SlideError: when the file cannot be read or has changed since.
    """
    assert status.mpp_x is not None
    assert status.mpp_y is not None
    mpp = (status.mpp_x, status.mpp_y)
    reader = IsolatedReader(path)
    try:
        if reader.info.fingerprint != status.slide_fingerprint:
            raise SlideError("The slide's file is not the one its cells were found on; give the original.")
        overview = read_overview(reader, mpp=mpp)
        found = _excluded(reader, overview, status, config, anchors_px)
        shown = tuple(_region_uri(reader, region, mpp) for region in regions)
    finally:
        reader.close()
    analysed, excluded = ([], {}) if found is None else _outlines(found, status, config)
    return SlideImagery(
        thumbnail_uri=jpeg_uri(_thumbnail(overview.pixels)),
        analysed=analysed,
        excluded=excluded,
        excluded_agrees=found is not None and found.agrees,
        knows_excluded=found is not None,
        region_uris=shown,
    )


def jpeg_uri(pixels: NDArray[np.uint8]) -> str:
    """RGB pixels (H, W, 3) as a data URI."""
    encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """RGBA pixels (H, W, 4) as a data URI."""
    encoded = cv2.imencode(".png", pixels[..., (2, 1, 0, 3)])[1]
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _model_grid(status: SlideStatus) -> SlideGrid:
    assert status.width_px is not None
    assert status.height_px is not None
    assert status.target_mpp is not None
    assert status.mpp_x is not None
    assert status.mpp_y is not None
    return SlideGrid(
        width_px=status.width_px,
        height_px=status.height_px,
        scale_x=status.target_mpp / status.mpp_x,
        scale_y=status.target_mpp / status.mpp_y,
        target_mpp=status.target_mpp,
    )


def _geometry(config: Mapping[str, Any]) -> TileGeometry | None:
    """The model's tiles; None for a cell set that does not say."""
    tile_px, margin_px = config.get("tile_px"), config.get("margin_px")
    if not isinstance(tile_px, int) or not isinstance(margin_px, int):
        return None
    return TileGeometry(tile_px=tile_px, margin_px=margin_px)


def _excluded(
    reader: SlideReader, overview: Any, status: SlideStatus, config: Mapping[str, Any], anchors_px: NDArray[np.int64]
) -> ExcludedTiles | None:
    geometry = _geometry(config)
    if geometry is None:
        return None
    return find_excluded(
        reader,
        overview,
        status,
        grid=_model_grid(status),
        geometry=geometry,
        anchors_px=anchors_px,
        tissue=str(config.get("tissue")),
    )


def _outlines(found: ExcludedTiles, status: SlideStatus, config: Mapping[str, Any]) -> tuple[Rings, dict[str, Rings]]:
    grid, geometry = _model_grid(status), _geometry(config)
    assert geometry is not None
    rings = {
        verdict: outline_of(found.tiles, verdict, grid=grid, geometry=geometry)
        for verdict in Verdict
        if verdict != Verdict.BACKGROUND
    }
    excluded = {verdict.name.lower(): rings[verdict] for verdict in rings if verdict != Verdict.ANALYSED}
    return rings[Verdict.ANALYSED], {name: found for name, found in excluded.items() if found}


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = min(1.0, _THUMBNAIL_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _region_uri(reader: SlideReader, region: OverlayRegion, mpp: tuple[float, float]) -> str:
    """The square's pixels at 0.3 um/px, or at the slide's own scale where that is coarser."""
    picture_mpp = max(_REGION_MPP, *mpp)
    level0 = reader.levels[0]
    grid = SlideGrid.of_slide(
        width_level0_px=level0.width_px,
        height_level0_px=level0.height_px,
        mpp_x=mpp[0],
        mpp_y=mpp[1],
        target_mpp=picture_mpp,
    )
    x0, y0, side = (round(value / picture_mpp) for value in (region.x_um, region.y_um, region.side_um))
    return jpeg_uri(ModelGridReader(reader, grid).read(Box(x0, y0, x0 + side, y0 + side)).pixels)
