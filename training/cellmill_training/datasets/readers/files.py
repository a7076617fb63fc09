"""Reading image files of the training sets, with an error that names the file."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["read_labels", "read_rgb"]


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """8-bit RGB pixels (H, W, 3).

    Raises:
        ValueError: when the file is missing or no image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is missing or not an image that OpenCV reads; is the training set complete?")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8)


def read_labels(path: Path) -> npt.NDArray[np.int32]:
    """Label image (H, W) of 8 or 16 bits.

    Raises:
        ValueError: when the file is missing or has more than one channel.
    """
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2:
        raise ValueError(f"{path} is missing or not a label image of one channel; is the training set complete?")
    return labels.astype(np.int32)
