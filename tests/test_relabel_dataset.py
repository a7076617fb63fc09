"""Claims about cross-relabelling: what is settled, what stays, where labels come from, and that it finds the truth."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from relabel_helpers import dotted_dataset, dotted_image

from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import LabelOrigin
from cellmill_training.relabel import recipe
from cellmill_training.relabel.classifier import CellClassifier, ClassifierConfig, LoadedClassifier
from cellmill_training.relabel.crops import CropConfig
from cellmill_training.relabel.demo import recoveries
from cellmill_training.relabel.job import RelabelSettings, main, run_relabelling
from cellmill_training.relabel.relabelling import (
    Refinement,
    infer_refinements,
    parse_refinement,
    relabelled_image,
)
from cellmill_training.relabel.run import RelabelResult
from cellmill_training.relabel.synthetic_pair import (
    LIKE_MONUSAC,
    LIKE_PANNUKE,
    SyntheticPair,
    write_synthetic_pair,
)

# Ray copies its own data context attribute by attribute and warns about some of them.
ray_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning")
pytestmark = pytest.mark.timeout(1200)  # the run that most tests look at: a minute or two where nothing else runs

_IMMUNE = ("lymphocyte", "macrophage", "neutrophil")
_GLANDULAR = ("neoplastic", "epithelial")


def _darkest_is_lymphocyte() -> LoadedClassifier:
    """A classifier made by hand: lymphocyte (0.73) where the crop is dark, macrophage (0.73) where it is bright."""
    config = ClassifierConfig(class_names=("lymphocyte", "macrophage"), encoder="test_resnet")
    network = CellClassifier(config)

    class Brightness(torch.nn.Module):
        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            bright = torch.sign(crops[:, :, 28:36, 28:36].mean(dim=(1, 2, 3))) * 0.5
            return torch.stack([-bright, bright], dim=1)

    network.encoder = Brightness()
    network.mean.fill_(110.0)
    return LoadedClassifier(config, network, "0123456789abcdef")


def test_open_labels_are_settled_and_others_keep_label_and_origin() -> None:
    types = [("lymphocyte", "macrophage"), ("neutrophil",), ("lymphocyte", "macrophage"), (), _IMMUNE]
    shown = ["lymphocyte", "neutrophil", "macrophage", "lymphocyte", "lymphocyte"]
    image = dotted_image("i", types, source="s", shown=shown)
    relabelled, found = relabelled_image(image, [_darkest_is_lymphocyte()])
    assert [label.cell_types for label in relabelled.labels] == [
        ("lymphocyte",),
        ("neutrophil",),
        ("macrophage",),
        (),
        _IMMUNE,
    ]
    assert [label.instance for label in found] == [1, 3]
    origin = relabelled.labels[0].origin
    assert (origin.kind, origin.by) == ("relabel", "test_resnet[lymphocyte,macrophage]@0123456789ab")
    assert origin.probability == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    for place in (1, 3, 4):
        assert relabelled.labels[place] == image.labels[place]
    assert relabelled.instances is image.instances


def test_labels_that_are_not_sure_enough_stay_open_but_are_reported() -> None:
    image = dotted_image("i", [("lymphocyte", "macrophage")], source="s", shown=["lymphocyte"])
    relabelled, found = relabelled_image(image, [_darkest_is_lymphocyte()], min_probability=0.8)
    assert relabelled.labels == image.labels
    assert [(label.cell_type, label.settled) for label in found] == [("lymphocyte", False)]


def test_refinements_are_inferred_from_who_knows_most() -> None:
    counts = {
        "pannuke": {("neoplastic",): 70, ("epithelial",): 23, _IMMUNE: 32},
        "monusac": {_GLANDULAR: 31, ("lymphocyte",): 37, ("macrophage",): 2, ("neutrophil",): 1},
        "third": {("neoplastic",): 900, ("epithelial",): 1},
    }
    assert infer_refinements(counts) == (
        Refinement("monusac", _IMMUNE, "pannuke"),
        Refinement("pannuke", _GLANDULAR, "monusac"),
    )


def test_refinements_read_as_they_are_written() -> None:
    refinement = Refinement("pannuke", _GLANDULAR, "monusac")
    assert parse_refinement(str(refinement)) == refinement
    for text in ("pannuke>monusac", "pannuke:neoplastic>monusac", "neoplastic,epithelial>monusac", "a:b,c"):
        with pytest.raises(ValueError, match="FINE:CLASS,CLASS>COARSE"):
            parse_refinement(text)


def test_bad_settings_say_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two data sets"):
        RelabelSettings(datasets=("a",), out="x")
    with pytest.raises(ValueError, match="--out"):
        RelabelSettings(datasets=("a", "b"))
    with pytest.raises(ValueError, match="below 1"):
        RelabelSettings(datasets=("a", "b"), out="x", min_probability=1.0)
    assert main(["--datasets", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 2
    assert "holds no data set" in capsys.readouterr().err


def test_data_sets_that_leave_nothing_open_are_told_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        dotted_dataset(tmp_path / name, {"lymphocyte": 1, "macrophage": 1}, num_images=3)
    settings = RelabelSettings(datasets=(str(tmp_path / "a"), str(tmp_path / "b")), out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="Nothing to relabel"):
        run_relabelling(settings)
    asked = RelabelSettings(datasets=settings.datasets, out=settings.out, refinements=("a:lymphocyte,macrophage>b",))
    with pytest.raises(ValueError, match="leaves open exactly lymphocyte, macrophage"):
        run_relabelling(asked)


@dataclasses.dataclass(frozen=True)
class Run:
    """One cross-relabelling of a small synthetic pair."""

    pair: SyntheticPair
    result: RelabelResult
    out: Path
    new: pl.DataFrame


# The demonstration in a fraction of its time: fewer images, coarser, and crops of half the side with an encoder
# made for those.
_EPOCHS, _NUM_IMAGES = 5, 64
_FIT = dataclasses.replace(recipe.SMALL.learn.fit, epochs=_EPOCHS, batch_size=16, learning_rate=1e-3)
_QUICK = dataclasses.replace(
    recipe.SMALL,
    crop=CropConfig(side_px=32),
    learn=dataclasses.replace(recipe.SMALL.learn, encoder="rccnet", fit=_FIT),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("relabel")
    pair = write_synthetic_pair(folder, num_images=_NUM_IMAGES, mpp=0.35)
    settings = RelabelSettings(
        datasets=tuple(str(folder / name) for name in (LIKE_PANNUKE, LIKE_MONUSAC)),
        out=str(folder / "out"),
        recipe="small",
        device="cpu",
        num_workers=0,
        cpus_per_worker=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "SMALL", _QUICK)
        result = run_relabelling(settings)
    return Run(pair, result, folder / "out", pl.read_parquet(folder / "out" / "new_labels.parquet"))


@pytest.mark.slow
@ray_warnings
def test_nine_of_ten_merged_cells_get_their_true_type_back_which_area_and_stain_alone_do_not_tell(run: Run) -> None:
    found = recoveries(run.result, run.pair)
    right = sum(int(np.trace(one.found.confusion)) for one in found)
    assert right / len(run.result.new_labels) > 0.9
    for one in found:
        assert min(one.found.natural.value, one.found.balanced.value) > 0.88, one
        assert max(one.plain.natural.value, one.plain.balanced.value) < 0.75, one


@ray_warnings
def test_every_open_label_is_settled_once_and_every_other_stays(run: Run) -> None:
    new = {(label.image_id, label.instance): label for label in run.result.new_labels}
    assert len(new) == len(run.result.new_labels) > 200
    for dataset in run.pair.datasets:
        for before in dataset.images():
            after = run.result.refined.read(before.image_id)
            assert np.array_equal(after.image, before.image)
            assert np.array_equal(after.instances, before.instances)
            assert np.array_equal(after.unknown, before.unknown)
            for number, (old, label) in enumerate(zip(before.labels, after.labels, strict=True), start=1):
                if len(old.cell_types) == 1:
                    assert label == old
                    continue
                settled = new[before.image_id, number]
                assert label.cell_types == (settled.cell_type,)
                assert label.cell_types[0] in old.cell_types
                assert label.origin == LabelOrigin("relabel", settled.classifier, settled.probability)


@ray_warnings
def test_counts_before_and_after_add_up(run: Run) -> None:
    table = json.loads((run.out / "report.json").read_text())["counts"]
    settled = dict(run.new.group_by("cell_type").len().iter_rows())
    for name in get_ontology("refined7").names:
        certain = table[name][LIKE_PANNUKE] + table[name][LIKE_MONUSAC]
        assert table[name]["refined7"] == certain + settled.get(name, 0), name
    assert table["lymphocyte or macrophage or neutrophil"]["refined7"] == 0
    assert table["neoplastic or epithelial"]["refined7"] == 0


@ray_warnings
def test_no_test_image_of_the_refined_data_set_has_taught_a_classifier(run: Run) -> None:
    images = pl.read_parquet(run.out / "images.parquet")
    assert images.height == len(run.result.refined) == 2 * _NUM_IMAGES
    taught = images.filter((pl.col("trained").list.len() > 0) | (pl.col("validated").list.len() > 0))
    assert set(taught["split"].to_list()) == {"train", "validation"}
    assert images.filter(pl.col("trained").list.len() > 0)["split"].unique().to_list() == ["train"]
    refined = run.result.refined
    assert all(refined.split_of(name) == split for name, split in images.select("image_id", "split").iter_rows())


@ray_warnings
def test_probabilities_of_all_classes_are_kept(run: Run) -> None:
    for row in run.new.iter_rows(named=True):
        best = int(np.argmax(row["probabilities"]))
        assert row["class_names"][best] == row["cell_type"]
        assert row["probabilities"][best] == pytest.approx(row["probability"], abs=1e-6)
        assert sum(row["probabilities"]) == pytest.approx(1.0, abs=1e-5)


@ray_warnings
def test_the_report_needs_no_other_file_and_has_all_parts(run: Run) -> None:
    page = (run.out / "report.html").read_text()
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    words = re.sub(r'base64,[^"]*', "", page)
    assert "http" not in words and "<script" not in words
    for part in ("Average, natural", "Average, balanced", "Area and stain alone", "Most sure", "Least sure", "<svg"):
        assert part in page


@ray_warnings
def test_figures_and_report_are_in_mlflow(run: Run) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("relabel")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    for one in run.result.learned:
        assert tracked.data.metrics[f"{one.fine}/test/natural_accuracy"] == pytest.approx(one.test.natural.value)
        assert len(client.get_metric_history(tracked.info.run_id, f"{one.fine}/validation_accuracy")) == _EPOCHS
    assert "report.html" in {file.path for file in client.list_artifacts(tracked.info.run_id)}


@ray_warnings
def test_a_folder_with_a_refined_data_set_is_not_written_over(run: Run) -> None:
    settings = RelabelSettings(datasets=tuple(d.store.url for d in run.pair.datasets), out=str(run.out))
    with pytest.raises(ValueError, match="refined data set already"):
        run_relabelling(settings)
