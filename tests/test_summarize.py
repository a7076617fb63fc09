"""Summaries of a cell set: right counts in every window, the same tables however they were made, filters on cells."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import shapely
from ends_its_process import ends_its_process
from fabricated_cells import PlacedCells, random_cells, write_cell_set

import cellmill
from cellmill.slide_pool import Failed, over_slides
from cellmill.slides.errors import SlideError
from cellmill.spatial.config import SummarizeCohortConfig
from cellmill.spatial.job import main
from cellmill.spatial.run import summarize_cohort

REGIONS = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "properties": {"name": "tumour <centre>"},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[200, 200], [800, 200], [800, 600], [200, 600], [200, 200]]],
            },
        },
        {
            "type": "Feature",
            "properties": {"classification": {"name": "Margin"}},
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [200, 0], [0, 200], [0, 0]]]},
        },
    ],
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summaries")
    slides = {"a": random_cells(1, 3000), "b": random_cells(2, 1500), "blank": PlacedCells(np.zeros((0, 2)), [])}
    write_cell_set(folder / "cells", slides, failed={"broken": "Truncated."})
    (folder / "regions").mkdir()
    (folder / "regions" / "a.geojson").write_text(json.dumps(REGIONS))
    return folder / "cells"


def settings(cells: Path, out: Path, **changes: object) -> SummarizeCohortConfig:
    values = {"num_workers": 1, "num_permutations": 10, "regions": str(cells.parent / "regions"), **changes}
    return SummarizeCohortConfig(cells=str(cells), out=str(out), **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tables(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables") / "out"
    report = summarize_cohort(settings(cells, out))
    assert (report.num_slides, report.failed) == (3, ())
    return out


def test_each_slide_fragment_and_region_is_a_row_with_its_counts(cells: Path, tables: Path) -> None:
    summary = pl.read_parquet(tables / "summary.parquet")
    windows = summary.select("slide_id", "kind", "window").rows()
    assert windows == [
        ("a", "slide", "slide"),
        ("a", "fragment", "fragment_1"),
        ("a", "region", "tumour <centre>"),
        ("a", "region", "Margin"),
        ("b", "slide", "slide"),
        ("b", "fragment", "fragment_1"),
        ("blank", "slide", "slide"),
    ]
    truth = cellmill.open_cells(cells, slide_ids=["a"]).collect()
    whole, _, centre, margin = summary.filter(slide_id="a").iter_rows(named=True)
    assert whole["num_cells"] == truth.height
    assert whole["mm2"] == pytest.approx(0.8)
    for name, count in truth.group_by("cell_type").len().iter_rows():
        assert whole[f"num_{name}"] == count
        assert whole[f"per_mm2_{name}"] == pytest.approx(count / 0.8)
        assert whole[f"share_{name}"] == pytest.approx(count / truth.height)
    x, y = truth["x_level0_px"], truth["y_level0_px"]
    assert centre["mm2"] == pytest.approx(600 * 400 * 0.25e-6)
    assert centre["num_cells"] == (x.is_between(200, 800) & y.is_between(200, 600)).sum()
    assert margin["num_cells"] == (x + y <= 200).sum()


def test_a_slide_without_cells_is_a_row_of_zeros(tables: Path) -> None:
    blank = pl.read_parquet(tables / "summary.parquet").filter(slide_id="blank").row(0, named=True)
    assert (blank["num_cells"], blank["per_mm2"], blank["num_lymphocyte"]) == (0, 0.0, 0)
    assert blank["share_lymphocyte"] is None
    assert "blank" not in pl.read_parquet(tables / "pairs.parquet")["slide_id"]


def test_pairs_and_radii_have_every_pair_of_types_in_every_window(tables: Path) -> None:
    pairs, radii = pl.read_parquet(tables / "pairs.parquet"), pl.read_parquet(tables / "radii.parquet")
    assert pairs.height == 6 * 49
    assert radii.height == 6 * 49 * 7
    assert pairs.filter(slide_id="a", kind="slide")["nearest_mean_um"].is_between(5, 200).all()
    counted = radii.filter(slide_id="a", kind="slide", from_type="neoplastic", to_type="neoplastic")
    assert counted["mean_within"].is_sorted()
    assert counted["l_minus_r_um"].abs().max() < 6  # no relation was put in


def test_csv_says_what_parquet_says(tables: Path) -> None:
    for name in ("summary", "pairs", "radii"):
        parquet = pl.read_parquet(tables / f"{name}.parquet")
        assert pl.read_csv(tables / f"{name}.csv", schema=parquet.schema).equals(parquet)
    assert not list(tables.glob("*.tmp"))


def test_tables_do_not_depend_on_the_number_of_workers(cells: Path, tables: Path, tmp_path: Path) -> None:
    summarize_cohort(settings(cells, tmp_path, num_workers=2))
    for path in sorted(tables.iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_one_slides_bad_region_file_leaves_the_others(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "a.geojson").write_text("{")
    arguments = ["--cells", str(cells), "--out", str(tmp_path / "out"), "--regions", str(tmp_path / "regions")]
    assert main([*arguments, "--num-workers", "1", "--num-permutations", "0"]) == 3
    assert "a is left out: Region file 'a.geojson' is no JSON" in capsys.readouterr().out
    summary = pl.read_parquet(tmp_path / "out" / "summary.parquet")
    assert set(summary["slide_id"]) == {"b", "blank"}
    assert pl.read_parquet(tmp_path / "out" / "pairs.parquet")["enrichment_z"].null_count() == 2 * 49


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radii_um": "10,5"}, "--radii-um must be ascending"),
        ({"radii_um": "ten"}, "--radii-um"),
        ({"min_confidence": 2.0}, "--min-confidence must be 0 to 1, got 2"),
        ({"neighbour_um": 0.0}, "--neighbour-um"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SummarizeCohortConfig(cells="c", out="o", **changes)  # type: ignore[arg-type]


def test_slides_that_are_not_done_cannot_be_asked_for(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken, nobody"):
        summarize_cohort(settings(cells, tmp_path, slide_ids=("nobody", "a", "broken")))


def test_a_slide_that_ends_its_process_takes_no_other_with_it() -> None:
    items = ["a", "bad", "killer", "b", *"cdefghij"]
    found = dict(over_slides(ends_its_process, items, num_workers=2, expected=(SlideError,)))
    reasons = {item: result.reason for item, result in found.items() if isinstance(result, Failed)}
    assert list(found) == items
    assert (found["a"], found["b"]) == ("A", "B")
    assert reasons["bad"] == "It is bad."
    assert "for want of memory" in reasons["killer"]


# --------------------------------------------------------------------------------------------- filters of open_cells


def test_cells_are_filtered_by_type_name_or_synonym_and_confidence(cells: Path) -> None:
    every = cellmill.open_cells(cells).collect().with_columns(pl.col("cell_type").cast(pl.String))
    found = cellmill.open_cells(cells, cell_types=["tumour", "Lymphocytes"], min_confidence=0.7).collect()
    wanted = every.filter(pl.col("cell_type").is_in(["neoplastic", "lymphocyte"]), pl.col("confidence") >= 0.7)
    assert sorted(found["cell_id"]) == sorted(wanted["cell_id"])
    with pytest.raises(ValueError, match=r"'plasma' is not a class of ontology 'refined7'; it has neoplastic"):
        cellmill.open_cells(cells, cell_types=["plasma"])


def test_a_region_is_a_box_a_polygon_or_a_file(cells: Path) -> None:
    every = cellmill.open_cells(cells, slide_ids=["a"]).collect()
    x, y = every["x_level0_px"], every["y_level0_px"]

    def ids(region: object) -> list[int]:
        found = cellmill.open_cells(cells, slide_ids=["a"], region=region).select("cell_id").collect()  # type: ignore[arg-type]
        return sorted(found["cell_id"])

    assert ids((100, 100, 500, 300)) == sorted(every.filter(x.is_between(100, 500) & y.is_between(100, 300))["cell_id"])
    triangle = shapely.Polygon([(0, 0), (900, 0), (0, 900)])
    assert ids(triangle) == sorted(every.filter(x + y <= 900)["cell_id"])
    in_file = (x.is_between(200, 800) & y.is_between(200, 600)) | (x + y <= 200)
    assert ids(cells.parent / "regions" / "a.geojson") == sorted(every.filter(in_file)["cell_id"])
    with pytest.raises(ValueError, match="must have an area"):
        ids((5, 5, 5, 9))


def test_ranges_of_a_region_reach_the_files(cells: Path) -> None:
    query = cellmill.open_cells(cells, region=(0, 0, 10, 10), min_confidence=0.5, cell_types=["lymphocyte"])
    selection = query.explain().split("SELECTION:")[1]
    for column in ("x_level0_px", "y_level0_px", "confidence", "cell_type"):
        assert column in selection
