"""Cells as GeoJSON: vertices survive exactly, ids lead back, classes and areas are right, filters filter."""

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import polars as pl
import pytest
import shapely
from bounded_reader import BOUNDS_LEVEL0_PX
from cohort_helpers import run
from export_helpers import export_config, lattice_cell_set, make_cell_set, read_parts
from hypothesis import given
from hypothesis import strategies as st
from oracle import Truth, make_slide

import cellmill
from cellmill.export.folder import read_record
from cellmill.export.geojson_parts import GeoJsonParts
from cellmill.export.geojson_rules import check_file, read_features
from cellmill.export.object_ids import cell_id_of_uuid, cell_uuid, cell_uuid_texts
from cellmill.export.run import export_cells
from cellmill.export.selection import CellSelection, parse_where, read_selected
from cellmill.store.objects import ObjectStore
from cellmill_schemas.ontology import get_ontology

ONTOLOGY = get_ontology("refined7")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Truth]]:
    return make_cell_set(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def exported(made: tuple[Path, Path, dict[str, Truth]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "geojson"
    report = export_cells(export_config(made[1], made[0], folder, format="geojson", by_class=True))
    assert report.notes == () and report.left_to_do == ()
    return folder


def cells_of(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [feature for feature in features if feature["properties"]["objectType"] != "annotation"]


@given(st.text(max_size=20), st.integers(1, (1 << 63) - 1))
def test_ids_lead_back_to_slide_and_cell(slide_id: str, cell_id: int) -> None:
    text = str(cell_uuid(slide_id, cell_id))
    assert cell_uuid_texts(slide_id, np.array([cell_id])) == [text]
    assert cell_id_of_uuid(text, slide_id=slide_id) == cell_id
    assert cell_id_of_uuid(text, slide_id=slide_id + "x") is None


@pytest.mark.parametrize("slide_id", ["plain", "marked"])
def test_every_vertex_survives_exactly(
    made: tuple[Path, Path, dict[str, Truth]], exported: Path, slide_id: str
) -> None:
    table = cellmill.read_cells_geodataframe(made[1], slide_id)
    features = cells_of(read_parts(exported / slide_id))
    found = {cell_id_of_uuid(feature["id"], slide_id=slide_id): feature for feature in features}
    assert list(found) == table["cell_id"].tolist()
    for cell_id, outline in zip(table["cell_id"], table.geometry, strict=True):
        assert found[cell_id]["geometry"]["coordinates"] == [[list(map(int, p)) for p in outline.exterior.coords]]


def test_geopandas_reads_a_part(made: tuple[Path, Path, dict[str, Truth]], exported: Path) -> None:
    table = cellmill.read_cells_geodataframe(made[1], "plain")
    frame = gpd.GeoDataFrame.from_features(read_features(exported / "plain" / "part0000.geojson.gz"))
    assert shapely.equals_exact(frame.geometry.values, table.geometry.values, 0.0).all()


def test_classes_colours_and_measurements_are_those_of_the_table(
    made: tuple[Path, Path, dict[str, Truth]], exported: Path
) -> None:
    table = pl.read_parquet(made[1] / "cells" / "marked.parquet")
    features = cells_of(read_parts(exported / "marked"))
    colors = {c.name: list(c.color_rgb) for c in ONTOLOGY.classes}
    for row, feature in zip(table.iter_rows(named=True), features, strict=True):
        properties = feature["properties"]
        assert properties["classification"] == {"name": row["cell_type"], "color": colors[row["cell_type"]]}
        measurements = properties["measurements"]
        assert measurements["Area µm^2"] == round(row["area_um2"], 1)
        assert measurements["Touches border"] == row["touches_border"]
        assert [measurements[f"Probability: {name}"] for name in ONTOLOGY.names] == [
            round(value, 3) for value in row["type_prob"]
        ]


def test_by_class_holds_the_same_features_once_more(exported: Path) -> None:
    for slide_id in ("plain", "marked"):
        folder = exported / slide_id
        everything = cells_of(read_parts(folder))
        for name in ONTOLOGY.names:
            of_class: list[Any] = []
            for path in sorted((folder / "by_class" / name).glob("*.geojson.gz")):
                assert check_file(path) == []
                of_class += read_features(path)
            wanted = [f for f in everything if f["properties"]["classification"]["name"] == name]
            assert of_class == wanted


def test_areas_are_locked_annotations_of_the_recorded_size(
    made: tuple[Path, Path, dict[str, Truth]], exported: Path
) -> None:
    status = json.loads((made[1] / "slides" / "marked.json").read_text())
    assert status["excluded"]["pen_mm2"] > 0 and status["excluded"]["background_mm2"] > 0
    features = read_parts(exported / "marked")
    areas = {f["properties"]["name"]: f for f in features if f["properties"]["objectType"] == "annotation"}
    assert set(areas) == {"Analysed", "Excluded: pen"}
    for name, mm2 in (("Analysed", status["analysed_mm2"]), ("Excluded: pen", status["excluded"]["pen_mm2"])):
        assert areas[name]["properties"]["isLocked"] is True
        assert shapely.geometry.shape(areas[name]["geometry"]).area * 0.25e-6 == pytest.approx(mm2, abs=1e-6)
    pen = shapely.geometry.shape(areas["Excluded: pen"]["geometry"])
    assert pen.contains(shapely.box(10, 266, 374, 374))
    analysed = shapely.geometry.shape(areas["Analysed"]["geometry"])
    table = pl.read_parquet(made[1] / "cells" / "marked.parquet")
    assert shapely.contains_xy(analysed, table["x_level0_px"].to_numpy(), table["y_level0_px"].to_numpy()).mean() > 0.98


def test_a_slide_with_bounds_lines_up_with_its_cropped_picture(tmp_path: Path) -> None:
    make_slide(tmp_path / "slides" / "a.tif", width=500, height=400)
    run(tmp_path / "slides", tmp_path / "cells", reader="bounded_reader:open_bounded")
    export_cells(export_config(tmp_path / "cells", tmp_path / "slides", tmp_path / "out", format="geojson"))
    table = cellmill.read_cells_geodataframe(tmp_path / "cells", "a")
    features = read_parts(tmp_path / "out" / "a")
    cells = cells_of(features)
    moved = shapely.transform(table.geometry.values, lambda xy: xy - BOUNDS_LEVEL0_PX)
    found = [shapely.geometry.shape(feature["geometry"]) for feature in cells]
    assert shapely.equals_exact(found, moved, 0.0).all()
    (analysed,) = [f for f in features if f["properties"]["objectType"] == "annotation"]
    assert shapely.geometry.shape(analysed["geometry"]).bounds[:2] == (-120.0, -80.0)
    record = read_record(tmp_path / "out")
    assert record["slides"][0]["origin_level0_px"] == list(BOUNDS_LEVEL0_PX)


def test_cell_objects_have_a_nucleus(made: tuple[Path, Path, dict[str, Truth]], tmp_path: Path) -> None:
    export_cells(export_config(made[1], made[0], tmp_path / "out", format="geojson", as_="cells", slide_id="plain"))
    cells = cells_of(read_parts(tmp_path / "out" / "plain"))
    assert all(f["properties"]["objectType"] == "cell" and f["nucleusGeometry"] == f["geometry"] for f in cells)


def test_a_condition_keeps_the_cells_that_fulfil_it(made: tuple[Path, Path, dict[str, Truth]], tmp_path: Path) -> None:
    where = "cell_type IN ('lymphocyte', 'neoplastic') AND area_um2 > 60"
    export_cells(export_config(made[1], made[0], tmp_path / "out", format="geojson", where=where))
    table = pl.read_parquet(made[1] / "cells" / "plain.parquet").with_columns(pl.col("cell_type").cast(pl.String))
    wanted = table.filter(pl.col("cell_type").is_in(["lymphocyte", "neoplastic"]), pl.col("area_um2") > 60)
    assert 0 < len(wanted) < len(table)
    cells = cells_of(read_parts(tmp_path / "out" / "plain"))
    assert [cell_id_of_uuid(cell["id"], slide_id="plain") for cell in cells] == wanted["cell_id"].to_list()
    assert read_record(tmp_path / "out")["where"] == where


@pytest.mark.parametrize(
    "text",
    [
        "area_um2",
        "1 = 1",
        "area_um2 > avg(area_um2)",
        "rank() OVER (ORDER BY x_um) < 4",
        "sum(x_um) OVER (ORDER BY x_um) > 3",
        "quantile_cont(x_um, 0.5) > 3",
        "count(*) > 3 AND x_um > 1",
        "unnest(type_prob) > 0.3",
        "corr(x_um, y_um) > 0",
        "row_number() OVER () < 3",
        "cell_id IN (SELECT cell_id FROM cells)",
        "x_um IN (SELECT 1)",
        "read_csv('/etc/passwd') = 1",
        "geometry IS NOT NULL",
        "area > 3",
        "cell_type > 3",
        "area_um2 > 3; DROP TABLE cells",
        "",
    ],
)
def test_what_is_no_condition_on_a_cell_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--where"):
        parse_where(text, ONTOLOGY)


@pytest.mark.parametrize(
    "text",
    [
        "confidence > 0.5 AND NOT touches_border",
        "cell_type LIKE 'neo%' OR area_um2 BETWEEN 20 AND 60",
        "array_get(type_prob, 1) > 0.4",
        "sqrt(area_um2) / perimeter_um > 0.2",
        "CASE WHEN cell_type = 'dead' THEN solidity > 0.8 ELSE true END",
        "greatest(x_um, y_um) < 1000.5 AND cell_type NOT IN ('dead', 'connective')",
    ],
)
def test_conditions_on_a_cell_pass(text: str) -> None:
    parse_where(text, ONTOLOGY)


def test_selection_does_not_depend_on_batches_and_never_yields_an_empty_one(tmp_path: Path) -> None:
    tissue = lattice_cell_set(tmp_path / "cells", num_cells_across=150)
    store = ObjectStore(tmp_path / "cells")
    where = parse_where("confidence > 0.9", ONTOLOGY)
    within = shapely.box(1000, 1000, 4000, 5000)
    batches = list(read_selected(store, "lattice", CellSelection(where, within)))
    table = tissue.cells_in(tissue.grid.box).to_pandas()
    x, y = table.x_level0_px, table.y_level0_px
    wanted = table[(table.confidence > 0.9) & (x > 1000) & (x < 4000) & (y > 1000) & (y < 5000)]
    assert all(batch.num_rows for batch in batches)
    assert sorted(np.concatenate([b.column("cell_id").to_numpy() for b in batches])) == sorted(wanted.cell_id)


def test_parts_are_cut_at_their_limit_and_their_bytes_repeat(tmp_path: Path) -> None:
    features = [f'{{"n":{n}}}' for n in range(25)]
    for folder, step in (("a", 25), ("b", 7)):
        with GeoJsonParts(tmp_path / folder, max_features=10) as parts:
            for start in range(0, 25, step):
                parts.add(features[start : start + step])
        assert parts.names == ["part0000.geojson.gz", "part0001.geojson.gz", "part0002.geojson.gz"]
    counts = [len(read_features(tmp_path / "a" / name)) for name in parts.names]
    assert counts == [10, 10, 5]
    assert [f["n"] for name in parts.names for f in read_features(tmp_path / "a" / name)] == list(range(25))
    for name in parts.names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
