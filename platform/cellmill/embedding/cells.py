"""The cells of a slide as a pass over its tiles meets them: which tiles hold them, and when each has been seen whole.

In: a committed cell table, the slide's grid, the model's tiles. Out: `CellsByTile`, some 40 bytes a cell.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from cellmill.grid import SlideGrid, TileGeometry
from cellmill.store.layout import cells_key
from cellmill.store.objects import ObjectStore

__all__ = ["CellsByTile", "cells_by_tile"]

_OUTSIDE_OUTLINE_PX = 8
"""How far from its outline's box a cell's mask may lie at most; outlines are simplified by about a pixel."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CellsByTile:
    """Cells in the order of their ids; row k is one cell."""

    cell_ids: Integers  # (n,) ascending
    mask_ids: Integers  # (n,) ascending too: both are the anchor's place, row by row
    tiles: Integers  # (m, 2) column and row of each tile that may hold a cell, row by row
    last_tile_rows: Integers  # (n,) of each cell

    def num_seen(self, tile_row: int) -> int:
        """How many cells, from the first on, lie wholly in tiles up to `tile_row`."""
        later = np.flatnonzero(self.last_tile_rows > tile_row)
        return int(later[0]) if len(later) else len(self.cell_ids)


def cells_by_tile(store: ObjectStore, slide_id: str, *, grid: SlideGrid, geometry: TileGeometry) -> CellsByTile:
    """The cells of a done slide; only ids and boxes are read."""
    with store.open_random(cells_key(slide_id)) as file, pq.ParquetFile(file) as parquet:
        table = parquet.read(columns=["cell_id", "mask_id", "bbox"])
    box = table.column("bbox").combine_chunks()
    ids = table.column("cell_id").to_numpy()
    order = np.argsort(ids, kind="stable")

    def tile(name: str, scale: float, grown_px: int, size_px: int) -> Integers:
        px = np.floor(np.asarray(box.field(name).to_numpy(), np.float64) / scale).astype(np.int64) + grown_px
        return (np.clip(px, 0, size_px - 1) // geometry.stride_px)[order]

    x0 = tile("xmin", grid.scale_x, -_OUTSIDE_OUTLINE_PX, grid.width_px)
    x1 = tile("xmax", grid.scale_x, _OUTSIDE_OUTLINE_PX, grid.width_px)
    y0 = tile("ymin", grid.scale_y, -_OUTSIDE_OUTLINE_PX, grid.height_px)
    y1 = tile("ymax", grid.scale_y, _OUTSIDE_OUTLINE_PX, grid.height_px)
    return CellsByTile(
        cell_ids=ids[order],
        mask_ids=table.column("mask_id").to_numpy().astype(np.int64)[order],
        tiles=_touched(x0, x1, y0, y1),
        last_tile_rows=y1,
    )


def _touched(x0: Integers, x1: Integers, y0: Integers, y1: Integers) -> Integers:
    """Tiles (m, 2) that any of the spans (inclusive) touches, row by row."""
    num_columns = int(x1.max(initial=0)) + 1
    found: list[Integers] = [np.zeros(0, np.int64)]
    for down in range(int((y1 - y0).max(initial=0)) + 1):
        for right in range(int((x1 - x0).max(initial=0)) + 1):
            there = (y0 + down <= y1) & (x0 + right <= x1)
            found.append(np.unique((y0 + down)[there] * num_columns + (x0 + right)[there]))
    keys = np.unique(np.concatenate(found))
    return np.stack([keys % num_columns, keys // num_columns], axis=1)
