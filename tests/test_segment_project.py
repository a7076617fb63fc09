"""A model started from a QuPath project: the cells inside its annotations come back, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from bounded_reader import BOUNDS_LEVEL0_PX
from cohort_helpers import RecordedProgress
from export_helpers import read_parts
from oracle import OracleModel, Truth, make_slide

from cellmill.cohort.engine import serial_engine
from cellmill.export.annotations import drawn_regions
from cellmill.export.folder import RECORD_NAME
from cellmill.export.project_files import read_project, write_project
from cellmill.export.segment_config import SegmentProjectConfig
from cellmill.export.segment_job import main
from cellmill.export.segmenting import ImageResult, segment_project

TRIANGLE = [[60, 60], [420, 80], [200, 380], [60, 60]]
FAR_SQUARE = [[520, 300], [640, 300], [640, 420], [520, 420], [520, 300]]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Truth]]:
    folder = tmp_path_factory.mktemp("slides")
    return folder, {
        name: make_slide(folder / f"{name}.tif", width=700, height=500, seed=seed)
        for seed, name in enumerate(["one", "two", "three"])
    }


@pytest.fixture(autouse=True)
def without_qupath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAQUO_QUPATH_DIR", raising=False)


@pytest.fixture
def project(slides: tuple[Path, dict[str, Truth]], tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    images = [(name, f"{name} (H&E)", slides[0] / f"{name}.tif", {}) for name in ("one", "two", "three")]
    write_project(folder, images, final_folder=folder)
    draw(folder, "1", annotation(TRIANGLE, "Tumor"), annotation(FAR_SQUARE, "Stroma"))
    draw(folder, "2", annotation(FAR_SQUARE, None))
    draw(folder, "3", {**annotation(TRIANGLE, None), "geometry": {"type": "Point", "coordinates": [5, 5]}})
    return folder


def annotation(ring: list[list[int]], class_name: str | None, **properties: Any) -> dict[str, Any]:
    classified = {} if class_name is None else {"classification": {"name": class_name, "color": [1, 2, 3]}}
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", **classified, **properties},
    }


def draw(project: Path, entry_id: str, *features: dict[str, Any]) -> None:
    """What the script started from QuPath's menu leaves."""
    path = project / "cellmill" / "annotations" / f"{entry_id}.geojson"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def segment(
    project: Path, slides: Path, progress: RecordedProgress | None = None, **settings: Any
) -> list[ImageResult]:
    config = SegmentProjectConfig(
        project=str(project), **{"annotations": True, "field_px": 512, "device": "cpu", **settings}
    )
    progress = progress or RecordedProgress()
    return list(segment_project(config, OracleModel(slides), progress=progress, engine=serial_engine))


def truth_inside(truth: Truth, *rings: list[list[int]]) -> list[int]:
    """Labels of the cells whose centroid lies in one of the rings."""
    area = shapely.union_all([shapely.Polygon(ring) for ring in rings])
    labels = np.arange(1, truth.num_cells + 1)
    rows, columns = np.indices(truth.labels.shape)
    sizes = np.bincount(truth.labels.ravel())[1:]
    x = np.bincount(truth.labels.ravel(), columns.ravel())[1:] / sizes + 0.5
    y = np.bincount(truth.labels.ravel(), rows.ravel())[1:] / sizes + 0.5
    return labels[shapely.contains_xy(area, x, y)].tolist()


def found_labels(project: Path, entry_id: str, truth: Truth, origin: tuple[int, int] = (0, 0)) -> list[int]:
    features = read_parts(project / "cellmill" / "results" / entry_id)
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    return sorted(int(truth.labels[int(s.centroid.y) + origin[1], int(s.centroid.x) + origin[0]]) for s in shapes)


def test_exactly_the_cells_inside_the_annotations_come_back(
    slides: tuple[Path, dict[str, Truth]], project: Path
) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    results = segment(project, slides[0])
    assert [result.outcome for result in results] == ["done", "done", "no annotations"]
    for entry_id, name, rings in (("1", "one", [TRIANGLE, FAR_SQUARE]), ("2", "two", [FAR_SQUARE])):
        wanted = truth_inside(slides[1][name], *rings)
        assert 5 < len(wanted) < slides[1][name].num_cells
        assert found_labels(project, entry_id, slides[1][name]) == wanted
    # Of the project itself nothing was touched.
    assert all(path.read_bytes() == data for path, data in before.items())
    new = {path.relative_to(project).parts[0] for path in project.rglob("*") if path not in before}
    assert new <= {"cellmill", "scripts"}
    assert {path.name for path in (project / "scripts").iterdir()} == {
        "cellmill_import_results.groovy",
        "cellmill_segment_annotations.groovy",
    }


def test_only_annotations_of_a_class_and_images_asked_for(slides: tuple[Path, dict[str, Truth]], project: Path) -> None:
    (result,) = segment(project, slides[0], annotation_class="Tumor", image="one (H&E)")
    assert found_labels(project, "1", slides[1]["one"]) == truth_inside(slides[1]["one"], TRIANGLE)
    assert result.num_cells == len(found_labels(project, "1", slides[1]["one"]))
    assert not (project / "cellmill" / "results" / "2").exists()


def test_areas_marked_by_an_export_are_not_taken_for_drawn_ones(
    slides: tuple[Path, dict[str, Truth]], project: Path
) -> None:
    everything = [[0, 0], [700, 0], [700, 500], [0, 500], [0, 0]]
    draw(project, "2", annotation(everything, "Analysed area", isLocked=True), annotation(TRIANGLE, "Tumor"))
    segment(project, slides[0], image="2")
    assert found_labels(project, "2", slides[1]["two"]) == truth_inside(slides[1]["two"], TRIANGLE)


def test_without_annotations_all_tissue_is_done(slides: tuple[Path, dict[str, Truth]], project: Path) -> None:
    (result,) = segment(project, slides[0], annotations=False, image="3")
    assert result.num_cells == slides[1]["three"].num_cells


def test_the_same_annotations_cost_nothing_and_new_ones_are_done_afresh(
    slides: tuple[Path, dict[str, Truth]], project: Path
) -> None:
    segment(project, slides[0], image="2")
    (refused,) = segment(project, slides[0], image="2")
    assert refused.outcome == "failed" and "--replace" in refused.reason
    again = RecordedProgress()
    (result,) = segment(project, slides[0], again, image="2", replace=True)
    assert result.outcome == "done" and again.num_fields == 0
    draw(project, "2", annotation(TRIANGLE, None))
    (result,) = segment(project, slides[0], image="2", replace=True)
    assert found_labels(project, "2", slides[1]["two"]) == truth_inside(slides[1]["two"], TRIANGLE)
    record = json.loads((project / "cellmill" / "results" / "2" / RECORD_NAME).read_text())
    assert record["num_cells"] == result.num_cells


def test_annotations_on_a_cropped_picture_find_the_cells_under_them(
    slides: tuple[Path, dict[str, Truth]], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The picture that QuPath shows begins at the bounds: what is drawn at (60, 60) lies at (180, 140) on the slide.
    import cellmill.export.segmenting as module

    class Bounded(module.IsolatedReader):
        bounds_level0_px = BOUNDS_LEVEL0_PX

    monkeypatch.setattr(module, "IsolatedReader", Bounded)
    segment(project, slides[0], image="1", annotation_class="Tumor")
    moved = [[x + BOUNDS_LEVEL0_PX[0], y + BOUNDS_LEVEL0_PX[1]] for x, y in TRIANGLE]
    wanted = truth_inside(slides[1]["one"], moved)
    assert len(wanted) > 5
    assert found_labels(project, "1", slides[1]["one"], BOUNDS_LEVEL0_PX) == wanted


def edit_builder(project: Path, **changes: Any) -> None:
    path = project / "project.qpproj"
    document = json.loads(path.read_text())
    document["images"][0]["serverBuilder"].update(changes)
    path.write_text(json.dumps(document))


def test_images_whose_frame_is_not_known_are_left_out_with_the_reason(
    slides: tuple[Path, dict[str, Truth]], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_builder(project, builderType="rotated")
    results = segment(project, slides[0])
    assert [result.outcome for result in results] == ["failed", "done", "no annotations"]
    assert "rotated" in results[0].reason
    edit_builder(project, builderType="uri", uri="https://somewhere/one.svs")
    assert "no file on this computer" in segment(project, slides[0], image="1")[0].reason
    edit_builder(project, uri=(project / "gone.svs").as_uri())
    assert "no such file" in segment(project, slides[0], image="1")[0].reason


def test_a_picture_opened_without_cropping_keeps_the_slides_frame(project: Path) -> None:
    edit_builder(project, args=["--no-crop"], providerClassName="qupath.lib.images.servers.bioformats.BioFormats")
    image = read_project(project)[0]
    assert not image.is_cropped_to_bounds and not image.may_be_openslide
    assert read_project(project)[1].is_cropped_to_bounds and read_project(project)[1].may_be_openslide


def test_missing_annotations_say_how_to_make_them(slides: tuple[Path, dict[str, Truth]], project: Path) -> None:
    (project / "cellmill" / "annotations" / "2.geojson").unlink()
    (result,) = segment(project, slides[0], image="2")
    assert result.outcome == "failed" and "cellmill_segment_annotations" in result.reason


def test_a_freehand_annotation_that_crosses_itself_still_counts() -> None:
    bow = annotation([[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]], None)
    regions = drawn_regions([bow], classes=(), origin_level0_px=(100, 0))
    assert regions is not None and regions.shape_level0_px.is_valid
    assert regions.shape_level0_px.bounds == (100, 0, 110, 10)


def test_detections_are_no_regions() -> None:
    detection = {**annotation(TRIANGLE, None), "properties": {"objectType": "detection"}}
    assert drawn_regions([detection, "nonsense"], classes=(), origin_level0_px=(0, 0)) is None
    with pytest.raises(ValueError, match="form no polygon"):
        drawn_regions([annotation([["a", 0], [1, 1]], None)], classes=(), origin_level0_px=(0, 0))  # type: ignore[list-item]


def test_what_is_no_project_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--project", str(tmp_path)]) == 2
    assert "no project.qpproj" in capsys.readouterr().err
    for text in ("[]", '{"images": [{}]}', '{"images": [{"serverBuilder": {}, "entryID": "../x"}]}', "{"):
        (tmp_path / "project.qpproj").write_text(text)
        with pytest.raises(ValueError, match="no project file"):
            read_project(tmp_path)


def test_settings_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="--project"):
        SegmentProjectConfig()
    with pytest.raises(ValueError, match="--annotation-class"):
        SegmentProjectConfig(project="p", annotation_class=("Tumor",))
