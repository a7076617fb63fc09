"""Whether one slide of a cell set is whole.

In: a slide's name and what is known of the cohort. Out: findings. First what objects there are and whether each is byte
for byte what was committed; only what is goes on to be read, so that damaged bytes meet no decoder.
"""

import hashlib
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from cellmill.store.digests import parse_digests
from cellmill.store.errors import OutputError
from cellmill.store.identity import CellSetIdentity
from cellmill.store.layout import cells_key, digests_key, mask_prefix, rescored_key, status_key, work_prefix
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import parse_status
from cellmill.verify.findings import FindingKind, Findings
from cellmill.verify.listing import keys_below
from cellmill.verify.mask import check_mask
from cellmill.verify.sealed import read_sealed
from cellmill.verify.table import TableFacts, check_table, grid_of
from cellmill_schemas.slides import SlideStatus

__all__ = ["SlideObjects", "check_slide", "is_consistent_area"]

_DONE = ("done", "done_empty")
_PIECE_BYTES = 8 << 20
_AREA_SLACK_MM2 = 1e-5
"""Areas are rounded to 1e-6 mm2 each."""


@dataclass(frozen=True)
class SlideObjects:
    """Which objects of a slide were seen when the cohort's folders were listed."""

    slide_id: str
    has_status: bool
    has_digests: bool
    has_table: bool
    has_mask: bool
    has_work: bool
    has_scores: bool = False
    """Of a second opinion."""


class _SlideCheck:
    """One slide on its way through the checks."""

    def __init__(
        self, store: ObjectStore, seen: SlideObjects, identity: CellSetIdentity | None, findings: Findings
    ) -> None:
        self.store, self.seen, self.identity, self.findings = store, seen, identity, findings
        self.slide_id = seen.slide_id

    def add(self, kind: FindingKind, where: str, says: str) -> None:
        self.findings.add(kind, where, says, slide_id=self.slide_id)

    # ---------------------------------------------------------------------------------------------- the status

    def status(self) -> SlideStatus | None:
        """The slide's status, as far as it can be read."""
        key = status_key(self.slide_id)
        if not self.seen.has_status:
            if self.seen.has_work:
                self.add("unfinished", work_prefix(self.slide_id), "the slide is under way, or its run was cut short")
            else:
                self.add("missing", key, "the slide has outputs and no status")
            return None
        data, _ = read_sealed(self.store, key, self.findings, slide_id=self.slide_id)
        try:
            status = parse_status(data)
        except (ValueError, TypeError):
            return None
        if status.slide_id != self.slide_id:
            self.add("contradiction", key, f"it is the status of {status.slide_id}")
            return None
        return status

    def unfinished(self, status: SlideStatus) -> None:
        """A slide without outputs: failed or forgotten."""
        for key, there in (
            (cells_key(self.slide_id), self.seen.has_table),
            (digests_key(self.slide_id), self.seen.has_digests),
            (f"{mask_prefix(self.slide_id)}/zarr.json", self._has_mask_root()),
        ):
            if there:
                self.add("stray", key, f"the slide is {status.outcome} and should not have it")
        if self.seen.has_mask and not (self.seen.has_work and status.outcome == "failed"):
            self.add("stray", mask_prefix(self.slide_id), f"parts of the mask of a slide that is {status.outcome}")
        if status.outcome == "forgotten":
            for key in self._work():
                self.add("stray", key, "a leftover of a slide that was removed on request")
            if self.store.exists(rescored_key(self.slide_id)):
                self.add("stray", rescored_key(self.slide_id), "scores of a slide that was removed on request")

    def _has_mask_root(self) -> bool:
        return self.seen.has_mask and self.store.exists(f"{mask_prefix(self.slide_id)}/zarr.json")

    def _work(self) -> list[str]:
        return keys_below(self.store, work_prefix(self.slide_id)) if self.seen.has_work else []

    def figures(self, status: SlideStatus) -> None:
        """What a done slide's status says by itself."""
        key = status_key(self.slide_id)
        if not is_consistent_area(status):
            self.add(
                "contradiction", key, "the areas analysed and excluded do not add up to the slide: fields are missing"
            )
        if sum(status.num_cells_by_type.values()) != status.num_cells:
            self.add("contradiction", key, "its cells by type do not add up to num_cells")
        if self.identity is None:
            return
        for name in ("model_digest", "config_digest"):
            if getattr(status, name) != getattr(self.identity, name):
                self.add("contradiction", key, f"its {name} is not the cell set's")

    # --------------------------------------------------------------------------------------------- the bytes

    def intact_keys(self, status: SlideStatus) -> set[str]:
        """Keys of the done slide's objects that are byte for byte what was committed."""
        for key in self._work():
            self.add("stray", key, "a leftover of work on a slide that is done")
        listed = self._listed(status)
        there = set(keys_below(self.store, mask_prefix(self.slide_id))) if self.seen.has_mask else set[str]()
        there |= {cells_key(self.slide_id)} if self.seen.has_table else set()
        if listed is None:
            return set()
        for key in sorted(there - listed.keys()):
            self.add("stray", key, "the slide's digests do not list it")
        for key in sorted(listed.keys() - there):
            self.add("missing", key, "it was committed and is not there")
        return {key for key in sorted(listed.keys() & there) if self._is_intact(key, listed[key])}

    def _listed(self, status: SlideStatus) -> dict[str, str] | None:
        """SHA-256 by key as committed; None where that is not known."""
        key = digests_key(self.slide_id)
        if not self.seen.has_digests:
            self.add("missing", key, "the list of the slide's digests is not there: its bytes cannot be checked")
            return None
        data = self.store.get(key)
        self.findings.count(objects=1, num_bytes=len(data))
        if hashlib.sha256(data).hexdigest() != status.objects_sha256:
            self.add("damaged", key, "its SHA-256 is not the one in the slide's status")
            return None
        return parse_digests(data)

    def _is_intact(self, key: str, sha256: str) -> bool:
        try:
            with self.store.open_random(key) as file:
                digest, size = hashlib.sha256(), 0
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
                    size += len(piece)
        except FileNotFoundError:
            self.add("missing", key, "it was committed and is not there")
            return False
        except OutputError as error:
            self.add("damaged", key, f"it cannot be read: {error}")
            return False
        self.findings.count(objects=1, num_bytes=size)
        if digest.hexdigest() != sha256:
            self.add("damaged", key, f"its {size} bytes are not those that were committed")
        return digest.hexdigest() == sha256

    # ------------------------------------------------------------------------------------------- the content

    def content(self, status: SlideStatus, intact: set[str]) -> None:
        """What table and mask say, as far as their bytes are right."""
        grid = grid_of(status)
        if grid is None:
            self.add("contradiction", status_key(self.slide_id), "it does not tell the slide's sizes and scale")
            return
        table: TableFacts | None = None
        key = cells_key(self.slide_id)
        if key in intact:
            ontology = self.identity.ontology if self.identity is not None else None
            with _seekable(self.store, key) as file:
                say = partial(self.add, "contradiction", key)
                table = check_table(file, status=status, grid=grid, ontology=ontology, say=say)
            self.findings.count(cells=0 if table is None else table.mask_ids.size)
        keys = [key for key in sorted(intact) if key.startswith(f"{mask_prefix(self.slide_id)}/")]
        if len(keys) == len(intact) - (cells_key(self.slide_id) in intact) and keys:
            say_of = partial(self.add, "contradiction")
            check_mask(self.store, status=status, grid=grid, keys=keys, table=table, say=say_of)


def check_slide(
    store: ObjectStore,
    seen: SlideObjects,
    *,
    identity: CellSetIdentity | None,
    with_content: bool,
    findings: Findings,
) -> SlideStatus | None:
    """Check one slide; returns its status, where that can be read.

    Args:
        store: the cell set's storage.
        seen: which of its objects there are.
        identity: the cell set's; None where `cellset.json` cannot be read.
        with_content: whether to look into table and mask; otherwise bytes are compared.
        findings: takes what is wrong.
    """
    check = _SlideCheck(store, seen, identity, findings)
    status = check.status()
    if status is None:
        return None
    if status.outcome not in _DONE:
        check.unfinished(status)
        return status
    check.figures(status)
    num_before = len(findings.found)
    intact = check.intact_keys(status)
    bytes_are_right = len(findings.found) == num_before
    if with_content and (bytes_are_right or cells_key(seen.slide_id) in intact):
        check.content(status, intact if bytes_are_right else {cells_key(seen.slide_id)})
    return status


def is_consistent_area(status: SlideStatus) -> bool:
    """Whether every part of a done slide was analysed or excluded for a reason."""
    excluded = status.excluded
    parts = (
        excluded.outside_region_mm2,
        excluded.background_mm2,
        excluded.unreadable_mm2,
        excluded.pen_mm2,
        excluded.blur_mm2,
    )
    return abs(status.analysed_mm2 + sum(parts) - status.slide_mm2) <= _AREA_SLACK_MM2


@contextmanager
def _seekable(store: ObjectStore, key: str) -> Generator[Any]:
    """The object for random reads; one in a bucket is fetched whole once, since all of it will be read."""
    with store.open_random(key) as source:
        if store.is_local:
            yield source
            return
        with tempfile.TemporaryFile() as file:
            _copy(source, file)
            yield file


def _copy(source: Any, target: IO[bytes]) -> None:
    while piece := source.read(_PIECE_BYTES):
        target.write(piece)
    target.seek(0)
