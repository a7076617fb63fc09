"""The driver of a run: claims slides, streams their fields, commits each slide as soon as its fields are all in.

In: a configuration and a model. Out: a `RunReport`, one `SlideStatus` a slide. The driver holds no pixels and no cells,
only which fields of the slides under way are still out.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.context import make_context
from cellmill.cohort.engine import Commits, Engine, EngineFactory
from cellmill.cohort.ledger import Ledger
from cellmill.cohort.listing import require_absolute
from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.cohort.pipeline import ray_engine
from cellmill.cohort.pools import device_of_workers
from cellmill.cohort.progress import Progress
from cellmill.cohort.rows import Row
from cellmill.cohort.session import inside_ray_job
from cellmill.cohort.sources import CohortModel
from cellmill.privacy import read_secret, write_pseudonyms
from cellmill.store.cellset import CellSet
from cellmill_schemas.slides import SlideStatus

__all__ = ["RunReport", "run_cohort"]

SLIDES_AT_ONCE = 256
"""Slides claimed and streamed together: bounds the driver's memory and the claims it keeps alive, and lets two drivers
with one list share it."""

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class RunReport:
    """How a run ended."""

    statuses: tuple[SlideStatus, ...]
    """One a slide of the list, in its order."""
    out: str
    seconds: float

    @property
    def all_done(self) -> bool:
        """Whether every slide is done or done and empty."""
        return all(status.outcome in ("done", "done_empty") for status in self.statuses)


def run_cohort(
    config: SegmentCohortConfig, model: CohortModel, *, progress: Progress, engine: EngineFactory = ray_engine
) -> RunReport:
    """Segment a cohort.

    Args:
        config: the settings.
        model: where dense maps come from.
        progress: what the user sees.
        engine: what executes the stages.

    Raises:
        ValueError: when the settings cannot be met, before anything is written.
        StoreError: when the output belongs to another model or configuration, or cannot be written at all.
    """
    if inside_ray_job():
        require_absolute("--out", config.out)
        for text in config.slides:
            require_absolute("--slides", text)
    secret = read_secret(config.pseudonymize)
    sources = list_sources(config.slides, secret=secret)[: config.max_slides]
    if config.pseudonym_map:
        names = [(source.slide_id, source.url) for source in sources]
        write_pseudonyms(Path(config.pseudonym_map), names, out=config.out)
    context = make_context(config, model, device=device_of_workers(config.device), secret=secret)
    cells = CellSet(context.store.url).create_or_open(context.identity)
    started = time.monotonic()
    ledger = Ledger(sources, cells, context, progress)
    try:
        open_sources = ledger.settle_without_work()
        if open_sources:
            ready = model.prepared(device=context.device, batch_size=context.batch_size)
            with engine(context, ready, config.num_workers) as running:
                _work_through(open_sources, running, ledger, max_rounds=context.max_attempts)
    finally:
        ledger.close()
        cells.close()
        progress.close()
    return RunReport(statuses=ledger.statuses(), out=context.store.url, seconds=time.monotonic() - started)


def _work_through(sources: Sequence[SlideSource], engine: Engine, ledger: Ledger, *, max_rounds: int) -> None:
    for start in range(0, len(sources), SLIDES_AT_ONCE):
        wanted = ledger.claim(sources[start : start + SLIDES_AT_ONCE])
        # A commit that finds a field missing or at odds with its neighbours sends the slide round again.
        for _ in range(max_rounds):
            if wanted:
                _run_once(engine.stream(wanted), ledger, engine.commits)
            wanted = ledger.take_redo()
        ledger.give_up(wanted)


def _run_once(messages: Iterator[Row], ledger: Ledger, commits: Commits) -> None:
    """Act on messages until the stream and the commits it leads to are over."""
    inbox = _Inbox(messages)
    while not inbox.is_over() or commits.is_busy():
        for row in inbox.take():
            ready = ledger.receive(row)
            if ready is not None:
                commits.add(ready)
        for done in commits.poll():
            ledger.receive_commit(done)
        ledger.show()


class _Inbox:
    """Messages collected by a thread, so that commits, claims and progress go on while the stream is quiet."""

    def __init__(self, messages: Iterator[Row]) -> None:
        self._queue: queue.Queue[Row | BaseException | None] = queue.Queue()
        self._over = False
        threading.Thread(target=self._collect, args=(messages,), daemon=True, name="cellmill-messages").start()

    def is_over(self) -> bool:
        return self._over

    def take(self) -> list[Row]:
        """What has come since the last call, after waiting a little for the first."""
        rows: list[Row] = []
        timeout: float | None = _POLL_SECONDS
        while not self._over:
            try:
                item = self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait()
            except queue.Empty:
                break
            timeout = None
            if item is None:
                self._over = True
            elif isinstance(item, BaseException):
                raise item
            else:
                rows.append(item)
        else:
            time.sleep(_POLL_SECONDS)
        return rows

    def _collect(self, messages: Iterator[Row]) -> None:
        try:
            for row in messages:
                self._queue.put(row)
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by the driver
            self._queue.put(error)
