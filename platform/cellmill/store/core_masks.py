"""Painting a field's core: its level-0 shards, and a record of all that a commit would else read them again for.

In: a painted core. Out: the core's shards, put one by one, and a `CoreMask`, which the field keeps beside its part:
digests of the core's pixels, the ids along its rim, and its chunks of those reduced levels that end where it ends. So a
commit puts most of the pyramid together from encoded chunks and decodes next to nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.grid import Box, SlideGrid
from cellmill.store.layout import mask_shard_key
from cellmill.store.objects import ObjectStore
from cellmill.store.shards import (
    CHUNK_PX,
    CodedChunk,
    LabelPixels,
    chunks_of,
    encode_chunk,
    encode_shard,
    mask_dtype,
    shard_px_of_field,
)

__all__ = ["CoreMask", "CoreMaskReader", "MaskLevel", "mask_levels", "num_whole_levels", "write_core"]

_PYRAMID_SHARD_PX = 2048
"""Shards of reduced levels: 16 MB of pixels, so that building a level stays small in memory."""
_SMALLEST_LEVEL_PX = 512

_ABOUT_KEY = b"cellmill.mask"
_SCHEMA = pa.schema([("row", pa.int64()), ("column", pa.int64()), ("data", pa.binary())])


@dataclass(frozen=True)
class MaskLevel:
    """One array of the pyramid."""

    number: int
    height_px: int
    width_px: int
    shard_px: int

    @property
    def num_shards(self) -> tuple[int, int]:
        """Rows and columns of shards."""
        return -(-self.height_px // self.shard_px), -(-self.width_px // self.shard_px)


def mask_levels(grid: SlideGrid, *, field_px: int) -> list[MaskLevel]:
    """The arrays of a slide's mask, finest first."""
    levels = [MaskLevel(0, grid.height_px, grid.width_px, shard_px_of_field(field_px))]
    while max(levels[-1].height_px, levels[-1].width_px) > _SMALLEST_LEVEL_PX:
        last = levels[-1]
        height_px, width_px = -(-last.height_px // 2), -(-last.width_px // 2)
        levels.append(MaskLevel(last.number + 1, height_px, width_px, _PYRAMID_SHARD_PX))
    return levels


def num_whole_levels(levels: list[MaskLevel], *, field_px: int) -> int:
    """Reduced levels of which every chunk lies in one field: those from 1 up to this number."""
    number = 0
    while number + 1 < len(levels) and field_px % (CHUNK_PX << (number + 1)) == 0:
        number += 1
    return number


@dataclass(frozen=True)
class CoreMask:
    """What a commit must know of a painted core; places are those of chunks in the whole level."""

    shards: Mapping[str, str]
    """SHA-256 of the level-0 shards that hold any cell, by key."""
    border_ids: npt.NDArray[np.uint64]
    """Ids along the core's rim."""
    digests: tuple[CodedChunk, ...]
    """SHA-256 of the pixels of each level-0 chunk that holds any cell, in place of its data."""
    reduced: tuple[tuple[CodedChunk, ...], ...]
    """Encoded chunks of levels 1, 2 and so on."""

    def to_bytes(self) -> bytes:
        """As an Arrow file, a record batch a level."""
        about = json.dumps({"shards": dict(self.shards), "border_ids": self.border_ids.tolist()}).encode()
        schema, sink = _SCHEMA.with_metadata({_ABOUT_KEY: about}), pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            for chunks in (self.digests, *self.reduced):
                places = ([chunk.row for chunk in chunks], [chunk.column for chunk in chunks])
                columns = [pa.array(values, pa.int64()) for values in places]
                columns.append(pa.array([chunk.data for chunk in chunks], pa.binary()))
                writer.write_batch(pa.record_batch(columns, schema=schema))
        return sink.getvalue().to_pybytes()


class CoreMaskReader:
    """Reads what `CoreMask.to_bytes` wrote."""

    def __init__(self, data: bytes) -> None:
        self._file = pa.ipc.open_file(data)

    @cached_property
    def _about(self) -> dict[str, Any]:
        return json.loads(self._file.schema.metadata[_ABOUT_KEY])

    @property
    def shards(self) -> dict[str, str]:
        """SHA-256 of the level-0 shards that hold any cell, by key."""
        return self._about["shards"]

    @property
    def border_ids(self) -> npt.NDArray[np.uint64]:
        """Ids along the core's rim."""
        return np.array(self._about["border_ids"], np.uint64)

    def digests(self) -> dict[tuple[int, int], bytes]:
        """SHA-256 of the pixels of each level-0 chunk that holds any cell, by row and column."""
        return {(chunk.row, chunk.column): chunk.data for chunk in self.chunks(0)}

    def chunks(self, level: int) -> Iterator[CodedChunk]:
        """Encoded chunks of a reduced level, at their places in the whole level."""
        batch = self._file.get_batch(level)
        for row, column, data in zip(*(batch.column(name).to_pylist() for name in _SCHEMA.names), strict=True):
            yield CodedChunk(row, column, data)


def write_core(
    store: ObjectStore, core: Box, pixels: LabelPixels, *, slide_id: str, grid: SlideGrid, field_px: int
) -> CoreMask:
    """Write the level-0 shards of one field that hold any cell; returns what to keep of the core for the commit.

    Fields write whole shards and nothing else, so they never meet and need no lock.

    Args:
        store: the cell set's storage.
        core: the field's core, a whole number of shards; it may reach past the slide.
        pixels: (core.height, core.width), mask ids; what lies past the slide is ignored.
        slide_id: the slide.
        grid: its grid.
        field_px: side of the slide's fields.
    """
    levels, inside = mask_levels(grid, field_px=field_px), core.clipped(grid.box)
    pixels = np.array(pixels, mask_dtype(grid))
    pixels[inside.height :], pixels[:, inside.width :] = 0, 0
    shard_px, shards = levels[0].shard_px, dict[str, str]()
    for top in range(0, inside.height, shard_px):
        for left in range(0, inside.width, shard_px):
            data = encode_shard(chunks_of(pixels[top : top + shard_px, left : left + shard_px]), shard_px=shard_px)
            if data is not None:
                row, column = (core.y0 + top) // shard_px, (core.x0 + left) // shard_px
                key = mask_shard_key(slide_id, level=0, row=row, column=column)
                store.put(key, data)
                shards[key] = hashlib.sha256(data).hexdigest()
    rim = np.unique(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])).astype(np.uint64)
    return CoreMask(
        shards=shards,
        border_ids=rim[rim > 0],
        digests=tuple(_digests(pixels, core)),
        reduced=tuple(
            tuple(_reduced(pixels, core, level)) for level in range(1, num_whole_levels(levels, field_px=field_px) + 1)
        ),
    )


def _digests(pixels: LabelPixels, core: Box) -> Iterator[CodedChunk]:
    top, left = core.y0 // CHUNK_PX, core.x0 // CHUNK_PX
    for chunk in chunks_of(pixels):
        digest = hashlib.sha256(np.ascontiguousarray(chunk.pixels).data).digest()
        yield CodedChunk(top + chunk.row, left + chunk.column, digest)


def _reduced(pixels: LabelPixels, core: Box, level: int) -> Iterator[CodedChunk]:
    """The core's chunks of a level; sampled again and again `[::2, ::2]` is sampled once by the power."""
    step, side = 1 << level, CHUNK_PX << level
    for chunk in chunks_of(pixels[::step, ::step]):
        coded = encode_chunk(chunk)
        yield CodedChunk(core.y0 // side + coded.row, core.x0 // side + coded.column, coded.data)
