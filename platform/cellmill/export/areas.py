"""Where a slide was analysed and where not, and why: as polygons, found again from the slide.

A cell set records these areas as figures; the places follow from the slide and the settings, since whether a tile is
analysed is a pure function of its place and its own pixels. Here they are worked out once more by the same functions,
and believed only when tissue, unreadable, pen and blur come out at the recorded figures.

In: an open slide, its status, the cell set. Out: one `SlideArea` a reason, in level-0 px. Tissue alone needs pixels at
low resolution. Where something was excluded for what it shows, tiles are read again, but only those without a cell: no
cell begins in a tile that was excluded.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon

from cellmill.cohort.field import read_field
from cellmill.cohort.plan import plan_fields
from cellmill.cohort.planning import facts_of
from cellmill.cohort.tiles import TileGrid, Verdict, count_tiles
from cellmill.grid import SlideGrid, TileGeometry
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.store.layout import cells_key
from cellmill.store.objects import ObjectStore
from cellmill_schemas.slides import SlideStatus

__all__ = ["AreaReason", "SlideArea", "find_areas"]

AreaReason = Literal["analysed", "unreadable", "pen", "blur"]

_READ_PX = 2048
_BY_PIXELS: dict[Verdict, AreaReason] = {
    Verdict.UNREADABLE: "unreadable",
    Verdict.PEN: "pen",
    Verdict.BLUR: "blur",
}
_TOLERANCE_MM2 = 2e-6
"""Figures in a status are rounded to a millionth."""


@dataclass(frozen=True)
class SlideArea:
    """The tiles of a slide that share a fate."""

    reason: AreaReason
    shape_level0_px: Polygon | MultiPolygon
    mm2: float


def find_areas(
    slide: IsolatedSlide,
    status: SlideStatus,
    settings: Mapping[str, Any],
    *,
    tissue: Literal["auto", "none"] | Path,
    store: ObjectStore,
) -> tuple[SlideArea, ...]:
    """What was analysed, then what was excluded for its pixels; glass and what lies outside regions are the rest.

    Args:
        slide: the open slide, at the scale it was analysed at.
        status: how it ended.
        settings: the cell set's `config`.
        tissue: as the run was told.
        store: the cell set, for where its cells lie.

    Raises:
        ValueError: when the areas found are not those recorded: another slide, region file or version of the code.
    """
    geometry = TileGeometry(tile_px=int(settings["tile_px"]), margin_px=int(settings["margin_px"]))
    found = slide.find_tissue(geometry, mode=tissue)
    tiles = TileGrid.of_slide(slide.grid, geometry)
    tiles.verdicts[~found.tiles] = Verdict.OUTSIDE_REGION if found.mode == "region" else Verdict.BACKGROUND
    excluded = status.excluded
    if excluded.unreadable_mm2 or excluded.pen_mm2 or excluded.blur_mm2:
        settled = _tiles_with_cells(store, status.slide_id, tiles, slide.grid, geometry)
        tiles = _judged(slide, status, tiles, geometry, settled=settled)
    areas_mm2 = _areas_mm2(tiles, slide.grid, geometry)
    recorded = {name.removesuffix("_mm2"): mm2 for name, mm2 in asdict(excluded).items()}
    recorded["analysed"] = status.analysed_mm2
    wrong = [name for name, mm2 in recorded.items() if abs(areas_mm2.get(name, 0.0) - mm2) > _TOLERANCE_MM2]
    if wrong:
        raise ValueError(
            f"the areas of {status.slide_id} could not be found again: {wrong[0]} is "
            f"{areas_mm2.get(wrong[0], 0.0):.6f} mm2 now and {recorded[wrong[0]]:.6f} in its status"
        )
    names: dict[Verdict, AreaReason] = {Verdict.ANALYSED: "analysed", **_BY_PIXELS}
    return tuple(
        SlideArea(reason, _outline(tiles.verdicts == verdict, slide.grid, geometry), areas_mm2[reason])
        for verdict, reason in names.items()
        if areas_mm2.get(reason)
    )


def _tiles_with_cells(
    store: ObjectStore, slide_id: str, tiles: TileGrid, grid: SlideGrid, geometry: TileGeometry
) -> NDArray[np.bool_]:
    """Tiles (rows, columns) whose core holds a cell's anchor."""
    found = np.zeros(tiles.verdicts.shape, np.bool_)
    with store.open_random(cells_key(slide_id)) as file, pq.ParquetFile(file) as table:
        for batch in table.iter_batches(columns=["mask_id"]):
            anchors = batch.column("mask_id").to_numpy().astype(np.int64) - 1
            found[anchors // grid.width_px // geometry.stride_px, anchors % grid.width_px // geometry.stride_px] = True
    return found


def _judged(
    slide: IsolatedSlide,
    status: SlideStatus,
    tiles: TileGrid,
    geometry: TileGeometry,
    *,
    settled: NDArray[np.bool_],
) -> TileGrid:
    """The verdicts after a look at the pixels of each tile that is not settled, as the run's fields took."""
    facts = facts_of(slide, status.slide_id)
    plan = plan_fields(facts, tiles, geometry=geometry, field_px=_READ_PX, halo_px=0)
    verdicts = tiles.verdicts.copy()
    for field in plan.fields:
        task = plan.task(field)
        box = task.tiles.tiles
        here = (slice(box.y0, box.y1), slice(box.x0, box.x1))
        open_ = (task.tiles.verdicts == Verdict.ANALYSED) & ~settled[here]
        if open_.any():
            verdicts[here] = read_field(task, slide, geometry=geometry, fresh=open_).tiles.verdicts
    return TileGrid(tiles.tiles, verdicts)


def _areas_mm2(tiles: TileGrid, grid: SlideGrid, geometry: TileGeometry) -> dict[str, float]:
    counts = count_tiles(tiles, owner=None, grid=grid, geometry=geometry)
    px_mm2 = (grid.target_mpp / 1000) ** 2
    return {"analysed": counts.analysed_px * px_mm2} | {
        name: area_px * px_mm2 for name, area_px in counts.excluded_px.items()
    }


def _outline(chosen: NDArray[np.bool_], grid: SlideGrid, geometry: TileGeometry) -> Polygon | MultiPolygon:
    """The union of tile cores, in level-0 px with two decimals."""
    rows, columns = np.nonzero(chosen)
    step = geometry.stride_px
    # Rounded before they are joined, so that what is joined stays a valid polygon.
    x0, x1 = (np.round(np.minimum((columns + d) * step, grid.width_px) * grid.scale_x, 2) for d in (0, 1))
    y0, y1 = (np.round(np.minimum((rows + d) * step, grid.height_px) * grid.scale_y, 2) for d in (0, 1))
    union = shapely.union_all(shapely.box(x0, y0, x1, y1))
    assert isinstance(union, Polygon | MultiPolygon)
    return union
