"""Scores of chosen cells from the heavy model's maps: each tile is predicted once, each cell votes over its outline.

A cell's class is the vote of its pixels' class probabilities, background left out, as in the cell table; the pixels are
those of the student's outline, from whichever tile's core holds them. Memory holds one batch of tiles.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import Polygon

from cellmill.cohort.field import ReadsPixels
from cellmill.cohort.sources import MapSource, TileBatch
from cellmill.embedding.pooling import CellPool, cover_of_pixels
from cellmill.embedding.sources import FeatureSource
from cellmill.grid import Box, TileGeometry
from cellmill.rescore.choosing import ChosenCells, TileIndex

__all__ = ["CellScores", "Pooled", "score_cells"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pooled:
    """A heavy model that is asked for its cells' embeddings in the same pass."""

    source: FeatureSource
    """Opened with maps."""
    layer_stride_px: int
    take: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float16]], None]
    """Takes rows and vectors (n, D), rows ascending, as soon as all their tiles have been looked at."""


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
    source: MapSource | Pooled,
    *,
    slide_id: str,
    geometry: TileGeometry,
    num_classes: int,
    batch_size: int,
) -> CellScores:
    """Predict the tiles and sum up each cell.

    Args:
        slide: open, on the heavy model's grid.
        cells: outlines on that grid; where embeddings are wanted, about from top to bottom, as ids are: sums of all
            cells below one whose tiles are still to come are kept.
        tiles: of each cell, those whose cores it touches.
        source: the heavy model, asked for embeddings or not.
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

    pooling = _Pooling(source, tiles, unreadable, geometry) if isinstance(source, Pooled) else None
    for index, (prob, features) in zip(ordered, _predicted(source, batches()), strict=True):
        core = geometry.core(*index)
        covered: list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        for row in cells_of[index]:
            inside, rows, columns = _pixels_of(cells.outlines_px[row], core)
            sums[row] += prob[:, rows, columns][:, inside].sum(axis=1, dtype=np.int64)
            counts[row] += int(inside.sum())
            if pooling is not None:
                y, x = np.nonzero(inside)
                covered.append((row, y + rows.start, x + columns.start))
        if pooling is not None:
            assert features is not None
            pooling.add(index, covered, features)
    if pooling is not None:
        pooling.finish()
    for row in unreadable:
        sums[row], counts[row] = 0, 0
    return CellScores(sums, counts)


def _predicted(
    source: MapSource | Pooled, batches: Iterable[TileBatch]
) -> Iterator[tuple[npt.NDArray[np.uint8], Floats | None]]:
    """Probabilities (C + 1, h, w) of each tile's core, and features (h / s, w / s, D) where they were asked for."""
    if isinstance(source, Pooled):
        for found in source.source.features(batches):
            assert found.maps is not None, "opened with maps"
            yield from zip(found.maps.prob, found.features, strict=True)
        return
    for maps in source.predict(batches):
        # What a GPU made is brought here: few tiles, and outlines are looked up on the host.
        prob = maps.prob if isinstance(maps.prob, np.ndarray) else maps.prob.cpu().numpy()
        for one in prob:
            yield one, None


class _Pooling:
    """Sums of the cells' features, handed on row by row as cells are complete."""

    def __init__(
        self, pooled: Pooled, tiles: Sequence[Sequence[TileIndex]], unreadable: set[int], geometry: TileGeometry
    ) -> None:
        self._pooled, self._unreadable = pooled, unreadable
        self._side = geometry.stride_px // pooled.layer_stride_px
        self._last_tile_rows = np.array([max((j for _, j in indices), default=-1) for indices in tiles], np.int64)
        self._pool: CellPool | None = None
        self._tile_row = 0

    def add(
        self,
        index: TileIndex,
        covered: list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]],
        features: Floats,
    ) -> None:
        """Add a tile's features to the cells (row, y, x of pixels) that lie on it."""
        self._pool = self._pool or CellPool(features.shape[-1])
        if index[1] > self._tile_row:
            later = np.flatnonzero(self._last_tile_rows > index[1] - 1)
            self._take(int(later[0]) if len(later) else len(self._last_tile_rows))
            self._tile_row = index[1]
        rows = np.concatenate([np.full(len(y), row, np.int64) for row, y, _ in covered])
        places = [np.concatenate([entry[axis] for entry in covered]) for axis in (1, 2)]
        stride_px = self._pooled.layer_stride_px
        self._pool.add(cover_of_pixels(rows, places[0], places[1], side=self._side, stride_px=stride_px), features)

    def finish(self) -> None:
        """Hand on what is left."""
        self._take(len(self._last_tile_rows))

    def _take(self, stop: int) -> None:
        if self._pool is None:
            return
        rows, vectors = self._pool.take(stop)
        readable = np.array([row not in self._unreadable for row in rows.tolist()], np.bool_)
        self._pooled.take(rows[readable], vectors[readable])


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
