"""Classes for the nuclei that the segmenter found, from what a weak source or an expert said about the same image.

Háberová and Vykopal 2023, section 4.1, "preprocessing 2": a nucleus takes the class of the annotation that covers it; a
nucleus that the weak source did not find becomes `background`, a class of its own. An expert annotates some nuclei of
an image only, so there a nucleus without annotation is left out.

Consumes an image with someone's outlines and found instances; produces the image with the found instances, whose labels
carry the origin of those they were taken from. What marks a match (the paper does not say): more than half of the
smaller of the two is shared; of several annotations the one that shares most.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cellmill.metrics.matching import find_overlaps
from cellmill_schemas.ontology import CellClass, Ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered

__all__ = ["BACKGROUND", "expert_nuclei", "matches", "weak_nuclei", "with_background"]

BACKGROUND = "background"
"""Class of the nuclei that the weak source does not know."""

_MIN_SHARE = 0.5


def with_background(ontology: Ontology) -> Ontology:
    """The ontology with the class `background` at its end.

    Raises:
        ValueError: when it has such a class already.
    """
    extra = CellClass(BACKGROUND, (200, 200, 200))
    return Ontology(f"{ontology.name}+{BACKGROUND}", (*ontology.classes, extra))


def weak_nuclei(image: LabelledImage, found: npt.NDArray[np.int32], origin: LabelOrigin) -> LabelledImage:
    """The image with the found nuclei in the weak source's classes.

    A nucleus where the weak source says nothing is `background`, by `origin`; where it says that it does not know
    (unknown pixels), or gives no certain class, its type stays open. Whatever kind of origin the labels came with, here
    it is weak.
    """
    partner = matches(found, image.instances)
    open_share = _mean_over(found, image.unknown & (image.instances == 0))
    labels = [
        _as_weak(image.labels[partner[number] - 1])
        if number in partner
        else CellLabel((BACKGROUND,) if open_share[number] <= _MIN_SHARE else (), origin)
        for number in range(1, int(found.max(initial=0)) + 1)
    ]
    return replace(image, instances=found, labels=tuple(labels), unknown=np.zeros(found.shape, np.bool_))


def _as_weak(label: CellLabel) -> CellLabel:
    return replace(label, origin=replace(label.origin, kind="weak"))


def expert_nuclei(image: LabelledImage, found: npt.NDArray[np.int32]) -> LabelledImage:
    """The image with those found nuclei that an expert annotated; the others are unknown pixels."""
    partner = matches(found, image.instances)
    instances, numbers = densely_numbered(np.where(np.isin(found, list(partner)), found, 0))
    return replace(
        image,
        instances=instances,
        labels=tuple(image.labels[partner[number] - 1] for number in numbers),
        unknown=instances == 0,
    )


def matches(found: npt.NDArray[np.int32], annotated: npt.NDArray[np.int32]) -> Mapping[int, int]:
    """Annotation of each found nucleus that has one."""
    overlaps = find_overlaps(annotated, found)
    smaller = np.minimum(
        overlaps.reference_area_px[overlaps.pair_reference], overlaps.predicted_area_px[overlaps.pair_predicted]
    )
    kept = overlaps.intersection_px > _MIN_SHARE * smaller
    rows = np.flatnonzero(kept)[np.argsort(overlaps.intersection_px[kept], kind="stable")]
    found_ids = overlaps.predicted_ids[overlaps.pair_predicted[rows]]
    annotation_ids = overlaps.reference_ids[overlaps.pair_reference[rows]]
    return dict(zip(found_ids.tolist(), annotation_ids.tolist(), strict=True))  # the last, which shares most, stays


def _mean_over(labels: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Share of each label's pixels (n + 1,) that lie in a mask."""
    size = int(labels.max(initial=0)) + 1
    inside = np.bincount(labels.ravel(), weights=mask.ravel(), minlength=size)
    return inside / np.maximum(np.bincount(labels.ravel(), minlength=size), 1)
