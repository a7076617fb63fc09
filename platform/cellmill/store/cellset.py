"""The cell set as a driver sees it: open it, take a slide, write its parts, commit it, or take it out again.

In: an output URL and the identity of the run. Out: the layout of `cellmill.store.layout`. A driver does, a slide at a
time: `claim`, `begin_slide`, `finished_fields`, `write_part` for each of the others (workers do, through a `CellSet` of
their own), `commit` or `write_status`, `release`.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from cellmill.grid import FieldSpec
from cellmill.store.attempts import Attempt, begin_attempt, end_attempt, list_attempts
from cellmill.store.claims import ClaimBook
from cellmill.store.commit import commit_slide, finished_fields
from cellmill.store.discard import (
    discard_other_work,
    remove_embeddings,
    remove_outputs,
    remove_rescored,
    remove_work,
)
from cellmill.store.errors import SlideChangedError, SlideForgottenError
from cellmill.store.identity import CellSetIdentity, create_or_check
from cellmill.store.layout import WORK_FOLDER, work_prefix
from cellmill.store.objects import ObjectStore
from cellmill.store.shards import LabelPixels, shard_px_of_field
from cellmill.store.statuses import read_status, read_statuses, write_slides_table, write_status
from cellmill.store.work import FieldCounts, PartSummary, SlideFacts, SlideWork, write_part
from cellmill_schemas.slides import SlideOutcome, SlideStatus

__all__ = ["CellSet"]

_DONE: tuple[SlideOutcome, ...] = ("done", "done_empty")


class CellSet:
    """One cell set under one URL. Pickles as its URL: claims stay with the driver that made them."""

    def __init__(self, url: str | Path) -> None:
        self.store = ObjectStore(url)
        self._claims = ClaimBook(self.store)
        self._identity: CellSetIdentity | None = None

    def __reduce__(self) -> tuple[Callable[[str], "CellSet"], tuple[str]]:
        return type(self), (self.store.url,)

    @property
    def url(self) -> str:
        """Absolute URL or path of the root."""
        return self.store.url

    def create_or_open(self, identity: CellSetIdentity) -> "CellSet":
        """Make this place the cell set `identity` describes, or make sure it is; returns the cell set itself.

        Raises:
            CellSetMismatchError: naming each key that differs, with both values.
            OutputError: when the place cannot be written.
        """
        create_or_check(self.store, identity)
        self._identity = identity
        return self

    # ------------------------------------------------------------------------------------- slides, one driver each

    def claim(self, slide_id: str) -> None:
        """Take the slide for this driver; a background heartbeat keeps it until `commit`, `release` or `close`.

        Raises:
            SlideClaimedError: when a live driver has it.
        """
        self._claims.claim(slide_id)

    def release(self, slide_id: str) -> None:
        """Let a claimed slide go; a no-op when it is not held."""
        self._claims.release(slide_id)

    def close(self) -> None:
        """Release all claims and end the heartbeat."""
        self._claims.close()

    def check_unchanged(self, slide_id: str, *, slide_fingerprint: str) -> SlideStatus | None:
        """The slide's status, None while it has none; done slides must still have the file they were made from.

        Raises:
            SlideForgottenError: when the slide was removed on request.
            SlideChangedError: when it is done and its file is another now.
        """
        status = read_status(self.store, slide_id)
        if status is not None:
            self.require_unchanged(status, slide_fingerprint=slide_fingerprint)
        return status

    def require_unchanged(self, status: SlideStatus, *, slide_fingerprint: str) -> None:
        """Make sure that a slide with this status is none that was forgotten or has another file now.

        Raises:
            SlideForgottenError, SlideChangedError: as `check_unchanged`.
        """
        if status.outcome == "forgotten":
            raise SlideForgottenError(
                f"Slide {status.slide_id} was removed from {self.url} on request ({status.finished_at}) and is not "
                "done again. Leave it out of --slides; if the removal was a mistake, use another --out."
            )
        if status.outcome in _DONE and status.slide_fingerprint != slide_fingerprint:
            raise SlideChangedError(
                f"Slide {status.slide_id} is done in {self.url}, but its file has changed since: fingerprint "
                f"{status.slide_fingerprint} then, {slide_fingerprint} now. Restore the file, give the new one another "
                "slide_id, or use another --out."
            )

    def begin_slide(self, facts: SlideFacts, *, field_px: int, device_kind: str) -> SlideWork | None:
        """Make the slide ready for parts; None, and the claim is let go, when it is done already. Needs the claim.

        Parts and mask shards made under other settings, on another kind of device or from another version of the
        file are removed.

        Raises:
            SlideForgottenError, SlideChangedError: as `check_unchanged`.
            ClaimLostError: when the claim is not held.
        """
        shard_px_of_field(field_px)  # raises for a field that is not whole chunks
        identity = self._identity
        assert identity is not None, "create_or_open comes first"
        self._claims.check(facts.slide_id)
        status = self.check_unchanged(facts.slide_id, slide_fingerprint=facts.slide_fingerprint)
        if status is not None and status.outcome in _DONE:
            self.end_slide(facts.slide_id)  # a commit killed between its last two steps leaves it
            return None
        work = SlideWork(
            facts=facts,
            field_px=field_px,
            device_kind=device_kind,
            model_digest=identity.model_digest,
            config_digest=identity.config_digest,
            ontology=identity.ontology,
        )
        discard_other_work(self.store, work)
        return work

    def finished_fields(self, work: SlideWork) -> set[str]:
        """Names of the fields that have a part."""
        return finished_fields(self.store, work)

    def write_part(
        self, work: SlideWork, *, field: FieldSpec, cells: pa.Table, core_mask: LabelPixels, counts: FieldCounts
    ) -> PartSummary:
        """Write a finished field, see `cellmill.store.work.write_part`. Workers call it; no claim is needed."""
        return write_part(self.store, work, field=field, cells=cells, core_mask=core_mask, counts=counts)

    def commit(
        self,
        work: SlideWork,
        *,
        planned: Iterable[FieldSpec],
        elsewhere: FieldCounts,
        reasons: tuple[str, ...] = (),
        num_attempts: int = 1,
    ) -> SlideStatus:
        """Commit the slide, see `cellmill.store.commit.commit_slide`, then remove its work folder and the claim."""
        self._claims.check(work.slide_id)
        status = commit_slide(
            self.store, work, planned=planned, elsewhere=elsewhere, reasons=reasons, num_attempts=num_attempts
        )
        self.end_slide(work.slide_id)
        return status

    def end_slide(self, slide_id: str) -> None:
        """Remove the work folder of a slide that has its final status, and this driver's claim with it."""
        remove_work(self.store, slide_id)
        self._claims.drop(slide_id)
        self.store.delete_tree(work_prefix(slide_id))

    def slides_with_work(self) -> set[str]:
        """Slides of which anything is kept that is there only while they are under way."""
        return set(self.store.list_names(WORK_FOLDER))

    # ------------------------------------------------------------------------------------------------- statuses

    def status(self, slide_id: str) -> SlideStatus | None:
        """The slide's status; None while it has none."""
        return read_status(self.store, slide_id)

    def statuses(self, slide_ids: Iterable[str] | None = None) -> list[SlideStatus]:
        """All statuses there are, or those of some slides, by slide id."""
        return read_statuses(self.store, slide_ids)

    def write_status(self, status: SlideStatus) -> None:
        """Record how a slide ended that is not committed: `failed`, with its reasons. Parts and attempts are kept."""
        assert status.outcome == "failed", status.outcome
        write_status(self.store, status)

    def refresh_slides_table(self) -> None:
        """Make `slides.parquet` again from the statuses there are."""
        write_slides_table(self.store)

    # ------------------------------------------------------------------------------------------------- attempts

    def begin_attempt(self, slide_id: str, *, scope: str, slide_fingerprint: str) -> Attempt:
        """Record that something starts which may kill this process; `scope` is 'slide' or a field's name."""
        return begin_attempt(self.store, slide_id, scope=scope, slide_fingerprint=slide_fingerprint)

    def end_attempt(self, attempt: Attempt, *, outcome: str) -> None:
        """Record how it ended, 'ok' or in words."""
        end_attempt(self.store, attempt, outcome=outcome)

    def attempts(self, slide_id: str, *, scope: str, slide_fingerprint: str) -> list[Attempt]:
        """Attempts so far at this version of the slide, oldest first; an empty outcome means killed or running."""
        return list_attempts(self.store, slide_id, scope=scope, slide_fingerprint=slide_fingerprint)

    # ----------------------------------------------------------------------------------------------- taking out

    def forget(self, slide_id: str) -> SlideStatus:
        """Remove everything of a slide and leave a tombstone, so that it is not done again.

        The tombstone comes first: from then on no reader sees the slide, and a removal that was cut short is finished
        by asking again.

        Raises:
            SlideClaimedError: when a driver is working on the slide.
        """
        self.claim(slide_id)
        status = SlideStatus(
            slide_id=slide_id,
            outcome="forgotten",
            reasons=("Removed on request.",),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        try:
            write_status(self.store, status)
            remove_outputs(self.store, slide_id)
            remove_rescored(self.store, slide_id)
            remove_embeddings(self.store, slide_id)
            for folder, suffix in (
                ("cells", "parquet"),
                ("rescored", "parquet"),
                ("embeddings", "parquet"),
                ("embeddings", "json"),
                ("retyped", "parquet"),
                ("slides", "sha256"),
            ):
                self.store.sweep(folder, name=f"{slide_id}.{suffix}")
            self.refresh_slides_table()
            self.end_slide(slide_id)
        finally:
            self.release(slide_id)
        return status
