"""Nuclei of the 2018 Data Science Bowl (BBBC038, CC0; Caicedo et al. 2019) in its two forms: outlines without types.

As published, a folder an image: `<id>/images/<id>.png` and `<id>/masks/*.png`, a mask a nucleus. Or label images:
`images/<id>.png`, `labels/<id>.png` (uint8 or uint16, 0 background) and, optionally, `manifest.csv` with `image`,
`parent_field` (the field an image was cut from: the split group) and `stain_group`.

Scale: not stated by the source, and the fields clearly differ in magnification (median nucleus 13 to 52 px across).
Unless it is given, each group gets the um/px at which its median nucleus is 7.5 um across, held within 0.15 to 0.5: an
estimate from nucleus size, good to perhaps a quarter.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.readers.building import ImageSource, build_image
from cellmill_training.datasets.readers.files import read_labels, read_rgb

__all__ = ["MEDIAN_NUCLEUS_UM", "estimated_mpp", "read_dsb", "read_label_images"]

MEDIAN_NUCLEUS_UM = 7.5


def read_dsb(folder: Path, *, mpp: float | None = None) -> Iterator[LabelledImage]:
    """All images of either form.

    Raises:
        ValueError: when a file is missing or damaged, naming it.
    """
    if (folder / "labels").is_dir():
        yield from read_label_images(folder, mpp=mpp)
        return
    places = sorted(path.parent for path in folder.glob("*/masks"))
    if not places:
        raise ValueError(f"{folder} must hold labels/ and images/, or folders with images/ and masks/; it has neither.")
    for place in places:
        images = sorted((place / "images").glob("*.png"))
        if len(images) != 1:
            raise ValueError(f"{place / 'images'} must hold one PNG, it holds {len(images)}.")
        image = read_rgb(images[0])
        instances = np.zeros(image.shape[:2], np.int32)
        for number, path in enumerate(sorted((place / "masks").glob("*.png")), start=1):
            mask = read_labels(path)
            if mask.shape != instances.shape:
                raise ValueError(f"{path} is {mask.shape} px, but its image is {instances.shape}.")
            instances[mask > 0] = number
        yield _without_types(place.name, place.name, image, instances, mpp=mpp or estimated_mpp(_areas(instances)))


def read_label_images(folder: Path, *, mpp: float | None = None) -> Iterator[LabelledImage]:
    """Images with label images; `tissue` is the manifest's stain group.

    Raises:
        ValueError: when a file is missing or damaged, naming it.
    """
    rows = _manifest(folder)
    labels = {row["image"]: read_labels(folder / "labels" / f"{row['image']}.png") for row in rows}
    areas: dict[str, list[npt.NDArray[np.int64]]] = {}
    for row in rows:
        areas.setdefault(row["parent_field"], []).append(_areas(labels[row["image"]]))
    scale = {field: mpp or estimated_mpp(np.concatenate(found)) for field, found in areas.items()}
    for row in rows:
        name, field = row["image"], row["parent_field"]
        path = folder / "images" / f"{name}.png"
        image = read_rgb(path)
        if image.shape[:2] != labels[name].shape:
            raise ValueError(f"{path} is {image.shape[:2]} px, but its labels are {labels[name].shape}.")
        yield _without_types(name, field, image, labels[name], mpp=scale[field], stain=row["stain_group"])


def estimated_mpp(areas_px: npt.NDArray[np.int64]) -> float:
    """Micrometres per pixel at which the median of `areas_px` is a nucleus of 7.5 um; 0.25 where there is none."""
    if not len(areas_px):
        return 0.25
    diameter_px = 2.0 * float(np.sqrt(np.median(areas_px) / np.pi))
    return float(np.clip(MEDIAN_NUCLEUS_UM / diameter_px, 0.15, 0.5))


def _manifest(folder: Path) -> list[dict[str, str]]:
    path = folder / "manifest.csv"
    if not path.exists():
        stems = sorted(label.stem for label in (folder / "labels").glob("*.png"))
        return [{"image": stem, "parent_field": stem, "stain_group": ""} for stem in stems]
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"image", "parent_field", "stain_group"} <= rows[0].keys():
        raise ValueError(f"{path} must have rows with columns image, parent_field and stain_group.")
    return rows


def _areas(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    areas = np.bincount(labels.ravel())[1:]
    return areas[areas > 0]


def _without_types(
    name: str,
    group: str,
    image: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.int32],
    *,
    mpp: float,
    stain: str = "",
) -> LabelledImage:
    where = ImageSource(f"dsb18-{name}", "dsb18", f"dsb18-{group}", mpp, tissue=stain)
    return build_image(where, image, instances, lambda _: ())
