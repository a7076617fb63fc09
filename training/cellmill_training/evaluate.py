"""Measure a network on kept-out samples: images to maps, maps to cells, cells against the reference.

Two readings are given where a source leaves nuclei unlabelled. `strict` counts every prediction without a partner as
false. `known` leaves out predictions that lie mostly where the source does not say whether there is a nucleus, and
reference instances whose outline is known not to be a nucleus's (MoNuSAC's macrophages are whole cells).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from cellmill.instances.decoder import Instances
from cellmill.instances.flow_decoder import FlowDecoder, FlowDecoderConfig
from cellmill.instances.maps import DenseMaps, quantise_flow, quantise_prob
from cellmill.metrics.panoptic import PanopticCounts, TypeCounts, count_panoptic, count_types, match_instances
from cellmill.models.config import FLOW_CHANNELS
from cellmill.models.networks import CellNetwork
from cellmill_training.samples import BACKGROUND_BIT, TissueSample, nearest_labels, resampled, training_ontology

__all__ = ["Evaluation", "decoded", "evaluate_sample", "evaluate_samples", "predicted_maps", "voted_types"]

_PAD_PX = 32
_MULTIPLE = 64


@dataclass(frozen=True)
class Evaluation:
    """Counts of one or more images; adds up."""

    strict: PanopticCounts
    known: PanopticCounts
    types: Mapping[str, TypeCounts]
    num_images: int

    def __add__(self, other: "Evaluation") -> "Evaluation":
        names = self.types.keys() | other.types.keys()
        none = TypeCounts()
        return Evaluation(
            strict=self.strict + other.strict,
            known=self.known + other.known,
            types={name: self.types.get(name, none) + other.types.get(name, none) for name in sorted(names)},
            num_images=self.num_images + other.num_images,
        )


def predicted_maps(network: CellNetwork, image: npt.NDArray[np.uint8]) -> DenseMaps:
    """Maps of a whole image at the network's scale, in one pass, mirrored at its borders."""
    height, width = image.shape[:2]
    bottom, right = (_PAD_PX + -(side + 2 * _PAD_PX) % _MULTIPLE for side in (height, width))
    padded = cv2.copyMakeBorder(image, _PAD_PX, bottom, _PAD_PX, right, cv2.BORDER_REFLECT_101)
    batch = torch.from_numpy(padded).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    with torch.inference_mode():
        outputs = network(batch)[0, :, _PAD_PX : _PAD_PX + height, _PAD_PX : _PAD_PX + width]
        prob = torch.softmax(outputs[FLOW_CHANNELS:], dim=0)
    flow = quantise_flow(outputs[:FLOW_CHANNELS].numpy())
    return DenseMaps(flow, quantise_prob(prob.numpy()), (0, 0))


def decoded(maps: DenseMaps, *, mpp: float) -> Instances:
    """Instances with the decoder's usual settings."""
    return FlowDecoder(FlowDecoderConfig(mpp=mpp)).decode(maps)


def voted_types(labels: npt.NDArray[np.int32], maps: DenseMaps) -> npt.NDArray[np.int64]:
    """Class of each instance by the vote of its pixels; (n + 1,), index 0 unused."""
    size = int(labels.max(initial=0)) + 1
    sums = [
        np.bincount(labels.ravel(), weights=plane.ravel().astype(np.float64), minlength=size) for plane in maps.prob
    ]
    return np.argmax(np.stack(sums[1:]), axis=0)


def evaluate_sample(network: CellNetwork, sample: TissueSample, *, target_mpp: float = 0.5) -> Evaluation:
    """Counts of one image."""
    image = resampled(sample.image, mpp=sample.mpp, target_mpp=target_mpp)
    size = (image.shape[1], image.shape[0])
    reference = nearest_labels(sample.instances, size)
    allowed = nearest_labels(sample.allowed, size).astype(np.uint16)
    maps = predicted_maps(network, image)
    labels = decoded(maps, mpp=target_mpp).labels
    names = training_ontology().names
    votes = voted_types(labels, maps)
    match = match_instances(reference, labels)
    types = count_types(
        match,
        reference_types={i: _names(int(bits)) for i, bits in enumerate(sample.classes)},
        predicted_types={i: names[int(vote)] for i, vote in enumerate(votes)},
        names=names,
    )
    known_reference, known_labels = _known_only(reference, labels, allowed)
    return Evaluation(
        strict=count_panoptic(match),
        known=count_panoptic(match_instances(known_reference, known_labels)),
        types=types,
        num_images=1,
    )


def evaluate_samples(network: CellNetwork, samples: Iterable[TissueSample]) -> dict[str, Evaluation]:
    """Pooled counts by source."""
    network.eval()
    found: dict[str, Evaluation] = {}
    for sample in samples:
        one = evaluate_sample(network, sample)
        found[sample.source] = found[sample.source] + one if sample.source in found else one
    return found


def _names(bits: int) -> frozenset[str]:
    return frozenset(name for i, name in enumerate(training_ontology().names) if bits >> (i + 1) & 1)


def _known_only(
    reference: npt.NDArray[np.int32], labels: npt.NDArray[np.int32], allowed: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Reference and prediction without what the source leaves open."""
    open_pixels = ((allowed & BACKGROUND_BIT) > 0) & (allowed > BACKGROUND_BIT)
    kept_reference = np.where(open_pixels, 0, reference)
    size = int(labels.max(initial=0)) + 1
    area = np.bincount(labels.ravel(), minlength=size)
    unsure = np.bincount(labels.ravel(), weights=open_pixels.ravel().astype(np.float64), minlength=size)
    touching = np.bincount(labels[kept_reference > 0], minlength=size)
    dropped = (unsure > 0.5 * area) & (touching < 0.3 * area)
    return kept_reference, np.where(dropped[labels], 0, labels)
