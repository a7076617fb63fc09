"""A small picture of a whole slide, for finding tissue: bounded memory whatever the slide's size.

Consumes an open slide; produces the box averages of one level over whole numbers of its pixels, about 8 um/px.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cellmill.slides.errors import SlideReadError
from cellmill.slides.reader import SlideReader

__all__ = ["OVERVIEW_MPP", "Overview", "read_overview"]

OVERVIEW_MPP = 8.0
"""A nucleus is about one pixel of it."""
_BLOCK_PX = 1024
_MANY_BLOCKS = 128
"""So many blocks without one that can be decoded, and it is asked whether there is any."""
_MAX_OVERVIEW_PX = 1 << 26
"""64 million pixels: a whole 26 x 76 mm slide at 8 um/px has 31 million."""


@dataclass(frozen=True)
class Overview:
    """The slide at low resolution; pixel (x, y) covers level-0 x in [x * step_x_level0_px, (x + 1) * ...)."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    unreadable: NDArray[np.bool_]  # (H, W)
    step_x_level0_px: float
    step_y_level0_px: float
    mpp_x: float
    mpp_y: float


def read_overview(reader: SlideReader, *, mpp: tuple[float, float]) -> Overview:
    """The slide at no more than `OVERVIEW_MPP` where it is finer than that, else as it is; `mpp` is level 0's."""
    target_mpp = OVERVIEW_MPP
    while reader.levels[0].width_px * mpp[0] * reader.levels[0].height_px * mpp[1] > _MAX_OVERVIEW_PX * target_mpp**2:
        target_mpp *= 2
    fine = [
        index
        for index, level in enumerate(reader.levels)
        if level.downsample_x * mpp[0] <= target_mpp and level.downsample_y * mpp[1] <= target_mpp
    ]
    index = max(fine, key=lambda index: reader.levels[index].downsample_x, default=0)
    level = reader.levels[index]
    factor_x = max(1, int(target_mpp / (level.downsample_x * mpp[0])))
    factor_y = max(1, int(target_mpp / (level.downsample_y * mpp[1])))
    width, height = -(-level.width_px // factor_x), -(-level.height_px // factor_y)
    pixels = np.full((height, width, 3), 255, np.uint8)
    unreadable = np.zeros((height, width), np.bool_)
    side_x, side_y = max(1, _BLOCK_PX // factor_x), max(1, _BLOCK_PX // factor_y)
    corners = [(x, y) for y in range(0, height, side_y) for x in range(0, width, side_x)]
    num_read = 0
    for number, (x, y) in enumerate(corners):
        if number == _MANY_BLOCKS and not num_read:
            _require_readable(reader, index, [(x * factor_x, y * factor_y) for x, y in corners])
        x1, y1 = min(x + side_x, width), min(y + side_y, height)
        native_x1, native_y1 = min(x1 * factor_x, level.width_px), min(y1 * factor_y, level.height_px)
        left, top = x * factor_x, y * factor_y
        try:
            block = reader.read_block(index, left, top, native_x1 - left, native_y1 - top)
        except SlideReadError:
            unreadable[y:y1, x:x1] = True
            continue
        num_read += 1
        pixels[y:y1, x:x1] = _box_average(block, factor_x, factor_y)
    return Overview(
        pixels=pixels,
        unreadable=unreadable,
        step_x_level0_px=factor_x * level.downsample_x,
        step_y_level0_px=factor_y * level.downsample_y,
        mpp_x=factor_x * level.downsample_x * mpp[0],
        mpp_y=factor_y * level.downsample_y * mpp[1],
    )


def _require_readable(reader: SlideReader, index: int, corners: list[tuple[int, int]]) -> None:
    """Make sure that some block can be decoded: a header may claim a hundred thousand that are not in the file.

    Raises:
        SlideReadError: when none of many, spread over the slide, can.
    """
    for left, top in corners[:: max(1, len(corners) // _MANY_BLOCKS)]:
        try:
            reader.read_block(index, left, top, 1, 1)
        except SlideReadError:
            continue
        return
    raise SlideReadError(
        "None of the slide's pixels could be decoded: its tiles are damaged, or the file is cut off. Copy or export it "
        "again."
    )


def _box_average(block: NDArray[np.uint8], factor_x: int, factor_y: int) -> NDArray[np.uint8]:
    """Averages over boxes of factor_y x factor_x pixels; part boxes at the slide's edge repeat its last pixels."""
    height, width = block.shape[:2]
    pad_y, pad_x = -height % factor_y, -width % factor_x
    if pad_x or pad_y:
        block = np.pad(block, ((0, pad_y), (0, pad_x), (0, 0)), mode="edge")
    size = (block.shape[1] // factor_x, block.shape[0] // factor_y)
    return np.asarray(cv2.resize(block, size, interpolation=cv2.INTER_AREA), np.uint8)
