"""The stages of a run as Ray calls them: one message in, messages out, never an exception.

    PlanSlide      slide  -> planned, then a task for each field without a part; or ended; or failed
    ReadField      task   -> pixels, or failed
    SegmentField   pixels -> field, or failed

An exception that left a stage would end the whole dataset, so each becomes a `failed` message with its reason. What a
stage does not handle it hands on. Everything they do is in plain functions next door.
"""

import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cellmill.cohort.attempts import TooManyAttemptsError, counting_attempt, outliving_reader_crashes
from cellmill.cohort.claims import check_driver_claim
from cellmill.cohort.context import RunContext
from cellmill.cohort.fetch import local_copy
from cellmill.cohort.field import FieldPixels, FieldResult, read_field, segment_field
from cellmill.cohort.granted import pin_threads
from cellmill.cohort.manifest import SlideSource, hide_name
from cellmill.cohort.plan import FieldTask, SlidePlan, plan_fields
from cellmill.cohort.rows import Row, RowKind
from cellmill.cohort.sources import CohortModel
from cellmill.cohort.tiles import TileGrid, Verdict
from cellmill.grid import Box
from cellmill.slides.errors import SlideError, SlideNotFoundError
from cellmill.slides.fingerprint import slide_fingerprint
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.store.cellset import CellSet
from cellmill.store.commit import finished_fields
from cellmill.store.discard import discard_other_work
from cellmill.store.errors import ClaimLostError, SlideChangedError, SlideForgottenError, StoreError
from cellmill.store.work import SlideFacts, write_part
from cellmill_schemas.slides import SlideStatus

__all__ = ["PlanSlide", "ReadField", "SegmentField", "failure_reason", "refuse_other_scale"]

_logger = logging.getLogger(__name__)

_MAX_OPEN_SLIDES = 2
_REFUSALS = (SlideChangedError, SlideForgottenError, ClaimLostError)
"""What leaves the slide's own status as it is."""


class _Stage:
    """Handles messages of one kind and turns what goes wrong into a `failed` message."""

    handles: RowKind

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        row = Row.of_table(table)
        if row.kind != self.handles:
            yield table
            return
        source = SlideSource(**row.document["source"])
        try:
            for result in self.handle(row, source):
                yield result.to_table()
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            _logger.error("%s", hide_name(traceback.format_exc(), source))
            kind: RowKind = "refused" if isinstance(error, _REFUSALS) else "failed"
            document = {"reason": failure_reason(error, source), "field": row.document.get("field_name", "")}
            yield Row(kind=kind, slide_id=source.slide_id, document=document).to_table()

    def handle(self, row: Row, source: SlideSource) -> Iterator[Row]:
        raise NotImplementedError


def failure_reason(error: Exception, source: SlideSource) -> str:
    """Why a slide could not be done, as a sentence for people, without the file's name where it must not be told."""
    known = isinstance(error, SlideError | StoreError | TooManyAttemptsError)
    text = str(error) if known else f"Unexpected {type(error).__name__}: {error}"
    return hide_name(text, source)


class PlanSlide(_Stage):
    """Opens a slide, finds its tissue and lists its fields."""

    handles: RowKind = "slide"

    def __init__(self, context: RunContext) -> None:
        self._context = context

    def handle(self, row: Row, source: SlideSource) -> Iterator[Row]:
        """A slide in; its plan and the fields to do out."""
        context, store = self._context, self._context.store
        path = local_copy(source.url)
        fingerprint = _fingerprint(path)
        status = CellSet(store.url).check_unchanged(source.slide_id, slide_fingerprint=fingerprint)
        if status is not None and status.outcome in ("done", "done_empty"):
            refuse_other_scale(status, source.mpp if source.mpp is not None else context.mpp)
            yield Row(kind="ended", slide_id=source.slide_id)
            return
        plan = outliving_reader_crashes(
            lambda: _plan(source, str(path), context),
            store=store,
            slide_id=source.slide_id,
            slide_fingerprint=fingerprint,
            max_attempts=context.max_attempts,
        )
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
        for field in missing:
            document = {"source": asdict(source), "field_name": field.name, "task": plan.task(field).to_json()}
            yield Row(kind="task", slide_id=source.slide_id, document=document)


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


def _plan(source: SlideSource, path: str, context: RunContext) -> SlidePlan:
    with _open(source, path, context) as slide:
        facts = SlideFacts(
            slide_id=source.slide_id,
            grid=slide.grid,
            mpp_x=slide.mpp[0],
            mpp_y=slide.mpp[1],
            width_level0_px=slide.info.width_level0_px,
            height_level0_px=slide.info.height_level0_px,
            slide_fingerprint=slide.info.fingerprint,
        )
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


def _open(source: SlideSource, path: str, context: RunContext) -> IsolatedSlide:
    return IsolatedSlide(
        path,
        target_mpp=context.target_mpp,
        mpp=source.mpp if source.mpp is not None else context.mpp,
        reader=context.reader,
        limits=context.reader_limits,
    )


class ReadField(_Stage):
    """Reads a field's pixels; keeps the last slides open, since fields come slide by slide."""

    handles: RowKind = "task"

    def __init__(self, context: RunContext) -> None:
        pin_threads(context.threads_per_worker)
        self._context = context
        self._slides: OrderedDict[tuple[str, str], IsolatedSlide] = OrderedDict()

    def handle(self, row: Row, source: SlideSource) -> Iterator[Row]:
        """A field to read in; its pixels and judged tiles out."""
        started = time.monotonic()
        context, task = self._context, FieldTask.from_json(row.document["task"])
        seen = outliving_reader_crashes(
            lambda: read_field(task, self._slide(source, task), geometry=context.geometry),
            store=context.store,
            slide_id=source.slide_id,
            slide_fingerprint=task.facts.slide_fingerprint,
            max_attempts=context.max_attempts,
        )
        document: dict[str, Any] = {
            **row.document,
            "box": asdict(seen.box),
            "tiles": seen.tiles.to_json(),
            "seconds": time.monotonic() - started,
        }
        yield Row(kind="pixels", slide_id=row.slide_id, document=document, pixels=seen.pixels)

    def close(self) -> None:
        """Close the slides kept open."""
        while self._slides:
            self._slides.popitem()[1].close()

    def _slide(self, source: SlideSource, task: FieldTask) -> IsolatedSlide:
        key = (source.url, task.facts.slide_fingerprint)
        if key in self._slides:
            self._slides.move_to_end(key)
            return self._slides[key]
        while len(self._slides) >= _MAX_OPEN_SLIDES:
            self._slides.popitem(last=False)[1].close()
        slide = _open(source, str(local_copy(source.url)), self._context)
        if slide.info.fingerprint != task.facts.slide_fingerprint:
            slide.close()
            raise SlideError("The slide's file changed while the slide was being done. Run the same command again.")
        self._slides[key] = slide
        return slide


class SegmentField(_Stage):
    """Predicts, decodes, measures and writes a field; dense maps stay inside."""

    handles: RowKind = "pixels"

    def __init__(self, context: RunContext, model: Callable[[], CohortModel]) -> None:
        pin_threads(context.threads_per_worker)
        self._context = context
        self._source = model().open(
            device=context.device, batch_size=context.batch_size, num_threads=context.threads_per_worker
        )

    def handle(self, row: Row, source: SlideSource) -> Iterator[Row]:
        """Pixels of a field in; its part is written, and what it held out."""
        context, task = self._context, FieldTask.from_json(row.document["task"])
        with counting_attempt(
            store=context.store,
            slide_id=source.slide_id,
            field_name=task.field.name,
            slide_fingerprint=task.facts.slide_fingerprint,
            max_attempts=context.max_attempts,
        ):
            result = self._segment(row, task)
            summary = write_part(
                context.store,
                context.work(task.facts),
                field=task.field,
                cells=result.cells,
                core_mask=result.core_mask,
                counts=result.counts,
            )
        document = {
            "field": task.field.name,
            "num_cells": summary.num_cells,
            "analysed_mm2": result.counts.analysed_px * task.facts.grid.target_mpp**2 * 1e-6,
        }
        yield Row(kind="field", slide_id=row.slide_id, document=document)

    def _segment(self, row: Row, task: FieldTask) -> FieldResult:
        assert row.pixels is not None
        context, box = self._context, Box(**row.document["box"])
        seen = FieldPixels(
            box=box,
            pixels=row.pixels.reshape(box.height, box.width, 3),
            tiles=TileGrid.from_json(row.document["tiles"]),
        )
        result = segment_field(
            task,
            seen,
            source=self._source,
            decoder=context.decoder,
            geometry=context.geometry,
            ontology=context.ontology,
            batch_size=context.batch_size,
        )
        counts = replace(result.counts, seconds=result.counts.seconds + row.document["seconds"])
        return replace(result, counts=counts)
