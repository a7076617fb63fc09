"""Where nothing is labelled: background for sure, or a nucleus that the source left out?

For sources that outline some kinds of nuclei only (MoNuSAC leaves out stroma) or were not finished.
"""

import cv2
import numpy as np
import numpy.typing as npt

from cellmill_training.samples import hematoxylin

__all__ = ["surely_background"]

_RIM_PX = 6


def surely_background(image: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pale pixels, and the rim of labelled nuclei.

    Pale: less than a third of the way from the median hematoxylin outside to the median inside.

    Args:
        image: uint8 (H, W, 3).
        inside: (H, W), labelled nuclei.
    """
    density = hematoxylin(image)
    rest = float(np.median(density[~inside])) if (~inside).any() else 0.0
    nuclei = float(np.median(density[inside])) if inside.any() else rest + 0.3
    pale = density < rest + 0.35 * max(nuclei - rest, 0.05)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _RIM_PX + 1, 2 * _RIM_PX + 1))
    rim = cv2.dilate(inside.astype(np.uint8), kernel).astype(np.bool_)
    return ~inside & (pale | rim)
