"""One answer from several annotators (Adjadj et al. 2025, "Robust external validation sets", figure 2a).

Consumes what each annotator said about one image: points, their types, and an outline grown from each point. Nuclei of
two annotators are the same where the IoU of their outlines is above 0.4, by optimal assignment. A nucleus stays when at
least two annotators have it; its centre is the mean of theirs; its type is the one that more than half of them gave,
otherwise all that were given. The outline is drawn again from the centre, which is for the caller to do.

Three annotators may chain (a ~ b, b ~ c', c' no longer ~ a): pairs are joined from the highest IoU on, and a pair that
would put two nuclei of one annotator together is not joined.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from cellmill.metrics.matching import find_overlaps
from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.labelled_image import ordered_types

__all__ = ["MIN_IOU", "Annotation", "ConsensusNucleus", "consensus_of", "majority_types", "match_annotators"]

MIN_IOU = 0.4
_MIN_ANNOTATORS = 2


@dataclass(frozen=True)
class Annotation:
    """What one annotator said about one image."""

    annotator: str
    points_px: npt.NDArray[np.float64]  # (n, 2), x then y
    cell_types: tuple[str, ...]
    """Empty where the annotator did not know."""
    instances: npt.NDArray[np.int32]  # (H, W), k + 1 where the outline of point k is


@dataclass(frozen=True)
class ConsensusNucleus:
    """A nucleus that several annotators have."""

    point_px: tuple[float, float]
    """Mean of their points, x then y."""
    cell_types: tuple[str, ...]
    """One, or all that were given where none has more than half; none where nobody knew."""
    members: tuple[tuple[str, int], ...]
    """(annotator, number of the point), by annotator."""


def consensus_of(annotations: Sequence[Annotation], ontology: Ontology) -> tuple[ConsensusNucleus, ...]:
    """What at least two annotators agree on, from top to bottom and left to right.

    Raises:
        ValueError: with fewer than two annotators, one twice, or images of several sizes.
    """
    _check(annotations)
    found: list[ConsensusNucleus] = []
    for group in _groups(annotations):
        if len(group) < _MIN_ANNOTATORS:
            continue
        points = np.array([annotations[who].points_px[number] for who, number in group])
        x, y = points.mean(axis=0).tolist()
        types = majority_types([annotations[who].cell_types[number] for who, number in group], ontology)
        members = tuple(sorted((annotations[who].annotator, number) for who, number in group))
        found.append(ConsensusNucleus((x, y), types, members))
    return tuple(sorted(found, key=lambda nucleus: (nucleus.point_px[1], nucleus.point_px[0])))


def majority_types(given: Sequence[str], ontology: Ontology) -> tuple[str, ...]:
    """The type that more than half of the annotators gave, otherwise all that were given.

    Those who did not know count among the annotators, not among the types.
    """
    counts = Counter(name for name in given if name)
    if counts and (top := counts.most_common(1)[0])[1] * 2 > len(given):
        return (top[0],)
    return ordered_types(list(counts), ontology)


def match_annotators(
    first: Annotation, second: Annotation, *, min_iou: float = MIN_IOU
) -> list[tuple[int, int, float]]:
    """Nuclei that two annotators have in common: (number of the first's point, of the second's, IoU).

    The assignment with the largest sum of IoU among pairs above `min_iou`.
    """
    overlaps = find_overlaps(first.instances, second.instances)
    iou = overlaps.iou_table()  # (n, m)
    iou = np.where(iou > min_iou, iou, 0.0)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return [
        (int(overlaps.reference_ids[row]) - 1, int(overlaps.predicted_ids[column]) - 1, float(iou[row, column]))
        for row, column in zip(rows, columns, strict=True)
        if iou[row, column] > 0.0
    ]


def _groups(annotations: Sequence[Annotation]) -> list[list[tuple[int, int]]]:
    """Points that are one nucleus, as (annotator's index, number)."""
    pairs = [
        (-iou, (a, first), (b, second))
        for a, b in combinations(range(len(annotations)), 2)
        for first, second, iou in match_annotators(annotations[a], annotations[b])
    ]
    group_of = {
        (who, number): [(who, number)] for who, one in enumerate(annotations) for number in range(len(one.points_px))
    }
    for _, first, second in sorted(pairs):
        one, other = group_of[first], group_of[second]
        if one is other or {who for who, _ in one} & {who for who, _ in other}:
            continue
        one.extend(other)
        for member in other:
            group_of[member] = one
    return [list(group) for group in {id(group): group for group in group_of.values()}.values()]


def _check(annotations: Sequence[Annotation]) -> None:
    if len(annotations) < _MIN_ANNOTATORS:
        raise ValueError(f"A consensus needs at least two annotators of an image, got {len(annotations)}.")
    names = [one.annotator for one in annotations]
    if len(set(names)) < len(names):
        raise ValueError(f"Each annotator may be given once, got {', '.join(names)}.")
    if len({one.instances.shape for one in annotations}) > 1:
        raise ValueError(f"Annotators saw images of different sizes: {[one.instances.shape for one in annotations]}.")
