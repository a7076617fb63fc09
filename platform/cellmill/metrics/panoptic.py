"""Detection, segmentation and panoptic quality at IoU 0.5 (Shvetsov et al. 2025, S5.2), and F1 per type.

Consumes two label images of one shape, (H, W) integers with 0 as background; produces counts that add up over images,
so that a pooled figure is the figure of the sums. At IoU above 0.5 a reference instance has at most one partner and the
other way round, so matching needs no assignment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Match", "PanopticCounts", "TypeCounts", "count_panoptic", "count_types", "match_instances"]

Labels = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Match:
    """Pairs of one reference and one predicted instance, and how many instances there are of each."""

    reference: npt.NDArray[np.int64]  # (m,) label in the reference image
    predicted: npt.NDArray[np.int64]  # (m,) label in the predicted image
    iou: npt.NDArray[np.float64]  # (m,)
    unmatched_reference: npt.NDArray[np.int64]
    unmatched_predicted: npt.NDArray[np.int64]


@dataclass(frozen=True)
class PanopticCounts:
    """True positives, false positives, false negatives and the sum of IoU over true positives; adds up over images."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    iou_sum: float = 0.0

    def __add__(self, other: "PanopticCounts") -> "PanopticCounts":
        return PanopticCounts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.iou_sum + other.iou_sum,
        )

    @property
    def detection_quality(self) -> float:
        """TP / (TP + FP / 2 + FN / 2), the F1 of detection; NaN where neither image has an instance."""
        whole = self.true_positives + 0.5 * (self.false_positives + self.false_negatives)
        return self.true_positives / whole if whole else float("nan")

    @property
    def segmentation_quality(self) -> float:
        """Mean IoU of true positives; NaN where there is none."""
        return self.iou_sum / self.true_positives if self.true_positives else float("nan")

    @property
    def panoptic_quality(self) -> float:
        """Detection times segmentation quality; 0 where nothing matched though something was there."""
        if not self.true_positives:
            return self.detection_quality
        return self.detection_quality * self.segmentation_quality


@dataclass(frozen=True)
class TypeCounts:
    """Counts of one type: detected with this type, wrongly given it, missed or given another."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: "TypeCounts") -> "TypeCounts":
        return TypeCounts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN where the type neither occurs nor is predicted."""
        whole = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / whole if whole else float("nan")


def match_instances(reference: Labels, predicted: Labels, *, min_iou: float = 0.5) -> Match:
    """Pairs of instances whose IoU is above `min_iou`.

    Args:
        reference: (H, W) labels, 0 background.
        predicted: (H, W) labels, 0 background.
        min_iou: at least 0.5, because below it pairs are not unique.

    Raises:
        ValueError: when shapes differ or `min_iou` is below 0.5.
    """
    if reference.shape != predicted.shape or min_iou < 0.5:
        raise ValueError(
            "Matching needs two label images of one shape and min_iou >= 0.5, got "
            f"{reference.shape}, {predicted.shape} and {min_iou}."
        )
    ours, reference_ids = _areas(reference)
    theirs, predicted_ids = _areas(predicted)
    both = (reference > 0) & (predicted > 0)
    pairs = np.stack([reference[both], predicted[both]], axis=1).astype(np.int64)  # (n, 2)
    found, overlap = np.unique(pairs, axis=0, return_counts=True)
    union = np.array([ours[int(r)] + theirs[int(p)] for r, p in found], np.int64) - overlap
    iou = overlap / np.maximum(union, 1)
    kept = iou > min_iou
    matched = found[kept]
    return Match(
        reference=matched[:, 0],
        predicted=matched[:, 1],
        iou=iou[kept],
        unmatched_reference=np.setdiff1d(reference_ids, matched[:, 0]),
        unmatched_predicted=np.setdiff1d(predicted_ids, matched[:, 1]),
    )


def count_panoptic(match: Match) -> PanopticCounts:
    """Panoptic counts of one image's match."""
    return PanopticCounts(
        true_positives=len(match.iou),
        false_positives=len(match.unmatched_predicted),
        false_negatives=len(match.unmatched_reference),
        iou_sum=float(match.iou.sum()),
    )


def count_types(
    match: Match,
    *,
    reference_types: Mapping[int, frozenset[str]],
    predicted_types: Mapping[int, str],
    names: Sequence[str],
) -> dict[str, TypeCounts]:
    """Counts of each type.

    A reference instance may be allowed several types (a source that does not tell neoplastic from epithelial). It
    counts towards a type only where it is allowed that one alone; where it is allowed several, a prediction within the
    set is neither a gain nor a loss, and one outside it is a false positive of the type predicted.

    Args:
        match: of one image.
        reference_types: allowed types of each reference instance.
        predicted_types: type of each predicted instance.
        names: types to count.
    """
    counts = {name: TypeCounts() for name in names}

    def add(name: str, **delta: int) -> None:
        if name in counts:
            counts[name] = counts[name] + TypeCounts(**delta)

    for reference, predicted in zip(match.reference.tolist(), match.predicted.tolist(), strict=True):
        allowed, given = reference_types[reference], predicted_types[predicted]
        sole = next(iter(allowed)) if len(allowed) == 1 else None
        if given in allowed:
            if sole is not None:
                add(sole, true_positives=1)
            continue
        add(given, false_positives=1)
        if sole is not None:
            add(sole, false_negatives=1)
    for reference in match.unmatched_reference.tolist():
        if len(reference_types[reference]) == 1:
            add(next(iter(reference_types[reference])), false_negatives=1)
    for predicted in match.unmatched_predicted.tolist():
        add(predicted_types[predicted], false_positives=1)
    return counts


def _areas(labels: Labels) -> tuple[dict[int, int], npt.NDArray[np.int64]]:
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    return {int(i): int(c) for i, c in zip(ids, counts, strict=True)}, ids.astype(np.int64)
