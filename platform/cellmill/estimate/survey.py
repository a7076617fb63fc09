"""Surveying a slide: opened, its tissue found at low resolution, and the work on it counted. No field is read.

In: a `SlideSource`. Out: a `SlideSurvey`, or the reason why the slide cannot be done. The same planning and the same
strips as the run's own, so that counts are those of the run.
"""

from dataclasses import dataclass

import numpy as np

from cellmill.cohort.context import RunContext
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.plan import SlidePlan
from cellmill.cohort.planning import plan_slide
from cellmill.cohort.stages import failure_reason
from cellmill.cohort.strips import StripTask, cut_into_strips
from cellmill.cohort.tile_memory import TileMemory
from cellmill.cohort.tiles import TileGrid, Verdict, count_tiles
from cellmill.estimate.cost import Workload
from cellmill.estimate.spending import Spent, Stopwatch
from cellmill.grid import Box, SlideGrid, TileGeometry
from cellmill.staging.remote import is_remote
from cellmill.store.work import SlideFacts

__all__ = ["SlideSurvey", "Unusable", "analysed_px", "choose_slides", "survey_slide"]

_MAX_REMOTE_SLIDES = 8
"""A slide behind a URL is fetched whole before it can be opened."""


@dataclass(frozen=True)
class SlideSurvey:
    """A slide that can be done, and what there is to do."""

    source: SlideSource
    facts: SlideFacts
    tiles: TileGrid
    """Every tile of the slide, as planned."""
    work: Workload
    strips: tuple[int, ...]
    """Predictions of each strip."""
    spent: Spent


@dataclass(frozen=True)
class Unusable:
    """A slide that cannot be done."""

    slide_id: str
    reason: str


def choose_slides(sources: list[SlideSource], *, at_most: int) -> list[SlideSource]:
    """Up to `at_most` slides, evenly spread over the list; fewer where slides must be fetched to be opened."""
    if any(is_remote(source.url) for source in sources):
        at_most = min(at_most, _MAX_REMOTE_SLIDES)
    num_chosen = min(at_most, len(sources))
    return [sources[(2 * number + 1) * len(sources) // (2 * num_chosen)] for number in range(num_chosen)]


def survey_slide(source: SlideSource, context: RunContext, *, num_strips: int) -> SlideSurvey | Unusable:
    """Plan one slide and count the work; never raises.

    Args:
        source: the slide.
        context: settings of the run.
        num_strips: strips that the run would cut the slide into, at least.
    """
    try:
        with context.slide_cache.stage(source.url) as slide:
            watch = Stopwatch()
            plan = plan_slide(source, str(slide.path), context)
        strips = cut_into_strips(plan, plan.fields, num_strips=num_strips)
        spent = watch.lap()
        predictions = tuple(_num_predictions(strip, context.geometry) for strip in strips)
        work = _workload(plan, predictions)
    except Exception as error:  # noqa: BLE001 - one slide's end, not the estimate's
        return Unusable(source.slide_id, failure_reason(error, source))
    return SlideSurvey(source, plan.facts, plan.tiles, work, predictions, spent)


def analysed_px(tiles: TileGrid, box: Box, *, grid: SlideGrid, geometry: TileGeometry) -> int:
    """Area of `box` that lies in analysed tiles and in the slide, in px of the model grid."""
    stride, inside = geometry.stride_px, box.clipped(grid.box)
    x0 = np.arange(tiles.tiles.x0, tiles.tiles.x1, dtype=np.int64) * stride  # (columns,)
    y0 = np.arange(tiles.tiles.y0, tiles.tiles.y1, dtype=np.int64) * stride  # (rows,)
    widths = np.clip(np.minimum(x0 + stride, inside.x1) - np.maximum(x0, inside.x0), 0, None)
    heights = np.clip(np.minimum(y0 + stride, inside.y1) - np.maximum(y0, inside.y0), 0, None)
    return int((heights[:, None] * widths[None, :])[tiles.verdicts == Verdict.ANALYSED].sum())


def _workload(plan: SlidePlan, predictions: tuple[int, ...]) -> Workload:
    grid, geometry = plan.facts.grid, plan.geometry
    px_mm2 = (grid.target_mpp / 1000) ** 2
    counts = count_tiles(plan.tiles, owner=None, grid=grid, geometry=geometry)
    tasks = [plan.task(field) for field in plan.fields]
    window_px = sum(analysed_px(task.tiles, task.window, grid=grid, geometry=geometry) for task in tasks)
    return Workload(
        num_slides=1,
        slide_mm2=grid.box.area * px_mm2,
        analysed_mm2=counts.analysed_px * px_mm2,
        num_tiles=counts.num_tiles,
        num_predictions=sum(predictions),
        num_fields=len(plan.fields),
        window_mm2=window_px * px_mm2,
        num_strips=len(predictions),
    )


def _num_predictions(strip: StripTask, geometry: TileGeometry) -> int:
    memory = TileMemory(strip, geometry)
    return sum(int(memory.fresh(number).sum()) for number in range(len(strip.fields)))
