"""Figures of classified nuclei as the paper's tables 3 to 6 give them.

F1, precision and recall are means over classes weighted by their nuclei: in the paper's table 3 recall equals accuracy,
which holds for that mean alone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Scores", "score"]


@dataclass(frozen=True)
class Scores:
    """How right some labels are."""

    f1: float
    accuracy: float
    precision: float
    recall: float
    num_nuclei: int


def score(true: npt.NDArray[np.int64], called: npt.NDArray[np.int64]) -> Scores:
    """Figures of n nuclei.

    Raises:
        ValueError: when there is none.
    """
    from sklearn.metrics import precision_recall_fscore_support

    if not len(true):
        raise ValueError("There is no nucleus to score: the test split, or the expert's part of it, is empty.")
    figures = precision_recall_fscore_support(
        true,
        called,
        average="weighted",
        zero_division=0,  # pyright: ignore[reportArgumentType] - its stub knows texts only
    )
    precision, recall, f1, _ = figures
    return Scores(float(f1), float((true == called).mean()), float(precision), float(recall), len(true))
