"""Stain densities by colour deconvolution.

Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution", Analytical and Quantitative
Cytology and Histology 23 (2001) 291-299, with their vectors of hematoxylin and eosin; the third is at right angles to
both and takes up what neither explains. Optical density is -log10(I / 255), with I at least 1.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["EOSIN_RGB", "HEMATOXYLIN_RGB", "OD_LOOKUP", "OD_UNITS", "stain_densities"]

OD_UNITS = 1 << 20
"""Units of `OD_LOOKUP` for an optical density of 1: sums of densities are sums of integers, in whatever order."""

OD_LOOKUP: npt.NDArray[np.int32] = np.rint(-np.log10(np.maximum(np.arange(256), 1) / 255) * OD_UNITS).astype(np.int32)
"""Optical density of each grey level, in 1 / OD_UNITS."""

HEMATOXYLIN_RGB = (0.650, 0.704, 0.286)
"""Absorption of hematoxylin in red, green and blue, of length 1 but for rounding."""
EOSIN_RGB = (0.072, 0.990, 0.105)
"""Absorption of eosin."""


def _unmixing() -> npt.NDArray[np.float64]:
    stains = np.array([HEMATOXYLIN_RGB, EOSIN_RGB], np.float64)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    rest = np.cross(stains[0], stains[1])
    return np.asarray(np.linalg.inv(np.vstack([stains, rest / np.linalg.norm(rest)])), np.float64)


_UNMIXING = _unmixing()


def stain_densities(od_rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Hematoxylin and eosin densities (..., 2) of optical densities in red, green and blue (..., 3).

    Linear, so the density of a mean is the mean of densities; negative where the colour lies outside both stains.
    """
    # written out, because a matrix product's order of sums may depend on the number of rows
    red, green, blue = od_rgb[..., 0], od_rgb[..., 1], od_rgb[..., 2]
    return np.stack([red * _UNMIXING[0, k] + green * _UNMIXING[1, k] + blue * _UNMIXING[2, k] for k in (0, 1)], axis=-1)
