"""What a run left out of a slide, found again from the slide: verdicts of tiles are pure functions of their pixels.

Consumes an open slide, its status and cells; produces the verdict of every tile, as the run gave it. A cell set keeps
areas by reason, not places; tiles left out for what they show hold no cell, so only analysed places without one have to
be read again, and none where the status says that nothing was left out that way.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import shapely
from numpy.typing import NDArray

from cellmill.cohort.tiles import TileGrid, Verdict, count_tiles
from cellmill.grid import SlideGrid, TileGeometry
from cellmill.slides.model_grid import ModelGridReader
from cellmill.slides.overview import Overview
from cellmill.slides.quality import judge_tile
from cellmill.slides.reader import SlideReader
from cellmill.slides.tissue import find_tissue
from cellmill_schemas.slides import ExcludedArea, SlideStatus

__all__ = ["ExcludedTiles", "find_excluded", "outline_of"]

_OF_QUALITY = {"ok": Verdict.ANALYSED, "pen": Verdict.PEN, "blur": Verdict.BLUR}


@dataclass(frozen=True)
class ExcludedTiles:
    """Every tile's verdict, and whether the areas they make are those of the status."""

    tiles: TileGrid
    agrees: bool


def find_excluded(
    reader: SlideReader,
    overview: Overview,
    status: SlideStatus,
    *,
    grid: SlideGrid,
    geometry: TileGeometry,
    anchors_px: NDArray[np.int64],
    tissue: str,
) -> ExcludedTiles | None:
    """The verdicts; None where the run was told its tissue by a file, which a report does not have.

    Args:
        reader: the open slide.
        overview: its small picture.
        status: how the slide ended.
        grid: its model grid.
        geometry: the model's tiles.
        anchors_px: (n, 2) x and y of the cells' anchors on the model grid.
        tissue: the run's setting, "auto" or "none"; anything else names a file.
    """
    if tissue not in ("auto", "none"):
        return None
    found = TileGrid.of_slide(grid, geometry)
    if tissue == "auto":
        analysed = find_tissue(reader, grid, geometry, overview=overview).tiles
        found.verdicts[~analysed] = Verdict.BACKGROUND
    wanted = {
        verdict: _area_mm2(status.excluded, verdict) for verdict in (Verdict.UNREADABLE, Verdict.PEN, Verdict.BLUR)
    }
    if sum(wanted.values()) > 0:
        _judge_again(found, _without_cells(found, anchors_px, geometry), ModelGridReader(reader, grid), geometry)
    counted = count_tiles(found, owner=None, grid=grid, geometry=geometry).excluded_px
    px_mm2 = (grid.target_mpp * 1e-3) ** 2
    agrees = all(
        abs(counted.get(item.name.removesuffix("_mm2"), 0) * px_mm2 - getattr(status.excluded, item.name)) < 1e-3
        for item in fields(ExcludedArea)
    )
    return ExcludedTiles(found, agrees)


def outline_of(
    tiles: TileGrid, verdict: Verdict, *, grid: SlideGrid, geometry: TileGeometry
) -> list[NDArray[np.float64]]:
    """Rings (n, 2) in um around all tiles of one verdict."""
    rows, columns = np.nonzero(tiles.verdicts == verdict)
    if not rows.size:
        return []
    side_um = geometry.stride_px * grid.target_mpp
    width_um, height_um = grid.width_px * grid.target_mpp, grid.height_px * grid.target_mpp
    x, y = (columns + tiles.tiles.x0) * side_um, (rows + tiles.tiles.y0) * side_um
    cores = shapely.box(x, y, np.minimum(x + side_um, width_um), np.minimum(y + side_um, height_um))
    union = shapely.union_all(cores)
    rings = shapely.get_rings(shapely.get_parts(shapely.simplify(union, 0.0)))
    return [shapely.get_coordinates(ring) for ring in rings]


def _without_cells(tiles: TileGrid, anchors_px: NDArray[np.int64], geometry: TileGeometry) -> Iterable[tuple[int, int]]:
    """Analysed tiles (column, row) that anchor no cell."""
    empty = tiles.verdicts == Verdict.ANALYSED
    column_row = anchors_px // geometry.stride_px
    empty[column_row[:, 1] - tiles.tiles.y0, column_row[:, 0] - tiles.tiles.x0] = False
    rows, columns = np.nonzero(empty)
    return zip((columns + tiles.tiles.x0).tolist(), (rows + tiles.tiles.y0).tolist(), strict=True)


def _judge_again(
    tiles: TileGrid, indices: Iterable[tuple[int, int]], reader: ModelGridReader, geometry: TileGeometry
) -> None:
    for i, j in indices:
        window = geometry.window(i, j)
        seen = reader.read(window)
        verdict = _OF_QUALITY[judge_tile(seen.pixels)] if seen.is_readable(window) else Verdict.UNREADABLE
        tiles.verdicts[j - tiles.tiles.y0, i - tiles.tiles.x0] = verdict


def _area_mm2(excluded: ExcludedArea, verdict: Verdict) -> float:
    return float(getattr(excluded, f"{verdict.name.lower()}_mm2"))
