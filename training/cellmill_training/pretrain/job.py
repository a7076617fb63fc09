"""`pretrain-encoder`: the encoder of a small teacher from unlabelled tissue, on Ray Train, tracked in MLflow.

Settings -> images -> views (`views.py`) -> masked autoencoder (`autoencoder.py`) -> `<out>/<encoder>.safetensors`,
which `train-teacher --encoder-weights <out>` takes. It stands in for a foundation model where there is none: a frozen
encoder of random weights would prove nothing.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmill.arguments import parse_dataclass
from cellmill_training.ray_trainer import Device, WorkerPlan, fit, rank_and_world

if TYPE_CHECKING:
    from cellmill.models.config import ModelConfig
    from cellmill_training.loop import LoopConfig
    from cellmill_training.pretrain.views import UnlabelledImage
    from cellmill_training.teacher.recipe import TeacherRecipe

__all__ = ["PretrainEncoderSettings", "main"]

logger = logging.getLogger(__name__)

UNUSABLE = 2


@dataclass(frozen=True)
class PretrainEncoderSettings:
    """Settings of one pretraining run.

    Args:
        out: folder for the encoder's weights, checkpoints and history; a run that was cut off goes on from here.
        recipe: the teacher recipe whose encoder is pretrained; its scale and crop size are taken too.
        data: folder with local sets (`nuclei/<set>`, `slides/`), as in docs/models/training.md. Default: none.
        datasets: labelled data sets whose training images are used without their labels.
        synthetic_regions: regions of synthetic tissue to add, each 448 px wide at 0.5 um/px.
        max_steps: steps in all; 0 for no limit but the time.
        time_budget: seconds of training in all, over all resumes; 0 for no limit but the steps.
        batch_size: views a step and worker.
        learning_rate: peak of the cosine.
        num_workers: Ray Train workers, each with its own share of CPUs or one GPU; 0 trains in this process.
        cpus_per_worker: CPU cores (and threads) a worker may use.
        device: where to train; auto takes CUDA where torch sees one.
        max_failures: how often a failed worker is replaced before the run gives up.
        seed: of first weights and views.
        tracking: folder of the MLflow store when MLFLOW_TRACKING_URI names none. Default: --out.
    """

    out: str = ""
    recipe: str = "teacher-demo"
    data: str = ""
    datasets: tuple[str, ...] = ()
    synthetic_regions: int = 0
    max_steps: int = 2000
    time_budget: float = 0.0
    batch_size: int = 32
    learning_rate: float = 1e-3
    num_workers: int = 1
    cpus_per_worker: int = 2
    device: Device = "auto"
    max_failures: int = 3
    seed: int = 0
    tracking: str = ""

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("--out must be a folder for the encoder's weights, got nothing.")
        if not self.data and not self.datasets and not self.synthetic_regions:
            raise ValueError("There is nothing to learn from: give --data, --datasets or --synthetic-regions.")
        if self.max_steps <= 0 and self.time_budget <= 0:
            raise ValueError("--max-steps, --time-budget or both must be positive.")
        if self.batch_size < 1 or self.learning_rate <= 0 or self.synthetic_regions < 0:
            raise ValueError("--batch-size and --learning-rate must be positive, --synthetic-regions not negative.")
        _ = self.plan  # refuses what no workers can be

    @property
    def plan(self) -> WorkerPlan:
        """The workers."""
        return WorkerPlan(self.num_workers, self.cpus_per_worker, self.device, self.max_failures)

    @property
    def loop(self) -> "LoopConfig":
        """Budget and rates."""
        from cellmill_training.loop import LoopConfig

        return LoopConfig(
            learning_rate=self.learning_rate,
            weight_decay=0.05,
            warmup_steps=min(200, max(1, self.max_steps // 10)) if self.max_steps else 50,
            max_steps=self.max_steps or None,
            time_budget_seconds=self.time_budget or None,
            ema_decay=0.99,
            epoch_steps=100,
            log_every_steps=100,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Pretrain and report where the weights are; 0 when the budget was used to its end, 2 when it could not be."""
    settings = parse_dataclass(
        PretrainEncoderSettings,
        prog="pretrain-encoder",
        description="Teach a small vision transformer tissue from unlabelled images.",
        arguments=arguments,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from cellmill_training.loop import LossIsNotFiniteError

    try:
        recipe, config = _target(settings)
        _fit(settings, recipe)
    except (ValueError, LossIsNotFiniteError) as error:
        sys.stderr.write(f"pretrain-encoder: {error}\n")
        return UNUSABLE
    logger.info("Encoder: %s", Path(settings.out) / f"{config.encoder}.safetensors")
    return 0


def _target(settings: PretrainEncoderSettings) -> "tuple[TeacherRecipe, ModelConfig]":
    """The recipe and network the encoder is for; classes do not matter.

    Raises:
        ValueError: when there is no such recipe, or its network has no vision transformer.
    """
    from cellmill_schemas.ontology import get_ontology
    from cellmill_training.recipes import teacher_recipe
    from cellmill_training.teacher.recipe import network_config

    recipe = teacher_recipe(settings.recipe)
    config = network_config(recipe, get_ontology("refined7"))
    if config.vit is None:
        raise ValueError(f"--recipe must be one over a vision transformer, {settings.recipe!r} is not.")
    return recipe, config


def _fit(settings: PretrainEncoderSettings, recipe: "TeacherRecipe") -> None:
    from cellmill_training.run import RunPlace
    from cellmill_training.supervised.history import followed
    from cellmill_training.tracking.runs import tracked_run

    out = Path(settings.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    absolute = replace(
        settings,
        out=str(out),
        data=str(Path(settings.data).resolve()) if settings.data else "",
        datasets=tuple(_url(folder) for folder in settings.datasets),
    )
    with tracked_run(
        experiment="encoder",
        name=f"{recipe.architecture}-{out.name}",
        config={"settings": asdict(absolute)},
        data_digests=_digests(absolute),
        folder=Path(settings.tracking) if settings.tracking else out,
    ) as run:
        place = RunPlace(out)
        with followed(place.history, run):
            fit(_worker, asdict(absolute), out=out, plan=settings.plan, show_workers=False)  # the history tells
        run.log_file(place.history)


def _url(folder: str) -> str:
    from cellmill_training.datasets.store import open_dataset

    return open_dataset(folder).store.url


def _digests(settings: PretrainEncoderSettings) -> dict[str, str]:
    from cellmill_training.datasets.store import open_dataset

    opened = [open_dataset(folder) for folder in settings.datasets]
    return {dataset.name: dataset.digest for dataset in opened}


def _images(settings: PretrainEncoderSettings) -> "list[UnlabelledImage]":
    from cellmill_training.pretrain.views import dataset_images, local_images, synthetic_images

    images = dataset_images(settings.datasets) + synthetic_images(settings.synthetic_regions)
    return images + (local_images(Path(settings.data)) if settings.data else [])


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import torch

    from cellmill.models.encoder_weights import save_encoder
    from cellmill.models.networks import TokenNetwork, build_model
    from cellmill_training.loop import TrainingState, load_state, save_state, train
    from cellmill_training.losses import LossParts, Targets
    from cellmill_training.mixture import prefetched
    from cellmill_training.pretrain.autoencoder import AutoencoderConfig, MaskedAutoencoder
    from cellmill_training.pretrain.views import drawn_views
    from cellmill_training.supervised.history import append_history, trim_history
    from cellmill_training.supervised.on_ray import join_workers

    settings = PretrainEncoderSettings(**config)
    recipe, model_config = _target(settings)
    torch.manual_seed(settings.seed)
    augment = recipe.crops_on_grid.augment
    rank, _ = rank_and_world()
    with join_workers(settings.out, settings.device) as (place, worker):
        model = MaskedAutoencoder(model_config, AutoencoderConfig(), side_px=augment.crop_px).to(worker.device)
        state = TrainingState.fresh(model, settings.loop)
        if place.checkpoint.exists():
            load_state(state, place.checkpoint)
        if rank == 0:
            trim_history(place.history, state.step)
        # A resumed run draws other views than the ones it has seen: the step is part of the seed.
        seed = settings.seed + 1000 * rank + state.step
        views = drawn_views(_images(settings), augment, batch_size=settings.batch_size, seed=seed)

        def mean_error(outputs: torch.Tensor, targets: Targets) -> LossParts:
            return LossParts(outputs.mean(), {})

        def note(state: TrainingState, means: dict[str, float]) -> None:
            if rank == 0:
                append_history(place.history, state.step, {"train_error": means["total"], "seconds": state.seconds})

        def keep(state: TrainingState, means: dict[str, float]) -> None:
            if rank == 0:
                save_state(state, place.checkpoint)
            worker.report({**means, "step": state.step, "seconds": state.seconds}, place.checkpoint)

        train(
            state,
            prefetched(views, 4),
            loss=mean_error,
            config=settings.loop,
            forward=worker.wrap(model),
            on_epoch=note,
            on_checkpoint=keep,
            device=worker.device,
            agree=worker.agree,
        )
        if rank == 0:
            network = build_model(model_config)
            assert isinstance(network, TokenNetwork), "a config with a vit builds one"
            prefix = "encoder.body."
            body = {
                name.removeprefix(prefix): value for name, value in state.weights().items() if name.startswith(prefix)
            }
            network.encoder.body.load_state_dict(body)
            save_encoder(network, place.folder / f"{model_config.encoder}.safetensors")
