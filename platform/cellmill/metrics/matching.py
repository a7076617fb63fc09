"""Which predicted instance is which reference instance: the two rules of the field's papers.

Consumes two label images of one shape, (H, W) integers with 0 as background; produces a `Match`.

- By IoU (Kirillov et al. 2019; Shvetsov et al. 2025, S5.2): a pair whose IoU is above 0.5. There an instance has at
  most one partner, so nothing needs to be assigned.
- By assignment (Adjadj et al. 2025, "Evaluation metrics"): Munkres' one-to-one assignment with the least total distance
  between centroids; a pair counts where its IoU is above 0.5 too. It finds at most the pairs of the first rule, and
  fewer where a third instance's centroid draws one of a pair away.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Match", "Overlaps", "find_overlaps", "match_by_assignment", "match_by_iou", "match_instances"]

Labels = npt.NDArray[np.integer]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """Pairs of one reference and one predicted instance, and the instances without a partner."""

    reference: Integers  # (m,) label in the reference image
    predicted: Integers  # (m,) label in the predicted image
    iou: Floats  # (m,)
    unmatched_reference: Integers
    unmatched_predicted: Integers


@dataclass(frozen=True)
class Overlaps:
    """Instances of two label images and every pair of them that shares a pixel; one row is one instance or one pair."""

    reference_ids: Integers  # (n,) labels, ascending
    predicted_ids: Integers  # (m,)
    reference_area_px: Integers  # (n,)
    predicted_area_px: Integers  # (m,)
    reference_centroids_px: Floats  # (n, 2), y then x
    predicted_centroids_px: Floats  # (m, 2)
    pair_reference: Integers  # (k,) row of the reference instance
    pair_predicted: Integers  # (k,) row of the predicted instance
    intersection_px: Integers  # (k,)

    @property
    def union_px(self) -> Integers:
        """Of each pair, (k,)."""
        both = self.reference_area_px[self.pair_reference] + self.predicted_area_px[self.pair_predicted]
        return both - self.intersection_px

    @property
    def iou(self) -> Floats:
        """Of each pair, (k,)."""
        return self.intersection_px / self.union_px

    def iou_table(self) -> Floats:
        """IoU of every reference instance with every predicted one, (n, m)."""
        table = np.zeros((len(self.reference_ids), len(self.predicted_ids)))
        table[self.pair_reference, self.pair_predicted] = self.iou
        return table


def find_overlaps(reference: Labels, predicted: Labels) -> Overlaps:
    """Areas, centroids and shared pixels of two label images (H, W).

    Raises:
        ValueError: when shapes differ or are not two-dimensional.
    """
    if reference.shape != predicted.shape or reference.ndim != 2:
        raise ValueError(f"Matching needs two label images of one shape, got {reference.shape} and {predicted.shape}.")
    ours, theirs = _instances(reference), _instances(predicted)
    both = (reference > 0) & (predicted > 0)
    rows = np.searchsorted(ours[0], reference[both])
    columns = np.searchsorted(theirs[0], predicted[both])
    pairs, shared = np.unique(rows * max(len(theirs[0]), 1) + columns, return_counts=True)
    return Overlaps(
        reference_ids=ours[0],
        predicted_ids=theirs[0],
        reference_area_px=ours[1],
        predicted_area_px=theirs[1],
        reference_centroids_px=ours[2],
        predicted_centroids_px=theirs[2],
        pair_reference=pairs // max(len(theirs[0]), 1),
        pair_predicted=pairs % max(len(theirs[0]), 1),
        intersection_px=shared.astype(np.int64),
    )


def match_instances(reference: Labels, predicted: Labels, *, min_iou: float = 0.5) -> Match:
    """Pairs of instances of two label images whose IoU is above `min_iou`."""
    return match_by_iou(find_overlaps(reference, predicted), min_iou=min_iou)


def match_by_iou(overlaps: Overlaps, *, min_iou: float = 0.5) -> Match:
    """Pairs whose IoU is above `min_iou`.

    Raises:
        ValueError: when `min_iou` is below 0.5, because there pairs are not unique.
    """
    if min_iou < 0.5:
        raise ValueError(f"Matching by IoU needs min_iou >= 0.5, below which pairs are not unique, got {min_iou}.")
    kept = overlaps.iou > min_iou
    return _match(overlaps, overlaps.pair_reference[kept], overlaps.pair_predicted[kept], overlaps.iou[kept])


def match_by_assignment(overlaps: Overlaps, *, min_iou: float = 0.5, radius_px: float | None = None) -> Match:
    """Pairs of the assignment with the least total distance between centroids, of those that pass both limits.

    Args:
        overlaps: of one image.
        min_iou: a pair counts where its IoU is above it.
        radius_px: a pair counts where its centroids lie at most this far apart; the paper has no such limit, and above
            an IoU of 0.5 it changes nothing unless it is smaller than a nucleus.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    distance_px = cdist(overlaps.reference_centroids_px, overlaps.predicted_centroids_px)  # (n, m)
    rows, columns = linear_sum_assignment(distance_px)
    iou = overlaps.iou_table()[rows, columns]
    kept = iou > min_iou
    if radius_px is not None:
        kept &= distance_px[rows, columns] <= radius_px
    return _match(overlaps, rows[kept], columns[kept], iou[kept])


def _match(overlaps: Overlaps, rows: Integers, columns: Integers, iou: Floats) -> Match:
    return Match(
        reference=overlaps.reference_ids[rows],
        predicted=overlaps.predicted_ids[columns],
        iou=iou,
        unmatched_reference=np.delete(overlaps.reference_ids, rows),
        unmatched_predicted=np.delete(overlaps.predicted_ids, columns),
    )


def _instances(labels: Labels) -> tuple[Integers, Integers, Floats]:
    """Labels, areas and centroids (y, x) of an image's instances."""
    rows, columns = np.nonzero(labels > 0)
    ids, which, area_px = np.unique(labels[rows, columns], return_inverse=True, return_counts=True)
    sums = [np.bincount(which, weights=places, minlength=len(ids)) for places in (rows, columns)]
    return ids.astype(np.int64), area_px.astype(np.int64), np.stack(sums, axis=1) / np.maximum(area_px, 1)[:, None]
