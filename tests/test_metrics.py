"""Metrics against hand-computed cases, scikit-learn, torchmetrics, and what must hold for any two label images."""

import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from metric_helpers import random_tallies

from cellmill.metrics import quality
from cellmill.metrics.bootstrap import draw_weights, interval
from cellmill.metrics.figures import summarise
from cellmill.metrics.jaccard import aji_parts, aji_plus_parts
from cellmill.metrics.matching import find_overlaps, match_by_assignment, match_by_iou, match_instances
from cellmill.metrics.tally import ImageTally, stacked, tally_image, without_unknown

Labels = npt.NDArray[np.integer]
label_images = st_numpy.arrays(np.int32, (9, 9), elements=st.integers(0, 4))


def _squares(*boxes: tuple[int, int, int, int]) -> npt.NDArray[np.int32]:
    labels = np.zeros((20, 20), np.int32)
    for number, (y0, y1, x0, x1) in enumerate(boxes, start=1):
        labels[y0:y1, x0:x1] = number
    return labels


def _permitted(*sets: str, names: str = "ab") -> npt.NDArray[np.bool_]:
    """Row k for instance k; a set is a string of one-letter types, empty where the type is unknown."""
    return np.array([[False] * len(names), *([name in one for name in names] for one in sets)])


def _prob(*types: str, names: str = "ab", confidence: float = 0.8) -> npt.NDArray[np.float64]:
    rest = (1 - confidence) / (len(names) - 1)
    rows = [[confidence if name == one else rest for name in names] for one in types]
    return np.array([[0.0] * len(names), *rows])


def _untyped(labels: Labels) -> npt.NDArray[np.bool_]:
    return np.zeros((int(labels.max(initial=0)) + 1, 2), np.bool_)


def _tally(reference: Labels, predicted: Labels) -> ImageTally:
    prob = np.tile([0.6, 0.4], (int(predicted.max(initial=0)) + 1, 1))
    return tally_image(reference, _untyped(reference), predicted, prob)


# Detection and segmentation.


def test_one_match_one_miss_and_one_invention_by_hand() -> None:
    reference = _squares((0, 4, 0, 4), (10, 14, 10, 14))
    predicted = _squares((0, 4, 1, 4), (0, 3, 15, 18))  # 12 of 16 px: IoU 0.75
    counts = _tally(reference, predicted).panoptic
    assert counts.tolist() == [1, 1, 1, 0.75]
    assert quality.detection_quality(counts) == pytest.approx(0.5)
    assert quality.segmentation_quality(counts) == pytest.approx(0.75)
    assert quality.panoptic_quality(counts) == pytest.approx(0.375)
    assert quality.precision(counts) == quality.recall(counts) == 0.5


def test_an_iou_of_exactly_one_half_is_no_match() -> None:
    counts = _tally(_squares((0, 4, 0, 4)), _squares((0, 4, 0, 2))).panoptic
    assert counts.tolist() == [0, 1, 1, 0]
    assert quality.panoptic_quality(counts) == 0.0


def test_two_empty_images_have_no_quality() -> None:
    tally = _tally(np.zeros((5, 5), np.int32), np.zeros((5, 5), np.int32))
    assert math.isnan(quality.panoptic_quality(tally.panoptic))
    assert math.isnan(quality.jaccard(tally.jaccard))


def test_shapes_must_agree_and_iou_must_make_pairs_unique() -> None:
    with pytest.raises(ValueError, match="one shape"):
        match_instances(np.zeros((2, 2), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"0\.5"):
        match_instances(np.zeros((2, 2), int), np.zeros((2, 2), int), min_iou=0.3)


def test_the_assignment_rule_loses_a_pair_whose_centroids_are_drawn_apart() -> None:
    """A bar of 10 px beside a dot: together the crossed assignment is shorter than the one the IoU rule makes."""
    reference = np.zeros((3, 40), np.int32)
    reference[1, 0:10], reference[1, 14] = 1, 2
    predicted = np.zeros((3, 40), np.int32)
    predicted[1, 3:13], predicted[1, 1] = 1, 2
    overlaps = find_overlaps(reference, predicted)
    assert match_by_iou(overlaps).reference.tolist() == [1]  # 7 of 13 px
    # Centroids: references 4.5 and 14, predictions 7.5 and 1. Straight: 3 + 13 = 16; crossed: 3.5 + 6.5 = 10.
    assert match_by_assignment(overlaps).reference.tolist() == []
    assert match_by_assignment(overlaps, min_iou=-1.0).predicted.tolist() == [2, 1]
    assert match_by_assignment(overlaps, min_iou=-1.0, radius_px=4.0).reference.tolist() == [1]


def test_aji_by_hand() -> None:
    """Two references share one wide prediction; a third prediction lies alone."""
    reference, predicted = np.zeros((4, 12), np.int32), np.zeros((4, 12), np.int32)
    reference[0, 0:4], reference[0, 4:6] = 1, 2
    predicted[0, 0:6], predicted[2, 0:3] = 1, 2
    overlaps = find_overlaps(reference, predicted)
    # Both references take prediction 1: (4 + 2) / (6 + 6 + 3).
    assert aji_parts(overlaps) == (6, 15)
    # One to one: reference 1 takes it, reference 2 stands alone: 4 / (6 + 2 + 3).
    assert aji_plus_parts(overlaps) == (4, 11)


def _aji_pixel_by_pixel(reference: Labels, predicted: Labels) -> tuple[int, int]:
    """Kumar et al. 2017, algorithm 1, with masks and nothing else."""
    above, below, used = 0, 0, set[int]()
    for label in np.unique(reference[reference > 0]):
        ours = reference == label
        best, best_iou = 0, 0.0
        for other in np.unique(predicted[predicted > 0]):
            theirs = predicted == other
            iou = (ours & theirs).sum() / (ours | theirs).sum()
            if iou > best_iou:
                best, best_iou = int(other), iou
        if best:
            above += int((ours & (predicted == best)).sum())
            below += int((ours | (predicted == best)).sum())
            used.add(best)
        else:
            below += int(ours.sum())
    alone = [int((predicted == other).sum()) for other in np.unique(predicted[predicted > 0]) if int(other) not in used]
    return above, below + sum(alone)


@settings(max_examples=60)
@given(label_images, label_images)
def test_aji_is_kumars_algorithm(reference: Labels, predicted: Labels) -> None:
    assert aji_parts(find_overlaps(reference, predicted)) == _aji_pixel_by_pixel(reference, predicted)


@settings(max_examples=30)
@given(label_images, label_images)
def test_panoptic_quality_is_that_of_torchmetrics(reference: Labels, predicted: Labels) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.detection import panoptic_quality

    def stacked_categories(labels: Labels) -> "torch.Tensor":
        return torch.from_numpy(np.stack([labels > 0, labels], axis=-1).astype(np.int64))[None]

    theirs = panoptic_quality(
        stacked_categories(predicted),
        stacked_categories(reference),
        things={1},
        stuffs={0},
        return_sq_and_rq=True,
        return_per_class=True,
    ).numpy()  # (2, 3): pq, sq and rq of nuclei, then of the background
    counts = _tally(reference, predicted).panoptic
    ours = [quality.panoptic_quality(counts), quality.segmentation_quality(counts), quality.detection_quality(counts)]
    assert np.nan_to_num(ours) == pytest.approx(theirs[0], abs=1e-6)


@settings(max_examples=40)
@given(label_images)
def test_an_image_matches_itself_perfectly_whatever_its_numbers(labels: Labels) -> None:
    renumbered = np.where(labels > 0, labels * 7 + 100, 0)
    match = match_instances(labels, renumbered)
    assert len(match.iou) == len(np.unique(labels[labels > 0]))
    assert match.iou == pytest.approx(1.0)
    assert len(match.unmatched_predicted) == len(match.unmatched_reference) == 0
    if labels.any():
        tally = _tally(labels, renumbered)
        for counts in (tally.panoptic, tally.assigned):
            assert quality.panoptic_quality(counts) == 1.0
        assert quality.jaccard(tally.jaccard) == quality.jaccard(tally.jaccard_plus) == 1.0


@settings(max_examples=30)
@given(label_images, label_images, st.permutations(range(1, 5)), st.permutations(range(1, 5)))
def test_renumbering_instances_changes_no_count(
    reference: Labels, predicted: Labels, first: list[int], second: list[int]
) -> None:
    plain = _tally(reference, predicted)
    turned = _tally(np.array([0, *first])[reference], np.array([0, *second])[predicted])
    # Not the assigned counts: where assignments tie, which one is taken is not defined by the rule.
    for name in ("panoptic", "jaccard", "cells", "count_moments"):
        assert getattr(turned, name) == pytest.approx(getattr(plain, name)), name


@settings(max_examples=30)
@given(label_images, label_images)
def test_the_assignment_rule_finds_no_pair_that_the_iou_rule_does_not(reference: Labels, predicted: Labels) -> None:
    overlaps = find_overlaps(reference, predicted)
    ours = set(zip(match_by_iou(overlaps).reference.tolist(), match_by_iou(overlaps).predicted.tolist(), strict=True))
    assigned = match_by_assignment(overlaps)
    assert set(zip(assigned.reference.tolist(), assigned.predicted.tolist(), strict=True)) <= ours


# Types.


def test_types_with_sets_of_labels_count_by_hand() -> None:
    """Cells 1 and 2 are a; 3 may be a or b; 4 is b and missed; 5 is of unknown type; a sixth prediction is invented."""
    reference = _squares((0, 4, 0, 4), (0, 4, 10, 14), (10, 14, 0, 4), (10, 14, 10, 14), (6, 9, 0, 4))
    predicted = reference.copy()
    predicted[predicted == 4] = 0
    predicted[16:19, 16:19] = 4
    names = "abc"
    permitted = _permitted("a", "a", "ab", "b", "", names=names)
    prob = _prob("a", "b", "b", "a", "c", names=names)
    tally = tally_image(reference, permitted, predicted, prob)
    # right, wrong type given, given another type, invented, missed
    assert tally.types[:, :5].tolist() == [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    # As Adjadj et al. count: b is right for the third cell.
    assert tally.types_assigned[:, :5].tolist() == [[1, 0, 1, 1, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert quality.type_f1(tally.types)[0] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert quality.weighted_type_f1(tally.types)[0] == pytest.approx(2 / (2 + 2 + 1))
    assert tally.confusion.astype(int).tolist() == [
        [1, 1, 0, 0],  # a: one right, one called b
        [0, 0, 0, 1],  # b: missed
        [0, 0, 0, 0],
        [0, 1, 0, 0],  # several: called b
        [0, 0, 1, 0],  # unknown: called c
        [1, 0, 0, 0],  # nothing there, called a
    ]
    assert tally.cells.tolist() == [[2, 2], [1, 2], [0, 1], [5, 5]]


def test_a_set_given_a_type_outside_it_costs_every_type_of_the_set_only_in_the_papers_reading() -> None:
    reference = _squares((0, 4, 0, 4), (10, 14, 0, 4))
    predicted = np.where(reference == 1, 1, 0)
    tally = tally_image(reference, _permitted("ab", "ab", names="abc"), predicted, _prob("c", names="abc"))
    assert tally.types[:, :5].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert tally.types_assigned[:, :5].tolist() == [[0, 0, 1, 0, 1], [0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]


def test_where_no_types_are_known_invented_cells_are_of_no_type() -> None:
    reference, predicted = _squares((0, 4, 0, 4)), _squares((0, 4, 0, 4), (10, 14, 10, 14))
    untyped = tally_image(reference, _permitted(""), predicted, _prob("a", "a"))
    assert untyped.panoptic[1] == 1
    assert not untyped.types.any()
    typed = tally_image(reference, _permitted("a"), predicted, _prob("a", "a"))
    empty = tally_image(np.zeros_like(reference), _permitted(), predicted, _prob("a", "a"))
    assert (typed.types[0, 3], empty.types[0, 3]) == (1, 2)


def test_a_types_panoptic_quality_is_that_of_its_cells_alone() -> None:
    rng = np.random.default_rng(3)
    reference = np.kron(np.arange(1, 26).reshape(5, 5), np.ones((4, 4), int))
    predicted = np.where(rng.random(reference.shape) < 0.25, 0, reference)
    truth, guess = rng.integers(0, 2, 26), rng.integers(0, 2, 26)
    permitted, prob = np.eye(2, dtype=bool)[truth], np.eye(2)[guess]
    tally = tally_image(reference, permitted, predicted, prob)
    for kind in (0, 1):
        alone = _tally(
            np.where(truth[reference] == kind, reference, 0),
            np.where((guess[predicted] == kind) & (predicted > 0), predicted, 0),
        )
        assert quality.type_panoptic(tally.types)[kind] == pytest.approx(alone.panoptic)


def test_confusion_accuracy_and_kappa_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix

    rng = np.random.default_rng(1)
    labels = np.arange(1, 82).reshape(9, 9)
    truth, guess = rng.integers(0, 3, 82), rng.integers(0, 3, 82)
    guess[:40] = truth[:40]
    tally = tally_image(labels, np.eye(3, dtype=bool)[truth], labels, np.eye(3)[guess])
    assert tally.confusion[:3, :3].tolist() == confusion_matrix(truth[1:], guess[1:]).tolist()
    assert quality.type_accuracy(tally.confusion) == pytest.approx(accuracy_score(truth[1:], guess[1:]))
    assert quality.cohen_kappa(tally.confusion) == pytest.approx(cohen_kappa_score(truth[1:], guess[1:]))


def test_f1_of_found_cells_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(2)
    labels = np.arange(1, 65).reshape(8, 8)
    truth, guess = rng.integers(0, 3, 65), rng.integers(0, 3, 65)
    tally = tally_image(labels, np.eye(3, dtype=bool)[truth], labels, np.eye(3)[guess])
    assert quality.type_f1(tally.types) == pytest.approx(f1_score(truth[1:], guess[1:], average=None))


def test_calibration_error_by_hand() -> None:
    """Four cells at 0.8, three of them right, and two at 0.6, one right: (4 * 0.05 + 2 * 0.1) / 6."""
    labels = np.arange(1, 7).reshape(2, 3)
    permitted = _permitted("a", "a", "a", "b", "a", "b")
    prob = np.vstack([_prob("a", "a", "a", "a"), _prob("a", "a", confidence=0.6)[1:]])
    tally = tally_image(labels, permitted, labels, prob)
    assert tally.calibration[:, 0].sum() == 6
    assert tally.calibration[11].tolist() == pytest.approx([4, 3.2, 3])  # 0.733 to 0.8
    assert quality.calibration_error(tally.calibration) == pytest.approx((4 * 0.05 + 2 * 0.1) / 6)


def test_cells_of_several_or_unknown_types_are_not_calibrated_on() -> None:
    labels = np.arange(1, 5).reshape(2, 2)
    tally = tally_image(labels, _permitted("a", "ab", "", "b", names="abc"), labels, _prob(*"aaab", names="abc"))
    assert tally.calibration[:, 0].sum() == 2


# Counts.


def _counted(reference: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    columns = (np.ones(len(reference)), reference, reference**2, (reference - predicted) ** 2)
    return np.stack(columns, axis=-1).astype(np.float64).sum(axis=0)


@given(
    st_numpy.arrays(np.int64, st.integers(2, 12), elements=st.integers(0, 9)),
    st.integers(0, 10**6),
)
def test_r2_is_scikit_learns_constant_truth_included(reference: npt.NDArray[np.int64], seed: int) -> None:
    from sklearn.metrics import r2_score

    predicted = reference + np.random.default_rng(seed).integers(-1, 2, len(reference))
    assert quality.r2(_counted(reference, predicted)) == pytest.approx(r2_score(reference, predicted))
    assert quality.r2(_counted(reference, reference)) == 1.0 == r2_score(reference, reference)


def test_r2_of_one_image_is_not_defined() -> None:
    assert math.isnan(quality.r2(_counted(np.array([3]), np.array([3]))))


def test_a_types_count_is_left_out_where_a_cell_may_or_may_not_be_of_it() -> None:
    labels = _squares((0, 4, 0, 4), (0, 4, 10, 14), (10, 14, 0, 4))
    tally = tally_image(labels, _permitted("a", "ab", "c", names="abc"), labels, _prob(*"abc", names="abc"))
    assert tally.count_moments[:, 0].tolist() == [0, 0, 1, 1]  # c and the sum over all types are certain
    unknown = tally_image(labels, _permitted("a", "", "c", names="abc"), labels, _prob(*"abc", names="abc"))
    assert unknown.count_moments[:, 0].tolist() == [0, 0, 0, 1]


# Regions that the reference leaves open.


def test_what_lies_where_the_reference_does_not_say_is_neither_found_nor_invented() -> None:
    reference = _squares((0, 4, 0, 4), (10, 14, 10, 14))
    predicted = _squares((0, 4, 0, 4), (0, 4, 10, 14), (16, 19, 0, 3))
    unknown = np.zeros((20, 20), np.bool_)
    unknown[0:5, 9:15] = True  # around the second prediction
    unknown[10:14, 10:14] = True  # the second reference is not a nucleus's outline
    kept, left = without_unknown(reference, predicted, unknown)
    assert np.unique(kept).tolist() == [0, 1]
    assert np.unique(left).tolist() == [0, 1, 3]


# Intervals.


def test_weights_are_counts_of_draws_and_groups_are_drawn_whole() -> None:
    weights = draw_weights(7, num_replicates=50, seed=1)
    assert weights.sum(axis=1).tolist() == [7] * 50
    assert np.array_equal(weights, draw_weights(7, num_replicates=50, seed=1))
    grouped = draw_weights(5, groups=["x", "y", "x", "y", "z"], num_replicates=50, seed=1)
    assert np.array_equal(grouped[:, 0], grouped[:, 2])
    assert np.array_equal(grouped[:, 1], grouped[:, 3])
    assert not np.array_equal(grouped[:, 0], grouped[:, 1])


def test_intervals_are_those_of_resampling_one_set_at_a_time() -> None:
    images = random_tallies(12)
    weights = draw_weights(12, num_replicates=200, seed=5)
    figures = summarise(images, ("a", "b"), weights)
    slow = []
    for row in weights:
        drawn = images.take(np.repeat(np.arange(12), row.astype(int)))
        slow.append(
            (
                quality.panoptic_quality(drawn.panoptic.sum(axis=0)),
                np.mean(quality.panoptic_quality(drawn.panoptic)),
                np.mean(quality.type_f1(drawn.types.sum(axis=0))),
                quality.r2(drawn.count_moments.sum(axis=0))[0],
            )
        )
    low, high = np.percentile(np.array(slow), [2.5, 97.5], axis=0)
    found = [figures.pooled["pq"], figures.per_image["pq"], figures.means["f1"], figures.types["a"].figures["r2"]]
    assert [one.low for one in found] == pytest.approx(low)
    assert [one.high for one in found] == pytest.approx(high)
    assert all(one.low <= one.value <= one.high for one in found)


def test_an_interval_of_equal_images_is_a_point() -> None:
    one = random_tallies(1)
    images = one.take(np.zeros(6, np.int64))
    figure = summarise(images, ("a", "b"), draw_weights(6)).pooled["pq"]
    assert figure.low == pytest.approx(figure.value) == pytest.approx(figure.high)


def test_one_image_has_figures_and_no_interval() -> None:
    images = random_tallies(1)
    figures = summarise(images, ("a", "b"), draw_weights(1))
    assert figures.pooled["pq"].value == quality.panoptic_quality(images.panoptic[0])
    assert math.isnan(figures.pooled["pq"].low)
    assert "(" not in str(figures.types["a"].figures["f1"])


def test_a_type_that_no_image_shows_has_no_r2_though_scikit_learn_has_one() -> None:
    labels = _squares((0, 4, 0, 4))
    images = stacked([tally_image(labels, _permitted("a"), labels, _prob("a"))] * 3)
    figures = summarise(images, ("a", "b"), draw_weights(3))
    assert quality.r2(images.total().count_moments)[1] == 1.0
    assert math.isnan(figures.types["b"].figures["r2"].value)
    assert figures.types["a"].figures["r2"].value == 1.0  # constant truth, predicted without error


def test_a_figure_that_no_replicate_defines_has_no_interval() -> None:
    low, high = interval(np.full((10, 2), [np.nan, 1.0]))
    assert np.isnan(low[0]) and np.isnan(high[0])
    assert (low[1], high[1]) == (1.0, 1.0)


def test_figures_become_json_without_nan() -> None:
    import json

    empty = tally_image(np.zeros((4, 4), int), _permitted(), np.zeros((4, 4), int), _prob())
    figures = summarise(stacked([empty, empty]), ("a", "b"), draw_weights(2, num_replicates=10))
    text = json.dumps(figures.to_json(), allow_nan=False)
    assert json.loads(text)["pooled"]["pq"] == {"value": None, "low": None, "high": None}


def test_no_image_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image"):
        stacked([])
