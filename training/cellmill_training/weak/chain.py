"""The weak-label chain, stage by stage: data sets in, a segmenter, a teacher, students and their tables out.

    OUT/chain.json                  recipe and digests of the data: another recipe or data needs another folder
    OUT/segmenters/<name>/          phase I, see `nucleus_training`
    OUT/nuclei/weak, .../expert     data sets: nuclei found by the best segmenter, typed by who annotated them
    OUT/teacher/                    phase II, a classifier as `relabel.learning` keeps it
    OUT/taught/                     data set: the same nuclei in the teacher's classes, with its probability
    OUT/student/                    phase III
    OUT/tuning/<settings>/          phase IV, one a count, rate and dropout

A stage that is done is not done again, and one that was cut off goes on from its last checkpoint: the same command
resumes the chain. The slides that an expert annotated train nothing before phase IV, so that what is measured on them
says what a slide nobody learned from gets (the paper leaves them among the others).
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin
from cellmill_training.datasets.splitting import Split
from cellmill_training.datasets.store import LabelledDataset, open_dataset, write_dataset
from cellmill_training.ray_trainer import WorkerPlan, torch_device
from cellmill_training.relabel.cells import CellIndex, Rows, index_cells, split_rows
from cellmill_training.relabel.classifier import ClassifierConfig, LoadedClassifier, predict
from cellmill_training.relabel.crops import cell_boxes, cell_crops
from cellmill_training.relabel.cutting import open_crops, write_crops
from cellmill_training.relabel.learning import LearnConfig, learn_classifier
from cellmill_training.weak.finding import find_nuclei
from cellmill_training.weak.nucleus_networks import load_nucleus_network
from cellmill_training.weak.nucleus_training import NucleusFolder, PixelScores, learn_nuclei
from cellmill_training.weak.recipe import WeakChainRecipe
from cellmill_training.weak.scoring import Scores, score
from cellmill_training.weak.stain_normalising import normalised_image
from cellmill_training.weak.tuning import ExpertNuclei, TuningRow, expert_scores, tune
from cellmill_training.weak.typing_nuclei import BACKGROUND, expert_nuclei, matches, weak_nuclei, with_background

__all__ = ["ChainData", "ChainResult", "ClassifierScores", "run_chain", "taught_image", "written_once"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChainData:
    """What the chain learns from."""

    weak: LabelledDataset
    """Every nucleus outlined and typed by the weak source."""
    expert: LabelledDataset | None
    """Some nuclei typed by an expert, in the same classes; None ends the chain with the student."""
    outlined: tuple[LabelledDataset, ...] = ()
    """More data sets of outlines for phase I, whatever their classes."""

    def __post_init__(self) -> None:
        if self.expert is None:
            return
        if self.expert.ontology.names != self.weak.ontology.names:
            raise ValueError(
                f"The expert's classes must be the weak source's ({', '.join(self.weak.ontology.names)}), got "
                f"{', '.join(self.expert.ontology.names)}."
            )
        learnt = {group for group, split in self.weak.splits().items() if split != "test"}
        both = sorted(learnt & set(self.expert.splits()))
        if both:
            raise ValueError(
                f"Slide {both[0]!r} is annotated by the expert and trains in the weak data set ({len(both)} such "
                "slide(s)): what is measured on it would be flattered. Put the expert's slides into the weak data "
                "set's test split, or leave them out of it."
            )


@dataclass(frozen=True)
class ClassifierScores:
    """One line of table 4 or 5."""

    test: Scores
    """Against the weak labels of the test split."""
    expert: Scores | None
    """Against the expert, on slides that taught nothing."""


@dataclass(frozen=True)
class ChainResult:
    """What the tables of the paper hold."""

    segmenters: dict[str, PixelScores]
    """Table 2, on the test split."""
    segmenter: str
    """The one that went on."""
    weak_labels: Scores | None
    """Table 3: the weak labels themselves against the expert."""
    teacher: ClassifierScores
    student: ClassifierScores
    tuning: tuple[TuningRow, ...]
    """Table 6."""


def run_chain(
    data: ChainData,
    recipe: WeakChainRecipe,
    *,
    plan: WorkerPlan,
    out: Path,
    on_stage: Callable[[str], None] | None = None,
) -> ChainResult:
    """Run all stages that are not done yet.

    Args:
        data: data sets.
        recipe: what to do.
        plan: workers.
        out: folder of this chain.
        on_stage: told of each stage before it starts.

    Raises:
        ValueError: when the folder is another chain's, or data cannot teach the classes.
        LossIsNotFiniteError: when a loss is NaN or infinite.
    """
    tell, device = on_stage or logger.info, torch_device(plan.device)
    _require_two_sides(data, recipe)
    _require_same(data, recipe, out)
    tell("segmenters")
    segmenters = {
        config.name: learn_nuclei(
            (data.weak, *data.outlined),
            config,
            replace(recipe.nuclei, patches=replace(recipe.nuclei.patches, normalise=recipe.normalise)),
            plan=plan,
            folder=out / "segmenters" / config.name,
        )
        for config in recipe.networks
    }
    chosen = max(segmenters, key=lambda name: segmenters[name].dice)
    tell("nuclei")
    nuclei, expert = _found(data, recipe, out, segmenter=out / "segmenters" / chosen, device=device)
    index = _index(nuclei)
    rows = _rows(index, nuclei)
    tell("teacher")
    teacher = _learn(nuclei, index, rows, recipe.teacher, recipe, plan=plan, folder=out / "teacher")
    tell("taught")
    taught = _taught(nuclei, teacher, out / "taught", device=device)
    tell("student")
    student_index, student_rows = _student_cells(_index(taught), index, nuclei.splits())
    student = _learn(taught, student_index, student_rows, recipe.student, recipe, plan=plan, folder=out / "student")
    tell("tuning")
    typed = _expert_nuclei(expert, recipe, out) if expert else None
    crops = out / "nuclei" / "test_crops.npy"
    if not crops.is_file():
        write_crops(nuclei, index, rows["test"], crops, config=recipe.crop)

    def scored(one: LoadedClassifier) -> ClassifierScores:
        called = predict(one.network, open_crops(crops), device=device).argmax(axis=1).astype(np.int64)
        against_expert = expert_scores(one, typed, device=device) if typed else None
        return ClassifierScores(score(index.classes[rows["test"]], called), against_expert)

    return ChainResult(
        segmenters=segmenters,
        segmenter=chosen,
        weak_labels=_weak_against_expert(nuclei, expert) if expert else None,
        teacher=scored(teacher),
        student=scored(student),
        tuning=tune(student, typed, recipe.tuning, plan=plan, out=out / "tuning", seed=recipe.seed) if typed else (),
    )


def taught_image(
    image: LabelledImage, teacher: LoadedClassifier, *, device: torch.device | None = None
) -> LabelledImage:
    """The image with every nucleus in the teacher's class, which may be `background`."""
    crops = cell_crops(image.image, cell_boxes(image.instances), mpp=image.mpp, config=teacher.config.crop)
    labels = [
        CellLabel(
            (teacher.config.class_names[int(row.argmax())],),
            LabelOrigin("model", teacher.name, min(1.0, float(row.max()))),
        )
        for row in predict(teacher.network, crops, device=device)
    ]
    return replace(image, labels=tuple(labels))


def _require_two_sides(data: ChainData, recipe: WeakChainRecipe) -> None:
    """Fine-tuning that is tested on other slides needs some to draw from and some to test on, said before all else."""
    if data.expert is None or recipe.tuning.test_on == "other_nuclei":
        return
    splits = list(data.expert.splits().values())
    if "test" not in splits or set(splits) == {"test"}:
        raise ValueError(
            f"The {len(splits)} slide(s) of the expert are all on one side: fine-tuning draws nuclei from some and is "
            "tested on others. Annotate another slide, or give the expert data set's slides a test split and another."
        )


def _require_same(data: ChainData, recipe: WeakChainRecipe, out: Path) -> None:
    """Note what this folder is of, or refuse when it is of something else."""
    sets = [data.weak, *data.outlined, *([data.expert] if data.expert else [])]
    identity = {"recipe": asdict(recipe), "data": {one.name: one.digest for one in sets}}
    text = json.dumps(identity, indent=1) + "\n"
    path = out / "chain.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in identity if there.get(key) != json.loads(text)[key]]
        if differing:
            raise ValueError(
                f"{out} holds a chain of another {' and '.join(differing)} ({path.name} says which): choose another "
                "--out, or give the settings it was started with."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _found(
    data: ChainData, recipe: WeakChainRecipe, out: Path, *, segmenter: Path, device: torch.device
) -> tuple[LabelledDataset, LabelledDataset | None]:
    """The data sets of found nuclei."""
    network = load_nucleus_network(NucleusFolder(segmenter).best)
    ontology = with_background(data.weak.ontology)

    def pairs(dataset: LabelledDataset) -> Iterator[tuple[LabelledImage, np.ndarray]]:
        for image in dataset.images():
            shown = normalised_image(image) if recipe.normalise else image
            yield shown, find_nuclei(network, shown.image, mpp=image.mpp, config=recipe.finding, device=device)

    origin = _weak_origin(data.weak)
    weak = written_once(
        out / "nuclei" / "weak",
        lambda: (weak_nuclei(image, found, origin) for image, found in pairs(data.weak)),
        ontology=ontology,
        splits=data.weak.splits(),
    )
    if data.expert is None:
        return weak, None
    source = data.expert
    expert = written_once(
        out / "nuclei" / "expert",
        lambda: (expert_nuclei(image, found) for image, found in pairs(source)),
        ontology=ontology,
        splits=source.splits(),
    )
    return weak, expert


def _weak_origin(weak: LabelledDataset) -> LabelOrigin:
    """Who says that a nucleus is background: whoever labelled the first nucleus."""
    for image in weak.images():
        if image.labels:
            return LabelOrigin("weak", image.labels[0].origin.by)
    raise ValueError(f"The weak data set {weak.store.url} has no nucleus.")


def written_once(
    folder: Path,
    images: Callable[[], Iterator[LabelledImage]],
    *,
    ontology: Ontology,
    splits: dict[str, Split],
) -> LabelledDataset:
    """A data set whose index is there is whole; one that was cut off is written again."""
    if any((folder / "index").glob("*")):
        return open_dataset(folder)
    return write_dataset(folder, images(), ontology=ontology, splits=splits)


def _index(nuclei: LabelledDataset) -> CellIndex:
    return index_cells(nuclei, nuclei.ontology.names, ontology=nuclei.ontology)


def _rows(index: CellIndex, nuclei: LabelledDataset) -> dict[Split, Rows]:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    return {split: split_rows(index, nuclei.splits(), split) for split in splits}


def _learn(
    dataset: LabelledDataset,
    index: CellIndex,
    rows: dict[Split, Rows],
    learn: LearnConfig,
    recipe: WeakChainRecipe,
    *,
    plan: WorkerPlan,
    folder: Path,
) -> LoadedClassifier:
    _require_classes(dataset, index, rows["train"])
    logger.info("%s: %s", folder.name, {split: index.counts(own) for split, own in rows.items()})
    classifier = ClassifierConfig(
        class_names=index.class_names,
        encoder=learn.encoder,
        dropout=learn.dropout,
        crop=recipe.crop,
        trained_on=((dataset.name, dataset.digest),),
    )
    return learn_classifier(dataset, index, rows, classifier=classifier, learn=learn, plan=plan, folder=folder)


def _require_classes(dataset: LabelledDataset, index: CellIndex, rows: Rows) -> None:
    """Every class but the background must have a nucleus to learn from."""
    missing = [name for name, count in index.counts(rows).items() if count == 0 and name != BACKGROUND]
    if missing:
        raise ValueError(
            f"No nucleus of {', '.join(missing)} is in the training split of {dataset.store.url}: add slides that show "
            "it, take an ontology without it, or train the segmenter longer if it finds too few nuclei "
            "(segmenters/*/done.json)."
        )


def _taught(
    nuclei: LabelledDataset, teacher: LoadedClassifier, folder: Path, *, device: torch.device
) -> LabelledDataset:
    return written_once(
        folder,
        lambda: (taught_image(image, teacher, device=device) for image in nuclei.images()),
        ontology=nuclei.ontology,
        splits=nuclei.splits(),
    )


def _student_cells(taught: CellIndex, weak: CellIndex, splits: dict[str, Split]) -> tuple[CellIndex, dict[Split, Rows]]:
    """The teacher's labels to train on, the weak source's to choose the epoch by (section 4.3.2)."""
    train, validation = split_rows(taught, splits, "train"), split_rows(weak, splits, "validation")
    joined = CellIndex(
        dataset=taught.dataset,
        class_names=taught.class_names,
        image_ids=np.concatenate([taught.image_ids[train], weak.image_ids[validation]]),
        numbers=np.concatenate([taught.numbers[train], weak.numbers[validation]]),
        classes=np.concatenate([taught.classes[train], weak.classes[validation]]),
        groups=np.concatenate([taught.groups[train], weak.groups[validation]]),
    )
    first = len(train)
    return joined, {
        "train": np.arange(first, dtype=np.int64),
        "validation": np.arange(first, len(joined), dtype=np.int64),
    }


def _expert_nuclei(expert: LabelledDataset, recipe: WeakChainRecipe, out: Path) -> ExpertNuclei:
    index = _index(expert)
    crops = out / "nuclei" / "expert_crops.npy"
    if not crops.is_file():
        write_crops(expert, index, np.arange(len(index), dtype=np.int64), crops, config=recipe.crop)
    classes = tuple(place for place, name in enumerate(index.class_names) if name != BACKGROUND)
    return ExpertNuclei(expert, index, expert.splits(), crops, classes)


def _weak_against_expert(nuclei: LabelledDataset, expert: LabelledDataset) -> Scores | None:
    """The weak labels of the nuclei that the expert typed; None where no image has both.

    What the weak source missed is `background`, which an expert never says: an error.
    """
    shared = sorted(set(nuclei.image_ids()) & set(expert.image_ids()))
    ontology = nuclei.ontology
    true: list[int] = []
    called: list[int] = []
    for image_id in shared:
        weak, typed = nuclei.read(image_id), expert.read(image_id)
        for number, partner in matches(typed.instances, weak.instances).items():
            ours, theirs = typed.labels[number - 1].cell_types, weak.labels[partner - 1].cell_types
            if len(ours) == 1 and len(theirs) == 1:
                true.append(ontology.index(ours[0]))
                called.append(ontology.index(theirs[0]))
    return score(np.array(true, np.int64), np.array(called, np.int64)) if true else None
