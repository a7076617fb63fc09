"""What the driver knows of each slide, from claim to end.

In: messages of the stages and results of commits. Out: slides ready to commit, and in the end one status a slide.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cellmill.cohort.committing import CommitResult, SlideCommit
from cellmill.cohort.context import RunContext
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.plan import facts_from_json, field_from_json
from cellmill.cohort.planning import refuse_other_scale
from cellmill.cohort.progress import Progress, RunTotals
from cellmill.cohort.rows import Row
from cellmill.cohort.stages import failure_reason
from cellmill.slides.fingerprint import slide_fingerprint
from cellmill.staging.remote import is_remote
from cellmill.store.cellset import CellSet
from cellmill.store.errors import OutputError, SlideClaimedError, StoreError
from cellmill.store.work import FieldCounts
from cellmill_schemas.slides import SlideStatus

__all__ = ["Ledger"]

_TABLE_SECONDS = 15.0
"""Pause between refreshes of slides.parquet while slides end, at least;"""
_TABLE_PAUSES = 20.0
"""and at least so many times what the last one took: it reads every status, of which a large cohort has many."""


@dataclass
class _Slide:
    """A slide under way."""

    source: SlideSource
    order: SlideCommit | None = None
    missing: set[str] | None = None
    """Fields planned and not in; None until the plan is known."""
    ended_fields: set[str] = field(default_factory=set[str])
    failure: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether nothing of the slide is out any more."""
        return self.missing is not None and self.missing <= self.ended_fields


class Ledger:
    """The state of a run."""

    def __init__(self, sources: Sequence[SlideSource], cells: CellSet, context: RunContext, progress: Progress) -> None:
        self._sources = sources
        self._cells = cells
        self._context = context
        self._progress = progress
        self._totals = RunTotals(num_slides=len(sources))
        self._slides: dict[str, _Slide] = {}
        self._ended: dict[int, SlideStatus] = {}  # id(source) -> status
        self._held_elsewhere: set[int] = set()  # id(source)
        self._redo: list[SlideSource] = []
        self._next_table = time.monotonic() + _TABLE_SECONDS

    # ---------------------------------------------------------------------------------------------- before the work

    def settle_without_work(self) -> list[SlideSource]:
        """End the slides that cannot run or are done already; returns the others."""
        left: list[SlideSource] = []
        runnable = [source.slide_id for source in self._sources if source.problem is None]
        before = {status.slide_id: status for status in self._cells.statuses(runnable)}
        with_work = self._cells.slides_with_work()
        for source in self._sources:
            if source.problem is not None:
                self._fail(source, source.problem)
                continue
            try:
                done = self._done_before(source, before.get(source.slide_id))
            except StoreError as error:
                self._refuse(source, failure_reason(error, source))
                continue
            if done is None:
                left.append(source)
            else:
                if source.slide_id in with_work:
                    self._tidy(source)
                self._end(source, done, told=False)
        num_done = len(self._sources) - len(left) - self._totals.num_failed
        if num_done:
            self._progress.say(f"{num_done} of {len(self._sources)} slides are done already.")
        return left

    def claim(self, sources: Sequence[SlideSource]) -> list[SlideSource]:
        """Take slides for this driver; those another one works on are refused."""
        taken: list[SlideSource] = []
        for source in sources:
            try:
                self._cells.claim(source.slide_id)
            except SlideClaimedError as error:
                self._held_elsewhere.add(id(source))
                self._refuse(source, failure_reason(error, source))
            except StoreError as error:
                self._fail(source, failure_reason(error, source))
            else:
                self._slides[source.slide_id] = _Slide(source)
                taken.append(source)
        return taken

    # ---------------------------------------------------------------------------------------------- during the work

    def receive(self, row: Row) -> SlideCommit | None:
        """Act on a message; returns a slide that is ready to commit."""
        slide = self._slides.get(row.slide_id)
        if slide is None:
            return None  # ended before this message came: its plan failed after a worker was lost
        document = row.document
        if row.kind == "planned":
            self._learn_plan(slide, document)
        elif row.kind == "field":
            slide.ended_fields.add(document["field"])
            self._totals.num_fields_done += 1
            self._totals.analysed_mm2 += document["analysed_mm2"]
            self._totals.num_cells += document["num_cells"]
        elif row.kind == "failed":
            slide.failure = slide.failure or document["reason"]
            slide.ended_fields.add(document["field"])
            if not document["field"]:
                slide.missing = set()
        elif row.kind == "refused":
            self._close(slide)
            self._refuse(slide.source, document["reason"])
            return None
        elif row.kind == "ended":
            self._close(slide)
            self._end(slide.source, self._status_or_unknown(slide.source))
            return None
        return self._advance(slide)

    def receive_commit(self, result: CommitResult) -> None:
        """Act on the end of a commit."""
        slide = self._slides[result.slide_id]
        if result.redo:
            self._redo.append(slide.source)
            self._progress.say(f"{result.slide_id}: {result.reason}")
            slide.order, slide.missing, slide.failure = None, None, result.reason
            slide.ended_fields.clear()
            return
        if result.status is None:
            self._close(slide)
            self._refuse(slide.source, result.reason) if result.refused else self._fail(slide.source, result.reason)
            return
        self._remove_work(slide)
        self._close(slide)
        self._end(slide.source, result.status)

    def take_redo(self) -> list[SlideSource]:
        """Slides whose commit asked for fields to be done again."""
        redo, self._redo = self._redo, []
        return redo

    def give_up(self, sources: Sequence[SlideSource]) -> None:
        """End slides that still could not be committed."""
        for source in sources:
            slide = self._slides[source.slide_id]
            self._close(slide)
            self._fail(source, f"{slide.failure} This happened {self._context.max_attempts} times in one run.")

    def show(self) -> None:
        """Refresh the progress view, and slides.parquet now and then."""
        self._totals.num_waiting = self._totals.num_left - sum(s.missing is not None for s in self._slides.values())
        self._progress.update(self._totals)
        if time.monotonic() >= self._next_table:
            started = time.monotonic()
            self._refresh_table()
            ended = time.monotonic()
            self._next_table = ended + max(_TABLE_SECONDS, _TABLE_PAUSES * (ended - started))

    def close(self) -> None:
        """Leave `slides.parquet` as the statuses are."""
        self._refresh_table()

    def statuses(self) -> tuple[SlideStatus, ...]:
        """How each slide of the list ended; one refused here may have been done by another driver since."""
        return tuple(self._final(source) for source in self._sources)

    # ------------------------------------------------------------------------------------------------------- inside

    def _learn_plan(self, slide: _Slide, document: Any) -> None:
        fields = tuple(field_from_json(entry) for entry in document["fields"])
        slide.order = SlideCommit(
            source=slide.source,
            facts=facts_from_json(document["facts"]),
            fields=fields,
            counts=FieldCounts(**document["counts"]),
            figures=document["figures"],
        )
        slide.missing = set(document["missing"])
        slide.failure = ""
        self._totals.num_fields += len(slide.missing)
        if len(fields) > len(slide.missing):
            self._progress.say(
                f"{slide.source.slide_id}: {len(fields) - len(slide.missing)} of {len(fields)} fields were done before."
            )

    def _advance(self, slide: _Slide) -> SlideCommit | None:
        if not slide.is_complete:
            return None
        if slide.failure:
            self._close(slide)
            self._fail(slide.source, slide.failure, order=slide.order)
            return None
        return slide.order

    def _done_before(self, source: SlideSource, status: SlideStatus | None) -> SlideStatus | None:
        """The status of a slide that needs no work. A remote slide is taken to be what it was."""
        if status is None or status.outcome == "failed":
            return None
        fingerprint = status.slide_fingerprint
        if status.outcome != "forgotten" and not is_remote(source.url):
            try:
                fingerprint = slide_fingerprint(source.url)
            except OSError:
                return None  # planning will say why
        self._cells.require_unchanged(status, slide_fingerprint=fingerprint)
        refuse_other_scale(status, source.mpp if source.mpp is not None else self._context.mpp)
        return status

    def _tidy(self, source: SlideSource) -> None:
        """Remove what a driver left of a done slide that was killed, or whose disk was full, after its last commit."""
        try:
            self._cells.claim(source.slide_id)
            self._cells.end_slide(source.slide_id)
        except SlideClaimedError:
            pass  # another driver has just committed it and does so itself
        except StoreError as error:
            self._progress.say(f"{source.slide_id}: done; its work folder stays until the next run: {error}")

    def _remove_work(self, slide: _Slide) -> None:
        """Parts, attempts and the claim of a committed slide go."""
        try:
            self._cells.end_slide(slide.source.slide_id)
        except StoreError as error:
            self._progress.say(f"{slide.source.slide_id}: done; its work folder stays until the next run: {error}")

    def _close(self, slide: _Slide) -> None:
        del self._slides[slide.source.slide_id]
        try:
            self._cells.release(slide.source.slide_id)
        except OutputError as error:
            self._progress.say(f"{slide.source.slide_id}: its claim could not be released: {error}")

    def _fail(self, source: SlideSource, reason: str, *, order: SlideCommit | None = None) -> None:
        status = _failed(source, reason, order)
        try:
            before = self._cells.status(source.slide_id)
            if before is None or before.outcome == "failed":
                self._cells.write_status(status)
        except OutputError as error:
            status = _failed(source, f"{reason} (This status could not be written: {error})", order)
        self._end(source, status)

    def _refuse(self, source: SlideSource, reason: str) -> None:
        """The slide's own status is not this driver's to change."""
        self._end(source, _failed(source, reason, None))

    def _end(self, source: SlideSource, status: SlideStatus, *, told: bool = True) -> None:
        self._ended[id(source)] = status
        if status.outcome in ("done", "done_empty"):
            self._totals.num_done += 1
        else:
            self._totals.num_failed += 1
        if told:
            reason = f" {' '.join(status.reasons)}" if status.reasons else ""
            figures = f"{status.num_cells:,} cells, {status.analysed_mm2:.3f} mm2" if status.outcome == "done" else ""
            self._progress.say(f"{source.slide_id}: {status.outcome} {figures}{reason}")

    def _status_or_unknown(self, source: SlideSource) -> SlideStatus:
        status = self._cells.status(source.slide_id)
        return status or _failed(source, "The slide's status vanished while it was looked at.", None)

    def _final(self, source: SlideSource) -> SlideStatus:
        status = self._ended.get(id(source)) or _failed(source, "The run ended before this slide.", None)
        if id(source) in self._held_elsewhere:
            now = self._cells.status(source.slide_id)
            if now is not None and now.outcome in ("done", "done_empty"):
                return now
        return status

    def _refresh_table(self) -> None:
        try:
            self._cells.refresh_slides_table()
        except OutputError as error:
            self._progress.say(f"slides.parquet could not be written: {error}")


def _failed(source: SlideSource, reason: str, order: SlideCommit | None) -> SlideStatus:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if order is None:
        return SlideStatus(slide_id=source.slide_id, outcome="failed", reasons=(reason,), finished_at=now)
    facts = order.facts
    return SlideStatus(
        slide_id=source.slide_id,
        outcome="failed",
        reasons=(reason,),
        mpp_x=facts.mpp_x,
        mpp_y=facts.mpp_y,
        width_level0_px=facts.width_level0_px,
        height_level0_px=facts.height_level0_px,
        width_px=facts.grid.width_px,
        height_px=facts.grid.height_px,
        target_mpp=facts.grid.target_mpp,
        num_fields=len(order.fields),
        slide_fingerprint=facts.slide_fingerprint,
        finished_at=now,
    )
