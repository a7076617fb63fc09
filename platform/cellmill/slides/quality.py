"""Whether a tile can be trusted: pen ink and blur.

A pure function of the tile's pixels, so that neighbouring fields judge a shared tile alike. Both checks are set to miss
a bad tile rather than lose a good one: of 541 tiles of 256 px from the two open slides, BreCaHAD, MoNuSAC, NuCLS and
PUMA none is excluded. What was measured stands beside each bound.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["TileQuality", "ink_share", "judge_tile", "sharpness"]

TileQuality = Literal["ok", "pen", "blur"]

MAX_INK_SHARE = 0.25
"""Share of ink-coloured pixels from which a tile is marked by a pen. Real tissue: at most 0.07, on a margin painted
with green ink."""
MIN_SHARPNESS = 0.27
"""Fine over coarse structure below which a tile is out of focus. Sharp tissue at 0.5 um/px: 0.43 and more (at 0.2 um/px
0.35); blurred by a Gaussian of 4 px: 99 % below 0.27 even after noise and JPEG; by one of 2 px: 5 % below."""
_MIN_CONTRAST = 1.0
"""Grey levels of coarse structure below which there is nothing to judge: glass, lumen, mucus."""


def judge_tile(pixels: NDArray[np.uint8]) -> TileQuality:
    """The verdict on one tile (tile_px, tile_px, 3); nothing but its pixels counts."""
    if ink_share(pixels) > MAX_INK_SHARE:
        return "pen"
    return "blur" if sharpness(pixels) < MIN_SHARPNESS else "ok"


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
    black = (value < 70) & (np.ptp(np.asarray(small, np.uint8), axis=-1) < 30)
    return float((green | blue | red | black).mean())


def sharpness(pixels: NDArray[np.uint8]) -> float:
    """Strength of structure of 1 to 2 px over that of 4 to 8 px; infinite where there is none to compare.

    A ratio, because pale stroma and fat have little contrast at every size; bands rather than the Laplacian's variance,
    because that of a blurred tile is all sensor noise.
    """
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.float32)
    fine = cv2.GaussianBlur(grey, (0, 0), 1.0) - cv2.GaussianBlur(grey, (0, 0), 2.0)
    # The coarse bands on a quarter of the size: the same structure at a tenth of the time.
    quarter = _box_quarter(grey)
    coarse = cv2.GaussianBlur(quarter, (0, 0), 1.0) - cv2.GaussianBlur(quarter, (0, 0), 2.0)
    contrast = float(coarse.std())
    return float(fine.std()) / contrast if contrast >= _MIN_CONTRAST else float("inf")


def _box_quarter(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = grey.shape[0] // 4, grey.shape[1] // 4
    whole = grey[: 4 * height, : 4 * width]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.float32)
