"""Outlines of a cell table as shapely polygons."""

import numpy as np
import pyarrow as pa
import shapely
from shapely.geometry import Polygon

__all__ = ["polygons_of"]


def polygons_of(geometry: pa.ListArray) -> tuple[Polygon, ...]:
    """Polygons of a `geometry` column, or of a slice of one, in level-0 px; a cell has one ring."""
    rings = geometry.flatten()
    assert len(rings) == len(geometry), "a cell has one ring"
    vertices = rings.flatten()
    xy = np.stack([vertices.field("x").to_numpy(), vertices.field("y").to_numpy()], axis=1)
    starts = rings.offsets.to_numpy()
    starts = starts - starts[0]
    found = shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy[: starts[-1]], (starts, np.arange(len(starts))))
    return tuple(found)
