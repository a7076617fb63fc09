"""The slide's label mask: level-0 shards written by fields, pyramid and metadata written at commit.

In: painted field cores. Out: an OME-Zarr 0.5 label image of sharded zarr v3 arrays under `masks/<slide_id>.ome.zarr`.
Fields write whole level-0 shards and nothing else, so they never meet and need no lock. `finish_level0` reads each
level-0 shard once and makes from it the first reduced level, the digest of the pixels and the ids along field borders.
The root `zarr.json` comes last: before it there is nothing that a reader would open.

Levels are sampled `[::2, ::2]`. Coordinates are those of pixel centres, as viewers take them: pixel i of level k is
pixel i * 2^k of level 0, hence a scale of 2^k * target_mpp and no translation between levels.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cellmill.grid import Box, SlideGrid
from cellmill.store.layout import mask_prefix, mask_shard_key
from cellmill.store.objects import ObjectStore
from cellmill.store.shards import (
    CHUNK_PX,
    ZSTD_LEVEL,
    LabelPixels,
    MaskChunk,
    chunks_of,
    decode_shard,
    encode_shard,
    mask_dtype,
    pixels_digest,
    shard_px_of_field,
)

__all__ = ["MaskWriter", "PaintedIds"]

_PYRAMID_SHARD_PX = 2048
"""Shards of reduced levels: 16 MB of pixels, so that building a level stays small in memory."""

_SMALLEST_LEVEL_PX = 512


@dataclass(frozen=True)
class PaintedIds:
    """Mask ids that must have a row in the table, and the field (column, row) that painted each."""

    ids: npt.NDArray[np.uint64]
    columns: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Level:
    """One array of the pyramid."""

    number: int
    height_px: int
    width_px: int
    shard_px: int

    @property
    def num_shards(self) -> tuple[int, int]:
        """Rows and columns of shards."""
        return -(-self.height_px // self.shard_px), -(-self.width_px // self.shard_px)


@dataclass
class _Level0Findings:
    """What is gathered while level 0 is read once."""

    digests: dict[tuple[int, int], bytes] = field(default_factory=dict)  # of chunk (row, column)
    ids: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    owners: list[tuple[int, int, int]] = field(default_factory=list)  # field column, row, number of ids


class MaskWriter:
    """Writes one slide's mask."""

    def __init__(self, store: ObjectStore, *, slide_id: str, grid: SlideGrid, field_px: int) -> None:
        self._store = store
        self._slide_id = slide_id
        self._grid = grid
        self._field_px = field_px
        self._dtype = mask_dtype(grid)
        self._levels = _levels(grid, shard_px=shard_px_of_field(field_px))
        self._written: set[str] = set()
        self._sha256: dict[str, str] = {}
        self.findings = _Level0Findings()

    # -------------------------------------------------------------------------------------------- by each field

    def write_core(self, core: Box, pixels: LabelPixels) -> list[str]:
        """Write the shards of one field; returns the keys of those that hold any cell.

        Args:
            core: the field's core, a whole number of shards; it may reach past the slide.
            pixels: (core.height, core.width), mask ids; what lies past the slide is ignored.
        """
        shard_px = self._levels[0].shard_px
        inside = core.clipped(self._grid.box)
        pixels = np.array(pixels, self._dtype)
        pixels[inside.height :], pixels[:, inside.width :] = 0, 0
        keys: list[str] = []
        for top in range(0, inside.height, shard_px):
            for left in range(0, inside.width, shard_px):
                data = encode_shard(chunks_of(pixels[top : top + shard_px, left : left + shard_px]), shard_px=shard_px)
                if data is not None:
                    key = self._shard_key(0, (core.y0 + top) // shard_px, (core.x0 + left) // shard_px)
                    self._store.put(key, data)
                    keys.append(key)
        return keys

    # ----------------------------------------------------------------------------------------------- at commit

    def write_pyramid(self, level0_keys: set[str]) -> None:
        """Read the level-0 shards named, once; write every reduced level; gather digest and border ids."""
        self._written = set(level0_keys)
        for finer, coarser in zip(self._levels, self._levels[1:], strict=False):
            written: set[str] = set()
            num_rows, num_columns = coarser.num_shards
            for row in range(num_rows):
                for column in range(num_columns):
                    chunks = self._reduced_chunks(finer, coarser, row=row, column=column)
                    data = encode_shard(chunks, shard_px=coarser.shard_px)
                    if data is not None:
                        key = self._shard_key(coarser.number, row, column)
                        self._put(key, data)
                        written.add(key)
            self._written |= written
        if len(self._levels) == 1:
            num_rows, num_columns = (-(-side // CHUNK_PX) for side in (self._grid.height_px, self._grid.width_px))
            for _ in self._chunks_within(self._levels[0], Box(0, 0, num_columns, num_rows)):
                pass  # a slide this small has no reduced level; `_note` still wants to see its chunks

    def border_ids(self) -> PaintedIds:
        """Ids along field borders; complete after `write_pyramid`."""
        found = self.findings
        counts = [count for _, _, count in found.owners]
        return PaintedIds(
            ids=np.concatenate([*found.ids, np.empty(0, np.uint64)]),
            columns=np.repeat(np.array([column for column, _, _ in found.owners], np.int64), counts),
            rows=np.repeat(np.array([row for _, row, _ in found.owners], np.int64), counts),
        )

    def digest(self) -> str:
        """SHA-256 of the level-0 pixels, chunk by chunk in raster order, whatever the shards; after `write_pyramid`."""
        return pixels_digest(self._grid, self.findings.digests)

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

    def _chunks(self, level: _Level, *, row: int, column: int, within: Box) -> Iterator[MaskChunk]:
        """Non-empty chunks of a shard that lie in `within`; both in chunks of the whole level."""
        key = self._shard_key(level.number, row, column)
        if key not in self._written:
            return
        per_side = level.shard_px // CHUNK_PX
        top, left = row * per_side, column * per_side
        rows, columns = range(within.y0 - top, within.y1 - top), range(within.x0 - left, within.x1 - left)
        data = self._store.get(key)
        if key not in self._sha256:
            self._sha256[key] = hashlib.sha256(data).hexdigest()
        try:
            for chunk in decode_shard(data, shard_px=level.shard_px, dtype=self._dtype, rows=rows, columns=columns):
                placed = MaskChunk(chunk.row + top, chunk.column + left, chunk.pixels)
                if level.number == 0:
                    self._note(placed)
                yield placed
        except ValueError as error:
            error.add_note(f"while reading {key}")
            raise

    def _reduced_chunks(self, finer: _Level, coarser: _Level, *, row: int, column: int) -> Iterator[MaskChunk]:
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

    def _chunks_under(self, finer: _Level, coarser: _Level, *, row: int, column: int) -> Iterator[MaskChunk]:
        """Chunks of `finer` inside one shard of `coarser`; a finer shard may straddle several coarser ones."""
        reach = 2 * coarser.shard_px // CHUNK_PX
        return self._chunks_within(finer, Box(column * reach, row * reach, (column + 1) * reach, (row + 1) * reach))

    def _chunks_within(self, level: _Level, within: Box) -> Iterator[MaskChunk]:
        per_side = level.shard_px // CHUNK_PX
        num_rows, num_columns = level.num_shards
        for row in range(within.y0 // per_side, min(-(-within.y1 // per_side), num_rows)):
            for column in range(within.x0 // per_side, min(-(-within.x1 // per_side), num_columns)):
                yield from self._chunks(level, row=row, column=column, within=within)

    def _note(self, chunk: MaskChunk) -> None:
        """Digest of a level-0 chunk, and its ids along field borders."""
        place = (chunk.row, chunk.column)
        self.findings.digests[place] = hashlib.sha256(np.ascontiguousarray(chunk.pixels).data).digest()
        lines = _border_lines(chunk, field_px=self._field_px)
        if lines:
            ids = np.unique(np.concatenate(lines)).astype(np.uint64)
            ids = ids[ids > 0]
            per_field = self._field_px // CHUNK_PX
            self.findings.ids.append(ids)
            self.findings.owners.append((chunk.column // per_field, chunk.row // per_field, ids.size))


def _border_lines(chunk: MaskChunk, *, field_px: int) -> list[LabelPixels]:
    """Outermost rows and columns of a chunk that lie on a border between fields (or on the slide's edge)."""
    per_field = field_px // CHUNK_PX
    lines: list[LabelPixels] = []
    if chunk.row % per_field == 0:
        lines.append(chunk.pixels[0])
    if chunk.row % per_field == per_field - 1:
        lines.append(chunk.pixels[-1])
    if chunk.column % per_field == 0:
        lines.append(chunk.pixels[:, 0])
    if chunk.column % per_field == per_field - 1:
        lines.append(chunk.pixels[:, -1])
    return lines


def _levels(grid: SlideGrid, *, shard_px: int) -> list[_Level]:
    levels = [_Level(0, grid.height_px, grid.width_px, shard_px)]
    while max(levels[-1].height_px, levels[-1].width_px) > _SMALLEST_LEVEL_PX:
        last = levels[-1]
        height_px, width_px = -(-last.height_px // 2), -(-last.width_px // 2)
        levels.append(_Level(last.number + 1, height_px, width_px, _PYRAMID_SHARD_PX))
    return levels


def _array_metadata(level: _Level, dtype: np.dtype) -> bytes:
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


def _root_metadata(levels: list[_Level], grid: SlideGrid) -> bytes:
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
