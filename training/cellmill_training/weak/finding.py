"""Nuclei in an image by the segmenter: probability, threshold, and touching nuclei parted.

Consumes pixels (H, W, 3) and a network; produces instances, int32 (H, W), numbered 1..n. The paper does not say how
nuclei that touch are told apart; here each pixel of a clump goes to the peak of the distance to the border that is
nearest to it once that distance, the nucleus's radius, is taken away.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from cellmill_training.datasets.labelled_image import densely_numbered
from cellmill_training.weak.nucleus_networks import NucleusNetwork, nucleus_probability

__all__ = ["FindingConfig", "find_nuclei", "nucleus_instances"]

_MARGIN_PX = 64
"""How far a tile reaches beyond what is taken from it."""


@dataclass(frozen=True)
class FindingConfig:
    """From probabilities to nuclei."""

    threshold: float = 0.5
    """A pixel above it is of a nucleus."""
    min_um2: float = 4.0
    """Less is no nucleus."""
    peak_um: float = 2.0
    """Two centres are at least so far apart: about the radius of a lymphocyte's nucleus."""
    tile_px: int = 1024
    """Side of what the network is given at once, without margins."""


def find_nuclei(
    network: NucleusNetwork,
    image: npt.NDArray[np.uint8],
    *,
    mpp: float,
    config: FindingConfig,
    device: torch.device | None = None,
) -> npt.NDArray[np.int32]:
    """Instances (H, W) of an image (H, W, 3)."""
    on = device or torch.device("cpu")
    network.eval().to(on)
    height, width = image.shape[:2]
    probability = np.zeros((height, width), np.float32)
    for y in range(0, height, config.tile_px):
        for x in range(0, width, config.tile_px):
            tile = np.s_[y : min(y + config.tile_px, height), x : min(x + config.tile_px, width)]
            probability[tile] = _probability_of(network, image, tile, on)
    return nucleus_instances(probability, mpp=mpp, config=config)


def _probability_of(
    network: NucleusNetwork, image: npt.NDArray[np.uint8], tile: tuple[slice, slice], device: torch.device
) -> npt.NDArray[np.float32]:
    rows, columns = tile
    top, left = max(0, rows.start - _MARGIN_PX), max(0, columns.start - _MARGIN_PX)
    seen = image[top : rows.stop + _MARGIN_PX, left : columns.stop + _MARGIN_PX]
    bottom, right = (-side % network.config.multiple_px for side in seen.shape[:2])
    padded = cv2.copyMakeBorder(seen, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    batch = torch.from_numpy(padded).permute(2, 0, 1)[None].float().to(device)
    with torch.inference_mode():
        found = nucleus_probability(network(batch))[0].float().cpu().numpy()
    return found[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def nucleus_instances(
    probability: npt.NDArray[np.float32], *, mpp: float, config: FindingConfig
) -> npt.NDArray[np.int32]:
    """Instances (H, W) of a probability map."""
    mask = (probability > config.threshold).astype(np.uint8)
    components = np.asarray(cv2.connectedComponents(mask, connectivity=4)[1], np.int32)
    centres, owner = _centres(mask, components, reach_px=max(1, round(config.peak_um / mpp)))
    first = np.searchsorted(owner, np.arange(1, int(components.max()) + 2))
    labels, number = np.zeros(mask.shape, np.int32), 1
    for component, box in enumerate(ndimage.find_objects(components), start=1):
        inside = components[box] == component
        own = centres[first[component - 1] : first[component]]
        if len(own) < 2:
            labels[box][inside] = number
        else:
            rows, columns = np.nonzero(inside)
            dy, dx = rows[:, None] + box[0].start - own[:, 0], columns[:, None] + box[1].start - own[:, 1]
            labels[box][inside] = number + (np.hypot(dy, dx) - own[:, 2]).argmin(axis=1)
        number += max(1, len(own))
    large = np.bincount(labels.ravel(), minlength=1) * mpp**2 >= config.min_um2
    large[0] = False
    return densely_numbered(np.where(large[labels], labels, 0))[0]


def _centres(
    mask: npt.NDArray[np.uint8], components: npt.NDArray[np.int32], *, reach_px: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Peaks of the distance to the border, (n, 3) as (y, x, distance), and the component of each, ascending."""
    depth = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 5)
    depth = cv2.GaussianBlur(depth, (0, 0), max(0.5, 0.25 * reach_px))[1:-1, 1:-1]
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1, 2 * reach_px + 1))
    is_peak = (depth >= cv2.dilate(depth, window)) & (mask > 0)
    peaks = np.asarray(cv2.connectedComponents(is_peak.astype(np.uint8))[1], np.int64)
    rows, columns = np.nonzero(peaks)
    which = peaks[rows, columns]
    count = np.bincount(which)[1:]
    sums = [np.bincount(which, weights=values)[1:] for values in (rows, columns, depth[rows, columns])]
    centres = np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]
    owner = np.zeros(len(centres) + 1, np.int64)
    owner[which] = components[rows, columns]
    order = np.argsort(owner[1:], kind="stable")
    return centres[order], owner[1:][order]
