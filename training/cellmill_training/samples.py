"""Training samples: one image with what is known about each of its pixels.

Sources disagree about what they know: some have masks without types, some types without masks, some leave stroma
unlabelled. So a label is not a class but the SET of classes a pixel may have, as bits: bit 0 background, bit 1 + c
class c of the ontology. All bits set means nothing is known, and the loss is zero there. Flows carry their own mask,
because an outline may be known to be wrong (merged nuclei, whole cells) where the class is right.

Images are kept at about 0.36 um/px, finer than the model grid, so that random scales around 0.5 um/px never enlarge.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cellmill.instances.stain import stain_densities
from cellmill.instances.targets import masks_to_flows
from cellmill_schemas.ontology import Ontology, get_ontology
from cellmill_training.datasets.splitting import Split

__all__ = [
    "BACKGROUND_BIT",
    "STORE_MPP",
    "Labels",
    "Split",
    "TissueSample",
    "any_class",
    "bits_of",
    "everything",
    "hematoxylin",
    "make_sample",
    "nearest_labels",
    "resampled",
    "training_ontology",
]

STORE_MPP = 0.36
"""Samples finer than this are brought to it; coarser ones stay as they are."""

BACKGROUND_BIT = np.uint16(1)


def training_ontology() -> Ontology:
    """The ontology the networks are trained for."""
    return get_ontology("refined7")


def bits_of(names: Iterable[str]) -> int:
    """Bit set of classes of the training ontology, by name."""
    ontology = training_ontology()
    return sum(1 << (1 + ontology.index(name)) for name in set(names))


def any_class() -> int:
    """Some nucleus, its type unknown."""
    return sum(1 << (1 + index) for index in range(len(training_ontology())))


def everything() -> int:
    """Nothing is known."""
    return any_class() | int(BACKGROUND_BIT)


@dataclass(frozen=True)
class Labels:
    """What a source says about an image, at the image's own resolution."""

    instances: npt.NDArray[np.int32]  # (H, W), 0 outside any known nucleus
    allowed: npt.NDArray[np.uint16]  # (H, W), bit set of possible classes
    flow_known: npt.NDArray[np.bool_]  # (H, W), the instance's outline can be trusted


@dataclass(frozen=True)
class TissueSample:
    """One image ready for training: pixels, labels and flows at `mpp`."""

    name: str
    source: str
    group: str
    """What must not be split between training and test: a slide, a field."""
    split: Split
    mpp: float
    image: npt.NDArray[np.uint8]  # (H, W, 3)
    instances: npt.NDArray[np.int32]  # (H, W)
    allowed: npt.NDArray[np.uint16]  # (H, W)
    flow: npt.NDArray[np.float32]  # (H, W, 2), dy then dx, unit length inside instances
    flow_known: npt.NDArray[np.bool_]  # (H, W)
    classes: npt.NDArray[np.uint16]
    """(n + 1,) allowed set of each instance, for evaluation; index 0 unused."""


def resampled(image: npt.NDArray[np.uint8], *, mpp: float, target_mpp: float) -> npt.NDArray[np.uint8]:
    """The image at `target_mpp`, by area averages when it shrinks."""
    height, width = image.shape[:2]
    size = (max(1, round(width * mpp / target_mpp)), max(1, round(height * mpp / target_mpp)))
    mode = cv2.INTER_AREA if mpp < target_mpp else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=mode).astype(np.uint8)


def nearest_labels(array: npt.NDArray[np.integer], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Labels at another size (width, height), each the label under its centre."""
    # OpenCV resizes no int32, and float32 holds every label below 2^24 exactly.
    return cv2.resize(array.astype(np.float32), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)


def make_sample(
    image: npt.NDArray[np.uint8],
    labels: Labels,
    *,
    mpp: float,
    name: str,
    source: str,
    group: str,
    split: Split,
    store_mpp: float = STORE_MPP,
) -> TissueSample:
    """Bring image and labels to the stored resolution and compute the flows there."""
    target = max(mpp, store_mpp)
    pixels = resampled(image, mpp=mpp, target_mpp=target)
    size = (pixels.shape[1], pixels.shape[0])
    instances = nearest_labels(labels.instances, size)
    allowed = nearest_labels(labels.allowed.astype(np.int32), size).astype(np.uint16)
    known = nearest_labels(labels.flow_known.astype(np.int32), size).astype(np.bool_) & (instances > 0)
    classes = np.full(int(instances.max(initial=0)) + 1, everything(), np.uint16)
    classes[instances.ravel()] = allowed.ravel()
    flow = masks_to_flows(np.where(known, instances, 0).astype(np.int32))  # (2, H, W)
    return TissueSample(
        name=name,
        source=source,
        group=group,
        split=split,
        mpp=target,
        image=pixels,
        instances=instances,
        allowed=allowed,
        flow=np.ascontiguousarray(flow.transpose(1, 2, 0)),
        flow_known=known,
        classes=classes,
    )


def hematoxylin(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Hematoxylin density (H, W) in natural-logarithm units, lightly smoothed."""
    table = -np.log10((np.arange(256, dtype=np.float64) + 1.0) / 256.0)
    density = stain_densities(table[image])[..., 0] * math.log(10.0)
    return cv2.GaussianBlur(density.astype(np.float32), (0, 0), 1.0).astype(np.float32)
