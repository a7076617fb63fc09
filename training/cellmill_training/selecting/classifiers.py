"""Small networks that say from a tile's features whether it holds a rare type; the best design is chosen per type.

In: labelled tiles (`LabelledTiles`), one row a tile. Out: a `TypeClassifier`: the design with the best cross-validated
balanced accuracy of 2 depths x 2 feature sets x 3 scalers, refitted on all labelled tiles as an ensemble.

A network learns from as many tiles without the type as with it, drawn anew for each; the tiles it is judged on are all
of a fold. Folds are stratified by cohort and presence and keep the tiles of a slide together, as long as enough slides
hold the type. Picking the best of twelve flatters it: so nested inner folds pick a design on each training part alone,
and the accuracy of those picks on the outer folds is reported beside it.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from cellmill_training.selecting.config import SelectionConfig
from cellmill_training.selecting.scaling import SCALERS, ScalerKind, Scaling

__all__ = ["Design", "Ensemble", "LabelledTiles", "TypeClassifier", "designs", "folds_of", "learn_type"]

Matrix = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

_MAX_A_SIDE = 1000
"""Tiles with the type, and as many without it, that one network learns from at the most."""
_MAX_JUDGED = 4000
"""Tiles with either answer that are learned from and judged at all, at the most."""
_REGULARISATION = 1.0
"""scikit-learn's alpha, which it divides by the number of tiles: a few dozen tiles and hundreds of features need it."""


@dataclass(frozen=True, order=True)
class Design:
    """One of the twelve."""

    depth: int
    """Hidden layers: 1 or 2."""
    feature_set: str
    scaler: ScalerKind


@dataclass(frozen=True)
class LabelledTiles:
    """Tiles of which something is known; row k of each field is one tile."""

    slides: tuple[str, ...]
    cohorts: tuple[str, ...]
    features: Mapping[str, Matrix]
    """By feature set: (n, D), not scaled."""
    present: Mapping[str, npt.NDArray[np.int8]]
    """By type: (n,) 1 where the tile holds it, 0 where it does not, -1 where nobody knows."""

    def __len__(self) -> int:
        return len(self.slides)

    def known(self, cell_type: str) -> Rows:
        """Rows of which it is known whether they hold the type."""
        return np.flatnonzero(self.present[cell_type] >= 0)

    def scaled(self, feature_set: str, kind: ScalerKind, scaling: Scaling) -> Matrix:
        """Features (n, D) as a design takes them."""
        features = self.features[feature_set]
        result = np.empty_like(features)
        slides = np.array(self.slides)
        for slide in dict.fromkeys(self.slides):
            rows = slides == slide
            result[rows] = scaling.scaled(features[rows], slide=slide, kind=kind)
        return result

    @staticmethod
    def joined(parts: "Sequence[LabelledTiles]") -> "LabelledTiles":
        """Tiles of several sources, of which there is at least one, one after the other."""
        first = parts[0]
        return LabelledTiles(
            tuple(slide for part in parts for slide in part.slides),
            tuple(cohort for part in parts for cohort in part.cohorts),
            {name: np.concatenate([part.features[name] for part in parts]) for name in first.features},
            {name: np.concatenate([part.present[name] for part in parts]) for name in first.present},
        )


@dataclass(frozen=True)
class Ensemble:
    """Networks of one design that differ in what they drew and where they began."""

    members: tuple[MLPClassifier, ...]

    def probabilities(self, inputs: Matrix) -> npt.NDArray[np.float64]:
        """Each member's probability of presence (M, n) for scaled features (n, D)."""
        return np.stack([_probability(member, inputs) for member in self.members])


@dataclass(frozen=True)
class TypeClassifier:
    """What was learned of one rare type."""

    cell_type: str
    design: Design
    ensemble: Ensemble
    accuracies: Mapping[Design, float]
    """Cross-validated balanced accuracy of every design."""
    nested_accuracy: float
    """Balanced accuracy, on outer folds, of designs that inner folds picked: what to expect of `design`."""
    num_present: int
    num_absent: int
    folds_by: str
    """`slide`, or `tile` where too few slides hold the type; accuracies by tile are too good."""


def designs(feature_sets: Sequence[str]) -> tuple[Design, ...]:
    """All designs over two feature sets: twelve."""
    return tuple(Design(depth, name, scaler) for depth, name, scaler in product((1, 2), feature_sets, SCALERS))


def learn_type(
    tiles: LabelledTiles, cell_type: str, scalings: Mapping[str, Scaling], config: SelectionConfig
) -> TypeClassifier | str:
    """Choose a design and fit its ensemble; a sentence that says why not, where too little is known.

    Args:
        tiles: labelled tiles.
        cell_type: which type.
        scalings: by feature set.
        config: figures of the method.
    """
    rows = _at_most(tiles.known(cell_type), tiles.present[cell_type], seed=config.seed)
    present = tiles.present[cell_type][rows].astype(np.int64)
    num_present, num_absent = int(present.sum()), int((1 - present).sum())
    if min(num_present, num_absent) < config.min_positives:
        return (
            f"{num_present} labelled tiles hold {cell_type} and {num_absent} do not; a classifier takes at least "
            f"{config.min_positives} of each"
        )
    slides, cohorts = (np.array(names)[rows] for names in (tiles.slides, tiles.cohorts))
    problem = _Problem(
        inputs={(name, kind): tiles.scaled(name, kind, scalings[name])[rows] for name in scalings for kind in SCALERS},
        present=present,
        slides=slides,
        cohorts=cohorts,
        config=config,
    )
    candidates = designs(tuple(scalings))
    outer, folds_by = folds_of(present, slides, cohorts, config.folds, seed=config.seed)
    accuracies = {design: problem.accuracy(design, outer) for design in candidates}
    best = max(candidates, key=lambda design: accuracies[design])
    guesses = np.zeros(len(rows), np.int64)
    for train, test in outer:
        part = problem.part(train)
        inner, _ = folds_of(part.present, part.slides, part.cohorts, config.inner_folds, seed=config.seed)
        picked = max(candidates, key=lambda design: part.accuracy(design, inner))
        guesses[test] = problem.guesses(picked, train, test)
    inputs = problem.inputs[best.feature_set, best.scaler]
    members = tuple(
        _fitted(inputs, present, best, config, seed=[config.seed, number], resample=True)
        for number in range(config.members)
    )
    return TypeClassifier(
        cell_type=cell_type,
        design=best,
        ensemble=Ensemble(members),
        accuracies=accuracies,
        nested_accuracy=float(balanced_accuracy_score(present, guesses)),
        num_present=num_present,
        num_absent=num_absent,
        folds_by=folds_by,
    )


def _at_most(rows: Rows, present: npt.NDArray[np.int8], *, seed: int) -> Rows:
    """Of the rows with either answer at most `_MAX_JUDGED`, drawn with the seed."""
    rng = np.random.default_rng(seed)
    sides = [rows[present[rows] == answer] for answer in (0, 1)]
    return np.sort(np.concatenate([rng.choice(side, min(len(side), _MAX_JUDGED), replace=False) for side in sides]))


@dataclass(frozen=True)
class _Problem:
    """Tiles of which one type's presence is known, scaled in every way."""

    inputs: Mapping[tuple[str, ScalerKind], Matrix]
    present: npt.NDArray[np.int64]
    slides: npt.NDArray[np.str_]
    cohorts: npt.NDArray[np.str_]
    config: SelectionConfig

    def part(self, rows: Rows) -> "_Problem":
        inputs = {key: values[rows] for key, values in self.inputs.items()}
        return replace(
            self, inputs=inputs, present=self.present[rows], slides=self.slides[rows], cohorts=self.cohorts[rows]
        )

    def guesses(self, design: Design, train: Rows, test: Rows) -> npt.NDArray[np.int64]:
        inputs = self.inputs[design.feature_set, design.scaler]
        answers = np.unique(self.present[train])
        if len(answers) < 2:
            return np.full(len(test), answers[0], np.int64)  # so few hold the type that none is left to learn from
        model = _fitted(inputs[train], self.present[train], design, self.config, seed=[self.config.seed])
        return (_probability(model, inputs[test]) >= 0.5).astype(np.int64)

    def accuracy(self, design: Design, folds: Sequence[tuple[Rows, Rows]]) -> float:
        """Balanced accuracy of what each tile is called by a network that did not see its fold."""
        found = np.zeros(len(self.present), np.int64)
        for train, test in folds:
            found[test] = self.guesses(design, train, test)
        return float(balanced_accuracy_score(self.present, found))


def folds_of(
    present: npt.NDArray[np.int64],
    slides: npt.NDArray[np.str_],
    cohorts: npt.NDArray[np.str_],
    num_folds: int,
    *,
    seed: int,
) -> tuple[list[tuple[Rows, Rows]], str]:
    """(train, test) rows of each fold, and whether slides or only tiles are kept apart.

    Folds hold the same mix of cohorts and presence. A slide lies in one fold, unless that leaves a training part
    without one of the two answers: then tiles are divided one by one. There are fewer folds where there is less.
    """
    fewest = int(min(present.sum(), (1 - present).sum()))
    num_folds = max(2, min(num_folds, fewest, len(np.unique(slides)) if len(np.unique(slides)) > 1 else fewest))
    strata = np.char.add(np.char.add(cohorts.astype(np.str_), "\n"), present.astype(np.str_))
    apart = list(_split(StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed), strata, slides))
    if len(np.unique(slides)) > 1 and all(len(np.unique(present[train])) == 2 for train, _ in apart):
        return apart, "slide"
    by_tile = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    return list(_split(by_tile, present.astype(np.str_), slides)), "tile"


def _split(
    splitter: StratifiedGroupKFold | StratifiedKFold, strata: npt.NDArray[np.str_], slides: npt.NDArray[np.str_]
) -> Iterator[tuple[Rows, Rows]]:
    with warnings.catch_warnings():
        # A cohort with fewer tiles of a kind than folds: some folds have none, as they must.
        warnings.simplefilter("ignore", UserWarning)
        try:
            yield from splitter.split(np.zeros((len(strata), 1)), strata, slides)
        except ValueError:
            return  # no stratum has a tile for each fold, or there are fewer slides than folds


def _probability(model: MLPClassifier, inputs: Matrix) -> npt.NDArray[np.float64]:
    """Of presence, (n,)."""
    with threadpool_limits(1):
        return np.asarray(model.predict_proba(inputs), np.float64)[:, 1]


def _fitted(
    inputs: Matrix,
    present: npt.NDArray[np.int64],
    design: Design,
    config: SelectionConfig,
    *,
    seed: list[int],
    resample: bool = False,
) -> MLPClassifier:
    """A network trained on as many tiles with as without; `resample` draws both with replacement."""
    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(present == answer) for answer in (0, 1)]
    number = min(*(len(side) for side in sides), _MAX_A_SIDE)
    rows = np.concatenate([rng.choice(side, number, replace=resample) for side in sides])
    model = MLPClassifier(
        hidden_layer_sizes=config.hidden[design.depth - 1],
        solver="lbfgs",  # so few tiles make so few batches that adam, in any fixed number of passes, is not done
        alpha=_REGULARISATION,
        max_iter=config.iterations,
        random_state=int(rng.integers(2**31)),
    )
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is the budget
        return model.fit(inputs[rows], present[rows])
