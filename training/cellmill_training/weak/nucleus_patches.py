"""Patches that the nucleus segmenter learns from: a grid without overlap over each image at each resolution.

Consumes labelled data sets; produces batches, each a pure function of the step, so that a resumed run sees what it
would have seen. Háberová and Vykopal 2023, section 4.1: 512 x 512 px, sliding window without overlap, padded with
zeros where an image ends; what is padded is not learnt from. Images of all data sets are read once into a bounded
cache.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import LabelledDataset
from cellmill_training.losses import Targets
from cellmill_training.mixture import Batch
from cellmill_training.weak.masks import NUCLEUS, UNKNOWN, at_resolution, nucleus_map
from cellmill_training.weak.stain_normalising import normalised_image

__all__ = ["NucleusPatches", "PatchConfig"]

_BITS = np.array([0b01, 0b10, 0b11], np.int32)
"""Of `Targets.allowed_bits`: outside, nucleus, unknown."""


@dataclass(frozen=True)
class PatchConfig:
    """What is cut out of images."""

    patch_px: int = 512
    """Side of a patch."""
    factors: tuple[int, ...] = (1, 2, 4)
    """Resolutions: how many times fewer pixels each way."""
    normalise: bool = False
    """Whether stains are normalised (Macenko)."""
    memory_bytes: int = 2 << 30
    """Images are kept up to this size; beyond it those not seen for longest are read again."""

    def __post_init__(self) -> None:
        if self.patch_px < 16 or not self.factors or min(self.factors) < 1:
            raise ValueError(
                f"Patches need patch_px of 16 or more and whole factors, got {self.patch_px} and {self.factors}."
            )

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "PatchConfig":
        """Parse what `asdict` makes of it."""
        values: dict[str, Any] = {**document, "factors": tuple(document["factors"])}
        return PatchConfig(**values)


class _Place(NamedTuple):
    dataset: int
    image_id: str
    factor: int
    y: int
    x: int


class NucleusPatches:
    """All patches of some data sets' splits, for one of several workers."""

    def __init__(
        self,
        datasets: Sequence[LabelledDataset],
        split: Split,
        config: PatchConfig,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Plan the patches; images are read when they are needed.

        Raises:
            ValueError: when the split has no image.
        """
        self.config = config
        self._datasets, self._batch_size, self._seed = tuple(datasets), batch_size, seed
        self._rank, self._world = rank, world
        self._places = [
            place
            for number, dataset in enumerate(datasets)
            for row in dataset.index.to_pylist()
            if row["split"] == split
            for place in _places(number, row, config)
        ]
        if not self._places:
            raise ValueError(f"No image to cut patches from in the {split} split of {_names(datasets)}.")
        self._images: OrderedDict[tuple[int, str, int], tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]
        self._images = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show every patch once; the last batch is filled up from the start of the order."""
        return math.ceil(len(self._places) / (self._batch_size * self._world))

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Endless batches from a step on, turned and mirrored."""
        step = first_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._places))
        first = (within * self._world + self._rank) * self._batch_size
        chosen = [int(order[(first + number) % len(order)]) for number in range(self._batch_size)]
        pairs = [_turned(*self.patch(k), rng=np.random.default_rng([self._seed, 1 + epoch, k])) for k in chosen]
        return _batch(pairs)

    def in_order(self) -> Iterator[Batch]:
        """All patches once as they are, in batches of one size or less: what validation looks at."""
        for start in range(0, len(self._places), self._batch_size):
            yield _batch([self.patch(k) for k in range(start, min(start + self._batch_size, len(self._places)))])

    def patch(self, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Pixels (S, S, 3) and nucleus map (S, S)."""
        place, side = self._places[number], self.config.patch_px
        image, known = self._image(place)
        pixels, values = np.zeros((side, side, 3), np.uint8), np.full((side, side), UNKNOWN, np.uint8)
        cut = np.s_[place.y : place.y + side, place.x : place.x + side]
        height, width = known[cut].shape
        pixels[:height, :width], values[:height, :width] = image[cut], known[cut]
        return pixels, values

    def _image(self, place: _Place) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        key = (place.dataset, place.image_id, place.factor)
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        whole = self._datasets[place.dataset].read(place.image_id)
        image = at_resolution(normalised_image(whole) if self.config.normalise else whole, place.factor)
        pair = image.image, nucleus_map(image)
        self._images[key] = pair
        self._bytes += sum(array.nbytes for array in pair)
        while self._bytes > self.config.memory_bytes and len(self._images) > 1:
            self._bytes -= sum(array.nbytes for array in self._images.popitem(last=False)[1])
        return pair


def _places(number: int, row: dict[str, object], config: PatchConfig) -> Iterator[_Place]:
    height, width = int(str(row["height_px"])), int(str(row["width_px"]))
    for factor in config.factors:
        for y in range(0, max(1, height // factor), config.patch_px):
            for x in range(0, max(1, width // factor), config.patch_px):
                yield _Place(number, str(row["image_id"]), factor, y, x)


def _names(datasets: Sequence[LabelledDataset]) -> str:
    return ", ".join(dataset.name for dataset in datasets) or "no data set"


def _turned(
    pixels: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8], *, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    both = (np.rot90(pixels, turns), np.rot90(values, turns))
    first, second = (array[:, ::-1] if mirrored else array for array in both)
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


def _batch(pairs: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]) -> Batch:
    pixels, values = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    nothing = torch.zeros(len(pairs), 2, 0, 0)
    targets = Targets(
        allowed_bits=torch.from_numpy(_BITS[values]), flow=nothing, flow_known=nothing[:, 0].to(torch.bool)
    )
    return Batch(torch.from_numpy(pixels), targets)


assert (_BITS[NUCLEUS], _BITS[UNKNOWN]) == (0b10, 0b11)
