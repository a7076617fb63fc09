"""What is known about a slide under way, and the parts of its fields.

In: a finished field's cells, painted core and counts. Out: the field's mask shards and what a commit must know of
them, then one Arrow IPC object, its part, whose presence means that the field is done. A part's rows are in Hilbert
order of their anchors, cut into record batches at the borders of fixed square blocks, so that a commit can merge the
parts block by block and read nothing twice.

Parts lie under a work key, a hash of everything that may change them; parts of other keys are discarded whole.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cellmill.grid import FieldSpec, SlideGrid
from cellmill.store.core_masks import write_core
from cellmill.store.hilbert import hilbert_keys, hilbert_order
from cellmill.store.layout import core_mask_key, part_key
from cellmill.store.objects import ObjectStore
from cellmill.store.shards import LabelPixels, distinct_labels
from cellmill_schemas.cells import ANCHOR_BITS, cell_schema
from cellmill_schemas.ontology import Ontology

__all__ = [
    "FieldCounts",
    "PartSummary",
    "SlideFacts",
    "SlideWork",
    "block_bits",
    "open_part",
    "sort_keys",
    "summary_of",
    "write_part",
]

_BLOCK_BITS = 12
"""Parts are merged in blocks of 4096 px: some ten thousand cells, a few MB."""

_SUMMARY_KEY = b"cellmill.part"


@dataclass(frozen=True)
class SlideFacts:
    """What planning a slide found out about it."""

    slide_id: str
    grid: SlideGrid
    mpp_x: float
    mpp_y: float
    """Level-0 micrometres per pixel as used."""
    width_level0_px: int
    height_level0_px: int
    slide_fingerprint: str


@dataclass(frozen=True)
class SlideWork:
    """A slide under way: everything that writing a part and committing need to know. Travels to workers."""

    facts: SlideFacts
    field_px: int
    device_kind: str
    model_digest: str
    config_digest: str
    ontology: Ontology

    @property
    def slide_id(self) -> str:
        """The slide."""
        return self.facts.slide_id

    @property
    def grid(self) -> SlideGrid:
        """Its model grid."""
        return self.facts.grid

    @property
    def work_key(self) -> str:
        """Hash of everything that may change a part."""
        parts = (
            self.config_digest,
            self.model_digest,
            str(self.field_px),
            self.device_kind,
            self.facts.slide_fingerprint,
            repr(self.grid),
            repr((self.facts.mpp_x, self.facts.mpp_y)),
            self.ontology.digest,
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FieldCounts:
    """What a field's core held, in whole pixels of the model grid clipped to the slide."""

    num_tiles: int = 0
    """Tiles analysed, each counted by one field only."""
    analysed_px: int = 0
    excluded_px: Mapping[str, int] = field(default_factory=dict[str, int])
    """By reason, as `ExcludedArea` names them without the unit: outside_region, background, unreadable, pen, blur."""
    seconds: float = 0.0
    """Time spent on the field by all workers."""

    def plus(self, other: "FieldCounts") -> "FieldCounts":
        """Both together."""
        reasons = sorted({*self.excluded_px, *other.excluded_px})
        return FieldCounts(
            num_tiles=self.num_tiles + other.num_tiles,
            analysed_px=self.analysed_px + other.analysed_px,
            excluded_px={name: self.excluded_px.get(name, 0) + other.excluded_px.get(name, 0) for name in reasons},
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class PartSummary:
    """What a commit must know of a part before it reads any row."""

    field_name: str
    column: int
    row: int
    num_cells: int
    blocks: tuple[int, ...]
    """Block of each record batch, ascending."""
    foreign_mask_ids: tuple[int, ...]
    """Ids painted in the core whose cells other fields own."""
    mask_shards: tuple[str, ...]
    """Keys of the shards that hold any cell."""
    counts: FieldCounts

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "PartSummary":
        """Parse what `to_bytes` wrote."""
        values: dict[str, Any] = json.loads(data)
        for name in ("blocks", "foreign_mask_ids", "mask_shards"):
            values[name] = tuple(values[name])
        values["counts"] = FieldCounts(**values["counts"])
        return PartSummary(**values)


def block_bits(grid: SlideGrid) -> int:
    """Bits to shift a Hilbert key by to get its block."""
    return 2 * min(_BLOCK_BITS, hilbert_order(grid))


def sort_keys(mask_ids: npt.NDArray[np.uint64], grid: SlideGrid) -> npt.NDArray[np.int64]:
    """Hilbert keys of the cells' anchors; a mask id is 1 + the anchor's index, so no two are equal."""
    anchor = mask_ids.astype(np.int64) - 1
    return hilbert_keys(anchor % grid.width_px, anchor // grid.width_px, order=hilbert_order(grid))


def write_part(
    store: ObjectStore,
    work: SlideWork,
    *,
    field: FieldSpec,
    cells: pa.Table,
    core_mask: LabelPixels,
    counts: FieldCounts,
) -> PartSummary:
    """Write the field's mask shards and their record, then its part. Doing it again overwrites the same bytes.

    Args:
        store: the cell set's storage.
        work: the slide.
        field: the field, whose core the mask covers.
        cells: rows of `cell_schema` owned by the core, in any order.
        core_mask: (core.height, core.width) mask ids of every cell seen in the core, owned or not.
        counts: the field's tiles, areas and seconds.

    Raises:
        OutputError: when storage refuses; the field stays undone.
        ValueError: when table, mask and field contradict each other.
    """
    _check_core(field, core_mask, work)
    table = _canonical(cells, work)
    mask_ids = table.column("mask_id").to_numpy()
    _check_ownership(table, mask_ids, field, work)
    keys = sort_keys(mask_ids, work.grid)
    order = np.argsort(keys, kind="stable")
    table, blocks = table.take(pa.array(order)), keys[order] >> block_bits(work.grid)
    mask = write_core(store, field.core, core_mask, slide_id=work.slide_id, grid=work.grid, field_px=work.field_px)
    store.put(core_mask_key(work.slide_id, work.work_key, field.name), mask.to_bytes())
    painted = distinct_labels(core_mask).astype(np.uint64)
    firsts = np.unique(blocks, return_index=True)[1]
    summary = PartSummary(
        field_name=field.name,
        column=field.column,
        row=field.row,
        num_cells=table.num_rows,
        blocks=tuple(blocks[firsts].tolist()),
        foreign_mask_ids=tuple(np.setdiff1d(painted, mask_ids).tolist()),
        mask_shards=tuple(mask.shards),
        counts=counts,
    )
    bounds = [*firsts.tolist(), table.num_rows]
    store.put(part_key(work.slide_id, work.work_key, field.name), _encode(table, bounds, summary))
    return summary


def open_part(store: ObjectStore, key: str) -> pa.ipc.RecordBatchFileReader:
    """A reader of a part's record batches, one a block."""
    return pa.ipc.open_file(store.open_random(key))


def summary_of(part: pa.ipc.RecordBatchFileReader) -> PartSummary:
    """What the part says about itself."""
    return PartSummary.from_bytes(part.schema.metadata[_SUMMARY_KEY])


def _encode(table: pa.Table, bounds: list[int], summary: PartSummary) -> bytes:
    schema = table.schema.with_metadata({_SUMMARY_KEY: summary.to_bytes()})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        for start, stop in pairwise(bounds):
            for batch in table.slice(start, stop - start).combine_chunks().to_batches():
                writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _canonical(cells: pa.Table, work: SlideWork) -> pa.Table:
    """The table under exactly the schema, its dictionaries the slide's id and the ontology's names in order."""
    num_embedding = 0
    if "embedding" in cells.schema.names:
        num_embedding = cells.schema.field("embedding").type.list_size
    schema = cell_schema(work.ontology, num_embedding=num_embedding)
    if not cells.schema.equals(schema):
        raise ValueError(f"Cells of {work.slide_id} must follow cell_schema; expected\n{schema}\ngot\n{cells.schema}")
    columns = {name: cells.column(name) for name in schema.names}
    for name, values in (("slide_id", (work.slide_id,)), ("cell_type", work.ontology.names)):
        plain = columns[name].cast(pa.string())
        indices = pc.call_function("index_in", [plain], pc.SetLookupOptions(pa.array(values, pa.string())))
        if indices.null_count:
            raise ValueError(f"Column {name} of {work.slide_id} must hold only {list(values)}.")
        kind = schema.field(name).type
        columns[name] = pa.DictionaryArray.from_arrays(
            indices.combine_chunks().cast(kind.index_type), pa.array(values, pa.string())
        )
    return pa.table(columns, schema=schema)


def _check_core(field: FieldSpec, core_mask: LabelPixels, work: SlideWork) -> None:
    if core_mask.shape != (field.core.height, field.core.width) or field.core.width != work.field_px:
        raise ValueError(
            f"The mask of field {field.name} of {work.slide_id} must cover its core of {work.field_px} px, "
            f"{(field.core.height, field.core.width)}, got {core_mask.shape}."
        )


def _check_ownership(table: pa.Table, mask_ids: npt.NDArray[np.uint64], field: FieldSpec, work: SlideWork) -> None:
    anchor = mask_ids.astype(np.int64) - 1
    x, y = anchor % work.grid.width_px, anchor // work.grid.width_px
    core = field.core.clipped(work.grid.box)
    owned = (x >= core.x0) & (x < core.x1) & (y >= core.y0) & (y < core.y1) & (anchor >= 0)
    low_bits = table.column("cell_id").to_numpy() & ((1 << ANCHOR_BITS) - 1)
    if not owned.all() or not np.array_equal(low_bits, anchor) or np.unique(anchor).size != anchor.size:
        raise ValueError(
            f"Field {field.name} of {work.slide_id} holds cells it does not own, ids that disagree with their mask id, "
            f"or an id twice ({np.count_nonzero(~owned)} of {anchor.size} anchors outside its core)."
        )
