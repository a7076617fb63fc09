"""Model-grid pixels of a slide: a fixed function of native pixels by absolute index.

Consumes an open slide and its grid; produces the RGB pixels of any box, white outside the slide, together with the
boxes that could not be read. Native pixels are always asked for in the same absolute blocks of one level, because
decoders may answer differently for different windows; resampling has absolute phase. Any window therefore equals the
same pixels of the whole read.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellmill.grid import Box, SlideGrid
from cellmill.slides.errors import SlideReadError
from cellmill.slides.reader import SlideLevel, SlideReader
from cellmill.slides.resample import Taps, axis_taps, resample_window

__all__ = ["BLOCK_PX", "ModelGridReader", "ModelPixels", "choose_level"]

BLOCK_PX = 512
"""Side of a native block."""
_CHUNK_PX = 256
"""Side of what is resampled at once: bounds memory whatever the window, and is what can be left out of it."""
_MIN_CACHED_BLOCKS = 64


@dataclass(frozen=True)
class ModelPixels:
    """The pixels of a box on the model grid, and what of it could not be read."""

    box: Box
    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    unreadable: tuple[Box, ...] = ()
    """Boxes on the model grid, not clipped to `box`, whose pixels need a native block that cannot be decoded; they
    show white there."""

    def is_readable(self, box: Box) -> bool:
        """Whether every pixel of `box` was read."""
        return all(box.clipped(bad).area == 0 for bad in self.unreadable)


def choose_level(levels: tuple[SlideLevel, ...], grid: SlideGrid) -> int:
    """The coarsest level that is still as fine as the model grid in both axes; 0 where none is."""
    fine = [
        index
        for index, level in enumerate(levels)
        if level.downsample_x <= grid.scale_x * (1 + 1e-6) and level.downsample_y <= grid.scale_y * (1 + 1e-6)
    ]
    return max(fine, key=lambda index: levels[index].downsample_x, default=0)


class ModelGridReader:
    """Reads boxes of the model grid from an open slide. Not thread-safe."""

    def __init__(self, reader: SlideReader, grid: SlideGrid) -> None:
        """Read `reader`, which stays the caller's to close, on `grid`."""
        self._reader = reader
        self._grid = grid
        self._level_index = choose_level(reader.levels, grid)
        self._level = reader.levels[self._level_index]
        self._scale_x = grid.scale_x / self._level.downsample_x
        self._scale_y = grid.scale_y / self._level.downsample_y
        self._blocks: OrderedDict[tuple[int, int], NDArray[np.uint8] | None] = OrderedDict()
        self._num_cached = _MIN_CACHED_BLOCKS

    def read(self, box: Box, *, wanted: Iterable[Box] | None = None) -> ModelPixels:
        """Pixels of `box`; it may reach outside the slide, where everything is white.

        Args:
            box: what to read, on the model grid.
            wanted: parts of it that are needed, all where None; the rest may be left white and unread.
        """
        pixels = np.full((box.height, box.width, 3), 255, np.uint8)
        inside = box.clipped(self._grid.box)
        if inside.area == 0:
            return ModelPixels(box, pixels)
        taps_x = self._taps(inside.x0, inside.x1, axis="x")
        # A row of chunks shares its blocks with the next: keep two rows of them.
        self._num_cached = max(_MIN_CACHED_BLOCKS, 2 * _blocks_across(taps_x) * self._blocks_down_a_chunk())
        bad_blocks: set[tuple[int, int]] = set()
        needed = None if wanted is None else list(wanted)
        for y0 in range(inside.y0, inside.y1, _CHUNK_PX):
            for x0 in range(inside.x0, inside.x1, _CHUNK_PX):
                chunk = Box(x0, y0, min(x0 + _CHUNK_PX, inside.x1), min(y0 + _CHUNK_PX, inside.y1))
                if needed is not None and not any(chunk.clipped(part).area for part in needed):
                    continue
                pixels[chunk.y0 - box.y0 : chunk.y1 - box.y0, chunk.x0 - box.x0 : chunk.x1 - box.x0] = self._chunk(
                    chunk, bad_blocks
                )
        return ModelPixels(box, pixels, tuple(self._reach_of_block(*block) for block in sorted(bad_blocks)))

    def _chunk(self, chunk: Box, bad_blocks: set[tuple[int, int]]) -> NDArray[np.uint8]:
        taps_x = self._taps(chunk.x0, chunk.x1, axis="x")
        taps_y = self._taps(chunk.y0, chunk.y1, axis="y")
        (nx0, nx1), (ny0, ny1) = taps_x.native_range, taps_y.native_range
        native = np.empty((ny1 - ny0, nx1 - nx0, 3), np.uint8)
        for block_y in range(ny0 // BLOCK_PX, (ny1 - 1) // BLOCK_PX + 1):
            for block_x in range(nx0 // BLOCK_PX, (nx1 - 1) // BLOCK_PX + 1):
                block = self._block(block_x, block_y)
                x0, y0 = max(nx0, block_x * BLOCK_PX), max(ny0, block_y * BLOCK_PX)
                x1, y1 = min(nx1, (block_x + 1) * BLOCK_PX), min(ny1, (block_y + 1) * BLOCK_PX)
                target = native[y0 - ny0 : y1 - ny0, x0 - nx0 : x1 - nx0]
                if block is None:
                    bad_blocks.add((block_x, block_y))
                    target[:] = 255
                else:
                    left, top = block_x * BLOCK_PX, block_y * BLOCK_PX
                    target[:] = block[y0 - top : y1 - top, x0 - left : x1 - left]
        if self._scale_x == 1.0 and self._scale_y == 1.0:
            left, top = chunk.x0 - nx0, chunk.y0 - ny0
            return native[top : top + chunk.height, left : left + chunk.width]
        return resample_window(native, (nx0, ny0), taps_x=taps_x, taps_y=taps_y)

    def _taps(self, first: int, last: int, *, axis: str) -> Taps:
        if axis == "x":
            return axis_taps(first, last, scale=self._scale_x, native_size=self._level.width_px)
        return axis_taps(first, last, scale=self._scale_y, native_size=self._level.height_px)

    def _block(self, block_x: int, block_y: int) -> NDArray[np.uint8] | None:
        """A native block, clipped to the level; None where it cannot be decoded."""
        key = (block_x, block_y)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        x, y = block_x * BLOCK_PX, block_y * BLOCK_PX
        width, height = min(BLOCK_PX, self._level.width_px - x), min(BLOCK_PX, self._level.height_px - y)
        try:
            block = self._reader.read_block(self._level_index, x, y, width, height)
        except SlideReadError:
            block = None
        self._blocks[key] = block
        while len(self._blocks) > self._num_cached:
            self._blocks.popitem(last=False)
        return block

    def _blocks_down_a_chunk(self) -> int:
        return int((_CHUNK_PX + 4) * max(self._scale_y, 1.0)) // BLOCK_PX + 2

    def _reach_of_block(self, block_x: int, block_y: int) -> Box:
        """Model pixels that a native block may touch: its extent and the filter's support of two pixels."""
        x0, x1 = _touched(block_x * BLOCK_PX, (block_x + 1) * BLOCK_PX, self._scale_x)
        y0, y1 = _touched(block_y * BLOCK_PX, (block_y + 1) * BLOCK_PX, self._scale_y)
        return Box(x0, y0, x1, y1)


def _touched(first: int, last: int, scale: float) -> tuple[int, int]:
    support = 2 * max(scale, 1.0) + 1
    return int((first - support) // scale) - 1, int((last + support) // scale) + 1


def _blocks_across(taps: Taps) -> int:
    first, last = taps.native_range
    return (last - 1) // BLOCK_PX - first // BLOCK_PX + 1
