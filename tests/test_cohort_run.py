"""Whole runs against slides whose cells are known: each cell once, with the right type, wherever the fields end."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr
from cohort_helpers import RecordedProgress, run
from oracle import Truth, make_slide

import cellmill
from cellmill.store.errors import CellSetMismatchError
from cellmill_schemas.ontology import get_ontology


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Truth]]:
    folder = tmp_path_factory.mktemp("slides")
    return folder, {
        "wide": make_slide(folder / "wide.tif"),
        "part": make_slide(folder / "part.tif", seed=1, glass_from_x=600),
    }


@pytest.fixture(scope="module")
def out(slides: tuple[Path, dict[str, Truth]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "cells"
    report = run(slides[0], out)
    assert report.all_done, [status.reasons for status in report.statuses]
    return out


def read_mask(out: Path, slide_id: str) -> np.ndarray:
    return np.asarray(zarr.open_group(out / "masks" / f"{slide_id}.ome.zarr", mode="r")["0"][:])


@pytest.mark.parametrize("slide_id", ["wide", "part"])
def test_every_cell_is_found_exactly_once(slides: tuple[Path, dict[str, Truth]], out: Path, slide_id: str) -> None:
    truth, cells = slides[1][slide_id], pl.read_parquet(out / "cells" / f"{slide_id}.parquet")
    x, y = cells["x_level0_px"].to_numpy().astype(int), cells["y_level0_px"].to_numpy().astype(int)
    found = truth.labels[y, x]
    assert len(cells) == truth.num_cells
    assert sorted(found) == list(range(1, truth.num_cells + 1))
    names = get_ontology("refined7").names
    assert cells["cell_type"].cast(pl.String).to_list() == [names[truth.types[label - 1]] for label in found]
    assert (cells["confidence"] == 1).all() and (cells["detection_prob"] == 1).all()
    assert cells["slide_id"].cast(pl.String).unique().to_list() == [slide_id]


@pytest.mark.parametrize("slide_id", ["wide", "part"])
def test_mask_and_table_hold_the_same_cells(slides: tuple[Path, dict[str, Truth]], out: Path, slide_id: str) -> None:
    truth, cells = slides[1][slide_id], pl.read_parquet(out / "cells" / f"{slide_id}.parquet")
    mask = read_mask(out, slide_id)
    ids, counts = np.unique(mask[mask > 0], return_counts=True)
    table = cells.sort("mask_id")
    assert ids.tolist() == table["mask_id"].to_list()
    assert np.allclose(counts * 0.25, table["area_um2"].to_numpy(), atol=0.06)
    # With perfect maps the outlines are the truth's, pixel for pixel.
    assert np.count_nonzero((mask > 0) != (truth.labels > 0)) <= 0.002 * np.count_nonzero(truth.labels)


def test_cells_on_field_corners_belong_to_one_field(slides: tuple[Path, dict[str, Truth]], out: Path) -> None:
    cells = pl.read_parquet(out / "cells" / "wide.parquet")
    for x, y in ((512, 512), (1024, 512)):
        near = cells.filter((pl.col("x_level0_px") - x).abs() < 6, (pl.col("y_level0_px") - y).abs() < 6)
        assert len(near) == 1


def test_areas_add_up_and_glass_is_excluded(slides: tuple[Path, dict[str, Truth]], out: Path) -> None:
    status = json.loads((out / "slides" / "part.json").read_text())
    assert status["slide_mm2"] == pytest.approx(1300 * 900 * 0.25e-6)
    assert status["analysed_mm2"] + sum(status["excluded"].values()) == pytest.approx(status["slide_mm2"])
    assert status["excluded"]["background_mm2"] > 0.3 * status["slide_mm2"]


def test_nothing_is_left_of_the_work(out: Path) -> None:
    assert not [path for path in (out / "_work").rglob("*") if path.is_file()]
    assert sorted(path.name for path in out.iterdir() if path.name != "_work") == [
        "cells",
        "cellset.json",
        "masks",
        "slides",
        "slides.parquet",
    ]


def test_the_cohort_reads_as_one_table(slides: tuple[Path, dict[str, Truth]], out: Path) -> None:
    counts = cellmill.open_cells(str(out)).group_by("slide_id").len().collect()
    found = {str(slide): number for slide, number in counts.iter_rows()}
    assert found == {slide_id: truth.num_cells for slide_id, truth in slides[1].items()}


def test_running_again_does_nothing_and_a_new_slide_only_itself(
    slides: tuple[Path, dict[str, Truth]], tmp_path: Path
) -> None:
    folder, out = slides[0], tmp_path / "cells"
    run(folder / "part.tif", out)
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    again = RecordedProgress()
    assert run(folder / "part.tif", out, progress=again).all_done
    assert again.num_fields == 0
    more = RecordedProgress()
    assert run(folder, out, progress=more).all_done
    assert more.num_fields == 6  # the other slide's
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_configuration_is_refused_naming_what_differs(slides: tuple[Path, dict[str, Truth]], out: Path) -> None:
    with pytest.raises(CellSetMismatchError, match=r"tissue.*'auto'.*'none'"):
        run(slides[0], out, tissue="none")


def test_another_mpp_for_a_done_slide_is_refused(slides: tuple[Path, dict[str, Truth]], out: Path) -> None:
    report = run(slides[0] / "wide.tif", out, mpp=0.25)
    assert not report.all_done
    assert "done at 0.5 x 0.5" in report.statuses[0].reasons[0]
    assert json.loads((out / "slides" / "wide.json").read_text())["outcome"] == "done"


def test_a_region_file_limits_the_analysis(slides: tuple[Path, dict[str, Truth]], tmp_path: Path) -> None:
    ring = [[0, 0], [250, 0], [250, 250], [0, 250], [0, 0]]
    region = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "region.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [region]}))
    report = run(slides[0] / "wide.tif", tmp_path / "out", tissue=str(tmp_path / "region.geojson"))
    (status,) = report.statuses
    assert status.outcome == "done"
    assert 0.05 < status.analysed_mm2 / status.slide_mm2 < 0.2
    assert status.excluded.outside_region_mm2 == pytest.approx(status.slide_mm2 - status.analysed_mm2)
    cells = pl.read_parquet(tmp_path / "out" / "cells" / "wide.parquet")
    assert cells["touches_border"].any() and not cells["touches_border"].all()
    assert cells["x_level0_px"].max() <= 400


def test_pseudonyms_leave_no_name_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "S22-4711 Doe"
    truth = make_slide(folder / "S22-4711.tif", width=400, height=300)
    (folder / "S22-4712 Doe.svs").write_text("no slide")
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef")
    (tmp_path / "key").chmod(0o600)
    progress = RecordedProgress()
    sources = [str(folder / "S22-4711.tif"), str(folder / "S22-4712 Doe.svs")]
    from cellmill.cohort.manifest import list_sources

    pseudonym = list_sources(sources, secret=(tmp_path / "key").read_bytes())[0].slide_id
    (folder / "S22-4711.truth.npz").rename(folder / f"{pseudonym}.truth.npz")
    out = tmp_path / "out"
    report = run(sources, out, pseudonymize=str(tmp_path / "key"), progress=progress)
    assert [status.outcome for status in report.statuses] == ["done", "failed"]
    assert report.statuses[0].num_cells == truth.num_cells
    told = "\n".join([*progress.said, *(str(path) for path in out.rglob("*"))]).encode()
    written = b"\n".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for name in (b"4711", b"4712", b"Doe", b"S22"):
        assert name not in told and name not in written


def test_forgetting_a_slide_removes_it_and_keeps_it_out(slides: tuple[Path, dict[str, Truth]], tmp_path: Path) -> None:
    from cellmill.cohort.job import main

    out = tmp_path / "cells"
    run(slides[0] / "part.tif", out)
    assert main(["--forget", "part", "--out", str(out)]) == 0
    assert not (out / "cells" / "part.parquet").exists() and not (out / "masks" / "part.ome.zarr").exists()
    report = run(slides[0] / "part.tif", out)
    assert "removed" in report.statuses[0].reasons[0]
    assert not (out / "cells" / "part.parquet").exists()
