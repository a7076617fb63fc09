"""Which cell of one cell set is which of another: one to one, first by overlap, then by nearness.

In: outlines and centroids of two sets of cells of one slide. Out: `Pairs`. Cells whose outlines overlap by an IoU above
0.5 are one cell, by the rule of `cellmill.metrics.matching`, which leaves no choice. Of what is left those belong
together whose centroids are each other's nearest and at most 3 um apart: the same nucleus, drawn otherwise. (12 px of
PanNuke's 0.25 um/px is the radius by which HoVer-Net and CellViT pair detections.)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from scipy.spatial import KDTree

from cellmill.metrics.matching import Overlaps, match_by_iou

__all__ = ["RADIUS_UM", "Pairs", "SlideCells", "pair_cells"]

RADIUS_UM = 3.0
_AREA_UNITS = 16
"""Areas become whole numbers, as pixel counts are, of 1/16 level-0 px: IoU is then right within 0.1 % for any cell."""
_AT_ONCE = 20_000

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SlideCells:
    """Cells of one slide; row k of each field is one cell."""

    outlines: npt.NDArray[np.object_]  # (n,) shapely polygons, level-0 px
    centroids_um: npt.NDArray[np.float64]  # (n, 2) x, y
    types: Integers  # (n,) index in the ontology
    confidence: npt.NDArray[np.float64]  # (n,)

    def __len__(self) -> int:
        return len(self.types)


@dataclass(frozen=True)
class Pairs:
    """Rows of cells that are one and the same, and the others."""

    reference: Integers  # (m,)
    candidate: Integers  # (m,)
    iou: npt.NDArray[np.float64]  # (m,), 0.5 or less where nearness decided
    lost: Integers
    """Rows of the reference that have no partner."""
    gained: Integers
    """Rows of the candidate that have none."""


def pair_cells(reference: SlideCells, candidate: SlideCells) -> Pairs:
    """Pair the cells of one slide."""
    overlaps = _overlaps(reference, candidate)
    sure = match_by_iou(overlaps)
    lost, gained = sure.unmatched_reference, sure.unmatched_predicted
    near_reference, near_candidate = _nearest(reference.centroids_um[lost], candidate.centroids_um[gained])
    ours, theirs = lost[near_reference], gained[near_candidate]
    return Pairs(
        reference=np.concatenate([sure.reference, ours]),
        candidate=np.concatenate([sure.predicted, theirs]),
        iou=np.concatenate([sure.iou, _ious(reference.outlines[ours], candidate.outlines[theirs])]),
        lost=np.delete(lost, near_reference),
        gained=np.delete(gained, near_candidate),
    )


def _overlaps(reference: SlideCells, candidate: SlideCells) -> Overlaps:
    """Areas and shared areas of outlines, as `find_overlaps` has them of label images."""
    ours, theirs = reference.outlines, candidate.outlines
    tree = shapely.STRtree(theirs)
    pairs: list[npt.NDArray[np.int64]] = [np.zeros((2, 0), np.int64)]
    shared: list[npt.NDArray[np.float64]] = [np.zeros(0)]
    for start in range(0, len(ours), _AT_ONCE):
        found = tree.query(ours[start : start + _AT_ONCE], predicate="intersects").astype(np.int64)
        found[0] += start
        pairs.append(found)
        shared.append(np.asarray(shapely.area(shapely.intersection(ours[found[0]], theirs[found[1]])), np.float64))
    rows = np.concatenate(pairs, axis=1)
    return Overlaps(
        reference_ids=np.arange(len(ours)),
        predicted_ids=np.arange(len(theirs)),
        reference_area_px=_whole(shapely.area(ours)),
        predicted_area_px=_whole(shapely.area(theirs)),
        reference_centroids_px=reference.centroids_um[:, ::-1],
        predicted_centroids_px=candidate.centroids_um[:, ::-1],
        pair_reference=rows[0],
        pair_predicted=rows[1],
        intersection_px=_whole(np.concatenate(shared)),
    )


def _whole(areas: npt.ArrayLike) -> Integers:
    return np.rint(np.asarray(areas, np.float64) * _AREA_UNITS).astype(np.int64)


def _nearest(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> tuple[Integers, Integers]:
    """Rows that are each other's nearest, at most the radius apart."""
    nothing = np.zeros(0, np.int64)
    if not len(ours) or not len(theirs):
        return nothing, nothing
    distance_um, nearest = KDTree(theirs).query(ours)
    there, back = np.asarray(nearest, np.int64), np.asarray(KDTree(ours).query(theirs)[1], np.int64)
    rows = np.flatnonzero((np.asarray(distance_um) <= RADIUS_UM) & (back[there] == np.arange(len(ours))))
    return rows.astype(np.int64), there[rows]


def _ious(ours: npt.NDArray[np.object_], theirs: npt.NDArray[np.object_]) -> npt.NDArray[np.float64]:
    shared = np.asarray(shapely.area(shapely.intersection(ours, theirs)), np.float64)
    return shared / (np.asarray(shapely.area(ours)) + np.asarray(shapely.area(theirs)) - shared)
