"""`train-student`: the training loop on Ray Train, from one worker on a laptop to many on a cluster.

Settings -> `ray_trainer.fit` -> `run.run_training` in each worker -> a model folder and checkpoints. A worker
that dies is replaced and the run goes on from the last checkpoint; so does a run that is started again on the same
`--out`.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellmill.arguments import parse_dataclass
from cellmill_training.ray_trainer import Device, WorkerPlan, fit
from cellmill_training.run import RunPlace, run_training
from cellmill_training.student_recipe import StudentRecipe

if TYPE_CHECKING:
    import torch

    from cellmill_training.local_sets import TrainingData

__all__ = ["TrainStudentSettings", "main", "recipe_of"]

logger = logging.getLogger(__name__)

DIVERGED = 2


@dataclass(frozen=True)
class TrainStudentSettings:
    """Settings of one training run.

    Args:
        data: folder with the training sets (`nuclei/<set>`), as described in docs/models/training.md.
        out: folder for checkpoints and the model; a run that was cut off is continued from here.
        architecture: which network to train.
        time_budget: seconds of training in all, over all resumes.
        max_steps: steps in all; 0 for no limit but the time.
        batch_size: crops a step and worker.
        num_workers: Ray Train workers, each with its own share of CPUs or one GPU; 0 trains in this process.
        cpus_per_worker: CPU cores (and threads) a worker may use.
        device: where to train; auto takes CUDA where torch sees one.
        permissive_data_only: leave out sets whose licence binds the weights (MoNuSAC).
        max_failures: how often a failed worker is replaced before the run gives up.
        seed: of initial weights and crops.
        synthetic_regions: regions of synthetic tissue to add, each 448 px wide at 0.5 um/px.
        teacher: a trained model (folder, packaged name or models:/ URI) that labels the unlabelled images first
            (self-training), and whose weights the run starts from where they fit. Default: none.
    """

    data: str = ""
    out: str = ""
    architecture: Literal["student", "lite"] = "lite"
    time_budget: float = 5400.0
    max_steps: int = 0
    batch_size: int = 12
    num_workers: int = 1
    cpus_per_worker: int = 2
    device: Device = "auto"
    permissive_data_only: bool = False
    max_failures: int = 3
    seed: int = 20
    synthetic_regions: int = 72
    teacher: str = ""

    def __post_init__(self) -> None:
        if not self.data or not Path(self.data).is_dir():
            raise ValueError(f"--data must be the folder with the training sets, got {self.data!r}.")
        if not self.out:
            raise ValueError("--out must be a folder for checkpoints and the model, got nothing.")
        if self.time_budget <= 0 or self.batch_size < 1:
            raise ValueError(
                f"--time-budget and --batch-size must be positive, got {self.time_budget} and {self.batch_size}."
            )
        _ = self.plan  # refuses what no workers can be

    @property
    def plan(self) -> WorkerPlan:
        """The workers."""
        return WorkerPlan(self.num_workers, self.cpus_per_worker, self.device, self.max_failures)


def recipe_of(settings: TrainStudentSettings) -> StudentRecipe:
    """The recipe with the command line's changes."""
    base = StudentRecipe()
    loop = replace(base.loop, time_budget_seconds=settings.time_budget, max_steps=settings.max_steps or None)
    return replace(
        base,
        architecture=settings.architecture,
        batch_size=settings.batch_size,
        seed=settings.seed,
        num_synthetic_regions=settings.synthetic_regions,
        loop=loop,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and report where the model is; 0 when the budget was used to its end, 2 when training diverged."""
    settings = parse_dataclass(
        TrainStudentSettings,
        prog="train-student",
        description="Train a network on the small open sets.",
        arguments=arguments,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from cellmill_training.loop import LossIsNotFiniteError

    try:
        model = _fit(settings)
    except LossIsNotFiniteError as error:
        sys.stderr.write(f"train-student: {error}\n")
        return DIVERGED
    logger.info("Model: %s", model)
    return 0


def _fit(settings: TrainStudentSettings) -> Path:
    out = Path(settings.out).resolve()
    absolute = replace(settings, data=str(Path(settings.data).resolve()), out=str(out))
    fit(_worker, asdict(absolute), out=out, plan=settings.plan)
    return RunPlace(out).model


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: plain training, with its checkpoints reported to Ray."""
    from cellmill_training.local_sets import read_training_data
    from cellmill_training.loop import TrainingState
    from cellmill_training.supervised.on_ray import join_workers

    settings = TrainStudentSettings(**config)
    recipe = recipe_of(settings)
    data = read_training_data(
        Path(settings.data),
        permissive_only=settings.permissive_data_only,
        num_synthetic_regions=recipe.num_synthetic_regions,
    )
    data, initial_weights = _taught(data, settings)
    with join_workers(settings.out, settings.device) as (place, worker):

        def report_state(state: TrainingState, means: dict[str, float]) -> None:
            worker.report({**means, "step": state.step, "seconds": state.seconds}, place.checkpoint)

        run_training(
            recipe,
            data,
            place=place,
            initial_weights=initial_weights,
            on_checkpoint=report_state,
            wrap=worker.wrap,
            agree=worker.agree,
            rank=worker.rank,
            device=worker.device,
        )


def _taught(
    data: "TrainingData", settings: TrainStudentSettings
) -> "tuple[TrainingData, dict[str, torch.Tensor] | None]":
    """The data with the teacher's labels on unlabelled images, and its weights if they are of this architecture."""
    if not settings.teacher:
        return data, None
    from cellmill.models.loading import load_model
    from cellmill_training.self_training import PseudoLabelConfig, pseudo_labelled_samples

    teacher = load_model(settings.teacher)
    labelled = pseudo_labelled_samples(teacher.build(), data.unlabelled, config=PseudoLabelConfig())
    same = teacher.config.architecture == settings.architecture
    return replace(data, samples=(*data.samples, *labelled)), teacher.state_dict() if same else None
