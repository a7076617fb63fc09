"""Cutting out the cells of an index: crops for the network, two plain figures for the comparison.

Consumes a data set and rows of a `CellIndex`; each image is read once. Crops go to a `.npy` file that workers map into
memory, because PanNuke's take a gigabyte; it appears whole or not at all.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cellmill.instances.stain import OD_LOOKUP, OD_UNITS, stain_densities
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.relabel.cells import CellIndex, Rows
from cellmill_training.relabel.crops import CropConfig, cell_boxes, cell_crops

__all__ = ["ImageReader", "open_crops", "plain_features", "size_and_stain", "write_crops"]


class ImageReader(Protocol):
    """What gives an image by its id: the store's `LabelledDataset`."""

    def read(self, image_id: str, /) -> LabelledImage:
        """The image."""
        ...


def write_crops(dataset: ImageReader, index: CellIndex, rows: Rows, path: Path, *, config: CropConfig) -> None:
    """Cut out the rows' cells into an uint8 `.npy` (n, S, S, 3), in the order of the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    shape = (len(rows), config.side_px, config.side_px, 3)
    crops = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    for image, places in _by_image(dataset, index, rows):
        boxes = cell_boxes(image.instances)[index.numbers[rows[places]] - 1]
        crops[places] = cell_crops(image.image, boxes, mpp=image.mpp, config=config)
    crops.flush()
    del crops
    partial.replace(path)


def open_crops(path: Path) -> npt.NDArray[np.uint8]:
    """Crops (n, S, S, 3) that `write_crops` wrote, mapped into memory."""
    crops: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return crops


def plain_features(dataset: ImageReader, index: CellIndex, rows: Rows) -> npt.NDArray[np.float64]:
    """`size_and_stain` (n, 2) of the rows' cells."""
    features = np.zeros((len(rows), 2))
    for image, places in _by_image(dataset, index, rows):
        features[places] = size_and_stain(image)[index.numbers[rows[places]] - 1]
    return features


def size_and_stain(image: LabelledImage) -> npt.NDArray[np.float64]:
    """Logarithm of the area in um2 and mean hematoxylin density (n, 2) of an image's cells."""
    flat = image.instances.ravel()
    size = image.num_cells + 1
    counts = np.bincount(flat, minlength=size)[1:]
    density = OD_LOOKUP[image.image].reshape(-1, 3) / OD_UNITS
    sums = [np.bincount(flat, weights=density[:, channel], minlength=size)[1:] for channel in range(3)]
    hematoxylin = stain_densities(np.stack(sums, axis=1) / counts[:, None])[:, 0]
    return np.stack([np.log(counts * image.mpp**2), hematoxylin], axis=1)


def _by_image(
    dataset: ImageReader, index: CellIndex, rows: Rows
) -> Iterator[tuple[LabelledImage, npt.NDArray[np.int64]]]:
    """Each image that holds some of the rows, and the places in `rows` of those it holds."""
    names, owner = np.unique(index.image_ids[rows], return_inverse=True)
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=len(names)))
    for name, places in zip(names.tolist(), np.split(order, ends[:-1]), strict=True):
        yield dataset.read(name), places.astype(np.int64)
