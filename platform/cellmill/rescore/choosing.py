"""Which cells get a second opinion, and which tiles must be read for it.

In: batches of cells that a query chose, the heavy model's grid and tiles, a budget. Out: `ChosenCells` with their
outlines in px of that grid, and the tiles whose cores they touch. With a budget the tiles that hold most cells are
taken first; a cell is scored only if all its tiles are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely
from shapely.geometry import Polygon

from cellmill.grid import SlideGrid, TileGeometry
from cellmill.store.outlines import polygons_of

__all__ = ["ChosenCells", "TileIndex", "chosen_cells", "tiles_of_cells", "within_budget"]

TileIndex = tuple[int, int]


@dataclass(frozen=True)
class ChosenCells:
    """Cells of one slide; row k of each field is one cell."""

    cell_ids: npt.NDArray[np.int64]  # (n,)
    cell_types: tuple[str, ...]
    """The student's."""
    outlines_px: tuple[Polygon, ...]
    """On the heavy model's grid."""

    def __len__(self) -> int:
        return len(self.cell_ids)

    def only(self, rows: npt.NDArray[np.int64]) -> "ChosenCells":
        """Some of the cells."""
        return ChosenCells(
            self.cell_ids[rows],
            tuple(self.cell_types[row] for row in rows),
            tuple(self.outlines_px[row] for row in rows),
        )


def chosen_cells(batches: Iterable[pa.RecordBatch], grid: SlideGrid) -> ChosenCells:
    """The cells of record batches of a cell table, in their order."""
    ids: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    types: list[str] = []
    outlines: list[Polygon] = []
    scale = np.array([1.0 / grid.scale_x, 1.0 / grid.scale_y])
    for batch in batches:
        ids.append(batch.column("cell_id").to_numpy())
        types += [str(name) for name in batch.column("cell_type").to_pylist()]
        level0_px = np.array(polygons_of(batch.column("geometry")), np.object_)
        outlines += shapely.transform(level0_px, lambda xy: xy * scale).tolist()
    return ChosenCells(np.concatenate(ids), tuple(types), tuple(outlines))


def tiles_of_cells(cells: ChosenCells, geometry: TileGeometry, grid: SlideGrid) -> list[list[TileIndex]]:
    """For each cell the tiles whose cores its box touches."""
    tiles: list[list[TileIndex]] = []
    stride = geometry.stride_px
    for outline in cells.outlines_px:
        x0, y0, x1, y1 = outline.bounds
        columns = range(int(max(x0, 0)) // stride, int(min(x1, grid.width_px - 1)) // stride + 1)
        rows = range(int(max(y0, 0)) // stride, int(min(y1, grid.height_px - 1)) // stride + 1)
        tiles.append([(i, j) for j in rows for i in columns])
    return tiles


def within_budget(tiles: list[list[TileIndex]], *, most_tiles: int | None) -> npt.NDArray[np.int64]:
    """Rows of the cells that can be scored with so many tiles; all where there is no limit.

    Tiles are taken by the number of cells they hold, the fullest first, ties from top to bottom and left to right.
    """
    everything = np.arange(len(tiles), dtype=np.int64)
    if most_tiles is None:
        return everything
    counts: dict[TileIndex, int] = {}
    for indices in tiles:
        for index in indices:
            counts[index] = counts.get(index, 0) + 1
    ranked = sorted(counts, key=lambda index: (-counts[index], index[1], index[0]))
    taken = set(ranked[:most_tiles])
    return everything[[set(indices) <= taken for indices in tiles]] if tiles else everything
