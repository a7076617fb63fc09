"""Patches of the outliner: pixels around a point, where the nucleus asked for is, and where the others are.

An image is mirrored beyond its border, so a nucleus at the rim has a whole patch. Points are in px of the image at the
outliner's scale, x then y.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.labelling.outline_network import OutlineConfig
from cellmill_training.samples import nearest_labels, resampled

__all__ = ["ScaledImage", "TrainingPatches", "centroids_px", "patch_inputs", "scaled", "training_patches"]


@dataclass(frozen=True)
class ScaledImage:
    """An image at the outliner's scale, with half a patch of mirrored border."""

    padded: npt.NDArray[np.uint8]  # (H + S, W + S, 3)
    height_px: int
    width_px: int
    scale: float
    """Px of this image per px of the original."""


@dataclass(frozen=True)
class TrainingPatches:
    """Patches with the masks to learn; row k of each array is one nucleus."""

    inputs: npt.NDArray[np.uint8]  # (n, 5, S, S); inclusion and exclusion are 0 or 1
    masks: npt.NDArray[np.bool_]  # (n, S, S), the nucleus
    others: npt.NDArray[np.bool_]  # (n, S, S), other nuclei


def scaled(image: npt.NDArray[np.uint8], *, mpp: float, config: OutlineConfig) -> ScaledImage:
    """Bring an image to the outliner's scale."""
    pixels = resampled(image, mpp=mpp, target_mpp=config.mpp)
    half = config.patch_px // 2
    padded = cv2.copyMakeBorder(pixels, half, half, half, half, cv2.BORDER_REFLECT_101)
    return ScaledImage(padded.astype(np.uint8), pixels.shape[0], pixels.shape[1], mpp / config.mpp)


def patch_inputs(
    image: ScaledImage, points_px: npt.NDArray[np.float64], number: int, config: OutlineConfig
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """The network's input (5, S, S) for one of the points (n, 2), and the patch's corner (x, y) in the image."""
    side, half = config.patch_px, config.patch_px // 2
    x, y = (int(value) for value in np.floor(points_px[number]))
    x, y = min(max(x, 0), image.width_px - 1), min(max(y, 0), image.height_px - 1)
    corner = (x - half, y - half)
    patch = np.zeros((5, side, side), np.uint8)
    patch[:3] = image.padded[y : y + side, x : x + side].transpose(2, 0, 1)
    near = (np.abs(points_px - points_px[number]) <= half + config.disc_radius_px).all(axis=1)
    for index in np.flatnonzero(near):
        place = np.floor(points_px[index]).astype(int) - corner
        channel = 3 if index == number else 4
        cv2.circle(patch[channel], (int(place[0]), int(place[1])), config.disc_radius_px, 1, -1)
    patch[4][patch[3] > 0] = 0  # a disc of a neighbour never covers the nucleus asked for
    return patch, corner


def centroids_px(instances: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Centres of mass (n, 2) of labels 1..n, x then y, pixel centres at a half."""
    size = int(instances.max(initial=0)) + 1
    count = np.maximum(np.bincount(instances.ravel(), minlength=size), 1)
    rows, columns = np.indices(instances.shape)
    x = np.bincount(instances.ravel(), weights=columns.ravel() + 0.5, minlength=size) / count
    y = np.bincount(instances.ravel(), weights=rows.ravel() + 0.5, minlength=size) / count
    return np.stack([x, y], axis=1)[1:]


def training_patches(
    images: Iterable[LabelledImage], config: OutlineConfig, *, jitter_px: float, seed: int, most: int
) -> TrainingPatches:
    """One patch for each nucleus; its point is the centroid with Gaussian noise, moved back where it left the nucleus.

    Args:
        images: with outlines that can be trusted.
        config: of the outliner.
        jitter_px: deviation of the noise on points, px of the patch.
        seed: of the noise, and of the choice where there are more than `most`.
        most: nuclei at the most, drawn evenly.

    Raises:
        ValueError: when no image has a nucleus.
    """
    rng = np.random.default_rng(seed)
    inputs: list[npt.NDArray[np.uint8]] = []
    masks: list[npt.NDArray[np.bool_]] = []
    others: list[npt.NDArray[np.bool_]] = []
    half = config.patch_px // 2
    for image in images:
        pixels = scaled(image.image, mpp=image.mpp, config=config)
        instances = nearest_labels(image.instances, (pixels.width_px, pixels.height_px))
        points = centroids_px(instances) + rng.normal(0.0, jitter_px, (int(instances.max(initial=0)), 2))
        points = _back_onto_nuclei(points, instances)
        padded = cv2.copyMakeBorder(instances, half, half, half, half, cv2.BORDER_CONSTANT, value=0)
        for number in range(len(points)):
            if not (instances == number + 1).any():
                continue  # smaller than a pixel at this scale
            patch, (x, y) = patch_inputs(pixels, points, number, config)
            window = padded[y + half : y + half + config.patch_px, x + half : x + half + config.patch_px]
            inputs.append(patch)
            masks.append(window == number + 1)
            others.append((window > 0) & (window != number + 1))
    if not inputs:
        raise ValueError("There is no nucleus to learn outlines from; give a data set with instances.")
    chosen = np.sort(rng.permutation(len(inputs))[:most])
    return TrainingPatches(*(np.stack([rows[k] for k in chosen]) for rows in (inputs, masks, others)))


def _back_onto_nuclei(points: npt.NDArray[np.float64], instances: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    moved = points.copy()
    height, width = instances.shape
    for number, (x, y) in enumerate(points):
        column, row = int(np.clip(x, 0, width - 1)), int(np.clip(y, 0, height - 1))
        if instances[row, column] == number + 1:
            continue
        rows, columns = np.nonzero(instances == number + 1)
        if len(rows):
            nearest = int(np.argmin((rows - y) ** 2 + (columns - x) ** 2))
            moved[number] = columns[nearest] + 0.5, rows[nearest] + 0.5
    return moved
