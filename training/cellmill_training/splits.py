"""Which groups are kept out: the split of each real source, fixed by name and never by chance.

`test` is what the model card is measured on, and is neither trained, self-trained nor tuned on. `validation` is what
models are chosen on. A group is whatever shares pixels, glass or stain: a parent field of dsb18, a slide of MoNuSAC, a
strip of the one PUMA region.
"""

import hashlib
from collections.abc import Mapping, Sequence

from cellmill_training.samples import Split

__all__ = ["split_groups", "split_stratified"]


def _order(name: str) -> str:
    return hashlib.sha256(f"cellmill-split-1:{name}".encode()).hexdigest()


def split_groups(groups: Sequence[str], *, num_test: int, num_validation: int) -> dict[str, Split]:
    """Split of each group: the first by hash are test, the next validation, the rest train."""
    ordered = sorted(set(groups), key=_order)
    splits: dict[str, Split] = {}
    for rank, group in enumerate(ordered):
        splits[group] = "test" if rank < num_test else "validation" if rank < num_test + num_validation else "train"
    return splits


def split_stratified(
    stratum_of_group: Mapping[str, str], *, test_fraction: float, num_validation: int
) -> dict[str, Split]:
    """Like `split_groups` in each stratum; at least `test_fraction` of all groups end in test.

    Strata with too few groups to spare one for each split stay in training.
    """
    strata: dict[str, list[str]] = {}
    for group, stratum in stratum_of_group.items():
        strata.setdefault(stratum, []).append(group)
    splits: dict[str, Split] = {}
    for members in strata.values():
        if len(members) < 3 + num_validation:
            splits |= dict.fromkeys(members, "train")
            continue
        num_test = -int(-len(members) * test_fraction // 1)  # rounded up
        splits |= split_groups(members, num_test=num_test, num_validation=num_validation)
    return splits
