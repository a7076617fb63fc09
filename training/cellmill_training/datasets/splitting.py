"""Which groups train, which validate and which test: by hash, whole groups, in stated shares.

A group is whatever shares pixels, glass or a patient. The outcome depends on the names of the groups, their sizes and
the seed, never on the order in which they come. (`cellmill_training.splits` fixes the splits of the small sets behind
the packaged model by count, as its card states them.)
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

__all__ = ["Split", "SplitPlan", "split_by_group"]

Split = Literal["train", "validation", "test"]

_SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class SplitPlan:
    """How images are split once it is known which there are."""

    fractions: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Shares of train, validation and test, by `split_by_group` with the tissue as stratum."""
    seed: int = 0
    folds: Mapping[str, Split] = field(default_factory=dict[str, Split])
    """Fold -> split: the source's own folds instead of fractions."""

    def __post_init__(self) -> None:
        if len(self.fractions) != len(_SPLITS) or min(self.fractions) < 0 or abs(sum(self.fractions) - 1.0) > 1e-6:
            raise ValueError(
                f"Fractions of train, validation and test must be >= 0 and sum to 1, got {self.fractions}."
            )
        for fold, split in self.folds.items():
            if split not in _SPLITS:
                raise ValueError(f"Fold {fold!r} must go to {', '.join(_SPLITS)}, got {split!r}.")

    def apply(self, images: Sequence[Mapping[str, Any]]) -> dict[str, Split]:
        """Split of each group of the images, which are mappings with `split_group`, `fold` and `tissue`.

        Raises:
            ValueError: when a fold has no split, or a group lies in folds of different splits.
        """
        if not self.folds:
            tissues = {image["split_group"]: image["tissue"] for image in images}
            groups = (image["split_group"] for image in images)
            return split_by_group(groups, fractions=self.fractions, seed=self.seed, strata=tissues)
        splits: dict[str, Split] = {}
        for image in images:
            fold, group = image["fold"], image["split_group"]
            if fold not in self.folds:
                raise ValueError(f"Fold {fold!r} of group {group!r} has no split; given are {', '.join(self.folds)}.")
            if splits.setdefault(group, self.folds[fold]) != self.folds[fold]:
                raise ValueError(f"Group {group!r} lies in folds that go to {splits[group]} and {self.folds[fold]}.")
        return splits


def split_by_group(
    groups: Iterable[str],
    *,
    fractions: tuple[float, float, float] = (0.7, 0.2, 0.1),
    seed: int = 0,
    strata: Mapping[str, str] | None = None,
) -> dict[str, Split]:
    """Split of each group, so that every split's share of the items is its fraction to within one group.

    Each group goes to the split that lacks most items. What a split got too much or too little in one stratum is made
    up for in the next, so the bound holds over all of them and to within two groups in each. Where there are as many
    groups as splits, no split of a positive fraction stays empty.

    Args:
        groups: the group of each item (image); a group named n times has n items.
        fractions: shares of train, validation and test; they sum to 1.
        seed: another seed, another order of the groups.
        strata: group -> stratum (tissue, stain); groups it leaves out form one of their own.

    Raises:
        ValueError: when the fractions are not shares of a whole.
    """
    SplitPlan(fractions)
    sizes = Counter(iter(groups))  # of a mapping: its keys
    members: dict[str, list[str]] = {}
    for group in sorted(sizes, key=lambda name: (_hash(name, seed), name)):
        members.setdefault((strata or {}).get(group, ""), []).append(group)
    lacking: dict[Split, float] = dict.fromkeys(_SPLITS, 0.0)  # items
    splits: dict[str, Split] = {}
    for stratum in sorted(members):
        num_items = sum(sizes[group] for group in members[stratum])
        for split, fraction in zip(_SPLITS, fractions, strict=True):
            lacking[split] += fraction * num_items
        for group in members[stratum]:
            wanting = max(_SPLITS, key=lambda split: lacking[split])
            splits[group] = wanting
            lacking[wanting] -= sizes[group]
    _leave_none_empty(splits, sizes, wanted=[s for s, f in zip(_SPLITS, fractions, strict=True) if f > 0])
    return splits


def _leave_none_empty(splits: dict[str, Split], sizes: Mapping[str, int], *, wanted: list[Split]) -> None:
    """Hand the smallest group of the split with most groups to each empty one, as far as there are enough groups."""
    if len(splits) < len(wanted):
        return
    for empty in wanted:
        if empty in splits.values():
            continue
        richest = Counter(splits.values()).most_common(1)[0][0]
        smallest = min((g for g, s in splits.items() if s == richest), key=lambda g: (sizes[g], g))
        splits[smallest] = empty


def _hash(name: str, seed: int) -> str:
    return hashlib.sha256(f"cellmill-dataset-split:{seed}:{name}".encode()).hexdigest()
