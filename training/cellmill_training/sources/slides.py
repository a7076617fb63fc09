"""The two real slides without labels: an Aperio region (CC0, Carnegie Mellon) and an OME-TIFF (Apache-2.0, instanseg).

Scale: stated in the files (0.499 and 0.50008 um/px), which is the model grid's within a fifth of a percent. On the
Aperio region four areas were looked at in full resolution and hold no nucleus, only keratin and debris; they are
drawn here because nothing else local teaches a network what keratin flakes are not.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from cellmill_training.samples import BACKGROUND_BIT, Labels, TissueSample, everything, make_sample

__all__ = ["SLIDE_MPP", "empty_areas", "read_slides"]

SLIDE_MPP = 0.5
_SLIDES = ("CMU-1-Small-Region.svs", "HE_example.ome.tif")
_WHITE = 225

# Corners (x, y) in level-0 px of areas without nuclei on CMU-1-Small-Region.
_EMPTY_AREAS: tuple[tuple[tuple[int, int], ...], ...] = (
    (
        (1480, 965), (1570, 915), (1620, 935), (1610, 1100), (1550, 1170), (1500, 1215), (1490, 1295), (1320, 1295),
        (1335, 1225), (1380, 1150), (1420, 1080), (1450, 1015),
    ),
    (
        (1306, 1259), (1609, 1259), (1632, 1399), (1492, 1586), (1399, 1749), (1341, 1807), (1271, 1726),
        (1236, 1609), (1271, 1399),
    ),
    ((1650, 933), (1982, 933), (1982, 1300), (1860, 1411), (1650, 1200)),
    ((1600, 1440), (1740, 1310), (1790, 1345), (1700, 1430), (1600, 1510), (1560, 1490)),
)  # fmt: skip


def read_slides(folder: Path) -> list[TissueSample]:
    """The slides of `folder` that are there, with glass and the empty areas labelled and all else unknown."""
    samples: list[TissueSample] = []
    for name in _SLIDES:
        path = folder / name
        if not path.is_file():
            continue
        image = _pixels(path)
        allowed = np.full(image.shape[:2], everything(), np.uint16)
        bright = (image.min(axis=2) > _WHITE).astype(np.uint8)
        allowed[cv2.erode(bright, np.ones((9, 9), np.uint8)) > 0] = BACKGROUND_BIT
        if name == _SLIDES[0]:
            empty = np.zeros(image.shape[:2], np.uint8)
            for corners in _EMPTY_AREAS:
                cv2.fillPoly(empty, [np.array(corners, np.int32)], 1.0)
            allowed[empty > 0] = BACKGROUND_BIT
        nothing = np.zeros(image.shape[:2], np.int32)
        labels = Labels(nothing, allowed, nothing > 0)
        samples.append(
            make_sample(image, labels, mpp=SLIDE_MPP, name=path.stem, source="slides", group=path.stem, split="train")
        )
    return samples


def empty_areas(samples: list[TissueSample]) -> list[TissueSample]:
    """The surroundings of the areas without nuclei as samples of their own, so that a mixture can give them a share."""
    found: list[TissueSample] = []
    for sample in samples:
        if sample.name != Path(_SLIDES[0]).stem:
            continue
        for number, corners in enumerate(_EMPTY_AREAS):
            (x0, y0), (x1, y1) = np.min(corners, axis=0), np.max(corners, axis=0)
            window = (slice(int(y0), int(y1)), slice(int(x0), int(x1)))
            found.append(
                replace(
                    sample,
                    name=f"{sample.name}-empty-{number}",
                    source="empty_areas",
                    image=sample.image[window],
                    instances=sample.instances[window],
                    allowed=sample.allowed[window],
                    flow=sample.flow[window],
                    flow_known=sample.flow_known[window],
                )
            )
    return found


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(tifffile.imread(path))
    if pixels.shape[0] == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    return np.ascontiguousarray(pixels[..., :3]).astype(np.uint8)
