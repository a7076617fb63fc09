"""Whether a change is small enough: shares over a cohort sample, their intervals by slides, margins.

In: `SlideChange`s. Out: a `Verdict`. Slides are drawn with replacement (`cellmill.metrics.bootstrap`), because cells of
one slide change together. A figure passes where its whole 95 % interval lies within its margin; so a change that is
small on few slides only is not believed. The gate says that nothing moves unforeseen, not which model is right: that
takes labels (`evaluate_model`, `promote_model`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.metrics.bootstrap import NUM_REPLICATES, draw_weights, interval

__all__ = ["Check", "Margins", "SlideChange", "Verdict", "judge"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Margins:
    """What a candidate may change, as shares."""

    max_lost: float = 0.05
    max_gained: float = 0.05
    max_retyped: float = 0.05
    max_type_change: float = 0.10
    min_cells: int = 100
    min_slides: int = 3


@dataclass(frozen=True)
class SlideChange:
    """What became of the cells of one slide."""

    slide_id: str
    counts: npt.NDArray[np.int64]
    """(C + 1, C + 1): reference's type by candidate's; the last row are cells that only the candidate has, the last
    column those that only the reference has."""
    num_redrawn: int = 0
    """Pairs that overlap by half or less: the same nucleus with another outline."""
    mean_iou: float = float("nan")
    """Of all pairs."""
    analysed_mm2: float = 0.0
    """By the candidate."""
    problem: str = ""
    """Why the slide was not compared, in words."""

    @property
    def num_reference(self) -> int:
        """Cells of the reference."""
        return int(self.counts[:-1].sum())

    @property
    def num_candidate(self) -> int:
        """Cells of the candidate."""
        return int(self.counts[:, :-1].sum())

    @property
    def num_lost(self) -> int:
        """Cells that only the reference has."""
        return int(self.counts[:-1, -1].sum())

    @property
    def num_gained(self) -> int:
        """Cells that only the candidate has."""
        return int(self.counts[-1, :-1].sum())

    @property
    def num_retyped(self) -> int:
        """Pairs of two types."""
        inner = self.counts[:-1, :-1]
        return int(inner.sum() - np.trace(inner))


@dataclass(frozen=True)
class Check:
    """One figure, where it must lie, and whether it does."""

    name: str
    value: float
    low: float
    high: float
    margin: float
    two_sided: bool
    """Whether it may lie on either side of 0; otherwise it is a share of 0 or more."""
    judged: bool = True
    """False where there are too few cells to judge by."""

    @property
    def passed(self) -> bool:
        """Whether the whole interval lies within the margin; what is not judged passes."""
        if not self.judged:
            return True
        return bool(self.high <= self.margin and (not self.two_sided or self.low >= -self.margin))

    def __str__(self) -> str:
        sign = "+" if self.two_sided else ""
        interval_text = f"{self.value:{sign}.1%} ({self.low:{sign}.1%} to {self.high:{sign}.1%})"
        if not self.judged:
            return f"{self.name} {interval_text}: too few cells to judge"
        side = "within" if self.passed else "not within"
        return f"{self.name} {interval_text}: {side} the margin of {self.margin:.1%}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        numbers = {name: _plain(getattr(self, name)) for name in ("value", "low", "high", "margin")}
        return {"name": self.name, **numbers, "judged": self.judged, "passed": self.passed}


@dataclass(frozen=True)
class Verdict:
    """Everything that was held against a candidate."""

    checks: tuple[Check, ...]
    problems: tuple[str, ...]
    """What else stands against it: too few slides, slides that only the reference did."""

    @property
    def accepted(self) -> bool:
        """Whether nothing stands against it."""
        return not self.problems and all(check.passed for check in self.checks)

    def reasons(self) -> list[str]:
        """What stands against it, in words; empty where it is accepted."""
        return [*self.problems, *(str(check) for check in self.checks if not check.passed)]


def judge(changes: Sequence[SlideChange], type_names: Sequence[str], *, margins: Margins, seed: int = 0) -> Verdict:
    """Hold the change against the margins.

    Args:
        changes: of every slide of the sample, those with a problem too.
        type_names: names of the C types.
        margins: the margins.
        seed: of the draws.
    """
    compared = [change for change in changes if not change.problem]
    problems = [f"{change.slide_id}: {change.problem}" for change in changes if change.problem]
    if len(compared) < margins.min_slides:
        problems.append(f"{len(compared)} slides were compared, {margins.min_slides} are needed to tell anything")
    if not compared:
        return Verdict((), tuple(problems))
    counts = np.stack([change.counts for change in compared]).astype(np.float64)  # (S, C + 1, C + 1)
    drawn = draw_weights(len(compared), num_replicates=NUM_REPLICATES, seed=seed)
    weights = np.concatenate([np.ones((1, len(compared))), drawn])
    summed = np.einsum("rs,sij->rij", weights, counts)  # (1 + R, C + 1, C + 1), the first of all slides once
    reference, candidate = summed[:, :-1].sum(axis=2), summed[:, :, :-1].sum(axis=1)  # (1 + R, C)
    inner = summed[:, :-1, :-1]
    pairs, same = inner.sum(axis=(1, 2)), np.trace(inner, axis1=1, axis2=2)
    all_cells = reference.sum(axis=1)
    checks = [
        _check("lost", summed[:, :-1, -1].sum(axis=1), all_cells, margins.max_lost),
        _check("gained", summed[:, -1, :-1].sum(axis=1), all_cells, margins.max_gained),
        _check("retyped", pairs - same, pairs, margins.max_retyped),
    ]
    for index, name in enumerate(type_names):
        before, after = reference[:, index], candidate[:, index]
        if before[0] or after[0]:
            judged, title, margin = bool(before[0] >= margins.min_cells), f"number of {name}", margins.max_type_change
            checks.append(_check(title, after - before, before, margin, two_sided=True, judged=judged))
    return Verdict(tuple(checks), tuple(problems))


def _check(
    name: str, part: Floats, whole: Floats, margin: float, *, two_sided: bool = False, judged: bool = True
) -> Check:
    """A figure of all slides (the first entry) and of the draws."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(whole > 0, part / whole, np.nan)
    low, high = interval(values[1:, None])
    return Check(name, float(values[0]), float(low[0]), float(high[0]), margin, two_sided, judged)


def _plain(value: float) -> float | None:
    return None if not np.isfinite(value) else round(value, 6)
