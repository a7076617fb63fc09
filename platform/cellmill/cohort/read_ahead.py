"""Reading ahead: the pixels of the next fields are read while the network is at work on this one.

Each reader is a thread of this process with slides open in child processes of its own, which is where decoding takes
place; fields go round the readers and come back in order. One reader keeps up with a network on CPUs; a GPU takes more.
"""

import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill.cohort.attempts import outliving_reader_crashes
from cellmill.cohort.context import RunContext
from cellmill.cohort.field import FieldPixels, read_field
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.open_slides import OpenSlides
from cellmill.cohort.strips import StripTask
from cellmill.cohort.tile_memory import TileMemory
from cellmill.slides.errors import SlideError
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.store.work import SlideFacts

__all__ = ["FieldReaders", "ReadField"]

_MAX_OPEN_SLIDES = 2


@dataclass(frozen=True)
class ReadField:
    """A field that was read, and how long that took."""

    seen: FieldPixels
    seconds: float


class FieldReaders:
    """The readers of one worker."""

    def __init__(self, context: RunContext, *, num_readers: int) -> None:
        self._context = context
        self._readers = [_Reader(context, number) for number in range(num_readers)]

    def read(
        self, strip: StripTask, source: SlideSource, memory: TileMemory
    ) -> Generator[Future[ReadField], None, None]:
        """The fresh tiles of each field of a strip, in order; as many fields are under way as there are readers.

        Closing the generator calls off what has not begun.
        """
        under_way: deque[Future[ReadField]] = deque()
        try:
            for number in range(len(strip.fields)):
                reader = self._readers[number % len(self._readers)]
                under_way.append(reader.submit(strip, number, source, memory))
                if len(under_way) > len(self._readers):
                    yield under_way.popleft()
            while under_way:
                yield under_way.popleft()
        finally:
            for future in under_way:
                future.cancel()

    def close(self) -> None:
        """End the threads and their child processes."""
        for reader in self._readers:
            reader.close()


class _Reader:
    """One thread, which alone uses its slides. The last slides stay open, since strips come slide by slide."""

    def __init__(self, context: RunContext, number: int) -> None:
        self._context = context
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"cellmill-read-{number}")
        self._slides = OpenSlides(context, most=_MAX_OPEN_SLIDES)

    def submit(self, strip: StripTask, number: int, source: SlideSource, memory: TileMemory) -> Future[ReadField]:
        fresh = memory.fresh(number)
        return self._thread.submit(self._read, strip, number, source, fresh)

    def close(self) -> None:
        self._thread.submit(self._slides.close_all)
        self._thread.shutdown(wait=True, cancel_futures=False)

    def _read(self, strip: StripTask, number: int, source: SlideSource, fresh: npt.NDArray[np.bool_]) -> ReadField:
        started, context = time.monotonic(), self._context
        task = strip.task(number, context.geometry)
        seen = outliving_reader_crashes(
            lambda: read_field(task, self._slide(source, task.facts), geometry=context.geometry, fresh=fresh),
            store=context.store,
            slide_id=source.slide_id,
            slide_fingerprint=task.facts.slide_fingerprint,
            max_attempts=context.max_attempts,
            has_looked=number > 0,
        )
        return ReadField(seen, time.monotonic() - started)

    def _slide(self, source: SlideSource, facts: SlideFacts) -> IsolatedSlide:
        slide = self._slides.get(source)
        if slide.info.fingerprint == facts.slide_fingerprint:
            return slide
        # The file is another one than when this slide was opened, or than when it was planned.
        self._slides.close(source)
        slide = self._slides.get(source)
        if slide.info.fingerprint != facts.slide_fingerprint:
            raise SlideError("The slide's file changed while the slide was being done. Run the same command again.")
        return slide
