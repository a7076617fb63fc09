"""One classifier from one data set on Ray Train: split, balance, cut out, fit, load.

Consumes a data set, the index of its typed cells and the split of its groups; writes into a folder

    crops/train.npy, crops/validation.npy     balanced cells, mapped by every worker
    initial.safetensors                       what the encoder starts from, fetched once
    checkpoint.pt                             to resume from
    classifier/                               the result, as `load_classifier` reads it
    history.json                              one entry an epoch

A folder that holds a classifier already is done; one that was cut off goes on from its last checkpoint.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from cellmill_training.checkpoints import load_state, save_state
from cellmill_training.datasets.splitting import Split
from cellmill_training.ray_trainer import Device, WorkerPlan, fit, rank_and_world
from cellmill_training.relabel.cells import CellIndex, Rows, balanced_rows, split_rows
from cellmill_training.relabel.classifier import (
    IMAGENET,
    ClassifierConfig,
    LoadedClassifier,
    initial_encoder,
    load_classifier,
    save_classifier,
)
from cellmill_training.relabel.cutting import ImageReader, open_crops, write_crops
from cellmill_training.relabel.fitting import FitConfig, FitState, LabelledCrops, fit_classifier
from cellmill_training.supervised.on_ray import join_workers

__all__ = ["ClassifierFolder", "LearnConfig", "learn_classifier", "learning_rows"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnConfig:
    """How a classifier is trained, whatever its classes."""

    encoder: str = "resnet50"
    """Name of a timm model."""
    weights: str = IMAGENET
    """`imagenet`, `random`, or a file; see `classifier.initial_encoder`."""
    dropout: float = 0.5
    """Before the last layer."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Budget and rates."""


@dataclass(frozen=True)
class ClassifierFolder:
    """Where the files of one classifier are."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """State to resume from."""
        return self.folder / "checkpoint.pt"

    @property
    def initial(self) -> Path:
        """Encoder weights to start from."""
        return self.folder / "initial.safetensors"

    @property
    def classifier(self) -> Path:
        """The trained classifier."""
        return self.folder / "classifier"

    @property
    def history(self) -> Path:
        """Curves."""
        return self.folder / "history.json"

    def crops(self, split: Split) -> Path:
        """Cells of a split."""
        return self.folder / "crops" / f"{split}.npy"

    def classes(self, split: Split) -> Path:
        """Classes of those cells."""
        return self.folder / "crops" / f"{split}_classes.npy"


def learning_rows(index: CellIndex, splits: Mapping[str, Split], *, seed: int) -> dict[Split, Rows]:
    """Rows to train on and to validate on, balanced to the rarest class, and to test on, as they are."""
    return {
        "train": balanced_rows(index, split_rows(index, splits, "train"), seed=seed),
        "validation": balanced_rows(index, split_rows(index, splits, "validation"), seed=seed),
        "test": split_rows(index, splits, "test"),
    }


def learn_classifier(
    dataset: ImageReader,
    index: CellIndex,
    rows: Mapping[Split, Rows],
    *,
    classifier: ClassifierConfig,
    learn: LearnConfig,
    plan: WorkerPlan,
    folder: Path,
    initial: Mapping[str, Tensor] | None = None,
) -> LoadedClassifier:
    """Train a classifier, or load the one that the folder holds.

    Args:
        dataset: where the cells are.
        index: its cells of the classifier's classes.
        rows: of each split, as `learning_rows` gives them.
        classifier: what to train.
        learn: how.
        plan: workers.
        folder: of this classifier alone: other data, classes or settings need another one.
        initial: weights to start from instead of those that `learn` names; the last layer's too, where they are of
            these classes (fine-tuning).

    Raises:
        ValueError: when there are no weights to start from.
        LossIsNotFiniteError: when the loss became NaN or infinite.
        ray.train.TrainingFailedError: when workers died more often than the plan allows.
    """
    place = ClassifierFolder(folder.resolve())
    if not place.history.is_file():
        _prepare(place, dataset, index, rows, classifier=classifier, learn=learn, initial=initial)
        config = {
            "folder": str(place.folder),
            "classifier": asdict(classifier),
            "fit": asdict(learn.fit),
            "device": plan.device,
        }
        fit(_worker, config, out=place.folder, plan=plan)
    return load_classifier(place.classifier)


def _prepare(
    place: ClassifierFolder,
    dataset: ImageReader,
    index: CellIndex,
    rows: Mapping[Split, Rows],
    *,
    classifier: ClassifierConfig,
    learn: LearnConfig,
    initial: Mapping[str, Tensor] | None = None,
) -> None:
    place.folder.mkdir(parents=True, exist_ok=True)
    if not place.initial.is_file():
        partial = place.initial.with_suffix(".partial")
        weights = initial_encoder(classifier, learn.weights) if initial is None else initial
        save_file({name: value.contiguous() for name, value in weights.items()}, partial)
        partial.replace(place.initial)
    for split in ("train", "validation"):
        if not place.crops(split).is_file():
            write_crops(dataset, index, rows[split], place.crops(split), config=classifier.crop)
        np.save(place.classes(split), index.classes[rows[split]], allow_pickle=False)


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    place = ClassifierFolder(Path(config["folder"]))
    classifier = ClassifierConfig.from_json(config["classifier"])
    settings = FitConfig.from_json(config["fit"])
    _, num_workers = rank_and_world()
    with join_workers(config["folder"], cast(Device, config["device"])) as (own_place, worker):
        own = ClassifierFolder(own_place.folder)
        state = FitState.fresh(classifier, settings, initial=load_file(place.initial), device=worker.device)
        if own.checkpoint.is_file():
            load_state(state, own.checkpoint)
            logger.info("Resumed at step %d.", state.step)

        def keep(state: FitState) -> None:
            if worker.rank == 0:
                save_state(state, own.checkpoint)
            last = state.history[-1] if state.history else {}
            worker.report({**last, "step": float(state.step)}, own.checkpoint)

        fit_classifier(
            state,
            train=_labelled(place, "train"),
            validation=_labelled(place, "validation"),
            config=settings,
            forward=worker.wrap(state.network),
            on_checkpoint=keep,
            rank=worker.rank,
            num_workers=num_workers,
            device=worker.device,
        )
    if worker.rank == 0:
        save_classifier(classifier, state.best, place.classifier)
        # Last: a folder with a history is a folder whose classifier is whole.
        partial = place.history.with_suffix(".partial")
        partial.write_text(json.dumps(state.history, indent=1) + "\n", encoding="utf-8")
        partial.replace(place.history)


def _labelled(place: ClassifierFolder, split: Split) -> LabelledCrops:
    return LabelledCrops(open_crops(place.crops(split)), np.load(place.classes(split), allow_pickle=False))
