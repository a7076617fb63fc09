"""Which slides differ from the rest: robust z-scores against the cohort and within a group.

Pure functions of numbers, one a slide. z = (value - median) / spread, where the spread is 1.4826 x the median absolute
deviation, the standard deviation of a normal distribution; a slide is flagged beyond 3.5 (Iglewicz and Hoaglin 1993,
"How to detect and handle outliers"). Where more than half of the slides agree exactly that spread is 0, and 1.2533 x
the mean absolute deviation takes its place. Fewer than 8 slides are not judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMIT", "MIN_SLIDES", "Flag", "Measure", "find_flags", "robust_z"]

LIMIT = 3.5
MIN_SLIDES = 8


@dataclass(frozen=True)
class Measure:
    """One number a slide, and how it is judged."""

    label: str
    values: NDArray[np.float64]  # (slides,), NaN where a slide has none
    transform: Literal["none", "log", "logit"] = "none"
    """Densities spread over decades and shares crowd at 0 and 1: they are judged on these scales."""
    sides: Literal["both", "low", "high"] = "both"
    """Which side is worth a look."""
    unit: Literal["per_mm2", "share", "number"] = "number"

    def judged(self) -> NDArray[np.float64]:
        """The values on the scale they are judged on."""
        if self.transform == "log":
            return np.log10(self.values + 1.0)
        if self.transform == "logit":
            kept = np.clip(self.values, 1e-3, 1 - 1e-3)
            return np.log(kept / (1 - kept))
        return self.values


@dataclass(frozen=True)
class Flag:
    """One reason to look at a slide."""

    slide: int
    """Index of the slide."""
    measure: Measure
    value: float
    median: float
    z: float
    within: str
    """Empty for the cohort, else the group it was compared with."""


def robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """z of each value (n,); NaN throughout where fewer than 8 are numbers, 0 where they do not spread."""
    known = values[np.isfinite(values)]
    if known.size < MIN_SLIDES:
        return np.full(values.shape, np.nan)
    apart = np.abs(known - np.median(known))
    spread = 1.4826 * float(np.median(apart)) or 1.2533 * float(apart.mean())
    if spread == 0:
        return np.where(np.isfinite(values), 0.0, np.nan)
    return (values - np.median(known)) / spread


def find_flags(measures: Sequence[Measure], groups: Mapping[str, Sequence[int]]) -> list[Flag]:
    """Every flag, by slide; the strongest first.

    Args:
        measures: over the same slides.
        groups: slides of each group; the cohort is the group named "".
    """
    flags: list[Flag] = []
    for measure in measures:
        judged = measure.judged()
        for name, members in groups.items():
            index = np.array(members, np.int64)
            if not index.size:
                continue
            z = robust_z(judged[index])
            strange = {"both": np.abs(z), "low": -z, "high": z}[measure.sides] > LIMIT
            known = measure.values[index]
            flags += [
                Flag(int(index[n]), measure, float(known[n]), float(np.nanmedian(known)), float(z[n]), name)
                for n in np.flatnonzero(strange)
            ]
    return sorted(_without_repeats(flags), key=lambda flag: (flag.slide, -abs(flag.z)))


def _without_repeats(flags: Sequence[Flag]) -> list[Flag]:
    """A slide that stands out of the cohort and of its group by the same measure is told once."""
    of_cohort = {(flag.slide, flag.measure.label) for flag in flags if not flag.within}
    return [flag for flag in flags if not flag.within or (flag.slide, flag.measure.label) not in of_cohort]
