"""Numbers to SVG and PNG: heat maps, outlines, dots. Pure functions; what they return holds no text of anyone's.

Maps of a slide are drawn in um from its origin, regions of interest in tenths of a um from their corner.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from cellmill.overlay import OverlayRegion
from cellmill.report.imagery import png_uri

__all__ = ["CellOutline", "HeatMap", "cell_outlines", "confidence_map", "heat_maps", "path_of_rings", "strip_dots"]

_MAX_BINS = 180
_MIN_BIN_UM = 100.0
_HEAT_ALPHA = 235


@dataclass(frozen=True)
class HeatMap:
    """One picture of a slide's cells, a pixel a bin, from the slide's corner on."""

    uri: str
    width_um: float
    height_um: float
    low: float
    high: float
    """Values at the ends of the colour scale."""


def heat_maps(
    xy_um: NDArray[np.float64], types: NDArray[np.int16], *, num_types: int, size_um: tuple[float, float]
) -> tuple[float, list[HeatMap]]:
    """Cells per mm2 in square bins: the bin's side in um, then a map of all cells and one of each type.

    The scale ends at the 99.5th percentile of the bins that hold cells, so that one clump does not pale the rest.
    """
    bin_um, shape, row, column = _binned(xy_um, size_um)
    maps: list[HeatMap] = []
    for index in (None, *range(num_types)):
        chosen = slice(None) if index is None else types == index
        counts = np.zeros(shape, np.int64)
        np.add.at(counts, (row[chosen], column[chosen]), 1)
        per_mm2 = counts / (bin_um * 1e-3) ** 2
        high = float(np.percentile(per_mm2[counts > 0], 99.5)) if counts.any() else 0.0
        maps.append(_heat_map(per_mm2, counts > 0, low=0.0, high=high, bin_um=bin_um))
    return bin_um, maps


def confidence_map(
    xy_um: NDArray[np.float64], confidence: NDArray[np.float32], *, size_um: tuple[float, float]
) -> HeatMap:
    """Mean confidence in the same bins; the scale spans the 0.5th to the 99.5th percentile of bins with 3 cells."""
    bin_um, shape, row, column = _binned(xy_um, size_um)
    counts, sums = np.zeros(shape, np.int64), np.zeros(shape, np.float64)
    np.add.at(counts, (row, column), 1)
    np.add.at(sums, (row, column), confidence)
    told = counts >= 3
    means = np.divide(sums, counts, out=np.zeros(shape), where=counts > 0)
    low, high = np.percentile(means[told], (0.5, 99.5)).tolist() if told.any() else (0.0, 1.0)
    return _heat_map(means, told, low=low, high=high, bin_um=bin_um)


def _binned(
    xy_um: NDArray[np.float64], size_um: tuple[float, float]
) -> tuple[float, tuple[int, int], NDArray[np.int64], NDArray[np.int64]]:
    bin_um = max(_MIN_BIN_UM, 50 * float(np.ceil(max(size_um) / _MAX_BINS / 50)))
    shape = (max(1, int(np.ceil(size_um[1] / bin_um))), max(1, int(np.ceil(size_um[0] / bin_um))))
    column, row = np.floor(xy_um / bin_um).astype(np.int64).T
    return bin_um, shape, np.clip(row, 0, shape[0] - 1), np.clip(column, 0, shape[1] - 1)


def _heat_map(
    values: NDArray[np.float64], shown: NDArray[np.bool_], *, low: float, high: float, bin_um: float
) -> HeatMap:
    scaled = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)
    # Cividis: even in lightness, and the same to eyes that see red and green alike.
    colours = np.asarray(cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_CIVIDIS), np.uint8)
    alpha = np.where(shown, _HEAT_ALPHA, 0).astype(np.uint8)
    pixels = np.concatenate([colours[..., ::-1], alpha[..., None]], axis=2)
    height, width = shown.shape
    return HeatMap(png_uri(pixels), width * bin_um, height * bin_um, low, high)


@dataclass(frozen=True)
class CellOutline:
    """One cell as a path in tenths of a um from the region's corner."""

    type_index: int
    path: str
    confidence: float
    area_um2: float


def cell_outlines(
    cells: pl.DataFrame, region: OverlayRegion, *, mpp: tuple[float, float], order: dict[str, int]
) -> list[CellOutline]:
    """Outlines of a region's cells.

    Args:
        cells: rows with cell_type, confidence, area_um2 and geometry.
        region: the square.
        mpp: level-0 um/px in x and y.
        order: index of each type by its name.
    """
    corner = np.array([region.x_um, region.y_um])
    found: list[CellOutline] = []
    columns = (cells[name].to_list() for name in ("cell_type", "confidence", "area_um2", "geometry"))
    for name, confidence, area_um2, rings in zip(*columns, strict=True):
        level0 = np.array([(vertex["x"], vertex["y"]) for vertex in rings[0][:-1]])
        tenths = np.round((level0 * mpp - corner) * 10).astype(np.int64)
        found.append(CellOutline(order[name], _closed_path(tenths), float(confidence), float(area_um2)))
    return found


def path_of_rings(rings: Iterable[NDArray[np.float64]]) -> str:
    """Closed rings (n, 2) as one path, in whole um."""
    return "".join(_closed_path(np.round(ring[:-1]).astype(np.int64)) for ring in rings)


def _closed_path(points: NDArray[np.int64]) -> str:
    steps = np.diff(points, axis=0)
    return f"M{points[0, 0]} {points[0, 1]}l" + " ".join(f"{x} {y}" for x, y in steps.tolist()) + "z"


def strip_dots(values: Sequence[float], *, left: float, right: float, top: float, height: float) -> str:
    """Dots of values in 0 to 1 along a strip, as one path of points: spread across by their order, not by chance."""
    spread = (np.arange(len(values)) * 0.618034) % 1.0
    xy = [(left + (right - left) * value, top + height * across) for value, across in zip(values, spread, strict=True)]
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in xy)
