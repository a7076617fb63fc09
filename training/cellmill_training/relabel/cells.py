"""Which cells a classifier learns from: an index of typed cells, split by group, then balanced.

Consumes a labelled data set; produces a `CellIndex` (one row one cell whose type is certain and wanted) and, from it,
the rows of each split. The order matters and is that of the figures in Shvetsov et al. 2025, not of its prose: split
first, balance training and validation afterwards, and leave the test split as nature has it (docs/relabelling.md
shows that the paper's table 1 was measured so).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_training.datasets.splitting import Split, split_by_group
from cellmill_training.datasets.store import LabelledDataset

__all__ = [
    "CellIndex",
    "Rows",
    "balanced_rows",
    "group_splits",
    "index_cells",
    "label_counts",
    "require_learnable",
    "split_rows",
    "typed_labels",
]

Rows = npt.NDArray[np.int64]

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_NUM_DRAWS = 64


@dataclass(frozen=True)
class CellIndex:
    """Cells of one data set whose type is one of some classes."""

    dataset: str
    class_names: tuple[str, ...]
    image_ids: npt.NDArray[np.str_]  # (n,)
    numbers: npt.NDArray[np.int32]  # (n,), instance in its image
    classes: npt.NDArray[np.int64]  # (n,), place in `class_names`
    groups: npt.NDArray[np.str_]  # (n,), split group

    def __len__(self) -> int:
        return len(self.classes)

    def counts(self, rows: Rows | None = None) -> dict[str, int]:
        """Cells by class, of all rows or of some."""
        classes = self.classes if rows is None else self.classes[rows]
        found = np.bincount(classes, minlength=len(self.class_names))
        return dict(zip(self.class_names, found.tolist(), strict=True))


def index_cells(dataset: LabelledDataset, classes: Sequence[str], *, ontology: Ontology) -> CellIndex:
    """Every cell that is certainly of one of the ontology's classes named, without reading pixels.

    Raises:
        KeyError: when there is no mapping from the data set's ontology.
    """
    place = {name: index for index, name in enumerate(classes)}
    group = dict(zip(*(dataset.index.column(name).to_pylist() for name in ("image_id", "split_group")), strict=True))
    rows = [
        (image_id, number, place[types[0]], group[image_id])
        for image_id, number, types in typed_labels(dataset, ontology)
        if len(types) == 1 and types[0] in place
    ]
    image_ids, numbers, found, groups = zip(*rows, strict=True) if rows else ((), (), (), ())
    return CellIndex(
        dataset=dataset.name,
        class_names=tuple(classes),
        image_ids=np.array(image_ids, np.str_),
        numbers=np.array(numbers, np.int32),
        classes=np.array(found, np.int64),
        groups=np.array(groups, np.str_),
    )


def typed_labels(dataset: LabelledDataset, ontology: Ontology) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Image, instance and possible classes, in `ontology`, of each of a data set's cells.

    Raises:
        KeyError: when there is no mapping from the data set's ontology.
    """
    mapping = get_mapping(dataset.ontology, ontology)
    columns = dataset.labels().select(["image_id", "instance", "cell_types"]).columns
    for image_id, number, types in zip(*(column.to_pylist() for column in columns), strict=True):
        found = [mapping.target_indices(name) for name in types]
        indices = sorted({index for one in found for index in one}) if all(found) else []
        yield image_id, number, tuple(ontology.names[index] for index in indices)


def label_counts(dataset: LabelledDataset, ontology: Ontology) -> dict[tuple[str, ...], int]:
    """How many cells carry each label, open ones under the classes they may be."""
    return dict(Counter(types for _, _, types in typed_labels(dataset, ontology)))


def require_learnable(index: CellIndex) -> None:
    """Each class needs cells in three groups at least: one to train, one to validate, one to test.

    Raises:
        ValueError: when a class has no cell or too few groups, saying which and what to do.
    """
    if len(index.class_names) < 2:
        raise ValueError(f"A classifier needs two classes or more, got {', '.join(index.class_names) or 'none'}.")
    for place, name in enumerate(index.class_names):
        own = index.classes == place
        num_groups = len(np.unique(index.groups[own]))
        if not own.any():
            raise ValueError(
                f"Data set {index.dataset!r} has no cell that is certainly {name!r}, of which a classifier for "
                f"{', '.join(index.class_names)} must learn: name classes that it labels, or add images that show it."
            )
        if num_groups < len(_SPLITS):
            raise ValueError(
                f"The {own.sum()} cells of {name!r} in data set {index.dataset!r} come from {num_groups} split "
                f"group(s); training, validation and test need one each. Add images of other patients or slides, or "
                f"import the data set with a finer split group."
            )


def group_splits(
    indices: Sequence[CellIndex],
    all_groups: Iterable[str],
    *,
    fractions: tuple[float, float, float] = (0.7, 0.2, 0.1),
    seed: int = 0,
) -> dict[str, Split]:
    """Split of each group of one data set, such that every class of every index comes close to the fractions.

    Few groups hold most cells of a rare class, so one draw can leave a split without them. Of `_NUM_DRAWS` draws, all
    fixed by the seed and looking at counts of labels only, the one is taken whose worst class is nearest to the
    fractions.

    Args:
        indices: what classifiers will learn from this data set.
        all_groups: the group of each of its images, those without such cells too.
        fractions: shares of train, validation and test.
        seed: of the draws.

    Raises:
        ValueError: when no draw gives every split a cell of every class.
    """
    groups = list(all_groups)
    counts = np.concatenate([_counts_by_group(index, groups) for index in indices], axis=1)  # (groups, classes)
    names = sorted(set(groups))
    best: tuple[float, dict[str, Split]] | None = None
    for draw in range(_NUM_DRAWS):
        splits = split_by_group(groups, fractions=fractions, seed=_NUM_DRAWS * seed + draw)
        member = np.array([[splits[name] == split for name in names] for split in _SPLITS], np.float64)
        share = member @ counts  # (splits, classes)
        if (share[np.array(fractions) > 0] == 0).any():
            continue
        worst = float(np.abs(share / share.sum(axis=0) - np.array(fractions)[:, None]).max(initial=0.0))
        if best is None or worst < best[0]:
            best = worst, splits
    if best is None:
        raise ValueError(
            f"No split of the {len(names)} groups of data set {indices[0].dataset!r} gives training, validation and "
            f"test a cell of each of {', '.join(n for i in indices for n in i.class_names)}: a class sits in too few "
            "groups. Add images of other patients or slides, or leave that class out."
        )
    return best[1]


def _counts_by_group(index: CellIndex, groups: Sequence[str]) -> npt.NDArray[np.float64]:
    names = np.array(sorted(set(groups)), np.str_)
    table = np.zeros((len(names), len(index.class_names)))
    np.add.at(table, (np.searchsorted(names, index.groups), index.classes), 1.0)
    return table


def split_rows(index: CellIndex, splits: Mapping[str, Split], split: Split) -> Rows:
    """Rows of the cells whose group is in a split."""
    wanted = [group for group, own in splits.items() if own == split]
    return np.flatnonzero(np.isin(index.groups, wanted)).astype(np.int64)


def balanced_rows(index: CellIndex, rows: Rows, *, seed: int) -> Rows:
    """As many rows of each class as the rarest of them has, drawn by the seed, in ascending order.

    Raises:
        ValueError: when a class has none, saying which.
    """
    counts = index.counts(rows)
    least = min(counts.values())
    if least == 0:
        missing = ", ".join(name for name, count in counts.items() if count == 0)
        raise ValueError(
            f"A split of data set {index.dataset!r} has no cell of {missing}: cells cannot be balanced to none. Add "
            "images of other patients or slides, or choose another seed for the split."
        )
    rng = np.random.default_rng([seed, 0xBA1])
    chosen = [
        rng.choice(rows[index.classes[rows] == place], least, replace=False) for place in range(len(index.class_names))
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
