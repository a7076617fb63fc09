"""A reference and a prediction side by side: outlines in the colours of types, on the image's own pixels."""

import cv2
import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology
from cellmill_training.evaluation.predictions import PredictedCells
from cellmill_training.evaluation.references import ReferenceImage

__all__ = ["SideBySide", "side_by_side"]

_ENLARGED = 2
_OPEN_COLOR = (255, 255, 255)
_CAPTION_PX = 26
Image = npt.NDArray[np.uint8]


class SideBySide:
    """Keeps pictures of the first few images of each source, as `evaluate_model`'s `look`."""

    def __init__(self, ontology: Ontology, *, num_pictures: int, side_px: int = 256) -> None:
        self.pictures: dict[str, Image] = {}
        self._ontology = ontology
        self._num_pictures = num_pictures
        self._side_px = side_px
        self._sources: dict[str, int] = {}

    def __call__(
        self, reference: ReferenceImage, image: Image, instances: npt.NDArray[np.int32], cells: PredictedCells
    ) -> None:
        """Look at one image."""
        seen = self._sources.get(reference.source, 0)
        # Every source gets its first picture before any gets a second, as far as images come in order of source.
        if seen >= max(1, self._num_pictures // 3) or len(self.pictures) >= self._num_pictures:
            return
        self._sources[reference.source] = seen + 1
        window = _busiest(instances > 0, self._side_px)
        name = f"{reference.source}/{reference.image_id}"
        shown = PredictedCells(cells.labels[window], cells.type_prob)
        self.pictures[name] = side_by_side(
            image[window], instances[window], reference.permitted, shown, ontology=self._ontology
        )


def side_by_side(
    image: Image,
    instances: npt.NDArray[np.int32],
    permitted: npt.NDArray[np.bool_],
    cells: PredictedCells,
    *,
    ontology: Ontology,
) -> Image:
    """Reference left, prediction right, twice the size; an outline whose type is not known for certain is white.

    Args:
        image: (H, W, 3).
        instances: (H, W) labels of the reference.
        permitted: (n + 1, C) its types.
        cells: the prediction, its labels (H, W).
        ontology: of both.
    """
    colors = np.array([one.color_rgb for one in ontology.classes], np.int64)
    sole = permitted.sum(axis=1) == 1
    left = np.where(sole[:, None], colors[permitted.argmax(axis=1)], _OPEN_COLOR)
    right = colors[cells.type_prob.argmax(axis=1)]
    panes = [_outlined(image, instances, left, "reference"), _outlined(image, cells.labels, right, "prediction")]
    gap = np.full((panes[0].shape[0], 8, 3), 255, np.uint8)
    return np.concatenate([panes[0], gap, panes[1]], axis=1)


def _outlined(image: Image, labels: npt.NDArray[np.int32], colors: npt.NDArray[np.int64], caption: str) -> Image:
    size = (image.shape[1] * _ENLARGED, image.shape[0] * _ENLARGED)
    shown = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    for label in np.unique(labels[labels > 0]):
        ys, xs = np.nonzero(labels == label)
        y, x = int(ys.min()), int(xs.min())
        mask = np.zeros((int(ys.max()) - y + 1, int(xs.max()) - x + 1), np.uint8)
        mask[ys - y, xs - x] = 1
        mask = np.kron(mask, np.ones((_ENLARGED, _ENLARGED), np.uint8))
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(x * 2, y * 2))
        color = tuple(int(value) for value in colors[label])
        cv2.polylines(shown, outlines, isClosed=True, color=color, thickness=1)
    strip = np.full((_CAPTION_PX, shown.shape[1], 3), 255, np.uint8)
    place = (6, _CAPTION_PX - 8)
    cv2.putText(strip, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return np.concatenate([strip, shown.astype(np.uint8)])


def _busiest(covered: npt.NDArray[np.bool_], side_px: int) -> tuple[slice, slice]:
    """The window of at most `side_px` that holds most reference pixels, on a grid of half its side."""
    height, width = covered.shape
    step = side_px // 2
    best, most = (0, 0), -1
    for y in range(0, max(1, height - step), step):
        for x in range(0, max(1, width - step), step):
            held = int(covered[y : y + side_px, x : x + side_px].sum())
            if held > most:
                best, most = (y, x), held
    y, x = best
    return slice(y, min(y + side_px, height)), slice(x, min(x + side_px, width))
