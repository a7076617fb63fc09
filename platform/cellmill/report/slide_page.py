"""One slide's page: its map, regions up close, numbers against the cohort, or why it failed.

Consumes a `SlideTask`, which is small and picklable; reads the slide's cells and, where there is one, its file.
Produces HTML.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from cellmill.overlay import OverlayRegion
from cellmill.report.cohort import SlideRow
from cellmill.report.config import ReportCohortConfig
from cellmill.report.drawing import CellOutline, HeatMap, cell_outlines, confidence_map, heat_maps, path_of_rings
from cellmill.report.imagery import SlideImagery, read_imagery
from cellmill.report.regions_of_interest import ShownRegion, choose_regions
from cellmill.report.rendering import decimals, render, whole
from cellmill.slides.errors import SlideError
from cellmill.staging.cache import node_cache
from cellmill.store.identity import CellSetIdentity
from cellmill.store.reading import open_cells
from cellmill_schemas.slides import ExcludedArea, SlideStatus

__all__ = ["Comparison", "SlideTask", "slide_page"]

REASONS = {
    "outside_region": "outside the regions drawn",
    "background": "background",
    "unreadable": "unreadable",
    "pen": "pen",
    "blur": "out of focus",
}
_OUTLINE_MARGIN_UM = 20.0
_CIVIDIS = [
    (
        f"{step / 8:g}",
        tuple(
            int(v)
            for v in cv2.applyColorMap(np.full((1, 1), step * 255 // 8, np.uint8), cv2.COLORMAP_CIVIDIS)[0, 0, ::-1]
        ),
    )
    for step in range(9)
]


@dataclass(frozen=True)
class Comparison:
    """One type, or all cells, of a slide against the cohort."""

    name: str
    color: tuple[int, int, int] | None
    num_cells: int
    share: float | None
    per_mm2: float | None
    spread: tuple[float, ...]
    """Least, quartiles and most of the cohort's densities."""
    percentile: float | None


@dataclass(frozen=True)
class SlideTask:
    """All that one page needs to know."""

    row: SlideRow
    config: ReportCohortConfig
    identity: CellSetIdentity
    title: str
    group_by: str
    comparisons: tuple[Comparison, ...]
    slide_url: str | None = None
    """Where the slide is; None where it was not given."""
    previous: str | None = None
    next: str | None = None


@dataclass(frozen=True)
class _Page:
    """What is drawn of a slide that is done; an empty one has its picture all the same, to see why it is."""

    width_um: float = 0.0
    height_um: float = 0.0
    imagery: SlideImagery | None = None
    imagery_problem: str = ""
    analysed: str = ""
    excluded: Mapping[str, str] = field(default_factory=dict[str, str])
    heat: tuple[HeatMap, ...] = ()
    heat_labels: tuple[tuple[str, str, str], ...] = ()
    heat_colors: tuple[tuple[int, int, int] | None, ...] = ()
    regions: tuple[ShownRegion, ...] = ()
    cells: tuple[tuple[CellOutline, ...], ...] = ()
    """Outlines in each region, and of cells that reach into it."""
    num_cells: tuple[int, ...] = ()
    """Cells centred in each region."""
    notes: tuple[str, ...] = ()
    cividis: tuple[Any, ...] = tuple(_CIVIDIS)

    @property
    def first_heat(self) -> int:
        """The heat map shown first: none on a picture, that of all cells without one."""
        return -1 if self.imagery is not None else 0

    @property
    def label_um(self) -> float:
        """Height of the regions' numbers."""
        return max(self.width_um, self.height_um) / 40

    def cells_of(self, shown: ShownRegion, type_index: int) -> list[CellOutline]:
        """Outlines of one type in one of `regions`."""
        return [cell for cell in self.cells[self.regions.index(shown)] if cell.type_index == type_index]


def slide_page(task: SlideTask) -> str:
    """The page as HTML. What is wrong with the slide's file is said in it."""
    row = task.row
    page = _draw(task) if row.is_done else _Page()
    excluded = row.status.excluded
    areas = [(item.name.removesuffix("_mm2"), getattr(excluded, item.name)) for item in fields(ExcludedArea)]
    return render(
        "slide.html",
        task.identity,
        row=row,
        page=page,
        title=task.title,
        group_by=task.group_by,
        previous=task.previous,
        next=task.next,
        types=task.identity.ontology.classes,
        comparisons=task.comparisons,
        reasons=REASONS,
        areas=[(name, mm2) for name, mm2 in areas if mm2],
        facts=_facts(row.status),
    )


def _draw(task: SlideTask) -> _Page:
    status, ontology = task.row.status, task.identity.ontology
    assert status.width_px is not None
    assert status.height_px is not None
    assert status.target_mpp is not None
    size_um = (status.width_px * status.target_mpp, status.height_px * status.target_mpp)
    cells = (
        open_cells(task.config.cells, slide_ids=[status.slide_id])
        .select("x_um", "y_um", "cell_type", "confidence", "mask_id")
        .collect()
    )
    regions = tuple(choose_regions(cells, side_um=task.config.region_um, number=task.config.num_regions))
    xy_um = cells.select(pl.col("x_um", "y_um").cast(pl.Float64)).to_numpy()
    order = {name: index for index, name in enumerate(ontology.names)}
    types = cells["cell_type"].cast(pl.String).replace_strict(order, return_dtype=pl.Int16).to_numpy()
    bin_um, heat = heat_maps(xy_um, types, num_types=len(order), size_um=size_um)
    heat.append(confidence_map(xy_um, cells["confidence"].to_numpy(), size_um=size_um))
    anchor = cells["mask_id"].to_numpy().astype(np.int64) - 1
    page = _Page(
        width_um=size_um[0],
        height_um=size_um[1],
        heat=tuple(heat),
        heat_labels=_heat_labels(heat, ontology.names),
        heat_colors=(None, *(cell_class.color_rgb for cell_class in ontology.classes), None),
        regions=regions,
        cells=tuple(tuple(_outlines(task, shown.region, order)) for shown in regions),
        num_cells=tuple(_count_in(cells, shown.region) for shown in regions),
        notes=(f"Heat maps count cells in squares of {bin_um:g} µm.",),
    )
    return _with_imagery(page, task, np.stack([anchor % status.width_px, anchor // status.width_px], axis=1))


def _count_in(cells: pl.DataFrame, region: OverlayRegion) -> int:
    x, y = cells["x_um"] - region.x_um, cells["y_um"] - region.y_um
    return int(((x >= 0) & (x < region.side_um) & (y >= 0) & (y < region.side_um)).sum())


def _heat_labels(heat: list[HeatMap], names: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    """Name and the two ends of the scale, in words."""
    counted = [
        (name, "0", f"{whole(found.high)} per mm²") for name, found in zip(("all cells", *names), heat, strict=False)
    ]
    return (*counted, ("mean confidence", decimals(heat[-1].low), decimals(heat[-1].high)))


def _outlines(task: SlideTask, region: OverlayRegion, order: dict[str, int]) -> list[CellOutline]:
    status = task.row.status
    assert status.mpp_x is not None
    assert status.mpp_y is not None
    mpp = (status.mpp_x, status.mpp_y)
    x0, y0 = region.x_um - _OUTLINE_MARGIN_UM, region.y_um - _OUTLINE_MARGIN_UM
    side = region.side_um + 2 * _OUTLINE_MARGIN_UM
    box = (x0 / mpp[0], y0 / mpp[1], (x0 + side) / mpp[0], (y0 + side) / mpp[1])
    cells = (
        open_cells(task.config.cells, slide_ids=[status.slide_id], region=box)
        .select(pl.col("cell_type").cast(pl.String), "confidence", "area_um2", "geometry")
        .collect()
    )
    return cell_outlines(cells, region, mpp=mpp, order=order)


def _with_imagery(page: _Page, task: SlideTask, anchors_px: NDArray[np.int64]) -> _Page:
    """The page with pictures of the slide, or with the reason why there are none."""
    if task.slide_url is None:
        without = "" if not task.config.slides else "This slide is not among --slides, so there are no pictures of it."
        return replace(page, imagery_problem=without)
    try:
        with node_cache().stage(task.slide_url) as slide:
            imagery = read_imagery(
                Path(slide.path),
                task.row.status,
                task.identity.config,
                regions=[shown.region for shown in page.regions],
                anchors_px=anchors_px,
            )
    except SlideError as error:
        return replace(page, imagery_problem=f"There are no pictures of this slide. {error}")
    notes = list(page.notes)
    if not imagery.knows_excluded:
        notes.append("Where the run looked is not shown: it was told by a file of regions that a report does not have.")
    elif not imagery.excluded_agrees:
        notes.append("Excluded areas were judged anew for this map and differ a little from those of the run.")
    return replace(
        page,
        imagery=imagery,
        analysed=path_of_rings(imagery.analysed),
        excluded={name: path_of_rings(rings) for name, rings in imagery.excluded.items()},
        notes=tuple(notes),
    )


def _facts(status: SlideStatus) -> list[tuple[str, str]]:
    facts = [
        ("Attempts", whole(status.num_attempts)),
        ("Finished", status.finished_at.replace("T", " ").replace("+00:00", " UTC") or "–"),
    ]
    if status.mpp_x is not None and status.mpp_y is not None:
        facts.insert(0, ("Scale of the slide", f"{status.mpp_x:.4f} × {status.mpp_y:.4f} µm/px"))
    if status.target_mpp is not None:
        facts.insert(1, ("Scale of the model", f"{status.target_mpp:g} µm/px"))
    if status.width_level0_px is not None and status.height_level0_px is not None:
        facts.insert(0, ("Size", f"{whole(status.width_level0_px)} × {whole(status.height_level0_px)} px"))
    if status.outcome != "failed":
        facts += [
            ("Fields, tiles", f"{whole(status.num_fields)}, {whole(status.num_tiles)}"),
            ("Device", status.device_kind),
        ]
    return facts
