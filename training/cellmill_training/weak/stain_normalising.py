"""Macenko's stain normalisation: each image's own two stains are found and replaced by reference ones.

Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis" (ISBI): optical densities
below `beta` are glass; in the plane of the two largest principal axes of the others the directions at the `alpha` and
100 - `alpha` percentiles of angle are the stains; amounts are scaled by their 99th percentile. Haberova and Vykopal
2023 apply it to images of several laboratories, as an option. No library that is kept well offers it without bringing
a second stack for slides along; it is two small matrices.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cellmill.instances.stain import EOSIN_RGB, HEMATOXYLIN_RGB, OD_LOOKUP, OD_UNITS
from cellmill_training.datasets.labelled_image import LabelledImage

__all__ = ["REFERENCE", "StainProfile", "find_stains", "normalised", "normalised_image"]

_BETA_OD = 0.15
_ALPHA_PERCENT = 1.0
_STRONG_PERCENT = 99.0
_MIN_PIXELS = 400
"""Fewer stained pixels tell nothing about the stains: such an image stays as it is."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StainProfile:
    """How an image was stained."""

    vectors: Floats  # (2, 3) optical density of a unit of hematoxylin and of eosin in red, green and blue, length 1
    strong_od: Floats  # (2,) amount that 99 of 100 stained pixels do not exceed


def _unit(vectors: npt.ArrayLike) -> Floats:
    rows = np.asarray(vectors, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


REFERENCE = StainProfile(_unit([HEMATOXYLIN_RGB, EOSIN_RGB]), np.array([0.9, 0.5]))
"""Ruifrok and Johnston's stains at usual strength: what images are normalised to."""


def find_stains(image: npt.NDArray[np.uint8]) -> StainProfile | None:
    """The stains of an image (H, W, 3); None where too little of it is stained or all of it has one colour."""
    od = OD_LOOKUP[image].reshape(-1, 3) / OD_UNITS
    # By length, not channel by channel: eosin takes hardly any red light away.
    stained = od[np.linalg.norm(od, axis=1) > _BETA_OD]
    if len(stained) < _MIN_PIXELS:
        return None
    values, axes = np.linalg.eigh(np.cov(stained.T))
    if values[1] <= 1e-9:
        return None
    plane = axes[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)  # pointing to where density grows
    projected = stained @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    low, high = np.percentile(angles, [_ALPHA_PERCENT, 100.0 - _ALPHA_PERCENT])
    found = _unit([plane @ [np.cos(angle), np.sin(angle)] for angle in (low, high)])
    if not (found > -0.2).all() or abs(float(found[0] @ found[1])) > 0.98:
        return None  # no stain adds light, and two stains differ by 11 degrees or more
    # Hematoxylin takes away more red light than eosin does.
    vectors = found[np.argsort(-found[:, 0])]
    strong = np.percentile(_amounts(stained, vectors), _STRONG_PERCENT, axis=0)
    return StainProfile(vectors, np.maximum(strong, 1e-3))


def normalised(
    image: npt.NDArray[np.uint8], profile: StainProfile, *, to: StainProfile = REFERENCE
) -> npt.NDArray[np.uint8]:
    """The image (H, W, 3) as if it had been stained like `to`."""
    od = OD_LOOKUP[image].reshape(-1, 3) / OD_UNITS
    amounts = np.maximum(_amounts(od, profile.vectors), 0.0) * (to.strong_od / profile.strong_od)
    return np.rint(255.0 * 10.0 ** -(amounts @ to.vectors)).clip(0, 255).astype(np.uint8).reshape(image.shape)


def normalised_image(image: LabelledImage) -> LabelledImage:
    """A labelled image with normalised pixels; as it is where it shows too little tissue to know its stains."""
    profile = find_stains(image.image)
    return image if profile is None else replace(image, image=normalised(image.image, profile))


def _amounts(od: Floats, vectors: Floats) -> Floats:
    """Amounts (n, 2) of both stains that come nearest to densities (n, 3)."""
    return od @ np.linalg.pinv(vectors)
