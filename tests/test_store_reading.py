"""Cell sets as others read them: polars, DuckDB, pyarrow, geopandas."""

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import cellmill
from cellmill.grid import Box, SlideGrid
from cellmill.store.cellset import CellSet
from cellmill.store.identity import CellSetIdentity
from cellmill.store.testing import LatticeTissue
from cellmill.store.work import FieldCounts, SlideFacts
from cellmill_schemas.cells import cell_schema
from cellmill_schemas.ontology import get_ontology
from cellmill_schemas.slides import SlideStatus

GRID = SlideGrid(700, 600, scale_x=2.0, scale_y=2.0, target_mpp=0.5)
ONTOLOGY = get_ontology("refined7")
IDENTITY = CellSetIdentity("lite", "m", "c", {}, ONTOLOGY, "0.1.0")
TISSUES = {
    "0012": LatticeTissue("0012", GRID, Box(0, 0, 700, 600)),
    "TCGA-1": LatticeTissue("TCGA-1", GRID, Box(100, 100, 300, 300)),
    "blank": LatticeTissue("blank", GRID, Box(0, 0, 0, 0)),
}


def write_cell_set(url: str) -> None:
    """Two slides with cells, one without, one failed, one begun."""
    cell_set = CellSet(url).create_or_open(IDENTITY)
    (field,) = GRID.fields(field_px=768, halo_px=64)
    for slide_id, tissue in TISSUES.items():
        cell_set.claim(slide_id)
        facts = SlideFacts(slide_id, GRID, 0.25, 0.25, 1400, 1200, "f")
        work = cell_set.begin_slide(facts, field_px=768, device_kind="cpu")
        assert work is not None
        counts = FieldCounts(num_tiles=9, analysed_px=GRID.box.area)
        cells, mask = tissue.cells_in(GRID.box), tissue.mask_in(field.core)
        cell_set.write_part(work, field=field, cells=cells, core_mask=mask, counts=counts)
        cell_set.commit(work, planned=[field], elsewhere=FieldCounts())
    cell_set.write_status(SlideStatus(slide_id="broken", outcome="failed", reasons=("Truncated.",)))
    cell_set.store.put("cells/begun.parquet", b"of a commit that was killed: not to be opened")
    cell_set.refresh_slides_table()
    cell_set.close()


@pytest.fixture(scope="module", params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("cells") / "out"
    url = str(folder) if request.param == "local" else f"memory://{folder}"
    write_cell_set(url)
    yield url
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "out"
    write_cell_set(str(folder))
    return folder / "cells" / "0012.parquet"


def test_open_cells_sees_the_done_slides_with_their_slide_columns(url: str) -> None:
    cells = cellmill.open_cells(url).collect()
    truth = {slide_id: tissue.cells_in(GRID.box).num_rows for slide_id, tissue in TISSUES.items()}
    counts = dict(cells.group_by("slide_id").len().iter_rows())
    assert counts == {slide_id: count for slide_id, count in truth.items() if count}
    assert cells["analysed_mm2"].unique().to_list() == [700 * 600 * 0.25e-6]
    assert cells["outcome"].unique().to_list() == ["done"]
    assert cells["mpp_x"].unique().to_list() == [0.25]
    assert set(cells["cell_type"].cast(pl.String)) <= set(ONTOLOGY.names)


def test_open_cells_pushes_columns_and_regions_down_to_the_files(url: str) -> None:
    query = cellmill.open_cells(url).filter(pl.col("x_level0_px") < 200, slide_id="0012").select("cell_id", "mpp_x")
    plan = query.explain()
    assert "x_level0_px" in plan.split("Parquet SCAN")[1].split("ESTIMATED")[0]
    assert "geometry" not in plan
    assert "mm2" not in plan  # nor are slide columns looked up that nobody asked for
    truth = TISSUES["0012"].cells_in(GRID.box).to_pandas()
    assert sorted(query.collect()["cell_id"]) == sorted(truth.cell_id[truth.x_level0_px < 200])


def test_density_by_type_and_slide_is_one_query(url: str) -> None:
    density = (
        cellmill.open_cells(url)
        .group_by("slide_id", "cell_type")
        .agg((pl.len() / pl.col("analysed_mm2").first()).alias("per_mm2"))
        .collect()
    )
    assert density.height == 14
    assert density["per_mm2"].min() > 0


def test_dictionaries_are_marked_as_polars_marks_its_own(table_path: Path, tmp_path: Path) -> None:
    """Without the mark polars looks up every value again; a polars that renames it fails here rather than is slow."""
    pl.DataFrame({"a": ["x"]}, schema={"a": pl.Categorical}).write_parquet(tmp_path / "own.parquet")
    own = pq.read_schema(tmp_path / "own.parquet").field("a")
    for name in ("slide_id", "cell_type"):
        ours = pq.read_schema(table_path).field(name)
        assert ours.metadata == own.metadata
        assert pa.types.is_unsigned_integer(ours.type.index_type)
    assert pl.read_parquet(table_path).schema["cell_type"] == pl.Categorical


def test_slides_asked_for_by_name_are_the_only_files_opened(url: str) -> None:
    query = cellmill.open_cells(url, slide_ids=["TCGA-1", "blank"])
    assert query.collect()["slide_id"].unique().to_list() == ["TCGA-1"]
    assert "0012" not in query.explain()
    assert cellmill.open_cells(url, slide_ids=["blank"]).collect().height == 0
    with pytest.raises(FileNotFoundError, match=r"broken .* is failed: Truncated"):
        cellmill.open_cells(url, slide_ids=["0012", "broken"])


def test_counts_join_with_the_slides_table(url: str) -> None:
    slides = pl.DataFrame({"slide_id": ["0012", "TCGA-1"], "mm2": [1.0, 2.0]})
    counts = cellmill.open_cells(url).group_by("slide_id").len("cells").collect(engine="streaming")
    joined = counts.with_columns(pl.col("slide_id").cast(pl.String)).join(slides, on="slide_id").sort("slide_id")
    truth = {slide_id: tissue.cells_in(GRID.box).num_rows for slide_id, tissue in TISSUES.items()}
    assert joined.rows() == [("0012", truth["0012"], 1.0), ("TCGA-1", truth["TCGA-1"], 2.0)]


def test_an_empty_cell_set_has_the_columns_of_a_full_one(url: str, tmp_path: Path) -> None:
    CellSet(tmp_path / "new").create_or_open(IDENTITY)
    empty = cellmill.open_cells(tmp_path / "new").collect()
    assert empty.height == 0
    assert empty.schema == cellmill.open_cells(url).collect_schema()


def test_a_place_without_a_cell_set_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no cell set at .* --out of a segment_cohort run"):
        cellmill.open_cells(tmp_path)


def test_read_cells_geodataframe_has_polygons_in_level0_px(url: str) -> None:
    cells = cellmill.read_cells_geodataframe(url, "0012")
    truth = TISSUES["0012"].cells_in(GRID.box)
    assert len(cells) == truth.num_rows
    assert cells.crs is None
    assert set(cells.geom_type) == {"Polygon"}
    assert cells.is_valid.all()
    bounds = np.array([tuple(row.values()) for row in truth["bbox"].to_pylist()])
    order = np.argsort(truth["cell_id"].to_numpy())
    assert np.array_equal(cells.sort_values("cell_id").bounds.to_numpy(), bounds[order])
    assert len(cellmill.read_cells_geodataframe(url, "blank")) == 0


@pytest.mark.parametrize(
    ("slide_id", "stands"), [("broken", "is failed: Truncated."), ("begun", "has no status"), ("nobody", "no status")]
)
def test_only_done_slides_have_cells(url: str, slide_id: str, stands: str) -> None:
    with pytest.raises(FileNotFoundError, match=stands):
        cellmill.read_cells_geodataframe(url, slide_id)


def test_geopandas_reads_a_region_without_the_rest(table_path: Path) -> None:
    whole = gpd.read_parquet(table_path)
    part = gpd.read_parquet(table_path, bbox=(100, 100, 400, 400))
    assert 0 < len(part) < len(whole)
    assert set(part.cell_id) == set(whole.cx[100:400, 100:400].cell_id)


def test_pyarrow_reads_the_folder_and_keeps_the_schema(table_path: Path) -> None:
    table = ds.dataset(table_path.parent / "0012.parquet").to_table()
    assert table.schema.names == cell_schema(ONTOLOGY).names
    assert table["slide_id"].combine_chunks().dictionary.to_pylist() == ["0012"]
    assert pq.read_table(table_path, filters=[("cell_type", "=", "neoplastic")]).num_rows > 0


def test_the_geoparquet_metadata_is_that_of_the_standard(table_path: Path) -> None:
    geo = json.loads(pq.read_metadata(table_path).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    bounds = gpd.read_parquet(table_path).total_bounds
    assert column == {
        "encoding": "polygon",
        "geometry_types": ["Polygon"],
        "crs": None,
        "edges": "planar",
        "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
        "bbox": bounds.tolist(),
    }


def test_duckdb_counts_filters_and_reaches_into_the_geometry(table_path: Path) -> None:
    files = f"read_parquet('{table_path.parent}/[0T]*.parquet')"
    counts = duckdb.sql(f"SELECT slide_id, count(*) FROM {files} GROUP BY 1 ORDER BY 1").fetchall()
    assert [slide_id for slide_id, _ in counts] == ["0012", "TCGA-1"]
    region = duckdb.sql(f"SELECT count(*) FROM {files} WHERE bbox.xmin < 200 AND cell_type = 'neoplastic'").fetchall()
    assert region[0][0] > 0
    ring = duckdb.sql(f"SELECT geometry[1], type_prob FROM {files} LIMIT 1").fetchall()[0]
    assert ring[0][0] == ring[0][-1]
    assert len(ring[1]) == len(ONTOLOGY)


def test_polars_reads_the_nested_columns(table_path: Path) -> None:
    cells = pl.read_parquet(table_path)
    vertices = cells["geometry"].list.first().list.len()
    assert vertices.min() >= 12
    assert cells["type_prob"].dtype == pl.Array(pl.Float32, len(ONTOLOGY))
    assert cells["bbox"].struct.field("xmin").max() > 0
