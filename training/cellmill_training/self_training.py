"""Self-training: a trained network labels unlabelled H&E, and the next one learns from what it was sure of.

Consumes images and a network, produces `TissueSample`s of source `pseudo`. Predictions are averaged over the eight
turns and mirrors, which is a better network than the one that is trained. Pixels where that average
is undecided are left open (all bits set), cells whose pixels are mostly undecided get no flow, and a type counts only
where it is clear. The second stage sees these images under strong stain changes (a noisy student), and that is where it
gains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from cellmill.instances.maps import DenseMaps, quantise_flow, quantise_prob
from cellmill.models.config import FLOW_CHANNELS
from cellmill.models.networks import CellNetwork
from cellmill_training.evaluation.predictions import decoded
from cellmill_training.samples import (
    BACKGROUND_BIT,
    Labels,
    TissueSample,
    any_class,
    everything,
    make_sample,
    resampled,
)

__all__ = ["PseudoLabelConfig", "averaged_maps", "pseudo_labelled", "pseudo_labelled_samples"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PseudoLabelConfig:
    """How sure a label must be."""

    sure_nucleus: float = 0.6
    """Foreground probability from which a pixel of a cell is a nucleus."""
    sure_background: float = 0.25
    """Foreground probability up to which a pixel is background."""
    sure_cell: float = 0.75
    """Mean foreground probability from which a cell's outline is learnt."""
    sure_type: float = 0.75
    """Mean probability from which a cell's type is learnt; below it the cell is of any type."""
    scales: tuple[float, ...] = (0.8, 1.0, 1.25)
    """Images are shown enlarged by these factors; the average of three is a better network than of one."""


def averaged_maps(network: CellNetwork, image: npt.NDArray[np.uint8], *, scales: Sequence[float]) -> DenseMaps:
    """Maps averaged over turns, mirrors and scales.

    Args:
        network: in evaluation mode.
        image: (H, W, 3) at the network's scale.
        scales: factors of enlargement.
    """
    total = None
    for scale in scales:
        height, width = image.shape[:2]
        shown = image if scale == 1.0 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        mean = sum(
            _turned_prediction(network, shown.astype(np.uint8), turns=turns, mirror=mirror)
            for turns in range(4)
            for mirror in (False, True)
        )
        planes = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in np.asarray(mean) / 8]
        stacked = np.stack(planes)
        total = stacked if total is None else total + stacked
    assert total is not None
    outputs = total / len(scales)  # (2 + K, H, W)
    flow = outputs[:FLOW_CHANNELS]
    # Averaging shortens flows where the views disagree; the decoder wants unit steps.
    flow = flow / np.maximum(np.sqrt((flow**2).sum(axis=0, keepdims=True)), 1e-3)
    return DenseMaps(quantise_flow(flow), quantise_prob(outputs[FLOW_CHANNELS:]), (0, 0))


def _turned_prediction(network: CellNetwork, image: npt.NDArray[np.uint8], *, turns: int, mirror: bool) -> FloatArray:
    """Flows and probabilities (2 + K, H, W) predicted on a turned image and turned back."""
    shown = np.rot90(image, turns)
    shown = np.ascontiguousarray(shown[:, ::-1] if mirror else shown)
    height, width = shown.shape[:2]
    padded = cv2.copyMakeBorder(shown, 32, 32 + -height % 64, 32, 32 + -width % 64, cv2.BORDER_REFLECT_101)
    with torch.inference_mode():
        raw = network(torch.from_numpy(padded).permute(2, 0, 1)[None].float())[0, :, 32 : 32 + height, 32 : 32 + width]
        prob = torch.softmax(raw[FLOW_CHANNELS:], dim=0).numpy()
        dy, dx = raw[0].numpy(), raw[1].numpy()
    planes = np.stack([dy, dx, *prob])
    if mirror:
        planes = planes[:, :, ::-1].copy()
        planes[1] *= -1.0
    for _ in range(turns):
        # One quarter turn back (clockwise): (dy, dx) -> (dx, -dy).
        planes = np.rot90(planes, -1, axes=(1, 2)).copy()
        planes[0], planes[1] = planes[1].copy(), -planes[0]
    return planes.astype(np.float32)


def pseudo_labelled(
    network: CellNetwork,
    image: npt.NDArray[np.uint8],
    *,
    mpp: float,
    name: str,
    config: PseudoLabelConfig,
    hints: TissueSample | None = None,
) -> TissueSample:
    """One image with the labels the network is sure of.

    Args:
        network: in evaluation mode.
        image: unlabelled pixels at `mpp`.
        mpp: micrometres per pixel of `image`.
        name: of the sample.
        config: thresholds.
        hints: what a person has said of the same image; it overrules the network wherever it says something.
    """
    shown = resampled(image, mpp=mpp, target_mpp=network.config.target_mpp)
    maps = averaged_maps(network, shown, scales=config.scales)
    labels = decoded(maps, network.config).labels
    prob = maps.prob.astype(np.float32) / 255.0
    foreground = 1.0 - prob[0]
    bits, sure = _judged(labels, prob, foreground, config)
    allowed = np.full(labels.shape, everything(), np.uint16)
    allowed[foreground <= config.sure_background] = BACKGROUND_BIT
    inside = (labels > 0) & (foreground >= config.sure_nucleus)
    allowed[inside] = bits[labels[inside]]
    allowed[(labels == 0) & (foreground > config.sure_background)] = everything()
    size = (image.shape[1], image.shape[0])
    instances = _enlarged(labels, size)
    wide = _enlarged(allowed, size).astype(np.uint16)
    if hints is not None:
        wide = _with_hints(wide, instances, hints, size)
    known = sure[instances] & (instances > 0)
    return make_sample(
        image, Labels(instances, wide, known), mpp=mpp, name=name, source="pseudo", group=name, split="train"
    )


def pseudo_labelled_samples(
    network: CellNetwork, samples: Sequence[TissueSample], *, config: PseudoLabelConfig
) -> list[TissueSample]:
    """Unlabelled or sparsely labelled samples with the network's labels added; what people said of them stays."""
    return [
        pseudo_labelled(
            network, sample.image, mpp=sample.mpp, name=f"pseudo-{sample.name}", config=config, hints=sample
        )
        for sample in samples
    ]


def _judged(
    labels: npt.NDArray[np.int32], prob: FloatArray, foreground: FloatArray, config: PseudoLabelConfig
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_]]:
    """Allowed set of each cell, and whether its outline is learnt."""
    size = int(labels.max(initial=0)) + 1
    flat = labels.ravel()
    area = np.maximum(np.bincount(flat, minlength=size), 1)
    detected = np.bincount(flat, weights=foreground.ravel(), minlength=size) / area
    votes = np.stack([np.bincount(flat, weights=plane.ravel(), minlength=size) for plane in prob[1:]])
    votes = votes / np.maximum(votes.sum(axis=0), 1e-6)
    best = votes.argmax(axis=0)
    bits = np.where(votes.max(axis=0) >= config.sure_type, 1 << (1 + best), any_class())
    sure = detected >= config.sure_cell
    bits = np.where(sure, bits, everything())
    bits[0], sure[0] = int(BACKGROUND_BIT), False
    return bits.astype(np.uint16), sure


def _enlarged(array: npt.NDArray[np.integer], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    return cv2.resize(array.astype(np.float32), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)


def _with_hints(
    allowed: npt.NDArray[np.uint16], instances: npt.NDArray[np.int32], hints: TissueSample, size: tuple[int, int]
) -> npt.NDArray[np.uint16]:
    """Types a person gave to nuclei, spread over the cell that holds most of the mark."""
    said = _enlarged(hints.allowed, size).astype(np.uint16)
    marks = _enlarged(hints.instances, size)
    result = allowed.copy()
    for mark in np.unique(marks[marks > 0]).tolist():
        here = marks == mark
        given = int(said[here][0])
        cells = np.bincount(instances[here])
        cell = int(cells.argmax())
        result[here] = given
        if cell and cells[cell] > 0.6 * here.sum():
            result[(instances == cell) & ((allowed & BACKGROUND_BIT) == 0)] = given
    sure_glass = (said == BACKGROUND_BIT) & (marks == 0)
    result[sure_glass] = BACKGROUND_BIT
    return result
