"""Experts' corrections come back: nothing is lost on the way, changes are told apart, labels say who gave them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from export_helpers import export_config, make_cell_set, read_parts

from cellmill.export.object_ids import cell_uuid
from cellmill.export.run import export_cells
from cellmill_training.corrections.comparing import changes_of
from cellmill_training.corrections.exported import exported_cells
from cellmill_training.corrections.job import CORRECTIONS_KEY, ImportAnnotationsSettings, import_annotations, main
from cellmill_training.corrections.objects import read_corrected
from cellmill_training.datasets.labelled_image import LabelOrigin
from cellmill_training.datasets.store import open_dataset

Features = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    slides, cells, _ = make_cell_set(tmp_path_factory.mktemp("made"))
    return slides, cells


@pytest.fixture(scope="module")
def exported(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Features:
    folder = tmp_path_factory.mktemp("exported") / "geojson"
    export_cells(export_config(made[1], made[0], folder, format="geojson"))
    return read_parts(folder / "plain")


@pytest.fixture
def come_back(made: tuple[Path, Path], exported: Features, tmp_path: Path) -> Callable[..., Path]:
    """Writes what the pathologist hands back, after `edit` has changed it."""

    def write(edit: Callable[[Features], Features] = lambda features: features) -> Path:
        folder = tmp_path / "corrections"
        folder.mkdir(exist_ok=True)
        features = edit(json.loads(json.dumps(exported)))
        (folder / "plain.geojson.gz").write_bytes(
            gzip.compress(json.dumps({"type": "FeatureCollection", "features": features}).encode())
        )
        return folder

    return write


def settings_of(made: tuple[Path, Path], corrections: Path, out: Path) -> ImportAnnotationsSettings:
    return ImportAnnotationsSettings(
        cells=str(made[1]), slides=(str(made[0]),), corrections=str(corrections), out=str(out), annotator="A. B."
    )


def region(x0: float, y0: float, x1: float, y1: float, name: str) -> dict[str, Any]:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    properties = {"objectType": "annotation", "classification": {"name": name, "color": [0, 0, 0]}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def cells_in(features: Features) -> Features:
    return [feature for feature in features if feature["properties"]["objectType"] == "detection"]


def test_what_nobody_touched_comes_back_without_loss(made: tuple[Path, Path], come_back: Callable[..., Path]) -> None:
    from cellmill.store.identity import read_identity
    from cellmill.store.objects import ObjectStore

    ontology = read_identity(ObjectStore(made[1])).ontology
    path = come_back() / "plain.geojson.gz"
    corrected = read_corrected(path, slide_id="plain", ontology=ontology, origin_level0_px=(0, 0))
    cells = exported_cells(str(made[1]), "plain")
    changes = changes_of(cells, corrected)
    assert len(changes) == len(cells.cell_ids) > 20
    assert {change.kind for change in changes} == {"kept"}
    row_of = {cell_id: row for row, cell_id in enumerate(cells.cell_ids.tolist())}
    for change in changes:
        assert change.cell_id is not None
        assert change.shape_level0_px.equals(cells.outlines_level0_px[row_of[change.cell_id]])
        assert change.type_after == cells.cell_types[row_of[change.cell_id]]


def test_a_file_in_which_nobody_said_anything_is_refused(
    made: tuple[Path, Path], come_back: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="class Complete"):
        import_annotations(settings_of(made, come_back(), tmp_path / "out"))
    assert not (tmp_path / "out" / "index").exists()


def test_each_kind_of_change_is_told_apart(
    made: tuple[Path, Path], come_back: Callable[..., Path], tmp_path: Path
) -> None:
    def edit(features: Features) -> Features:
        cells = cells_in(features)
        ids = [feature["id"] for feature in cells]
        retyped, redrawn, deleted, again = (features[features.index(cell)] for cell in cells[:4])
        retyped["properties"]["classification"] = {"name": "macrophage", "color": [1, 2, 3]}
        ring = np.array(redrawn["geometry"]["coordinates"][0]) + np.array((3, 0))
        redrawn["geometry"]["coordinates"] = [ring.tolist()]
        again["id"] = "11111111-2222-4333-8444-555555555555"  # deleted and drawn again, a little smaller
        shape = shapely.affinity.scale(shapely.Polygon(again["geometry"]["coordinates"][0]), 0.9, 0.9)
        again["geometry"]["coordinates"] = [[list(vertex) for vertex in shape.exterior.coords]]
        left = [feature for feature in features if feature is not deleted]
        new = region(2, 2, 9, 9, "neutrophil")
        new["properties"]["objectType"] = "annotation"
        assert len(set(ids)) == len(ids)
        return [*left, new, region(-10, -10, 5000, 5000, "Complete")]

    counts = import_annotations(settings_of(made, come_back(edit), tmp_path / "out"))
    assert {kind: counts[kind] for kind in ("retyped", "redrawn", "deleted", "added")} == {
        "retyped": 1, "redrawn": 2, "deleted": 1, "added": 1,
    }  # fmt: skip
    table = pq.read_table(tmp_path / "out" / CORRECTIONS_KEY)
    assert table.schema.metadata[b"annotator"] == b"A. B."
    assert table.schema.metadata[b"model_digest"]
    retyped = [row for row in table.to_pylist() if row["change"] == "retyped"]
    assert retyped[0]["type_after"] == "macrophage" != retyped[0]["type_before"]
    assert retyped[0]["cell_id"] is not None and retyped[0]["iou"] > 0.98


def test_labels_say_who_gave_them_and_the_rest_is_unknown(
    made: tuple[Path, Path], come_back: Callable[..., Path], tmp_path: Path
) -> None:
    box = (0.0, 0.0, 300.0, 300.0)

    def edit(features: Features) -> Features:
        return [*features, region(*box, "Complete"), region(250, 250, 300, 300, "Ignore*")]

    settings = settings_of(made, come_back(edit), tmp_path / "out")
    counts = import_annotations(settings)
    assert counts["confirmed"] > 0 and counts["kept"] > 0
    dataset = open_dataset(tmp_path / "out")
    seen: set[str] = set()
    for image in dataset.images():
        assert image.split_group == "plain"
        for label in image.labels:
            seen.add(label.origin.kind)
            if label.origin.kind == "annotator":
                assert label.origin == LabelOrigin("annotator", "A. B.")
            else:
                assert label.origin.probability is not None
        if image.image_id == "plain~x0_y0":
            background = image.instances == 0
            assert not image.unknown[:240, :240][background[:240, :240]].any()  # complete: no nucleus there
            assert image.unknown[260:295, 260:295][background[260:295, 260:295]].all()  # ignored
            assert image.unknown[310:, 310:][background[310:, 310:]].all()  # nobody looked
    assert seen == {"annotator", "model"}


def test_a_change_outside_complete_regions_brings_its_surroundings_as_unknown(
    made: tuple[Path, Path], come_back: Callable[..., Path], tmp_path: Path
) -> None:
    def edit(features: Features) -> Features:
        cells_in(features)[0]["properties"]["classification"] = {"name": "dead", "color": [1, 2, 3]}
        return features

    counts = import_annotations(settings_of(made, come_back(edit), tmp_path / "out"))
    assert counts["retyped"] == 1 and "deleted" not in counts
    images = list(open_dataset(tmp_path / "out").images())
    assert 1 <= len(images) <= 4  # the windows that the one nucleus touches
    for image in images:
        assert image.unknown[image.instances == 0].all()
    by_person = [label for image in images for label in image.labels if label.origin.kind == "annotator"]
    assert {label.cell_types for label in by_person} == {("dead",)}


def test_missing_cells_outside_complete_regions_were_not_deleted(
    made: tuple[Path, Path], come_back: Callable[..., Path], tmp_path: Path
) -> None:
    def edit(features: Features) -> Features:
        return [*cells_in(features)[:5], region(-10, -10, 5, 5, "Complete")]

    counts = import_annotations(settings_of(made, come_back(edit), tmp_path / "out"))
    assert counts.get("deleted", 0) <= 1


def _point(features: Features) -> Features:
    geometry = {"type": "Point", "coordinates": [1, 2]}
    return [*features, {"type": "Feature", "geometry": geometry, "properties": {}}]


def _stranger(features: Features) -> Features:
    return [*features, {**region(0, 0, 9, 9, "dead"), "id": str(cell_uuid("plain", 12345))}]


BAD: dict[str, Callable[[Features], Features]] = {
    "has the id of": lambda features: [*features, {**cells_in(features)[0]}],
    "martian": lambda features: [*features, region(0, 0, 9, 9, "martian")],
    "exported from another": _stranger,
    "Polygon or MultiPolygon": _point,
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_feature_is_named_with_its_file(
    made: tuple[Path, Path], come_back: Callable[..., Path], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = come_back(BAD[said])
    arguments = ["--cells", str(made[1]), "--slides", str(made[0]), "--corrections", str(folder)]
    assert main([*arguments, "--out", str(folder.parent / "out"), "--annotator", "x"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "plain.geojson.gz, feature" in told


def test_a_file_for_no_slide_is_named(made: tuple[Path, Path], come_back: Callable[..., Path], tmp_path: Path) -> None:
    folder = come_back()
    (folder / "plain.geojson.gz").rename(folder / "other.geojson.gz")
    with pytest.raises(ValueError, match="other"):
        import_annotations(settings_of(made, folder, tmp_path / "out"))
