"""Committing a slide: parts in, what readers see out.

In this order, so that nothing a reader sees is ever partial and a killed commit only has to run again: every planned
field has a part and every part its mask shards; reduced mask levels; seams and the merge into
`cells/<slide_id>.parquet`, which appears whole; the mask's metadata, root last; the digests of all these objects; the
status in one put, which is what 'done' means. Everything but the status is a function of the parts alone, so a second
commit writes the same bytes.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from cellmill.grid import FieldSpec, SlideGrid
from cellmill.store.digests import write_digests
from cellmill.store.errors import MissingFieldsError, SeamError
from cellmill.store.layout import cells_key, core_mask_key, mask_prefix, part_key, parts_prefix
from cellmill.store.masks import MaskWriter, PaintedIds
from cellmill.store.merge import OpenPart, PaintedCheck, merge_parts, read_summaries
from cellmill.store.objects import HashingFile, ObjectStore
from cellmill.store.statuses import write_status
from cellmill.store.tables import CellTableWriter
from cellmill.store.work import FieldCounts, SlideWork, open_part
from cellmill_schemas.cells import cell_schema
from cellmill_schemas.slides import ExcludedArea, SlideStatus

__all__ = ["commit_slide", "finished_fields"]


@dataclass(frozen=True)
class _WrittenCells:
    num_cells: int
    num_cells_by_type: dict[str, int]
    sha256: str


def finished_fields(store: ObjectStore, work: SlideWork) -> set[str]:
    """Names of the fields that have a part."""
    names = store.list_names(parts_prefix(work.slide_id, work.work_key))
    return {name.removesuffix(".arrow") for name in names if name.endswith(".arrow")}


def commit_slide(
    store: ObjectStore,
    work: SlideWork,
    *,
    planned: Iterable[FieldSpec],
    elsewhere: FieldCounts,
    reasons: tuple[str, ...] = (),
    num_attempts: int = 1,
) -> SlideStatus:
    """Make a slide whose fields are all done visible, and say so.

    Args:
        store: the cell set's storage.
        work: the slide.
        planned: the fields that make up the slide; fields known to hold nothing to analyse may be left out.
        elsewhere: areas of the fields left out.
        reasons: sentences to keep in the status, about regions that could not be read for example.
        num_attempts: attempts the slide took.

    Raises:
        MissingFieldsError: when planned fields have no part.
        SeamError: when masks and table contradict each other; the parts of the fields it names are gone.
        OutputError: when storage refuses; run again.
    """
    started = time.perf_counter()
    for folder, suffix in (("cells", "parquet"), ("slides", "json"), ("slides", "sha256")):
        store.sweep(folder, name=f"{work.slide_id}.{suffix}")  # what a killed commit left on a local disk
    parts = _parts_of(store, work, planned)
    mask = MaskWriter(store, slide_id=work.slide_id, grid=work.grid, field_px=work.field_px)
    mask.write_pyramid(_painted_cores(store, work, parts))
    cells = _write_cells(store, work, parts, _painted_ids(parts, mask.border_ids()))
    mask.publish()
    counts = elsewhere
    for part in parts:
        counts = counts.plus(part.summary.counts)
    status = _status(
        work,
        counts,
        outcome="done" if cells.num_cells else "done_empty",
        reasons=reasons if cells.num_cells else (*reasons, _why_empty(counts, work.grid)),
        num_fields=len(parts),
        num_cells=cells.num_cells,
        num_cells_by_type=cells.num_cells_by_type,
        num_attempts=num_attempts,
        seconds=round(counts.seconds + time.perf_counter() - started, 3),
        cells_sha256=cells.sha256,
        mask_digest=mask.digest(),
        objects_sha256=write_digests(store, work.slide_id, {cells_key(work.slide_id): cells.sha256, **mask.digests()}),
    )
    write_status(store, status)
    return status


def _parts_of(store: ObjectStore, work: SlideWork, planned: Iterable[FieldSpec]) -> list[OpenPart]:
    names = [field.name for field in planned]
    missing = sorted(set(names) - finished_fields(store, work))
    if missing:
        raise MissingFieldsError(
            f"Slide {work.slide_id} cannot be committed: {len(missing)} of {len(names)} fields have no part "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}). Do them first.",
            tuple(missing),
        )
    return read_summaries(store, [part_key(work.slide_id, work.work_key, name) for name in names])


def _painted_cores(store: ObjectStore, work: SlideWork, parts: list[OpenPart]) -> dict[tuple[int, int], str]:
    """Keys of what the fields left of their painted cores, by the field's column and row."""
    present = set(store.list_keys(f"{mask_prefix(work.slide_id)}/0"))
    records = set(store.list_keys(parts_prefix(work.slide_id, work.work_key)))
    names = [part.summary.field_name for part in parts]
    keys = [core_mask_key(work.slide_id, work.work_key, name) for name in names]
    lacking = [
        name
        for name, key, part in zip(names, keys, parts, strict=True)
        if key not in records or not present.issuperset(part.summary.mask_shards)
    ]
    if lacking:
        _discard(store, work, lacking, "their mask shards are gone")
    return {(part.summary.column, part.summary.row): key for part, key in zip(parts, keys, strict=True)}


def _painted_ids(parts: list[OpenPart], borders: PaintedIds) -> PaintedIds:
    """Ids that must have a row: those along field borders and those that fields painted for their neighbours."""
    counts = [len(part.summary.foreign_mask_ids) for part in parts]
    foreign = [np.array(part.summary.foreign_mask_ids, np.uint64) for part in parts]
    return PaintedIds(
        ids=np.concatenate([borders.ids, *foreign]),
        columns=np.concatenate([borders.columns, _repeat([part.summary.column for part in parts], counts)]),
        rows=np.concatenate([borders.rows, _repeat([part.summary.row for part in parts], counts)]),
    )


def _repeat(values: list[int], counts: list[int]) -> npt.NDArray[np.int64]:
    return np.repeat(np.array(values, np.int64), np.array(counts, np.int64))


def _write_cells(store: ObjectStore, work: SlideWork, parts: list[OpenPart], painted: PaintedIds) -> _WrittenCells:
    """Merge the parts into the slide's table; it appears only if every painted id has a row."""
    check = PaintedCheck(painted, grid=work.grid)
    key = cells_key(work.slide_id)
    schema = open_part(store, parts[0].key).schema.remove_metadata() if parts else cell_schema(work.ontology)
    with store.publishing(key) as file:
        hashing = HashingFile(file)
        with CellTableWriter(hashing, schema, ontology=work.ontology) as writer:
            for block, cells in merge_parts(store, parts, grid=work.grid):
                check.look_at(block, cells)
                writer.add(cells)
        _discard_contradicting(store, work, parts, check.missing())
    return _WrittenCells(writer.num_cells, writer.num_cells_by_type, hashing.hexdigest())


def _discard_contradicting(store: ObjectStore, work: SlideWork, parts: list[OpenPart], missing: PaintedIds) -> None:
    """Of an id without a row, either the field that painted it or the one that should own it is wrong: redo both."""
    if not missing.ids.size:
        return
    anchor = missing.ids.astype(np.int64) - 1
    owner_columns = anchor % work.grid.width_px // work.field_px
    owner_rows = anchor // work.grid.width_px // work.field_px
    wrong = {
        *zip(missing.columns.tolist(), missing.rows.tolist(), strict=True),
        *zip(owner_columns.tolist(), owner_rows.tolist(), strict=True),
    }
    names = [part.summary.field_name for part in parts if (part.summary.column, part.summary.row) in wrong]
    _discard(store, work, names, f"they paint {missing.ids.size} cells that have no row in the table")


def _discard(store: ObjectStore, work: SlideWork, fields: list[str], why: str) -> NoReturn:
    for name in fields:
        store.delete(part_key(work.slide_id, work.work_key, name))
    raise SeamError(
        f"Fields {', '.join(fields)} of slide {work.slide_id} must be done again: {why}. Their parts were removed.",
        tuple(fields),
    )


def _status(work: SlideWork, counts: FieldCounts, **values: Any) -> SlideStatus:
    facts, grid = work.facts, work.grid
    px_mm2 = (grid.target_mpp / 1000) ** 2
    excluded = {f"{reason}_mm2": round(px * px_mm2, 6) for reason, px in counts.excluded_px.items()}
    return SlideStatus(
        slide_id=work.slide_id,
        mpp_x=facts.mpp_x,
        mpp_y=facts.mpp_y,
        width_level0_px=facts.width_level0_px,
        height_level0_px=facts.height_level0_px,
        width_px=grid.width_px,
        height_px=grid.height_px,
        target_mpp=grid.target_mpp,
        slide_mm2=round(grid.width_px * grid.height_px * px_mm2, 6),
        analysed_mm2=round(counts.analysed_px * px_mm2, 6),
        excluded=ExcludedArea(**excluded),
        num_tiles=counts.num_tiles,
        slide_fingerprint=facts.slide_fingerprint,
        model_digest=work.model_digest,
        config_digest=work.config_digest,
        device_kind=work.device_kind,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        **values,
    )


def _why_empty(counts: FieldCounts, grid: SlideGrid) -> str:
    px_mm2 = (grid.target_mpp / 1000) ** 2
    excluded = ", ".join(
        f"{reason.replace('_', ' ')} {px * px_mm2:.2f}" for reason, px in counts.excluded_px.items() if px
    )
    return (
        f"No cells: {counts.analysed_px * px_mm2:.2f} mm2 analysed in {counts.num_tiles} tiles; "
        f"excluded in mm2: {excluded or 'nothing'}."
    )
