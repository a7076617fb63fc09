"""Confidence intervals by the nonparametric bootstrap over images (Shvetsov et al. 2025, section 3).

Images are drawn with replacement; a figure's 95 % interval runs from the 2.5th to the 97.5th percentile of its values
on the drawn sets. A draw is a row of weights, how often each image was taken, so that a thousand draws of sums are one
matrix product.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["NUM_REPLICATES", "draw_weights", "interval"]

NUM_REPLICATES = 1000
"""As both papers have it."""

Floats = npt.NDArray[np.float64]


def draw_weights(
    num_images: int, *, groups: Sequence[str] | None = None, num_replicates: int = NUM_REPLICATES, seed: int = 0
) -> Floats:
    """How often each image is taken in each replicate, (R, n); rows sum to n where images are drawn.

    Args:
        num_images: n.
        groups: of each image; groups are drawn whole in place of images, which is right where images of one patient or
            slide are more alike than others.
        num_replicates: R.
        seed: of the draws: the same set of images always gets the same ones.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(groups if groups is not None else np.arange(num_images), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=num_replicates)  # (R, groups)
    return drawn[:, member].astype(np.float64)


def interval(values: Floats, *, level: float = 0.95) -> tuple[Floats, Floats]:
    """Percentile interval along the first axis, of the replicates in which the figure is defined; NaN where none is."""
    defined = np.isfinite(values).any(axis=0)
    if not len(values):
        return np.full(defined.shape, np.nan), np.full(defined.shape, np.nan)
    filled = np.where(defined, values, 0.0)
    low, high = np.nanpercentile(filled, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)
