"""Tissue for tests of the weak-label chain: coloured discs whose types a small network learns in seconds."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from training_helpers import Killed

from cellmill_schemas.ontology import CellClass, Ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import LabelledDataset, write_dataset
from cellmill_training.weak import nucleus_training

ROUND_OR_LONG = Ontology("shapes", (CellClass("round", (0, 0, 200)), CellClass("long", (0, 200, 0))))
BY_TRUTH = LabelOrigin("annotator", "truth")
BY_WEAK = LabelOrigin("weak", "quick classifier")


def nuclei_image(name: str, *, side: int = 128, number: int = 30, seed: int = 0, mpp: float = 0.5) -> LabelledImage:
    """Round and long dark nuclei of varying size and darkness on pink, not overlapping, with their true types."""
    rng = np.random.default_rng([seed, *name.encode()])
    instances = np.zeros((side, side), np.int32)
    image = np.full((side, side, 3), (232, 190, 214), np.uint8)
    types: list[str] = []
    for _ in range(20 * number):
        if len(types) == number:
            break
        kind = ("round", "long")[int(rng.integers(2))]
        size = float(rng.uniform(4.0, 6.5))
        axes = (size, size) if kind == "round" else (1.7 * size, 0.55 * size)
        center = rng.integers(8, side - 8, 2).tolist()
        mask = np.zeros(instances.shape, np.uint8)
        cv2.ellipse(mask, center, [round(axis) for axis in axes], float(rng.uniform(0, 180)), 0, 360, 1, -1)
        if (instances[cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0] > 0).any():
            continue
        types.append(kind)
        instances[mask > 0] = len(types)
        pale = rng.uniform(0.0, 0.5)
        image[mask > 0] = (1 - pale) * np.array((90, 50, 140)) + pale * np.array((232, 190, 214))
    noisy = np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
    dense, _ = densely_numbered(instances)
    return LabelledImage(
        image_id=name,
        source="shapes",
        tissue="",
        split_group=name,
        fold="",
        mpp=mpp,
        image=noisy,
        instances=dense,
        labels=tuple(CellLabel((kind,), BY_TRUTH) for kind in types),
        unknown=np.zeros(dense.shape, np.bool_),
    )


def shapes_dataset(
    folder: Path, names: Sequence[str], *, splits: dict[str, Split] | None = None, **settings: Any
) -> LabelledDataset:
    """Images of shapes by name, each a group of its own."""

    def images() -> Iterator[LabelledImage]:
        for name in names:
            yield nuclei_image(name, **settings)

    return write_dataset(folder, images(), ontology=ROUND_OR_LONG, splits=splits)


def with_types(image: LabelledImage, types: Sequence[str], origin: LabelOrigin = BY_WEAK) -> LabelledImage:
    """The image with other labels."""
    return replace(image, labels=tuple(CellLabel((name,), origin) for name in types))


def two_discs(side: int = 40, *, apart_px: int = 11, radius_px: int = 6) -> npt.NDArray[np.float32]:
    """A probability map of two discs that touch."""
    mask = np.zeros((side, side), np.uint8)
    for x in (side // 2 - apart_px // 2, side // 2 + apart_px - apart_px // 2):
        cv2.circle(mask, (x, side // 2), radius_px, 1, -1)
    return mask.astype(np.float32)


def segmenter_that_dies_once(config: dict[str, Any]) -> None:
    """The real worker of phase I, killed after its first checkpoint."""
    died = Path(config["folder"]) / "died"
    real = nucleus_training.save_state

    def noted(state: Any, path: Path) -> None:
        if state.step >= 4 and not died.exists():
            died.touch()
            raise Killed
        real(state, path)

    nucleus_training.save_state = noted
    try:
        nucleus_training._worker(config)  # pyright: ignore[reportPrivateUsage]
    finally:
        nucleus_training.save_state = real
