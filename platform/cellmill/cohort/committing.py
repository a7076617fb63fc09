"""Commits as Ray tasks, a few at a time, beside the stream.

In: `SlideCommit`, a slide whose fields are all in. Out: `CommitResult`: its status, or what stands in the way.
"""

from collections import deque
from dataclasses import dataclass
from functools import reduce
from typing import Any

from cellmill.cohort.claims import check_driver_claim
from cellmill.cohort.context import RunContext
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.stages import failure_reason
from cellmill.grid import FieldSpec
from cellmill.store.attempts import SLIDE_SCOPE, list_attempts
from cellmill.store.commit import commit_slide
from cellmill.store.errors import ClaimLostError, FieldsToRedoError
from cellmill.store.layout import part_key
from cellmill.store.merge import read_summaries
from cellmill.store.work import FieldCounts, SlideFacts
from cellmill_schemas.slides import SlideStatus

__all__ = ["CommitQueue", "CommitResult", "SlideCommit", "commit"]


_NOTHING_READABLE = (
    "None of the slide's tissue could be read: its tiles are damaged, or the file is cut off. Copy or export it again."
)


@dataclass(frozen=True)
class SlideCommit:
    """A slide to commit."""

    source: SlideSource
    facts: SlideFacts
    fields: tuple[FieldSpec, ...]
    counts: FieldCounts
    """Areas that the plan alone decided."""
    figures: str
    """What was measured when tissue was looked for."""


@dataclass(frozen=True)
class CommitResult:
    """How a commit ended: with a status, or with a reason and whether the slide's fields should be done again."""

    slide_id: str
    status: SlideStatus | None
    reason: str = ""
    redo: bool = False
    refused: bool = False


def commit(order: SlideCommit, context: RunContext) -> CommitResult:
    """Commit one slide; never raises."""
    slide_id = order.source.slide_id
    try:
        check_driver_claim(context.store, slide_id, driver=context.driver)
        work = context.work(order.facts)
        found = _counts(order, context)
        if found is not None and not found.analysed_px and found.excluded_px.get("unreadable"):
            return CommitResult(slide_id, None, reason=_NOTHING_READABLE)
        attempts = list_attempts(
            context.store, slide_id, scope=SLIDE_SCOPE, slide_fingerprint=order.facts.slide_fingerprint
        )
        status = commit_slide(
            context.store,
            work,
            planned=order.fields,
            elsewhere=order.counts,
            reasons=_reasons(order, found),
            num_attempts=1 + len(attempts),
        )
        return CommitResult(slide_id, status)
    except FieldsToRedoError as error:
        return CommitResult(slide_id, None, reason=failure_reason(error, order.source), redo=True)
    except Exception as error:  # noqa: BLE001 - one slide's end, not the run's
        refused = isinstance(error, ClaimLostError)
        return CommitResult(slide_id, None, reason=failure_reason(error, order.source), refused=refused)


def _counts(order: SlideCommit, context: RunContext) -> FieldCounts | None:
    """What the slide's fields held; None where a part is missing, which the commit itself will say."""
    work = context.work(order.facts)
    keys = [part_key(work.slide_id, work.work_key, field.name) for field in order.fields]
    try:
        parts = read_summaries(context.store, keys)
    except FileNotFoundError:
        return None
    return reduce(FieldCounts.plus, (part.summary.counts for part in parts), FieldCounts())


def _reasons(order: SlideCommit, found: FieldCounts | None) -> tuple[str, ...]:
    """What the status should say besides its figures."""
    if not order.fields:
        return (f"Nothing to analyse: {order.figures}.",)
    area_px = 0 if found is None else found.excluded_px.get("unreadable", 0)
    if not area_px:
        return ()
    area_mm2 = area_px * order.facts.grid.target_mpp**2 * 1e-6
    return (f"{area_mm2:.3f} mm2 could not be read (damaged tiles) and count as excluded.",)


class CommitQueue:
    """Runs commits as Ray tasks, no more than `num_at_once`."""

    def __init__(self, context: RunContext, *, num_at_once: int) -> None:
        import ray

        # Booked for no CPU, since the stages hold all of them; that is why they are counted here.
        self._task: Any = ray.remote(num_cpus=0, max_retries=2)(commit)
        self._context: Any = ray.put(context)
        self._num_at_once = num_at_once
        self._waiting: deque[SlideCommit] = deque()
        self._running: dict[Any, SlideCommit] = {}

    def add(self, order: SlideCommit) -> None:
        """Commit this slide when there is room."""
        self._waiting.append(order)
        self._start()

    def is_busy(self) -> bool:
        """Whether any commit is waiting or running."""
        return bool(self._waiting or self._running)

    def poll(self) -> list[CommitResult]:
        """Results that have come since the last call."""
        import ray

        if not self._running:
            return []
        ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        results = [self._result(reference) for reference in ready]
        self._start()
        return results

    def _result(self, reference: Any) -> CommitResult:
        import ray

        order = self._running.pop(reference)
        try:
            return ray.get(reference)
        except Exception as error:  # noqa: BLE001 - the task's worker died more often than Ray retries
            reason = f"Committing the slide failed: {type(error).__name__}. Run the same command again."
            return CommitResult(order.source.slide_id, None, reason=reason)

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._num_at_once:
            order = self._waiting.popleft()
            self._running[self._task.remote(order, self._context)] = order
