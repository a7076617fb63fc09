"""Splits by group: whole groups, stated shares, the same every time."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill_training.datasets.splitting import SplitPlan, split_by_group

SHARES = (0.7, 0.2, 0.1)
SPLITS = ("train", "validation", "test")

group_sizes = st.dictionaries(st.text(max_size=5), st.integers(1, 30), min_size=1, max_size=40)


def _items(sizes: dict[str, int]) -> list[str]:
    return [group for group, size in sizes.items() for _ in range(size)]


@given(group_sizes, st.integers(0, 5), st.data())
def test_shares_are_met_to_within_one_group(sizes: dict[str, int], seed: int, data: st.DataObject) -> None:
    strata = {group: data.draw(st.sampled_from("xyz")) for group in sizes}
    splits = split_by_group(_items(sizes), seed=seed, strata=strata)
    assert splits.keys() == sizes.keys()
    items = Counter(splits[group] for group in _items(sizes))
    if len(set(splits.values())) < 3 or min(Counter(splits.values()).values()) == 1:
        return  # a split that would have stayed empty was given a group
    for split, share in zip(SPLITS, SHARES, strict=True):
        assert abs(items[split] - share * sum(sizes.values())) < max(sizes.values()) + 1e-6


@given(group_sizes, st.randoms())
def test_the_order_of_items_does_not_matter(sizes: dict[str, int], random: object) -> None:
    items = _items(sizes)
    shuffled = list(items)
    random.shuffle(shuffled)  # pyright: ignore[reportAttributeAccessIssue]
    assert split_by_group(items) == split_by_group(shuffled)


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_single_images_are_split_exactly(count: int) -> None:
    counts = Counter(split_by_group(f"image{k}" for k in range(count)).values())
    assert [counts[split] for split in SPLITS] == [round(share * count) for share in SHARES]


def test_each_stratum_gets_its_share() -> None:
    strata = {
        f"{tissue}{k}": tissue for tissue, size in {"breast": 60, "liver": 30, "skin": 20}.items() for k in range(size)
    }
    splits = split_by_group(strata, strata=strata)
    for tissue, size in Counter(strata.values()).items():
        counts = Counter(splits[group] for group in strata if strata[group] == tissue)
        for split, share in zip(SPLITS, SHARES, strict=True):
            assert abs(counts[split] - share * size) <= 2


def test_three_groups_fill_three_splits() -> None:
    assert sorted(split_by_group(["a"] * 90 + ["b"] * 5 + ["c"] * 5).values()) == sorted(SPLITS)
    assert set(split_by_group(["a", "b"]).values()) <= set(SPLITS)
    assert split_by_group([]) == {}


def test_another_seed_is_another_split() -> None:
    groups = [f"g{k}" for k in range(50)]
    assert split_by_group(groups) == split_by_group(groups, seed=0)
    assert split_by_group(groups) != split_by_group(groups, seed=1)


def test_a_share_of_nothing_stays_empty() -> None:
    splits = split_by_group([f"g{k}" for k in range(20)], fractions=(0.5, 0.5, 0.0))
    assert Counter(splits.values()) == {"train": 10, "validation": 10}


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.1), (1.1, -0.1, 0.0)])
def test_shares_that_are_none_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_group(["a"], fractions=fractions)


def test_a_group_in_two_folds_of_different_splits_is_refused() -> None:
    rows = [{"split_group": "g", "fold": fold, "tissue": ""} for fold in ("1", "2")]
    with pytest.raises(ValueError, match="'g' lies in folds that go to train and test"):
        SplitPlan(folds={"1": "train", "2": "test"}).apply(rows)
    with pytest.raises(ValueError, match="must go to train, validation, test, got 'exam'"):
        SplitPlan(folds={"1": "exam"})  # pyright: ignore[reportArgumentType]
