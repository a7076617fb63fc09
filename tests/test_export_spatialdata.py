"""Cells as SpatialData: the library reads them back, outlines and table agree with the cell table."""

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import shapely
from export_helpers import export_config, make_cell_set

import cellmill
from cellmill.export.run import export_cells
from cellmill_schemas.ontology import get_ontology

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies warn of each other
    spatialdata = pytest.importorskip("spatialdata", reason="spatialdata is not installed (extra spatialdata)")


# The library's own dependencies warn of each other's future.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_slides", [True, False])
def test_spatialdata_reads_outlines_table_and_areas(tmp_path: Path, with_slides: bool) -> None:
    slides, cells, _ = make_cell_set(tmp_path)
    config = export_config(cells, slides if with_slides else None, tmp_path / "out", format="spatialdata")
    report = export_cells(config)
    assert [slide.slide_id for slide in report.slides] == ["marked", "plain"]
    read = spatialdata.read_zarr(tmp_path / "out" / "marked.zarr")
    wanted = cellmill.read_cells_geodataframe(cells, "marked")
    shapes = read.shapes["cells"]
    assert shapes.index.tolist() == wanted["cell_id"].tolist()
    assert shapely.equals_exact(shapes.geometry.values, wanted.geometry.values, 0.0).all()
    table = read.tables["table"]
    assert table.obs["cell_id"].tolist() == wanted["cell_id"].tolist()
    assert table.obs["cell_type"].astype(str).tolist() == wanted["cell_type"].astype(str).tolist()
    assert list(table.obs["cell_type"].cat.categories) == list(get_ontology("refined7").names)
    columns = pl.read_parquet(cells / "cells" / "marked.parquet")
    assert np.allclose(table[:, "Area µm^2"].X.ravel(), columns["area_um2"].to_numpy(), atol=0.01)
    assert np.allclose(table.obsm["spatial"], columns.select("x_um", "y_um").to_numpy())
    transformations = spatialdata.transformations.get_transformation(shapes, get_all=True)
    assert np.allclose(transformations["um"].to_affine_matrix(("x", "y"), ("x", "y")), np.diag([0.5, 0.5, 1]))
    assert ("areas" in read.shapes) == with_slides
    if with_slides:
        assert set(read.shapes["areas"]["reason"]) == {"analysed", "pen"}


@pytest.mark.filterwarnings("ignore")
def test_a_slide_without_wanted_cells_is_a_store_without_shapes(tmp_path: Path) -> None:
    _, cells, _ = make_cell_set(tmp_path)
    export_cells(export_config(cells, None, tmp_path / "out", format="spatialdata", where="area_um2 > 1e9"))
    assert list(spatialdata.read_zarr(tmp_path / "out" / "plain.zarr").shapes) == []
