"""How unsure an ensemble is, what that proposes, and how the final draw weighs slides: answers worked out by hand."""

import math

import numpy as np
import pytest

from cellmill_training.selecting.config import SelectionConfig
from cellmill_training.selecting.drawing import draw, shares_of, slide_weights
from cellmill_training.selecting.pools import clustered, num_uncertain_clusters, pools_of
from cellmill_training.selecting.scaling import Moments, Scaling
from cellmill_training.selecting.uncertainty import Uncertainty, binary_entropy, uncertain_rows, uncertainty_of


def scores(probability: list[float], bald: list[float]) -> Uncertainty:
    zeros = np.zeros(len(bald))
    return Uncertainty(np.array(probability), zeros, zeros, np.array(bald))


def test_scores_of_five_tiles_are_those_worked_out_by_hand() -> None:
    # Columns are tiles: sure, unanimous, opposed, doubtful, two against one.
    members = np.array([[1.0, 0.8, 1.0, 0.5, 0.6], [1.0, 0.8, 0.0, 0.5, 0.7], [1.0, 0.8, 0.5, 0.5, 0.2]])
    found = uncertainty_of(members)
    assert found.probability == pytest.approx([1.0, 0.8, 0.5, 0.5, 0.5])
    # H(0.8) = -0.8 ln 0.8 - 0.2 ln 0.2 = 0.178515 + 0.321888.
    assert found.entropy == pytest.approx([0.0, 0.500402, math.log(2), math.log(2), math.log(2)], abs=1e-6)
    assert found.variation_ratio == pytest.approx([0.0, 0.0, 1 / 3, 0.0, 1 / 3])
    # Opposed: ln 2 less a third of ln 2. Last: ln 2 less the mean of 0.673012, 0.610864 and 0.500402.
    assert found.bald == pytest.approx([0.0, 0.0, math.log(2) * 2 / 3, 0.0, 0.098388], abs=1e-6)


def test_what_all_members_doubt_alike_is_no_disagreement() -> None:
    found = uncertainty_of(np.full((7, 1), 0.37))
    assert found.bald[0] == pytest.approx(0.0, abs=1e-12)
    assert found.entropy[0] == pytest.approx(binary_entropy(np.array([0.37]))[0])


def test_a_tile_is_uncertain_above_both_bounds_of_its_own_slide() -> None:
    bald = [float(value) for value in range(11)]  # their 90th percentile is 9
    assert uncertain_rows(scores([0.5] * 11, bald), min_probability=0.4, bald_percentile=90).tolist() == [10]
    assert uncertain_rows(scores([0.5] * 10 + [0.4], bald), min_probability=0.4, bald_percentile=90).tolist() == []
    assert uncertain_rows(scores([0.5] * 5, [1.0] * 5), min_probability=0.4, bald_percentile=90).tolist() == []


@pytest.mark.parametrize(("num_tiles", "clusters"), [(3, 3), (5, 5), (8, 5), (24, 12), (100, 20)])
def test_uncertain_tiles_make_five_to_twenty_clusters(num_tiles: int, clusters: int) -> None:
    assert num_uncertain_clusters(num_tiles, (5, 20)) == clusters


def test_slides_weigh_as_their_tiles_within_half_and_double() -> None:
    # 24 tiles on 5 slides: 4.8 a slide; 20 / 4.8 and 1 / 4.8 are clipped.
    slides = ["many"] * 20 + ["a", "b", "c", "d"]
    assert slide_weights(slides, weight_range=(0.5, 2.0)) == {"many": 2.0, "a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}
    assert slide_weights(["a", "a", "b"], weight_range=(0.5, 2.0)) == pytest.approx({"a": 4 / 3, "b": 2 / 3})
    assert slide_weights([], weight_range=(0.5, 2.0)) == {}


def test_the_draw_gives_each_slide_its_weight_and_no_tile_twice() -> None:
    slides = ["many"] * 20 + ["few"] * 5
    rng = np.random.default_rng(0)
    drawn = [slides[draw(slides, {"many": 2.0, "few": 0.5}, 1, rng)[0]] for _ in range(2000)]
    assert drawn.count("many") / 2000 == pytest.approx(0.8, abs=0.03)
    rows = draw(slides, {"many": 2.0, "few": 0.5}, 30, rng)
    assert rows == list(range(25))
    assert draw([], {}, 3, rng) == []


def test_tiles_are_shared_among_the_methods_and_none_is_lost() -> None:
    assert shares_of(50, rare_share=1 / 3, uncertain_share=1 / 3) == (17, 17)
    assert shares_of(1, rare_share=0.5, uncertain_share=0.5) == (0, 0)
    assert shares_of(3, rare_share=0.5, uncertain_share=0.5) == (2, 1)


def blobs(*, of_each: int = 12) -> np.ndarray:
    rng = np.random.default_rng(5)
    centres = np.array([[0, 0], [30, 0], [0, 30], [30, 30]])
    return np.concatenate([centre + rng.normal(0, 1, (of_each, 2)) for centre in centres]).astype(np.float32)


def test_one_tile_of_every_kind_of_tissue_is_proposed() -> None:
    found = pools_of(blobs(), {}, SelectionConfig(clusters=4), seed=1)
    assert sorted((found.diverse // 12).tolist()) == [0, 1, 2, 3]
    assert len(set(found.clusters.tolist())) == 4


def test_labelled_tiles_are_not_proposed_again() -> None:
    taken = np.zeros(48, np.bool_)
    taken[:12] = True  # a whole cluster
    taken[47] = True
    probability = np.linspace(0, 1, 48)
    config = SelectionConfig(clusters=4, top_tiles=2)
    found = pools_of(blobs(), {"x": scores(probability.tolist(), [0.0] * 48)}, config, seed=1, taken=taken)
    assert sorted((found.diverse // 12).tolist()) == [1, 2, 3]
    assert found.rare["x"].tolist() == [46, 45]


def test_identical_tiles_make_no_more_clusters_than_there_are() -> None:
    labels, centres = clustered(np.zeros((3, 2), np.float32), 20, seed=0)
    assert labels.tolist() == [0, 0, 0]
    assert len(centres) == 3


def test_moments_add_up_and_a_constant_feature_says_nothing() -> None:
    rng = np.random.default_rng(2)
    features = np.column_stack([rng.normal(3, 2, 50), np.full(50, 7.0)])
    whole, parts = Moments.of(features), Moments.of(features[:20]) + Moments.of(features[20:])
    assert whole.count == parts.count
    assert np.allclose(whole.z_scores(features), parts.z_scores(features), atol=1e-6)
    assert whole.z_scores(features).mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert whole.z_scores(features).std(axis=0) == pytest.approx([1, 0], abs=1e-5)


def test_a_slides_own_stain_is_taken_out_by_its_own_scaler_only() -> None:
    rng = np.random.default_rng(3)
    plain, shifted, few = rng.normal(0, 1, (40, 1)), rng.normal(9, 1, (40, 1)), rng.normal(9, 1, (5, 1))
    moments = {"plain": Moments.of(plain), "shifted": Moments.of(shifted), "few": Moments.of(few)}
    scaling = Scaling.of(moments, {"plain": "x", "shifted": "y", "few": "y"})
    assert abs(scaling.scaled(shifted, slide="shifted", kind="slide").mean()) < 1e-5
    assert scaling.scaled(shifted, slide="shifted", kind="global").mean() > 0.5
    # Too few tiles for a deviation of their own: the cohort's is taken.
    assert np.array_equal(
        scaling.scaled(few, slide="few", kind="slide"), scaling.scaled(few, slide="few", kind="cohort")
    )
