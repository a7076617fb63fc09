"""Cells as a SpatialData store: one zarr a slide, with shapes and an annotated table, for scverse's tools.

In: cells wanted of a slide. Out: `<slide_id>.zarr` that the `spatialdata` library reads: shapes `cells` (outlines) and,
where known, `areas`; table `table` (one row a cell: measurements as X, class and ids in obs). Coordinates are level-0
px of the slide, OpenSlide's, bounds not subtracted; the coordinate system `um` has them in micrometres. One slide is
held in memory.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely

from cellmill.export.areas import SlideArea
from cellmill.export.features import cell_types_of, rings_of
from cellmill.export.measurements import measurement_values, measurements_of
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.slides import SlideStatus

__all__ = ["require_spatialdata", "write_spatial_data"]


def require_spatialdata() -> None:
    """Make sure the library is there, before anything else is done.

    Raises:
        ValueError: when it is not, saying how to get it.
    """
    try:
        import spatialdata  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--format spatialdata needs the library spatialdata ({error}); install cellmill[spatialdata]."
        ) from error


def write_spatial_data(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    *,
    status: SlideStatus,
    ontology: Ontology,
    areas: Sequence[SlideArea],
) -> int:
    """Write one slide's store; returns the number of cells."""
    import pandas as pd

    # anndata 0.12 cannot write the strings of pandas 3, which infers them wherever it sees text.
    with pd.option_context("future.infer_string", False):
        return _write(path, batches, status=status, ontology=ontology, areas=areas)


def _write(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    *,
    status: SlideStatus,
    ontology: Ontology,
    areas: Sequence[SlideArea],
) -> int:
    import anndata  # type: ignore[import-not-found]
    import geopandas as gpd
    import pandas as pd
    import spatialdata  # type: ignore[import-not-found]
    from spatialdata.models import ShapesModel, TableModel  # type: ignore[import-not-found]
    from spatialdata.transformations import Identity, Scale  # type: ignore[import-not-found]

    cells = _Columns(ontology)
    for batch in batches:
        cells.add(batch)
    frames = {"global": Identity(), "um": Scale([status.mpp_x, status.mpp_y], axes=("x", "y"))}
    ids = cells.ids()
    shapes = {}
    if ids.size:
        outlines = gpd.GeoDataFrame(geometry=cells.outlines(), index=pd.Index(ids, name="cell_id"))
        shapes["cells"] = ShapesModel.parse(outlines, transformations=frames)
    if areas:
        frame = gpd.GeoDataFrame(
            {"reason": [area.reason for area in areas], "mm2": [area.mm2 for area in areas]},
            geometry=[area.shape_level0_px for area in areas],
        )
        shapes["areas"] = ShapesModel.parse(frame, transformations=frames)
    tables = {}
    if ids.size:
        obs = pd.DataFrame(
            {
                "cell_id": ids,
                "slide_id": pd.Categorical([status.slide_id] * ids.size),
                "cell_type": pd.Categorical.from_codes(cells.types(), categories=list(ontology.names)),
                "region": pd.Categorical(["cells"] * ids.size),
            },
            index=pd.Index(ids.astype(str)),
        )
        names = pd.Index([entry.name for entry in measurements_of(ontology)])
        table = anndata.AnnData(X=cells.values(), obs=obs, var=pd.DataFrame(index=names))
        table.obsm["spatial"] = cells.centroids_um()
        table.uns["cell_type_colors"] = ["#{:02x}{:02x}{:02x}".format(*c.color_rgb) for c in ontology.classes]
        tables["table"] = TableModel.parse(table, region="cells", region_key="region", instance_key="cell_id")
    spatialdata.SpatialData(shapes=shapes, tables=tables).write(path)
    return int(ids.size)


class _Columns:
    """A slide's cells, gathered batch by batch."""

    def __init__(self, ontology: Ontology) -> None:
        self._ontology = ontology
        self._ids: list[np.ndarray] = []
        self._types: list[list[int]] = []
        self._values: list[np.ndarray] = []
        self._centroids: list[np.ndarray] = []
        self._outlines: list[np.ndarray] = []

    def add(self, batch: pa.RecordBatch) -> None:
        self._ids.append(batch.column("cell_id").to_numpy())
        self._types.append(cell_types_of(batch, self._ontology))
        self._values.append(measurement_values(batch, self._ontology).astype(np.float32))
        centroids = [batch.column(f"{axis}_um").to_numpy().astype(np.float64) for axis in "xy"]
        self._centroids.append(np.stack(centroids, axis=1))
        x, y, starts = rings_of(batch, (0, 0))
        owner = np.repeat(np.arange(batch.num_rows), np.diff(starts))
        rings = shapely.linearrings(np.stack([x, y], axis=1), indices=owner)
        self._outlines.append(np.asarray(shapely.polygons(rings)))

    def ids(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int64), *self._ids])

    def types(self) -> np.ndarray:
        return np.concatenate([np.array(kinds, np.int64) for kinds in self._types])

    def values(self) -> np.ndarray:
        return np.concatenate(self._values)

    def centroids_um(self) -> np.ndarray:
        return np.concatenate(self._centroids)

    def outlines(self) -> np.ndarray:
        return np.concatenate(self._outlines)
