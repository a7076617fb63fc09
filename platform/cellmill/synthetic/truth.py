"""The exact truth beside a synthetic slide: a label mask and a typed table, and one question answered from either.

On disk, in a folder of its own: `labels.zarr` (level-0 px, value = `mask_id` = 1 + index of the pixel that holds the
cell's centre, 0 background) and `cells.parquet` (one row one cell, in the order of tiles, row by row).
`truth_labels` answers the same for these files and for a `SyntheticSlide` that was never written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from cellmill.grid import Box
from cellmill.synthetic.cell_types import TYPE_NAMES
from cellmill.synthetic.slide import SyntheticSlide
from cellmill.synthetic.tissue import SyntheticRegion

__all__ = ["TRUTH_SCHEMA", "SlideTruth", "TruthWindow", "TruthWriter", "open_truth", "truth_labels"]

TRUTH_SCHEMA = pa.schema(
    [
        pa.field("mask_id", pa.uint64(), nullable=False),
        pa.field("cell_type", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("x_level0_px", pa.float64(), nullable=False),
        pa.field("y_level0_px", pa.float64(), nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("area_um2", pa.float64(), nullable=False),
        *(pa.field(f"bbox_{side}", pa.int64(), nullable=False) for side in ("x0", "y0", "x1", "y1")),
        pa.field("obscured", pa.bool_(), nullable=False),
    ]
)
"""Columns of `cells.parquet`. The centroid is the mean of the pixels' centres, pixel (0, 0) having its centre at
(0.5, 0.5); the box is half-open; `obscured` cells lie under ink or out of focus."""

_ROWS_PER_GROUP = 16384


@dataclass(frozen=True)
class TruthWindow:
    """Truth of a window."""

    labels: NDArray[np.int32]
    """(H, W): 0 background, i + 1 for row i of the arrays below; rows are sorted by `mask_ids`."""
    types: NDArray[np.int8]
    """(n,) index in the `refined7` ontology."""
    mask_ids: NDArray[np.uint64]
    """(n,)"""


@dataclass(frozen=True)
class SlideTruth:
    """Truth files opened for reading."""

    labels: zarr.Array
    """(H, W) of `mask_id`."""
    table: pa.Table
    mask_ids: NDArray[np.uint64]
    """Sorted."""
    types: NDArray[np.int8]
    """In the order of `mask_ids`."""


class TruthWriter:
    """Writes truth tile by tile, in bounded memory."""

    def __init__(self, folder: Path, slide: SyntheticSlide, *, tile_px: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        dtype = np.uint32 if slide.width_px * slide.height_px < (1 << 32) - 1 else np.uint64
        self._slide = slide
        self._labels = zarr.create_array(
            store=str(folder / "labels.zarr"),
            shape=(slide.height_px, slide.width_px),
            chunks=(tile_px, tile_px),
            dtype=dtype,
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
            dimension_names=("y", "x"),
            overwrite=True,
        )
        self._table = pq.ParquetWriter(folder / "cells.parquet", TRUTH_SCHEMA, compression="zstd")
        self._pending: list[pa.Table] = []
        self.num_cells_by_type: dict[str, int] = dict.fromkeys(TYPE_NAMES, 0)

    def write(self, box: Box, region: SyntheticRegion) -> None:
        """Add one tile: its labels, clipped to the slide, and the cells whose centre lies in it."""
        ids = self._slide.mask_ids(region.cells)
        painted = np.concatenate([[np.uint64(0)], ids]).astype(self._labels.dtype)[region.labels]
        inside = box.clipped(Box(0, 0, self._slide.width_px, self._slide.height_px))
        if len(ids):
            self._labels[inside.y0 : inside.y1, inside.x0 : inside.x1] = painted[: inside.height, : inside.width]
        self._pending.append(self._rows(inside, region, ids))
        if sum(table.num_rows for table in self._pending) >= _ROWS_PER_GROUP:
            self._flush()

    def _rows(self, inside: Box, region: SyntheticRegion, ids: NDArray[np.uint64]) -> pa.Table:
        cells = region.cells
        x, y = np.floor(cells.centers_px).astype(np.int64).T
        own = (x >= inside.x0) & (x < inside.x1) & (y >= inside.y0) & (y < inside.y1)
        types = cells.types[own]
        for name, count in zip(TYPE_NAMES, np.bincount(types, minlength=len(TYPE_NAMES)), strict=True):
            self.num_cells_by_type[name] += int(count)
        columns = [
            ids[own],
            pa.DictionaryArray.from_arrays(pa.array(types), pa.array(TYPE_NAMES)),
            *cells.centroids_px[own].T,
            cells.areas_px[own],
            cells.areas_px[own] * self._slide.mpp**2,
            *cells.boxes_px[own].T,
            self._slide.is_obscured(cells)[own],
        ]
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, TRUTH_SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=TRUTH_SCHEMA)

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending)
            self._table.write_table(table, row_group_size=max(1, table.num_rows))
            self._pending.clear()

    def __enter__(self) -> "TruthWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._table.close()


def open_truth(folder: str | Path) -> SlideTruth:
    """Open the truth folder of a slide.

    Raises:
        FileNotFoundError: when it holds no truth, naming the folder.
    """
    folder = Path(folder)
    if not (folder / "cells.parquet").is_file():
        raise FileNotFoundError(f"No truth in {folder}: cells.parquet is missing; was the cohort written completely?")
    table = pq.read_table(folder / "cells.parquet")
    ids = table["mask_id"].to_numpy()
    types = table["cell_type"].combine_chunks()
    assert isinstance(types, pa.DictionaryArray)
    order = np.argsort(ids)
    labels = zarr.open_array(str(folder / "labels.zarr"), mode="r")
    codes = types.indices.to_numpy(zero_copy_only=False).astype(np.int8)
    return SlideTruth(labels=labels, table=table, mask_ids=ids[order], types=codes[order])


def truth_labels(truth: SlideTruth | SyntheticSlide, box: Box) -> TruthWindow:
    """Exact truth of a window in level-0 px, from files or from the slide itself; background beyond the slide."""
    if isinstance(truth, SyntheticSlide):
        return _from_slide(truth, box)
    height, width = truth.labels.shape
    inside = box.clipped(Box(0, 0, width, height))
    painted = np.zeros((box.height, box.width), np.uint64)
    if inside.area:
        block = np.asarray(truth.labels[inside.y0 : inside.y1, inside.x0 : inside.x1])
        y, x = inside.y0 - box.y0, inside.x0 - box.x0
        painted[y : y + inside.height, x : x + inside.width] = block
    ids, labels = np.unique(painted, return_inverse=True)
    labels = labels.reshape(painted.shape).astype(np.int32)
    if len(ids) and ids[0] == 0:
        ids = ids[1:]
    else:
        labels += 1
    return TruthWindow(labels=labels, types=truth.types[np.searchsorted(truth.mask_ids, ids)], mask_ids=ids)


def _from_slide(slide: SyntheticSlide, box: Box) -> TruthWindow:
    region = slide.truth(box)
    ids = slide.mask_ids(region.cells)
    order = np.argsort(ids)
    new: NDArray[np.int32] = np.zeros(len(ids) + 1, np.int32)
    new[order + 1] = np.arange(1, len(ids) + 1)
    return TruthWindow(labels=_relabel(region.labels, new), types=region.types[order], mask_ids=ids[order])


def _relabel(labels: NDArray[np.int32], new: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int32]:
    return np.asarray(new, np.int32)[labels]
