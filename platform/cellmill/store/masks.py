"""The slide's label mask, as a commit makes it: fields wrote level 0, here come the pyramid and the metadata.

In: the `CoreMask`s of the slide's fields. Out: an OME-Zarr 0.5 label image of sharded zarr v3 arrays under
`masks/<slide_id>.ome.zarr`. Levels whose chunks end where fields end are put together from chunks that the fields
encoded; each coarser one is made from the one before. The root `zarr.json` comes last: before it there is nothing that
a reader would open.

Levels are sampled `[::2, ::2]`. Coordinates are those of pixel centres, as viewers take them: pixel i of level k is
pixel i * 2^k of level 0, hence a scale of 2^k * target_mpp and no translation between levels.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from cellmill.grid import Box, SlideGrid
from cellmill.store.core_masks import CoreMaskReader, MaskLevel, mask_levels, num_whole_levels
from cellmill.store.layout import mask_prefix, mask_shard_key
from cellmill.store.objects import ObjectStore
from cellmill.store.shards import (
    CHUNK_PX,
    ZSTD_LEVEL,
    CodedChunk,
    LabelPixels,
    MaskChunk,
    decode_shard,
    encode_shard,
    join_chunks,
    mask_dtype,
    pixels_digest,
)

__all__ = ["MaskWriter", "PaintedIds"]


@dataclass(frozen=True)
class PaintedIds:
    """Mask ids that must have a row in the table, and the field (column, row) that painted each."""

    ids: npt.NDArray[np.uint64]
    columns: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


class MaskWriter:
    """Makes one slide's mask of what its fields painted."""

    def __init__(self, store: ObjectStore, *, slide_id: str, grid: SlideGrid, field_px: int) -> None:
        self._store = store
        self._slide_id = slide_id
        self._grid = grid
        self._field_px = field_px
        self._dtype = mask_dtype(grid)
        self._levels = mask_levels(grid, field_px=field_px)
        self._written: set[str] = set()
        self._sha256: dict[str, str] = {}
        self._digests: dict[tuple[int, int], bytes] = {}  # of level-0 chunks, by row and column
        self._border_ids: list[npt.NDArray[np.uint64]] = []
        self._painters: list[tuple[int, int]] = []  # column and row of the field each of these is of

    def write_pyramid(self, cores: Mapping[tuple[int, int], str]) -> None:
        """Put every reduced level together, and gather digest and border ids.

        Args:
            cores: key of each painted field's `CoreMask`, by the field's (column, row).
        """
        for (column, row), key in sorted(cores.items()):
            core = CoreMaskReader(self._store.get(key))
            self._sha256.update(core.shards)
            self._digests.update(core.digests())
            self._border_ids.append(core.border_ids)
            self._painters.append((column, row))
        self._written = set(self._sha256)
        num_whole = num_whole_levels(self._levels, field_px=self._field_px)
        for finer, coarser in pairwise(self._levels):
            num_rows, num_columns = coarser.num_shards
            for row, column in product(range(num_rows), range(num_columns)):
                if coarser.number <= num_whole:
                    data = join_chunks(self._painted(coarser, cores, row, column), shard_px=coarser.shard_px)
                else:
                    chunks = self._reduced_chunks(finer, coarser, row=row, column=column)
                    data = encode_shard(chunks, shard_px=coarser.shard_px)
                if data is not None:
                    key = self._shard_key(coarser.number, row, column)
                    self._put(key, data)
                    self._written.add(key)

    def border_ids(self) -> PaintedIds:
        """Ids along field borders; complete after `write_pyramid`."""
        counts = [ids.size for ids in self._border_ids]
        painters = np.array(self._painters, np.int64).reshape(-1, 2)
        return PaintedIds(
            ids=np.concatenate([*self._border_ids, np.empty(0, np.uint64)]),
            columns=np.repeat(painters[:, 0], counts),
            rows=np.repeat(painters[:, 1], counts),
        )

    def digest(self) -> str:
        """SHA-256 of the level-0 pixels, chunk by chunk in raster order, whatever the shards; after `write_pyramid`."""
        return pixels_digest(self._grid, self._digests)

    def publish(self) -> None:
        """Remove what does not belong, then write the arrays' metadata and, last, the root's."""
        prefix = mask_prefix(self._slide_id)
        self._store.sweep(prefix)
        for key in self._store.list_keys(prefix):
            if key.endswith("zarr.json") or key in self._written:
                continue
            self._store.delete(key)
        for level in self._levels:
            self._put(f"{prefix}/{level.number}/zarr.json", _array_metadata(level, self._dtype))
        self._put(f"{prefix}/zarr.json", _root_metadata(self._levels, self._grid))

    def digests(self) -> dict[str, str]:
        """SHA-256 of each of the mask's objects, by key; after `publish`."""
        return dict(self._sha256)

    # ------------------------------------------------------------------------------------------------- inside

    def _put(self, key: str, data: bytes) -> None:
        self._store.put(key, data)
        self._sha256[key] = hashlib.sha256(data).hexdigest()

    def _shard_key(self, level: int, row: int, column: int) -> str:
        return mask_shard_key(self._slide_id, level=level, row=row, column=column)

    def _chunks(self, level: MaskLevel, *, row: int, column: int, within: Box) -> Iterator[MaskChunk]:
        """Non-empty chunks of a shard that lie in `within`; both in chunks of the whole level."""
        key = self._shard_key(level.number, row, column)
        if key not in self._written:
            return
        per_side = level.shard_px // CHUNK_PX
        top, left = row * per_side, column * per_side
        rows, columns = range(within.y0 - top, within.y1 - top), range(within.x0 - left, within.x1 - left)
        data = self._store.get(key)
        try:
            for chunk in decode_shard(data, shard_px=level.shard_px, dtype=self._dtype, rows=rows, columns=columns):
                yield MaskChunk(chunk.row + top, chunk.column + left, chunk.pixels)
        except ValueError as error:
            error.add_note(f"while reading {key}")
            raise

    def _painted(
        self, level: MaskLevel, cores: Mapping[tuple[int, int], str], row: int, column: int
    ) -> list[CodedChunk]:
        """Chunks of one shard of a level that fields encoded themselves, in raster order."""
        per_side = level.shard_px // CHUNK_PX
        top, left, span_px = row * per_side, column * per_side, level.shard_px << level.number
        rows, columns = (
            range(place * span_px // self._field_px, -(-(place + 1) * span_px // self._field_px))
            for place in (row, column)
        )
        found: list[CodedChunk] = []
        for field_row, field_column in product(rows, columns):
            key = cores.get((field_column, field_row))
            for chunk in () if key is None else CoreMaskReader(self._store.get(key)).chunks(level.number):
                place = chunk.row - top, chunk.column - left
                if min(place) >= 0 and max(place) < per_side:
                    found.append(CodedChunk(*place, data=chunk.data))
        return sorted(found, key=lambda chunk: (chunk.row, chunk.column))

    def _reduced_chunks(self, finer: MaskLevel, coarser: MaskLevel, *, row: int, column: int) -> Iterator[MaskChunk]:
        """Non-empty chunks of one shard of `coarser`, in raster order, from the shards of `finer` under it."""
        per_side = coarser.shard_px // CHUNK_PX
        half = CHUNK_PX // 2
        reduced: dict[tuple[int, int], LabelPixels] = {}
        for chunk in self._chunks_under(finer, coarser, row=row, column=column):
            sampled = chunk.pixels[::2, ::2]
            if sampled.any():
                place = (chunk.row // 2 - row * per_side, chunk.column // 2 - column * per_side)
                target = reduced.setdefault(place, np.zeros((CHUNK_PX, CHUNK_PX), self._dtype))
                top, left = chunk.row % 2 * half, chunk.column % 2 * half
                target[top : top + half, left : left + half] = sampled
        for place in sorted(reduced):
            yield MaskChunk(*place, pixels=reduced[place])

    def _chunks_under(self, finer: MaskLevel, coarser: MaskLevel, *, row: int, column: int) -> Iterator[MaskChunk]:
        """Chunks of `finer` inside one shard of `coarser`; a finer shard may straddle several coarser ones."""
        reach = 2 * coarser.shard_px // CHUNK_PX
        return self._chunks_within(finer, Box(column * reach, row * reach, (column + 1) * reach, (row + 1) * reach))

    def _chunks_within(self, level: MaskLevel, within: Box) -> Iterator[MaskChunk]:
        per_side = level.shard_px // CHUNK_PX
        num_rows, num_columns = level.num_shards
        for row in range(within.y0 // per_side, min(-(-within.y1 // per_side), num_rows)):
            for column in range(within.x0 // per_side, min(-(-within.x1 // per_side), num_columns)):
                yield from self._chunks(level, row=row, column=column, within=within)


def _array_metadata(level: MaskLevel, dtype: np.dtype) -> bytes:
    """The array's `zarr.json`, as zarr itself writes it."""
    # Only a commit needs zarr, which takes longer to import than a worker to write a part.
    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.core.buffer import Buffer
    from zarr.storage import MemoryStore

    objects: dict[str, Buffer] = {}
    zarr.create_array(
        MemoryStore(objects),
        shape=(level.height_px, level.width_px),
        chunks=(CHUNK_PX, CHUNK_PX),
        shards=(level.shard_px, level.shard_px),
        dtype=dtype,
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        fill_value=0,
        dimension_names=("y", "x"),
        zarr_format=3,
    )
    return objects["zarr.json"].to_bytes()


def _root_metadata(levels: list[MaskLevel], grid: SlideGrid) -> bytes:
    datasets = [
        {
            "path": str(level.number),
            "coordinateTransformations": [{"type": "scale", "scale": [grid.target_mpp * 2**level.number] * 2}],
        }
        for level in levels
    ]
    multiscale = {
        "name": "cells",
        "axes": [{"name": name, "type": "space", "unit": "micrometer"} for name in ("y", "x")],
        "datasets": datasets,
        "type": "nearest",
        "metadata": {"method": "[::2, ::2]"},
    }
    attributes = {"ome": {"version": "0.5", "multiscales": [multiscale], "image-label": {}}}
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(document, indent=2).encode()
