"""Figures of counts, for any leading axes: one image, many images, or a thousand resampled sets of them.

Every function takes sums as `ImageTally` holds them and gives NaN where a figure is not defined, never a 0 or 1 that
nobody measured. Sources: docs/evaluation.md.
"""

import numpy as np
import numpy.typing as npt

__all__ = [
    "calibration_error",
    "cohen_kappa",
    "detection_quality",
    "jaccard",
    "panoptic_quality",
    "precision",
    "r2",
    "recall",
    "segmentation_quality",
    "type_accuracy",
    "type_f1",
    "type_panoptic",
    "weighted_type_f1",
]

Floats = npt.NDArray[np.float64]


def precision(panoptic: Floats) -> Floats:
    """TP / (TP + FP) of panoptic counts (..., 4)."""
    return _ratio(panoptic[..., 0], panoptic[..., 0] + panoptic[..., 1])


def recall(panoptic: Floats) -> Floats:
    """TP / (TP + FN) of panoptic counts (..., 4)."""
    return _ratio(panoptic[..., 0], panoptic[..., 0] + panoptic[..., 2])


def detection_quality(panoptic: Floats) -> Floats:
    """DQ = TP / (TP + FP / 2 + FN / 2), which is the F1 of detection; NaN where neither side has an instance."""
    found, invented, missed = panoptic[..., 0], panoptic[..., 1], panoptic[..., 2]
    return _ratio(found, found + 0.5 * (invented + missed))


def segmentation_quality(panoptic: Floats) -> Floats:
    """SQ = mean IoU of true positives; NaN where there is none."""
    return _ratio(panoptic[..., 3], panoptic[..., 0])


def panoptic_quality(panoptic: Floats) -> Floats:
    """PQ = DQ x SQ; 0 where nothing matched though something was there."""
    found, invented, missed = panoptic[..., 0], panoptic[..., 1], panoptic[..., 2]
    return _ratio(panoptic[..., 3], found + 0.5 * (invented + missed))


def type_panoptic(types: Floats) -> Floats:
    """Counts by type (..., 6) as panoptic counts (..., 4) of that type's instances alone.

    A pair above IoU 0.5 is the same whether other types are there or not, so nothing needs to be matched again.
    """
    right, given, other, invented, missed, iou = np.moveaxis(types, -1, 0)
    return np.stack([right, given + invented, other + missed, iou], axis=-1)


def type_f1(types: Floats) -> Floats:
    """F1 = 2 TP / (2 TP + FP + FN), a cell found but given another type being one FP and one FN; (..., 6) to (...)."""
    return detection_quality(type_panoptic(types))


def weighted_type_f1(types: Floats) -> Floats:
    """HoVer-Net's F1 of a type (Graham et al. 2019): errors of type count twice, errors of detection once.

    2 TP / (2 TP + 2 FP_c + 2 FN_c + FP_d + FN_d), over pairs in which either side has the type; its true negatives are
    none among those.
    """
    right, given, other, invented, missed, _ = np.moveaxis(types, -1, 0)
    return _ratio(2 * right, 2 * right + 2 * given + 2 * other + invented + missed)


def jaccard(parts: Floats) -> Floats:
    """Numerator over denominator (..., 2)."""
    return _ratio(parts[..., 0], parts[..., 1])


def r2(moments: Floats) -> Floats:
    """Coefficient of determination of counts, as `sklearn.metrics.r2_score` has it, from moments (..., 4).

    1 - sum (y - predicted)^2 / sum (y - mean y)^2. Where all y are equal it is 1 for a perfect prediction and 0 for any
    other; NaN for fewer than two images.
    """
    num, total, squares, residual = np.moveaxis(moments, -1, 0)
    spread = _ratio(num * squares - total**2, num)
    constant = np.where(residual == 0, 1.0, 0.0)
    value = np.where(spread > 0, 1.0 - _ratio(residual, spread), constant)
    return np.where(num >= 2, value, np.nan)


def calibration_error(bins: Floats) -> Floats:
    """Expected calibration error of bins (..., B, 3): mean over cells of their bin's |accuracy - confidence|."""
    gaps = np.abs(bins[..., 1] - bins[..., 2]).sum(axis=-1)
    return _ratio(gaps, bins[..., 0].sum(axis=-1))


def type_accuracy(confusion: Floats) -> Floats:
    """Share of found cells of one known type that were given it; confusion (..., C + 3, C + 1)."""
    square = confusion[..., :-3, :-1]
    return _ratio(np.trace(square, axis1=-2, axis2=-1), square.sum(axis=(-2, -1)))


def cohen_kappa(confusion: Floats) -> Floats:
    """Cohen's kappa of found cells of one known type; NaN where chance alone would agree on all of them."""
    square = confusion[..., :-3, :-1]
    total = square.sum(axis=(-2, -1))
    observed = _ratio(np.trace(square, axis1=-2, axis2=-1), total)
    expected = _ratio((square.sum(axis=-1) * square.sum(axis=-2)).sum(axis=-1), total**2)
    return _ratio(observed - expected, 1.0 - expected)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), np.nan)
