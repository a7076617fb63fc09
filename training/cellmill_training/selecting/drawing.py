"""The last draw: from pools of proposed tiles to those that are labelled.

A slide weighs as its number of proposed tiles over the mean of all slides that have any, clipped to 0.5 to 2.0, so that
a slide full of uncertain tiles does not take all of the annotators' time (Adjadj et al. 2025). Within a slide every
proposed tile has the same chance.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["draw", "shares_of", "slide_weights"]


def slide_weights(slides: Sequence[str], *, weight_range: tuple[float, float]) -> dict[str, float]:
    """Weight of each slide, from the slide of every proposed tile."""
    counts = Counter(slides)
    if not counts:
        return {}
    mean = len(slides) / len(counts)
    return {slide: float(np.clip(count / mean, *weight_range)) for slide, count in counts.items()}


def draw(slides: Sequence[str], weights: Mapping[str, float], number: int, rng: np.random.Generator) -> list[int]:
    """Rows drawn without replacement, at most `number`, rising.

    Args:
        slides: of each proposed tile.
        weights: of each slide; shared evenly by its tiles.
        number: how many to draw.
        rng: the source of chance.
    """
    if number <= 0 or not slides:
        return []
    counts = Counter(slides)
    chances = np.array([weights[slide] / counts[slide] for slide in slides])
    rows = rng.choice(len(slides), size=min(number, len(slides)), replace=False, p=chances / chances.sum())
    return sorted(int(row) for row in rows)


def shares_of(total: int, *, rare_share: float, uncertain_share: float) -> tuple[int, int]:
    """Tiles to draw as rare and as uncertain, of `total`; the rest are for diversity."""
    rare = round(total * rare_share)
    return rare, min(round(total * uncertain_share), total - rare)
