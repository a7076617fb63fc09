"""PUMA: one H&E melanoma region with typed nucleus outlines. CC0 per the dataset cards (Schuiveling et al. 2025).

Scale: 0.226 um/px, by the source. The left third is held out for test, the lower part of the rest is for validation,
and what a border cuts belongs to neither: pixels of nuclei across a border are unknown in both parts.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from cellmill_training.samples import (
    BACKGROUND_BIT,
    Labels,
    Split,
    TissueSample,
    any_class,
    bits_of,
    everything,
    make_sample,
)

__all__ = ["PUMA_MPP", "read_puma"]

PUMA_MPP = 0.226
_TEST_FRACTION = 1 / 3
_VALIDATION_TOP = 0.75
_CLASSES: dict[str, tuple[str, ...]] = {
    "nuclei_lymphocyte": ("lymphocyte",),
    "nuclei_tumor": ("neoplastic",),
    "nuclei_histiocyte": ("macrophage",),
    "nuclei_apoptosis": ("dead",),
    "nuclei_endothelium": ("connective",),
    "nuclei_stroma": ("connective",),
    "nuclei_neutrophil": ("neutrophil",),
    "nuclei_epithelium": ("epithelial",),
    "nuclei_melanophage": ("macrophage",),
}


def read_puma(folder: Path) -> list[TissueSample]:
    """Three samples of the one region: train, validation and test."""
    samples: list[TissueSample] = []
    for path in sorted(folder.glob("*.tif")):
        image = np.asarray(tifffile.imread(path))[..., :3].astype(np.uint8)
        outlines = json.loads(path.with_name(f"{path.stem}_nuclei.geojson").read_text(encoding="utf-8"))
        instances, allowed = _painted(outlines["features"], image.shape[:2])
        for split, window in _windows(image.shape[:2]).items():
            labels = _cut(instances, allowed, window)
            samples.append(
                make_sample(
                    image[window],
                    labels,
                    mpp=PUMA_MPP,
                    name=f"{path.stem}_{split}",
                    source="puma",
                    group=f"{path.stem}_{split}",
                    split=split,
                )
            )
    return samples


def _windows(shape: tuple[int, ...]) -> dict[Split, tuple[slice, slice]]:
    left, top = round(shape[1] * _TEST_FRACTION), round(shape[0] * _VALIDATION_TOP)
    return {
        "test": (slice(0, shape[0]), slice(0, left)),
        "train": (slice(0, top), slice(left, shape[1])),
        "validation": (slice(top, shape[0]), slice(left, shape[1])),
    }


def _painted(
    features: list[dict[str, Any]], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint16]]:
    instances = np.zeros(shape, np.int32)
    allowed = np.full(shape, BACKGROUND_BIT, np.uint16)
    for count, feature in enumerate(features, start=1):
        name = str(feature["properties"]["classification"]["name"])
        bits = bits_of(_CLASSES[name]) if name in _CLASSES else any_class()
        geometry = feature["geometry"]
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        mask = np.zeros(shape, np.uint8)
        for polygon in polygons:
            cv2.fillPoly(mask, [np.round(np.array(polygon[0])).astype(np.int32)], 1)
        inside = mask > 0
        instances[inside] = count
        allowed[inside] = bits
    return instances, allowed


def _cut(instances: npt.NDArray[np.int32], allowed: npt.NDArray[np.uint16], window: tuple[slice, slice]) -> Labels:
    part = instances[window]
    total = np.bincount(instances.ravel())
    kept = np.bincount(part.ravel(), minlength=len(total))
    severed = (kept > 0) & (kept < total)
    severed[0] = False
    cut = severed[part]
    return Labels(
        instances=np.where(cut, 0, part).astype(np.int32),
        allowed=np.where(cut, everything(), allowed[window]).astype(np.uint16),
        flow_known=(part > 0) & ~cut,
    )
