"""`train-student`: the training loop on Ray Train, from one worker on a laptop to many on a cluster.

Settings -> Ray Train's TorchTrainer -> `run.run_training` in each worker -> a model folder and checkpoints. A worker
that dies is replaced and the run goes on from the last checkpoint; so does a run that is started again on the same
`--out`.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cellmill.arguments import parse_dataclass
from cellmill_training.run import CHECKPOINT_NAME, RunPlace, run_training
from cellmill_training.student_recipe import StudentRecipe

if TYPE_CHECKING:
    import torch

    from cellmill_training.datasets import TrainingData

__all__ = ["TrainStudentSettings", "main", "recipe_of"]

logger = logging.getLogger(__name__)


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
        num_workers: Ray Train workers, each with its own share of CPUs or one GPU.
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
    device: Literal["auto", "cpu", "cuda"] = "auto"
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
        if self.time_budget <= 0 or self.batch_size < 1 or self.num_workers < 1 or self.cpus_per_worker < 1:
            raise ValueError(
                "--time-budget, --batch-size, --num-workers and --cpus-per-worker must be positive, got "
                f"{self.time_budget}, {self.batch_size}, {self.num_workers}, {self.cpus_per_worker}."
            )


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
    """Train and report where the model is; 0 when the budget was used to its end."""
    settings = parse_dataclass(
        TrainStudentSettings,
        prog="train-student",
        description="Train a network on the small open sets.",
        arguments=arguments,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = _fit(settings)
    logger.info("Model: %s", model)
    return 0


def _fit(settings: TrainStudentSettings) -> Path:
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    use_gpu = _use_gpu(settings.device)
    out = Path(settings.out).resolve()
    needed = settings.num_workers * settings.cpus_per_worker
    if not ray.is_initialized():
        ray.init(num_cpus=needed, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=True)
    resources = {"CPU": float(settings.cpus_per_worker), **({"GPU": 1.0} if use_gpu else {})}
    absolute = replace(settings, data=str(Path(settings.data).resolve()), out=str(out))
    trainer = TorchTrainer(
        _worker,
        train_loop_config=asdict(absolute),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(out),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    trainer.fit()
    return RunPlace(out).model


def _use_gpu(device: str) -> bool:
    if device == "cpu":
        return False
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but torch sees no CUDA device here; use --device cpu or auto.")
    return torch.cuda.is_available()


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: plain training, with its checkpoints reported to Ray."""
    import ray.train
    import torch

    from cellmill_training.datasets import read_training_data
    from cellmill_training.loop import TrainingState

    settings = TrainStudentSettings(**config)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings.cpus_per_worker)
    device = torch.device("cuda" if _use_gpu(settings.device) else "cpu")
    # Workers may be on other machines: the checkpoint travels through Ray, the model folder is written by rank 0.
    place = RunPlace(Path(settings.out) if rank == 0 else Path(tempfile.mkdtemp(prefix="cellmill-train-")))
    _take_last_checkpoint(place)

    def report(state: TrainingState, means: dict[str, float]) -> None:
        metrics = {**means, "step": state.step, "seconds": state.seconds}
        if rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="cellmill-checkpoint-") as folder:
            (Path(folder) / CHECKPOINT_NAME).write_bytes(place.checkpoint.read_bytes())
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def data_parallel(network: torch.nn.Module) -> torch.nn.Module:
        wrapped = torch.nn.parallel.DistributedDataParallel(network, forward_sync_buffers=False)
        return cast(torch.nn.Module, wrapped)

    def clock_of_first(seconds: float) -> float:
        shared = torch.tensor([seconds], dtype=torch.float64, device=device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared)

    recipe = recipe_of(settings)
    data = read_training_data(
        Path(settings.data),
        permissive_only=settings.permissive_data_only,
        num_synthetic_regions=recipe.num_synthetic_regions,
    )
    data, initial_weights = _taught(data, settings)
    run_training(
        recipe,
        data,
        place=place,
        initial_weights=initial_weights,
        on_checkpoint=report,
        wrap=data_parallel if workers > 1 else None,
        agree=clock_of_first if workers > 1 else None,
        rank=rank,
        device=device,
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


def _take_last_checkpoint(place: RunPlace) -> None:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    place.folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.as_directory() as folder:
        place.checkpoint.write_bytes((Path(folder) / CHECKPOINT_NAME).read_bytes())
