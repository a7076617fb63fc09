"""Fitting a type head: multinomial logistic regression on standardised vectors, classes weighted alike.

In: vectors (n, D), classes (n,), groups (n,). Out: a `TypeHead` fitted on all of it and `CrossValidation`, what such a
head is worth on groups that it did not see. The strength of the penalty is chosen by folds of groups inside the
training part, so that the estimate has seen nothing of its test groups; the head itself takes what all folds choose.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from cellmill.embedding.head import TypeHead
from cellmill.metrics.bootstrap import NUM_REPLICATES, draw_weights, interval

__all__ = ["STRENGTHS", "CrossValidation", "Figure", "cross_validate", "fit_head"]

STRENGTHS = (0.01, 0.1, 1.0)
"""scikit-learn's C: the inverse of the penalty."""
_MAX_FOLDS = 5
_INNER_FOLDS = 3
_MAX_ITERATIONS = 2000

Vectors = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """A share and its 95 % interval; the ends are NaN where there are fewer than two groups."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class CrossValidation:
    """What heads said of cells whose group they had not seen."""

    predicted: Integers  # (n,)
    strengths: tuple[float, ...]
    """What each fold chose."""
    accuracy: Figure
    balanced_accuracy: Figure
    """Mean over classes of the share of their cells that were found."""
    recall: tuple[float, ...]
    """Of each class."""
    num_groups: int
    """That intervals are drawn over: of fewer than a handful they are too narrow."""

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain JSON types, without the single predictions."""
        figures = {"accuracy": self.accuracy, "balanced_accuracy": self.balanced_accuracy}
        return {
            **{name: [round(v, 4) for v in (one.value, one.low, one.high)] for name, one in figures.items()},
            "recall": {name: round(value, 4) for name, value in zip(names, self.recall, strict=True)},
            "strengths": list(self.strengths),
            "num_folds": len(self.strengths),
            "num_groups": self.num_groups,
        }


def fit_head(
    vectors: Vectors, classes: Integers, groups: Integers, *, num_classes: int, seed: int
) -> tuple[TypeHead, float]:
    """A head of all cells, and the strength that cross-validation over groups chose for it."""
    strength = _choose_strength(vectors, classes, groups, num_classes=num_classes, seed=seed)
    return _fit(vectors, classes, strength=strength, num_classes=num_classes), strength


def cross_validate(
    vectors: Vectors, classes: Integers, groups: Integers, *, num_classes: int, seed: int
) -> CrossValidation:
    """Predict each fold of groups by a head of the others.

    Raises:
        ValueError: when there is one group only.
    """
    if len(np.unique(groups)) < 2:
        raise ValueError("Cross-validation needs cells of two groups or more.")
    predicted = np.full(len(classes), -1, np.int64)
    strengths: list[float] = []
    for train, test in _folds(classes, groups, seed=seed):
        strength = _choose_strength(vectors[train], classes[train], groups[train], num_classes=num_classes, seed=seed)
        head = _fit(vectors[train], classes[train], strength=strength, num_classes=num_classes)
        predicted[test] = head.probabilities(vectors[test]).argmax(axis=1)
        strengths.append(strength)
    assert (predicted >= 0).all(), "every cell is in one fold"
    accuracy, balanced, recall = _figures(predicted == classes, classes, groups, num_classes=num_classes, seed=seed)
    return CrossValidation(predicted, tuple(strengths), accuracy, balanced, recall, len(np.unique(groups)))


def _folds(
    classes: Integers, groups: Integers, *, seed: int, at_most: int = _MAX_FOLDS
) -> Iterator[tuple[Integers, Integers]]:
    num_groups = len(np.unique(groups))
    splitter = StratifiedGroupKFold(min(at_most, num_groups), shuffle=True, random_state=seed)
    # Stratifying asks for as many cells of each class as there are folds; rare classes are told apart by less.
    counts = np.bincount(classes)
    strata = np.where(counts[classes] >= splitter.n_splits, classes, -1)
    for train, test in splitter.split(classes, strata, groups):
        if len(train) and len(test):
            yield train.astype(np.int64), test.astype(np.int64)


def _choose_strength(vectors: Vectors, classes: Integers, groups: Integers, *, num_classes: int, seed: int) -> float:
    """The strength of the best balanced accuracy over folds, the first of equals; the middle one of a lone group."""
    if len(np.unique(groups)) < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    folds = list(_folds(classes, groups, seed=seed, at_most=_INNER_FOLDS))
    worth: list[float] = []
    for strength in STRENGTHS:
        right = np.zeros(len(classes), np.bool_)
        for train, test in folds:
            head = _fit(vectors[train], classes[train], strength=strength, num_classes=num_classes)
            right[test] = head.probabilities(vectors[test]).argmax(axis=1) == classes[test]
        worth.append(float(np.mean([right[classes == kind].mean() for kind in np.unique(classes)])))
    return STRENGTHS[int(np.argmax(np.round(worth, 6)))]


def _fit(vectors: Vectors, classes: Integers, *, strength: float, num_classes: int) -> TypeHead:
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)  # a dimension that never changes says nothing
    known = np.unique(classes)
    weight = np.zeros((num_classes, vectors.shape[1]))
    bias = np.full(num_classes, -1e3)  # a class that this part of the cells lacks is never said
    if len(known) == 1:
        bias[known[0]] = 0.0
        return TypeHead(mean, deviation, weight, bias)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=_MAX_ITERATIONS)
    model.fit((vectors - mean) / deviation, classes)
    coefficients, intercept = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(known) == 2:  # one line of coefficients for two classes: of the second against the first
        coefficients, intercept = (
            np.stack([-coefficients[0], coefficients[0]]) / 2,
            np.array([-1, 1]) * intercept[0] / 2,
        )
    weight[known], bias[known] = coefficients, intercept
    return TypeHead(mean, deviation, weight, bias)


def _figures(
    right: npt.NDArray[np.bool_], classes: Integers, groups: Integers, *, num_classes: int, seed: int
) -> tuple[Figure, Figure, tuple[float, ...]]:
    """Accuracy, balanced accuracy, recall by class; intervals by drawing groups."""
    _, group = np.unique(groups, return_inverse=True)
    num_groups = int(group.max()) + 1
    cells, found = np.zeros((num_groups, num_classes)), np.zeros((num_groups, num_classes))
    np.add.at(cells, (group, classes), 1.0)
    np.add.at(found, (group, classes), right.astype(np.float64))
    weights = np.concatenate(
        [np.ones((1, num_groups)), draw_weights(num_groups, num_replicates=NUM_REPLICATES, seed=seed)]
    )
    total, hits = weights @ cells, weights @ found  # (1 + R, C)
    with np.errstate(invalid="ignore"):
        recall = hits / total
    accuracy = hits.sum(axis=1) / total.sum(axis=1)
    balanced = np.nanmean(recall, axis=1)
    return _figure(accuracy), _figure(balanced), tuple(recall[0].tolist())


def _figure(values: npt.NDArray[np.float64]) -> Figure:
    """The first value, with the interval of the others."""
    low, high = interval(values[1:, None])
    return Figure(float(values[0]), float(low[0]), float(high[0]))
