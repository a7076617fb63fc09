"""JPEG and JPEG 2000 tiles of TIFF slides, decoded whole and once, where OpenSlide would show the same pixels.

Consumes a slide that OpenSlide has open; produces the same levels, scale, bounds and pixels several times as fast:
OpenSlide decodes to ARGB, paints tiles one over the other, and its pixels are converted twice on the way to an array.
Which levels are read here is decided by the file alone:

1. OpenSlide takes it for Aperio or for a plain tiled TIFF (`OpenSlideReader.is_plain_tiff`).
2. The level is exactly one tiled directory of that size, in 8-bit RGB or YCbCr, as JPEG or Aperio's JPEG 2000.
3. One tile of it, of most bytes among those OpenSlide can address to the pixel, decodes to what OpenSlide shows within
   `MAX_DIFFERENCE`. This guards against colour spaces and directories that are not what they seem. A white tile would
   prove nothing, hence the most bytes; one tile a level costs milliseconds.

Whatever is left (other levels, tiles that are missing, damaged or of another kind) OpenSlide reads, so what a damaged
slide gives does not depend on which reader had it. At level 0 the pixels are OpenSlide's. At coarser levels whose
downsample is no whole number they are the file's own, where OpenSlide interpolates between them.
"""

from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cellmill.slides.errors import SlideReadError
from cellmill.slides.openslide_reader import OpenSlideReader
from cellmill.slides.reader import SlideLevel
from cellmill.slides.tile_codecs import TileError
from cellmill.slides.tile_levels import TileLevel, find_tile_levels

__all__ = ["TiledTiffReader", "with_fast_levels"]

MAX_DIFFERENCE = 1
"""Grey levels; decoders of one standard may round differently. Those in use do not: 0 was seen wherever tried."""
CACHE_BYTES = 1 << 26
"""Decoded tiles kept, for those that straddle two blocks: a row of 240 px tiles across 89,000 px."""
_NUM_CANDIDATES = 4
"""Tiles tried for the comparison, where OpenSlide cannot read the first."""


def with_fast_levels(reader: OpenSlideReader, path: Path) -> "TiledTiffReader | OpenSlideReader":
    """A reader of the same slide that is faster where it can be; `reader` itself where nothing can be gained.

    Takes a plain TIFF over from `reader`: closing what is returned closes that too.

    Raises:
        SlideReadError: when the file cannot be read just now.
    """
    sizes_px = [(level.width_px, level.height_px) for level in reader.levels]
    found = find_tile_levels(path, sizes_px, is_aperio=reader.vendor == "aperio")
    try:
        with path.open("rb", buffering=0) as file:
            fast = {index: level for index, level in found.items() if _shows_the_same(reader, file, index, level)}
    except OSError as error:
        # Not a reason to go on with OpenSlide: the reader of a file must be the same every time.
        raise SlideReadError("The file cannot be read at the moment; try again.") from error
    return TiledTiffReader(reader, path, fast) if fast else reader


class TiledTiffReader:
    """A `SlideReader` over an `OpenSlideReader`, which answers for everything that is not read faster here."""

    def __init__(self, reader: OpenSlideReader, path: Path, fast_levels: dict[int, TileLevel]) -> None:
        """Use `with_fast_levels`, which finds out what may be in `fast_levels`."""
        self._reader = reader
        self._path = path
        self._fast = fast_levels
        self._file: BinaryIO | None = None
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._cached_bytes = 0
        self._spare: NDArray[np.uint8] | None = None

    @property
    def name(self) -> str:
        """Reader and vendor."""
        return f"tiles/{self._reader.vendor}"

    @property
    def levels(self) -> tuple[SlideLevel, ...]:
        """Resolutions, finest first."""
        return self._reader.levels

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Level-0 um/px as stated."""
        return self._reader.mpp

    @property
    def bounds_level0_px(self) -> tuple[int, int]:
        """Left and top of the scanned area."""
        return self._reader.bounds_level0_px

    @property
    def fast_levels(self) -> tuple[int, ...]:
        """Levels that are decoded here; the others are OpenSlide's."""
        return tuple(self._fast)

    def read_block(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Native pixels of a level as RGB, see `SlideReader`."""
        if level not in self._fast:
            return self._reader.read_block(level, x, y, width, height)
        block = np.empty((height, width, 3), np.uint8)
        self.fill_block(level, x, y, block)
        return block

    def fill_block(self, level: int, x: int, y: int, block: NDArray[np.uint8]) -> None:
        """Native pixels of a level as RGB, see `FillsBlocks`."""
        tiles = self._fast.get(level)
        height, width = block.shape[:2]
        if tiles is None:
            block[:] = self._reader.read_block(level, x, y, width, height)
            return
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, tiles.width_px), min(y + height, tiles.height_px)
        if (x0, y0, x1, y1) != (x, y, x + width, y + height):
            block[:] = 255
        if x1 <= x0 or y1 <= y0:
            return
        for row in range(y0 // tiles.tile_h, -(-y1 // tiles.tile_h)):
            for column in range(x0 // tiles.tile_w, -(-x1 // tiles.tile_w)):
                left, top = column * tiles.tile_w, row * tiles.tile_h
                from_x, from_y = max(left, x0), max(top, y0)
                to_x, to_y = min(left + tiles.tile_w, x1), min(top + tiles.tile_h, y1)
                is_whole = (to_x - from_x, to_y - from_y) == (tiles.tile_w, tiles.tile_h)
                tile = self._tile(level, column, row, keep=not is_whole)
                block[from_y - y : to_y - y, from_x - x : to_x - x] = tile[
                    from_y - top : to_y - top, from_x - left : to_x - left
                ]

    def close(self) -> None:
        """Release the file and the cache; a later read opens it again."""
        self._tiles.clear()
        self._cached_bytes = 0
        self._close_file()
        self._reader.close()

    def _tile(self, level: int, column: int, row: int, *, keep: bool) -> NDArray[np.uint8]:
        """A tile, (tile_h, tile_w, 3); it may change with the next call."""
        key = (level, column, row)
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        tile = self._spare_tile(self._fast[level])
        try:
            self._decode(level, column, row, into=tile)
        except BaseException:
            self._spare = tile
            raise
        if keep:
            self._tiles[key] = tile
            self._cached_bytes += tile.nbytes
        else:
            self._spare = tile
        return tile

    def _spare_tile(self, level: TileLevel) -> NDArray[np.uint8]:
        """Memory for a tile that nothing else uses: used before, where there is such."""
        spare, self._spare = self._spare, None
        while self._cached_bytes > CACHE_BYTES:
            spare = self._tiles.popitem(last=False)[1]
            self._cached_bytes -= spare.nbytes
        shape = (level.tile_h, level.tile_w, 3)
        return spare if spare is not None and spare.shape == shape else np.empty(shape, np.uint8)

    def _decode(self, level: int, column: int, row: int, *, into: NDArray[np.uint8]) -> None:
        """Decode a tile; OpenSlide has its say where that cannot be done here."""
        tiles = self._fast[level]
        for attempt in (1, 2):
            try:
                tiles.read(self._open_file(), column, row, into=into)
            except TileError:
                left, top = column * tiles.tile_w, row * tiles.tile_h
                into[:] = self._reader.read_block(level, left, top, tiles.tile_w, tiles.tile_h)
            except OSError as error:
                # Network file systems fail once in a while: try a fresh handle. Never OpenSlide, so that which decoder
                # a tile meets does not depend on the hour.
                self._close_file()
                if attempt == 2:
                    raise SlideReadError(f"Level {level} cannot be read at tile column {column}, row {row}.") from error
                continue
            return

    def _open_file(self) -> int:
        if self._file is None:
            self._file = self._path.open("rb", buffering=0)
        return self._file.fileno()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _shows_the_same(reader: OpenSlideReader, file: BinaryIO, index: int, level: TileLevel) -> bool:
    """Whether the richest tile that OpenSlide can read is the same picture to both."""
    tile = np.empty((level.tile_h, level.tile_w, 3), np.uint8)
    for column, row in _richest_tiles(reader, index, level):
        left, top = column * level.tile_w, row * level.tile_h
        width, height = min(level.tile_w, level.width_px - left), min(level.tile_h, level.height_px - top)
        try:
            theirs = reader.read_block(index, left, top, width, height)
        except SlideReadError:
            continue
        try:
            level.read(file.fileno(), column, row, into=tile)
        except TileError:
            return False
        return int(np.abs(tile[:height, :width].astype(np.int16) - theirs).max()) <= MAX_DIFFERENCE
    return False


def _richest_tiles(reader: OpenSlideReader, index: int, level: TileLevel) -> list[tuple[int, int]]:
    """(column, row) of the tiles of most bytes whose corner OpenSlide can address; the first tile always is one."""
    rows, columns = level.sizes.shape
    exact_y = np.array([reader.is_exact(index, row * level.tile_h) for row in range(rows)])
    exact_x = np.array([reader.is_exact(index, column * level.tile_w) for column in range(columns)])
    sizes = np.where(exact_y[:, None] & exact_x[None, :], level.sizes, 0).ravel()
    richest = np.argsort(-sizes, kind="stable")[:_NUM_CANDIDATES]
    return [(int(tile) % columns, int(tile) // columns) for tile in richest if sizes[tile] > 0]
