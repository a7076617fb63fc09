"""What a run needs of whatever executes it, and the simplest one: everything here, one thing after another.

Ray (`pipeline`) is the engine of every real run. The serial engine calls the same stages in this process; it is Ray's
twin in tests and the way to step through a run with a debugger.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Protocol

import pyarrow as pa

from cellmill.cohort.committing import CommitResult, SlideCommit, commit
from cellmill.cohort.context import RunContext
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.planning import PlanSlide
from cellmill.cohort.rows import Row
from cellmill.cohort.segmenting import SegmentStrip
from cellmill.cohort.sources import CohortModel
from cellmill.cohort.strips import strips_per_slide

__all__ = ["Commits", "Engine", "EngineError", "EngineFactory", "serial_engine", "slide_rows"]


class EngineError(Exception):
    """The engine itself cannot go on; what is finished is kept."""


class Commits(Protocol):
    """Commits under way."""

    def add(self, order: SlideCommit) -> None:
        """Commit this slide when there is room."""
        ...

    def is_busy(self) -> bool:
        """Whether any commit is waiting, running or not yet polled."""
        ...

    def poll(self) -> list[CommitResult]:
        """Results that have come since the last call."""
        ...


class Engine(Protocol):
    """Executes the stages and commits of one run."""

    commits: Commits

    def stream(self, sources: Sequence[SlideSource]) -> Iterator[Row]:
        """Run the stages over `sources`; yields messages as they come, in any order."""
        ...


EngineFactory = Callable[[RunContext, CohortModel, int], AbstractContextManager[Engine]]
"""Starts an engine for a context, a model and a number of workers (0: all there are), and ends it."""


def slide_rows(sources: Iterable[SlideSource]) -> list[pa.Table]:
    """The first messages: slides to be planned."""
    return [Row(kind="slide", slide_id=s.slide_id, document={"source": asdict(s)}).to_table() for s in sources]


@contextmanager
def serial_engine(
    context: RunContext, model: CohortModel, num_workers: int, *, num_readers: int = 1, num_finishers: int = 0
) -> Generator[Engine]:
    """Run everything in this process; `num_workers` says only into how many strips a lone slide is cut."""
    segment = SegmentStrip(context, lambda: model, num_readers=num_readers, num_finishers=num_finishers)
    engine = _SerialEngine(context, segment, num_workers=num_workers)
    try:
        yield engine
    finally:
        engine.close()


class _SerialEngine:
    def __init__(self, context: RunContext, segment: SegmentStrip, *, num_workers: int) -> None:
        self.commits: Commits = _SerialCommits(context)
        self._context = context
        self._segment = segment
        self._num_workers = max(1, num_workers)

    def stream(self, sources: Sequence[SlideSource]) -> Iterator[Row]:
        plan = PlanSlide(
            self._context, num_strips=strips_per_slide(num_slides=len(sources), num_workers=self._num_workers)
        )
        for slide in slide_rows(sources):
            for planned in plan(slide):
                yield from map(Row.of_table, self._segment(planned))

    def close(self) -> None:
        self._segment.close()


class _SerialCommits:
    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._results: list[CommitResult] = []

    def add(self, order: SlideCommit) -> None:
        self._results.append(commit(order, self._context))

    def is_busy(self) -> bool:
        return bool(self._results)

    def poll(self) -> list[CommitResult]:
        results, self._results = self._results, []
        return results
