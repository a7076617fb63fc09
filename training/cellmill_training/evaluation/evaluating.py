"""A model on a reference set: one tally an image, figures of them all and of each source.

Two readings where a reference leaves regions open. `strict` counts every prediction without a partner as invented.
`known` leaves out what lies where the reference does not say (`metrics.tally.without_unknown`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cellmill.metrics.bootstrap import NUM_REPLICATES, draw_weights
from cellmill.metrics.figures import Figures, summarise
from cellmill.metrics.tally import ImageTally, stacked, tally_image, without_unknown
from cellmill_training.evaluation.predictions import CellPredictor, PredictedCells
from cellmill_training.evaluation.references import ReferenceImage, ReferenceSet
from cellmill_training.samples import nearest_labels, resampled

__all__ = ["Evaluation", "ImageResult", "Reading", "evaluate_image", "evaluate_model"]

Reading = Literal["strict", "known"]
ALL = "all"


@dataclass(frozen=True)
class ImageResult:
    """Counts of one image in both readings."""

    image_id: str
    source: str
    group: str
    strict: ImageTally
    known: ImageTally
    has_unknown: bool
    """Whether the reference leaves anything of this image open."""


@dataclass(frozen=True)
class Evaluation:
    """One model on one reference set."""

    names: tuple[str, ...]
    """Types, in the model's order."""
    images: tuple[ImageResult, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """`all`, and each source where there are several."""
        found = tuple(sorted({one.source for one in self.images}))
        return (ALL, *found) if len(found) > 1 else (ALL,)

    def readings(self, source: str = ALL) -> tuple[Reading, ...]:
        """Both, where the source leaves anything open."""
        return ("strict", "known") if any(one.has_unknown for one in self._of(source)) else ("strict",)

    def tally(self, source: str = ALL, reading: Reading = "strict") -> ImageTally:
        """Counts with a leading axis of the source's images."""
        return stacked([one.strict if reading == "strict" else one.known for one in self._of(source)])

    def groups(self, source: str = ALL) -> tuple[str, ...]:
        """Group of each of the source's images; groups of two sources never are one."""
        return tuple(f"{one.source}/{one.group}" for one in self._of(source))

    def figures(
        self,
        source: str = ALL,
        reading: Reading = "strict",
        *,
        by_group: bool = False,
        num_replicates: int = NUM_REPLICATES,
        seed: int = 0,
    ) -> Figures:
        """Figures of a source with their intervals; `by_group` draws groups in place of images."""
        tally = self.tally(source, reading)
        weights = draw_weights(
            len(tally.panoptic),
            groups=self.groups(source) if by_group else None,
            num_replicates=num_replicates,
            seed=seed,
        )
        return summarise(tally, self.names, weights)

    def _of(self, source: str) -> list[ImageResult]:
        return [one for one in self.images if source in (ALL, one.source)]


@dataclass(frozen=True)
class _AtScale:
    """A reference at the model's scale."""

    image: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int32]
    unknown: npt.NDArray[np.bool_]


def evaluate_model(
    predictor: CellPredictor,
    references: ReferenceSet,
    *,
    look: Callable[[ReferenceImage, npt.NDArray[np.uint8], npt.NDArray[np.int32], PredictedCells], Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Count every image of a reference set.

    Args:
        predictor: the model.
        references: in the model's classes.
        look: is shown each reference, its pixels and instances at the model's scale, and the prediction; for pictures.
        progress: told how many of how many images are done.
    """
    results: list[ImageResult] = []
    for reference in references.images():
        results.append(evaluate_image(predictor, reference, look=look))
        if progress:
            progress(len(results), references.num_images)
    return Evaluation(predictor.model.config.ontology.names, tuple(results))


def evaluate_image(
    predictor: CellPredictor,
    reference: ReferenceImage,
    *,
    look: Callable[[ReferenceImage, npt.NDArray[np.uint8], npt.NDArray[np.int32], PredictedCells], Any] | None = None,
) -> ImageResult:
    """Counts of one image."""
    here = _at_scale(reference, predictor.model.config.target_mpp)
    cells = predictor.predict(here.image)
    if look:
        look(reference, here.image, here.instances, cells)
    strict = tally_image(here.instances, reference.permitted, cells.labels, cells.type_prob)
    known = strict
    if here.unknown.any():
        kept, left = without_unknown(here.instances, cells.labels, here.unknown)
        known = tally_image(kept, reference.permitted, left, cells.type_prob)
    return ImageResult(
        reference.image_id, reference.source, reference.group, strict, known, has_unknown=bool(here.unknown.any())
    )


def _at_scale(reference: ReferenceImage, target_mpp: float) -> _AtScale:
    image = resampled(reference.image, mpp=reference.mpp, target_mpp=target_mpp)
    size = (image.shape[1], image.shape[0])
    unknown = nearest_labels(reference.unknown.astype(np.uint8), size) > 0
    return _AtScale(image, nearest_labels(reference.instances, size), unknown)
