"""Batches of a labelled data set, each a pure function of the step.

An epoch shows every training image once for each crop's worth of its area, in an order drawn anew; each crop is turned,
mirrored, scaled, restained and blemished by numbers that depend on seed, epoch and crop alone. So a run that resumes at
step n sees what it would have seen, and workers share an epoch without talking.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import OntologyMapping
from cellmill_training.augment import AugmentConfig, Crop, geometric_crop, reappeared
from cellmill_training.datasets.mapping import mapped
from cellmill_training.datasets.store import LabelledDataset
from cellmill_training.datasets.training_samples import sample_of
from cellmill_training.mixture import Batch, prefetched, stacked
from cellmill_training.samples import TissueSample

__all__ = ["CropsConfig", "LabelledCrops"]

_FINER_THAN_GRID = 0.72
"""Samples are kept at up to this share of the model grid's um/px, so that no random scale enlarges them much."""


@dataclass(frozen=True)
class CropsConfig:
    """What a batch is made of."""

    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(crop_px=256, scale_range=(0.8, 1.25)))
    """Size, scale and colour of crops."""
    batch_size: int = 8
    """Crops a step and worker."""
    seed: int = 0
    """Of order and crops."""
    fixed_variants: int = 0
    """0 draws every crop anew in every epoch. n draws each crop in n ways and goes round them, so that what a frozen
    network says of it can be kept."""
    nucleus_share: float = 0.7
    """How many crops of an image larger than a crop are centred near a nucleus."""
    rare_share: float = 0.25
    """How many of those near a nucleus of the image's rarer classes."""
    memory_bytes: int = 2 << 30
    """Decoded images are kept up to this size; beyond it those not seen for longest are read again."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.fixed_variants < 0:
            raise ValueError(
                f"batch_size must be positive and fixed_variants not negative, got {self.batch_size} and "
                f"{self.fixed_variants}."
            )

    def at_scale(self, target_mpp: float) -> "CropsConfig":
        """The same crops on a model grid of `target_mpp` um/px."""
        return replace(self, augment=replace(self.augment, target_mpp=target_mpp))


class LabelledCrops:
    """Crops of some of a data set's images, for one of several workers."""

    def __init__(
        self,
        dataset: LabelledDataset,
        image_ids: Sequence[str],
        config: CropsConfig,
        *,
        mapping: OntologyMapping,
        with_hv: bool = False,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
    ) -> None:
        """Plan the epochs; images are read when they are needed.

        Args:
            dataset: where images are.
            image_ids: of the images to crop.
            config: size and looks of crops.
            mapping: from the data set's ontology to the network's.
            with_hv: whether targets hold the hv family's distances.
            rank: of this worker.
            world: how many workers share an epoch.
            threads: that make crops at once.

        Raises:
            ValueError: when there is no image.
        """
        if not image_ids:
            raise ValueError(
                f"No image to train on in {dataset.store.url}: its training split, or the folds asked for, are empty."
            )
        self.config = config
        self._dataset, self._mapping, self._with_hv = dataset, mapping, with_hv
        self._rank, self._world, self._threads = rank, world, threads
        wanted = set(image_ids)
        rows = [row for row in dataset.index.to_pylist() if row["image_id"] in wanted]
        self._items = [(str(row["image_id"]), part) for row in rows for part in range(_num_parts(row, config.augment))]
        self._samples: OrderedDict[str, TissueSample] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    @property
    def num_crops(self) -> int:
        """Crops an epoch, of all workers."""
        return len(self._items)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show every crop once; the last batch is filled up from the start of the order."""
        return math.ceil(len(self._items) / (self.config.batch_size * self._world))

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        return stacked(
            [self._crop(epoch, index) for epoch, index in self._places(step)],
            with_hv=self._with_hv,
        )

    def batches(self, first_step: int = 0, *, prefetch: int = 4) -> Iterator[Batch]:
        """Endless batches from a step on, made ahead by threads."""
        made = self._made(first_step)
        return prefetched(made, prefetch) if prefetch else made

    def _made(self, first_step: int) -> Iterator[Batch]:
        if self._threads == 1:
            step = first_step
            while True:
                yield self.batch(step)
                step += 1
        with ThreadPoolExecutor(self._threads, thread_name_prefix="crops") as pool:
            step = first_step
            while True:
                epochs, items = zip(*self._places(step), strict=True)
                crops = list(pool.map(self._crop, epochs, items))
                yield stacked(crops, with_hv=self._with_hv)
                step += 1

    def _places(self, step: int) -> list[tuple[int, int]]:
        """Epoch and item of each crop of this worker's batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self._items))
        size = self.config.batch_size
        first = (within * self._world + self._rank) * size
        return [(epoch, int(order[(first + number) % len(order)])) for number in range(size)]

    def _crop(self, epoch: int, index: int) -> Crop:
        variant = epoch % self.config.fixed_variants if self.config.fixed_variants else epoch
        rng = np.random.default_rng([self.config.seed, 1 + variant, index])
        sample = self._sample(self._items[index][0])
        center = _center(sample, self.config, rng)
        crop = geometric_crop(sample, center_xy=center, config=self.config.augment, rng=rng)
        return reappeared(crop, config=self.config.augment, rng=rng)

    def _sample(self, image_id: str) -> TissueSample:
        with self._lock:
            if image_id in self._samples:
                self._samples.move_to_end(image_id)
                return self._samples[image_id]
        sample = sample_of(
            mapped(self._dataset.read(image_id), self._mapping),
            ontology=self._mapping.target,
            split=self._dataset.split_of(image_id),
            store_mpp=_FINER_THAN_GRID * self.config.augment.target_mpp,
        )
        with self._lock:
            if image_id not in self._samples:
                self._samples[image_id] = sample
                self._bytes += _size(sample)
            while self._bytes > self.config.memory_bytes and len(self._samples) > 1:
                self._bytes -= _size(self._samples.popitem(last=False)[1])
        return sample


def _num_parts(row: dict[str, object], augment: AugmentConfig) -> int:
    """How many crops an image of the index holds, at least one."""
    height, width, mpp = (float(str(row[name])) for name in ("height_px", "width_px", "mpp"))
    return max(1, round(height * width * mpp**2 / (augment.crop_px * augment.target_mpp) ** 2))


def _center(sample: TissueSample, config: CropsConfig, rng: np.random.Generator) -> tuple[float, float]:
    """Where a crop lies, in px of the sample: inside where the image is larger, on its centre where it is not."""
    height, width = sample.instances.shape
    half = config.augment.crop_px * config.augment.target_mpp / sample.mpp / 2
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    if rng.random() < config.nucleus_share:
        point = _near_nucleus(sample, rare=bool(rng.random() < config.rare_share), rng=rng)
        x, y = point or (x, y)
    return _within(x, width, half), _within(y, height, half)


def _within(value: float, side: int, half: float) -> float:
    return side / 2 if side <= 2.2 * half else float(np.clip(value, half, side - half))


def _near_nucleus(sample: TissueSample, *, rare: bool, rng: np.random.Generator) -> tuple[float, float] | None:
    labels = np.arange(1, len(sample.classes))
    if len(labels) == 0:
        return None
    chances: npt.NDArray[np.float64] | None = None
    if rare:
        _, group, sizes = np.unique(sample.classes[1:], return_inverse=True, return_counts=True)
        weights = 1.0 / sizes[group]
        chances = weights / weights.sum()
    ys, xs = np.nonzero(sample.instances == int(rng.choice(labels, p=chances)))
    if len(xs) == 0:  # lost when the image was brought to its stored size
        return None
    spread = rng.normal(0.0, 20.0, 2)
    return float(xs.mean() + spread[0]), float(ys.mean() + spread[1])


def _size(sample: TissueSample) -> int:
    arrays = (sample.image, sample.instances, sample.allowed, sample.flow, sample.flow_known)
    return sum(array.nbytes for array in arrays)
