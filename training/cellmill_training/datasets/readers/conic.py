"""CoNIC: 4,981 patches of 256 px cut from Lizard, six classes. CC BY-NC-SA 4.0 (Graham et al. 2021, 2024).

In: `images.npy` uint8 (N, 256, 256, 3), `labels.npy` uint16 (N, 256, 256, 2) of instance labels and classes 0 to 6,
and `patch_info.csv`, a row a patch: the Lizard region it was cut from and its number, `consep_1-0003`. Patches of one
region are one split group. About 0.5 um/px (20x), colon.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.readers.building import (
    ImageSource,
    build_image,
    open_npy,
    to_uint8,
    types_by_majority,
)
from cellmill_training.datasets.readers.matlab import LIZARD_CLASSES, LIZARD_MPP

__all__ = ["read_conic"]

_SIDE = 256


def read_conic(folder: Path) -> Iterator[LabelledImage]:
    """All patches, in order.

    Raises:
        ValueError: when a file is missing, damaged or of another shape, naming it.
    """
    images = open_npy(folder / "images.npy", ends=(_SIDE, _SIDE, 3))
    labels = open_npy(folder / "labels.npy", ends=(_SIDE, _SIDE, 2))
    patches = _patch_names(folder / "patch_info.csv")
    if not len(images) == len(labels) == len(patches):
        raise ValueError(
            f"{folder}: images.npy has {len(images)} patches, labels.npy {len(labels)} and patch_info.csv "
            f"{len(patches)}; they must be of one release."
        )
    for number, patch in enumerate(patches):
        instances, type_map = np.moveaxis(np.asarray(labels[number]), -1, 0)
        place = f"{folder / 'labels.npy'}, patch {number}"
        types = types_by_majority(instances, type_map, LIZARD_CLASSES, where=place)
        group = f"lizard-{patch.rsplit('-', 1)[0]}"
        where = ImageSource(f"conic-{patch}", "conic", group, LIZARD_MPP, tissue="colon")
        pixels = to_uint8(np.asarray(images[number]), where=f"{folder / 'images.npy'}, patch {number}")
        yield build_image(where, pixels, instances, types)


def _patch_names(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise ValueError(
            f"{path} is missing; without it, patches of one region could be on both sides of a split."
        ) from (error)
    names = [next((value for key, value in row.items() if key == "patch_info"), "") for row in rows]
    if not all(names):
        raise ValueError(f"{path} must have a column patch_info with a name in every row.")
    return names
