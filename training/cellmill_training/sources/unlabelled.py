"""brecahad: real H&E of breast with boxed nuclei, many without a box. CC BY 4.0 (Aksac et al. 2019).

The images lend their eosin textures to hematoxylin-only images, and are what a trained network labels for
self-training. A box is given by its centre and size: hematoxylin at (x, y) is twice what it is at (x + w/2, y + h/2).
Scale of brecahad: not stated; taken as 0.25 um/px, at which its median tumour box is 10 um across.
"""

import csv
from pathlib import Path

import cv2
import numpy as np

from cellmill_training.datasets.readers.files import read_rgb
from cellmill_training.samples import BACKGROUND_BIT, Labels, TissueSample, bits_of, everything, make_sample

__all__ = ["BRECAHAD_MPP", "read_brecahad"]

BRECAHAD_MPP = 0.25
_CLASSES = {
    "Tumor_nuclei": ("neoplastic",),
    "Mitosis": ("neoplastic",),
    "Apoptosis": ("dead",),
    "Non_tumor_nuclei": ("lymphocyte", "connective", "epithelial", "macrophage", "neutrophil"),
}
_CORE = 0.5


def read_brecahad(folder: Path) -> list[TissueSample]:
    """Images with the types of boxed nuclei: known in the middle of each box, unknown everywhere else."""
    samples: list[TissueSample] = []
    for path in sorted((folder / "images").glob("*.jpg")):
        image = read_rgb(path)
        instances = np.zeros(image.shape[:2], np.int32)
        allowed = np.full(image.shape[:2], everything(), np.uint16)
        with (folder / "labels" / f"{path.stem}.csv").open(newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream), start=1):
                if row["class"] not in _CLASSES:
                    continue
                x, y, width, height = (float(row[key]) for key in ("x", "y", "w", "h"))
                disc = np.zeros(image.shape[:2], np.uint8)
                axes = (max(1, round(width * _CORE / 2)), max(1, round(height * _CORE / 2)))
                cv2.ellipse(disc, (round(x), round(y)), axes, 0.0, 0.0, 360.0, 1, -1)
                instances[disc > 0] = number
                allowed[disc > 0] = bits_of(_CLASSES[row["class"]])
        white = cv2.erode((image.min(axis=2) > 225).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        allowed[white & (instances == 0)] = BACKGROUND_BIT
        labels = Labels(instances, allowed, np.zeros(image.shape[:2], np.bool_))
        samples.append(
            make_sample(
                image,
                labels,
                mpp=BRECAHAD_MPP,
                name=path.stem,
                source="brecahad",
                group=path.stem,
                split="train",
            )
        )
    return samples
