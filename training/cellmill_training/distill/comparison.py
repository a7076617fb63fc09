"""Students of one command beside each other: figures on the validation images, best first, win or lose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellmill_training.distill.recipe import ALONE

__all__ = ["Outcome", "as_markdown", "verdict"]

DECIDING = "val_mean_pq"
_COLUMNS = {
    "val_mean_pq": "mean PQ",
    "val_mean_r2": "mean R2",
    "val_mean_f1": "mean F1",
    "val_pq": "PQ",
    "val_dq": "DQ",
}


@dataclass(frozen=True)
class Outcome:
    """The last figures of one student."""

    name: str
    figures: Mapping[str, float]

    @property
    def deciding(self) -> float:
        """Mean PQ over types on the validation images; below any other where it is not defined."""
        return self.figures.get(DECIDING, -1.0)


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """One row a student, best first."""
    rows = [f"| student | {' | '.join(_COLUMNS.values())} |", "|---|" + "---|" * len(_COLUMNS)]
    for outcome in sorted(outcomes, key=lambda one: -one.deciding):
        cells = [f"{outcome.figures[name]:.3f}" if name in outcome.figures else "" for name in _COLUMNS]
        rows.append(f"| {outcome.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Whether teaching helped, in one sentence; empty where there is no student without a teacher."""
    alone = next((one for one in outcomes if one.name == ALONE), None)
    taught = [one for one in outcomes if one.name != ALONE]
    if alone is None or not taught:
        return ""
    best = max(taught, key=lambda one: one.deciding)
    word = "better" if best.deciding > alone.deciding else "not better"
    return (
        f"The best taught student ({best.name}) is {word} than the same student without a teacher: mean PQ over types "
        f"{best.deciding:.3f} against {alone.deciding:.3f} on the validation images."
    )
