"""What readers share: a label map and a class for each label become a `LabelledImage`; arrays are read with care."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered

__all__ = ["ImageSource", "build_image", "open_npy", "to_uint8", "types_by_majority"]


@dataclass(frozen=True)
class ImageSource:
    """Where an image comes from: all of a `LabelledImage` that is not pixels or labels."""

    image_id: str
    source: str
    split_group: str
    mpp: float
    tissue: str = ""
    fold: str = ""


def build_image(
    where: ImageSource,
    image: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.integer],
    types: Mapping[int, tuple[str, ...]] | Callable[[int], tuple[str, ...]],
    *,
    origin: LabelOrigin | None = None,
    unknown: npt.NDArray[np.bool_] | None = None,
) -> LabelledImage:
    """An image from a label map with any labels.

    Args:
        where: the image's source.
        image: uint8 (H, W, 3).
        instances: (H, W), 0 background.
        types: the classes each label may be.
        origin: of every label; default: the data set.
        unknown: (H, W); default: everything is known.

    Raises:
        ValueError: when the shapes differ.
    """
    dense, numbers = densely_numbered(instances)
    classes = types if callable(types) else types.__getitem__
    by = origin or LabelOrigin("dataset", where.source)
    return LabelledImage(
        image_id=where.image_id,
        source=where.source,
        tissue=where.tissue,
        split_group=where.split_group,
        fold=where.fold,
        mpp=where.mpp,
        image=image,
        instances=dense,
        labels=tuple(CellLabel(classes(number), by) for number in numbers),
        unknown=np.zeros(dense.shape, np.bool_) if unknown is None else unknown,
    )


def types_by_majority(
    instances: npt.NDArray[np.integer], type_map: npt.NDArray[np.integer], names: Sequence[str], *, where: str
) -> dict[int, tuple[str, ...]]:
    """Class of each label from a map of classes: the one most of its pixels have, 0 (none) only if all have it.

    Args:
        instances: (H, W) labels, 0 background.
        type_map: (H, W), value v is `names[v - 1]`.
        names: the source's classes in its own order.
        where: file and record, for errors.

    Raises:
        ValueError: when the shapes differ or a value stands for no class.
    """
    if instances.shape != type_map.shape:
        raise ValueError(f"{where}: instances are {instances.shape}, but types are {type_map.shape}.")
    inside = instances > 0
    values = type_map[inside].astype(np.int64)
    if len(values) and not 0 <= values.min() <= values.max() <= len(names):
        raise ValueError(
            f"{where}: class values must be 0 to {len(names)} ({', '.join(names)}), got {values.min()} to "
            f"{values.max()}. Is this the format you said it is?"
        )
    labels, inverse = np.unique(instances[inside], return_inverse=True)
    votes = np.zeros((len(labels), len(names) + 1), np.int64)
    np.add.at(votes, (inverse, values), 1)
    votes[:, 0] = 0
    return {
        int(label): (names[int(vote.argmax()) - 1],) if vote.any() else ()
        for label, vote in zip(labels, votes, strict=True)
    }


def open_npy(path: Path, *, ends: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """A .npy file mapped into memory, its shape (N, *ends).

    Raises:
        ValueError: when the file is missing, damaged, holds pickled objects or has another shape; naming the file.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; is the data set unpacked completely?") from error
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Files with pickled objects are never loaded: save the array again with "
            "a plain type; otherwise download the file again."
        ) from error
    if array.ndim != 1 + len(ends) or array.shape[1:] != ends:
        raise ValueError(f"{path} must have shape (N, {', '.join(map(str, ends))}), got {array.shape}.")
    return array


def to_uint8(pixels: npt.NDArray[np.generic], *, where: str) -> npt.NDArray[np.uint8]:
    """Pixels 0 to 255 of any numeric type as uint8 (PanNuke stores float64).

    Raises:
        ValueError: when they are not in that range, naming the place.
    """
    values = np.asarray(pixels)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values, np.uint8)
    numbers = values.astype(np.float64)
    if not (np.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= 255):
        raise ValueError(f"{where}: pixels must be 0 to 255, got {numbers.min()} to {numbers.max()}.")
    return np.rint(numbers).astype(np.uint8)
