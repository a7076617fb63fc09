"""Lineage as a filter: keep the labels of stated origins, and treat the others as what nobody said.

An origin is written `kind` or `kind:by`: `annotator`, `annotator:anna`, `model:lite@3`.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import get_args

import numpy as np

from cellmill_training.datasets.labelled_image import (
    CellLabel,
    LabelledImage,
    LabelOrigin,
    OriginKind,
    densely_numbered,
)

__all__ = ["is_of_origins", "parse_origins", "with_origins"]


def parse_origins(texts: Collection[str]) -> frozenset[str]:
    """Origins as given on a command line, checked.

    Raises:
        ValueError: naming the one whose kind does not exist.
    """
    kinds = get_args(OriginKind)
    for text in texts:
        if text.split(":", 1)[0] not in kinds:
            raise ValueError(f"An origin is 'kind' or 'kind:by' with a kind of {', '.join(kinds)}; got {text!r}.")
    return frozenset(texts)


def is_of_origins(origin: LabelOrigin, origins: Collection[str]) -> bool:
    """Whether one of `origins` covers the label's origin."""
    return origin.kind in origins or f"{origin.kind}:{origin.by}" in origins


def with_origins(image: LabelledImage, origins: Collection[str]) -> LabelledImage:
    """The image with labels of `origins` only.

    A nucleus whose label comes from elsewhere becomes unknown pixels: neither found nor missed, neither right nor
    wrong. But a relabelled nucleus keeps its outline, which is the data set's, and loses only its type; where
    `dataset` is not wanted either, it goes too.

    Raises:
        ValueError: when an origin is of no known kind.
    """
    wanted = parse_origins(origins)
    labels: dict[int, CellLabel] = {}
    for number, label in enumerate(image.labels, start=1):
        if is_of_origins(label.origin, wanted):
            labels[number] = label
        elif label.origin.kind == "relabel" and any(text.split(":", 1)[0] == "dataset" for text in wanted):
            labels[number] = replace(label, cell_types=())
    kept = np.isin(image.instances, list(labels))
    instances, numbers = densely_numbered(np.where(kept, image.instances, 0))
    return replace(
        image,
        instances=instances,
        labels=tuple(labels[number] for number in numbers),
        unknown=image.unknown | ((image.instances > 0) & ~kept),
    )
