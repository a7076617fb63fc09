"""Aggregated Jaccard index (Kumar et al. 2017) and its one-to-one form, AJI+ (Graham et al. 2019).

Both are one quotient of pixels, and both parts add up over images: the pixels that partners share, over the pixels that
partners cover together plus all pixels of instances without a partner.
"""

import numpy as np
import numpy.typing as npt

from cellmill.metrics.matching import Overlaps

__all__ = ["aji_parts", "aji_plus_parts"]


def aji_parts(overlaps: Overlaps) -> tuple[int, int]:
    """Numerator and denominator, in px, of Kumar's index.

    Each reference instance takes the predicted instance of highest IoU (the lower label of equals), whether or not
    another has taken it; a predicted instance that nobody took counts with its area.
    """
    table = overlaps.iou_table()
    if table.size == 0:
        return 0, int(overlaps.reference_area_px.sum() + overlaps.predicted_area_px.sum())
    columns = table.argmax(axis=1)
    rows = np.arange(len(table))
    found = table[rows, columns] > 0
    return _parts(overlaps, rows[found], columns[found])


def aji_plus_parts(overlaps: Overlaps) -> tuple[int, int]:
    """Numerator and denominator, in px, with partners of the one-to-one assignment of greatest total IoU."""
    from scipy.optimize import linear_sum_assignment

    table = overlaps.iou_table()
    rows, columns = linear_sum_assignment(table, maximize=True)
    found = table[rows, columns] > 0
    return _parts(overlaps, rows[found], columns[found])


def _parts(overlaps: Overlaps, rows: npt.NDArray[np.integer], columns: npt.NDArray[np.integer]) -> tuple[int, int]:
    shared = np.zeros((len(overlaps.reference_ids), len(overlaps.predicted_ids)), np.int64)
    shared[overlaps.pair_reference, overlaps.pair_predicted] = overlaps.intersection_px
    intersection = shared[rows, columns]
    union = overlaps.reference_area_px[rows] + overlaps.predicted_area_px[columns] - intersection
    alone_reference = np.delete(overlaps.reference_area_px, rows).sum()
    alone_predicted = np.delete(overlaps.predicted_area_px, np.unique(columns)).sum()
    return int(intersection.sum()), int(union.sum() + alone_reference + alone_predicted)
