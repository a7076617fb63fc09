"""Phase IV: how many expert labels a student needs, as the paper's table 6 asks.

Consumes expert nuclei and the student; for each per-class count it draws nuclei, fine-tunes the student on them at each
learning rate and dropout of the recipe, keeps the one with the best validation accuracy and scores it, and the student
as it was, on the same test nuclei. A larger count holds the nuclei of a smaller one. Runs that are done are not done
again.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cellmill_training.datasets.splitting import Split
from cellmill_training.ray_trainer import WorkerPlan, torch_device
from cellmill_training.relabel.cells import CellIndex, Rows, split_rows
from cellmill_training.relabel.classifier import LoadedClassifier, predict
from cellmill_training.relabel.cutting import ImageReader, open_crops
from cellmill_training.relabel.learning import ClassifierFolder, learn_classifier
from cellmill_training.weak.recipe import TuningConfig
from cellmill_training.weak.scoring import Scores, score

__all__ = ["ExpertNuclei", "TuningRow", "drawn_rows", "expert_scores", "possible_counts", "tune"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertNuclei:
    """Nuclei that an expert typed."""

    dataset: ImageReader
    index: CellIndex
    splits: Mapping[str, Split]
    """Of the expert's slides; `test` is held out where `test_on` is `other_slides`."""
    crops: Path
    """One crop a row of the index."""
    classes: tuple[int, ...]
    """Those that the expert tells apart: all of the index but the background."""


@dataclass(frozen=True)
class TuningRow:
    """One row of table 6."""

    count: int
    """Expert nuclei of each class."""
    before: Scores
    after: Scores
    learning_rate: float
    dropout: float
    classifier: Path
    """Folder of the fine-tuned student."""


def tune(
    student: LoadedClassifier, expert: ExpertNuclei, config: TuningConfig, *, plan: WorkerPlan, out: Path, seed: int
) -> tuple[TuningRow, ...]:
    """Fine-tune for each count; one row each, ascending.

    Raises:
        ValueError: when there are too few expert nuclei for the smallest count, naming the class.
    """
    pool = np.arange(len(expert.index), dtype=np.int64)
    if config.test_on == "other_slides":
        pool = np.setdiff1d(pool, split_rows(expert.index, expert.splits, "test"))
    rows: list[TuningRow] = []
    for count in possible_counts(expert, pool, config.counts):
        drawn = drawn_rows(expert, pool, count, validation_share=config.validation_share, seed=seed)
        others = np.arange(len(expert.index)) if config.test_on == "other_nuclei" else None
        test = (
            split_rows(expert.index, expert.splits, "test")
            if others is None
            else np.setdiff1d(others, np.concatenate([drawn["train"], drawn["validation"]]))
        )
        rows.append(_row(count, student, expert, {**drawn, "test": test}, config, plan=plan, out=out))
    return tuple(rows)


def possible_counts(expert: ExpertNuclei, pool: Rows, counts: tuple[int, ...]) -> tuple[int, ...]:
    """The counts that every class has nuclei for; the others are named in the log.

    Raises:
        ValueError: when none is left, naming the rarest class.
    """
    names = expert.index.class_names
    there = {names[place]: int((expert.index.classes[pool] == place).sum()) for place in expert.classes}
    rarest = min(there, key=lambda name: there[name])
    possible = tuple(sorted(count for count in set(counts) if count <= there[rarest]))
    if not possible:
        raise ValueError(
            f"Fine-tuning on {min(counts)} expert nuclei of each class needs more: there are {there[rarest]} of "
            f"{rarest!r}. Annotate more of them, or give smaller --counts."
        )
    if len(possible) < len(set(counts)):
        logger.warning("Counts above %d are left out: the expert typed no more %s.", there[rarest], rarest)
    return possible


def drawn_rows(
    expert: ExpertNuclei, pool: Rows, count: int, *, validation_share: float, seed: int
) -> dict[Split, Rows]:
    """`count` nuclei of each class, some of them for validation."""
    num_validation = min(max(1, round(count * validation_share)), count - 1)
    parts: dict[Split, list[Rows]] = {"train": [], "validation": []}
    for place in expert.classes:
        own = pool[expert.index.classes[pool] == place]
        order = np.random.default_rng([seed, place, 0x7E6]).permutation(own)[:count]
        # Every n-th validates, so that the parts of a smaller count are parts of a larger one.
        validates = np.zeros(len(order), np.bool_)
        validates[np.round(np.linspace(0, len(order) - 1, num_validation)).astype(int)] = True
        parts["validation"].append(order[validates])
        parts["train"].append(order[~validates])
    return {split: np.sort(np.concatenate(own)).astype(np.int64) for split, own in parts.items()}


def _row(
    count: int,
    student: LoadedClassifier,
    expert: ExpertNuclei,
    rows: Mapping[Split, Rows],
    config: TuningConfig,
    *,
    plan: WorkerPlan,
    out: Path,
) -> TuningRow:
    initial = {
        name.removeprefix("encoder."): value
        for name, value in student.network.state_dict().items()
        if name.startswith("encoder.")
    }
    best: tuple[float, float, float, LoadedClassifier, Path] | None = None
    for rate in sorted(config.learning_rates):
        for dropout in sorted(config.dropouts):
            place = ClassifierFolder(out / f"n{count}-lr{rate:g}-dropout{dropout:g}")
            tuned = learn_classifier(
                expert.dataset,
                expert.index,
                rows,
                classifier=replace(student.config, dropout=dropout),
                learn=replace(config.learn, fit=replace(config.learn.fit, learning_rate=rate)),
                plan=plan,
                folder=place.folder,
                initial=initial,
            )
            history = json.loads(place.history.read_text(encoding="utf-8"))
            accuracy = max(float(entry["validation_accuracy"]) for entry in history)
            if best is None or accuracy > best[0]:
                best = accuracy, rate, dropout, tuned, place.classifier
    assert best is not None, "there is a rate and a dropout"
    _, rate, dropout, tuned, folder = best
    return TuningRow(
        count=count,
        before=expert_scores(student, expert, rows["test"], device=torch_device(plan.device)),
        after=expert_scores(tuned, expert, rows["test"], device=torch_device(plan.device)),
        learning_rate=rate,
        dropout=dropout,
        classifier=folder,
    )


def expert_scores(
    classifier: LoadedClassifier, expert: ExpertNuclei, rows: Rows | None = None, *, device: torch.device
) -> Scores:
    """Figures of a classifier on the rows of the expert's nuclei, or on all."""
    chosen = np.arange(len(expert.index)) if rows is None else rows
    called = predict(classifier.network, open_crops(expert.crops)[chosen], device=device).argmax(axis=1)
    return score(expert.index.classes[chosen], called.astype(np.int64))
