"""How far annotators agree: on where nuclei are, and on their types.

Detection: F1 of one annotator's nuclei against another's, the same both ways round. Types: Cohen's kappa of each pair
over nuclei both have and both typed (Cohen, Educational and Psychological Measurement 20, 1960), Fleiss' kappa over
nuclei that all annotators have and typed (Fleiss, Psychological Bulletin 76, 1971). A kappa is NaN where chance alone
would agree always: one class, or no nucleus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology
from cellmill_training.labelling.consensus import Annotation, ConsensusNucleus, match_annotators

__all__ = ["PairAgreement", "all_pairs", "cohen_kappa", "fleiss_kappa", "pair_agreement", "ratings_of_all"]


@dataclass(frozen=True)
class PairAgreement:
    """What two annotators have in common; adds up over images."""

    num_first: int
    num_second: int
    num_matched: int
    confusion: npt.NDArray[np.int64]
    """(C, C): types given by the first and by the second, over matched nuclei that both typed."""

    def __add__(self, other: "PairAgreement") -> "PairAgreement":
        return PairAgreement(
            self.num_first + other.num_first,
            self.num_second + other.num_second,
            self.num_matched + other.num_matched,
            self.confusion + other.confusion,
        )

    @property
    def detection_f1(self) -> float:
        """2 matched / (first + second); NaN where neither has a nucleus."""
        whole = self.num_first + self.num_second
        return 2.0 * self.num_matched / whole if whole else float("nan")

    @property
    def kappa(self) -> float:
        """Cohen's kappa of the types."""
        return cohen_kappa(self.confusion)


def pair_agreement(first: Annotation, second: Annotation, ontology: Ontology) -> PairAgreement:
    """Two annotators on one image."""
    matched = match_annotators(first, second)
    confusion = np.zeros((len(ontology), len(ontology)), np.int64)
    for a, b, _ in matched:
        if first.cell_types[a] and second.cell_types[b]:
            confusion[ontology.index(first.cell_types[a]), ontology.index(second.cell_types[b])] += 1
    return PairAgreement(len(first.points_px), len(second.points_px), len(matched), confusion)


def ratings_of_all(
    annotations: Sequence[Annotation], nuclei: Sequence[ConsensusNucleus], ontology: Ontology
) -> npt.NDArray[np.int64]:
    """How many annotators gave each type (n, C), over nuclei that every annotator has and typed."""
    by_name = {one.annotator: one for one in annotations}
    rows: list[npt.NDArray[np.int64]] = []
    for nucleus in nuclei:
        types = [by_name[who].cell_types[number] for who, number in nucleus.members]
        if len(types) == len(annotations) and all(types):
            rows.append(np.bincount([ontology.index(name) for name in types], minlength=len(ontology)))
    return np.array(rows, np.int64).reshape(-1, len(ontology))


def cohen_kappa(confusion: npt.NDArray[np.int64]) -> float:
    """(observed - chance) / (1 - chance) of a confusion matrix (C, C)."""
    total = float(confusion.sum())
    if total == 0:
        return float("nan")
    observed = float(np.trace(confusion)) / total
    chance = float(confusion.sum(axis=0) @ confusion.sum(axis=1)) / total**2
    return (observed - chance) / (1.0 - chance) if chance < 1.0 else float("nan")


def fleiss_kappa(ratings: npt.NDArray[np.int64]) -> float:
    """Fleiss' kappa of counts (subjects, classes); every subject has the same number of ratings, at least two.

    Raises:
        ValueError: when subjects differ in their number of ratings.
    """
    if not len(ratings):
        return float("nan")
    each = ratings.sum(axis=1)
    num_raters = int(each[0])
    if (each != num_raters).any() or num_raters < 2:
        raise ValueError(f"Fleiss' kappa needs one number of ratings a subject, two or more, got {np.unique(each)}.")
    agreeing = (ratings * (ratings - 1)).sum(axis=1) / (num_raters * (num_raters - 1))
    shares = ratings.sum(axis=0) / ratings.sum()
    chance = float((shares**2).sum())
    return (float(agreeing.mean()) - chance) / (1.0 - chance) if chance < 1.0 else float("nan")


def all_pairs(annotations: Sequence[Annotation], ontology: Ontology) -> dict[tuple[str, str], PairAgreement]:
    """Agreement of every pair of annotators, names in alphabetical order."""
    ordered = sorted(annotations, key=lambda one: one.annotator)
    return {(a.annotator, b.annotator): pair_agreement(a, b, ontology) for a, b in combinations(ordered, 2)}
