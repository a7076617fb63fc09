"""Scores of chosen cells from the heavy model's maps: each tile is predicted once, each cell votes over its outline.

A cell's class is the vote of its pixels' class probabilities, background left out, as in the cell table; the pixels are
those of the student's outline, from whichever tile's core holds them. Memory holds one batch of tiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import Polygon

from cellmill.cohort.field import ReadsPixels
from cellmill.cohort.sources import MapSource, TileBatch
from cellmill.grid import Box, TileGeometry
from cellmill.rescore.choosing import ChosenCells, TileIndex

__all__ = ["CellScores", "score_cells"]


@dataclass(frozen=True)
class CellScores:
    """Sums over the pixels of each cell; row k is one cell."""

    sums: npt.NDArray[np.int64]
    """(n, C + 1): probabilities in 1 / 255, background first."""
    num_pixels: npt.NDArray[np.int64]
    """(n,): pixels that counted; 0 for a cell that could not be read."""

    @property
    def type_prob(self) -> npt.NDArray[np.float64]:
        """(n, C): share of each class, sums to 1; even shares where no pixel leaned to any class."""
        classes = self.sums[:, 1:].astype(np.float64)
        total = classes.sum(axis=1, keepdims=True)
        return np.where(total > 0, classes / np.maximum(total, 1.0), 1.0 / classes.shape[1])

    @property
    def detection_prob(self) -> npt.NDArray[np.float64]:
        """(n,): mean foreground probability."""
        return self.sums[:, 1:].sum(axis=1) / np.maximum(self.sums.sum(axis=1), 1)


def score_cells(
    slide: ReadsPixels,
    cells: ChosenCells,
    tiles: Sequence[Sequence[TileIndex]],
    source: MapSource,
    *,
    slide_id: str,
    geometry: TileGeometry,
    num_classes: int,
    batch_size: int,
) -> CellScores:
    """Predict the tiles and sum up each cell.

    Args:
        slide: open, on the heavy model's grid.
        cells: outlines on that grid.
        tiles: of each cell, those whose cores it touches.
        source: the heavy model.
        slide_id: the slide.
        geometry: the model's tiles.
        num_classes: of its ontology.
        batch_size: tiles a forward pass.
    """
    cells_of: dict[TileIndex, list[int]] = {}
    for row, indices in enumerate(tiles):
        for index in indices:
            cells_of.setdefault(index, []).append(row)
    ordered = sorted(cells_of, key=lambda index: (index[1], index[0]))
    sums = np.zeros((len(cells), num_classes + 1), np.int64)
    counts = np.zeros(len(cells), np.int64)
    unreadable: set[int] = set()

    def batches() -> Iterator[TileBatch]:
        for start in range(0, len(ordered), batch_size):
            group = ordered[start : start + batch_size]
            pixels = np.stack([_read(slide, geometry.window(i, j), unreadable, cells_of[i, j]) for i, j in group])
            yield TileBatch(slide_id, np.array(group, np.int64).reshape(-1, 2), pixels)

    done = 0
    for maps in source.predict(batches()):
        for prob in maps.prob:  # (C + 1, h, w)
            index = ordered[done]
            done += 1
            core = geometry.core(*index)
            for row in cells_of[index]:
                inside, rows, columns = _pixels_of(cells.outlines_px[row], core)
                sums[row] += prob[:, rows, columns][:, inside].sum(axis=1, dtype=np.int64)
                counts[row] += int(inside.sum())
    for row in unreadable:
        sums[row], counts[row] = 0, 0
    return CellScores(sums, counts)


def _read(slide: ReadsPixels, window: Box, unreadable: set[int], rows: list[int]) -> npt.NDArray[np.uint8]:
    found = slide.read(window)
    if found.unreadable:
        unreadable.update(rows)
    return found.pixels


def _pixels_of(outline: Polygon, core: Box) -> tuple[npt.NDArray[np.bool_], slice, slice]:
    """Pixels of the core whose centres lie in the outline, within the outline's box: mask, rows, columns."""
    x0, y0, x1, y1 = outline.bounds
    part = Box(int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)) + 1, int(np.ceil(y1)) + 1).clipped(core)
    xs, ys = np.meshgrid(np.arange(part.x0, part.x1) + 0.5, np.arange(part.y0, part.y1) + 0.5)
    shapely.prepare(outline)
    inside = np.asarray(shapely.contains_xy(outline, xs, ys), np.bool_)
    rows, columns = slice(part.y0 - core.y0, part.y1 - core.y0), slice(part.x0 - core.x0, part.x1 - core.x0)
    return inside, rows, columns
