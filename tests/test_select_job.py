"""select-tiles from slides to a QuPath project, and back through import-annotations."""

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from export_helpers import make_cell_set, read_parts
from tiny_models import tiny_config, tiny_model

from cellmill.export.object_ids import cell_id_of_uuid
from cellmill.models.loading import save_model
from cellmill_schemas.ontology import get_ontology
from cellmill_training.corrections.job import ImportAnnotationsSettings, import_annotations
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin
from cellmill_training.datasets.store import open_dataset, write_dataset
from cellmill_training.selecting import slide_tiles
from cellmill_training.selecting.choosing import CandidateSlide, ChosenTile, choose_tiles
from cellmill_training.selecting.classifiers import LabelledTiles
from cellmill_training.selecting.config import SelectionConfig
from cellmill_training.selecting.encoding import EncoderChoice, feature_sets_of, open_encoder
from cellmill_training.selecting.job import main
from cellmill_training.selecting.project import ProjectSource, write_tile_project
from cellmill_training.selecting.rare_cohort import cells_in_tiles, labelled_tiles, write_rare_cohort
from cellmill_training.selecting.run import select_tiles
from cellmill_training.selecting.seeds import Rarity, presence_from_cells, tiles_of_datasets, tiles_of_image
from cellmill_training.selecting.settings import SelectTilesSettings
from cellmill_training.selecting.slide_tiles import SlideTask, SlideTiles, load_features, measure_slide, tissue_share

REFINED = get_ontology("refined7")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    model = tiny_model(tiny_config("lite"))
    save_model(model.config, model.state_dict(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Slides and their cell set; one more slide is broken."""
    slides, cells, _ = make_cell_set(tmp_path_factory.mktemp("made"))
    (slides / "broken.tif").write_bytes(b"no slide")
    return slides, cells


def settings_of(made: tuple[Path, Path], out: Path, encoder: str, **more: Any) -> SelectTilesSettings:
    given: dict[str, Any] = {
        "slides": (str(made[0]),),
        "out": str(out),
        "cells": str(made[1]),
        "encoders": (encoder,),
        "tiles_per_cohort": 6,
        "features": str(out.parent / "features"),
        "tissue": "none",
        "num_workers": 1,
    }
    return SelectTilesSettings(**(given | more))


def flags(settings: SelectTilesSettings) -> list[str]:
    return [
        "--slides", *settings.slides, "--out", settings.out, "--cells", settings.cells, "--encoders",
        *settings.encoders, "--tiles-per-cohort", "6", "--features", settings.features, "--tissue", "none",
        "--num-workers", "1",
    ]  # fmt: skip


def test_a_broken_slide_is_set_aside_and_the_others_are_chosen_from(
    made: tuple[Path, Path], encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(settings_of(made, tmp_path / "out", encoder))) == 3
    said = capsys.readouterr().out
    assert "Set aside: broken: " in said
    rows = pq.read_table(tmp_path / "out" / "tiles.parquet").to_pylist()
    assert len(rows) == 6
    assert {row["slide_id"] for row in rows} <= {"plain", "marked"}
    assert all(row["x1_um"] - row["x0_um"] == pytest.approx(112) for row in rows)
    record = json.loads((tmp_path / "out" / "cellmill_export.json").read_text())
    assert list(record["set_aside"]) == ["broken"]


def test_no_usable_slide_leaves_nothing_behind(
    made: tuple[Path, Path], encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(settings_of(made, tmp_path / "out", encoder, slides=(str(made[0] / "broken.tif"),)))
    assert main(arguments) == 2
    assert "None of the 1 slides" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_seed_chooses_the_same_and_reads_no_pixels_again(
    made: tuple[Path, Path], encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_tiles(settings_of(made, tmp_path / "first", encoder))
    monkeypatch.setattr(slide_tiles, "_measured", lambda *_: pytest.fail("features were there"))
    select_tiles(settings_of(made, tmp_path / "second", encoder))
    first, second = ((tmp_path / name / "tiles.parquet").read_bytes() for name in ("first", "second"))
    assert first == second


def test_tiles_of_an_earlier_selection_are_not_chosen_again(
    made: tuple[Path, Path], encoder: str, tmp_path: Path
) -> None:
    select_tiles(settings_of(made, tmp_path / "first", encoder))
    select_tiles(settings_of(made, tmp_path / "second", encoder, earlier=(str(tmp_path / "first"),)))
    places = [
        {(row["slide_id"], row["tile_column"], row["tile_row"]) for row in pq.read_table(path).to_pylist()}
        for path in (tmp_path / "first" / "tiles.parquet", tmp_path / "second" / "tiles.parquet")
    ]
    assert len(places[1]) == 6
    assert not places[0] & places[1]


def test_a_project_comes_back_through_import_annotations(made: tuple[Path, Path], encoder: str, tmp_path: Path) -> None:
    report = select_tiles(settings_of(made, tmp_path / "out", encoder))
    project = tmp_path / "out" / "qupath"
    classes = {
        entry["name"] for entry in json.loads((project / "classifiers" / "classes.json").read_text())["pathClasses"]
    }
    assert classes >= {"To annotate", "Complete", "Ignore*", *REFINED.names}
    images = json.loads((project / "project.qpproj").read_text())["images"]
    image = next(image for image in images if image["imageName"] == "plain")
    features = read_parts(project / "objects" / str(image["entryID"]))
    tiles = [feature for feature in features if feature["properties"]["objectType"] == "annotation"]
    assert len(tiles) == sum(tile.slide_id == "plain" for tile in report.selection.tiles) > 1
    assert {tile["properties"]["classification"]["name"] for tile in tiles} == {"To annotate"}

    # The pathologist sees to one tile: changes one cell, deletes another, calls the tile complete.
    done = shapely.Polygon(tiles[0]["geometry"]["coordinates"][0])
    inside = [
        feature
        for feature in features
        if feature["properties"]["objectType"] == "detection"
        and done.contains(shapely.Polygon(feature["geometry"]["coordinates"][0]).centroid)
    ]
    assert len(inside) > 3
    tiles[0]["properties"]["classification"] = {"name": "Complete", "color": [0, 160, 90]}
    before = inside[0]["properties"]["classification"]["name"]
    other = next(name for name in REFINED.names if name != before)
    inside[0]["properties"]["classification"] = {"name": other, "color": [1, 2, 3]}
    features.remove(inside[1])
    corrections = tmp_path / "corrections"
    corrections.mkdir()
    document = {"type": "FeatureCollection", "features": features}
    (corrections / "plain.geojson.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    counts = import_annotations(
        ImportAnnotationsSettings(
            cells=str(made[1]),
            slides=(str(made[0] / "plain.tif"),),
            corrections=str(corrections),
            out=str(tmp_path / "labels"),
            annotator="A. B.",
        )
    )
    assert (counts["retyped"], counts["deleted"], counts["confirmed"]) == (1, 1, len(inside) - 2)
    assert counts.get("added", 0) == counts.get("redrawn", 0) == 0
    dataset = open_dataset(tmp_path / "labels")
    known_px = sum(int((~image.unknown).sum()) for image in dataset.images())
    assert known_px >= 224 * 224 - 1
    people = [label for image in dataset.images() for label in image.labels if label.origin.by == "A. B."]
    assert len(people) >= len(inside) - 1


def test_cells_of_a_tile_come_along_with_their_ids(made: tuple[Path, Path], encoder: str, tmp_path: Path) -> None:
    select_tiles(settings_of(made, tmp_path / "out", encoder, slides=(str(made[0] / "plain.tif"),)))
    features = read_parts(tmp_path / "out" / "qupath" / "objects" / "1")
    ids = [cell_id_of_uuid(f["id"], slide_id="plain") for f in features if f["properties"]["objectType"] == "detection"]
    assert len(ids) > 5
    assert None not in ids


def test_boxes_lie_in_the_viewers_frame_where_a_slide_states_bounds(tmp_path: Path) -> None:
    slide = SlideTiles(
        slide_id="s", cohort="", url=str(tmp_path / "s.svs"), tile_px=224,
        tiles=np.array([[2, 1]], np.int32), scale=(2.0, 2.0), mpp=(0.25, 0.25), origin_level0_px=(100, 50),
        num_found=1, path=tmp_path / "f.npz",
    )  # fmt: skip
    assert slide.boxes_level0_px().tolist() == [[896.0, 448.0, 1344.0, 896.0]]
    assert slide.boxes_um().tolist() == [[224.0, 112.0, 336.0, 224.0]]
    (tmp_path / "s.svs").write_bytes(b"any slide")
    tile = ChosenTile("s", 0, "diversity", ("diversity",), 0, 1.0, ())
    source = ProjectSource(REFINED, None, frozenset())
    write_tile_project(tmp_path / "p", [tile], {"s": slide}, source, final_folder=tmp_path / "p")
    (feature,) = read_parts(tmp_path / "p" / "objects" / "1")
    assert shapely.Polygon(feature["geometry"]["coordinates"][0]).bounds == (796.0, 398.0, 1244.0, 846.0)


def test_a_slide_at_a_url_is_listed_and_left_out_of_the_project(tmp_path: Path) -> None:
    slide = SlideTiles(
        slide_id="s", cohort="", url="s3://bucket/s.svs", tile_px=224, tiles=np.array([[0, 0]], np.int32),
        scale=(1.0, 1.0), mpp=(0.5, 0.5), origin_level0_px=(0, 0), num_found=1, path=tmp_path / "f.npz",
    )  # fmt: skip
    tile = ChosenTile("s", 0, "diversity", ("diversity",), 0, 1.0, ())
    source = ProjectSource(REFINED, None, frozenset())
    (note,) = write_tile_project(tmp_path / "p", [tile], {"s": slide}, source, final_folder=tmp_path / "p")
    assert note.startswith("s lies at a URL")


def test_a_cell_set_says_which_tiles_hold_a_type_and_leaves_open_what_it_doubts(tmp_path: Path) -> None:
    slide = SlideTiles(
        slide_id="s", cohort="", url="", tile_px=100, tiles=np.array([[0, 0], [1, 0], [3, 0]], np.int32),
        scale=(2.0, 2.0), mpp=(0.25, 0.25), origin_level0_px=(0, 0), num_found=3, path=tmp_path / "f.npz",
    )  # fmt: skip
    # Level-0 tiles of 200 px. A sure cell of type 1 in tile 0, a doubtful one of type 0 in tile 1, one in no tile.
    present = presence_from_cells(
        slide,
        np.array([[199.9, 10.0], [200.0, 10.0], [450.0, 10.0]]),
        np.array([1, 0, 1]),
        np.array([0.9, 0.3, 0.9]),
        num_types=2,
        min_confidence=0.6,
    )
    assert present.tolist() == [[0, 1], [-1, 0], [0, 0]]


def test_an_image_says_which_of_its_tiles_hold_a_type() -> None:
    instances = np.zeros((40, 70), np.int32)
    instances[5:9, 5:9], instances[5:9, 35:39], instances[30:34, 5:9] = 1, 2, 3
    unknown = np.zeros((40, 70), np.bool_)
    origin = LabelOrigin("dataset", "d")
    labels = (("lymphocyte",), ("neutrophil", "macrophage"), ("neutrophil",))
    image = LabelledImage(
        image_id="i", source="d", tissue="", split_group="p", fold="", mpp=0.5,
        image=np.zeros((40, 70, 3), np.uint8), instances=instances,
        labels=tuple(CellLabel(types, origin) for types in labels), unknown=unknown,
    )  # fmt: skip
    lymphocyte, neutrophil, macrophage = (REFINED.index(name) for name in ("lymphocyte", "neutrophil", "macrophage"))
    (first, there), (_, open_) = tiles_of_image(image, REFINED, tile_px=30)
    # 40 x 70 px are two tiles of 30 px; what is left below and at the right is less than half a tile.
    assert first.shape == (30, 30, 3)
    assert there[lymphocyte] == 1
    assert there[neutrophil] == 0
    assert open_[neutrophil] == open_[macrophage] == -1
    assert open_[lymphocyte] == 0
    unknown[0:30, 0:30] = True
    (_, hidden), _ = tiles_of_image(image, REFINED, tile_px=30)
    assert hidden[lymphocyte] == 1
    assert hidden[neutrophil] == -1


def test_glass_is_not_worth_annotating() -> None:
    tile = np.full((64, 64, 3), 245, np.uint8)
    assert tissue_share(tile) == 0.0
    tile[:, :32] = (220, 150, 200)
    assert tissue_share(tile) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("architecture", ["lite", "student", "teacher"])
def test_any_network_gives_two_vectors_of_fixed_length(architecture: Any, tmp_path: Path) -> None:
    model = tiny_model(tiny_config(architecture))
    save_model(model.config, model.state_dict(), tmp_path / "m")
    opened = open_encoder(EncoderChoice(str(tmp_path / "m")))
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
    found = opened.features(tiles)
    width = found["mean"].shape[1]
    assert found["extremes"].shape == (3, 3 * width)
    assert np.array_equal(found["extremes"][:, :width], found["mean"])
    assert (found["extremes"][:, 2 * width :] >= found["mean"] - 1e-5).all()
    alone = opened.features(tiles[1:2])
    assert np.allclose(alone["mean"], found["mean"][1:2], atol=1e-4)


def test_one_encoder_gives_two_poolings_and_two_give_one_each() -> None:
    assert feature_sets_of(("lite",)) == (("lite", "mean"), ("lite", "extremes"))
    assert feature_sets_of(("lite", "UNI")) == (("lite", "mean"), ("UNI", "mean"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoders": ("a", "b", "c")}, "one or two"),
        ({"encoders": ("lite", "lite")}, "different"),
        ({"rare_share": 0.8, "uncertain_share": 0.4}, "sum to at most 1"),
        ({"out": "s3://bucket/x"}, "local folder"),
        ({"tissue": "nowhere.geojson"}, "--tissue"),
        ({"slides": ()}, "--slides and --out"),
    ],
)
def test_settings_that_cannot_be_used_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectTilesSettings(**({"slides": ("a.svs",), "out": "x"} | wrong))


@pytest.mark.slow
def test_slides_with_a_rare_type_give_more_of_it_than_random_choice(tmp_path: Path) -> None:
    """The method on pixels, with the packaged encoder, at the smallest size at which counting makes sense."""
    truth = write_rare_cohort(tmp_path, num_slides=2, side_mm=0.9, share=0.06, seed=3)
    encoders = (EncoderChoice("lite"),)
    slides = [
        measure_slide(SlideTask(slide_id, "", str(tmp_path / "slides" / f"{slide_id}.tif"), encoders, 224, tmp_path))
        for slide_id in truth
    ]
    images = labelled_tiles(num_tiles=70, side_px=224, share=0.3, seed=3)
    dataset = write_dataset(tmp_path / "labelled", images, ontology=REFINED)
    labelled = LabelledTiles.joined(
        list(tiles_of_datasets([dataset], REFINED, encoders, tile_px=224, rarity=Rarity.of(REFINED)))
    )
    selection = choose_tiles(
        [CandidateSlide(s.slide_id, "", partial(load_features, s), np.zeros(len(s), np.bool_)) for s in slides],
        labelled,
        SelectionConfig(tiles_per_cohort=6, members=3, folds=2, inner_folds=2, iterations=40),
        feature_sets=("lite:mean", "lite:extremes"),
        rare=["neutrophil"],
    )
    counts = {s.slide_id: cells_in_tiles(truth[s.slide_id], s.tiles, tile_px=224) for s in slides}
    chosen = [counts[tile.slide_id][tile.row] for tile in selection.tiles]
    at_random = np.concatenate(list(counts.values())).mean()  # what random choice gives in the mean
    assert len(chosen) == 6
    # Six tiles of two slides: 1.6 times. Several times is shown over seeds, on made-up features.
    assert np.mean(chosen) > 1.3 * at_random > 0
