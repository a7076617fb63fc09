"""Model-grid pixels of a slide: a fixed function of native pixels by absolute index.

Consumes an open slide and its grid; produces the RGB pixels of any box, white outside the slide, together with the
boxes that could not be read. Native pixels are always asked for in the same absolute blocks of one level, because
decoders may answer differently for different windows; resampling has absolute phase. Any window therefore equals the
same pixels of the whole read.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cellmill.grid import Box, SlideGrid
from cellmill.slides.errors import SlideReadError
from cellmill.slides.reader import SlideLevel, SlideReader, fill_block
from cellmill.slides.resample import Taps, axis_taps, resample_into

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
        self._scratch_memory = np.empty(0, np.uint8)

    def read(self, box: Box, *, wanted: Iterable[Box] | None = None) -> ModelPixels:
        """Pixels of `box`; it may reach outside the slide, where everything is white.

        Args:
            box: what to read, on the model grid.
            wanted: parts of it that are needed, all where None; the rest may be left white and unread.
        """
        inside = box.clipped(self._grid.box)
        if inside.area == 0:
            return ModelPixels(box, np.full((box.height, box.width, 3), 255, np.uint8))
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        if inside != box:
            pixels[:] = 255
        bad_blocks: set[tuple[int, int]] = set()
        parts = [inside] if wanted is None else [part.clipped(inside) for part in wanted]
        at = (inside.x0 - box.x0, inside.y0 - box.y0)
        target = pixels[at[1] : at[1] + inside.height, at[0] : at[0] + inside.width]
        if self._is_native(inside):
            self._read_native(inside, parts, target, bad_blocks)
        else:
            self._read_resampled(inside, parts, (pixels, at), bad_blocks)
        return ModelPixels(box, pixels, tuple(self._reach_of_block(*block) for block in sorted(bad_blocks)))

    def _is_native(self, box: Box) -> bool:
        """Whether model pixels are the level's; a last part pixel of the slide may lie beyond the level."""
        is_inside = box.x1 <= self._level.width_px and box.y1 <= self._level.height_px
        return self._scale_x == 1.0 and self._scale_y == 1.0 and is_inside

    def _read_native(
        self, box: Box, parts: list[Box], target: NDArray[np.uint8], bad_blocks: set[tuple[int, int]]
    ) -> None:
        """Blocks straight into the pixels of `box`. Only those that reach out of it are kept: the next box may share
        them."""
        for block_box, is_needed in _pieces(box, parts, side_px=BLOCK_PX, origin=(0, 0)):
            part = block_box.clipped(box)
            to = target[part.y0 - box.y0 : part.y1 - box.y0, part.x0 - box.x0 : part.x1 - box.x0]
            key = (block_box.x0 // BLOCK_PX, block_box.y0 // BLOCK_PX)
            if not is_needed:
                to[:] = 255
            elif part != block_box or key in self._blocks:
                self._copy(part, to, bad_blocks)
            else:
                try:
                    fill_block(self._reader, self._level_index, part.x0, part.y0, to)
                except SlideReadError:
                    bad_blocks.add(key)
                    to[:] = 255

    def _read_resampled(
        self,
        box: Box,
        parts: list[Box],
        target: tuple[NDArray[np.uint8], tuple[int, int]],
        bad_blocks: set[tuple[int, int]],
    ) -> None:
        """Chunks of `box` into an array, from where it lies in that on."""
        pixels, (left, top) = target
        taps_x, taps_y = self._taps(box.x0, box.x1, axis="x"), self._taps(box.y0, box.y1, axis="y")
        # A row of chunks shares its blocks with the next: keep two rows of them.
        self._num_cached = max(_MIN_CACHED_BLOCKS, 2 * _blocks_across(taps_x) * self._blocks_down_a_chunk())
        for piece, is_needed in _pieces(box, parts, side_px=_CHUNK_PX, origin=(box.x0, box.y0)):
            chunk = piece.clipped(box)
            x, y = chunk.x0 - box.x0, chunk.y0 - box.y0
            if not is_needed:
                pixels[top + y : top + y + chunk.height, left + x : left + x + chunk.width] = 255
                continue
            chunk_x, chunk_y = taps_x.part(x, x + chunk.width), taps_y.part(y, y + chunk.height)
            native, origin = self._native(chunk_x, chunk_y, bad_blocks)
            resample_into(pixels, (left + x, top + y), native, origin, taps_x=chunk_x, taps_y=chunk_y)

    def _native(
        self, taps_x: Taps, taps_y: Taps, bad_blocks: set[tuple[int, int]]
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The native pixels that taps need, and the position of the first."""
        (x0, x1), (y0, y1) = taps_x.native_range, taps_y.native_range
        native = self._scratch(y1 - y0, x1 - x0)
        self._copy(Box(x0, y0, x1, y1), native, bad_blocks)
        return native, (x0, y0)

    def _copy(self, native: Box, target: NDArray[np.uint8], bad_blocks: set[tuple[int, int]]) -> None:
        """Native pixels of a box into the left top of `target`; white where a block cannot be decoded."""
        for block_y in range(native.y0 // BLOCK_PX, (native.y1 - 1) // BLOCK_PX + 1):
            for block_x in range(native.x0 // BLOCK_PX, (native.x1 - 1) // BLOCK_PX + 1):
                left, top = block_x * BLOCK_PX, block_y * BLOCK_PX
                part = native.clipped(Box(left, top, left + BLOCK_PX, top + BLOCK_PX))
                to = target[
                    part.y0 - native.y0 : part.y1 - native.y0,
                    part.x0 - native.x0 : part.x1 - native.x0,
                ]
                block = self._block(block_x, block_y)
                if block is None:
                    bad_blocks.add((block_x, block_y))
                    to[:] = 255
                else:
                    to[:] = block[part.y0 - top : part.y1 - top, part.x0 - left : part.x1 - left]

    def _scratch(self, height: int, width: int) -> NDArray[np.uint8]:
        """Memory for the native pixels of a chunk, the same every time."""
        if self._scratch_memory.size < height * width * 3:
            self._scratch_memory = np.empty(height * width * 3, np.uint8)
        return self._scratch_memory[: height * width * 3].reshape(height, width, 3)

    def _taps(self, first: int, last: int, *, axis: Literal["x", "y"]) -> Taps:
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
        memory = self._block_memory()
        block: NDArray[np.uint8] | None = memory[: height * width * 3].reshape(height, width, 3)
        try:
            fill_block(self._reader, self._level_index, x, y, block)
        except SlideReadError:
            block = None
        self._blocks[key] = block
        return block

    def _block_memory(self) -> NDArray[np.uint8]:
        """Memory for one block: that of the block longest unused, where as many are kept as may be."""
        memory: NDArray[np.uint8] | None = None
        while len(self._blocks) >= self._num_cached:
            _, dropped = self._blocks.popitem(last=False)
            memory = memory if dropped is None else _whole_memory(dropped)
        return np.empty(BLOCK_PX * BLOCK_PX * 3, np.uint8) if memory is None else memory

    def _blocks_down_a_chunk(self) -> int:
        return int((_CHUNK_PX + 4) * max(self._scale_y, 1.0)) // BLOCK_PX + 2

    def _reach_of_block(self, block_x: int, block_y: int) -> Box:
        """Model pixels that need a native block."""
        x0, x1 = self._reach(block_x, axis="x")
        y0, y1 = self._reach(block_y, axis="y")
        return Box(x0, y0, x1, y1)

    def _reach(self, block: int, *, axis: Literal["x", "y"]) -> tuple[int, int]:
        first, last = block * BLOCK_PX, (block + 1) * BLOCK_PX
        if axis == "x":
            scale, size, level_size = self._scale_x, self._grid.width_px, self._level.width_px
        else:
            scale, size, level_size = self._scale_y, self._grid.height_px, self._level.height_px
        if self._scale_x == 1.0 and self._scale_y == 1.0:
            return first, last if last < level_size else max(last, size)
        begin, end = _touched(first, last, scale)
        begin, end = max(begin, 0), min(end, size)
        taps = self._taps(begin, end, axis=axis)
        needing = np.flatnonzero((taps.starts < last) & (taps.starts + taps.weights.shape[1] > first))
        return begin + int(needing[0]), begin + int(needing[-1]) + 1


def _pieces(box: Box, parts: list[Box], *, side_px: int, origin: tuple[int, int]) -> Iterator[tuple[Box, bool]]:
    """Squares of a grid from `origin` on that meet `box`, row by row, and whether any of `parts` (all in it) does."""

    def indices(part: Box) -> Box:
        x0, y0 = (part.x0 - origin[0]) // side_px, (part.y0 - origin[1]) // side_px
        return Box(x0, y0, (part.x1 - 1 - origin[0]) // side_px + 1, (part.y1 - 1 - origin[1]) // side_px + 1)

    grid = indices(box)
    needed = np.zeros((grid.height, grid.width), np.bool_)
    for part in parts:
        if part.area:
            of_part = indices(part)
            needed[of_part.y0 - grid.y0 : of_part.y1 - grid.y0, of_part.x0 - grid.x0 : of_part.x1 - grid.x0] = True
    for row in range(grid.y0, grid.y1):
        for column in range(grid.x0, grid.x1):
            x, y = origin[0] + column * side_px, origin[1] + row * side_px
            yield Box(x, y, x + side_px, y + side_px), bool(needed[row - grid.y0, column - grid.x0])


def _whole_memory(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The flat array that a block is a part of."""
    assert isinstance(block.base, np.ndarray)
    return block.base


def _touched(first: int, last: int, scale: float) -> tuple[int, int]:
    """Model pixels beyond which none can need native pixels [first, last)."""
    support = 2 * max(scale, 1.0) + 1
    return int((first - support) // scale) - 1, int((last + support) // scale) + 1


def _blocks_across(taps: Taps) -> int:
    first, last = taps.native_range
    return (last - 1) // BLOCK_PX - first // BLOCK_PX + 1
