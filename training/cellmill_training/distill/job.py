"""`distill-student`: students of a teacher on Ray Train, one or a sweep, beside the same student without a teacher.

Settings -> recipe, teacher and data set, checked before any worker starts -> for each run `supervised.run.fit_network`
with the teacher's outputs in its batches -> `<out>/<run>/model` and an MLflow run each -> `<out>/comparison.md`.

A sweep is a plain loop of runs: the pinned Ray's Tuner takes no trainer, and each run resumes by itself this way.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellmill.arguments import parse_dataclass
from cellmill_training.ray_trainer import Device, WorkerPlan, rank_and_world

if TYPE_CHECKING:
    from cellmill.models.loading import LoadedModel
    from cellmill_training.distill.comparison import Outcome
    from cellmill_training.distill.recipe import DistillRecipe, DistillRun
    from cellmill_training.losses import Loss
    from cellmill_training.mixture import Batch
    from cellmill_training.supervised.data import TrainingSet

__all__ = ["DistillStudentSettings", "main", "recipe_of", "runs_of"]

logger = logging.getLogger(__name__)

UNUSABLE = 2


@dataclass(frozen=True)
class DistillStudentSettings:
    """Settings of one or more distillations.

    Args:
        data: folder or URL of a labelled data set.
        teacher: a trained model of the flows family: folder, packaged name or models:/ URI.
        out: folder; each run gets a folder in it and goes on from there when it was cut off.
        recipe: name of a recipe; each opens with its source, hours and figures to expect.
        encoder_weights: folder or file of the teacher's encoder. Default: CELLMILL_ENCODERS, then the hub.
        temperature: T; 0 for the recipe's.
        alpha: first balancing coefficient; negative for the recipe's.
        beta: second balancing coefficient; negative for the recipe's.
        reading: alpha_soft weighs the divergence from the teacher by alpha and the labels by beta, the order in which
            the paper names them; alpha_hard turns it round; recipe takes the recipe's.
        sweep: temperatures to try, such as 1 2 5 10 14 20; each is a run. Default: the one temperature.
        both_readings: try each temperature in both readings.
        compare: train the same student without a teacher too: same first weights, crops and steps.
        train_folds: the source's folds that train; the data set's splits unless given.
        validation_folds: the source's folds that validate; given together with --train-folds.
        cache_teacher: folder for what the teacher says of each crop, computed once for all runs; crops are then drawn
            in --fixed-variants ways. Default: no cache.
        fixed_variants: in how many ways each crop is drawn; 0 for a new one every epoch, which a cache cannot keep.
        epochs: times that every crop is shown; 0 for the recipe's.
        max_steps: steps in all, fewer than the epochs; 0 for no other end.
        batch_size: crops a step and worker; 0 for the recipe's.
        learning_rate: peak of the cosine; 0 for the recipe's.
        checkpoint_seconds: what a killed worker loses at most, in seconds of training.
        num_workers: Ray Train workers, each with its own share of CPUs or one GPU; 0 trains in this process.
        cpus_per_worker: CPU cores (and threads) a worker may use.
        device: where to train; auto takes CUDA where torch sees one.
        max_failures: how often a failed worker is replaced before a run gives up.
        seed: of first weights and crops.
        experiment: MLflow experiment that the runs are part of.
        tracking: folder of the MLflow store when MLFLOW_TRACKING_URI names none. Default: --out.
    """

    data: str = ""
    teacher: str = ""
    out: str = ""
    recipe: str = "student-distilled"
    encoder_weights: str = ""
    temperature: float = 0.0
    alpha: float = -1.0
    beta: float = -1.0
    reading: Literal["recipe", "alpha_soft", "alpha_hard"] = "recipe"
    sweep: tuple[str, ...] = ()
    both_readings: bool = False
    compare: bool = False
    train_folds: tuple[str, ...] = ()
    validation_folds: tuple[str, ...] = ()
    cache_teacher: str = ""
    fixed_variants: int = 0
    epochs: int = 0
    max_steps: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    checkpoint_seconds: float = 180.0
    num_workers: int = 1
    cpus_per_worker: int = 2
    device: Device = "auto"
    max_failures: int = 3
    seed: int = 0
    experiment: str = "student"
    tracking: str = ""

    def __post_init__(self) -> None:
        for name in ("data", "teacher", "out"):
            if not getattr(self, name):
                raise ValueError(f"--{name} must be given; see --help.")
        numbers = (
            self.epochs,
            self.max_steps,
            self.batch_size,
            self.learning_rate,
            self.fixed_variants,
            self.temperature,
        )
        if min(numbers) < 0:
            raise ValueError(
                "--epochs, --max-steps, --batch-size, --learning-rate, --fixed-variants, --temperature are 0 or more."
            )
        if self.checkpoint_seconds <= 0:
            raise ValueError(f"--checkpoint-seconds must be positive, got {self.checkpoint_seconds}.")
        if self.cache_teacher and not self.fixed_variants:
            raise ValueError(
                "--cache-teacher keeps what the teacher says of a crop, and crops drawn anew are never seen again: "
                "give --fixed-variants too, such as 8."
            )
        _ = runs_of(self), self.plan  # refuse what is no recipe, no temperature and no workers

    @property
    def plan(self) -> WorkerPlan:
        """The workers."""
        return WorkerPlan(self.num_workers, self.cpus_per_worker, self.device, self.max_failures)


def recipe_of(settings: DistillStudentSettings) -> "DistillRecipe":
    """The recipe with the command line's changes."""
    from cellmill_training.recipes import distill_recipe

    base = distill_recipe(settings.recipe)
    soft = base.distillation
    distillation = replace(
        soft,
        temperature=settings.temperature or soft.temperature,
        alpha=settings.alpha if settings.alpha >= 0 else soft.alpha,
        beta=settings.beta if settings.beta >= 0 else soft.beta,
        reading=soft.reading if settings.reading == "recipe" else settings.reading,
    )
    return replace(base, distillation=distillation).changed(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        fixed_variants=settings.fixed_variants,
        learning_rate=settings.learning_rate,
        checkpoint_seconds=settings.checkpoint_seconds,
        seed=settings.seed,
    )


def runs_of(settings: DistillStudentSettings) -> "tuple[DistillRun, ...]":
    """The students to train.

    Raises:
        ValueError: when a temperature is no number above 0.
    """
    from cellmill_training.distill.recipe import planned_runs

    try:
        temperatures = [float(text) for text in settings.sweep]
    except ValueError as error:
        raise ValueError(f"--sweep takes temperatures such as 1 2 5 10 14 20: {error}.") from error
    return planned_runs(
        recipe_of(settings).distillation,
        temperatures=temperatures,
        readings=("alpha_soft", "alpha_hard") if settings.both_readings else (),
        with_alone=settings.compare,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the students and say which is best; 0 when all went to their end, 2 when one could not."""
    settings = parse_dataclass(
        DistillStudentSettings,
        prog="distill-student",
        description="Teach a small network what a large one has learnt.",
        arguments=arguments,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from cellmill_training.distill.comparison import as_markdown, verdict
    from cellmill_training.loop import LossIsNotFiniteError

    try:
        _check(settings)
        outcomes = [_fit(settings, run) for run in runs_of(settings)]
    except (ValueError, LossIsNotFiniteError) as error:
        sys.stderr.write(f"distill-student: {error}\n")
        return UNUSABLE
    text = "\n\n".join(part for part in (as_markdown(outcomes), verdict(outcomes)) if part)
    (Path(settings.out) / "comparison.md").write_text(text + "\n", encoding="utf-8")
    logger.info("%s\n\nModels: %s", text, Path(settings.out) / "<student>" / "model")
    return 0


def _open(settings: DistillStudentSettings) -> "tuple[TrainingSet, LoadedModel]":
    """The data in the teacher's classes, and the teacher."""
    from cellmill.models.loading import load_model
    from cellmill_training.supervised.data import open_training_set

    teacher = load_model(settings.teacher, encoders=settings.encoder_weights or None)
    training_set = open_training_set(
        settings.data,
        ontology=teacher.config.ontology,
        train_folds=settings.train_folds,
        validation_folds=settings.validation_folds,
    )
    return training_set, teacher


def _check(settings: DistillStudentSettings) -> None:
    """Refuse, before a worker starts, what no student can be taught from."""
    from cellmill_training.distill.recipe import student_config
    from cellmill_training.losses import inverse_frequency_weights
    from cellmill_training.ray_trainer import uses_gpu

    training_set, teacher = _open(settings)
    config = student_config(recipe_of(settings), teacher.config)
    inverse_frequency_weights(training_set.class_counts(), config.ontology)
    uses_gpu(settings.device)


def _fit(settings: DistillStudentSettings, run: "DistillRun") -> "Outcome":
    from cellmill_training.distill.comparison import Outcome
    from cellmill_training.supervised.history import read_history
    from cellmill_training.supervised.on_ray import fit_tracked

    root = Path(settings.out).resolve()
    training_set, teacher = _open(settings)
    absolute = replace(
        settings,
        out=str(root / run.name),
        data=training_set.dataset.store.url,
        teacher=settings.teacher
        if "://" in settings.teacher or ":/" in settings.teacher
        else _absolute(settings.teacher),
        encoder_weights=_absolute(settings.encoder_weights),
        cache_teacher=_absolute(settings.cache_teacher),
    )
    place, _ = fit_tracked(
        _worker,
        {**asdict(absolute), "run": run.name},
        out=root / run.name,
        plan=settings.plan,
        experiment=settings.experiment,
        name=f"{root.name}-{run.name}",
        about={
            "settings": asdict(absolute),
            "recipe": asdict(recipe_of(settings)),
            "distillation": asdict(run.distillation) if run.distillation else {},
            "teacher_digest": teacher.digest,
        },
        data_digests={training_set.dataset.name: training_set.dataset.digest},
        tracking_folder=Path(settings.tracking) if settings.tracking else root,
    )
    return Outcome(run.name, read_history(place.history)[-1])


def _absolute(path: str) -> str:
    """Where it is on this machine; names of packaged models stay as they are."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import torch

    from cellmill.models.networks import build_model
    from cellmill_training.distill.recipe import student_config
    from cellmill_training.distill.teaching import Teacher, taught
    from cellmill_training.losses import DistillationLoss, TeacherLoss, inverse_frequency_weights
    from cellmill_training.supervised.crops import LabelledCrops
    from cellmill_training.supervised.on_ray import join_workers
    from cellmill_training.supervised.run import fit_network
    from cellmill_training.supervised.validation import Validation

    name = str(config.pop("run"))
    settings = DistillStudentSettings(**config)
    run = next(one for one in runs_of(settings) if one.name == name)
    recipe = recipe_of(settings)
    training_set, model = _open(settings)
    torch.manual_seed(settings.seed)
    student = build_model(student_config(recipe, model.config))
    rank, world = rank_and_world()
    crops = LabelledCrops(
        training_set.dataset,
        training_set.train_ids,
        recipe.crops_on_grid,
        mapping=training_set.mapping,
        rank=rank,
        world=world,
        threads=settings.cpus_per_worker,
    )
    weights = inverse_frequency_weights(training_set.class_counts(), student.config.ontology)
    hard: Loss = TeacherLoss(weights, recipe.hard_loss)
    with join_workers(settings.out, settings.device) as (place, worker):
        teacher = Teacher(
            model,
            student_mpp=recipe.target_mpp,
            device=worker.device,
            cache_folder=Path(settings.cache_teacher) if settings.cache_teacher else None,
        )

        def batches(first_step: int) -> "Iterator[Batch]":
            made = crops.batches(first_step)
            return taught(made, teacher) if run.distillation else made

        fit_network(
            student,
            loss=DistillationLoss(hard, run.distillation) if run.distillation else hard,
            batches=batches,
            loop=recipe.loop_of(crops.steps_per_epoch, max_steps=settings.max_steps),
            place=place,
            validation=Validation(
                training_set.dataset,
                training_set.validation_ids,
                mapping=training_set.mapping,
                most_images=recipe.most_validation_images,
            ),
            worker=worker,
        )
