"""PUMA: one H&E melanoma region with typed nucleus outlines. CC0 per the dataset cards (Schuiveling et al. 2025).

Read by `datasets.readers.qupath`. The left third is held out for test, the lower part of the rest is for validation,
and what a border cuts belongs to neither: pixels of nuclei across a border are unknown in both parts.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import get_ontology
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_training.datasets.mapping import mapped
from cellmill_training.datasets.readers import qupath
from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.training_samples import labels_of
from cellmill_training.samples import Labels, TissueSample, everything, make_sample, training_ontology

__all__ = ["read_puma"]

_TEST_FRACTION = 1 / 3
_VALIDATION_TOP = 0.75


def read_puma(folder: Path) -> list[TissueSample]:
    """Three samples of each region: train, validation and test."""
    mapping = get_mapping(get_ontology("puma10"), training_ontology())
    samples: list[TissueSample] = []
    for image in qupath.read_puma(folder):
        whole = labels_of(mapped(image, mapping), training_ontology())
        stem = image.image_id.removeprefix("puma-")
        for split, window in _windows(image.instances.shape).items():
            samples.append(
                make_sample(
                    image.image[window],
                    _cut(whole.instances, whole.allowed, window),
                    mpp=image.mpp,
                    name=f"{stem}_{split}",
                    source="puma",
                    group=f"{stem}_{split}",
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
