"""Claims about a classifier's figures: the paper's arithmetic, hand-computed cases, intervals that mean something."""

import numpy as np
import pytest

from cellmill_training.relabel.scores import accuracies, confusion_matrix

# Test cells of Shvetsov et al. 2025: a tenth of each class (table S4, numbers in parentheses), and how many of them are
# right according to table 1's percentages.
_PANNUKE = {"neoplastic": (6803, 6535), "epithelial": (2321, 2002)}
_MONUSAC = {"lymphocyte": (3310, 3299), "neutrophil": (126, 108), "macrophage": (170, 160)}


@pytest.mark.parametrize(
    ("cells", "natural", "balanced", "by_class"),
    [
        (_PANNUKE, 0.9357, 0.9116, (0.9606, 0.8626)),
        (_MONUSAC, 0.9892, 0.9317, (0.9967, 0.8571, 0.9412)),
    ],
    ids=["pannuke", "monusac"],
)
def test_the_papers_averages_are_natural_and_not_balanced_accuracies(
    cells: dict[str, tuple[int, int]], natural: float, balanced: float, by_class: tuple[float, ...]
) -> None:
    true = np.repeat(np.arange(len(cells)), [count for count, _ in cells.values()])
    right = np.concatenate([np.arange(count) < hits for count, hits in cells.values()])
    predicted = np.where(right, true, (true + 1) % len(cells))
    found = accuracies(true, predicted, np.arange(len(true)).astype(str), class_names=tuple(cells))
    assert found.natural.value == pytest.approx(natural, abs=5e-5)
    assert found.balanced.value == pytest.approx(balanced, abs=5e-5)
    assert [estimate.value for estimate in found.by_class] == pytest.approx(by_class, abs=5e-5)
    # Table 1 gives 0.931-0.941 and 0.986-0.993, and 0.796-0.918 for neutrophils.
    assert found.natural.by_cell[1] - found.natural.by_cell[0] == pytest.approx(
        0.010 if natural < 0.95 else 0.007, abs=2e-3
    )
    if "neutrophil" in cells:
        assert found.by_class[1].by_cell == pytest.approx((0.796, 0.918), abs=0.02)


def test_confusion_has_truth_in_rows() -> None:
    found = confusion_matrix(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), num_classes=2)
    assert found.tolist() == [[1, 1], [1, 2]]


def test_cells_of_one_group_widen_the_interval_by_group_only() -> None:
    # Ten groups of 100 cells; a group is right or wrong as a whole.
    groups = np.repeat(np.arange(10), 100).astype(str)
    true = np.tile([0, 1], 500)
    predicted = np.where(np.repeat(np.arange(10) < 8, 100), true, 1 - true)
    found = accuracies(true, predicted, groups, class_names=("a", "b")).natural
    assert found.value == pytest.approx(0.8)
    assert found.by_cell == pytest.approx((0.8 - 0.0248, 0.8 + 0.0248), abs=0.004)  # 1.96 sqrt(0.8 x 0.2 / 1000)
    assert found.by_group is not None
    assert found.by_group[0] <= 0.6 and found.by_group[1] >= 0.99


def test_balanced_confusion_has_rows_of_sum_one() -> None:
    true, predicted = np.array([0] * 8 + [1] * 2), np.array([0] * 6 + [1] * 2 + [1, 0])
    found = accuracies(true, predicted, np.array(["g"] * 10), class_names=("a", "b"))
    assert found.balanced_confusion.tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert (found.natural.value, found.balanced.value) == (0.7, 0.625)
    assert found.natural.by_group is None  # one group says nothing about others


def test_a_class_without_test_cells_is_named() -> None:
    with pytest.raises(ValueError, match="no cell of rare"):
        accuracies(np.array([0]), np.array([0]), np.array(["g"]), class_names=("common", "rare"))
