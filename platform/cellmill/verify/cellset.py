"""Whether a whole cell set is what its runs left: the cohort's own objects, every slide, and nothing besides.

In: the URL of a cell set. Out: a `VerifyReport`. Slides are checked a few at a time; memory holds their statuses and,
for each slide being looked at, one row group, one shard and about 30 bytes a cell.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.layout import (
    CELLSET_KEY,
    EMBEDDINGS_FOLDER,
    RESCORED_TABLE_KEY,
    RETYPED_FOLDER,
    SLIDES_TABLE_KEY,
    STATUS_FOLDER,
    is_safe_id,
)
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import statuses_table
from cellmill.verify.added import check_added
from cellmill.verify.findings import Findings, VerifyReport
from cellmill.verify.listing import keys_below, symbolic_links, top_names
from cellmill.verify.scores import check_scores
from cellmill.verify.sealed import read_sealed
from cellmill.verify.slide import SlideObjects, check_slide
from cellmill_schemas.slides import SlideStatus

__all__ = ["verify_cellset"]

_CELLS, _MASKS, _RESCORED, _WORK = "cells", "masks", "rescored", "_work"
_FOLDERS = {_CELLS, _MASKS, _RESCORED, _WORK, STATUS_FOLDER, EMBEDDINGS_FOLDER, RETYPED_FOLDER}
_SUFFIXES = {
    _CELLS: (".parquet",),
    _MASKS: (".ome.zarr",),
    _RESCORED: (".parquet",),
    STATUS_FOLDER: (".json", ".sha256"),
}


def verify_cellset(
    url: str | Path, *, with_content: bool = True, slide_ids: Iterable[str] = (), num_workers: int = 1
) -> VerifyReport:
    """Check a cell set.

    Args:
        url: what was given as --out.
        with_content: whether to look into tables and masks; otherwise bytes are compared with their digests.
        slide_ids: slides that must have a status.
        num_workers: slides checked at the same time.

    Raises:
        FileNotFoundError: when there is no cell set.
        OutputError: when storage refuses.
    """
    started = time.monotonic()
    store, findings = ObjectStore(url), Findings()
    top = top_names(store)
    if CELLSET_KEY not in top and STATUS_FOLDER not in top:
        read_identity(store)  # raises, saying what is missing
    identity = _identity(store, findings, is_there=CELLSET_KEY in top)
    slides = _slides(store, findings, top)
    check = partial(check_slide, store, identity=identity, with_content=with_content, findings=findings)
    with ThreadPoolExecutor(num_workers) as pool:
        statuses = [status for status in pool.map(check, slides) if status is not None]
    for slide_id in sorted(set(slide_ids) - {seen.slide_id for seen in slides if seen.has_status}):
        findings.add("missing", f"{STATUS_FOLDER}/{slide_id}.json", "the slide has no status", slide_id=slide_id)
    _check_slides_table(store, statuses, findings, is_there=SLIDES_TABLE_KEY in top)
    check_scores(store, slides, statuses, findings, has_table=RESCORED_TABLE_KEY in top)
    check_added(store, {status.slide_id: status for status in statuses}, findings, with_content=with_content)
    for key in symbolic_links(store):
        findings.add("stray", key, "it is a symbolic link; a cell set consists of plain files")
    return VerifyReport(
        url=store.url,
        findings=tuple(sorted(findings.found, key=lambda finding: (finding.slide_id, finding.where))),
        num_slides_by_outcome=dict(sorted(Counter(status.outcome for status in statuses).items())),
        num_objects=findings.num_objects,
        num_bytes=findings.num_bytes,
        num_cells=findings.num_cells,
        seconds=round(time.monotonic() - started, 3),
    )


def _identity(store: ObjectStore, findings: Findings, *, is_there: bool) -> CellSetIdentity | None:
    if not is_there:
        findings.add("missing", CELLSET_KEY, "nothing says which model and settings made this")
        return None
    read_sealed(store, CELLSET_KEY, findings)
    try:
        return read_identity(store)
    except (ValueError, TypeError, AttributeError):
        return None


def _slides(store: ObjectStore, findings: Findings, top: list[str]) -> list[SlideObjects]:
    """Every slide that any object tells of; what tells of none is a stray."""
    for name in top:
        if name not in (CELLSET_KEY, SLIDES_TABLE_KEY, RESCORED_TABLE_KEY, *_FOLDERS):
            findings.add("stray", name, "a cell set has nothing of that name")
    with_suffix = {
        suffix: _ids_in(store, folder, suffix, findings)
        for folder, all_of in _SUFFIXES.items()
        for suffix in all_of
        if folder != _RESCORED
    }
    work = {name for name in store.list_names(_WORK) if keys_below(store, f"{_WORK}/{name}")}
    has_status, has_digests = with_suffix[".json"], with_suffix[".sha256"]
    has_table, has_mask = with_suffix[".parquet"], with_suffix[".ome.zarr"]
    has_scores = _ids_in(store, _RESCORED, ".parquet", findings)
    everything = has_status | has_digests | has_table | has_mask | work
    for slide_id in sorted(has_scores - everything):
        findings.add("stray", f"{_RESCORED}/{slide_id}.parquet", "scores of a slide that is not here")
    return [
        SlideObjects(
            slide_id=slide_id,
            has_status=slide_id in has_status,
            has_digests=slide_id in has_digests,
            has_table=slide_id in has_table,
            has_mask=slide_id in has_mask,
            has_work=slide_id in work,
            has_scores=slide_id in has_scores,
        )
        for slide_id in sorted(everything)
    ]


def _ids_in(store: ObjectStore, folder: str, suffix: str, findings: Findings) -> set[str]:
    """Slides that have something in a folder; names that are no slide's are strays."""
    ids_by_suffix = {other: set[str]() for other in _SUFFIXES[folder]}
    for name in _names(store, folder):
        ends = [end for end in _SUFFIXES[folder] if name.endswith(end) and is_safe_id(name.removesuffix(end))]
        for end in ends:
            ids_by_suffix[end].add(name.removesuffix(end))
        if not ends and suffix == _SUFFIXES[folder][0]:
            findings.add("stray", f"{folder}/{name}", "it belongs to no slide")
    return ids_by_suffix[suffix]


def _names(store: ObjectStore, folder: str) -> list[str]:
    """Names in a folder, leftovers of killed writers included."""
    if not store.is_local:
        return store.list_names(folder)
    path = Path(store.path(folder))
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []


def _check_slides_table(store: ObjectStore, statuses: list[SlideStatus], findings: Findings, *, is_there: bool) -> None:
    key = SLIDES_TABLE_KEY
    if not is_there:
        findings.add("missing", key, "the table of slides is not there; running the same command again makes it")
        return
    data, is_intact = read_sealed(store, key, findings)
    if not is_intact:
        return
    rows = _by_slide(pq.read_table(pa.BufferReader(data)).to_pylist())
    wanted = _by_slide(statuses_table(statuses).to_pylist())
    for slide_id in sorted(wanted.keys() | rows.keys()):
        if slide_id not in rows:
            says = "it does not list the slide; running the same command again refreshes it"
        elif slide_id not in wanted:
            says = "it lists a slide that has no readable status"
        elif json.dumps(rows[slide_id]) != json.dumps(wanted[slide_id]):
            says = "it does not say what the slide's status says; running the same command again refreshes it"
        else:
            continue
        findings.add("contradiction", key, says, slide_id=slide_id)


def _by_slide(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["slide_id"]: row for row in rows}
