"""Features brought to zero mean and unit deviation: over all tiles, over a cohort's, or over a slide's own.

Stains and scanners move all features of a slide; what is left after its own mean and deviation are taken out says more
about what a tile holds. No label is used, so a slide to be scored may be scaled by its own tiles. Moments add up: those
of a cohort come from its slides', without holding all features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = ["SCALERS", "Moments", "ScalerKind", "Scaling"]

ScalerKind = Literal["global", "slide", "cohort"]
SCALERS: tuple[ScalerKind, ...] = get_args(ScalerKind)

_MIN_TILES = 20
"""Fewer tiles give no deviation to rely on; the next larger group's is taken."""


@dataclass(frozen=True)
class Moments:
    """Sums over tiles, from which means and deviations follow."""

    count: int
    total: npt.NDArray[np.float64]  # (D,)
    squares: npt.NDArray[np.float64]  # (D,)

    @staticmethod
    def of(features: npt.NDArray[np.floating]) -> "Moments":
        """Of features (n, D)."""
        values = features.astype(np.float64)
        return Moments(len(values), values.sum(axis=0), (values**2).sum(axis=0))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def z_scores(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Features (n, D) less the mean, over the deviation; a feature that never varies becomes 0."""
        mean = self.total / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0.0))
        varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
        return (np.where(varies, features - mean, 0.0) / np.where(varies, deviation, 1.0)).astype(np.float32)


@dataclass(frozen=True)
class Scaling:
    """Moments of one feature set, by slide and cohort and over all."""

    by_slide: Mapping[str, Moments]
    cohort_of: Mapping[str, str]
    by_cohort: Mapping[str, Moments]
    overall: Moments

    @staticmethod
    def of(by_slide: Mapping[str, Moments], cohort_of: Mapping[str, str]) -> "Scaling":
        """From the moments of each slide, of which there is at least one."""
        by_cohort: dict[str, Moments] = {}
        for slide, moments in by_slide.items():
            cohort = cohort_of[slide]
            by_cohort[cohort] = by_cohort[cohort] + moments if cohort in by_cohort else moments
        first, *others = by_cohort.values()
        return Scaling(by_slide, cohort_of, by_cohort, sum(others, first))

    def scaled(self, features: npt.NDArray[np.floating], *, slide: str, kind: ScalerKind) -> npt.NDArray[np.float32]:
        """Features (n, D) of tiles of one slide."""
        own, cohort = self.by_slide[slide], self.by_cohort[self.cohort_of[slide]]
        if kind == "slide" and own.count >= _MIN_TILES:
            return own.z_scores(features)
        if kind != "global" and cohort.count >= _MIN_TILES:
            return cohort.z_scores(features)
        return self.overall.z_scores(features)
