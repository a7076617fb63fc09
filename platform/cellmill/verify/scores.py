"""Whether the second opinions of a cell set are what was written, and of the cells that are there.

In: the slides that were seen, and their statuses. Out: findings. Scores come after a slide's commit, so its list of
digests does not hold them; each table carries a seal of its own, and `rescored.parquet` tells which there must be.
"""

import json
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.layout import RESCORED_TABLE_KEY, rescored_key
from cellmill.store.objects import ObjectStore
from cellmill.store.rescored import read_scored_by
from cellmill.verify.findings import Findings
from cellmill.verify.sealed import read_sealed
from cellmill.verify.slide import SlideObjects
from cellmill_schemas.slides import SlideStatus

__all__ = ["check_scores"]


def check_scores(
    store: ObjectStore,
    slides: Iterable[SlideObjects],
    statuses: Iterable[SlideStatus],
    findings: Findings,
    *,
    has_table: bool,
) -> None:
    """Check `rescored/` and `rescored.parquet`.

    Args:
        store: the cell set's storage.
        slides: which objects each slide has.
        statuses: of the slides whose status can be read.
        findings: takes what is wrong.
        has_table: whether `rescored.parquet` was seen.
    """
    status_of = {status.slide_id: status for status in statuses}
    with_scores = {seen.slide_id for seen in slides if seen.has_scores}
    for slide_id in sorted(with_scores):
        status = status_of.get(slide_id)
        _, is_intact = read_sealed(store, rescored_key(slide_id), findings, slide_id=slide_id)
        if is_intact and status and status.outcome == "done":
            _check_binding(store, status, findings)
    if not has_table:
        return
    data, is_intact = read_sealed(store, RESCORED_TABLE_KEY, findings)
    if is_intact:
        listed = pq.read_table(pa.BufferReader(data), columns=["slide_id"])
        forgotten = {slide_id for slide_id, status in status_of.items() if status.outcome == "forgotten"}
        for slide_id in sorted(set(listed.column("slide_id").to_pylist()) - with_scores - forgotten):
            findings.add(
                "missing", rescored_key(slide_id), f"{RESCORED_TABLE_KEY} lists scores of it", slide_id=slide_id
            )


def _check_binding(store: ObjectStore, status: SlideStatus, findings: Findings) -> None:
    key = rescored_key(status.slide_id)
    try:
        scored_by = read_scored_by(store, status.slide_id)
    except (ValueError, TypeError, json.JSONDecodeError):
        scored_by = None
    if scored_by is None:
        says = "it does not say who scored the cells"
    elif scored_by.cells_sha256 != status.cells_sha256:
        says = "its scores are of an earlier table of the slide's cells; rescore the slide with --replace"
    else:
        return
    findings.add("contradiction", key, says, slide_id=status.slide_id)
