"""Whether a tile can be trusted: pen ink and blur.

A pure function of the tile's pixels, so that neighbouring fields judge a shared tile alike. Both checks are set to miss
a bad tile rather than lose a good one: of 541 tiles of 256 px from the two open slides, BreCaHAD, MoNuSAC, NuCLS and
PUMA none is excluded. What was measured stands beside each bound.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["TileQuality", "blurred_share", "ink_share", "judge_tile"]

TileQuality = Literal["ok", "pen", "blur"]

MAX_INK_SHARE = 0.25
"""Share of ink-coloured pixels from which a tile is marked by a pen. Real tissue: at most 0.07, on a margin painted
with green ink."""
MAX_BLURRED_SHARE = 0.5
"""Share of a tile's structured blocks from which it is out of focus. Real tissue: at most 0.15. Blurred by a Gaussian
of 4 px: 96 % of tiles above 0.5, most others nearly all glass; by one of 2 px: 10 %."""
_MIN_SHARPNESS = 0.28
"""Fine over coarse structure below which a block is out of focus."""
_BLOCK_PX = 64
_MIN_CONTRAST = 1.5
"""Grey levels of coarse structure below which a block has nothing to judge: glass, lumen, mucus."""
_MIN_BLOCKS = 4


def judge_tile(pixels: NDArray[np.uint8]) -> TileQuality:
    """The verdict on one tile (tile_px, tile_px, 3); nothing but its pixels counts."""
    if ink_share(pixels) > MAX_INK_SHARE:
        return "pen"
    return "blur" if blurred_share(pixels) >= MAX_BLURRED_SHARE else "ok"


def ink_share(pixels: NDArray[np.uint8]) -> float:
    """Share of pixels with the colours of marker pens, which hematoxylin and eosin do not take.

    99.5 % of the saturated pixels of real tissue have hues of 240 to 345 degrees. Yellow and orange are left out, for
    saffron, bile and hemosiderin have them; black asks for grey, since melanin is brown.
    """
    height, width = pixels.shape[0] // 4, pixels.shape[1] // 4
    small = cv2.resize(pixels[: 4 * height, : 4 * width], (width, height), interpolation=cv2.INTER_AREA)
    hsv = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2HSV), np.uint8)  # (h, w, 3), hue in steps of 2 degrees
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    green = (hue >= 35) & (hue <= 95) & (saturation >= 60) & (value > 40)
    blue = (hue > 95) & (hue <= 116) & (saturation >= 130) & (value > 40)
    red = ((hue >= 174) | (hue <= 8)) & (saturation >= 200) & (value > 120)
    red_level, green_level, blue_level = cv2.split(small)
    darkest = np.minimum(np.minimum(red_level, green_level), blue_level)
    black = (value < 70) & (value - darkest < 30)  # value is the brightest of the three
    return float((green | blue | red | black).mean())


def blurred_share(pixels: NDArray[np.uint8]) -> float:
    """Share of blocks with structure whose fine structure (1 to 2 px) is weak against the coarse (4 to 8 px).

    A ratio, because pale stroma and fat have little contrast at every size; bands rather than the Laplacian's variance,
    because that of a blurred tile is all sensor noise; by blocks, because one sharp fold outweighs a blurred field.
    """
    if min(pixels.shape[:2]) < _BLOCK_PX:
        return 0.0
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.float32)
    fine = cv2.GaussianBlur(grey, (0, 0), 1.0) - cv2.GaussianBlur(grey, (0, 0), 2.0)
    # The coarse bands on a quarter of the size: the same structure at a tenth of the time.
    quarter = _box_average(grey, 4)
    coarse = cv2.GaussianBlur(quarter, (0, 0), 1.0) - cv2.GaussianBlur(quarter, (0, 0), 2.0)
    fine_strength = np.sqrt(_box_average(fine * fine, _BLOCK_PX))  # one value a block
    coarse_strength = np.sqrt(_box_average(coarse * coarse, _BLOCK_PX // 4))
    structured = coarse_strength >= _MIN_CONTRAST
    if structured.sum() < _MIN_BLOCKS:
        return 0.0
    return float((fine_strength < _MIN_SHARPNESS * coarse_strength)[structured].mean())


def _box_average(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Averages over whole boxes of factor x factor."""
    height, width = values.shape[0] // factor, values.shape[1] // factor
    whole = values[: factor * height, : factor * width]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.float32)
