"""`train-teacher`: a teacher, CellViT or the baseline on a labelled data set, on Ray Train, tracked in MLflow.

Settings -> recipe and data set, checked before any worker starts -> `supervised.run.fit_network` in each worker -> a
model folder, a history, pictures, an MLflow run. A worker that dies is replaced and goes on from the last checkpoint;
so does the same command given again.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellmill.arguments import parse_dataclass
from cellmill_training.ray_trainer import Device, WorkerPlan, rank_and_world

if TYPE_CHECKING:
    from cellmill.models.feature_cache import FeatureCache
    from cellmill.models.networks import CellNetwork
    from cellmill_training.mixture import Batch
    from cellmill_training.supervised.data import TrainingSet
    from cellmill_training.teacher.recipe import TeacherRecipe

__all__ = ["TrainTeacherSettings", "main", "recipe_of"]

logger = logging.getLogger(__name__)

UNUSABLE = 2


@dataclass(frozen=True)
class TrainTeacherSettings:
    """Settings of one training run of a teacher, CellViT or the baseline.

    Args:
        data: folder or URL of a labelled data set.
        out: folder for checkpoints, history, examples and the model; a run that was cut off goes on from here.
        recipe: name of a recipe; each opens with its source, hours and figures to expect.
        ontology: the network's classes; the data set's own unless given.
        train_folds: the source's folds that train, as in the paper's table 2; the data set's splits unless given.
        validation_folds: the source's folds that validate; given together with --train-folds.
        encoder_weights: folder or file of the encoder's weights. Default: CELLMILL_ENCODERS, then the hub.
        cache_features: folder for what a frozen encoder says of each crop, computed once; crops are then drawn in
            --fixed-variants ways. Default: no cache.
        fixed_variants: in how many ways each crop is drawn; 0 for a new one every epoch, which a cache cannot keep.
        epochs: times that every crop is shown; 0 for the recipe's.
        max_steps: steps in all, fewer than the epochs; 0 for no other end.
        batch_size: crops a step and worker; 0 for the recipe's.
        learning_rate: peak of the cosine; 0 for the recipe's.
        checkpoint_seconds: what a killed worker loses at most, in seconds of training.
        checkpoint_steps: the same in steps; 0 for seconds alone.
        num_workers: Ray Train workers, each with its own share of CPUs or one GPU; 0 trains in this process.
        cpus_per_worker: CPU cores (and threads) a worker may use.
        device: where to train; auto takes CUDA where torch sees one.
        max_failures: how often a failed worker is replaced before the run gives up.
        seed: of first weights and crops.
        experiment: MLflow experiment that the run is part of.
        tracking: folder of the MLflow store when MLFLOW_TRACKING_URI names none. Default: --out.
    """

    data: str = ""
    out: str = ""
    recipe: str = "teacher-h-optimus-0"
    ontology: str = ""
    train_folds: tuple[str, ...] = ()
    validation_folds: tuple[str, ...] = ()
    encoder_weights: str = ""
    cache_features: str = ""
    fixed_variants: int = 0
    epochs: int = 0
    max_steps: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    checkpoint_seconds: float = 180.0
    checkpoint_steps: int = 0
    num_workers: int = 1
    cpus_per_worker: int = 2
    device: Device = "auto"
    max_failures: int = 3
    seed: int = 0
    experiment: str = "teacher"
    tracking: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data must be the folder or URL of a labelled data set, got nothing.")
        if not self.out:
            raise ValueError("--out must be a folder for checkpoints and the model, got nothing.")
        if min(self.epochs, self.max_steps, self.batch_size, self.learning_rate, self.fixed_variants) < 0:
            raise ValueError("--epochs, --max-steps, --batch-size, --learning-rate and --fixed-variants are 0 or more.")
        if self.checkpoint_seconds <= 0:
            raise ValueError(f"--checkpoint-seconds must be positive, got {self.checkpoint_seconds}.")
        if self.cache_features and not self.fixed_variants:
            raise ValueError(
                "--cache-features keeps what the encoder says of a crop, and crops drawn anew are never seen again: "
                "give --fixed-variants too, such as 8."
            )
        _ = recipe_of(self), self.plan  # refuse what is no recipe and no workers

    @property
    def plan(self) -> WorkerPlan:
        """The workers."""
        return WorkerPlan(self.num_workers, self.cpus_per_worker, self.device, self.max_failures)


def recipe_of(settings: TrainTeacherSettings) -> "TeacherRecipe":
    """The recipe with the command line's changes."""
    from cellmill_training.recipes import teacher_recipe

    return teacher_recipe(settings.recipe).changed(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        fixed_variants=settings.fixed_variants,
        learning_rate=settings.learning_rate,
        checkpoint_seconds=settings.checkpoint_seconds,
        checkpoint_steps=settings.checkpoint_steps,
        seed=settings.seed,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and report where the model is; 0 when the budget was used to its end, 2 when it could not be."""
    settings = parse_dataclass(
        TrainTeacherSettings,
        prog="train-teacher",
        description="Train a network over a foundation model, CellViT or the ResNet50 baseline.",
        arguments=arguments,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from cellmill_training.loop import LossIsNotFiniteError

    try:
        _check(settings)
        model = _fit(settings)
    except (ValueError, LossIsNotFiniteError) as error:
        sys.stderr.write(f"train-teacher: {error}\n")
        return UNUSABLE
    logger.info("Model: %s", model)
    return 0


def _open(settings: TrainTeacherSettings) -> "TrainingSet":
    from cellmill_training.supervised.data import open_training_set

    return open_training_set(
        settings.data,
        ontology=settings.ontology,
        train_folds=settings.train_folds,
        validation_folds=settings.validation_folds,
    )


def _check(settings: TrainTeacherSettings) -> None:
    """Refuse, before a worker starts, data that cannot teach the classes and weights that are not there."""
    from cellmill.models.encoder_weights import find_encoder_file
    from cellmill_training.ray_trainer import uses_gpu
    from cellmill_training.teacher.recipe import loss_of, network_config

    recipe, training_set = recipe_of(settings), _open(settings)
    config = network_config(recipe, training_set.ontology)
    if settings.cache_features and (config.vit is None or not config.vit.frozen):
        raise ValueError(
            f"--cache-features keeps what a frozen vision transformer says; recipe {settings.recipe!r} has none. "
            "Leave it out."
        )
    if recipe.pretrained:
        find_encoder_file(config, source=settings.encoder_weights or None)
    loss_of(recipe, config, training_set)
    uses_gpu(settings.device)


def _fit(settings: TrainTeacherSettings) -> Path:
    from cellmill_training.supervised.on_ray import fit_tracked

    out = Path(settings.out).resolve()
    training_set = _open(settings)
    absolute = replace(
        settings,
        out=str(out),
        data=training_set.dataset.store.url,
        encoder_weights=_absolute(settings.encoder_weights),
        cache_features=_absolute(settings.cache_features),
    )
    place, _ = fit_tracked(
        _worker,
        asdict(absolute),
        out=out,
        plan=settings.plan,
        experiment=settings.experiment,
        name=f"{settings.recipe}-{out.name}",
        about={"settings": asdict(absolute), "recipe": asdict(recipe_of(settings))},
        data_digests={training_set.dataset.name: training_set.dataset.digest},
        tracking_folder=Path(settings.tracking) if settings.tracking else None,
    )
    return place.model


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if path else ""


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import torch

    from cellmill.models.networks import TokenNetwork
    from cellmill_training.supervised.crops import LabelledCrops
    from cellmill_training.supervised.features import DecodedFeatures, with_features
    from cellmill_training.supervised.on_ray import join_workers
    from cellmill_training.supervised.run import fit_network
    from cellmill_training.supervised.validation import Validation
    from cellmill_training.teacher.recipe import first_network, loss_of, network_config

    settings = TrainTeacherSettings(**config)
    recipe, training_set = recipe_of(settings), _open(settings)
    torch.manual_seed(settings.seed)
    model_config = network_config(recipe, training_set.ontology)
    network = first_network(recipe, model_config, encoder_weights=settings.encoder_weights)
    rank, world = rank_and_world()
    crops = LabelledCrops(
        training_set.dataset,
        training_set.train_ids,
        recipe.crops_on_grid,
        mapping=training_set.mapping,
        with_hv=model_config.decoder == "hv",
        rank=rank,
        world=world,
        threads=settings.cpus_per_worker,
    )

    with join_workers(settings.out, settings.device) as (place, worker):
        cache = _feature_cache(settings, network.to(worker.device))

        def batches(first_step: int) -> "Iterator[Batch]":
            made = crops.batches(first_step)
            return with_features(made, cache) if cache else made

        fit_network(
            network,
            loss=loss_of(recipe, model_config, training_set),
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
            forward=DecodedFeatures(network) if cache and isinstance(network, TokenNetwork) else None,
        )


def _feature_cache(settings: TrainTeacherSettings, network: "CellNetwork") -> "FeatureCache | None":
    from cellmill.models.feature_cache import FeatureCache
    from cellmill.models.networks import TokenNetwork

    if not settings.cache_features:
        return None
    assert isinstance(network, TokenNetwork), "the settings were checked"
    return FeatureCache(Path(settings.cache_features), network)
