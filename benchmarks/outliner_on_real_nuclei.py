"""The outliner on real nuclei: data of `docs/labels.md`, and what its figures are measured on.

    python -m benchmarks.outliner_on_real_nuclei prepare --data DATA --out DATASET
    python jobs/train_outliner.py --data DATASET --out OUTLINER ...
    python -m benchmarks.outliner_on_real_nuclei evaluate --data DATASET --outliner OUTLINER

In: the data folder of `local_sets`. `prepare` keeps its splits and every nucleus whose outline the source is sure of.
`evaluate` puts a point with the training noise on each nucleus of the test images, has all of an image outlined at once
and compares with two answers that need no network: a disc of the training nuclei's mean radius, and the pixels whose
hematoxylin is above Otsu's threshold, each given to the nearest point within twice that radius.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.store import LabelledDataset, open_dataset, write_dataset
from cellmill_training.labelling.outline_network import load_outliner
from cellmill_training.labelling.outline_patches import centroids_px
from cellmill_training.labelling.outlining import make_outliner
from cellmill_training.local_sets import read_training_data
from cellmill_training.samples import TissueSample, hematoxylin, training_ontology

Answer = Callable[[LabelledImage, npt.NDArray[np.float64]], npt.NDArray[np.int32]]

_SOURCES = ("dsb18", "dsb18_he", "monusac", "puma")
_JITTER_UM = 0.75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "evaluate"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--outliner", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.step == "prepare":
        prepare(given.data, given.out)
    else:
        evaluate(open_dataset(given.data), given.outliner, seed=given.seed)


def prepare(folder: Path, out: Path) -> None:
    """Write the data set."""
    samples = [sample for sample in read_training_data(folder).samples if sample.source in _SOURCES]
    splits = {f"{sample.source}-{sample.group}": sample.split for sample in samples}
    dataset = write_dataset(out, _images(samples), ontology=training_ontology(), splits=splits)
    for split in ("train", "validation", "test"):
        images = list(dataset.images(split))
        print(f"{split}: {len(images)} images, {sum(image.num_cells for image in images)} nuclei")


def evaluate(dataset: LabelledDataset, folder: Path, *, seed: int) -> None:
    """Print mean Dice and IoU a source, of the outliner and of both answers without a network."""
    torch.set_num_threads(1)
    outline = make_outliner(*load_outliner(folder))
    radius_um = float(np.mean([radius for image in dataset.images("train") for radius in _radii_um(image)]))
    print(f"mean radius of the training nuclei: {radius_um:.2f} um")
    answers: dict[str, Answer] = {
        "outliner": lambda image, points: outline(image.image, image.mpp, points),
        "disc": lambda image, points: _nearest(points, image, within_um=radius_um),
        "stain": lambda image, points: np.where(
            _is_stained(image), _nearest(points, image, within_um=2 * radius_um), 0
        ).astype(np.int32),
    }
    ious: dict[str, dict[str, list[npt.NDArray[np.float64]]]] = {name: {} for name in answers}
    rng = np.random.default_rng(seed)
    for image in dataset.images("test"):
        height, width = image.instances.shape
        noise = rng.normal(0.0, _JITTER_UM / image.mpp, (image.num_cells, 2))
        points = np.clip(centroids_px(image.instances) + noise, 0, (width - 0.01, height - 0.01))
        for name, answer in answers.items():
            ious[name].setdefault(image.source, []).append(_ious(answer(image, points), image.instances))
    for name, sources in ious.items():
        everything = [rows for images in sources.values() for rows in images]
        for source, images in sorted({**sources, "all": everything}.items()):
            iou = np.concatenate(images)
            dice = 2 * iou / (1 + iou)
            print(
                f"{name:9} {source:9} {len(images):3} images {len(iou):5} nuclei  Dice {dice.mean():.3f}  "
                f"IoU {iou.mean():.3f}  median IoU {np.median(iou):.3f}  IoU > 0.5: {(iou > 0.5).mean():.3f}"
            )


def _images(samples: list[TissueSample]) -> Iterator[LabelledImage]:
    for sample in samples:
        instances, numbers = densely_numbered(np.where(sample.flow_known, sample.instances, 0))
        yield LabelledImage(
            image_id=f"{sample.source}-{sample.name}",
            source=sample.source,
            tissue="",
            split_group=f"{sample.source}-{sample.group}",
            fold="",
            mpp=sample.mpp,
            image=sample.image,
            instances=instances,
            labels=tuple(CellLabel((), LabelOrigin("dataset", sample.source)) for _ in numbers),
            unknown=(sample.instances > 0) & (instances == 0),
        )


def _radii_um(image: LabelledImage) -> npt.NDArray[np.float64]:
    areas_px = np.bincount(image.instances.ravel())[1:]
    return np.sqrt(areas_px / np.pi) * image.mpp


def _nearest(points: npt.NDArray[np.float64], image: LabelledImage, *, within_um: float) -> npt.NDArray[np.int32]:
    """Each pixel's nearest point, 1-based; 0 where none is near enough."""
    radius = within_um / image.mpp
    height, width = image.instances.shape
    best = np.full((height, width), radius**2)
    labels = np.zeros((height, width), np.int32)
    for number, (x, y) in enumerate(points, start=1):
        x0, x1 = max(int(x - radius), 0), min(int(x + radius) + 2, width)
        y0, y1 = max(int(y - radius), 0), min(int(y + radius) + 2, height)
        rows, columns = np.ogrid[y0:y1, x0:x1]
        squared = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2
        closer = squared < best[y0:y1, x0:x1]
        best[y0:y1, x0:x1][closer] = squared[closer]
        labels[y0:y1, x0:x1][closer] = number
    return labels


def _is_stained(image: LabelledImage) -> npt.NDArray[np.bool_]:
    density = hematoxylin(image.image)
    scaled = np.clip(255 * density / max(float(np.percentile(density, 99.5)), 1e-6), 0, 255).astype(np.uint8)
    _, mask = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return mask.astype(np.bool_)


def _ious(found: npt.NDArray[np.int32], truth: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """IoU of outline k with nucleus k."""
    size = int(truth.max(initial=0)) + 1
    shared = np.bincount(truth[found == truth], minlength=size)[1:]
    whole = np.bincount(truth.ravel(), minlength=size)[1:] + np.bincount(found.ravel(), minlength=size)[1:size] - shared
    return shared / whole


if __name__ == "__main__":
    main()
