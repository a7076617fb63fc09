"""Merging parts into one stream of cells in Hilbert order, in bounded memory.

In: parts, each sorted and cut into record batches at the borders of fixed square blocks. Out: one table a block, blocks
along the curve. At any moment the batches of one block are in memory, however many parts and cells the slide has.
The same pass makes sure that every mask id that some field painted without owning its cell exists in the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cellmill.grid import SlideGrid
from cellmill.store.masks import PaintedIds
from cellmill.store.objects import ObjectStore
from cellmill.store.work import PartSummary, block_bits, open_part, sort_keys, summary_of

__all__ = ["OpenPart", "PaintedCheck", "merge_parts", "read_summaries"]


@dataclass(frozen=True)
class OpenPart:
    """A part and where it lies."""

    key: str
    summary: PartSummary


def read_summaries(store: ObjectStore, keys: list[str]) -> list[OpenPart]:
    """Summaries of the parts, in the order of their fields."""
    parts = [OpenPart(key=key, summary=summary_of(open_part(store, key))) for key in keys]
    return sorted(parts, key=lambda part: (part.summary.row, part.summary.column))


def merge_parts(store: ObjectStore, parts: list[OpenPart], *, grid: SlideGrid) -> Iterator[tuple[int, pa.Table]]:
    """(block, its cells in Hilbert order), blocks ascending; blocks without cells are left out."""
    batches = sorted(
        (block, number, index) for number, part in enumerate(parts) for index, block in enumerate(part.summary.blocks)
    )
    position = 0
    while position < len(batches):
        block, end = batches[position][0], position
        while end < len(batches) and batches[end][0] == block:
            end += 1
        pieces = [_read_batch(store, parts[number].key, index) for _, number, index in batches[position:end]]
        yield block, _sorted(pieces, grid)
        position = end


class PaintedCheck:
    """Looks up painted ids as the blocks pass by; what is left over is missing from the table."""

    def __init__(self, painted: PaintedIds, *, grid: SlideGrid) -> None:
        blocks = sort_keys(painted.ids, grid) >> block_bits(grid)
        order = np.argsort(blocks, kind="stable")
        self._blocks = blocks[order]
        self._order = order
        self._painted = painted
        self._seen = np.zeros(painted.ids.size, bool)

    def look_at(self, block: int, cells: pa.Table) -> None:
        """Mark the painted ids of `block` that `cells` holds."""
        start, stop = np.searchsorted(self._blocks, [block, block + 1])
        wanted = self._order[start:stop]
        self._seen[wanted] = np.isin(self._painted.ids[wanted], cells.column("mask_id").to_numpy())

    def missing(self) -> PaintedIds:
        """Ids that no block held."""
        left = ~self._seen
        return PaintedIds(self._painted.ids[left], self._painted.columns[left], self._painted.rows[left])


def _read_batch(store: ObjectStore, key: str, index: int) -> pa.Table:
    batch = open_part(store, key).get_batch(index)
    return pa.Table.from_batches([batch]).replace_schema_metadata(None)


def _sorted(pieces: list[pa.Table], grid: SlideGrid) -> pa.Table:
    if len(pieces) == 1:
        return pieces[0]
    table = pa.concat_tables(pieces)
    return table.take(pa.array(np.argsort(sort_keys(table.column("mask_id").to_numpy(), grid), kind="stable")))
