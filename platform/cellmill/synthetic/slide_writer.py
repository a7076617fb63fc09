"""From a synthetic slide to files: a tiled pyramidal JPEG TIFF and its truth, streamed.

In: a `SyntheticSlide`. Out: a TIFF that OpenSlide opens as `generic-tiff` (resolution tags give it `openslide.mpp-x`)
and a truth folder. Level 0 is rendered tile by tile, in the file's order; each further level is a quarter of the one
above in each direction and is averaged while that one is written, by way of an uncompressed scratch file. Memory holds
a few tiles, whatever the slide's size. The same seed gives the same bytes.
"""

import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellmill.grid import Box
from cellmill.synthetic.slide import SyntheticSlide
from cellmill.synthetic.tissue import SyntheticRegion
from cellmill.synthetic.truth import TruthWriter

__all__ = ["TILE_PX", "write_slide"]

TILE_PX = 512
_SHRINK = 4
_BIG_TIFF_PX = 1 << 30
"""From this many pixels on offsets are 64 bits wide; JPEG tissue needs up to about two bytes a pixel."""

Tile = NDArray[np.uint8]


def write_slide(
    slide: SyntheticSlide, path: Path, *, truth_folder: Path, jpeg_quality: int = 85, num_workers: int = 1
) -> dict[str, int]:
    """Write picture and truth; returns the number of cells by type.

    Args:
        slide: what to write.
        path: the TIFF; it appears under this name only when complete.
        truth_folder: folder of the truth files.
        jpeg_quality: 1 to 100.
        num_workers: processes that render; the bytes do not depend on it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    big = slide.width_px * slide.height_px >= _BIG_TIFF_PX
    with (
        TruthWriter(truth_folder, slide, tile_px=TILE_PX) as truth,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".pyramid-") as scratch,
        tifffile.TiffWriter(partial, bigtiff=big) as tiff,
    ):
        tiles = _rendered_tiles(slide, truth, num_workers)
        width, height, mpp, level = slide.width_px, slide.height_px, slide.mpp, 0
        while True:
            has_next = max(width, height) >= 2 * TILE_PX and min(width, height) >= _SHRINK
            below = _Shrunk(Path(scratch) / f"level{level + 1}.raw", width, height) if has_next else None
            _write_level(
                tiff,
                tiles if below is None else below.collect(tiles),
                shape=(height, width, 3),
                mpp=mpp,
                is_reduced=level > 0,
                quality=jpeg_quality,
            )
            if below is None:
                break
            tiles, level, mpp = below.tiles(), level + 1, mpp * _SHRINK
            width, height = below.width, below.height
    partial.replace(path)
    return truth.num_cells_by_type


def _write_level(
    tiff: tifffile.TiffWriter,
    tiles: Iterator[Tile],
    *,
    shape: tuple[int, int, int],
    mpp: float,
    is_reduced: bool,
    quality: int,
) -> None:
    pixels_per_cm = 10000.0 / mpp
    tiff.write(
        tiles,
        shape=shape,
        dtype=np.uint8,
        tile=(TILE_PX, TILE_PX),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": quality},
        subfiletype=1 if is_reduced else 0,
        resolution=(pixels_per_cm, pixels_per_cm),
        resolutionunit="CENTIMETER",
        metadata=None,
        software=False,
        maxworkers=1,
    )


def _tile_boxes(width: int, height: int) -> Iterator[Box]:
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            yield Box(x, y, x + TILE_PX, y + TILE_PX)


def _rendered_tiles(slide: SyntheticSlide, truth: TruthWriter, num_workers: int) -> Iterator[Tile]:
    """Level-0 tiles in the file's order; their truth is written on the way."""
    boxes = _tile_boxes(slide.width_px, slide.height_px)
    rendered = _render_here(slide, boxes) if num_workers <= 1 else _render_apart(slide, boxes, num_workers)
    for box, region in rendered:
        truth.write(box, region)
        yield region.image


def _render_here(slide: SyntheticSlide, boxes: Iterator[Box]) -> Iterator[tuple[Box, SyntheticRegion]]:
    for box in boxes:
        yield box, slide.render(box)


def _render_apart(
    slide: SyntheticSlide, boxes: Iterator[Box], num_workers: int
) -> Iterator[tuple[Box, SyntheticRegion]]:
    """As `_render_here`, by worker processes that run a bounded number of tiles ahead."""
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[tuple[Box, Future[SyntheticRegion]]] = deque()
        for box in boxes:
            waiting.append((box, pool.submit(slide.render, box)))
            if len(waiting) >= 3 * num_workers:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()


class _Shrunk:
    """The next pyramid level, gathered from the tiles of the level above while those are written.

    The scratch file holds one uncompressed block a tile of the level above, so that writing and reading touch a block
    at a time and nothing grows with the slide.
    """

    def __init__(self, path: Path, width_above: int, height_above: int) -> None:
        self._path = path
        self._columns_above = -(-width_above // TILE_PX)
        self._rows_above = -(-height_above // TILE_PX)
        self.width, self.height = width_above // _SHRINK, height_above // _SHRINK

    def collect(self, tiles: Iterator[Tile]) -> Iterator[Tile]:
        """Pass tiles on, keeping a shrunk block of each."""
        side = TILE_PX // _SHRINK
        with self._path.open("wb") as file:
            for tile in tiles:
                block = tile.reshape(side, _SHRINK, side, _SHRINK, 3).mean(axis=(1, 3), dtype=np.float32)
                file.write((block + 0.5).astype(np.uint8).tobytes())
                yield tile

    def tiles(self) -> Iterator[Tile]:
        """The level's tiles in the file's order; white beyond what was gathered."""
        with self._path.open("rb") as file:
            for box in _tile_boxes(self.width, self.height):
                yield self._tile(file, box.x0 // TILE_PX, box.y0 // TILE_PX)
        self._path.unlink()

    def _tile(self, file: BinaryIO, column: int, row: int) -> Tile:
        side = TILE_PX // _SHRINK
        size = side * side * 3
        tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
        for j in range(min(_SHRINK, self._rows_above - row * _SHRINK)):
            for i in range(min(_SHRINK, self._columns_above - column * _SHRINK)):
                index = (row * _SHRINK + j) * self._columns_above + column * _SHRINK + i
                block = np.frombuffer(_read_at(file, size, index * size), np.uint8).reshape(side, side, 3)
                tile[j * side : (j + 1) * side, i * side : (i + 1) * side] = block
        return tile


def _read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    file.seek(offset)
    return file.read(size)
