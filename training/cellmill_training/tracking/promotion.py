"""Whether a candidate may take the champion's place: figures on one evaluation set, compared image by image.

Consumes two evaluations of the same images, produces a `Verdict` that says by which figure. The test is one of
non-inferiority: the images are drawn with replacement, the same ones for both models, and the candidate passes where it
is not worse by more than the margin in 95 of 100 draws (the 5th percentile of candidate minus champion is at least
minus the margin). So a model equal to the champion always passes, and on few images a better one is needed to be sure.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.metrics.bootstrap import draw_weights
from cellmill.metrics.figures import POOLED, TYPES, mean_over_types, present_in_reference
from cellmill.metrics.tally import ImageTally
from cellmill.models.agreement import AGREEING_SHARE, Agreement

__all__ = ["Comparison", "Floor", "Gate", "Verdict", "compare", "judge", "read_moved"]

Floats = npt.NDArray[np.float64]

_FIGURES = {"pq": "PQ", "mean_type_f1": "mean F1 of types"}


@dataclass(frozen=True)
class Gate:
    """What a candidate must reach."""

    margin: float = 0.02
    """How much worse than the champion it may be, in PQ and in mean F1 of types."""
    min_pq: float = 0.0
    """PQ that it must reach in any case; with no champion there is nothing else to hold it against."""
    min_type_f1: float = 0.0
    """Mean F1 of types that it must reach in any case."""
    replicates: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """One figure of candidate and champion on the same images."""

    figure: str
    candidate: float
    champion: float
    low: float
    """5th percentile of candidate minus champion."""
    margin: float

    @property
    def passed(self) -> bool:
        """Whether the candidate is not worse by more than the margin; a figure that neither has says nothing."""
        return bool(np.isnan(self.low)) or self.low >= -self.margin

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{_FIGURES[self.figure]}: not defined on this set"
        sign = "not worse" if self.passed else "worse"
        return (
            f"{_FIGURES[self.figure]} {self.candidate:.3f}, champion {self.champion:.3f}: 5th percentile of the "
            f"difference {self.low:+.3f}, so {sign} within the margin of {self.margin:g}"
        )


@dataclass(frozen=True)
class Floor:
    """One figure of the candidate and what it must reach."""

    figure: str
    candidate: float
    minimum: float

    @property
    def passed(self) -> bool:
        """Whether it does; a figure that is not defined reaches no minimum but 0."""
        return self.minimum <= 0 or self.candidate >= self.minimum

    def __str__(self) -> str:
        sign = "at least" if self.passed else "below"
        return f"{_FIGURES[self.figure]} {self.candidate:.3f}: {sign} the minimum of {self.minimum:g}"


@dataclass(frozen=True)
class Verdict:
    """Everything that was held against a candidate."""

    comparisons: tuple[Comparison, ...]
    """Empty where there is no champion."""
    floors: tuple[Floor, ...]
    agreement: Agreement
    moved: tuple[str, ...] = ()
    """What a comparison on a cohort sample holds against it (`compare_models`); empty where none was given."""

    @property
    def good_enough(self) -> bool:
        """Whether all figures pass."""
        return all(one.passed for one in (*self.comparisons, *self.floors)) and not self.moved

    @property
    def accepted(self) -> bool:
        """Whether figures pass and backends agree."""
        return self.good_enough and self.agreement.holds

    def reasons(self) -> list[str]:
        """What speaks against the candidate, each with its figures; empty when it is accepted."""
        against = [*(str(one) for one in (*self.comparisons, *self.floors) if not one.passed), *self.moved]
        return against if self.agreement.holds else [*against, self._agreement_text()]

    def lines(self) -> list[str]:
        """Everything that was looked at."""
        champion = [str(one) for one in self.comparisons] or ["no champion to compare with"]
        floors = [str(one) for one in self.floors if one.minimum > 0]
        return [*champion, *floors, *self.moved, self._agreement_text()]

    def _agreement_text(self) -> str:
        one = self.agreement
        sign = "agrees" if one.holds else "disagrees"
        return (
            f"backend {one.backend} {sign} with eager torch: {one.share:.4%} of pixels within tolerance, "
            f"{AGREEING_SHARE:.1%} needed"
        )


def compare(candidate: ImageTally, champion: ImageTally, *, gate: Gate) -> tuple[Comparison, ...]:
    """PQ and mean F1 of types of two models on the same images, in the same order (leading axis).

    Raises:
        ValueError: when the two were not measured on the same images.
    """
    same = np.array_equal(candidate.cells[..., 0], champion.cells[..., 0])
    if candidate.cells.shape != champion.cells.shape or not same:
        raise ValueError("Candidate and champion were not measured on the same images; evaluate both on one data set.")
    weights = draw_weights(len(candidate.panoptic), num_replicates=gate.replicates, seed=gate.seed)
    found: list[Comparison] = []
    for figure in _FIGURES:
        ours, our_draws = _values(candidate, figure, weights)
        theirs, their_draws = _values(champion, figure, weights)
        differences = (our_draws - their_draws)[np.isfinite(our_draws - their_draws)]
        low = float(np.percentile(differences, 5)) if len(differences) else float("nan")
        found.append(Comparison(figure, ours, theirs, low, gate.margin))
    return tuple(found)


def judge(candidate: ImageTally, champion: ImageTally | None, *, agreement: Agreement, gate: Gate) -> Verdict:
    """Hold a candidate against the champion, where there is one, and against the gate's minima."""
    none = np.zeros((0, len(candidate.panoptic)))
    values = {figure: _values(candidate, figure, none)[0] for figure in _FIGURES}
    minima = {"pq": gate.min_pq, "mean_type_f1": gate.min_type_f1}
    return Verdict(
        comparisons=compare(candidate, champion, gate=gate) if champion is not None else (),
        floors=tuple(Floor(figure, values[figure], minima[figure]) for figure in _FIGURES),
        agreement=agreement,
    )


def read_moved(path: Path, *, candidate_digest: str, champion_digest: str) -> tuple[str, ...]:
    """What a `comparison.json` of `compare_models` holds against the candidate; nothing where it was accepted.

    Raises:
        ValueError: when it is none, or one of other models.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        accepted, reasons = bool(document["accepted"]), [str(reason) for reason in document["reasons"]]
        found = tuple(str(document[side]["model_digest"]) for side in ("candidate", "reference"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--comparison {path} is no comparison.json of compare_models: {error!r}.") from error
    if found != (candidate_digest, champion_digest):
        raise ValueError(
            f"--comparison {path} is of candidate {found[0][:12]} and reference {found[1][:12]}, not of this candidate "
            f"({candidate_digest[:12]}) and the champion ({champion_digest[:12] or 'none'}); compare these two."
        )
    return () if accepted else tuple(f"on a cohort sample: {reason}" for reason in reasons)


def _values(images: ImageTally, figure: str, weights: Floats) -> tuple[float, Floats]:
    """A figure of all images and of each draw."""
    total, drawn = images.total(), images.weighted(weights)
    if figure == "pq":
        return float(POOLED["pq"](total)), POOLED["pq"](drawn)
    present = present_in_reference(images)
    return float(mean_over_types(TYPES["f1"](total), present)), mean_over_types(TYPES["f1"](drawn), present)
