"""Panoptic quality and per-type F1: hand-computed cases and properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from cellmill.metrics.panoptic import PanopticCounts, count_panoptic, count_types, match_instances


def _squares(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    labels = np.zeros((20, 20), np.int32)
    for number, (y0, y1, x0, x1) in enumerate(boxes, start=1):
        labels[y0:y1, x0:x1] = number
    return labels


def test_one_match_one_miss_and_one_invention_by_hand() -> None:
    reference = _squares((0, 4, 0, 4), (10, 14, 10, 14))
    predicted = _squares((0, 4, 1, 4), (0, 3, 15, 18))  # 12 of 16 px: IoU 0.75
    counts = count_panoptic(match_instances(reference, predicted))
    assert (counts.true_positives, counts.false_positives, counts.false_negatives) == (1, 1, 1)
    assert counts.detection_quality == pytest.approx(0.5)
    assert counts.segmentation_quality == pytest.approx(0.75)
    assert counts.panoptic_quality == pytest.approx(0.375)


def test_an_iou_of_exactly_one_half_is_no_match() -> None:
    counts = count_panoptic(match_instances(_squares((0, 4, 0, 4)), _squares((0, 4, 0, 2))))
    assert counts == PanopticCounts(0, 1, 1, 0.0)
    assert counts.panoptic_quality == 0.0


def test_two_empty_images_have_no_quality() -> None:
    empty = np.zeros((5, 5), np.int32)
    assert math.isnan(count_panoptic(match_instances(empty, empty)).panoptic_quality)


def test_counts_of_images_add_up() -> None:
    assert PanopticCounts(1, 2, 3, 0.5) + PanopticCounts(1, 0, 0, 0.75) == PanopticCounts(2, 2, 3, 1.25)


def test_shapes_must_agree_and_iou_must_make_pairs_unique() -> None:
    with pytest.raises(ValueError, match="one shape"):
        match_instances(np.zeros((2, 2), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"0\.5"):
        match_instances(np.zeros((2, 2), int), np.zeros((2, 2), int), min_iou=0.3)


def test_types_count_by_hand() -> None:
    reference = _squares((0, 4, 0, 4), (0, 4, 10, 14), (10, 14, 0, 4), (10, 14, 10, 14))
    predicted = reference.copy()
    predicted[predicted == 4] = 0
    counts = count_types(
        match_instances(reference, predicted),
        reference_types={
            1: frozenset({"a"}),
            2: frozenset({"a"}),
            3: frozenset({"a", "b"}),
            4: frozenset({"b"}),
        },
        predicted_types={1: "a", 2: "b", 3: "b"},
        names=("a", "b"),
    )
    assert (counts["a"].true_positives, counts["a"].false_positives, counts["a"].false_negatives) == (1, 0, 1)
    assert (counts["b"].true_positives, counts["b"].false_positives, counts["b"].false_negatives) == (0, 1, 1)
    assert counts["a"].f1 == pytest.approx(2 / 3)
    assert counts["b"].f1 == 0.0


@settings(max_examples=40, deadline=None)
@given(st_numpy.arrays(np.int32, (9, 9), elements=st.integers(0, 4)))
def test_an_image_matches_itself_perfectly_whatever_its_numbers(labels: np.ndarray) -> None:
    renumbered = np.where(labels > 0, labels * 7 + 100, 0)
    counts = count_panoptic(match_instances(labels, renumbered))
    assert counts.true_positives == len(np.unique(labels[labels > 0]))
    assert counts.iou_sum == pytest.approx(counts.true_positives)
    assert counts.false_positives == counts.false_negatives == 0
