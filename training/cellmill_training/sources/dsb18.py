"""dsb18 (BBBC038 stage 1, tissue images): real masks without types, mostly hematoxylin-like stain only. CC0.

Scale: not stated by the source, and the fields clearly differ in magnification (median nucleus 13 to 52 px across).
Each parent field is given the um/px at which its median nucleus is 7.5 um across, held within 0.15 to 0.5: an estimate
from nucleus size, good to perhaps a quarter.
"""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill_training.samples import BACKGROUND_BIT, Labels, TissueSample, any_class, make_sample
from cellmill_training.sources.files import read_labels, read_rgb
from cellmill_training.splits import split_stratified

__all__ = ["MEDIAN_NUCLEUS_UM", "estimated_mpp", "read_dsb18"]

MEDIAN_NUCLEUS_UM = 7.5


def estimated_mpp(areas_px: npt.NDArray[np.int64]) -> float:
    """Micrometres per pixel at which the median of `areas_px` belongs to a nucleus of 7.5 um."""
    diameter_px = 2.0 * float(np.sqrt(np.median(areas_px) / np.pi))
    return float(np.clip(MEDIAN_NUCLEUS_UM / diameter_px, 0.15, 0.5))


def _areas(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    areas = np.bincount(labels.ravel())[1:]
    return areas[areas > 0]


def read_dsb18(folder: Path) -> list[TissueSample]:
    """All images of `folder` (images/, labels/, manifest.csv), each with its split."""
    with (folder / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    splits = split_stratified({r["parent_field"]: r["stain_group"] for r in rows}, test_fraction=0.2, num_validation=2)
    labels = {r["image"]: read_labels(folder / "labels" / f"{r['image']}.png") for r in rows}
    scale = {
        field: estimated_mpp(np.concatenate([_areas(labels[r["image"]]) for r in rows if r["parent_field"] == field]))
        for field in splits
    }
    return [
        make_sample(
            read_rgb(folder / "images" / f"{r['image']}.png"),
            _labels(labels[r["image"]]),
            mpp=scale[r["parent_field"]],
            name=r["image"],
            source="dsb18_he" if r["stain_group"] == "pink_purple_HE" else "dsb18",
            group=r["parent_field"],
            split=splits[r["parent_field"]],
        )
        for r in rows
    ]


def _labels(instances: npt.NDArray[np.int32]) -> Labels:
    inside = instances > 0
    allowed = np.where(inside, any_class(), BACKGROUND_BIT).astype(np.uint16)
    return Labels(instances=instances, allowed=allowed, flow_known=inside)
