"""One slide's embeddings by the model that segmented it: every tile with a cell once more, no cell or mask changed.

In: a finished slide and its file. Out: `embeddings/student/<slide_id>`. A cell's pixels are those of the committed
mask, so the result depends on neither field size nor workers: tiles, mask and sums are the same in every run.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.cohort.field import ReadsPixels
from cellmill.cohort.per_slide import SlideOrder, opened_again
from cellmill.cohort.sources import TileBatch
from cellmill.embedding.cells import CellsByTile, cells_by_tile
from cellmill.embedding.pooling import CellPool, Cover, cover_of_labels
from cellmill.embedding.sources import FeatureSource
from cellmill.grid import Box, SlideGrid, TileGeometry
from cellmill.slides.errors import SlideError
from cellmill.slides.isolation import ReaderLimits
from cellmill.staging.cache import SlideCache
from cellmill.store.embeddings import EmbeddingRecord, writing_embeddings
from cellmill.store.layout import mask_prefix
from cellmill.store.objects import ObjectStore

__all__ = ["EmbedSettings", "EmbeddedSlide", "embed_slide", "pooled_cells"]


@dataclass(frozen=True)
class EmbedSettings:
    """What holds for all slides of a run."""

    store: ObjectStore
    reader: str
    """Function that opened the slides when they were segmented."""
    record: EmbeddingRecord
    """With the slide and its cell table left empty."""
    geometry: TileGeometry
    batch_size: int
    slide_cache: SlideCache
    reader_limits: ReaderLimits


@dataclass(frozen=True)
class EmbeddedSlide:
    """How one slide went."""

    slide_id: str
    num_cells: int = 0
    num_tiles: int = 0
    seconds: float = 0.0
    problem: str = ""
    """Why the slide has no embeddings, in words."""

    def to_table(self) -> pa.Table:
        """As a message of one row."""
        return pa.table({"slide": [json.dumps(asdict(self))]})

    @staticmethod
    def of_table(table: pa.Table) -> "EmbeddedSlide":
        """Parse what `to_table` made."""
        return EmbeddedSlide(**json.loads(table.column("slide")[0].as_py()))


def embed_slide(order: SlideOrder, source: FeatureSource, settings: EmbedSettings) -> EmbeddedSlide:
    """Store the vectors of one slide's cells; a slide that cannot be embedded says why and stops no other."""
    try:
        return _embedded(order, source, settings)
    except (SlideError, ValueError, OSError) as error:
        return EmbeddedSlide(order.status.slide_id, problem=str(error))


def _embedded(order: SlideOrder, source: FeatureSource, settings: EmbedSettings) -> EmbeddedSlide:
    status, store, geometry = order.status, settings.store, settings.geometry
    assert status.target_mpp is not None
    started = time.monotonic()
    with opened_again(
        order,
        target_mpp=status.target_mpp,
        reader=settings.reader,
        cache=settings.slide_cache,
        limits=settings.reader_limits,
    ) as slide:
        cells = cells_by_tile(store, status.slide_id, grid=slide.grid, geometry=geometry)
        mask = _open_mask(store, status.slide_id)
        pieces = pooled_cells(
            slide, mask, cells, source, slide_id=status.slide_id, grid=slide.grid, geometry=geometry,
            batch_size=settings.batch_size, layer_stride_px=settings.record.layer_stride_px,
        )  # fmt: skip
        num_cells = _write(order, settings, pieces)
    return EmbeddedSlide(status.slide_id, num_cells, len(cells.tiles), round(time.monotonic() - started, 3))


def pooled_cells(
    slide: ReadsPixels,
    mask: Any,
    cells: CellsByTile,
    source: FeatureSource,
    *,
    slide_id: str,
    grid: SlideGrid,
    geometry: TileGeometry,
    batch_size: int,
    layer_stride_px: int,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
    """Ids and vectors (n, D) of a slide's cells, in the order of their ids, as soon as each was seen whole.

    Args:
        slide: open, on the grid that the cells were found on.
        mask: what `[rows, columns]` of level 0 answer with mask ids.
        cells: of the slide.
        source: the model.
        slide_id: the slide.
        grid: the slide's.
        geometry: the model's tiles.
        batch_size: tiles a forward pass.
        layer_stride_px: pixels a side of one position of the model's features.

    Raises:
        ValueError: when a tile that holds a cell cannot be read, or the mask holds a cell that the table does not.
    """
    side = geometry.stride_px // layer_stride_px
    waiting: deque[tuple[int, Cover]] = deque()

    def batches() -> Iterator[TileBatch]:
        group: list[tuple[int, int]] = []
        for i, j in cells.tiles.tolist():
            core = geometry.core(i, j).clipped(grid.box)
            labels = np.asarray(mask[core.y0 : core.y1, core.x0 : core.x1])
            cover = cover_of_labels(labels, cells.mask_ids, side=side, stride_px=layer_stride_px)
            if len(cover.rows):
                waiting.append((j, cover))
                group.append((i, j))
            if len(group) == batch_size:
                yield _read(slide, slide_id, group, geometry)
                group = []
        if group:
            yield _read(slide, slide_id, group, geometry)

    pool: CellPool | None = None
    tile_row = 0
    for found in source.features(batches()):
        for features in found.features:  # (h, w, D)
            pool = pool or CellPool(features.shape[-1])
            j, cover = waiting.popleft()
            if j > tile_row:
                rows, vectors = pool.take(cells.num_seen(j - 1))
                yield cells.cell_ids[rows], vectors
                tile_row = j
            pool.add(cover, features)
    if pool is not None:
        rows, vectors = pool.take(len(cells.cell_ids))
        yield cells.cell_ids[rows], vectors


def _read(slide: ReadsPixels, slide_id: str, tiles: list[tuple[int, int]], geometry: TileGeometry) -> TileBatch:
    pixels = [_pixels(slide, geometry.window(i, j)) for i, j in tiles]
    return TileBatch(slide_id, np.array(tiles, np.int64).reshape(-1, 2), np.stack(pixels))


def _pixels(slide: ReadsPixels, window: Box) -> npt.NDArray[np.uint8]:
    found = slide.read(window)
    if not found.is_readable(window):
        raise ValueError(
            f"The pixels at ({window.x0}, {window.y0}) px of the model grid cannot be read any more, and there are "
            "cells. Copy the slide again, then run the same command."
        )
    return found.pixels


def _write(
    order: SlideOrder,
    settings: EmbedSettings,
    pieces: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]],
) -> int:
    """Write the pieces as one table, if they are all of the slide's cells; returns how many."""
    status = order.status
    record = replace(settings.record, slide_id=status.slide_id, cells_sha256=status.cells_sha256)
    with writing_embeddings(settings.store, record) as writer:
        for piece in pieces:
            writer.add(*piece)
        if writer.num_added != status.num_cells:
            raise ValueError(
                f"{writer.num_added:,} of {status.num_cells:,} cells have pixels in the mask; verify_cellset says "
                "what is wrong."
            )
    return writer.num_added


def _open_mask(store: ObjectStore, slide_id: str) -> Any:
    """Level 0 of the slide's mask."""
    import zarr

    key = f"{mask_prefix(slide_id)}/0"
    return zarr.open_array(store.path(key) if store.is_local else f"{store.url}/{key}", mode="r")
