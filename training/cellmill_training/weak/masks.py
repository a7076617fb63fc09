"""Masks of a labelled image, and the image at the chain's three resolutions.

Háberová and Vykopal 2023, section 4.1: annotations become one channel a class; images are kept at full, half and
quarter resolution. Here the coarser two are made when they are needed: that takes less time than reading them would.
"""

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.labelled_image import LabelledImage, densely_numbered
from cellmill_training.samples import nearest_labels

__all__ = ["NUCLEUS", "OUTSIDE", "UNKNOWN", "at_resolution", "class_masks", "nucleus_map"]

OUTSIDE, NUCLEUS, UNKNOWN = 0, 1, 2
"""Values of a nucleus map."""


def class_masks(image: LabelledImage, ontology: Ontology) -> npt.NDArray[np.bool_]:
    """One mask a class, (C, H, W); nuclei whose type is not certain are in none.

    Raises:
        ValueError: when a label's class is not in the ontology, naming image and instance.
    """
    types = image.type_map(ontology)
    return types[None] == np.arange(1, len(ontology) + 1, dtype=np.int16)[:, None, None]


def nucleus_map(image: LabelledImage) -> npt.NDArray[np.uint8]:
    """Whether a pixel (H, W) is nucleus, outside, or nobody knows; the binary form that the segmenter learns."""
    known = np.where(image.instances > 0, NUCLEUS, OUTSIDE)
    return np.where(image.unknown & (image.instances == 0), UNKNOWN, known).astype(np.uint8)


def at_resolution(image: LabelledImage, factor: int) -> LabelledImage:
    """The image with `factor` times fewer pixels each way, called `<image id>@<factor>`; as it is for 1.

    Pixels are averages; a nucleus that keeps no pixel is gone.
    """
    if factor == 1:
        return image
    height, width = (max(1, side // factor) for side in image.instances.shape)
    instances, numbers = densely_numbered(nearest_labels(image.instances, (width, height)))
    return replace(
        image,
        image_id=f"{image.image_id}@{factor}",
        mpp=image.mpp * factor,
        image=cv2.resize(image.image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8),
        instances=instances,
        labels=tuple(image.labels[number - 1] for number in numbers),
        unknown=nearest_labels(image.unknown.astype(np.int32), (width, height)) > 0,
    )
