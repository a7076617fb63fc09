"""All figures of a set of images, each with its 95 % interval.

Consumes the tally of n images, produces `Figures`: pooled (counts summed first, figure after), as means over images
(figure first, mean after, over the images where it is defined), by type, and as means over types.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.metrics import quality
from cellmill.metrics.bootstrap import interval
from cellmill.metrics.tally import NUM_BINS, ImageTally

__all__ = [
    "PER_IMAGE",
    "POOLED",
    "TYPES",
    "Figure",
    "Figures",
    "TypeFigures",
    "mean_over_types",
    "present_in_reference",
    "summarise",
]

Floats = npt.NDArray[np.float64]


def _type_r2(tally: ImageTally) -> Floats:
    """R2 by type, where the images it is made of hold a cell of the type at all: a reference that never shows a type
    (MoNuSAC has no dead cells) says nothing about how well it is counted, though scikit-learn would give 1."""
    moments = tally.count_moments[..., :-1, :]
    return np.where(moments[..., 1] > 0, quality.r2(moments), np.nan)


POOLED: Mapping[str, Callable[[ImageTally], Floats]] = {
    "pq": lambda tally: quality.panoptic_quality(tally.panoptic),
    "dq": lambda tally: quality.detection_quality(tally.panoptic),
    "sq": lambda tally: quality.segmentation_quality(tally.panoptic),
    "precision": lambda tally: quality.precision(tally.panoptic),
    "recall": lambda tally: quality.recall(tally.panoptic),
    "pq_assigned": lambda tally: quality.panoptic_quality(tally.assigned),
    "dq_assigned": lambda tally: quality.detection_quality(tally.assigned),
    "sq_assigned": lambda tally: quality.segmentation_quality(tally.assigned),
    "aji": lambda tally: quality.jaccard(tally.jaccard),
    "aji_plus": lambda tally: quality.jaccard(tally.jaccard_plus),
    "r2": lambda tally: quality.r2(tally.count_moments[..., -1, :]),
    "type_accuracy": lambda tally: quality.type_accuracy(tally.confusion),
    "type_kappa": lambda tally: quality.cohen_kappa(tally.confusion),
    "type_ece": lambda tally: quality.calibration_error(tally.calibration),
}
"""Figures of all cells together; `dq` is the F1 of detection."""

PER_IMAGE = ("pq", "dq", "sq", "pq_assigned", "dq_assigned", "sq_assigned", "aji", "aji_plus")
"""Those of `POOLED` that are also given as means over images."""

TYPES: Mapping[str, Callable[[ImageTally], Floats]] = {
    "pq": lambda tally: quality.panoptic_quality(quality.type_panoptic(tally.types)),
    "dq": lambda tally: quality.detection_quality(quality.type_panoptic(tally.types)),
    "sq": lambda tally: quality.segmentation_quality(quality.type_panoptic(tally.types)),
    "f1": lambda tally: quality.type_f1(tally.types),
    "precision": lambda tally: quality.precision(quality.type_panoptic(tally.types)),
    "recall": lambda tally: quality.recall(quality.type_panoptic(tally.types)),
    "f1_weighted": lambda tally: quality.weighted_type_f1(tally.types),
    "f1_assigned": lambda tally: quality.type_f1(tally.types_assigned),
    "f1_weighted_assigned": lambda tally: quality.weighted_type_f1(tally.types_assigned),
    "r2": _type_r2,
}
"""Figures of each type."""

_TYPES_PER_IMAGE = ("pq", "f1")


def present_in_reference(tally: ImageTally) -> npt.NDArray[np.bool_]:
    """Types (C,) of which the reference has at least one cell of that type alone; only these enter means over types."""
    return tally.cells[..., :-1, 0].sum(axis=0) > 0


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval; NaN where it is not defined, the interval also where there is but one image."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """With null for NaN, which JSON has not."""
        parts = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if np.isnan(part) else part for name, part in parts.items()}

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "-"
        if np.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class TypeFigures:
    """Figures and counts of one type."""

    figures: Mapping[str, Figure]
    per_image: Mapping[str, Figure]
    num_reference: int
    num_predicted: int
    num_images_r2: int
    """Images whose reference says for certain how many cells of the type there are."""


@dataclass(frozen=True)
class Figures:
    """Everything that is said of one model on one set of images."""

    num_images: int
    num_reference: int
    num_predicted: int
    num_matched: int
    pooled: Mapping[str, Figure]
    per_image: Mapping[str, Figure]
    types: Mapping[str, TypeFigures]
    means: Mapping[str, Figure]
    """Means over the types that the reference has."""
    confusion: npt.NDArray[np.int64]  # (C + 3, C + 1), see ImageTally
    reliability: Floats  # (B, 3) cells, mean confidence, share right; NaN in empty bins

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        names = list(self.types)
        return {
            "num_images": self.num_images,
            "num_reference": self.num_reference,
            "num_predicted": self.num_predicted,
            "num_matched": self.num_matched,
            "pooled": _to_json(self.pooled),
            "per_image": _to_json(self.per_image),
            "means_over_types": _to_json(self.means),
            "types": {
                name: {
                    "num_reference": one.num_reference,
                    "num_predicted": one.num_predicted,
                    "num_images_r2": one.num_images_r2,
                    **_to_json(one.figures),
                    "per_image": _to_json(one.per_image),
                }
                for name, one in self.types.items()
            },
            "confusion": {
                "rows": [*names, "several", "unknown", "nothing"],
                "columns": [*names, "missed"],
                "counts": self.confusion.tolist(),
            },
            "reliability": [
                {
                    "from": index / NUM_BINS,
                    "to": (index + 1) / NUM_BINS,
                    "num_cells": int(cells),
                    "confidence": None if np.isnan(confidence) else float(confidence),
                    "accuracy": None if np.isnan(accuracy) else float(accuracy),
                }
                for index, (cells, confidence, accuracy) in enumerate(self.reliability)
            ],
        }


def summarise(images: ImageTally, names: Sequence[str], weights: Floats) -> Figures:
    """Figures of a set of images.

    Args:
        images: tallies with a leading axis of n images.
        names: of the C types.
        weights: (R, n) from `bootstrap.draw_weights`.
    """
    if len(weights) and not np.ptp(weights, axis=0).any():
        weights = weights[:0]  # one image, or one group: every draw is the same, which is no interval
    total, drawn = images.total(), images.weighted(weights)
    of_types = {key: make(total) for key, make in TYPES.items()}
    of_types_drawn = {key: make(drawn) for key, make in TYPES.items()}
    present = present_in_reference(images)
    type_means = {key: _image_means(TYPES[key](images), weights) for key in _TYPES_PER_IMAGE}
    bins = total.calibration
    with np.errstate(invalid="ignore", divide="ignore"):
        reliability = np.column_stack([bins[:, 0], bins[:, 1] / bins[:, 0], bins[:, 2] / bins[:, 0]])
    return Figures(
        num_images=len(images.panoptic),
        num_reference=int(total.cells[-1, 0]),
        num_predicted=int(total.cells[-1, 1]),
        num_matched=int(total.panoptic[0]),
        pooled={key: _figure(make(total), make(drawn)) for key, make in POOLED.items()},
        per_image={key: _figure(*_image_means(POOLED[key](images), weights)) for key in PER_IMAGE},
        types={
            name: TypeFigures(
                figures={key: _figure(of_types[key][k], of_types_drawn[key][:, k]) for key in TYPES},
                per_image={key: _figure(value[k], values[:, k]) for key, (value, values) in type_means.items()},
                num_reference=int(total.cells[k, 0]),
                num_predicted=int(total.cells[k, 1]),
                num_images_r2=int(total.count_moments[k, 0]),
            )
            for k, name in enumerate(names)
        },
        means={
            key: _figure(mean_over_types(of_types[key], present), mean_over_types(of_types_drawn[key], present))
            for key in TYPES
        },
        confusion=total.confusion.astype(np.int64),
        reliability=reliability,
    )


def mean_over_types(values: Floats, present: npt.NDArray[np.bool_]) -> Floats:
    """Mean of (..., C) over the types that are `present`, of those where the figure is defined; NaN where none is."""
    chosen = values[..., present]
    defined = np.isfinite(chosen)
    count = defined.sum(axis=-1)
    total = np.where(defined, chosen, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _image_means(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Mean over images (n, ...) where defined, on all images and on each draw (R, ...)."""
    defined = np.isfinite(values).astype(np.float64)
    filled = np.where(defined > 0, values, 0.0)
    both = np.concatenate([np.ones((1, len(values))), weights])
    total, count = np.tensordot(both, filled, axes=(1, 0)), np.tensordot(both, defined, axes=(1, 0))
    means = np.where(count > 0, total / np.where(count > 0, count, 1.0), np.nan)
    return means[0], means[1:]


def _figure(value: Floats, drawn: Floats) -> Figure:
    low, high = interval(np.asarray(drawn))
    return Figure(float(value), float(low), float(high))


def _to_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: figure.to_json() for name, figure in figures.items()}
