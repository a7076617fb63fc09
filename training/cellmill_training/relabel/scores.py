"""How right a classifier is: accuracies natural and balanced, confusion, and intervals by cell and by group.

Consumes true and predicted classes of test cells with their groups; produces an `Accuracies`. Natural accuracy is the
share of right cells as the data set has them; balanced accuracy is the mean of the classes' own, which is what a test
set with as many cells of each class would give on average. The paper's averages (0.936 and 0.989, table 1) are natural.

Intervals are percentiles of 1,000 bootstrap replicates (Shvetsov et al. 2025, section 3). By cell, as in the paper: how
well this many cells pin the figure down if cells were independent. They are not: cells of one patient share stain,
scanner and tumour. By group, whole groups are drawn: what another choice of patients would have changed, which is what
another lab meets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Accuracies", "Estimate", "accuracies", "confusion_matrix"]

_NUM_REPLICATES = 1000
_PERCENTILES = (2.5, 97.5)

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % intervals."""

    value: float
    by_cell: tuple[float, float]
    """Cells drawn with replacement."""
    by_group: tuple[float, float] | None
    """Groups drawn with replacement; None where there is only one, which says nothing about others."""


@dataclass(frozen=True)
class Accuracies:
    """What a test split says about a classifier."""

    class_names: tuple[str, ...]
    natural: Estimate
    balanced: Estimate
    by_class: tuple[Estimate, ...]
    """Share of each class's cells that are called so."""
    confusion: Counts  # (true class, predicted class), cells as they are
    num_groups: int

    @property
    def balanced_confusion(self) -> Floats:
        """Shares (true class, predicted class); each row sums to 1."""
        return _recalls(self.confusion.astype(np.float64))


def confusion_matrix(true: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], *, num_classes: int) -> Counts:
    """Cells (true class, predicted class)."""
    pairs = true * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes).astype(np.int64)


def accuracies(
    true: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    groups: npt.NDArray[np.str_],
    *,
    class_names: Sequence[str],
    seed: int = 0,
) -> Accuracies:
    """Accuracies with intervals of n test cells.

    Raises:
        ValueError: when there is no cell of some class.
    """
    C = len(class_names)
    confusion = confusion_matrix(true, predicted, num_classes=C)
    missing = [name for name, count in zip(class_names, confusion.sum(axis=1), strict=True) if count == 0]
    if missing:
        raise ValueError(f"The test split has no cell of {', '.join(missing)}: their accuracy cannot be told.")
    rng = np.random.default_rng(seed)
    # Drawing n cells with replacement is drawing how many fall into each field of the confusion matrix.
    drawn = rng.multinomial(len(true), (confusion / len(true)).ravel(), _NUM_REPLICATES).reshape(-1, C, C)
    names, owner = np.unique(groups, return_inverse=True)
    tables = np.zeros((len(names), C, C))
    np.add.at(tables, (owner, true, predicted), 1.0)
    weights = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), _NUM_REPLICATES)
    regrouped = np.tensordot(weights.astype(np.float64), tables, axes=1)  # (replicates, C, C)
    estimates = [
        Estimate(float(value), _interval(by_cell), _interval(by_group) if len(names) > 1 else None)
        for value, by_cell, by_group in zip(
            _figures(confusion[None].astype(np.float64))[0],
            _figures(drawn.astype(np.float64)).T,
            _figures(regrouped).T,
            strict=True,
        )
    ]
    return Accuracies(
        class_names=tuple(class_names),
        natural=estimates[0],
        balanced=estimates[1],
        by_class=tuple(estimates[2:]),
        confusion=confusion,
        num_groups=len(names),
    )


def _figures(confusions: Floats) -> Floats:
    """Natural, balanced and each class's accuracy (R, 2 + C) of confusion matrices (R, C, C); NaN where absent."""
    recalls = np.diagonal(_recalls(confusions), axis1=1, axis2=2)  # (R, C)
    natural = np.trace(confusions, axis1=1, axis2=2) / np.maximum(confusions.sum(axis=(1, 2)), 1)
    present = ~np.isnan(recalls)
    balanced = np.where(present, recalls, 0.0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    return np.column_stack([natural, balanced, recalls])


def _recalls(confusions: Floats) -> Floats:
    totals = confusions.sum(axis=-1, keepdims=True)
    return np.divide(confusions, totals, out=np.full_like(confusions, np.nan), where=totals > 0)


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(values, _PERCENTILES)
    return float(low), float(high)
