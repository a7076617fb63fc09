"""Points to outlines: each point of an image gets the nucleus around it.

Consumes an image and points, produces instances at the image's own resolution; instance k + 1 belongs to point k. A
pixel that several nuclei claim goes to the one surest of it. A nucleus is the 4-connected part that holds its point, or
the one nearest to it, without holes; a point where the network sees none gets a disc of the size of a small nucleus, so
that no annotation is lost.
"""

from collections.abc import Callable
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from cellmill_training.labelling.outline_network import OutlineConfig, OutlineNetwork
from cellmill_training.labelling.outline_patches import patch_inputs, scaled

__all__ = ["Outliner", "make_outliner", "outline_points"]

Outliner = Callable[[npt.NDArray[np.uint8], float, npt.NDArray[np.float64]], npt.NDArray[np.int32]]
"""(image (H, W, 3), mpp, points (n, 2)) -> instances (H, W)."""

_FALLBACK_RADIUS_UM = 2.5
_MIN_PROBABILITY = 0.5


def make_outliner(config: OutlineConfig, network: OutlineNetwork, *, batch_size: int = 32) -> Outliner:
    """An outliner of a trained network."""

    def outline(image: npt.NDArray[np.uint8], mpp: float, points_px: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        return outline_points(image, mpp, points_px, config=config, network=network, batch_size=batch_size)

    return outline


def outline_points(
    image: npt.NDArray[np.uint8],
    mpp: float,
    points_px: npt.NDArray[np.float64],
    *,
    config: OutlineConfig,
    network: OutlineNetwork,
    batch_size: int = 32,
) -> npt.NDArray[np.int32]:
    """Instances (H, W) of the points.

    Args:
        image: uint8 (H, W, 3).
        mpp: um/px of the image.
        points_px: (n, 2), x then y, px of the image.
        config: of the outliner.
        network: in evaluation mode.
        batch_size: patches at once.

    Raises:
        ValueError: when a point lies outside the image.
    """
    height, width = image.shape[:2]
    if len(points_px) and not ((points_px >= 0) & (points_px < (width, height))).all():
        outside = points_px[~((points_px >= 0) & (points_px < (width, height))).all(axis=1)][0]
        raise ValueError(f"Point ({outside[0]:g}, {outside[1]:g}) lies outside the image of {width} x {height} px.")
    pixels = scaled(image, mpp=mpp, config=config)
    points = points_px * pixels.scale
    best = np.full((pixels.height_px, pixels.width_px), _MIN_PROBABILITY, np.float32)
    labels = np.zeros(best.shape, np.int32)
    for start in range(0, len(points), batch_size):
        numbers = range(start, min(len(points), start + batch_size))
        patches = [patch_inputs(pixels, points, number, config) for number in numbers]
        batch = torch.from_numpy(np.stack([patch for patch, _ in patches])).float()  # (B, 5, S, S)
        with torch.inference_mode():
            probabilities = torch.sigmoid(network(batch))[:, 0].numpy()  # (B, S, S)
        for number, probability, (_, corner) in zip(numbers, probabilities, patches, strict=True):
            _claim(best, labels, number + 1, probability, corner)
    kept = np.zeros_like(labels)
    radius_px = _FALLBACK_RADIUS_UM / config.mpp
    for number, point in enumerate(points):
        part = _part_of(labels == number + 1, point)
        if part is None:
            part = _disc(labels.shape, point, radius_px)
        kept[part & (kept == 0)] = number + 1
    return _to_size(kept, (width, height), points_px)


def _claim(
    best: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int32],
    label: int,
    probability: npt.NDArray[np.float32],
    corner: tuple[int, int],
) -> None:
    x, y = corner
    height, width = best.shape
    y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + len(probability), height), min(x + len(probability), width)
    inside = probability[y0 - y : y1 - y, x0 - x : x1 - x]
    surer = inside > best[y0:y1, x0:x1]
    best[y0:y1, x0:x1][surer] = inside[surer]
    labels[y0:y1, x0:x1][surer] = label


def _part_of(mask: npt.NDArray[np.bool_], point: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_] | None:
    """The part of a mask that holds the point or lies nearest to it, its holes filled."""
    parts, num_parts = cast(tuple[npt.NDArray[np.int32], int], ndimage.label(mask))
    if not num_parts:
        return None
    x, y = (int(value) for value in np.floor(point))
    own = int(parts[min(y, mask.shape[0] - 1), min(x, mask.shape[1] - 1)])
    if not own:
        rows, columns = np.nonzero(mask)
        nearest = int(np.argmin((rows + 0.5 - point[1]) ** 2 + (columns + 0.5 - point[0]) ** 2))
        own = int(parts[rows[nearest], columns[nearest]])
    return np.asarray(ndimage.binary_fill_holes(parts == own), np.bool_)


def _disc(shape: tuple[int, ...], point: npt.NDArray[np.float64], radius_px: float) -> npt.NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (columns + 0.5 - point[0]) ** 2 + (rows + 0.5 - point[1]) ** 2 <= radius_px**2


def _to_size(
    labels: npt.NDArray[np.int32], size: tuple[int, int], points_px: npt.NDArray[np.float64]
) -> npt.NDArray[np.int32]:
    """Labels at the image's own size; a nucleus that fell between its pixels keeps the one under its point."""
    # OpenCV resizes no int32, and float32 holds every label below 2^24 exactly.
    resized = cv2.resize(labels.astype(np.float32), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
    for number in np.setdiff1d(np.arange(1, len(points_px) + 1), resized):
        x, y = (int(value) for value in np.floor(points_px[number - 1]))
        resized[y, x] = number
    return resized
