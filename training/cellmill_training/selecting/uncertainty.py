"""How unsure an ensemble is of each tile: entropy, variation ratio, BALD (Gal et al. 2017, after Houlsby et al. 2011).

In: probabilities (M, n) of presence by M members. Out: one score a tile, in nats where it is information. Entropy is of
the mean prediction: high where members are unsure or disagree. BALD is what of it is disagreement: the entropy of the
mean less the mean of the entropies, 0 where all members say the same, whatever they say.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Uncertainty", "binary_entropy", "uncertain_rows", "uncertainty_of"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Uncertainty:
    """Scores of n tiles for one type."""

    probability: Floats  # (n,) mean over members
    entropy: Floats  # (n,) nats, 0 to ln 2
    variation_ratio: Floats  # (n,) share of members not of the majority's opinion, 0 to 0.5
    bald: Floats  # (n,) nats, 0 to ln 2


def binary_entropy(probability: Floats) -> Floats:
    """Entropy in nats of yes-or-no with that probability of yes; 0 at 0 and 1."""
    p = np.clip(probability, 0.0, 1.0)
    q = 1.0 - p
    return -(p * np.log(np.where(p > 0, p, 1.0)) + q * np.log(np.where(q > 0, q, 1.0)))


def uncertainty_of(probabilities: Floats) -> Uncertainty:
    """Scores from the members' probabilities (M, n)."""
    mean = probabilities.mean(axis=0)
    entropy = binary_entropy(mean)
    votes = (probabilities >= 0.5).mean(axis=0)
    # Rounding can leave a hair below 0 where all members agree.
    bald = np.maximum(entropy - binary_entropy(probabilities).mean(axis=0), 0.0)
    return Uncertainty(mean, entropy, 1.0 - np.maximum(votes, 1.0 - votes), bald)


def uncertain_rows(scores: Uncertainty, *, min_probability: float, bald_percentile: float) -> npt.NDArray[np.int64]:
    """Rows of one slide's tiles whose probability and BALD both exceed their bounds; the percentile is of all of its
    tiles."""
    if not len(scores.bald):
        return np.zeros(0, np.int64)
    bound = float(np.percentile(scores.bald, bald_percentile))
    return np.flatnonzero((scores.probability > min_probability) & (scores.bald > bound))
