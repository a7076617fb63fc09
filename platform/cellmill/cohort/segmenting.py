"""Segmenting, the stage that does the work: reads, predicts, decodes, measures and writes the fields of a strip.

The network is never left waiting where that can be helped: pixels of the next fields are read ahead, and where there
are threads for it a field is decoded, measured and written while the next one is predicted. Dense maps stay inside.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from cellmill.cohort.attempts import TooManyAttemptsError, counting_attempt
from cellmill.cohort.context import RunContext
from cellmill.cohort.field import FieldMaps, FieldPixels, finish_field, predict_field
from cellmill.cohort.granted import pin_threads
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.plan import FieldTask
from cellmill.cohort.read_ahead import FieldReaders, ReadField
from cellmill.cohort.rows import Row, RowKind
from cellmill.cohort.sources import CohortModel
from cellmill.cohort.stages import Stage, failed
from cellmill.cohort.strips import StripTask
from cellmill.cohort.tile_memory import TileMemory
from cellmill.store.commit import finished_fields
from cellmill.store.layout import part_key
from cellmill.store.merge import read_summaries
from cellmill.store.work import PartSummary, write_part

__all__ = ["SegmentStrip"]


@dataclass(frozen=True)
class _Predicted:
    """A field between the network and the decoder."""

    task: FieldTask
    seen: FieldPixels
    maps: FieldMaps
    seconds: float
    attempt: ExitStack
    """Ends the attempt that was written down for the field."""


class SegmentStrip(Stage):
    """Segments one strip a message."""

    handles: RowKind = "strip"

    def __init__(
        self, context: RunContext, model: Callable[[], CohortModel], *, num_readers: int = 1, num_finishers: int = 0
    ) -> None:
        """Make a worker ready.

        Args:
            context: settings of the run.
            model: gives the model.
            num_readers: fields read ahead at the same time, each by a process of its own.
            num_finishers: threads that finish fields beside the network; 0 finishes each before the next.
        """
        pin_threads(context.threads_per_worker)
        self._context = context
        self._source = model().open(
            device=context.device, batch_size=context.batch_size, num_threads=context.threads_per_worker
        )
        self._readers = FieldReaders(context, num_readers=num_readers)
        self._num_finishers = num_finishers
        self._finishers: Executor = ThreadPoolExecutor(num_finishers) if num_finishers else _AtOnce()

    def handle(self, row: Row, source: SlideSource) -> Iterator[Row]:
        """A strip in; one message a field out, in the strip's order.

        Ray repeats the whole strip when a worker is lost; fields that have a part by then are told from it. A slide of
        which one field was tried too often is set aside whatever its other fields give, so those are not begun: each
        could end as many workers again.
        """
        strip, context = StripTask.from_json(row.document["strip"]), self._context
        work = context.work(strip.facts)
        finished = finished_fields(context.store, work)
        start, num_fields = 0, len(strip.fields)
        while start < num_fields:
            name = strip.fields[start].name
            if name in finished:
                (part,) = read_summaries(context.store, [part_key(work.slide_id, work.work_key, name)])
                yield _told(part.summary, strip)
                start += 1
                continue
            stop = next((n for n in range(start, num_fields) if strip.fields[n].name in finished), num_fields)
            try:
                for message in self._walk(strip.part(start, stop), source):
                    start += 1
                    yield message
            except TooManyAttemptsError as error:
                yield from (failed(error, source, field_name=field.name) for field in strip.fields[start:])
                return

    def close(self) -> None:
        """End threads and reader processes."""
        self._finishers.shutdown()
        self._readers.close()

    def _walk(self, strip: StripTask, source: SlideSource) -> Iterator[Row]:
        """Fields one after another, up to one that cannot be predicted: its neighbours then need its tiles anew.

        Raises:
            TooManyAttemptsError: in place of the message of a field that was tried too often.
        """
        memory = TileMemory(strip, self._context.geometry)
        under_way: deque[Future[Row]] = deque()
        with closing(self._readers.read(strip, source, memory)) as reads:
            for number, read in enumerate(reads):
                try:
                    finishing = self._predict(strip, number, read.result(), source, memory)
                except Exception as error:
                    yield from (future.result() for future in under_way)
                    if isinstance(error, TooManyAttemptsError):
                        raise
                    yield failed(error, source, field_name=strip.fields[number].name)
                    return
                under_way.append(finishing)
                while len(under_way) > self._num_finishers:
                    yield under_way.popleft().result()
        yield from (future.result() for future in under_way)

    def _predict(
        self, strip: StripTask, number: int, read: ReadField, source: SlideSource, memory: TileMemory
    ) -> Future[Row]:
        """Predict a field and have it finished."""
        context, task, started = self._context, strip.task(number, self._context.geometry), time.monotonic()
        with ExitStack() as attempt:
            attempt.enter_context(
                counting_attempt(
                    store=context.store,
                    slide_id=source.slide_id,
                    field_name=task.field.name,
                    slide_fingerprint=task.facts.slide_fingerprint,
                    max_attempts=context.max_attempts,
                )
            )
            seen = memory.completed(number, read.seen)
            maps, kept = predict_field(
                task,
                seen,
                source=self._source,
                geometry=context.geometry,
                ontology=context.ontology,
                batch_size=context.batch_size,
                known=memory.maps(number),
                keep=lambda index: memory.part_for_later(number, *index),
            )
            memory.keep(number, seen, kept)
            seconds = read.seconds + time.monotonic() - started
            predicted = _Predicted(task, seen, maps, seconds, attempt.pop_all())
            return self._finishers.submit(self._finish, predicted, source)

    def _finish(self, field: _Predicted, source: SlideSource) -> Row:
        """Decode, measure and write a field; never raises."""
        context, task, started = self._context, field.task, time.monotonic()
        try:
            with field.attempt:
                result = finish_field(
                    task,
                    field.seen,
                    field.maps,
                    decoder=context.decoder,
                    geometry=context.geometry,
                    ontology=context.ontology,
                )
                summary = write_part(
                    context.store,
                    context.work(task.facts),
                    field=task.field,
                    cells=result.cells,
                    core_mask=result.core_mask,
                    counts=replace(result.counts, seconds=field.seconds + time.monotonic() - started),
                )
            return _told(summary, task)
        except Exception as error:  # noqa: BLE001 - one field's end, not the strip's
            return failed(error, source, field_name=task.field.name)


def _told(summary: PartSummary, work: StripTask | FieldTask) -> Row:
    document = {
        "field": summary.field_name,
        "num_cells": summary.num_cells,
        "analysed_mm2": summary.counts.analysed_px * work.facts.grid.target_mpp**2 * 1e-6,
    }
    return Row(kind="field", slide_id=work.facts.slide_id, document=document)


class _AtOnce(Executor):
    """Does everything where it is asked to."""

    def submit(self, fn: Callable[..., Row], /, *args: object, **kwargs: object) -> Future[Row]:  # type: ignore[override]
        future: Future[Row] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
