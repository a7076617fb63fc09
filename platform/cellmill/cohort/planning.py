"""Planning, the first stage: opens a slide, finds its tissue, and hands out its fields in strips."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from cellmill.cohort.attempts import outliving_reader_crashes
from cellmill.cohort.claims import check_driver_claim
from cellmill.cohort.context import RunContext
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.plan import SlidePlan, plan_fields
from cellmill.cohort.rows import Row, RowKind
from cellmill.cohort.stages import Stage, open_source
from cellmill.cohort.strips import cut_into_strips
from cellmill.cohort.tiles import TileGrid, Verdict
from cellmill.slides.errors import SlideNotFoundError
from cellmill.slides.fingerprint import slide_fingerprint
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.store.cellset import CellSet
from cellmill.store.commit import finished_fields
from cellmill.store.discard import discard_other_work
from cellmill.store.errors import SlideChangedError
from cellmill.store.work import SlideFacts
from cellmill_schemas.slides import SlideStatus

__all__ = ["PlanSlide", "facts_of", "plan_slide", "refuse_other_scale"]


class PlanSlide(Stage):
    """Plans one slide a message."""

    handles: RowKind = "slide"

    def __init__(self, context: RunContext, *, num_strips: int = 1) -> None:
        """Cut each slide into `num_strips` strips at least."""
        self._context = context
        self._num_strips = num_strips

    def handle(self, row: Row, source: SlideSource) -> Iterator[Row]:
        """A slide in; its plan and the fields to do out."""
        context, store = self._context, self._context.store
        with context.slide_cache.stage(source.url) as slide:
            plan = self._plan(source, slide.path)
        if plan is None:
            yield Row(kind="ended", slide_id=source.slide_id)
            return
        check_driver_claim(store, source.slide_id, driver=context.driver)
        work = context.work(plan.facts)
        discard_other_work(store, work)
        finished = finished_fields(store, work)
        missing = [field for field in plan.fields if field.name not in finished]
        document = {
            "facts": asdict(plan.facts),
            "fields": [asdict(field) for field in plan.fields],
            "counts": asdict(plan.counts),
            "figures": plan.figures,
            "missing": [field.name for field in missing],
        }
        yield Row(kind="planned", slide_id=source.slide_id, document=document)
        for strip in cut_into_strips(plan, missing, num_strips=self._num_strips):
            document = {"source": asdict(source), "strip": strip.to_json()}
            yield Row(kind="strip", slide_id=source.slide_id, document=document)

    def _plan(self, source: SlideSource, path: Path) -> SlidePlan | None:
        """What there is to do; None for a slide that is done already."""
        context, store = self._context, self._context.store
        fingerprint = _fingerprint(path)
        status = CellSet(store.url).check_unchanged(source.slide_id, slide_fingerprint=fingerprint)
        if status is not None and status.outcome in ("done", "done_empty"):
            refuse_other_scale(status, source.mpp if source.mpp is not None else context.mpp)
            return None
        return outliving_reader_crashes(
            lambda: plan_slide(source, str(path), context),
            store=store,
            slide_id=source.slide_id,
            slide_fingerprint=fingerprint,
            max_attempts=context.max_attempts,
        )


def _fingerprint(path: Path) -> str:
    try:
        return slide_fingerprint(path)
    except FileNotFoundError:
        raise SlideNotFoundError("There is no such file.") from None
    except OSError as error:
        raise SlideNotFoundError(f"The file cannot be read ({error.strerror}).") from error


def refuse_other_scale(status: SlideStatus, mpp: float | None) -> None:
    """Make sure that a slide that is done was done at the scale asked for now.

    Raises:
        SlideChangedError: when it was not.
    """
    if mpp is not None and (status.mpp_x, status.mpp_y) != (mpp, mpp):
        raise SlideChangedError(
            f"Slide {status.slide_id} is done at {status.mpp_x:g} x {status.mpp_y:g} um/px, and this run says {mpp:g}. "
            "Leave --mpp (or the manifest's mpp) as it was, take the slide out with --forget, or use another --out."
        )


def facts_of(slide: IsolatedSlide, slide_id: str) -> SlideFacts:
    """What is known of an open slide before its pixels are looked at."""
    return SlideFacts(
        slide_id=slide_id,
        grid=slide.grid,
        mpp_x=slide.mpp[0],
        mpp_y=slide.mpp[1],
        width_level0_px=slide.info.width_level0_px,
        height_level0_px=slide.info.height_level0_px,
        slide_fingerprint=slide.info.fingerprint,
    )


def plan_slide(source: SlideSource, path: str, context: RunContext) -> SlidePlan:
    """Open a slide and decide what there is to do; pixels are read at low resolution only."""
    with open_source(source, path, context) as slide:
        facts = facts_of(slide, source.slide_id)
        tissue = slide.find_tissue(context.geometry, mode=context.tissue)
    tiles = TileGrid.of_slide(facts.grid, context.geometry)
    excluded = Verdict.OUTSIDE_REGION if tissue.mode == "region" else Verdict.BACKGROUND
    tiles.verdicts[~tissue.tiles] = excluded
    return plan_fields(
        facts,
        tiles,
        geometry=context.geometry,
        field_px=context.field_px,
        halo_px=context.decoder.halo_px,
        figures=tissue.figures,
    )
