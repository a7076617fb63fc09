"""Choosing tiles on arrays: the right design wins, folds keep slides apart, and a rare type is found, not met."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from cellmill_schemas.ontology import get_ontology
from cellmill_training.selecting.choosing import CandidateSlide, Selection, choose_tiles, scalings_of
from cellmill_training.selecting.classifiers import Design, LabelledTiles, TypeClassifier, folds_of, learn_type
from cellmill_training.selecting.config import SelectionConfig
from cellmill_training.selecting.seeds import Rarity, rows_to_learn_from

SETS = ("net:mean", "net:extremes")
SMALL = SelectionConfig(
    tiles_per_cohort=24, clusters=10, members=3, folds=2, inner_folds=2, iterations=40, hidden=((16,), (16, 8))
)
RARITY = 0.04


def tissue(seed: int, num_tiles: int, *, rarity: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of tiles, and which hold the rare type: it shows in `extremes`, under a stain of the slide's own."""
    rng = np.random.default_rng(seed)
    holds = rng.random(num_tiles) < rarity
    stain = rng.normal(0, 6, 6)
    mean = stain + rng.normal(0, 1, (num_tiles, 6))
    extremes = stain + rng.normal(0, 1, (num_tiles, 6))
    extremes[holds, :3] += 4.0
    return {SETS[0]: mean.astype(np.float32), SETS[1]: extremes.astype(np.float32)}, holds


def labelled(*, num_slides: int = 6, rarity: float = 0.25, first: int = 100) -> LabelledTiles:
    parts = []
    for seed in range(first, first + num_slides):
        features, holds = tissue(seed, 30, rarity=rarity)
        names = (f"labelled-{seed}",) * 30
        parts.append(LabelledTiles(names, ("a",) * 30, features, {"rare": holds.astype(np.int8)}))
    return LabelledTiles.joined(parts)


def candidates(
    num_slides: int = 5, *, cohorts: Sequence[str] = ("a",), first: int = 0
) -> tuple[list[CandidateSlide], dict[str, np.ndarray]]:
    slides, truth = [], {}
    for seed in range(first, first + num_slides):
        features, holds = tissue(seed, 150, rarity=RARITY)
        truth[f"s{seed}"] = holds
        cohort = cohorts[seed % len(cohorts)]
        slides.append(CandidateSlide(f"s{seed}", cohort, partial(features.__getitem__), np.zeros(150, np.bool_)))
    return slides, truth


@pytest.fixture(scope="module")
def chosen() -> tuple[Selection, dict[str, np.ndarray]]:
    slides, truth = candidates()
    return choose_tiles(slides, labelled(), SMALL, feature_sets=SETS, rare=["rare"]), truth


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_a_rare_type_is_chosen_several_times_more_often_than_at_random(seed: int) -> None:
    slides, truth = candidates(first=1000 * seed)
    known = labelled(first=1000 * seed + 500)
    selection = choose_tiles(slides, known, replace(SMALL, seed=seed), feature_sets=SETS, rare=["rare"])
    assert len(selection.tiles) == SMALL.tiles_per_cohort
    assert len({(tile.slide_id, tile.row) for tile in selection.tiles}) == len(selection.tiles)
    found = np.mean([truth[tile.slide_id][tile.row] for tile in selection.tiles])
    at_random = np.concatenate(list(truth.values())).mean()  # what random choice gives in the mean
    assert 0 < at_random < 0.08
    assert found > 4 * at_random


def test_the_design_that_sees_the_type_through_the_stain_is_chosen(
    chosen: tuple[Selection, dict[str, np.ndarray]],
) -> None:
    (classifier,) = chosen[0].classifiers
    assert len(classifier.accuracies) == 12
    assert (classifier.design.feature_set, classifier.design.scaler) == (SETS[1], "slide")
    assert classifier.accuracies[classifier.design] == max(classifier.accuracies.values()) > 0.9
    assert classifier.accuracies[Design(1, SETS[0], "slide")] < 0.65
    assert classifier.nested_accuracy > 0.85
    assert classifier.folds_by == "slide"


def test_every_tile_says_why_it_was_chosen(chosen: tuple[Selection, dict[str, np.ndarray]]) -> None:
    for tile in chosen[0].tiles:
        assert any(reason.startswith(tile.drawn_for) for reason in tile.reasons)
        (score,) = tile.scores
        assert 0 <= score.probability <= 1
        assert 0 <= score.bald <= score.entropy + 1e-9 <= np.log(2) + 1e-8
        assert 0.5 <= tile.slide_weight <= 2.0
        if tile.drawn_for == "uncertain":
            assert score.probability > SMALL.min_probability
    assert {tile.drawn_for for tile in chosen[0].tiles} >= {"rare", "diversity"}


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_slides() -> None:
    slides, _ = candidates(3)
    config = SelectionConfig(tiles_per_cohort=10, clusters=5, seed=4)
    first, again = (
        choose_tiles(order, None, config, feature_sets=SETS, rare=[]).tiles for order in (slides, slides[::-1])
    )
    assert first == again
    other = SelectionConfig(tiles_per_cohort=10, clusters=5, seed=5)
    assert choose_tiles(slides, None, other, feature_sets=SETS, rare=[]).tiles != first


def test_every_cohort_gets_its_tiles() -> None:
    slides, _ = candidates(4, cohorts=("colon", "lung"))
    selection = choose_tiles(
        slides, None, SelectionConfig(tiles_per_cohort=7, clusters=5), feature_sets=SETS, rare=["rare"]
    )
    cohort_of = {slide.slide_id: slide.cohort for slide in slides}
    assert [sum(cohort_of[tile.slide_id] == name for tile in selection.tiles) for name in ("colon", "lung")] == [7, 7]
    assert selection.without_classifier == {"rare": "no tile is labelled"}


def test_a_type_of_which_too_little_is_known_gets_a_reason_and_no_classifier() -> None:
    tiles = labelled(num_slides=1, rarity=0.1)
    tiles.present["rare"][:] = 0
    tiles.present["rare"][:2] = 1
    slides, _ = candidates(1)
    learned = learn_type(tiles, "rare", scalings_of(slides, tiles, SETS), SMALL)
    assert isinstance(learned, str)
    assert "2 labelled tiles hold rare" in learned


def test_tiles_of_one_slide_stay_in_one_fold() -> None:
    rng = np.random.default_rng(0)
    slides = np.repeat([f"s{number}" for number in range(8)], 10)
    cohorts = np.repeat(["a", "b"], 40)
    present = (rng.random(80) < 0.4).astype(np.int64)
    folds, by = folds_of(present, slides, cohorts, 4, seed=0)
    assert by == "slide"
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(80))
    for train, test in folds:
        assert not set(slides[train]) & set(slides[test])
        assert set(cohorts[test]) == {"a", "b"}


def test_where_one_slide_holds_the_type_tiles_are_divided_and_the_report_says_so() -> None:
    slides = np.repeat(["only", "others"], 20)
    present = np.zeros(40, np.int64)
    present[:12] = 1
    folds, by = folds_of(present, slides, np.repeat("a", 40), 3, seed=0)
    assert by == "tile"
    assert all(present[train].any() and present[test].any() for train, test in folds)


def test_types_are_rare_by_their_share_of_tiles_that_are_known() -> None:
    ontology = get_ontology("monusac4")  # epithelial, lymphocyte, macrophage, neutrophil
    rarity = Rarity.of(ontology)
    rarity.count(np.array([[1, 1, 1, 0], [1, 0, -1, 0], [0, 0, -1, 0]], np.int8))
    rarity.count(np.array([[0, 0, -1, 0], [1, 0, -1, 0]], np.int8))
    assert rarity.rare_types(ontology, rare_below=0.2) == ("lymphocyte",)


def test_a_slide_gives_few_tiles_to_learn_from_and_all_that_hold_a_rare_type() -> None:
    present = np.zeros((500, 2), np.int8)
    present[:7, 0] = 1
    present[100:400, 1] = 1
    present[400:, 1] = -1
    rows = rows_to_learn_from(present, seed=0)
    assert set(range(7)) <= set(rows.tolist())
    assert len(rows) <= 7 + 20 + 20 + 20
    assert len(rows) == len(set(rows.tolist()))


def test_a_classifier_repeats_to_the_last_bit() -> None:
    tiles = labelled(num_slides=3)
    slides, _ = candidates(1)
    scalings = scalings_of(slides, tiles, SETS)
    config = SelectionConfig(members=2, folds=2, inner_folds=2, iterations=10, hidden=((8,), (8, 4)))
    first, again = (learn_type(tiles, "rare", scalings, config) for _ in range(2))
    assert isinstance(first, TypeClassifier)
    assert isinstance(again, TypeClassifier)
    assert first.accuracies == again.accuracies
    inputs = tiles.scaled(first.design.feature_set, first.design.scaler, scalings[first.design.feature_set])
    assert np.array_equal(first.ensemble.probabilities(inputs), again.ensemble.probabilities(inputs))
