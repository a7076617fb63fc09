"""With which limits a network's masks are best kept, and what is then found where there is no nucleus.

    python benchmarks/decoder_settings.py --data DATA --model lite

DATA is the folder of local sets, or any labelled data set in the model's classes. Only validation images are looked
at, on which settings may be chosen, and areas without nuclei where the folder has them (sources/slides.py): these were
trained on as such, so that they compare settings and nothing else.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cellmill.instances.maps import DenseMaps
from cellmill.instances.mask_limits import MaskLimits
from cellmill.metrics import quality
from cellmill.models.loading import LoadedModel, load_model
from cellmill_training.evaluation.evaluating import evaluate_model
from cellmill_training.evaluation.predictions import CellPredictor, PredictedCells, decoded, predicted_maps, voted_types
from cellmill_training.evaluation.references import open_references
from cellmill_training.samples import BACKGROUND_BIT, TissueSample, nearest_labels, resampled
from cellmill_training.sources.slides import empty_areas, read_slides

FLOW_ERRORS = (0.4, 0.6, 0.8, 1.0)
DETECTION_PROBS = (0.0, 0.65, 0.7, 0.725, 0.75, 0.775, 0.8)


class SweptPredictor(CellPredictor):
    """An image that comes again is decoded with the limits of the time, and not predicted again."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._built = model.build()
        self._maps: dict[bytes, DenseMaps] = {}

    def predict(self, image: npt.NDArray[np.uint8]) -> PredictedCells:
        """Cells of an image at the model's scale."""
        key = image.tobytes()
        if key not in self._maps:
            self._maps[key] = predicted_maps(self._built, image)
        maps = self._maps[key]
        labels = decoded(maps, self.model.config).labels
        return PredictedCells(labels, voted_types(labels, maps))


def _emptiness(area: TissueSample, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Where nothing is (H, W), at the model's scale."""
    return nearest_labels((area.allowed == BACKGROUND_BIT).astype(np.uint8), (shape[1], shape[0])) > 0


def _num_inside(labels: npt.NDArray[np.int32], place: npt.NDArray[np.bool_]) -> int:
    """Cells that lie in `place` by more than half."""
    sizes = np.bincount(labels.ravel())
    inside = np.bincount(labels[place], minlength=len(sizes))
    return int((inside[1:] > sizes[1:] / 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="lite")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    predictor = SweptPredictor(model)
    mpp = model.config.target_mpp
    references = open_references(arguments.data, ontology=model.config.ontology, split="validation")
    areas = empty_areas(read_slides(arguments.data / "slides"))
    surroundings = [resampled(area.image, mpp=area.mpp, target_mpp=mpp) for area in areas]
    empty = [_emptiness(area, image.shape[:2]) for area, image in zip(areas, surroundings, strict=True)]
    print("| flow error to | detection prob from | set | PQ | DQ | found | invented | missed | in empty areas |")
    print("|---|---|---|---|---|---|---|---|---|")
    for limits in (MaskLimits(error, prob) for error in FLOW_ERRORS for prob in DETECTION_PROBS):
        predictor.model = replace(model, config=replace(model.config, mask_limits=limits))
        evaluation = evaluate_model(predictor, references)
        found_there = [predictor.predict(image).labels for image in surroundings]
        invented_there = sum(_num_inside(labels, place) for labels, place in zip(found_there, empty, strict=True))
        for source in evaluation.sources:
            counts = evaluation.tally(source, evaluation.readings(source)[-1]).panoptic.sum(axis=0)
            found, invented, missed = (int(count) for count in counts[:3])
            pq, dq = quality.panoptic_quality(counts), quality.detection_quality(counts)
            tried = f"{limits.flow_error_max} | {limits.detection_prob_min}"
            print(f"| {tried} | {source} | {pq:.3f} | {dq:.3f} | {found} | {invented} | {missed} | {invented_there} |")


if __name__ == "__main__":
    main()
