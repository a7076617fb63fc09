"""Conditions on cells that polars takes down to the files: ranges of numbers, by which row groups are skipped.

In: what someone asks for by name, number or place. Out: polars expressions over the columns of a cell table.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from cellmill.slides.regions import read_regions
from cellmill_schemas.ontology import Ontology

__all__ = ["CellRegion", "of_types", "within_region"]

CellRegion = tuple[float, float, float, float] | Polygon | MultiPolygon | str | Path
"""A place in level-0 px: box (x0, y0, x1, y1), polygon, or the path of a GeoJSON file of polygons."""


def of_types(cell_types: Iterable[str], ontology: Ontology) -> pl.Expr:
    """Cells of any of these types, each by name or synonym.

    Raises:
        ValueError: when the ontology knows no such type, listing those it has.
    """
    if isinstance(cell_types, str):
        cell_types = [cell_types]
    try:
        names = sorted({ontology.names[ontology.index(name)] for name in cell_types})
    except KeyError as error:
        raise ValueError(str(error.args[0])) from error
    return pl.col("cell_type").is_in(pl.Series(names, dtype=pl.Categorical).implode())


def within_region(region: CellRegion) -> list[pl.Expr]:
    """Cells centred in the region: its box, by which row groups are skipped, then the exact outline where it is none.

    Raises:
        ValueError: when the region has no area.
        RegionFileError: when its file cannot be used.
    """
    outline: BaseGeometry | None = None
    if isinstance(region, tuple):
        x0, y0, x1, y1 = region
    else:
        is_file = isinstance(region, str | Path)
        outline = shapely.union_all(np.array(read_regions(Path(region)), dtype=object)) if is_file else region
        x0, y0, x1, y1 = outline.bounds
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"A region must have an area and be (x0, y0, x1, y1) with x0 < x1 and y0 < y1; got {region}.")
    x, y = pl.col("x_level0_px"), pl.col("y_level0_px")
    box = [x.is_between(x0, x1) & y.is_between(y0, y1)]
    return box if outline is None else [*box, _exactly(outline)]


def _exactly(outline: BaseGeometry) -> pl.Expr:
    def lies_inside(columns: pl.Series) -> pl.Series:
        x, y = (columns.struct.field(name).to_numpy() for name in ("x_level0_px", "y_level0_px"))
        shapely.prepare(outline)
        return pl.Series(np.asarray(shapely.intersects_xy(outline, x, y), np.bool_))

    return pl.struct("x_level0_px", "y_level0_px").map_batches(lies_inside, return_dtype=pl.Boolean)
