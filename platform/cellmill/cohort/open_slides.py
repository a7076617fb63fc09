"""The slides that one thread has open: the last few stay so, since work comes slide by slide."""

from collections import OrderedDict
from contextlib import ExitStack

from cellmill.cohort.context import RunContext
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.stages import open_source
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.staging.cache import CacheFullError, StagedSlide

__all__ = ["OpenSlides"]


class OpenSlides:
    """Opens slides, from this node's slide cache where they are remote. For one thread."""

    def __init__(self, context: RunContext, *, most: int) -> None:
        """Keep up to `most` slides open."""
        self._context = context
        self._most = most
        self._open: OrderedDict[str, tuple[IsolatedSlide, ExitStack]] = OrderedDict()

    def __contains__(self, source: SlideSource) -> bool:
        return source.url in self._open

    def get(self, source: SlideSource) -> IsolatedSlide:
        """The slide, opened now or before.

        Raises:
            SlideError: when it cannot be had or opened.
        """
        if source.url not in self._open:
            self._close_all_but(self._most - 1)
            self._open[source.url] = self._opened(source)
        self._open.move_to_end(source.url)
        return self._open[source.url][0]

    def close(self, source: SlideSource) -> None:
        """Close one slide, if it is open."""
        if source.url in self._open:
            self._open.pop(source.url)[1].close()

    def close_all(self) -> None:
        """Close every slide: ends their child processes, gives their leases back."""
        self._close_all_but(0)

    def _opened(self, source: SlideSource) -> tuple[IsolatedSlide, ExitStack]:
        with ExitStack() as stack:
            copy = stack.enter_context(self._staged(source))
            slide = stack.enter_context(open_source(source, str(copy.path), self._context))
            return slide, stack.pop_all()

    def _staged(self, source: SlideSource) -> StagedSlide:
        try:
            return self._context.slide_cache.stage(source.url, wait=False)
        except CacheFullError:
            # Threads that wait for room while they hold a slide would wait for each other.
            self.close_all()
            return self._context.slide_cache.stage(source.url)

    def _close_all_but(self, number: int) -> None:
        while len(self._open) > number:
            _, (_, stack) = self._open.popitem(last=False)
            stack.close()
