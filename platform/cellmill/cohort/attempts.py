"""Trying again, and knowing when to stop: work that may kill a process, counted across retries and drivers.

Two kinds of trouble differ. A reader's child process that dies raises here, so the failure is written down after it
happened. A worker that dies takes this code with it (and Ray starts the same work again, for ever), so an attempt is
written down before it begins.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from cellmill.slides.errors import ReaderProcessError
from cellmill.store.attempts import SLIDE_SCOPE, Attempt, begin_attempt, end_attempt, list_attempts
from cellmill.store.objects import ObjectStore

__all__ = ["TooManyAttemptsError", "counting_attempt", "outliving_reader_crashes"]

T = TypeVar("T")


class TooManyAttemptsError(Exception):
    """The work was tried as often as it may be."""


def outliving_reader_crashes(
    work: Callable[[], T],
    *,
    store: ObjectStore,
    slide_id: str,
    slide_fingerprint: str,
    max_attempts: int,
    has_looked: bool = False,
) -> T:
    """Run `work`, again when it ends the slide's reader process, up to `max_attempts` such ends of the slide in all.

    Args:
        work: what to do.
        store: where attempts are remembered.
        slide_id: the slide.
        slide_fingerprint: of its file.
        max_attempts: ends of the reader after which the slide is left alone.
        has_looked: earlier attempts were counted for this piece of work already; they are counted again only after the
            reader ended. In a bucket a look is three listings, the dearest requests there are.

    Raises:
        TooManyAttemptsError: with the count and the last failure.
    """
    while True:
        attempts: list[Attempt] = []
        if not has_looked:
            attempts = list_attempts(store, slide_id, scope=SLIDE_SCOPE, slide_fingerprint=slide_fingerprint)
        if len(attempts) >= max_attempts:
            raise TooManyAttemptsError(
                f"The slide's reader failed {len(attempts)} times, last: {attempts[-1].outcome} "
                "Check or re-export the file; a higher --max-attempts tries again."
            )
        try:
            return work()
        except ReaderProcessError as error:
            attempt = begin_attempt(store, slide_id, scope=SLIDE_SCOPE, slide_fingerprint=slide_fingerprint)
            end_attempt(store, attempt, outcome=str(error))
            has_looked = False


@contextmanager
def counting_attempt(
    *, store: ObjectStore, slide_id: str, field_name: str, slide_fingerprint: str, max_attempts: int
) -> Generator[None]:
    """Around work on a field that may take this process down.

    Raises:
        TooManyAttemptsError: when it did so `max_attempts` times.
    """
    attempts = list_attempts(store, slide_id, scope=field_name, slide_fingerprint=slide_fingerprint)
    num_killed = sum(attempt.outcome == "" for attempt in attempts)
    if num_killed >= max_attempts:
        raise TooManyAttemptsError(
            f"Field {field_name} ended its worker's process {num_killed} times (out of memory, as a rule). "
            "A smaller --field-px needs less memory; a higher --max-attempts tries again."
        )
    attempt = begin_attempt(
        store, slide_id, scope=field_name, slide_fingerprint=slide_fingerprint, number=len(attempts)
    )
    try:
        yield
    finally:
        end_attempt(store, attempt, outcome="ended")
