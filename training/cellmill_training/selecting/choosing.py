"""From candidate tiles to those that are labelled: the whole method, on arrays.

In: the slides' features, what is known of some tiles, the figures of the method. Out: a `Selection`. Slides are taken
one at a time, so memory is that of one slide and of the labelled tiles. The outcome depends on the slides' ids, their
features and the seed, not on the order of the slides.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill_training.selecting.classifiers import LabelledTiles, TypeClassifier, learn_type
from cellmill_training.selecting.config import SelectionConfig
from cellmill_training.selecting.drawing import draw, shares_of, slide_weights
from cellmill_training.selecting.pools import SlidePools, pools_of
from cellmill_training.selecting.scaling import Moments, ScalerKind, Scaling
from cellmill_training.selecting.uncertainty import Uncertainty, uncertainty_of

__all__ = ["DIVERSITY", "CandidateSlide", "ChosenTile", "Selection", "TileScore", "choose_tiles", "scalings_of"]

DIVERSITY = "diversity"

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CandidateSlide:
    """The tiles of a slide that may be chosen."""

    slide_id: str
    cohort: str
    load: Callable[[str], Features]
    """Features (n, D) by feature set."""
    taken: npt.NDArray[np.bool_]
    """(n,) tiles that were labelled before."""


@dataclass(frozen=True)
class TileScore:
    """What an ensemble says of one tile."""

    cell_type: str
    probability: float
    entropy: float
    variation_ratio: float
    bald: float


@dataclass(frozen=True)
class ChosenTile:
    """One tile to label."""

    slide_id: str
    row: int
    """Of its slide's tiles."""
    drawn_for: str
    """`rare`, `uncertain` or `diversity`: whose share it takes."""
    reasons: tuple[str, ...]
    """All pools that proposed it: `diversity`, `rare:<type>`, `uncertain:<type>`."""
    cluster: int
    slide_weight: float
    """Of its slide in the draw."""
    scores: tuple[TileScore, ...]


@dataclass(frozen=True)
class Selection:
    """What was chosen, and by what."""

    tiles: tuple[ChosenTile, ...]
    """By slide, then row."""
    classifiers: tuple[TypeClassifier, ...]
    without_classifier: Mapping[str, str]
    """Rare types that nothing was learned of, and why."""
    proposed: Mapping[str, int]
    """Tiles in each pool, over all slides."""


@dataclass(frozen=True)
class _Judged:
    """A slide with its pools and scores."""

    slide: CandidateSlide
    pools: SlidePools
    scores: Mapping[str, Uncertainty]

    def proposals(self) -> dict[int, list[str]]:
        """Why each proposed row is proposed."""
        reasons: dict[int, list[str]] = {}
        for row in self.pools.diverse.tolist():
            reasons.setdefault(row, []).append(DIVERSITY)
        for method, by_type in (("rare", self.pools.rare), ("uncertain", self.pools.uncertain)):
            for name, rows in by_type.items():
                for row in rows.tolist():
                    reasons.setdefault(row, []).append(f"{method}:{name}")
        return reasons


def choose_tiles(
    slides: Sequence[CandidateSlide],
    labelled: LabelledTiles | None,
    config: SelectionConfig,
    *,
    feature_sets: Sequence[str],
    rare: Sequence[str],
) -> Selection:
    """Choose.

    Args:
        slides: at least one, each with at least one tile.
        labelled: tiles of which something is known; without, all tiles are chosen for diversity.
        config: figures of the method.
        feature_sets: two names; the first is clustered.
        rare: types to look for.
    """
    slides = sorted(slides, key=lambda slide: slide.slide_id)
    scalings = scalings_of(slides, labelled, feature_sets)
    classifiers: list[TypeClassifier] = []
    without: dict[str, str] = {}
    for name in rare:
        learned = "no tile is labelled" if labelled is None else learn_type(labelled, name, scalings, config)
        if isinstance(learned, str):
            without[name] = learned
        else:
            classifiers.append(learned)
    judged = [_judge(slide, classifiers, scalings, config, clustered=feature_sets[0]) for slide in slides]
    chosen: list[ChosenTile] = []
    for cohort in sorted({slide.cohort for slide in slides}):
        chosen += _drawn([one for one in judged if one.slide.cohort == cohort], config, cohort)
    proposed: dict[str, int] = {}
    for one in judged:
        for reasons in one.proposals().values():
            for reason in reasons:
                proposed[reason] = proposed.get(reason, 0) + 1
    chosen.sort(key=lambda tile: (tile.slide_id, tile.row))
    return Selection(tuple(chosen), tuple(classifiers), without, proposed)


def scalings_of(
    slides: Sequence[CandidateSlide], labelled: LabelledTiles | None, feature_sets: Sequence[str]
) -> dict[str, Scaling]:
    """Scaling by feature set. Labelled tiles of slides that are no candidates are groups of their own."""
    cohort_of = {slide.slide_id: slide.cohort for slide in slides}
    others: dict[str, list[int]] = {}
    if labelled is not None:
        for row, (slide, cohort) in enumerate(zip(labelled.slides, labelled.cohorts, strict=True)):
            if slide in cohort_of and slide not in others:
                continue
            cohort_of[slide] = cohort
            others.setdefault(slide, []).append(row)
    found: dict[str, Scaling] = {}
    for name in feature_sets:
        moments = {slide.slide_id: Moments.of(slide.load(name)) for slide in slides}
        if labelled is not None:
            moments |= {slide: Moments.of(labelled.features[name][rows]) for slide, rows in others.items()}
        found[name] = Scaling.of(moments, cohort_of)
    return found


def _judge(
    slide: CandidateSlide,
    classifiers: Sequence[TypeClassifier],
    scalings: Mapping[str, Scaling],
    config: SelectionConfig,
    *,
    clustered: str,
) -> _Judged:
    def scaled(name: str, kind: ScalerKind) -> Features:
        return scalings[name].scaled(slide.load(name), slide=slide.slide_id, kind=kind)

    scores = {
        one.cell_type: uncertainty_of(one.ensemble.probabilities(scaled(one.design.feature_set, one.design.scaler)))
        for one in classifiers
    }
    pools = pools_of(
        scaled(clustered, "slide"), scores, config, seed=_seed(config.seed, slide.slide_id), taken=slide.taken
    )
    return _Judged(slide, pools, scores)


def _drawn(judged: Sequence[_Judged], config: SelectionConfig, cohort: str) -> list[ChosenTile]:
    """The tiles of one cohort: rare, then uncertain ones, and for diversity what is left of the number."""
    rng = np.random.default_rng(_seed(config.seed, f"draw\n{cohort}"))
    reasons = [one.proposals() for one in judged]
    rare, uncertain = shares_of(
        config.tiles_per_cohort, rare_share=config.rare_share, uncertain_share=config.uncertain_share
    )
    left = config.tiles_per_cohort
    chosen: dict[tuple[int, int], ChosenTile] = {}
    for method, number in (("rare", rare), ("uncertain", uncertain), (DIVERSITY, left)):
        free = [
            (place, row)
            for place, found in enumerate(reasons)
            for row, why in sorted(found.items())
            if (place, row) not in chosen and any(reason.startswith(method) for reason in why)
        ]
        slides = [judged[place].slide.slide_id for place, _ in free]
        weights = slide_weights(slides, weight_range=config.weight_range)
        for index in draw(slides, weights, min(number, left), rng):
            place, row = free[index]
            chosen[place, row] = _tile(judged[place], row, method, reasons[place][row], weights[slides[index]])
        left = config.tiles_per_cohort - len(chosen)
    return list(chosen.values())


def _tile(judged: _Judged, row: int, drawn_for: str, reasons: Sequence[str], weight: float) -> ChosenTile:
    scores = tuple(
        TileScore(
            name,
            float(found.probability[row]),
            float(found.entropy[row]),
            float(found.variation_ratio[row]),
            float(found.bald[row]),
        )
        for name, found in judged.scores.items()
    )
    return ChosenTile(
        slide_id=judged.slide.slide_id,
        row=row,
        drawn_for=drawn_for,
        reasons=tuple(reasons),
        cluster=int(judged.pools.clusters[row]),
        slide_weight=weight,
        scores=scores,
    )


def _seed(seed: int, name: str) -> int:
    """32 bits that follow from the seed and a name, so that a slide's clusters do not depend on other slides."""
    return int.from_bytes(hashlib.sha256(f"cellmill-select:{seed}:{name}".encode()).digest()[:4], "big")
