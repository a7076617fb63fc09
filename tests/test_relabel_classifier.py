"""Claims about splits, balance, classifiers on disk, and fitting that resumes exactly."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from relabel_helpers import dotted_dataset, two_colors, worker_that_dies_once
from safetensors.torch import save_file
from training_helpers import fit_killed_once

from cellmill_schemas.ontology import get_ontology
from cellmill_training.checkpoints import load_state, save_state
from cellmill_training.loop import LossIsNotFiniteError
from cellmill_training.relabel import learning
from cellmill_training.relabel.cells import (
    CellIndex,
    balanced_rows,
    group_splits,
    index_cells,
    require_learnable,
    split_rows,
)
from cellmill_training.relabel.classifier import (
    CellClassifier,
    ClassifierConfig,
    initial_encoder,
    load_classifier,
    predict,
    save_classifier,
)
from cellmill_training.relabel.fitting import FitConfig, FitState, LabelledCrops, fit_classifier
from cellmill_training.relabel.learning import ClassifierFolder, LearnConfig, learning_rows

_CONFIG = ClassifierConfig(class_names=("a", "b"), encoder="test_resnet")
_FIT = FitConfig(epochs=2, batch_size=8, learning_rate=2e-3, warmup_steps=2, checkpoint_steps=3)


def _index(classes: list[int], groups: list[str]) -> CellIndex:
    return CellIndex(
        dataset="set",
        class_names=("common", "rare"),
        image_ids=np.array(groups),
        numbers=np.arange(1, len(classes) + 1, dtype=np.int32),
        classes=np.array(classes),
        groups=np.array(groups),
    )


def _rare_in_few_groups() -> CellIndex:
    """Forty groups of ten common cells; rare ones in four of them only."""
    groups = [f"g{k}" for k in range(40) for _ in range(10)] + [f"g{k}" for k in (0, 1, 2, 3) for _ in range(5)]
    return _index([0] * 400 + [1] * 20, groups)


def test_every_split_has_every_class_although_a_class_sits_in_few_groups() -> None:
    index = _rare_in_few_groups()
    for seed in range(5):
        splits = group_splits([index], index.groups.tolist(), seed=seed)
        for split in ("train", "validation", "test"):
            assert all(count > 0 for count in index.counts(split_rows(index, splits, split)).values())
        assert len(split_rows(index, splits, "train")) / len(index) == pytest.approx(0.7, abs=0.1)


def test_no_group_is_on_two_sides_and_the_draw_is_repeatable() -> None:
    index = _rare_in_few_groups()
    splits = group_splits([index], index.groups.tolist(), seed=3)
    sides = [set(index.groups[split_rows(index, splits, split)]) for split in ("train", "validation", "test")]
    assert sum(len(side) for side in sides) == len(set.union(*sides)) == 40
    assert splits == group_splits([index], index.groups.tolist()[::-1], seed=3)


def test_training_and_validation_are_balanced_and_the_test_split_is_not() -> None:
    index = _rare_in_few_groups()
    rows = learning_rows(index, group_splits([index], index.groups.tolist()), seed=0)
    for split in ("train", "validation"):
        counts = index.counts(rows[split])
        assert counts["common"] == counts["rare"] > 0
    assert index.counts(rows["test"])["common"] > index.counts(rows["test"])["rare"] > 0
    assert len(np.unique(np.concatenate(list(rows.values())))) == sum(len(own) for own in rows.values())


def test_balancing_keeps_all_of_the_rarest_class() -> None:
    index = _index([0] * 50 + [1] * 4, ["g"] * 54)
    rows = balanced_rows(index, np.arange(54), seed=0)
    assert index.counts(rows) == {"common": 4, "rare": 4}
    assert set(range(50, 54)) <= set(rows.tolist())
    assert rows.tolist() == balanced_rows(index, np.arange(54), seed=0).tolist()
    assert rows.tolist() != balanced_rows(index, np.arange(54), seed=1).tolist()


def test_a_class_without_cells_or_in_too_few_groups_is_named_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no cell that is certainly 'rare'.*add images"):
        require_learnable(_index([0] * 9, [f"g{k}" for k in range(9)]))
    with pytest.raises(ValueError, match=r"'rare'.*2 split group.*other patients"):
        require_learnable(_index([0] * 9 + [1] * 2, [f"g{k}" for k in range(9)] + ["g0", "g1"]))
    with pytest.raises(ValueError, match="no cell of rare"):
        balanced_rows(_index([0, 0], ["g", "h"]), np.arange(2), seed=0)


def test_an_index_holds_certain_cells_of_the_classes_only(tmp_path: Path) -> None:
    dataset = dotted_dataset(tmp_path / "dots", {"lymphocyte": 2, "macrophage": 1, "neutrophil": 1}, num_images=2)
    index = index_cells(dataset, ("macrophage", "lymphocyte"), ontology=get_ontology("refined7"))
    assert index.counts() == {"macrophage": 2, "lymphocyte": 4}
    assert set(index.numbers.tolist()) == {1, 2, 3}


def test_a_classifier_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CellClassifier(_CONFIG).eval()
    save_classifier(_CONFIG, network.state_dict(), tmp_path / "c")
    loaded = load_classifier(tmp_path / "c")
    crops = two_colors(5, seed=0).crops
    assert loaded.config == _CONFIG
    assert np.array_equal(predict(loaded.network, crops), predict(network, crops))
    assert loaded.digest[:12] in loaded.name
    assert not [path for path in (tmp_path / "c").iterdir() if path.suffix not in (".json", ".safetensors")]


def test_a_folder_without_classifier_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no usable cell classifier"):
        load_classifier(tmp_path)


def test_no_cells_give_no_probabilities() -> None:
    assert predict(CellClassifier(_CONFIG), np.zeros((0, 64, 64, 3), np.uint8)).shape == (0, 2)


def test_weights_of_another_number_of_classes_start_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = CellClassifier(dataclasses.replace(_CONFIG, class_names=("a", "b", "c")))
    save_file(other.encoder.state_dict(), tmp_path / "w.safetensors")
    state = FitState.fresh(_CONFIG, _FIT, initial=initial_encoder(_CONFIG, str(tmp_path / "w.safetensors")))
    own, theirs = state.network.encoder.state_dict(), other.encoder.state_dict()
    same = [name for name in own if own[name].shape == theirs[name].shape and torch.equal(own[name], theirs[name])]
    assert len(own) - len(same) == 2  # the last layer's weight and bias


def test_missing_and_foreign_weights_say_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no file"):
        initial_encoder(_CONFIG, str(tmp_path / "absent.safetensors"))
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        initial_encoder(_CONFIG, str(tmp_path / "broken.pth"))
    save_file({"something": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="not of test_resnet"):
        initial_encoder(_CONFIG, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="timm has no model called 'resnet51'"):
        initial_encoder(dataclasses.replace(_CONFIG, encoder="resnet51"), str(tmp_path / "w.safetensors"))

    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("no network")  # the hub's own error is one, and a ValueError besides

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ValueError, match=r"could not be fetched.*--weights FILE.*--weights random"):
        initial_encoder(_CONFIG, "imagenet")


def test_fitting_learns_what_colour_tells() -> None:
    state = FitState.fresh(_CONFIG, _FIT)
    fit_classifier(state, train=two_colors(64, seed=0), validation=two_colors(40, seed=1), config=_FIT)
    assert state.best_accuracy > 0.95
    assert len(state.history) == 2


def test_a_resumed_run_takes_the_same_steps_as_one_that_was_not_cut_off(tmp_path: Path) -> None:
    train, validation = two_colors(40, seed=0), two_colors(16, seed=1)
    whole = FitState.fresh(_CONFIG, _FIT)
    fit_classifier(whole, train=train, validation=validation, config=_FIT)

    class CutOffError(Exception):
        pass

    def cut_off(state: FitState) -> None:
        save_state(state, tmp_path / "checkpoint.pt")
        if state.step == 3:  # in the middle of the first epoch of five steps
            raise CutOffError

    with pytest.raises(CutOffError):
        fit_classifier(
            FitState.fresh(_CONFIG, _FIT), train=train, validation=validation, config=_FIT, on_checkpoint=cut_off
        )
    resumed = FitState.fresh(dataclasses.replace(_CONFIG), dataclasses.replace(_FIT, seed=9))
    load_state(resumed, tmp_path / "checkpoint.pt")
    fit_classifier(resumed, train=train, validation=validation, config=_FIT)
    assert resumed.history == whole.history
    assert all(torch.equal(value, whole.best[name]) for name, value in resumed.best.items())


def test_workers_share_an_epoch_without_gap_or_twin() -> None:
    from cellmill_training.relabel.fitting import _rows_of_step as rows_of_step  # pyright: ignore[reportPrivateUsage]

    shown = np.concatenate(
        [rows_of_step(step, 48, _FIT, rank=rank, num_workers=2) for step in range(3) for rank in range(2)]
    )
    assert sorted(shown.tolist()) == list(range(48))
    second = np.concatenate(
        [rows_of_step(step, 48, _FIT, rank=rank, num_workers=2) for step in range(3, 6) for rank in range(2)]
    )
    assert sorted(second.tolist()) == list(range(48)) and second.tolist() != shown.tolist()


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    state = FitState.fresh(_CONFIG, _FIT)
    with torch.no_grad():
        next(iter(state.network.parameters())).fill_(float("nan"))
    with pytest.raises(LossIsNotFiniteError, match="Lower --learning-rate"):
        fit_classifier(state, train=two_colors(16, seed=0), validation=two_colors(8, seed=1), config=_FIT)


def test_a_killed_worker_loses_only_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    dataset = dotted_dataset(tmp_path / "dots", {"lymphocyte": 4, "macrophage": 4})
    index = index_cells(dataset, ("lymphocyte", "macrophage"), ontology=get_ontology("refined7"))
    rows = learning_rows(index, group_splits([index], index.groups.tolist()), seed=0)
    classifier = ClassifierConfig(class_names=index.class_names, encoder="test_resnet")
    place = ClassifierFolder(tmp_path / "run")
    learn = LearnConfig(encoder="test_resnet", weights="random", fit=_FIT)
    learning._prepare(place, dataset, index, rows, classifier=classifier, learn=learn)  # pyright: ignore
    config = {"folder": str(place.folder), "classifier": dataclasses.asdict(classifier)}
    config |= {"fit": dataclasses.asdict(_FIT), "device": "cpu", "die_at_step": 5}
    fit_killed_once(worker_that_dies_once, config, out=place.folder)
    taken = [int(line) for line in (place.folder / "steps").read_text().split()]
    # 56 cells in batches of 8: an epoch is 7 steps. Killed in step 5, the last checkpoint was after step 2.
    assert taken == [0, 1, 2, 3, 4, *range(3, 14)]
    whole = FitState.fresh(classifier, _FIT)
    crops = {
        split: LabelledCrops(np.load(place.crops(split)), np.load(place.classes(split)))
        for split in ("train", "validation")
    }
    fit_classifier(whole, train=crops["train"], validation=crops["validation"], config=_FIT)
    loaded = load_classifier(place.classifier)
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, whole.best[name]), name
