"""NuCLS: ten H&E breast tiles with a typed point for each nucleus, no outlines. CC0 (Amgad et al. 2022).

Scale: taken as 0.25 um/px; at that scale the small lymphocytes of these tiles are 7 um across. Points say the type of
the pixels right around them and nothing about any other, except that pale pixels away from points are background.
"""

import csv
from pathlib import Path

import cv2
import numpy as np

from cellmill_training.datasets.readers.files import read_rgb
from cellmill_training.samples import (
    BACKGROUND_BIT,
    Labels,
    TissueSample,
    any_class,
    bits_of,
    everything,
    hematoxylin,
    make_sample,
)

__all__ = ["NUCLS_MPP", "read_nucls"]

NUCLS_MPP = 0.25
_DISC_RADIUS_PX = 7
_FAR_PX = 40
_CLASSES = {0: ("neoplastic",), 1: ("connective",), 2: ("lymphocyte",)}


def read_nucls(folder: Path) -> list[TissueSample]:
    """The tiles of `folder` (images/, points/), all for training."""
    samples: list[TissueSample] = []
    for path in sorted((folder / "images").glob("*.png")):
        image = read_rgb(path)
        height, width = image.shape[:2]
        instances = np.zeros((height, width), np.int32)
        bits = {0: any_class()}
        with (folder / "points" / f"{path.stem}.csv").open(newline="") as stream:
            for number, (x, y, label) in enumerate(csv.reader(stream), start=1):
                center = (round(float(x)), round(float(y)))
                disc = np.zeros((height, width), np.uint8)
                cv2.circle(disc, center, _DISC_RADIUS_PX, 1, -1)
                instances[disc > 0] = number
                bits[number] = bits_of(_CLASSES[int(label)]) if int(label) in _CLASSES else any_class()
        table = np.array([bits.get(number, any_class()) for number in range(max(bits) + 1)], np.uint16)
        near = cv2.dilate((instances > 0).astype(np.uint8), np.ones((_FAR_PX, _FAR_PX), np.uint8)) > 0
        density = hematoxylin(image)
        pale = (density < np.quantile(density, 0.4)) & ~near
        allowed = np.where(instances > 0, table[instances], np.where(pale, BACKGROUND_BIT, everything()))
        labels = Labels(instances, allowed.astype(np.uint16), np.zeros((height, width), np.bool_))
        samples.append(
            make_sample(image, labels, mpp=NUCLS_MPP, name=path.stem, source="nucls", group=path.stem, split="train")
        )
    return samples
