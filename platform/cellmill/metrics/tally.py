"""What is counted of one image: everything that pooled figures are made of, as sums that add up over images.

Consumes a reference and a prediction of one image, produces an `ImageTally` of arrays. The same record with a leading
axis holds many images, or many resampled sets of images: adding images up is one sum over that axis.

A reference says for each instance which types it may have. One: it is that type. Several: a source that does not tell
them apart, or annotators who disagree. All, or none named: the type is unknown. Two readings exist and both are kept:

- `types` (matching by IoU): an instance of several types counts for none of them; a prediction within its set is
  neither a gain nor a loss, one outside it is a false positive of the type predicted.
- `types_assigned` (matching by assignment): as Adjadj et al. 2025 have it ("multi-label annotation"): a prediction
  within the set is a true positive of the type predicted; one outside it a false positive of the type predicted and a
  false negative of every type of the set; an instance missed is a false negative of every type of the set.

Where the type is unknown, the instance counts for detection only, in both. In an image with cells of which none has a
known type, invented cells count for no type either: its source does not tell types.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cellmill.metrics.jaccard import aji_parts, aji_plus_parts
from cellmill.metrics.matching import Match, find_overlaps, match_by_assignment, match_by_iou

__all__ = ["NUM_BINS", "ImageTally", "stacked", "tally_image", "without_unknown"]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]

NUM_BINS = 15
"""Bins of confidence, equally wide over 0 to 1 (Guo et al. 2017)."""


@dataclass(frozen=True)
class ImageTally:
    """Counts of one image, or of many with a leading axis; C types, B bins of confidence."""

    panoptic: Floats  # (4,) true positives, false positives, false negatives, sum of IoU; by IoU
    assigned: Floats  # (4,) the same by assignment
    types: Floats  # (C, 6) right, wrong type given, given another type, invented, missed, sum of IoU; by IoU
    types_assigned: Floats  # (C, 6) the same by assignment, sets as Adjadj et al.
    jaccard: Floats  # (2,) numerator and denominator of AJI, px
    jaccard_plus: Floats  # (2,) of AJI+
    cells: Floats  # (C + 1, 2) cells in the reference and predicted, by type and last in all
    count_moments: Floats  # (C + 1, 4) 1, y, y^2, (y - predicted)^2 where the reference's count y is certain, else 0
    calibration: Floats  # (B, 3) matched cells of one known type, sum of their confidence, how many were right
    confusion: Floats  # (C + 3, C + 1) rows: types, several, unknown, nothing there; columns: types, missed

    def total(self) -> "ImageTally":
        """The sum over the leading axis."""
        return ImageTally(**{item.name: getattr(self, item.name).sum(axis=0) for item in fields(self)})

    def weighted(self, weights: Floats) -> "ImageTally":
        """Sums over the leading axis of n images, each taken as often as `weights` (R, n) says: leading axis R."""
        columns = {item.name: np.asarray(getattr(self, item.name), np.float64) for item in fields(self)}
        sums: dict[str, Floats] = {
            name: np.tensordot(weights, column, axes=(1, 0)).astype(np.float64) for name, column in columns.items()
        }
        return ImageTally(**sums)

    def take(self, rows: npt.NDArray[np.integer]) -> "ImageTally":
        """Some of the images."""
        return ImageTally(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def stacked(tallies: Sequence[ImageTally]) -> ImageTally:
    """One record with a leading axis of images.

    Raises:
        ValueError: when there is none.
    """
    if not tallies:
        raise ValueError("There is no image to make figures of; check --split, --origins and the data set.")
    return ImageTally(
        **{item.name: np.stack([getattr(one, item.name) for one in tallies]) for item in fields(ImageTally)}
    )


def tally_image(
    reference: Labels, permitted: npt.NDArray[np.bool_], predicted: Labels, type_prob: Floats
) -> ImageTally:
    """Count one image.

    Args:
        reference: (H, W) labels 1 to n, 0 background.
        permitted: (n + 1, C) the types that instance k may have in row k; no type means that it is unknown. Row 0 is
            not used.
        predicted: (H, W) labels 1 to m, 0 background.
        type_prob: (m + 1, C) type probabilities of predicted instance k in row k. Row 0 is not used.
    """
    num_permitted, num_types = permitted.sum(axis=1), permitted.shape[1]
    # All types leave everything open, unless there is only one.
    known: npt.NDArray[np.bool_] = (num_permitted > 0) & ((num_permitted < num_types) | (num_types == 1))
    sets = np.where(known[:, None], permitted, True)
    given = type_prob.argmax(axis=1)
    overlaps = find_overlaps(reference, predicted)
    by_iou, by_assignment = match_by_iou(overlaps), match_by_assignment(overlaps)
    cells, moments = _cell_counts(sets, known, given, overlaps.reference_ids, overlaps.predicted_ids)
    return ImageTally(
        panoptic=_panoptic(by_iou),
        assigned=_panoptic(by_assignment),
        types=_types(by_iou, sets, known, given, sole_only=True),
        types_assigned=_types(by_assignment, sets, known, given, sole_only=False),
        jaccard=np.array(aji_parts(overlaps), np.float64),
        jaccard_plus=np.array(aji_plus_parts(overlaps), np.float64),
        cells=cells,
        count_moments=moments,
        calibration=_calibration(by_iou, sets, known, type_prob),
        confusion=_confusion(by_iou, sets, known, given),
    )


def without_unknown(
    reference: Labels, predicted: Labels, unknown: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Reference and prediction without what the source leaves open.

    Reference pixels in unknown regions are dropped; so are predictions more than half of whose pixels are unknown,
    unless they cover at least 0.3 of their area in known reference instances.
    """
    kept = np.where(unknown, 0, reference).astype(np.int64)
    size = int(predicted.max(initial=0)) + 1
    area = np.bincount(predicted.ravel(), minlength=size)
    unsure = np.bincount(predicted.ravel(), weights=unknown.ravel().astype(np.float64), minlength=size)
    touching = np.bincount(predicted[kept > 0], minlength=size)
    dropped = (unsure > 0.5 * area) & (touching < 0.3 * area)
    return kept, np.where(dropped[predicted], 0, predicted).astype(np.int64)


def _panoptic(match: Match) -> Floats:
    return np.array(
        [len(match.iou), len(match.unmatched_predicted), len(match.unmatched_reference), match.iou.sum()], np.float64
    )


def _types(
    match: Match, sets: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_], given: Labels, *, sole_only: bool
) -> Floats:
    num_types = sets.shape[1]
    counts = np.zeros((num_types, 6))
    cells = np.concatenate([match.reference, match.unmatched_reference])
    if len(cells) and not known[cells].any():
        return counts  # of a source without types
    truth, guess = sets[match.reference], given[match.predicted]  # (m, C), (m,)
    counted = known[match.reference]
    inside = truth[np.arange(len(guess)), guess]
    missed = sets[match.unmatched_reference] & known[match.unmatched_reference, None]
    gains = counted
    if sole_only:
        sole = counted & (truth.sum(axis=1) == 1)
        gains, truth = sole, truth & sole[:, None]
        missed &= (missed.sum(axis=1) == 1)[:, None]
    right, wrong = inside & gains, ~inside & counted
    counts[:, 0] = np.bincount(guess[right], minlength=num_types)
    counts[:, 1] = np.bincount(guess[wrong], minlength=num_types)
    counts[:, 2] = truth[wrong].sum(axis=0)
    counts[:, 3] = np.bincount(given[match.unmatched_predicted], minlength=num_types)
    counts[:, 4] = missed.sum(axis=0)
    counts[:, 5] = np.bincount(guess[right], weights=match.iou[right], minlength=num_types)
    return counts


def _cell_counts(
    sets: npt.NDArray[np.bool_],
    known: npt.NDArray[np.bool_],
    given: Labels,
    reference_ids: Labels,
    predicted_ids: Labels,
) -> tuple[Floats, Floats]:
    """Cells by type, and the moments that R2 is made of; a type's count is certain where no cell may or may not be."""
    truth = sets[reference_ids]  # (n, C)
    sole = truth.sum(axis=1) == 1
    open_types = truth[~(sole & known[reference_ids])].any(axis=0)
    in_reference = np.append((truth & sole[:, None]).sum(axis=0), len(reference_ids)).astype(np.float64)
    predicted = np.append(np.bincount(given[predicted_ids], minlength=sets.shape[1]), len(predicted_ids))
    certain = np.append(~open_types, True)
    moments = np.stack([np.ones(len(certain)), in_reference, in_reference**2, (in_reference - predicted) ** 2], axis=1)
    return np.stack([in_reference, predicted.astype(np.float64)], axis=1), np.where(certain[:, None], moments, 0.0)


def _calibration(match: Match, sets: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_], type_prob: Floats) -> Floats:
    truth = sets[match.reference]
    sole = known[match.reference] & (truth.sum(axis=1) == 1)
    prob = type_prob[match.predicted[sole]]  # (s, C)
    confidence = prob.max(axis=1, initial=0.0)
    right = prob.argmax(axis=1) == truth[sole].argmax(axis=1) if len(prob) else np.zeros(0, np.bool_)
    # (low, high]: a confidence of exactly 1 belongs to the last bin.
    which = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    columns = (np.ones(len(which)), confidence, right.astype(np.float64))
    sums = [np.bincount(which, weights=column, minlength=NUM_BINS) for column in columns]
    return np.stack(sums, axis=1).astype(np.float64)


def _confusion(match: Match, sets: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_], given: Labels) -> Floats:
    num_types = sets.shape[1]
    several, unknown, nothing, missed = num_types, num_types + 1, num_types + 2, num_types
    rows_of = np.where(sets.sum(axis=1) == 1, sets.argmax(axis=1), several)
    rows_of = np.where(known, rows_of, unknown)
    table = np.zeros((num_types + 3, num_types + 1))
    np.add.at(table, (rows_of[match.reference], given[match.predicted]), 1)
    np.add.at(table, (rows_of[match.unmatched_reference], missed), 1)
    np.add.at(table, (nothing, given[match.unmatched_predicted]), 1)
    return table
