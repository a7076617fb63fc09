"""Evaluation of a model on labelled images: references, predictions, files, and what is refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from cellmill.grid import TileGeometry
from cellmill.metrics.tally import ImageTally
from cellmill.models.loading import load_model, save_model
from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin
from cellmill_training.datasets.readers.synthetic import render_images
from cellmill_training.datasets.store import write_dataset
from cellmill_training.evaluation import predictions
from cellmill_training.evaluation.evaluating import Evaluation, evaluate_model
from cellmill_training.evaluation.job import UNUSABLE, main
from cellmill_training.evaluation.page import write_page
from cellmill_training.evaluation.predictions import PredictedCells
from cellmill_training.evaluation.references import open_references, reference_of_sample
from cellmill_training.evaluation.results import Resampling, describe, flat_metrics
from cellmill_training.samples import BACKGROUND_BIT, Labels, any_class, bits_of, make_sample

REFINED7 = get_ontology("refined7")
SAID = LabelOrigin("dataset", "made-up")


def _image(
    name: str, types: list[tuple[str, ...]], *, source: str = "made-up", origins: list[LabelOrigin] | None = None
) -> LabelledImage:
    """Squares of 8 px in a row, one for each entry of `types`."""
    instances = np.zeros((16, 16 * len(types)), np.int32)
    for number in range(len(types)):
        instances[4:12, 16 * number + 4 : 16 * number + 12] = number + 1
    origins = origins or [SAID] * len(types)
    return LabelledImage(
        image_id=name,
        source=source,
        tissue="skin",
        split_group=name,
        fold="",
        mpp=0.5,
        image=np.full((*instances.shape, 3), 200, np.uint8),
        instances=instances,
        labels=tuple(CellLabel(one, origin) for one, origin in zip(types, origins, strict=True)),
        unknown=np.zeros(instances.shape, np.bool_),
    )


def _store(folder: Path, *images: LabelledImage, ontology: str = "refined7") -> Path:
    splits = {one.split_group: "test" for one in images}
    write_dataset(folder, images, ontology=get_ontology(ontology), splits=splits, name="made-up")
    return folder


class _Knows:
    """In place of a network: says what it was told about each image, in order."""

    def __init__(self, *answers: tuple[npt.NDArray[np.int32], list[str]]) -> None:
        self.model: Any = SimpleNamespace(config=SimpleNamespace(target_mpp=0.5, ontology=REFINED7))
        self._answers = iter(answers)

    def predict(self, image: npt.NDArray[np.uint8]) -> PredictedCells:
        labels, types = next(self._answers)
        assert labels.shape == image.shape[:2]
        return PredictedCells(labels, np.eye(7)[[0, *(REFINED7.index(name) for name in types)]])


def _evaluated(store: Path, *answers: tuple[npt.NDArray[np.int32], list[str]], **options: Any) -> Evaluation:
    references = open_references(store, ontology=REFINED7, **options)
    return evaluate_model(_Knows(*answers), references)  # type: ignore[arg-type]


# References and what is counted.


def test_a_model_that_knows_the_truth_is_perfect(tmp_path: Path) -> None:
    images = [_image("a", [("dead",), ("lymphocyte",)]), _image("b", [("dead",)])]
    evaluation = _evaluated(
        _store(tmp_path, *images),
        (images[0].instances, ["dead", "lymphocyte"]),
        (images[1].instances, ["dead"]),
    )
    figures = evaluation.figures(num_replicates=100)
    for name in ("pq", "dq", "sq", "pq_assigned", "aji", "aji_plus", "r2", "type_accuracy"):
        assert figures.pooled[name].value == 1.0, name
    assert figures.means["f1"].value == figures.means["pq"].value == 1.0
    assert figures.types["dead"].num_reference == 2
    assert np.isnan(figures.types["neutrophil"].figures["f1"].value)


def test_a_label_of_several_types_is_right_or_wrong_for_none_of_them(tmp_path: Path) -> None:
    image = _image("a", [("neoplastic", "epithelial"), ("dead",), ()])
    evaluation = _evaluated(_store(tmp_path, image), (image.instances, ["epithelial", "dead", "macrophage"]))
    types = evaluation.tally().types[0]
    assert types[REFINED7.index("dead"), 0] == 1
    assert types[:, :5].sum() == 1
    assert evaluation.figures(num_replicates=100).pooled["pq"].value == 1.0


def test_labels_of_other_origins_are_left_open(tmp_path: Path) -> None:
    model = LabelOrigin("model", "lite@1", 0.7)
    image = _image("a", [("dead",), ("dead",)], origins=[SAID, model])
    nothing = (np.zeros_like(image.instances), [])
    store = _store(tmp_path, image)
    assert _evaluated(store, nothing).tally().panoptic[0, 2] == 2
    assert _evaluated(store, nothing, origins=("dataset",)).tally().panoptic[0, 2] == 1


def test_a_prediction_in_an_open_region_counts_in_the_strict_reading_only(tmp_path: Path) -> None:
    image = _image("a", [("dead",), ("dead",)])
    unknown = np.zeros_like(image.unknown)
    unknown[:, 16:] = True
    first = np.where(image.instances == 1, 1, 0).astype(np.int32)
    open_image = replace(image, instances=first, labels=image.labels[:1], unknown=unknown)
    evaluation = _evaluated(_store(tmp_path, open_image), (image.instances, ["dead", "dead"]))
    assert evaluation.readings() == ("strict", "known")
    assert evaluation.tally(reading="strict").panoptic[0, :3].tolist() == [1, 1, 0]
    assert evaluation.tally(reading="known").panoptic[0, :3].tolist() == [1, 0, 0]


def test_a_local_samples_bits_are_sets_of_types_and_its_undecided_pixels_are_open() -> None:
    instances = np.zeros((40, 40), np.int32)
    instances[2:8, 2:8], instances[12:18, 2:8], instances[22:28, 2:8] = 1, 2, 3
    allowed = np.full((40, 40), BACKGROUND_BIT, np.uint16)
    allowed[instances == 1] = bits_of(["dead"])
    allowed[instances == 2] = bits_of(["neoplastic", "epithelial"])
    allowed[instances == 3] = any_class()
    allowed[30:, :] = BACKGROUND_BIT | np.uint16(bits_of(["connective"]))
    labels = Labels(instances=instances, allowed=allowed, flow_known=instances > 0)
    sample = make_sample(
        np.full((40, 40, 3), 180, np.uint8), labels, mpp=0.5, name="a", source="s", group="g", split="test"
    )
    reference = reference_of_sample(sample, ontology=REFINED7)
    assert reference.permitted[1].nonzero()[0].tolist() == [REFINED7.index("dead")]
    assert set(reference.permitted[2].nonzero()[0]) == {REFINED7.index("neoplastic"), REFINED7.index("epithelial")}
    assert reference.permitted[3].all()
    assert reference.unknown[30:].all()
    assert not reference.unknown[:30].any()


# Ontologies.


def test_other_classes_need_a_mapping_and_the_error_says_how(tmp_path: Path) -> None:
    store = _store(tmp_path, _image("a", [("inflammatory",), ("dead",)]), ontology="pannuke5")
    with pytest.raises(ValueError, match=r"pannuke5.*refined7.*--mapping"):
        open_references(store, ontology=REFINED7)


def test_a_built_in_mapping_and_a_file_say_the_same(tmp_path: Path) -> None:
    store = _store(tmp_path / "data", _image("a", [("inflammatory",), ("dead",)]), ontology="pannuke5")
    file = tmp_path / "mapping.json"
    table = {name: [name] for name in ("neoplastic", "connective", "dead", "epithelial")}
    file.write_text(json.dumps(table | {"inflammatory": ["lymphocyte", "macrophage", "neutrophil"]}))
    for mapping in ("builtin", str(file)):
        (reference,) = open_references(store, ontology=REFINED7, mapping=mapping).images()
        assert [REFINED7.names[index] for index in reference.permitted[1].nonzero()[0]] == [
            "lymphocyte",
            "macrophage",
            "neutrophil",
        ]


def test_a_class_that_the_model_lacks_leaves_its_cells_type_open(tmp_path: Path) -> None:
    store = _store(tmp_path / "data", _image("a", [("dead",)]), ontology="pannuke5")
    file = tmp_path / "mapping.json"
    file.write_text(json.dumps({name: [] for name in get_ontology("pannuke5").names}))
    (reference,) = open_references(store, ontology=REFINED7, mapping=str(file)).images()
    assert not reference.permitted.any()


@pytest.mark.parametrize("text", ["[1]", '{"dead": ["dead"]}', '{"no": 3}', "{"])
def test_a_mapping_file_that_is_none_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    store = _store(tmp_path / "data", _image("a", [("dead",)]), ontology="pannuke5")
    file = tmp_path / "mapping.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"mapping\.json.*pannuke5|mapping\.json.*neoplastic"):
        open_references(store, ontology=REFINED7, mapping=str(file))


def test_an_empty_split_and_a_split_that_does_not_exist_are_errors(tmp_path: Path) -> None:
    store = _store(tmp_path, _image("a", [("dead",)]))
    with pytest.raises(ValueError, match="no image in split 'train'"):
        open_references(store, ontology=REFINED7, split="train")
    with pytest.raises(ValueError, match="--split"):
        open_references(store, ontology=REFINED7, split="held-out")


# Predictions.


@pytest.mark.parametrize("shape", [(40, 40), (96, 97), (130, 250), (7, 300)])
def test_tiles_put_together_again_are_the_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    geometry = TileGeometry(tile_px=128, margin_px=16)
    tiles, columns = predictions.tiles_of(image, geometry)
    assert tiles.shape[1:] == (128, 128, 3)
    cores = tiles[:, 16:-16, 16:-16].transpose(0, 3, 1, 2)
    assert np.array_equal(predictions._joined(cores, columns, shape).transpose(1, 2, 0), image)


def test_a_cells_type_probabilities_are_its_pixels_votes_without_background() -> None:
    from cellmill.instances.maps import DenseMaps

    prob = np.zeros((3, 1, 4), np.uint8)
    prob[:, 0] = [[55, 155, 0, 255], [200, 50, 0, 0], [0, 50, 255, 0]]
    maps = DenseMaps(np.zeros((2, 1, 4), np.int16), prob, (0, 0))
    votes = predictions.voted_types(np.array([[1, 1, 2, 0]], np.int32), maps)
    assert votes[1] == pytest.approx([250 / 300, 50 / 300])
    assert votes[2] == pytest.approx([0, 1])


# The job.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder in which lite was measured on three synthetic images of two sources."""
    place = tmp_path_factory.mktemp("evaluation")
    images = [
        replace(one, source=f"set-{number % 2}") for number, one in enumerate(render_images(range(3), side_px=192))
    ]
    write_dataset(
        place / "data", images, ontology=REFINED7, splits={one.split_group: "test" for one in images}, name="tiny"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(place)
        assert main(["--model", "lite", "--dataset", "data", "--out", "out", "--device", "cpu"]) == 0
        yield place


def test_the_json_has_every_set_with_figures_and_what_they_hold_for(folder: Path) -> None:
    document = json.loads((folder / "out" / "evaluation.json").read_text())
    assert set(document["sets"]) == {"all", "set-0", "set-1"}
    assert document["model"]["digest"] == load_model("lite").digest
    assert document["dataset"]["num_images"] == 3
    pooled = document["sets"]["all"]["strict"]["pooled"]
    assert 0.2 < pooled["pq"]["low"] <= pooled["pq"]["value"] <= pooled["pq"]["high"] <= 1.0
    assert document["sets"]["all"]["strict"]["types"]["lymphocyte"]["num_reference"] > 0


def test_pooled_figures_can_be_made_again_from_the_table_of_images(folder: Path) -> None:
    document = json.loads((folder / "out" / "evaluation.json").read_text())
    rows = pq.read_table(folder / "out" / "images.parquet").to_pylist()
    assert [row["reading"] for row in rows] == ["strict"] * 3
    right, invented, missed, iou = np.sum([row["count_panoptic"] for row in rows], axis=0)
    figures = document["sets"]["all"]["strict"]
    assert figures["pooled"]["pq"]["value"] == pytest.approx(iou / (right + (invented + missed) / 2))
    assert sum(row["num_reference"] for row in rows) == figures["num_reference"]


def test_the_page_needs_nothing_else(folder: Path) -> None:
    page = (folder / "out" / "evaluation.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= 2
    assert "http" not in page
    assert "95 % intervals" in page


def test_mlflow_has_the_figures_files_and_overlays(folder: Path) -> None:
    from cellmill.models.mlflow_client import embedded_store, open_client

    client = open_client(embedded_store(folder))
    experiment = client.get_experiment_by_name("evaluation")
    (run,) = client.search_runs([experiment.experiment_id])
    document = json.loads((folder / "out" / "evaluation.json").read_text())
    assert run.data.metrics["all/strict/pq"] == pytest.approx(
        document["sets"]["all"]["strict"]["pooled"]["pq"]["value"]
    )
    assert run.data.params["data_digest.tiny"] == document["dataset"]["digest"]
    assert {one.path for one in client.list_artifacts(run.info.run_id)} >= {"evaluation.json", "overlays"}


def test_texts_from_outside_are_escaped_on_the_page(tmp_path: Path) -> None:
    image = _image("<script>alert(1)</script>", [("dead",)])
    references = open_references(_store(tmp_path, image), ontology=REFINED7)
    evaluation = evaluate_model(_Knows((image.instances, ["dead"])), references)  # type: ignore[arg-type]
    model = replace(load_model("lite"), source="<b>folder</b>")
    document = describe(evaluation, model=model, references=references, resampling=Resampling(100))
    page = write_page(document, {"<script>alert(1)</script>": np.zeros((4, 4, 3), np.uint8)})
    assert "<script>" not in page
    assert "<b>folder" not in page
    assert all(np.isfinite(value) for value in flat_metrics(document).values())


def test_a_model_or_data_set_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "nobody", "--dataset", str(tmp_path), "--out", str(tmp_path / "o")]) == UNUSABLE
    assert "nobody" in capsys.readouterr().err
    assert main(["--model", "lite", "--dataset", str(tmp_path), "--out", str(tmp_path / "o")]) == UNUSABLE
    assert "no data set" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_drawing_groups_draws_all_of_a_groups_images(tmp_path: Path) -> None:
    """Two groups of two images each, one perfect and one missed: images give a narrower interval than groups."""
    images = [replace(_image(f"{k}", [("dead",)]), split_group=f"g{k // 4}") for k in range(8)]
    nothing = np.zeros_like(images[0].instances)
    answers = [(one.instances, ["dead"]) if k < 4 else (nothing, []) for k, one in enumerate(images)]
    evaluation = _evaluated(_store(tmp_path, *images), *answers)
    by_image, by_group = (evaluation.figures(by_group=choice).pooled["pq"] for choice in (False, True))
    assert by_image.value == by_group.value
    assert (by_group.low, by_group.high) == (0.0, 1.0)
    assert by_image.high - by_image.low < 1.0


def test_the_tallies_of_an_evaluation_are_stacked_in_the_order_of_images(tmp_path: Path) -> None:
    images = [_image("a", [("dead",)] * 3), _image("b", [("dead",)])]
    evaluation = _evaluated(_store(tmp_path, *images), *((one.instances, ["dead"] * one.num_cells) for one in images))
    tally: ImageTally = evaluation.tally()
    assert tally.cells[:, -1, 0].tolist() == [3, 1]
    assert [one.image_id for one in evaluation.images] == ["a", "b"]


def test_an_image_finer_than_the_model_is_brought_to_its_scale(tmp_path: Path) -> None:
    image = replace(_image("a", [("dead",), ("dead",)]), mpp=0.25)
    half = image.instances[::2, ::2]
    evaluation = _evaluated(_store(tmp_path, image), (np.ascontiguousarray(half), ["dead", "dead"]))
    assert evaluation.figures(num_replicates=100).pooled["pq"].value == 1.0


def test_a_saved_model_is_measured_as_the_one_it_was_saved_from(folder: Path, tmp_path: Path) -> None:
    lite = load_model("lite")
    save_model(lite.config, lite.state_dict(), tmp_path / "copy")
    arguments = ["--dataset", str(folder / "data"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["--model", str(tmp_path / "copy"), *arguments, "--pictures", "0"]) == 0
    ours, theirs = (json.loads((place / "evaluation.json").read_text()) for place in (tmp_path / "out", folder / "out"))
    assert ours["sets"] == theirs["sets"]


@pytest.mark.parametrize("architecture", ["student", "cellvit"])
def test_every_family_of_networks_can_be_measured(architecture: str, tmp_path: Path) -> None:
    """Untrained, so what they find is nothing to speak of; that flows and hv maps both become cells is the point."""
    import torch
    from tiny_models import tiny_config

    from cellmill.models.networks import build_model

    torch.manual_seed(0)
    config = tiny_config(architecture)  # type: ignore[arg-type]
    save_model(config, build_model(config).state_dict(), tmp_path / "model")
    predictor = predictions.CellPredictor(load_model(tmp_path / "model"))
    image = next(iter(render_images([3], side_px=150))).image
    cells = predictor.predict(image)
    assert cells.labels.shape == (150, 150)
    assert cells.type_prob.shape == (int(cells.labels.max()) + 1, len(config.ontology))
    sums = cells.type_prob[1:].sum(axis=1)
    assert ((np.abs(sums - 1) < 1e-6) | (sums == 0)).all()
