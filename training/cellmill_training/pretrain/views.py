"""Unlabelled images and the views of them that an encoder learns from.

Labels of labelled sets are not read, and of sets with splits only training images are taken: what a model is measured
on teaches no encoder either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from cellmill.grid import Box
from cellmill.synthetic.tissue import render_region
from cellmill_training.augment import AugmentConfig, blemished, od_of, restained, rgb_of
from cellmill_training.datasets.store import open_dataset
from cellmill_training.losses import Targets
from cellmill_training.mixture import Batch

__all__ = ["UnlabelledImage", "dataset_images", "drawn_views", "local_images", "synthetic_images"]

_SYNTHETIC_MPP = 0.5
_FIRST_SYNTHETIC_SEED = 770_000


@dataclass(frozen=True)
class UnlabelledImage:
    """Pixels with their scale."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    mpp: float


def dataset_images(folders: Sequence[str]) -> list[UnlabelledImage]:
    """Training images of labelled data sets."""
    datasets = [open_dataset(folder) for folder in folders]
    return [UnlabelledImage(one.image, one.mpp) for dataset in datasets for one in dataset.images("train")]


def local_images(folder: Path) -> list[UnlabelledImage]:
    """Training and unlabelled images of the sets in `docs/models/training.md`."""
    from cellmill_training.local_sets import read_training_data

    data = read_training_data(folder)
    samples = [sample for sample in data.samples if sample.split == "train"] + list(data.unlabelled)
    return [UnlabelledImage(sample.image, sample.mpp) for sample in samples]


def synthetic_images(num_regions: int, *, side_px: int = 448) -> list[UnlabelledImage]:
    """Regions of as many made-up slides."""
    boxes = [Box(600, 600, 600 + side_px, 600 + side_px)] * num_regions
    regions = [render_region(_FIRST_SYNTHETIC_SEED + number, box) for number, box in enumerate(boxes)]
    return [UnlabelledImage(region.image, _SYNTHETIC_MPP) for region in regions]


def drawn_views(
    images: Sequence[UnlabelledImage], augment: AugmentConfig, *, batch_size: int, seed: int
) -> Iterator[Batch]:
    """Endless batches of turned, mirrored, scaled and restained squares of the images, large images oftener.

    Raises:
        ValueError: when there is no image.
    """
    if not images:
        raise ValueError("There is no image to pretrain on: give --data, --datasets or --synthetic-regions.")
    rng = np.random.default_rng(seed)
    weights = np.sqrt([one.image.size * one.mpp**2 for one in images])
    chances = weights / weights.sum()
    while True:
        chosen = rng.choice(len(images), batch_size, p=chances)
        views = np.stack([_view(images[int(number)], augment, rng) for number in chosen])
        yield Batch(torch.from_numpy(views), Targets.unknown(batch_size))


def _view(one: UnlabelledImage, augment: AugmentConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    low, high = np.log(augment.scale_range)
    step = augment.target_mpp / float(np.exp(rng.uniform(low, high))) / one.mpp  # source px per px of the view
    side, (height, width) = augment.crop_px, one.image.shape[:2]
    turn, mirror = rng.uniform(0.0, 2.0 * np.pi), rng.choice([-1.0, 1.0])
    cosine, sine = np.cos(turn), np.sin(turn)
    linear = step * np.array([[cosine * mirror, -sine], [sine * mirror, cosine]])
    half = step * side / 2
    center = [rng.uniform(min(half, length / 2), max(length - half, length / 2)) for length in (width, height)]
    matrix = np.column_stack([linear, np.array(center) - linear @ np.full(2, (side - 1) / 2)])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(one.image, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    density = restained(od_of(view.astype(np.uint8)), config=augment, rng=rng)
    return blemished(rgb_of(density), rng=rng)
