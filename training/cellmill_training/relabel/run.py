"""A whole cross-relabelling: data sets in, one refined data set, its lineage and a report out.

Consumes data sets of the store, in any ontology that maps to the refined one; writes into a folder

    classifiers/<fine>-<digest>/    one classifier each, see `learning`
    dataset/                        the refined data set
    new_labels.parquet              each settled or still open cell with its probabilities
    images.parquet                  each image with its split and the classifiers that learned from it
    report.html, report.json        figures, counts and samples
    mlflow.db                       unless a server is named

The split of every group is drawn once and holds for the classifiers and for the refined data set: no image on which a
network trained on the refined data will be tested has taught a classifier.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cellmill_schemas.ontology import Ontology, get_ontology
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.mapping import mapped_images
from cellmill_training.datasets.splitting import Split, split_by_group
from cellmill_training.datasets.store import LabelledDataset, write_dataset
from cellmill_training.ray_trainer import WorkerPlan, torch_device
from cellmill_training.relabel.baseline import PlainBaseline
from cellmill_training.relabel.cells import (
    CellIndex,
    Rows,
    group_splits,
    index_cells,
    label_counts,
    require_learnable,
)
from cellmill_training.relabel.classifier import ClassifierConfig, LoadedClassifier, predict
from cellmill_training.relabel.crops import CropConfig
from cellmill_training.relabel.cutting import open_crops, plain_features, write_crops
from cellmill_training.relabel.learning import ClassifierFolder, LearnConfig, learn_classifier, learning_rows
from cellmill_training.relabel.relabelling import NewLabel, Refinement, infer_refinements, relabelled_image
from cellmill_training.relabel.scores import Accuracies, accuracies

__all__ = ["Learned", "RelabelConfig", "RelabelResult", "relabel_datasets"]

logger = logging.getLogger(__name__)

LabelCounts = Mapping[tuple[str, ...], int]


@dataclass(frozen=True)
class RelabelConfig:
    """Everything that decides what labels come out, besides the data sets."""

    refinements: tuple[Refinement, ...] = ()
    """Which data set's knowledge settles which open labels; empty: for each open label the data set that knows most."""
    ontology: str = "refined7"
    """Of the refined data set."""
    splits: Literal["redraw", "keep"] = "redraw"
    """`redraw`: 70/20/10 by group, such that every class is in every split. `keep`: as the data sets have them."""
    fractions: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Shares of training, validation and test."""
    crop: CropConfig = field(default_factory=CropConfig)
    """How cells are cut out."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    """How classifiers are trained."""
    min_probability: float = 0.0
    """Labels whose best class is less probable stay open; 0, as in the paper, settles all."""
    seed: int = 0
    """Of splits and balancing."""


@dataclass(frozen=True)
class Learned:
    """One classifier with its figures."""

    fine: str
    """Data set it learned from."""
    classifier: LoadedClassifier
    index: CellIndex
    rows: Mapping[Split, Rows]
    """Balanced training and validation cells, all test cells."""
    test: Accuracies
    plain: Accuracies
    """Of logistic regression on area and hematoxylin density, on the same cells."""
    history: tuple[Mapping[str, float], ...]
    """One entry an epoch."""


@dataclass(frozen=True)
class RelabelResult:
    """What a run found."""

    learned: tuple[Learned, ...]
    refinements: tuple[Refinement, ...]
    before: Mapping[str, LabelCounts]
    """Labels of each data set."""
    refined: LabelledDataset
    new_labels: tuple[NewLabel, ...]


def relabel_datasets(
    datasets: Sequence[LabelledDataset], config: RelabelConfig, *, plan: WorkerPlan, out: Path
) -> RelabelResult:
    """Learn, relabel and write; the report is `report.write_report`'s.

    Args:
        datasets: whose names differ.
        config: what to do.
        plan: workers.
        out: folder without a refined data set.

    Raises:
        ValueError: when data sets, classes or settings cannot be used, saying what to do.
    """
    ontology = get_ontology(config.ontology)
    named = _by_name(datasets)
    if any((out / "dataset" / "index").glob("*")):
        raise ValueError(f"{out / 'dataset'} is a refined data set already: choose another --out, or delete it first.")
    counts = {name: label_counts(dataset, ontology) for name, dataset in named.items()}
    refinements = _checked(config.refinements or infer_refinements(counts), named, ontology, counts)
    wanted = sorted({(refinement.fine, refinement.classes) for refinement in refinements})
    indices = {key: index_cells(named[key[0]], key[1], ontology=ontology) for key in wanted}
    for index in indices.values():
        require_learnable(index)
    splits = {
        name: _splits_of(named[name], [indices[key] for key in wanted if key[0] == name], config) for name in named
    }
    learned = {
        key: _learn(named[key[0]], indices[key], splits[key[0]], config=config, plan=plan, out=out) for key in wanted
    }
    new_labels: list[NewLabel] = []
    device = torch_device(plan.device)
    by_coarse = {
        name: [learned[r.fine, r.classes].classifier for r in refinements if r.coarse == name] for name in named
    }
    refined = write_dataset(
        out / "dataset",
        _relabelled(named, by_coarse=by_coarse, ontology=ontology, config=config, new_labels=new_labels, device=device),
        ontology=ontology,
        splits=_joined(splits),
        name=config.ontology,
    )
    return RelabelResult(
        learned=tuple(learned.values()),
        refinements=refinements,
        before=counts,
        refined=refined,
        new_labels=tuple(new_labels),
    )


def _by_name(datasets: Sequence[LabelledDataset]) -> dict[str, LabelledDataset]:
    named = {dataset.name: dataset for dataset in datasets}
    if len(named) < 2 or len(named) < len(datasets):
        raise ValueError(
            "Cross-relabelling needs two data sets or more, of different names, got "
            f"{', '.join(dataset.name for dataset in datasets) or 'none'}."
        )
    return named


def _checked(
    refinements: Sequence[Refinement],
    named: Mapping[str, LabelledDataset],
    ontology: Ontology,
    counts: Mapping[str, LabelCounts],
) -> tuple[Refinement, ...]:
    """The refinements with canonical classes; each must have something to settle."""
    if not refinements:
        raise ValueError(
            f"Nothing to relabel: in ontology {ontology.name!r} none of {', '.join(named)} leaves a label open that "
            "another tells apart."
        )
    checked: list[Refinement] = []
    for refinement in refinements:
        unknown = [name for name in (refinement.fine, refinement.coarse) if name not in named]
        if unknown:
            raise ValueError(
                f"Refinement {refinement}: no data set is called {unknown[0]!r}; there are {', '.join(named)}."
            )
        try:
            indices = sorted({ontology.index(name) for name in refinement.classes})
        except KeyError as error:
            raise ValueError(f"Refinement {refinement}: {error.args[0]}") from error
        classes = tuple(ontology.names[index] for index in indices)
        if not counts[refinement.coarse].get(classes):
            raise ValueError(
                f"Refinement {refinement}: {refinement.coarse!r} has no cell whose label leaves open exactly "
                f"{', '.join(classes)}; its open labels are "
                f"{'; '.join(', '.join(types) for types in counts[refinement.coarse] if len(types) > 1) or 'none'}."
            )
        checked.append(Refinement(refinement.fine, classes, refinement.coarse))
    return tuple(checked)


def _splits_of(dataset: LabelledDataset, indices: Sequence[CellIndex], config: RelabelConfig) -> dict[str, Split]:
    if config.splits == "keep":
        return dataset.splits()
    groups = dataset.index.column("split_group").to_pylist()
    if not indices:
        return split_by_group(groups, fractions=config.fractions, seed=config.seed)
    return group_splits(indices, groups, fractions=config.fractions, seed=config.seed)


def _joined(splits: Mapping[str, Mapping[str, Split]]) -> dict[str, Split]:
    joined: dict[str, Split] = {}
    for name, own in splits.items():
        moved = [group for group, split in own.items() if joined.get(group, split) != split]
        if moved:
            raise ValueError(
                f"Group {moved[0]!r} is in two data sets and on two sides of a split ({own[moved[0]]!r} in {name!r}). "
                "Give the splits at import and run with --splits keep."
            )
        joined |= own
    return joined


def _learn(
    dataset: LabelledDataset,
    index: CellIndex,
    splits: Mapping[str, Split],
    *,
    config: RelabelConfig,
    plan: WorkerPlan,
    out: Path,
) -> Learned:
    rows = learning_rows(index, splits, seed=config.seed)
    if not len(rows["test"]):
        raise ValueError(f"The test split of {dataset.name!r} has no cell of {', '.join(index.class_names)}.")
    classifier = ClassifierConfig(
        class_names=index.class_names,
        encoder=config.learn.encoder,
        dropout=config.learn.dropout,
        crop=config.crop,
        trained_on=((dataset.name, dataset.digest),),
    )
    place = ClassifierFolder(out / "classifiers" / f"{dataset.name}-{_digest(classifier, config, rows)}")
    logger.info("%s: %s", place.folder.name, {split: index.counts(own) for split, own in rows.items()})
    loaded = learn_classifier(
        dataset, index, rows, classifier=classifier, learn=config.learn, plan=plan, folder=place.folder
    )
    if not place.crops("test").is_file():
        write_crops(dataset, index, rows["test"], place.crops("test"), config=config.crop)
    found = predict(loaded.network, open_crops(place.crops("test")), device=torch_device(plan.device)).argmax(axis=1)
    plain = PlainBaseline(plain_features(dataset, index, rows["train"]), index.classes[rows["train"]])
    guessed = plain.predict(plain_features(dataset, index, rows["test"]))
    return Learned(
        fine=dataset.name,
        classifier=loaded,
        index=index,
        rows=rows,
        test=_scored(index, rows["test"], found.astype(np.int64)),
        plain=_scored(index, rows["test"], guessed),
        history=tuple(json.loads(place.history.read_text(encoding="utf-8"))),
    )


def _scored(index: CellIndex, rows: Rows, predicted: Rows) -> Accuracies:
    return accuracies(index.classes[rows], predicted, index.groups[rows], class_names=index.class_names)


def _digest(classifier: ClassifierConfig, config: RelabelConfig, rows: Mapping[Split, Rows]) -> str:
    """Of what decides a classifier's weights: another setting, another folder."""
    sha256 = hashlib.sha256(json.dumps([asdict(classifier), asdict(config.learn)]).encode())
    for split in ("train", "validation"):
        sha256.update(rows[split].tobytes())
    return sha256.hexdigest()[:12]


def _relabelled(
    named: Mapping[str, LabelledDataset],
    *,
    by_coarse: Mapping[str, Sequence[LoadedClassifier]],
    ontology: Ontology,
    config: RelabelConfig,
    new_labels: list[NewLabel],
    device: torch.device,
) -> Iterator[LabelledImage]:
    for name, dataset in named.items():
        for image in mapped_images(dataset, ontology):
            relabelled, found = relabelled_image(
                image, by_coarse[name], min_probability=config.min_probability, device=device
            )
            new_labels.extend(found)
            yield relabelled
