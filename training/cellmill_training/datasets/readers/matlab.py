"""CoNSeP and Lizard: a PNG and a MATLAB file an image. Only numeric arrays are taken from the latter.

CoNSeP (Graham et al. 2019): `Train|Test/Images/*.png` and `.../Labels/*.mat` with `inst_map` and `type_map`, 1000 px at
0.25 um/px (40x), colon; its tiles come from 16 slides, but which from which is not said: split by its folds.
Lizard (Graham et al. 2021, CC BY-NC-SA 4.0): `*.png` and `Labels/*.mat` with `inst_map`, `id`, `class`, and `info.csv`
with `Filename` and `Split` (the fold), about 0.5 um/px (20x), colon.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat

from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.readers.building import ImageSource, build_image, types_by_majority
from cellmill_training.datasets.readers.files import read_rgb

__all__ = ["CONSEP_CLASSES", "LIZARD_CLASSES", "read_consep", "read_lizard", "read_mat"]

CONSEP_CLASSES = (
    "other",
    "inflammatory",
    "healthy epithelial",
    "malignant epithelial",
    "fibroblast",
    "muscle",
    "endothelial",
)
"""Values 1 to 7 of `type_map`, as classes of the ontology consep7."""
CONSEP_MPP = 0.25

LIZARD_CLASSES = ("neutrophil", "epithelial", "lymphocyte", "plasma cell", "eosinophil", "connective")
"""Values 1 to 6 of `class`, as classes of the ontology conic6."""
LIZARD_MPP = 0.5


def read_consep(folder: Path) -> Iterator[LabelledImage]:
    """All tiles, the fold being the folder they lie in (train, test or none).

    Raises:
        ValueError: when a file is missing, damaged or of another shape, naming it.
    """
    for path in _label_files(folder):
        fold = path.parent.parent.name.lower()
        fold = fold if fold in ("train", "test") else ""
        arrays = read_mat(path, ("inst_map", "type_map"))
        instances, type_map = _whole(arrays["inst_map"], path), _whole(arrays["type_map"], path)
        types = types_by_majority(instances, type_map, CONSEP_CLASSES, where=str(path))
        image = read_rgb(path.parent.parent / "Images" / f"{path.stem}.png")
        name = f"consep-{path.stem}"
        where = ImageSource(name, "consep", name, CONSEP_MPP, tissue="colon", fold=fold)
        yield build_image(where, _matching(image, instances, path), instances, types)


def read_lizard(folder: Path) -> Iterator[LabelledImage]:
    """All regions; each is a group, because the slides behind them are not named.

    Raises:
        ValueError: when a file is missing, damaged or of another shape, naming it.
    """
    images = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    folds = _lizard_folds(folder)
    for path in _label_files(folder):
        if path.stem not in images:
            raise ValueError(f"{path} has no image {path.stem}.png below {folder}; unpack Lizard_Images1 and 2 there.")
        arrays = read_mat(path, ("inst_map", "id", "class"))
        ids, classes = (_whole(arrays[name], path).ravel().tolist() for name in ("id", "class"))
        if len(ids) != len(classes) or not set(classes) <= set(range(1, len(LIZARD_CLASSES) + 1)):
            raise ValueError(
                f"{path}: id and class must be equally long and classes 1 to {len(LIZARD_CLASSES)}, got "
                f"{len(ids)} ids and {len(classes)} classes with values {sorted(set(classes))}."
            )
        instances = _whole(arrays["inst_map"], path)
        # A label that the table does not list is a nucleus of unknown type.
        types = dict.fromkeys(np.unique(instances[instances > 0]).tolist(), ())
        types |= {label: (LIZARD_CLASSES[value - 1],) for label, value in zip(ids, classes, strict=True)}
        name = f"lizard-{path.stem}"
        where = ImageSource(name, "lizard", name, LIZARD_MPP, tissue="colon", fold=folds.get(path.stem, ""))
        yield build_image(where, _matching(read_rgb(images[path.stem]), instances, path), instances, types)


def read_mat(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Numeric arrays of a MATLAB file.

    Raises:
        ValueError: when the file is damaged, of version 7.3, or lacks one of the arrays; naming the file.
    """
    try:
        found: dict[str, Any] = loadmat(str(path), variable_names=list(names))
    except NotImplementedError as error:
        raise ValueError(f"{path} is a MATLAB 7.3 file; save it again with -v7.") from error
    except Exception as error:  # scipy meets damaged files with any type of exception
        raise ValueError(f"{path} is no MATLAB file that can be read ({error}); download it again.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; is this the format you said it is?")
    for name in names:
        if np.asarray(found[name]).dtype.kind not in "uifb":
            raise ValueError(f"{path}: {name} must hold numbers, got {np.asarray(found[name]).dtype}.")
    return {name: np.asarray(found[name]) for name in names}


def _label_files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.mat"))
    if not files:
        raise ValueError(f"{folder} holds no .mat file; give the folder that the data set was unpacked into.")
    return files


def _whole(array: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int64]:
    whole = array.astype(np.int64)
    if (whole != array).any() or (whole < 0).any():
        raise ValueError(f"{path}: labels and classes must be whole numbers >= 0; download it again.")
    return whole


def _matching(image: npt.NDArray[np.uint8], instances: npt.NDArray[np.int64], path: Path) -> npt.NDArray[np.uint8]:
    if image.shape[:2] != instances.shape:
        raise ValueError(f"{path}: labels are {instances.shape}, but the image of that name is {image.shape[:2]} px.")
    return image


def _lizard_folds(folder: Path) -> dict[str, str]:
    tables = sorted(folder.rglob("info.csv"))
    if not tables:
        return {}
    with tables[0].open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if rows and not {"Filename", "Split"} <= rows[0].keys():
        raise ValueError(f"{tables[0]} must have columns Filename and Split, got {', '.join(rows[0])}.")
    return {row["Filename"]: f"fold{row['Split']}" for row in rows}
