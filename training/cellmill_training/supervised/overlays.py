"""Pictures of what a network in training finds: outlines in class colours, what is there beside what was found."""

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology
from cellmill_training.supervised.validation import Example

__all__ = ["drawn"]

_ENLARGED = 3
_GAP_PX = 8
_UNSURE_RGB = (40, 40, 40)


def drawn(example: Example, ontology: Ontology) -> npt.NDArray[np.uint8]:
    """The image three times as large, twice: reference outlines left, predicted ones right; dark is of no one type."""
    colors = np.array([*(item.color_rgb for item in ontology.classes), _UNSURE_RGB], np.uint8)
    sides = [
        _outlined(example.image, example.reference, colors[example.reference_types]),
        _outlined(example.image, example.predicted, colors[example.predicted_types]),
    ]
    gap = np.full((sides[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([sides[0], gap, sides[1]], axis=1)


def _outlined(
    image: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], colors: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Pixels of an instance that touch another label, in its colour (n + 1, 3)."""
    large = np.repeat(np.repeat(labels, _ENLARGED, 0), _ENLARGED, 1)
    shown = np.repeat(np.repeat(image, _ENLARGED, 0), _ENLARGED, 1)
    padded = np.pad(large, 1, mode="edge")
    edge = np.zeros(large.shape, np.bool_)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= padded[dy : dy + large.shape[0], dx : dx + large.shape[1]] != large
    edge &= large > 0
    shown[edge] = colors[large[edge]]
    return shown
