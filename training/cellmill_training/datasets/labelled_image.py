"""One labelled image: pixels, which pixel belongs to which nucleus, and what is known about each nucleus and from whom.

Every reader of `datasets/readers` ends in a `LabelledImage`, the store keeps them, every training job starts from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology

__all__ = ["CellLabel", "LabelOrigin", "LabelledImage", "OriginKind", "densely_numbered", "ordered_types"]

OriginKind = Literal["dataset", "relabel", "weak", "model", "annotator", "consensus"]
"""Who says so: a published data set, a classifier that refined a data set's type (its outlines stay), a weak source, a
model, one annotator, or several that agree."""


@dataclass(frozen=True)
class LabelOrigin:
    """Lineage of one label."""

    kind: OriginKind
    by: str
    """Data set, model name and version, or annotator."""
    probability: float | None = None
    """How sure a model or classifier is, 0 to 1; None where the origin gives no figure."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(OriginKind):
            raise ValueError(f"A label's origin must be one of {', '.join(get_args(OriginKind))}, got {self.kind!r}.")
        if not self.by:
            raise ValueError(f"A label of kind {self.kind!r} must say by whom: a data set, model or annotator.")
        if self.probability is not None and not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"A label's probability must be 0 to 1, got {self.probability}.")


@dataclass(frozen=True)
class CellLabel:
    """What is known about one nucleus."""

    cell_types: tuple[str, ...]
    """One class name when the type is known, several when the source leaves it open, none when it says nothing."""
    origin: LabelOrigin


@dataclass(frozen=True)
class LabelledImage:
    """One image with its instances and their labels; arrays are taken as they are and not copied."""

    image_id: str
    source: str
    """Name of the data set."""
    tissue: str
    """Organ or tissue as the source names it; empty where it does not."""
    split_group: str
    """What must not be split between training and test: patient, slide or parent field."""
    fold: str
    """The source's own fold; empty where it has none."""
    mpp: float
    """Micrometres per pixel, both ways."""
    image: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    instances: npt.NDArray[np.int32]  # (H, W), labels 1..n without gaps, 0 background
    labels: tuple[CellLabel, ...]
    """`labels[k - 1]` belongs to instance k."""
    unknown: npt.NDArray[np.bool_]
    """(H, W): the source does not say whether there is a nucleus. Instances may lie there: they win."""

    def __post_init__(self) -> None:
        shape = self.instances.shape
        self._require(bool(self.image_id), "has no id")
        self._require(bool(self.split_group), "has no split group; use its id where each image stands alone")
        self._require(self.mpp > 0 and np.isfinite(self.mpp), f"must have a positive mpp, got {self.mpp}")
        self._require(self.image.dtype == np.uint8, f"must have uint8 pixels, got {self.image.dtype}")
        self._require(self.instances.dtype == np.int32, f"must have int32 instances, got {self.instances.dtype}")
        self._require(self.unknown.dtype == np.bool_, f"must have a bool unknown mask, got {self.unknown.dtype}")
        self._require(
            len(shape) == 2 and min(shape) > 0 and self.image.shape == (*shape, 3) and self.unknown.shape == shape,
            f"must be (H, W, 3) pixels with (H, W) instances and unknown mask, got {self.image.shape}, {shape} and "
            f"{self.unknown.shape}",
        )
        self._require(int(self.instances.min()) >= 0, f"has a negative instance label {int(self.instances.min())}")
        counts = np.bincount(self.instances.ravel(), minlength=1)[1:]
        absent = np.flatnonzero(counts == 0)
        self._require(
            len(absent) == 0,
            f"must number its instances 1..{len(counts)} without gaps, but {absent[:5] + 1} have no pixel; "
            "densely_numbered() closes gaps",
        )
        self._require(
            len(self.labels) == len(counts),
            f"has {len(counts)} instances, but {len(self.labels)} labels",
        )

    def _require(self, holds: bool, complaint: str) -> None:
        if not holds:
            raise ValueError(f"Image {self.image_id!r} of {self.source!r} {complaint}.")

    @property
    def num_cells(self) -> int:
        """Number of instances."""
        return len(self.labels)

    def type_map(self, ontology: Ontology) -> npt.NDArray[np.int16]:
        """Types (H, W): 0 for background or where the type is not certain, 1 + class elsewhere.

        Raises:
            ValueError: when a label's class is not in the ontology, naming image and instance.
        """
        table = np.zeros(len(self.labels) + 1, np.int16)
        for number, label in enumerate(self.labels, start=1):
            for name in label.cell_types:
                try:
                    index = ontology.index(name)
                except KeyError as error:
                    raise ValueError(
                        f"Image {self.image_id!r}, instance {number}: {error.args[0]} Map the labels to it first."
                    ) from error
                table[number] = 1 + index if len(label.cell_types) == 1 else 0
        return table[self.instances]


def densely_numbered(
    instances: npt.NDArray[np.integer],
) -> tuple[npt.NDArray[np.int32], tuple[int, ...]]:
    """Instances renumbered 1..n in the order of their old labels, and those old labels."""
    found, inverse = np.unique(instances, return_inverse=True)
    has_background = len(found) > 0 and int(found[0]) == 0
    dense = inverse.reshape(instances.shape).astype(np.int32) + (0 if has_background else 1)
    return dense, tuple(int(label) for label in found if label != 0)


def ordered_types(names: Sequence[str], ontology: Ontology) -> tuple[str, ...]:
    """Canonical names of the classes, each once, in the ontology's order.

    Raises:
        KeyError: when one is not in the ontology.
    """
    return tuple(ontology.names[index] for index in sorted({ontology.index(name) for name in names}))
