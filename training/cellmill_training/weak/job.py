"""`train-weak-chain`: settings from the command line, one chain, its tables in the report and in MLflow."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cellmill.arguments import parse_dataclass
from cellmill_training.ray_trainer import Device, WorkerPlan

if TYPE_CHECKING:
    from cellmill_schemas.ontology import Ontology
    from cellmill_training.datasets.store import LabelledDataset
    from cellmill_training.relabel.learning import LearnConfig
    from cellmill_training.weak.chain import ChainData, ChainResult
    from cellmill_training.weak.recipe import WeakChainRecipe

__all__ = ["WeakChainSettings", "main", "recipe_of", "run_weak_chain"]

logger = logging.getLogger(__name__)

UNUSABLE = 2
"""Exit code: settings or data cannot be used."""

_EXPERT_FRACTIONS = (0.6, 0.0, 0.4)
"""Of the expert's slides: to draw fine-tuning nuclei from, none, and to test on."""

_DESCRIPTION = """Train nucleus classifiers from weak labels: a segmenter, a teacher of the weak labels, a small student
of the teacher, and the student fine-tuned on growing numbers of expert labels. The same command goes on where it was
cut off."""


@dataclass(frozen=True)
class WeakChainSettings:
    """Settings of one chain. Labels come from slides with QuPath's GeoJSON, or from data sets.

    Args:
        slides: files, globs, folders, URLs or one manifest; with --annotations.
        pseudonymize: file with a secret: slide ids are then pseudonyms, in data sets, tables and tracking, and the
            annotation files are named by them.
        annotations: folder with <slide_id>.geojson: every nucleus of the slide as the weak source sees it.
        expert_annotations: folder with <slide_id>.geojson: nuclei that an expert typed. These slides train nothing
            before fine-tuning.
        ontology: name or JSON file of the classes in these files.
        mpp: scale that slides are read at, um/px.
        weak_source: who made the weak annotations; the labels' lineage.
        annotator: who made the expert's; the labels' lineage.
        weak: data set of weak labels, in place of slides and annotations.
        expert: data set of expert labels, in place of expert annotations.
        outlined: more data sets with outlines, for the segmenter alone (Lizard and MoNuSeg in the paper).
        out: folder for data sets, networks and tables; a chain that was cut off goes on from here.
        recipe: weak-chain-ikem is the paper's; weak-chain-demo runs on two CPU cores.
        counts: expert nuclei of each class to fine-tune with, one run each. Default: the recipe's.
        normalise: normalise stains (Macenko) in all phases.
        seed: of splits, weights, order and draws.
        num_workers: Ray Train workers; 0 trains in this process, which starts at once.
        cpus_per_worker: CPU cores (and threads) a worker may use.
        device: where to train and predict; auto takes CUDA where torch sees one.
        max_failures: how often a dead worker is replaced before the run gives up.
        experiment: MLflow experiment that the run is part of.
        tracking: folder of the MLflow store when MLFLOW_TRACKING_URI names none. Default: --out.
    """

    slides: tuple[str, ...] = ()
    pseudonymize: str | None = None
    annotations: str = ""
    expert_annotations: str = ""
    ontology: str = "ikem3"
    mpp: float = 0.25
    weak_source: str = "qupath"
    annotator: str = ""
    weak: str = ""
    expert: str = ""
    outlined: tuple[str, ...] = ()
    out: str = ""
    recipe: str = "weak-chain-ikem"
    counts: tuple[str, ...] = ()
    normalise: bool = False
    seed: int = 0
    num_workers: int = 1
    cpus_per_worker: int = 2
    device: Device = "auto"
    max_failures: int = 3
    experiment: str = "weak-chain"
    tracking: str = ""

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("--out must be a folder for data sets, networks and tables, got nothing.")
        if bool(self.weak) == bool(self.slides):
            raise ValueError("Give either --weak DATASET, or --slides with --annotations FOLDER.")
        if bool(self.slides) != bool(self.annotations):
            raise ValueError("--slides and --annotations go together: slides, and the weak source's GeoJSON for them.")
        if self.pseudonymize and not self.slides:
            raise ValueError("--pseudonymize is for --slides; a data set's slides are named as it names them.")
        if self.expert and self.expert_annotations:
            raise ValueError("Give --expert DATASET or --expert-annotations FOLDER, not both.")
        if self.expert_annotations and not self.slides:
            raise ValueError("--expert-annotations needs --slides; with --weak give the expert's labels as --expert.")
        if self.expert_annotations and not self.annotator:
            raise ValueError("--annotator must say who made --expert-annotations: it is the labels' lineage.")
        if not 0.05 <= self.mpp <= 5:
            raise ValueError(f"--mpp must be 0.05 to 5 um/px, got {self.mpp}.")
        if not all(count.isdecimal() for count in self.counts):
            raise ValueError(f"--counts must be whole numbers of nuclei, got {' '.join(self.counts)}.")
        _ = self.plan, recipe_of(self)

    @property
    def plan(self) -> WorkerPlan:
        """Workers and what each gets."""
        return WorkerPlan(self.num_workers, self.cpus_per_worker, self.device, self.max_failures)


def recipe_of(settings: WeakChainSettings) -> "WeakChainRecipe":
    """The recipe with the command line's changes.

    Raises:
        ValueError: when there is none of that name.
    """
    from cellmill_training.recipes import weak_chain_recipe

    base = weak_chain_recipe(settings.recipe)

    def seeded(learn: "LearnConfig") -> "LearnConfig":
        return replace(learn, fit=replace(learn.fit, seed=settings.seed))

    tuning = replace(base.tuning, learn=seeded(base.tuning.learn))
    if settings.counts:
        tuning = replace(tuning, counts=tuple(int(count) for count in settings.counts))
    return replace(
        base,
        nuclei=replace(base.nuclei, seed=settings.seed),
        teacher=seeded(base.teacher),
        student=seeded(base.student),
        tuning=tuning,
        normalise=settings.normalise or base.normalise,
        seed=settings.seed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    settings = parse_dataclass(
        WeakChainSettings, prog="train-weak-chain", description=_DESCRIPTION, arguments=arguments
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from cellmill.slides.errors import SlideError
    from cellmill_training.loop import LossIsNotFiniteError
    from cellmill_training.weak.report import chain_tables

    try:
        result = run_weak_chain(settings)
    except (ValueError, SlideError, LossIsNotFiniteError) as error:
        sys.stderr.write(f"train-weak-chain: {error}\n")
        return UNUSABLE
    sys.stdout.write(f"{chain_tables(result)}\nIn {settings.out}: report.md, report.json\n")
    return 0


def run_weak_chain(settings: WeakChainSettings) -> "ChainResult":
    """Read, train, measure, report.

    Raises:
        ValueError: when data or settings cannot be used.
        SlideError: when a slide cannot be read.
    """
    from cellmill_training.tracking.runs import tracked_run
    from cellmill_training.weak.chain import run_chain
    from cellmill_training.weak.report import chain_figures, write_report

    out, recipe = Path(settings.out).resolve(), recipe_of(settings)
    data = _data(settings, recipe, out)
    sets = [data.weak, *data.outlined, *([data.expert] if data.expert else [])]
    with tracked_run(
        experiment=settings.experiment,
        name=f"{settings.recipe}-{out.name}",
        config=recipe,
        data_digests={one.name: one.digest for one in sets},
        folder=Path(settings.tracking) if settings.tracking else out,
    ) as run:

        def on_stage(name: str) -> None:
            logger.info("Stage: %s", name)
            run.set_tag("stage", name)

        result = run_chain(data, recipe, plan=settings.plan, out=out, on_stage=on_stage)
        run.log_metrics(chain_figures(result))
        for curve in sorted(out.glob("**/history.json*")):
            run.log_file(curve, curve.parent.relative_to(out).as_posix())
        for page in write_report(result, out):
            run.log_file(page)
    return result


def _data(settings: WeakChainSettings, recipe: "WeakChainRecipe", out: Path) -> "ChainData":
    from cellmill_training.datasets.store import open_dataset
    from cellmill_training.weak.chain import ChainData

    outlined = tuple(open_dataset(url) for url in settings.outlined)
    if settings.weak:
        expert = open_dataset(settings.expert) if settings.expert else None
        return ChainData(open_dataset(settings.weak), expert, outlined)
    weak, expert = _from_slides(settings, recipe, out)
    return ChainData(weak, open_dataset(settings.expert) if settings.expert else expert, outlined)


def _from_slides(
    settings: WeakChainSettings, recipe: "WeakChainRecipe", out: Path
) -> "tuple[LabelledDataset, LabelledDataset | None]":
    """Data sets of the slides' fragments, made once; the expert's slides are all in the weak set's test split."""
    from cellmill.privacy import read_secret
    from cellmill_training.datasets.labelled_image import LabelOrigin
    from cellmill_training.datasets.splitting import split_by_group
    from cellmill_training.weak.annotated_slides import AnnotatedSlides, annotated_windows, annotation_files
    from cellmill_training.weak.chain import written_once

    ontology, secret = _ontology(settings.ontology), read_secret(settings.pseudonymize)
    weak_folder, expert_folder = Path(settings.annotations), Path(settings.expert_annotations or "/nowhere")
    experts = list(annotation_files(expert_folder)) if settings.expert_annotations else []
    others = [slide_id for slide_id in annotation_files(weak_folder) if slide_id not in experts]
    splits = split_by_group(others, fractions=recipe.fractions, seed=settings.seed)
    weak_how = AnnotatedSlides(ontology, LabelOrigin("weak", settings.weak_source), complete=True, mpp=settings.mpp)
    weak = written_once(
        out / "weak",
        lambda: annotated_windows(settings.slides, weak_folder, weak_how, secret=secret),
        ontology=ontology,
        splits={**splits, **dict.fromkeys(experts, "test")},
    )
    if not experts:
        return weak, None
    expert_how = AnnotatedSlides(
        ontology, LabelOrigin("annotator", settings.annotator), complete=False, mpp=settings.mpp
    )
    expert = written_once(
        out / "expert",
        lambda: annotated_windows(settings.slides, expert_folder, expert_how, secret=secret),
        ontology=ontology,
        splits=split_by_group(experts, fractions=_EXPERT_FRACTIONS, seed=settings.seed),
    )
    return weak, expert


def _ontology(name: str) -> "Ontology":
    from cellmill_schemas.ontology import get_ontology, load_ontology

    if name.endswith(".json"):
        return load_ontology(Path(name))
    try:
        return get_ontology(name)
    except KeyError as error:
        raise ValueError(f"--ontology: {error.args[0]} A file of your own must end in .json.") from error
