"""What a training batch is made of: crops drawn from all sources in stated shares.

Consumes samples and textures held in memory, produces endless batches of arrays. The draw is seeded, so that a run
without workers repeats exactly.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellmill.instances.targets import masks_to_hv
from cellmill_training.augment import AugmentConfig, Crop, geometric_crop, pink_tissue, reappeared
from cellmill_training.losses import Targets
from cellmill_training.negatives import glass_crop, plain_tissue_crop, texture_crop
from cellmill_training.samples import TissueSample

__all__ = ["Batch", "CropSource", "MixtureConfig", "batches", "prefetched", "stacked"]

HEMATOXYLIN_ONLY = "dsb18"


@dataclass(frozen=True)
class MixtureConfig:
    """Shares of sources in a batch; `glass` and `plain_tissue` are made, the others are read."""

    shares: Mapping[str, float] = field(
        default_factory=lambda: {
            "monusac": 0.28,
            "puma": 0.13,
            "dsb18": 0.17,
            "dsb18_he": 0.02,
            "nucls": 0.05,
            "brecahad": 0.03,
            "pseudo": 0.25,
            "synthetic": 0.25,
            "empty_areas": 0.05,
            "glass": 0.02,
            "plain_tissue": 0.03,
        }
    )
    """A source that was not read is left out and the others share its part."""
    rare_share: float = 0.25
    """How many crops are centred on a nucleus of the rarer classes, where the source has any."""


@dataclass(frozen=True)
class Batch:
    """One training batch."""

    images: Tensor  # uint8 (B, S, S, 3)
    targets: Targets
    features: tuple[Tensor, ...] = ()
    """What a frozen encoder says of the images, where that is kept; the network is then called with them too."""


class CropSource:
    """Draws crops from samples by source."""

    def __init__(
        self,
        samples: Sequence[TissueSample],
        textures: Sequence[npt.NDArray[np.float32]],
        *,
        mixture: MixtureConfig,
        augment: AugmentConfig,
    ) -> None:
        self._augment = augment
        self._mixture = mixture
        self._textures = list(textures)
        self._samples: dict[str, list[TissueSample]] = {}
        for sample in samples:
            self._samples.setdefault(sample.source, []).append(sample)
        made = {"glass", "plain_tissue"} if textures else {"glass"}
        shares = {name: share for name, share in mixture.shares.items() if name in self._samples or name in made}
        if not any(name in self._samples and share > 0 for name, share in shares.items()):
            raise ValueError(
                f"None of the sources {sorted(self._samples)} has a share in the mixture {dict(mixture.shares)}."
            )
        self._names = list(shares)
        weights = np.array(list(shares.values()))
        self._chances = weights / weights.sum()
        self._image_chances = {name: _by_area(group) for name, group in self._samples.items()}
        self._centers = {id(s): _centers(s) for group in self._samples.values() for s in group}

    def draw(self, rng: np.random.Generator) -> Crop:
        """One augmented crop."""
        name = self._names[int(rng.choice(len(self._names), p=self._chances))]
        side = self._augment.crop_px
        if name == "glass":
            crop = glass_crop(side, rng=rng)
        elif name == "plain_tissue":
            crop = plain_tissue_crop(self._texture(rng), rng=rng)
        else:
            crop = self._from_sample(name, rng)
        return reappeared(crop, config=self._augment, rng=rng)

    def _texture(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        texture = self._textures[int(rng.integers(len(self._textures)))]
        return texture_crop(texture, self._augment.crop_px, rng=rng)

    def _from_sample(self, name: str, rng: np.random.Generator) -> Crop:
        group = self._samples[name]
        sample = group[int(rng.choice(len(group), p=self._image_chances[name]))]
        points, chances = self._centers[id(sample)]
        height, width = sample.image.shape[:2]
        if len(points) and rng.random() < 0.7:
            rare = rng.random() < self._mixture.rare_share
            index = int(rng.choice(len(points), p=chances if rare else None))
            x, y = points[index] + rng.normal(0.0, 25.0, 2)
        else:
            x, y = rng.uniform(0, width), rng.uniform(0, height)
        center = (float(np.clip(x, 0, width - 1)), float(np.clip(y, 0, height - 1)))
        crop = geometric_crop(sample, center_xy=center, config=self._augment, rng=rng)
        if name == HEMATOXYLIN_ONLY and self._textures and rng.random() < self._augment.pink_probability:
            pink = pink_tissue(crop, self._texture(rng), rng=rng)
            return Crop(pink, crop.allowed, crop.flow, crop.flow_known, crop.instances)
        return crop


def _by_area(group: Sequence[TissueSample]) -> npt.NDArray[np.float64]:
    """Square root of area: large images count more, yet small ones are seen too."""
    weights = np.sqrt([float(sample.instances.size) for sample in group])
    return weights / weights.sum()


def _centers(sample: TissueSample) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centres (n, 2) as x, y of the instances, and chances that favour rare label sets."""
    ys, xs = np.nonzero(sample.instances)
    labels = sample.instances[ys, xs]
    counts = np.bincount(labels).astype(np.float64)
    present = np.flatnonzero(counts > 0)
    if len(present) == 0:
        return np.zeros((0, 2)), np.zeros(0)
    sums_x, sums_y = np.bincount(labels, weights=xs), np.bincount(labels, weights=ys)
    points = np.stack([sums_x[present], sums_y[present]], axis=1) / counts[present, None]
    _, group, sizes = np.unique(sample.classes[present], return_inverse=True, return_counts=True)
    weights = 1.0 / sizes[group]
    return points, weights / weights.sum()


def _made(source: CropSource, *, batch_size: int, seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    while True:
        yield stacked([source.draw(rng) for _ in range(batch_size)])


def stacked(crops: Sequence[Crop], *, with_hv: bool = False) -> Batch:
    """Crops of one size as a batch; `with_hv` adds the hv family's targets."""
    hv = torch.from_numpy(np.stack([masks_to_hv(crop.instances) for crop in crops])) if with_hv else None
    return Batch(
        images=torch.from_numpy(np.stack([crop.image for crop in crops])),
        targets=Targets(
            allowed_bits=torch.from_numpy(np.stack([crop.allowed for crop in crops]).astype(np.int32)),
            flow=torch.from_numpy(np.stack([crop.flow for crop in crops])),
            flow_known=torch.from_numpy(np.stack([crop.flow_known for crop in crops])),
            hv=hv,
        ),
    )


def batches(source: CropSource, *, batch_size: int, seed: int, prefetch: int = 0) -> Iterator[Batch]:
    """Endless batches; with `prefetch`, a thread makes that many ahead while a step runs.

    A thread and not a process: NumPy and OpenCV let go of the interpreter lock, the samples need no second copy, and a
    process forked after OpenCV has started its own threads hangs at its first call.
    """
    made = _made(source, batch_size=batch_size, seed=seed)
    if prefetch == 0:
        return made
    return prefetched(made, prefetch)


def prefetched(made: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same batches, made up to `depth` ahead by a thread."""
    # A pool, because the interpreter waits for its threads: one inside OpenCV or torch at the end aborts the process.
    with ThreadPoolExecutor(1, thread_name_prefix="crops", initializer=partial(cv2.setNumThreads, 1)) as pool:
        waiting = deque(pool.submit(next, made) for _ in range(depth))
        try:
            while True:
                batch = waiting.popleft().result()
                waiting.append(pool.submit(next, made))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
