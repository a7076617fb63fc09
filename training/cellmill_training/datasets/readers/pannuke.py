"""PanNuke: 7,901 patches of 256 px from 19 tissues, five classes, three folds. CC BY-NC-SA 4.0 (Gamper et al. 2020).

In: folders with `images.npy` (N, 256, 256, 3), `masks.npy` (N, 256, 256, 6) and `types.npy` (N,), as unpacked
(`Fold 1/images/fold1/images.npy`, `Fold 1/masks/fold1/masks.npy`) or side by side. They are mapped, not loaded.

Channels of the masks are neoplastic, inflammatory, connective, dead, epithelial and background; the first five hold
instance labels, and where two overlap the later channel wins. Scale: 0.25 um/px (40x by the source). No patient is
known, so every patch is a group of its own; splits by the source's folds keep apart what its authors kept apart.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.readers.building import ImageSource, build_image, open_npy, to_uint8

__all__ = ["PANNUKE_CLASSES", "PANNUKE_MPP", "read_pannuke"]

PANNUKE_MPP = 0.25
PANNUKE_CLASSES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
_SIDE = 256


def read_pannuke(folder: Path) -> Iterator[LabelledImage]:
    """All patches of all folds below `folder`, in order.

    Raises:
        ValueError: when a file is missing, damaged or of another shape, naming it.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("images.npy")):
        fold = _fold_of(path, folder)
        if fold in found:
            raise ValueError(
                f"{found[fold]} and {path} are both {fold}; name the folders of the folds fold1, fold2, ..."
            )
        found[fold] = path
    if not found:
        raise ValueError(f"{folder} holds no images.npy; give the folder that PanNuke's folds were unpacked into.")
    for fold, path in found.items():
        yield from _read_fold(fold, path, folder)


def _read_fold(fold: str, path: Path, folder: Path) -> Iterator[LabelledImage]:
    images = open_npy(path, ends=(_SIDE, _SIDE, 3))
    masks_path, types_path = _beside(path, "masks.npy", fold, folder), _beside(path, "types.npy", fold, folder)
    masks = open_npy(masks_path, ends=(_SIDE, _SIDE, len(PANNUKE_CLASSES) + 1))
    tissues = open_npy(types_path, ends=())
    if not len(images) == len(masks) == len(tissues):
        raise ValueError(
            f"{path} has {len(images)} patches, but {masks_path} has {len(masks)} and {types_path} has {len(tissues)}. "
            "They must be of one fold."
        )
    for number in range(len(images)):
        instances, types = _instances(np.asarray(masks[number]), where=f"{masks_path}, patch {number}")
        name = f"pannuke-{fold}-{number:04d}"
        where = ImageSource(name, "pannuke", name, PANNUKE_MPP, tissue=str(tissues[number]), fold=fold)
        pixels = to_uint8(np.asarray(images[number]), where=f"{path}, patch {number}")
        yield build_image(where, pixels, instances, types)


def _instances(
    masks: npt.NDArray[np.generic], *, where: str
) -> tuple[npt.NDArray[np.int64], dict[int, tuple[str, ...]]]:
    """One label map (H, W) of all classes, and the class of each label."""
    labels = masks[..., : len(PANNUKE_CLASSES)].astype(np.float64)
    if not np.isfinite(labels).all() or labels.min() < 0 or (labels != np.floor(labels)).any():
        raise ValueError(f"{where}: instance labels must be whole numbers >= 0. Download the masks again.")
    instances = np.zeros(labels.shape[:2], np.int64)
    types: dict[int, tuple[str, ...]] = {}
    offset = 0
    for channel, name in enumerate(PANNUKE_CLASSES):
        plane = labels[..., channel].astype(np.int64)
        # The same number in two channels is two nuclei.
        instances = np.where(plane > 0, plane + offset, instances)
        types |= {int(label) + offset: (name,) for label in np.unique(plane[plane > 0])}
        offset += int(plane.max())
    return instances, types


def _fold_of(path: Path, folder: Path) -> str:
    digits = re.findall(r"fold\D*?(\d+)", path.relative_to(folder.parent).as_posix(), flags=re.IGNORECASE)
    return f"fold{digits[-1]}" if digits else "fold1"


def _beside(images: Path, name: str, fold: str, folder: Path) -> Path:
    """The file called `name` of the same fold: in the images' folder, else anywhere below."""
    if (images.parent / name).exists():
        return images.parent / name
    for path in sorted(folder.rglob(name)):
        if _fold_of(path, folder) == fold:
            return path
    raise ValueError(
        f"{name} of {fold} is missing below {folder}, beside {images}; unpack masks and images of the fold."
    )
