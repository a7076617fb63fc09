"""Points to outlines, and several annotators' points to a data set: with a small outliner trained here."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin
from cellmill_training.datasets.store import LabelledDataset, open_dataset, write_dataset
from cellmill_training.labelling.job import main_build_consensus, main_outline_points
from cellmill_training.labelling.outline_network import OutlineConfig, OutlineNetwork, load_outliner, save_outliner
from cellmill_training.labelling.outline_patches import centroids_px, patch_inputs, scaled, training_patches
from cellmill_training.labelling.outline_run import train_outliner
from cellmill_training.labelling.outline_training import OutlineFit, OutlineState, outline_loss
from cellmill_training.labelling.outlining import outline_points

REFINED = get_ontology("refined7")
SMALL = OutlineConfig(mpp=0.5, patch_px=64, widths=(8, 16, 32))


def tissue(seed: int, *, side: int = 160, num_nuclei: int = 30) -> LabelledImage:
    """Dark ellipses, some touching, on a pink ground with noise."""
    rng = np.random.default_rng(seed)
    instances = np.zeros((side, side), np.int32)
    image = np.full((side, side, 3), (225, 190, 215), np.float64) + rng.normal(0, 8, (side, side, 3))
    number = 0
    for _ in range(num_nuclei):
        x, y, angle = rng.uniform(8, side - 8), rng.uniform(8, side - 8), rng.uniform(0, 180)
        mask = np.zeros((side, side), np.uint8)
        axes = (int(rng.integers(5, 10)), int(rng.integers(4, 7)))
        cv2.ellipse(mask, (int(x), int(y)), axes, angle, 0, 360, 1, -1)
        if (instances[mask > 0] > 0).any():
            continue
        number += 1
        instances[mask > 0] = number
        image[mask > 0] = np.array((95, 60, 130)) + rng.normal(0, 12, (int(mask.sum()), 3)) + rng.normal(0, 8)
    origin = LabelOrigin("dataset", "discs")
    return LabelledImage(
        image_id=f"tile-{seed}",
        source="discs",
        tissue="",
        split_group=f"tile-{seed}",
        fold="",
        mpp=0.5,
        image=np.clip(image, 0, 255).astype(np.uint8),
        instances=instances,
        labels=tuple(CellLabel(("lymphocyte",), origin) for _ in range(number)),
        unknown=np.zeros((side, side), np.bool_),
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    images = [tissue(seed) for seed in range(12)]
    splits = {image.split_group: ("train" if number < 10 else "validation") for number, image in enumerate(images)}
    return write_dataset(tmp_path_factory.mktemp("discs") / "data", images, ontology=REFINED, splits=splits)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def outliner(dataset: LabelledDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outliner")
    fit = OutlineFit(epochs=4, batch_size=8, learning_rate=1e-2)
    state = train_outliner(dataset, folder, config=SMALL, fit=fit, jitter_um=0.75, most_nuclei=400)
    assert state.best_dice > 0.85
    return folder


def test_every_point_gets_its_own_nucleus(outliner: Path) -> None:
    unseen = tissue(99)
    config, network = load_outliner(outliner)
    found = outline_points(unseen.image, unseen.mpp, centroids_px(unseen.instances), config=config, network=network)
    assert sorted(set(np.unique(found)) - {0}) == list(range(1, unseen.num_cells + 1))
    scores = []
    for number in range(1, unseen.num_cells + 1):
        ours, truth = found == number, unseen.instances == number
        scores.append((ours & truth).sum() / (ours | truth).sum())
    assert np.median(scores) > 0.7


def test_a_point_on_nothing_keeps_a_small_disc(outliner: Path) -> None:
    config, network = load_outliner(outliner)
    with np.errstate(all="raise"):
        for name, value in network.named_parameters():
            if name == "head.bias":
                value.data.fill_(-100.0)  # sees no nucleus anywhere
    image = np.full((60, 60, 3), 230, np.uint8)
    found = outline_points(image, 0.5, np.array([[30.0, 30.0], [0.0, 59.9]]), config=config, network=network)
    assert (found == 1).sum() == pytest.approx(np.pi * 5**2, rel=0.15)
    assert (found == 2).sum() > 0
    with pytest.raises(ValueError, match="outside the image"):
        outline_points(image, 0.5, np.array([[60.0, 3.0]]), config=config, network=network)


def test_the_point_asked_for_and_the_others_lie_in_their_own_maps() -> None:
    image = scaled(np.zeros((50, 70, 3), np.uint8), mpp=0.5, config=SMALL)
    points = np.array([[35.0, 25.0], [39.0, 25.0], [65.0, 49.0]])
    patch, corner = patch_inputs(image, points, 0, SMALL)
    assert corner == (3, -7)
    assert patch[3, 32, 32] == 1
    assert patch[4, 32, 36] == 1
    assert not (patch[3].astype(bool) & patch[4].astype(bool)).any()
    assert patch[4, 49 + 7 - 2 :, :].any()  # the third point is in the patch too
    lone, _ = patch_inputs(image, points[:1], 0, SMALL)
    assert not lone[4].any()


def test_training_points_stay_on_their_nuclei() -> None:
    image = tissue(3)
    patches = training_patches([image], SMALL, jitter_px=30.0, seed=0, most=10_000)
    assert len(patches.inputs) == image.num_cells
    half = SMALL.patch_px // 2
    assert patches.masks[:, half, half].all()
    assert not (patches.masks & patches.others).any()


def test_the_loss_prefers_the_nucleus_to_its_neighbour() -> None:
    import torch

    mask, other = torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, :3], other[:, :, 5:] = True, True
    right = torch.where(mask, 8.0, -8.0)
    into_neighbour = torch.where(mask | other, 8.0, -8.0)
    into_ground = torch.where(mask | ~(mask | other), 8.0, -8.0)
    losses = [float(outline_loss(logits, mask, other)) for logits in (right, into_ground, into_neighbour)]
    assert losses[0] < 0.01
    assert losses[0] < losses[1] < losses[2]


def test_a_run_cut_off_goes_on_to_the_same_weights(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def run(folder: str) -> OutlineState:
        fit = OutlineFit(epochs=2, batch_size=20)
        return train_outliner(dataset, tmp_path / folder, config=SMALL, fit=fit, jitter_um=0.5, most_nuclei=40)

    whole = run("whole")
    with monkeypatch.context() as patched:
        patched.setattr("cellmill_training.labelling.outline_run.save_outliner", _die)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    again = run("cut")
    assert [entry["loss"] for entry in again.history] == [entry["loss"] for entry in whole.history]
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(value, again.network.state_dict()[name])


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_without_an_outliner_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_outliner makes one"):
        load_outliner(tmp_path)
    save_outliner(SMALL, OutlineNetwork(SMALL).state_dict(), tmp_path)
    assert load_outliner(tmp_path)[0] == SMALL


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """A tile with three annotators: two find every nucleus, one only half, one disagrees on a type."""
    image = tissue(42)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "tile.png"), image.image[..., ::-1])
    points = centroids_px(image.instances)
    rng = np.random.default_rng(0)
    for annotator, chosen in (("ana", points), ("bo", points), ("cy", points[::2])):
        folder = tmp_path / "points" / annotator
        folder.mkdir(parents=True)
        with (folder / "tile.csv").open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(("x", "y", "class"))
            for number, (x, y) in enumerate(chosen + rng.normal(0, 0.7, chosen.shape)):
                kind = "neoplastic" if annotator == "bo" and number == 1 else "lymphocyte"
                rows.writerow((f"{np.clip(x, 0, 159.9):.2f}", f"{np.clip(y, 0, 159.9):.2f}", kind))
    return tmp_path


def test_points_of_each_annotator_become_a_data_set(annotated: Path, outliner: Path) -> None:
    arguments = ["--images", str(annotated / "images"), "--points", str(annotated / "points"), "--mpp", "0.5"]
    arguments += ["--outliner", str(outliner), "--out", str(annotated / "out")]
    assert main_outline_points(arguments) == 0
    dataset = open_dataset(annotated / "out")
    assert dataset.image_ids() == ("tile~ana", "tile~bo", "tile~cy")
    assert len(set(dataset.splits())) == 1
    label = dataset.read("tile~bo").labels[1]
    assert (label.cell_types, label.origin) == (("neoplastic",), LabelOrigin("annotator", "bo"))


def test_annotators_agree_on_a_data_set_with_figures(annotated: Path, outliner: Path) -> None:
    arguments = ["--images", str(annotated / "images"), "--points", str(annotated / "points"), "--mpp", "0.5"]
    arguments += ["--outliner", str(outliner), "--out", str(annotated / "agreed")]
    assert main_build_consensus(arguments) == 0
    (image,) = open_dataset(annotated / "agreed").images()
    truth = tissue(42)
    assert image.num_cells == pytest.approx(truth.num_cells, abs=2)
    assert {label.origin.kind for label in image.labels} == {"consensus"}
    kinds = [label.cell_types for label in image.labels]
    assert kinds.count(("neoplastic", "lymphocyte")) + kinds.count(("lymphocyte",)) == len(kinds)
    figures = json.loads((annotated / "agreed" / "agreement.json").read_text())
    assert figures["consensus_nuclei"] == pytest.approx(truth.num_cells, abs=2)
    assert figures["pairs"][0]["detection_f1"] > 0.9


def test_a_missing_image_is_named(annotated: Path, outliner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (annotated / "images" / "tile.png").rename(annotated / "images" / "other.png")
    arguments = ["--images", str(annotated / "images"), "--points", str(annotated / "points"), "--mpp", "0.5"]
    assert main_outline_points([*arguments, "--outliner", str(outliner), "--out", str(annotated / "x")]) == 2
    assert "tile" in capsys.readouterr().err
