"""Whether a mask is what its table says: every painted id has a row, every row is painted, in its size, at its anchor.

In: the mask's objects, whose bytes are known to be right, and `TableFacts`. Out: findings. Shards are decoded one at a
time. Level k + 1 must be level k sampled `[::2, ::2]`, which is compared by checksums of quarter chunks.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np
import numpy.typing as npt
from numba import njit

from cellmill.grid import SlideGrid
from cellmill.store.layout import mask_prefix
from cellmill.store.objects import ObjectStore
from cellmill.store.shards import CHUNK_PX, MaskChunk, decode_shard, mask_dtype, pixels_digest
from cellmill.verify.table import TableFacts
from cellmill_schemas.cells import DECIMALS
from cellmill_schemas.slides import SlideStatus

__all__ = ["check_mask"]

Say = Callable[[str, str], None]
"""Takes the key of an object and a sentence about what is wrong with it."""
Quarters = dict[tuple[int, int], int]
"""Checksum of each quarter chunk that holds a cell, by (row, column) in quarter chunks of its level."""


@dataclass(frozen=True)
class _Level:
    key: str
    """Of its `zarr.json`."""
    number: int
    height_px: int
    width_px: int
    shard_px: int


def check_mask(
    store: ObjectStore, *, status: SlideStatus, grid: SlideGrid, keys: list[str], table: TableFacts | None, say: Say
) -> None:
    """Check the mask of a done slide.

    Args:
        store: the cell set's storage.
        status: the slide's.
        grid: the slide's.
        keys: all objects of the mask.
        table: what its table holds; None leaves the comparison out.
        say: takes what is wrong.
    """
    levels = _levels(store, status.slide_id, grid, say)
    shards = [_shards_of(level, status.slide_id, keys) for level in levels]
    belonging = {level.key for level in levels} | {key for level in shards for key in level}
    for key in keys:
        if key not in belonging and key != f"{mask_prefix(status.slide_id)}/zarr.json":
            say(key, "it belongs to no level of the mask")
    cells = None if table is None else _Painted.of(table)
    sampled: Quarters | None = None
    for level, places in zip(levels, shards, strict=True):
        found: Quarters = {}
        below: Quarters = {}
        digests: dict[tuple[int, int], bytes] = {}
        for key, chunk in _chunks(store, level, places, grid):
            _note_quarters(chunk, found, below)
            if level.number == 0:
                digests[chunk.row, chunk.column] = hashlib.sha256(np.ascontiguousarray(chunk.pixels).data).digest()
                if cells is not None:
                    cells.look_at(key, chunk, grid, say)
        if level.number == 0 and pixels_digest(grid, digests) != status.mask_digest:
            say(level.key, "the pixels of level 0 are not those its status was written for")
        if sampled is not None and found != sampled:
            rows = sorted(place for place in found.keys() | sampled.keys() if found.get(place) != sampled.get(place))
            y, x = (side * CHUNK_PX // 2 for side in rows[0])
            say(level.key, f"level {level.number} is not level {level.number - 1} sampled, first near ({x}, {y}) px")
        sampled = below
    if cells is not None and table is not None and levels:
        cells.finish(levels[0].key, table, grid, say)


def _levels(store: ObjectStore, slide_id: str, grid: SlideGrid, say: Say) -> list[_Level]:
    """The arrays that the root's metadata list, as their own metadata describe them."""
    root = f"{mask_prefix(slide_id)}/zarr.json"
    try:
        attributes = json.loads(store.get(root))["attributes"]["ome"]
        (multiscale,) = attributes["multiscales"]
        entries = [(item["path"], item["coordinateTransformations"][0]["scale"]) for item in multiscale["datasets"]]
    except (KeyError, ValueError, TypeError, FileNotFoundError):
        say(root, "it is no OME-Zarr label pyramid")
        return []
    levels: list[_Level] = []
    height, width = grid.height_px, grid.width_px
    for number, (path, scale) in enumerate(entries):
        level = _level(store, f"{mask_prefix(slide_id)}/{number}/zarr.json", number)
        if level is None or path != str(number) or (level.height_px, level.width_px) != (height, width):
            say(f"{mask_prefix(slide_id)}/{number}/zarr.json", f"level {number} is not an array of {height} x {width}")
            return []
        if not np.allclose(scale, grid.target_mpp * 2**number):
            say(root, f"level {number} has the scale {scale}, not {grid.target_mpp * 2**number} um/px")
        levels.append(level)
        height, width = -(-height // 2), -(-width // 2)
    return levels


def _level(store: ObjectStore, key: str, number: int) -> _Level | None:
    try:
        document = json.loads(store.get(key))
        height, width = document["shape"]
        shard = document["chunk_grid"]["configuration"]["chunk_shape"]
        inner = document["codecs"][0]["configuration"]["chunk_shape"]
    except (KeyError, ValueError, TypeError, IndexError, FileNotFoundError):
        return None
    if shard[0] != shard[1] or shard[0] % CHUNK_PX or list(inner) != [CHUNK_PX, CHUNK_PX]:
        return None
    return _Level(key, number, height, width, shard[0])


def _shards_of(level: _Level, slide_id: str, keys: list[str]) -> dict[str, tuple[int, int]]:
    """Row and column of each shard that lies inside the level, by key, in raster order."""
    prefix = f"{mask_prefix(slide_id)}/{level.number}/c/"
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        words = key.removeprefix(prefix).split("/") if key.startswith(prefix) else []
        if len(words) == 2 and all(word.isdecimal() for word in words):
            row, column = int(words[0]), int(words[1])
            if row * level.shard_px < level.height_px and column * level.shard_px < level.width_px:
                places[key] = (row, column)
    return dict(sorted(places.items(), key=lambda item: item[1]))


def _chunks(
    store: ObjectStore, level: _Level, places: dict[str, tuple[int, int]], grid: SlideGrid
) -> Iterator[tuple[str, MaskChunk]]:
    """Non-empty chunks of a level, placed in it."""
    per_side = level.shard_px // CHUNK_PX
    for key, (row, column) in places.items():
        for chunk in decode_shard(store.get(key), shard_px=level.shard_px, dtype=mask_dtype(grid)):
            yield key, MaskChunk(chunk.row + row * per_side, chunk.column + column * per_side, chunk.pixels)


def _note_quarters(chunk: MaskChunk, found: Quarters, below: Quarters) -> None:
    """Checksums of the chunk's four quarters, and of what the next level must show of it."""
    half = CHUNK_PX // 2
    for row in range(2):
        for column in range(2):
            quarter = chunk.pixels[row * half : (row + 1) * half, column * half : (column + 1) * half]
            if quarter.any():
                found[2 * chunk.row + row, 2 * chunk.column + column] = _digest(quarter)
    sampled = chunk.pixels[::2, ::2]
    if sampled.any():
        below[chunk.row, chunk.column] = _digest(sampled)


def _digest(pixels: npt.NDArray[np.unsignedinteger]) -> int:
    # The bytes are known to be those that were committed; this only has to notice another picture, and fast.
    return int(google_crc32c.value(pixels.tobytes()))


@dataclass
class _Painted:
    """What the mask shows of each row of the table."""

    ids: npt.NDArray[np.uint64]
    """Ascending."""
    counts: npt.NDArray[np.int64]
    at_anchor: npt.NDArray[np.bool_]

    @staticmethod
    def of(table: TableFacts) -> "_Painted":
        size = table.mask_ids.size
        return _Painted(table.mask_ids, np.zeros(size, np.int64), np.zeros(size, np.bool_))

    def look_at(self, key: str, chunk: MaskChunk, grid: SlideGrid, say: Say) -> None:
        """Count the pixels of each id in a chunk."""
        unknown, outside = _count(
            chunk.pixels.astype(np.uint64),
            self.ids,
            self.counts,
            self.at_anchor,
            (chunk.row * CHUNK_PX, chunk.column * CHUNK_PX),
            (grid.height_px, grid.width_px),
        )
        if unknown:
            say(key, f"it paints mask id {int(unknown)}, which has no row in the table")
        if outside:
            say(key, f"it paints {outside} pixels outside the slide")

    def finish(self, key: str, table: TableFacts, grid: SlideGrid, say: Say) -> None:
        """Compare with the table."""
        area = np.round(self.counts * grid.target_mpp**2, DECIMALS["area_um2"]).astype(np.float32)
        unpainted = self.counts == 0
        for wrong, says in (
            (unpainted, "have a row and no pixel"),
            (~self.at_anchor & ~unpainted, "are not painted at their anchor"),
            ((area != table.area_um2) & ~unpainted, "are painted in another size than area_um2 says"),
        ):
            if wrong.any():
                say(key, f"{np.count_nonzero(wrong)} cells {says}, first mask id {self.ids[wrong][0]}")


@njit(cache=True, nogil=True)
def _count(  # noqa: PLR0917 - numba takes no keywords
    pixels: npt.NDArray[np.uint64],
    ids: npt.NDArray[np.uint64],
    counts: npt.NDArray[np.int64],
    at_anchor: npt.NDArray[np.bool_],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> tuple[np.uint64, int]:
    """Add up pixels by id; returns an id that is not among `ids` (0: none) and how many pixels lie outside."""
    unknown, outside = np.uint64(0), 0
    last, place = np.uint64(0), -1
    for i in range(pixels.shape[0]):
        y = corner[0] + i
        for j in range(pixels.shape[1]):
            label = pixels[i, j]
            if label == 0:
                continue
            x = corner[1] + j
            if y >= size[0] or x >= size[1]:
                outside += 1
                continue
            if label != last:
                last, place = label, np.searchsorted(ids, label)
                if place >= ids.size or ids[place] != label:
                    place = -1
            if place < 0:
                unknown = label
                continue
            counts[place] += 1
            if label == np.uint64(1) + np.uint64(y) * np.uint64(size[1]) + np.uint64(x):
                at_anchor[place] = True
    return unknown, outside
