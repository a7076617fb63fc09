"""Windows in which cells are counted: regions drawn by someone, tissue fragments, the whole slide. All in um.

A region file holds polygons in level-0 px, as QuPath exports them; fragments are found from the cells themselves, so
that neither needs the slide. One window is one row of a summary.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from shapely.geometry.base import BaseGeometry

from cellmill.slides.regions import read_regions
from cellmill.spatial.points import CellPoints

__all__ = ["REACH_UM", "Window", "boundary_distance_um", "drawn_windows", "inside", "tissue_fragments", "whole_slide"]

WindowKind = Literal["slide", "fragment", "region"]

REACH_UM = 50.0
"""Tissue is taken to reach this far from a cell: gaps of up to twice that are closed, wider ones stay holes."""
_RASTER_UM = 25.0
"""Side of the squares fragments are made of."""


@dataclass(frozen=True)
class Window:
    """A part of a slide."""

    name: str
    kind: WindowKind
    outline: BaseGeometry
    """Polygons, in um from the slide's origin."""

    @property
    def mm2(self) -> float:
        """Area."""
        return float(self.outline.area) * 1e-6


def inside(window: Window, xy_um: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points (n, 2) lie in the window or on its border."""
    shapely.prepare(window.outline)
    return np.asarray(shapely.intersects_xy(window.outline, xy_um[:, 0], xy_um[:, 1]), np.bool_)


def boundary_distance_um(window: Window, xy_um: NDArray[np.float64], *, at_most_um: float) -> NDArray[np.float64]:
    """Distance (n,) of points of the window from its border; inf where it exceeds `at_most_um`."""
    rings = shapely.get_rings(shapely.get_parts(window.outline))
    coordinates, ring = shapely.get_coordinates(rings, return_index=True)
    follows = np.flatnonzero(ring[1:] == ring[:-1])
    sides = shapely.linestrings(np.stack([coordinates[follows], coordinates[follows + 1]], axis=1))
    distances = np.full(len(xy_um), np.inf)
    (points, _), found = shapely.STRtree(np.asarray(sides)).query_nearest(
        shapely.points(xy_um), max_distance=at_most_um, return_distance=True, all_matches=False
    )
    distances[points] = found
    return distances


def whole_slide(fragments: tuple[Window, ...]) -> Window:
    """All fragments together."""
    if len(fragments) == 1:
        return Window("slide", "slide", fragments[0].outline)
    union = shapely.union_all(np.array([fragment.outline for fragment in fragments], dtype=object))
    return Window("slide", "slide", union)


def tissue_fragments(cells: CellPoints) -> tuple[Window, ...]:
    """Connected pieces of tissue, largest first, named fragment_1 and so on; every cell lies in one.

    The squares of 25 um within 50 um of a cell, less a rim of 50 um: a morphological closing of the cells by a disc.
    """
    if len(cells) == 0:
        return ()
    column_row = np.floor(cells.xy_um / _RASTER_UM).astype(np.int64)
    pad = int(np.ceil(REACH_UM / _RASTER_UM)) + 2
    origin = column_row.min(axis=0) - pad
    columns, rows = (column_row.max(axis=0) - origin + pad + 1).tolist()
    holds_cell = np.zeros((rows, columns), np.bool_)
    holds_cell[column_row[:, 1] - origin[1], column_row[:, 0] - origin[0]] = True
    near = np.asarray(distance_transform_edt(~holds_cell)) * _RASTER_UM <= REACH_UM
    closed = np.asarray(distance_transform_edt(near)) * _RASTER_UM > REACH_UM
    pieces = _outlines(closed | holds_cell, origin)
    order = np.argsort(-shapely.area(pieces), kind="stable")
    return tuple(Window(f"fragment_{n}", "fragment", piece) for n, piece in enumerate(pieces[order], start=1))


def _outlines(mask: NDArray[np.bool_], origin: NDArray[np.int64]) -> NDArray[Any]:
    """The connected polygons of a mask, exactly along its pixels' edges: its runs as boxes, united."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, firsts = np.nonzero(edges == 1)
    _, lasts = np.nonzero(edges == -1)
    x0, x1, y0 = (firsts + origin[0]) * _RASTER_UM, (lasts + origin[0]) * _RASTER_UM, (rows + origin[1]) * _RASTER_UM
    return np.atleast_1d(shapely.get_parts(shapely.union_all(shapely.box(x0, y0, x1, y0 + _RASTER_UM))))


def drawn_windows(path: Path, *, mpp: tuple[float, float]) -> tuple[Window, ...]:
    """The regions of a GeoJSON file in level-0 px, named as in the file.

    A region is called by its feature's property `name`, else its QuPath classification, else region_1 and so on; names
    that come twice get a number.

    Raises:
        RegionFileError: naming the file and what is wrong with it.
    """
    regions = read_regions(path)
    names = _feature_names(json.loads(path.read_text(encoding="utf-8")), number=len(regions))
    return tuple(
        Window(name, "region", shapely.transform(region, lambda xy: xy * np.array(mpp)))
        for name, region in zip(names, regions, strict=True)
    )


def _feature_names(document: Any, *, number: int) -> list[str]:
    features: list[Any] = document if isinstance(document, list) else document.get("features", [document])
    names: list[str] = []
    for index in range(number):
        feature = features[index] if index < len(features) else None
        properties = feature.get("properties") if isinstance(feature, dict) else None
        properties = properties if isinstance(properties, dict) else {}
        classification = properties.get("classification")
        of_class = classification.get("name") if isinstance(classification, dict) else None
        name = str(properties.get("name") or of_class or f"region_{index + 1}")
        taken = names.count(name)
        names.append(f"{name} ({index + 1})" if taken else name)
    return names
