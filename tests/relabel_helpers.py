"""Small labelled data sets for the tests of relabelling, and a training worker that dies once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from training_helpers import Killed

from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin
from cellmill_training.datasets.store import LabelledDataset, write_dataset
from cellmill_training.relabel import fitting, learning

COLORS = {"lymphocyte": (60, 30, 120), "macrophage": (150, 120, 190), "neutrophil": (90, 20, 60)}


def dotted_image(name: str, types: Sequence[tuple[str, ...]], *, source: str, shown: Sequence[str]) -> LabelledImage:
    """One image with a disc for each label, coloured by the type it really is (`shown`)."""
    rng = np.random.default_rng(len(name))
    side = 40
    columns = max(1, int(np.ceil(np.sqrt(len(types)))))
    instances = np.zeros((side * columns, side * columns), np.int32)
    image = np.full((*instances.shape, 3), (230, 180, 210), np.uint8)
    for number, kind in enumerate(shown, start=1):
        row, column = divmod(number - 1, columns)
        center = (column * side + side // 2, row * side + side // 2)
        disc = np.zeros(instances.shape, np.uint8)
        cv2.circle(disc, center, int(rng.integers(7, 11)), 1, -1)
        instances[disc > 0] = number
        image[disc > 0] = COLORS[kind]
    noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    origin = LabelOrigin("dataset", source)
    return LabelledImage(
        image_id=name,
        source=source,
        tissue="",
        split_group=name,
        fold="",
        mpp=0.25,
        image=noisy,
        instances=instances,
        labels=tuple(CellLabel(own, origin) for own in types),
        unknown=np.zeros(instances.shape, np.bool_),
    )


def dotted_dataset(folder: Path, counts: dict[str, int], *, num_images: int = 10) -> LabelledDataset:
    """Images that each show `counts` cells of certain types."""
    types = [name for name, count in counts.items() for _ in range(count)]

    def images() -> Iterator[LabelledImage]:
        for number in range(num_images):
            name = f"{folder.name}-{number}"
            yield dotted_image(name, [(kind,) for kind in types], source=folder.name, shown=types)

    return write_dataset(folder, images(), ontology=get_ontology("refined7"), name=folder.name)


def two_colors(number: int, *, seed: int) -> fitting.LabelledCrops:
    """Crops whose class is the colour of their middle."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, number).astype(np.int64)
    crops: npt.NDArray[np.uint8] = rng.integers(150, 220, (number, 64, 64, 3)).astype(np.uint8)
    crops[:, 20:44, 20:44] = np.where(classes[:, None, None, None] == 0, (60, 30, 120), (170, 90, 60))
    return fitting.LabelledCrops(crops, classes)


def worker_that_dies_once(config: dict[str, Any]) -> None:
    """The real worker, killed in the middle of step `die_at_step`; every step taken is noted in the file `steps`."""
    steps, died = Path(config["folder"]) / "steps", Path(config["folder"]) / "died"
    real = fitting._step  # pyright: ignore[reportPrivateUsage]

    def noted(model: Any, state: fitting.FitState, *arguments: Any, **settings: Any) -> float:
        if state.step == config["die_at_step"] and not died.exists():
            died.touch()
            raise Killed
        with steps.open("a") as file:
            file.write(f"{state.step}\n")
        return real(model, state, *arguments, **settings)

    fitting._step = noted  # pyright: ignore[reportPrivateUsage]
    try:
        learning._worker(config)  # pyright: ignore[reportPrivateUsage]
    finally:
        fitting._step = real  # pyright: ignore[reportPrivateUsage]
