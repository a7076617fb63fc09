"""What size and darkness alone would tell: logistic regression on area and hematoxylin density.

The figure beside a classifier's: one that does no better has learned nothing of chromatin, nucleoli or cytoplasm.
Consumes `cutting.plain_features` (n, 2) of the same cells the classifier learned from; predicts classes.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["PlainBaseline"]


class PlainBaseline:
    """Standardised features into multinomial logistic regression (scikit-learn's, C = 1)."""

    def __init__(self, features: npt.NDArray[np.float64], classes: npt.NDArray[np.int64]) -> None:
        from sklearn.linear_model import LogisticRegression

        self._mean, self._std = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
        self._model = LogisticRegression(max_iter=2000).fit(self._scaled(features), classes)

    def predict(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Class of each row of features (n, 2)."""
        return np.asarray(self._model.predict(self._scaled(features)), np.int64)

    def _scaled(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return (features - self._mean) / self._std
