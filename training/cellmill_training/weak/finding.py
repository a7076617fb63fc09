"""Nuclei in an image by the segmenter: probability, threshold, and touching nuclei parted.

Consumes pixels (H, W, 3) and a network; produces instances, int32 (H, W), numbered 1..n. The paper does not say how
nuclei that touch are told apart; here a watershed grows from the peaks of the distance to the border.
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
_DEPTHS = 255.0


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
    """Instances (H, W) of a probability map, one connected piece each."""
    mask = (probability > config.threshold).astype(np.uint8)
    depth = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 5)
    depth = cv2.GaussianBlur(depth, (0, 0), max(0.5, 0.25 * config.peak_um / mpp))[1:-1, 1:-1]
    reach = max(1, round(config.peak_um / mpp))
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    peaks = ((depth >= cv2.dilate(depth, window)) & (mask > 0)).astype(np.uint8)
    _, markers = cv2.connectedComponents(peaks, connectivity=8)
    if not markers.any():
        return np.zeros(mask.shape, np.int32)
    # The flood starts in the depths; what is outside is one more basin, below which nothing flows.
    cost = np.where(mask > 0, _DEPTHS - np.minimum(depth / (4.0 * reach), 1.0) * (_DEPTHS - 1.0), 0.0)
    seeds = np.where(mask > 0, markers, -1).astype(np.int32)
    flooded = ndimage.watershed_ift(cost.astype(np.uint8), seeds, structure=np.ones((3, 3), int))
    labels = np.where((mask > 0) & (flooded > 0), flooded, 0)
    areas = np.bincount(labels.ravel())
    keep = areas * mpp**2 >= config.min_um2
    keep[0] = False
    return densely_numbered(np.where(keep[labels], labels, 0))[0]
