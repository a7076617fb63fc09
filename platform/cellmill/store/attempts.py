"""Attempts at slides and fields, remembered across drivers.

In: 'I am about to do something that may kill me'. Out: one small object an attempt, created before the work starts and
marked ended after it, so that a process that was killed still counts. One object is one attempt.
"""

import json
from dataclasses import asdict, dataclass, replace

from cellmill.store.layout import attempts_prefix, check_slide_id
from cellmill.store.objects import ObjectStore

__all__ = ["SLIDE_SCOPE", "Attempt", "begin_attempt", "end_attempt", "list_attempts"]

SLIDE_SCOPE = "slide"
"""Scope of attempts at the slide as a whole; a field's scope is its name."""


@dataclass(frozen=True)
class Attempt:
    """One attempt. `outcome` is empty while it runs, and stays so when its process was killed."""

    slide_id: str
    scope: str
    number: int
    slide_fingerprint: str
    """Attempts at another version of the slide's file do not count against this one."""
    outcome: str = ""


def begin_attempt(
    store: ObjectStore, slide_id: str, *, scope: str, slide_fingerprint: str, number: int | None = None
) -> Attempt:
    """Record that an attempt starts. Call before the dangerous work.

    Args:
        store: the cell set's storage.
        slide_id: the slide.
        scope: `SLIDE_SCOPE` or a field's name.
        slide_fingerprint: of the slide's file.
        number: the first that may be free, where the caller has just listed the attempts.
    """
    if number is None:
        number = len(store.list_names(_prefix(slide_id, scope)))
    while True:
        attempt = Attempt(slide_id=slide_id, scope=scope, number=number, slide_fingerprint=slide_fingerprint)
        if store.create(_key(attempt), _encode(attempt)):
            return attempt
        number += 1


def end_attempt(store: ObjectStore, attempt: Attempt, *, outcome: str) -> None:
    """Record how an attempt ended, in words: 'ok' or what went wrong."""
    store.put(_key(attempt), _encode(replace(attempt, outcome=outcome or "ok")))


def list_attempts(store: ObjectStore, slide_id: str, *, scope: str, slide_fingerprint: str) -> list[Attempt]:
    """Attempts so far at this version of the slide, oldest first."""
    found = store.get_many(store.list_keys(_prefix(slide_id, scope)))
    attempts = [Attempt(**json.loads(data)) for _, data in sorted(found.items())]
    return [attempt for attempt in attempts if attempt.slide_fingerprint == slide_fingerprint]


def _prefix(slide_id: str, scope: str) -> str:
    return f"{attempts_prefix(slide_id)}/{check_slide_id(scope)}"


def _key(attempt: Attempt) -> str:
    return f"{_prefix(attempt.slide_id, attempt.scope)}/{attempt.number:06d}.json"


def _encode(attempt: Attempt) -> bytes:
    return json.dumps(asdict(attempt), indent=2).encode()
