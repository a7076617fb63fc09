"""The stages of a run as Ray calls them: one message in, messages out, never an exception.

    PlanSlide     slide -> planned, then its fields that have no part as strips; or ended; or failed
    SegmentStrip  strip -> field, or failed, for each of its fields

An exception that left a stage would end the whole dataset, so each becomes a `failed` message with its reason. What a
stage does not handle it hands on. The stages themselves are `planning` and `segmenting`; everything they do is in plain
functions next door.
"""

import logging
import traceback
from collections.abc import Iterator

import pyarrow as pa

from cellmill.cohort.attempts import TooManyAttemptsError
from cellmill.cohort.context import RunContext
from cellmill.cohort.manifest import SlideSource, hide_name
from cellmill.cohort.rows import Row, RowKind
from cellmill.slides.errors import SlideError
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.store.errors import ClaimLostError, SlideChangedError, SlideForgottenError, StoreError

__all__ = ["Stage", "failed", "failure_reason", "open_source"]

_logger = logging.getLogger(__name__)

_REFUSALS = (SlideChangedError, SlideForgottenError, ClaimLostError)
"""What leaves the slide's own status as it is."""


class Stage:
    """Handles messages of one kind and turns what goes wrong into a `failed` message."""

    handles: RowKind

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """What becomes of a table of one message."""
        row = Row.of_table(table)
        if row.kind != self.handles:
            yield table
            return
        source = SlideSource(**row.document["source"])
        try:
            for result in self.handle(row, source):
                yield result.to_table()
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            yield failed(error, source).to_table()

    def handle(self, row: Row, source: SlideSource) -> Iterator[Row]:
        """What becomes of one message of the kind `handles`."""
        raise NotImplementedError


def failed(error: Exception, source: SlideSource, *, field_name: str = "") -> Row:
    """The message that a slide, or one of its fields, cannot be done."""
    _logger.error("%s", hide_name("".join(traceback.format_exception(error)), source))
    kind: RowKind = "refused" if isinstance(error, _REFUSALS) else "failed"
    document = {"reason": failure_reason(error, source), "field": field_name}
    return Row(kind=kind, slide_id=source.slide_id, document=document)


def failure_reason(error: Exception, source: SlideSource) -> str:
    """Why a slide could not be done, as a sentence for people, without the file's name where it must not be told."""
    known = isinstance(error, SlideError | StoreError | TooManyAttemptsError)
    text = str(error) if known else f"Unexpected {type(error).__name__}: {error}"
    return hide_name(text, source)


def open_source(source: SlideSource, path: str, context: RunContext) -> IsolatedSlide:
    """A slide on the model grid of this run, decoded in a child process."""
    return IsolatedSlide(
        path,
        target_mpp=context.target_mpp,
        mpp=source.mpp if source.mpp is not None else context.mpp,
        reader=context.reader,
        limits=context.reader_limits,
    )
