"""Regions of interest drawn by someone: GeoJSON polygons in level-0 px, as QuPath exports them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry import shape as geometry_of

from cellmill.grid import SlideGrid, TileGeometry
from cellmill.slides.errors import RegionFileError

__all__ = ["read_regions", "tiles_in_regions"]

Region = Polygon | MultiPolygon


def read_regions(path: Path) -> tuple[Region, ...]:
    """Polygons and multipolygons of a GeoJSON file: a geometry, a Feature, a FeatureCollection, or a list of Features.

    Raises:
        RegionFileError: naming the file and the feature that is wrong.
    """
    name = path.name
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RegionFileError(f"Region file {name!r} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise RegionFileError(f"Region file {name!r} is no JSON: {error}.") from error
    regions = tuple(_region(geometry, where=f"{name!r}, {where}") for where, geometry in _geometries(document))
    if not regions:
        raise RegionFileError(f"Region file {name!r} holds no feature; draw at least one polygon.")
    return regions


def tiles_in_regions(
    regions: tuple[Region, ...], grid: SlideGrid, tiles: TileGeometry, *, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Tiles (rows, columns) whose core shares area with a region. Tiles at a region's border count whole."""
    union = shapely.union_all(np.array(regions, dtype=object))
    # Boxes are a hair smaller than the cores: touching along an edge is no shared area.
    hair_px = 1e-3
    step_x, step_y = tiles.stride_px * grid.scale_x, tiles.stride_px * grid.scale_y
    columns, rows = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    cores = shapely.box(
        columns * step_x + hair_px,
        rows * step_y + hair_px,
        np.minimum((columns + 1) * step_x, grid.width_px * grid.scale_x) - hair_px,
        np.minimum((rows + 1) * step_y, grid.height_px * grid.scale_y) - hair_px,
    )
    shapely.prepare(union)
    return np.asarray(shapely.intersects(union, cores), dtype=np.bool_)


def _geometries(document: object) -> Iterator[tuple[str, object]]:
    """Where in the file, and the GeoJSON geometry there."""
    if isinstance(document, list):
        document = {"type": "FeatureCollection", "features": document}
    if not isinstance(document, dict):
        yield "the whole file", document
        return
    kind = document.get("type")
    if kind == "FeatureCollection":
        features: object = document.get("features", ())
        if not isinstance(features, list):
            yield "the whole file, which has no list of features", features
            return
        for index, feature in enumerate(features):
            yield f"feature {index}", feature.get("geometry") if isinstance(feature, dict) else feature
    elif kind == "Feature":
        yield "its feature", document.get("geometry")
    else:
        yield "its geometry", document


def _region(geometry: object, *, where: str) -> Region:
    if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        kind = geometry.get("type") if isinstance(geometry, dict) else type(geometry).__name__
        raise RegionFileError(f"Region file {where}: a region is a Polygon or MultiPolygon, got {kind}.")
    try:
        region = geometry_of(geometry)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as error:
        raise RegionFileError(f"Region file {where}: its coordinates form no polygon ({error}).") from error
    if not region.is_valid:
        # Freehand outlines cross themselves; what they enclose is still clear.
        region = shapely.make_valid(region, method="structure", keep_collapsed=False)
    if not isinstance(region, Polygon | MultiPolygon) or not region.area > 0:
        raise RegionFileError(f"Region file {where}: the polygon has no area.")
    return region
