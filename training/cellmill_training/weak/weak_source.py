"""A weak source for synthetic tissue: labels that are wrong where a pathologist's quick classifier is wrong.

Consumes an image with true labels; produces it with weak ones. Whether a nucleus is mislabelled depends on the nucleus:
how small, how pale and how crowded it is beside the others of its image. What it is then called depends on it too: it
is missed, or takes its neighbour's class where it touches one of another class, or the class whose nuclei look most
like it by area and stain. Even the hardest nucleus is right more often than wrong (`max_error`): a source that is wrong
about a whole look cannot be mended without an expert, by this chain or any other.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.labelling.outline_patches import centroids_px
from cellmill_training.relabel.cutting import size_and_stain

__all__ = ["WeakSource", "difficulty", "error_chances", "weakly_labelled"]

Floats = npt.NDArray[np.float64]

_CROWD_UM = 12.0
_TOUCHING_UM = 9.0
_STEEPNESS = 1.5
_MIN_ERROR = 0.02


@dataclass(frozen=True)
class WeakSource:
    """How bad a weak source is."""

    error_rate: float = 0.25
    """Mean chance that a nucleus is missed or has the wrong class."""
    missed_share: float = 0.3
    """How many of the errors are missed nuclei."""
    max_error: float = 0.48
    """Chance of an error for the hardest nuclei."""
    name: str = "synthetic-weak"
    """Who says so, in the labels' lineage."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if not _MIN_ERROR < self.error_rate < self.max_error < 0.5 or not 0.0 <= self.missed_share <= 1.0:
            raise ValueError(
                f"A weak source needs {_MIN_ERROR} < error_rate < max_error < 0.5 and missed_share from 0 to 1, got "
                f"{self.error_rate}, {self.max_error} and {self.missed_share}."
            )


def difficulty(image: LabelledImage) -> Floats:
    """How small, pale and crowded each nucleus is (n,), in deviations from its image's mean."""
    if not image.num_cells:
        return np.zeros(0)
    log_area, hematoxylin = size_and_stain(image).T
    tree = KDTree(_centres_um(image))
    crowd = np.array(tree.query_ball_point(tree.data, _CROWD_UM, return_length=True), np.float64)
    return (_standard(-log_area) + _standard(-hematoxylin) + _standard(crowd)) / np.sqrt(3.0)


def error_chances(hardness: Floats, source: WeakSource) -> Floats:
    """Chance of an error (n,), whose mean is the source's rate."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = _chances(hardness, middle, source).mean() if len(hardness) else 0.0
        low, high = (middle, high) if mean < source.error_rate else (low, middle)
    return _chances(hardness, (low + high) / 2, source)


def weakly_labelled(image: LabelledImage, source: WeakSource) -> LabelledImage:
    """The image as the weak source labels it; missed nuclei are pixels without a nucleus.

    The draws depend on the seed and the image's id alone.

    Raises:
        ValueError: when a nucleus has no certain class.
    """
    names = _certain(image)
    rng = np.random.default_rng([source.seed, *image.image_id.encode()])
    wrong = rng.random(len(names)) < error_chances(difficulty(image), source)
    missed = wrong & (rng.random(len(names)) < source.missed_share)
    called = np.where(wrong & ~missed, _confusions(image, names), names)
    instances, numbers = densely_numbered(
        np.where(np.concatenate([[True], ~missed])[image.instances], image.instances, 0)
    )
    origin = LabelOrigin("weak", source.name)
    labels = tuple(CellLabel((str(called[number - 1]),), origin) for number in numbers)
    return replace(image, instances=instances, labels=labels)


def _certain(image: LabelledImage) -> npt.NDArray[np.str_]:
    for number, label in enumerate(image.labels, start=1):
        if len(label.cell_types) != 1:
            raise ValueError(f"Image {image.image_id!r}, instance {number} has no certain class to be wrong about.")
    return np.array([label.cell_types[0] for label in image.labels], np.str_)


def _confusions(image: LabelledImage, names: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """What each nucleus (n,) is taken for when it is mistaken; its own class where the image shows no other."""
    present = np.unique(names)
    if len(present) < 2:
        return names
    looks = size_and_stain(image)
    looks = (looks - looks.mean(axis=0)) / np.maximum(looks.std(axis=0), 1e-9)
    means = np.stack([looks[names == name].mean(axis=0) for name in present])
    distance = np.linalg.norm(looks[:, None] - means, axis=2)  # (n, classes)
    distance[names[:, None] == present] = np.inf
    taken = present[distance.argmin(axis=1)]
    centres = _centres_um(image)
    found = KDTree(centres).query(centres, k=2)
    distances_um, nearest = np.asarray(found[0], np.float64)[:, 1], np.asarray(found[1], np.int64)[:, 1]
    neighbour = names[nearest]
    return np.where((distances_um < _TOUCHING_UM) & (neighbour != names), neighbour, taken)


def _chances(hardness: Floats, offset: float, source: WeakSource) -> Floats:
    rise = 1.0 / (1.0 + np.exp(-(_STEEPNESS * hardness + offset)))
    return _MIN_ERROR + (source.max_error - _MIN_ERROR) * rise


def _centres_um(image: LabelledImage) -> Floats:
    return centroids_px(image.instances) * image.mpp


def _standard(values: Floats) -> Floats:
    return (values - values.mean()) / max(float(values.std()), 1e-9)
