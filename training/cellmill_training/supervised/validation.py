"""How good a network in training is on images it does not learn from: figures, and pictures to look at.

It is the quick look between epochs: one pass over the middle of each image, the decoder's usual settings, counts as
`cellmill.metrics` defines them, no intervals. `evaluate-model` measures a finished model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch

from cellmill.instances.maps import DenseMaps, HvMaps, quantise_flow, quantise_hv, quantise_prob
from cellmill.metrics import quality
from cellmill.metrics.tally import ImageTally, stacked, tally_image, without_unknown
from cellmill.models.config import ModelConfig
from cellmill.models.networks import CellNetwork
from cellmill.models.outputs import vectors_and_prob
from cellmill_schemas.ontology import OntologyMapping
from cellmill_training.datasets.mapping import mapped
from cellmill_training.datasets.store import LabelledDataset
from cellmill_training.datasets.training_samples import labels_of
from cellmill_training.evaluation.predictions import decoded, voted_types
from cellmill_training.samples import nearest_labels, resampled

__all__ = ["Example", "Validation", "class_maps", "decoded_cells", "figures_of"]

_Scalar = TypeVar("_Scalar", bound=np.generic)

_PAD_PX = 32
_LARGEST_PX = 512
"""Images are looked at in their middle, up to this side on the model grid."""


@dataclass(frozen=True)
class Example:
    """One image with what is in it and what was found."""

    name: str
    image: npt.NDArray[np.uint8]  # (H, W, 3) on the model grid
    reference: npt.NDArray[np.int32]  # (H, W)
    reference_types: npt.NDArray[np.int64]
    """(n + 1,) class of each reference instance, -1 where it is not certain."""
    predicted: npt.NDArray[np.int32]  # (H, W)
    predicted_types: npt.NDArray[np.int64]  # (m + 1,)


def class_maps(network: CellNetwork, image: npt.NDArray[np.uint8], device: torch.device) -> DenseMaps | HvMaps:
    """Maps of a whole image at the network's scale, in one pass, mirrored at its borders.

    A vision transformer is given exactly one tile of its own size, because its position embeddings are of that size.
    """
    config = network.config
    height, width = image.shape[:2]
    if config.vit is None:
        top = left = _PAD_PX
        bottom, right = (_PAD_PX + -(side + 2 * _PAD_PX) % config.multiple_px for side in (height, width))
    else:
        top, left = (config.tile_px - height) // 2, (config.tile_px - width) // 2
        bottom, right = config.tile_px - height - top, config.tile_px - width - left
    padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_REFLECT_101)
    batch = torch.from_numpy(padded).permute(2, 0, 1)[None].float().to(device)
    with torch.inference_mode():
        outputs = network(batch)[0, :, top : top + height, left : left + width].float().cpu()
    vectors, prob = (planes[0].numpy() for planes in vectors_and_prob(outputs[None], config))
    if config.decoder == "flows":
        return DenseMaps(quantise_flow(vectors), quantise_prob(prob), (0, 0))
    return HvMaps(quantise_hv(vectors), quantise_prob(prob), (0, 0))


def decoded_cells(
    maps: DenseMaps | HvMaps, config: ModelConfig
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Labels (H, W), and type probabilities (n + 1, C) by the vote of each cell's pixels."""
    labels = decoded(maps, config).labels
    return labels, voted_types(labels, maps)


class Validation:
    """A fixed set of images to look at between epochs."""

    def __init__(
        self, dataset: LabelledDataset, image_ids: Sequence[str], *, mapping: OntologyMapping, most_images: int = 200
    ) -> None:
        """Choose the images: all, or `most_images` of them at even distances in the order of their ids."""
        if not image_ids:
            raise ValueError(f"No image to validate on in {dataset.store.url}: the split or the folds are empty.")
        self._dataset, self._mapping = dataset, mapping
        count = min(most_images, len(image_ids))
        self.image_ids = tuple(image_ids[len(image_ids) * number // count] for number in range(count))

    def look(
        self, network: CellNetwork, device: torch.device, *, num_examples: int = 0
    ) -> tuple[dict[str, float], list[Example]]:
        """Figures over all images, and the first images as examples."""
        network.eval()
        pairs = [self._one(network, image_id, device) for image_id in self.image_ids]
        examples = [example for _, example in pairs[:num_examples]]
        return figures_of([tally for tally, _ in pairs], network.config.ontology.names), examples

    def _one(self, network: CellNetwork, image_id: str, device: torch.device) -> tuple[ImageTally, Example]:
        labelled = mapped(self._dataset.read(image_id), self._mapping)
        config = network.config
        labels = labels_of(labelled, config.ontology)
        whole = resampled(labelled.image, mpp=labelled.mpp, target_mpp=config.target_mpp)
        size = (whole.shape[1], whole.shape[0])
        largest = _LARGEST_PX if config.vit is None else config.tile_px
        image = _middle(whole, largest)
        reference = _middle(nearest_labels(labels.instances, size), largest)
        unknown = _middle(nearest_labels(labelled.unknown.astype(np.int32), size), largest) > 0
        predicted, type_prob = decoded_cells(class_maps(network, image, device), config)
        permitted = np.zeros((labelled.num_cells + 1, len(config.ontology)), np.bool_)
        for number, label in enumerate(labelled.labels, start=1):
            permitted[number, [config.ontology.index(name) for name in label.cell_types]] = True
        known_reference, known_predicted = without_unknown(reference, predicted, unknown & (reference == 0))
        tally = tally_image(known_reference, permitted, known_predicted, type_prob)
        certain = np.where(permitted.sum(axis=1) == 1, permitted.argmax(axis=1), -1)
        example = Example(image_id, image, reference, certain, predicted, type_prob.argmax(axis=1))
        return tally, example


def figures_of(tallies: Sequence[ImageTally], names: Sequence[str]) -> dict[str, float]:
    """Pooled PQ, DQ and SQ, PQ and F1 and R2 of each type, and their means over types where they are defined."""
    total = stacked(tallies).total()
    by_type: Mapping[str, npt.NDArray[np.float64]] = {
        "pq": quality.panoptic_quality(quality.type_panoptic(total.types)),
        "f1": quality.type_f1(total.types),
        "r2": quality.r2(total.count_moments[:-1]),
    }
    figures = {
        "val_pq": float(quality.panoptic_quality(total.panoptic)),
        "val_dq": float(quality.detection_quality(total.panoptic)),
        "val_sq": float(quality.segmentation_quality(total.panoptic)),
    }
    for figure, values in by_type.items():
        defined = values[np.isfinite(values)]
        if len(defined):
            figures[f"val_mean_{figure}"] = float(defined.mean())
        figures |= {f"val_{figure}_{name.replace(' ', '_')}": float(v) for name, v in zip(names, values, strict=True)}
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def _middle(array: npt.NDArray[_Scalar], largest: int) -> npt.NDArray[_Scalar]:
    top, left = (max(0, side - largest) // 2 for side in array.shape[:2])
    return np.ascontiguousarray(array[top : top + largest, left : left + largest])
