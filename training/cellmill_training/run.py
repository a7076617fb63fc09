"""One training run: data, network, loop, weights. What a Ray Train worker calls, and what a test calls directly.

Consumes a `StudentRecipe` and `TrainingData`; writes `checkpoint.pt` (for resuming) and a model folder
`{model.json, weights.safetensors}` with the averaged weights each time it checkpoints.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cellmill.models.config import builtin_config
from cellmill.models.loading import save_model
from cellmill.models.networks import CellNetwork, build_model
from cellmill_training.local_sets import TrainingData
from cellmill_training.loop import TrainingState, learnt_state, load_state, save_state, train
from cellmill_training.losses import CellLoss
from cellmill_training.mixture import Batch, CropSource, batches
from cellmill_training.student_recipe import CLASS_WEIGHTS, StudentRecipe

__all__ = ["CHECKPOINT_NAME", "RunPlace", "fresh_state", "run_training", "training_batches"]

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.pt"


@dataclass(frozen=True)
class RunPlace:
    """Where a run's files are."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """State to resume from."""
        return self.folder / CHECKPOINT_NAME

    @property
    def model(self) -> Path:
        """Folder of the averaged weights, ready for `load_model`."""
        return self.folder / "model"

    @property
    def history(self) -> Path:
        """Figures of each epoch, one JSON line each."""
        return self.folder / "history.jsonl"

    @property
    def examples(self) -> Path:
        """Pictures of what the network finds in validation images."""
        return self.folder / "examples"


def fresh_state(recipe: StudentRecipe, *, device: torch.device | None = None) -> TrainingState:
    """A network with random weights and its optimiser."""
    torch.manual_seed(recipe.seed)
    network: CellNetwork = build_model(builtin_config(recipe.architecture))
    network.to(device or torch.device("cpu"), memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return TrainingState.fresh(network, recipe.loop)


def training_batches(recipe: StudentRecipe, data: TrainingData, *, seed_offset: int = 0) -> Iterator[Batch]:
    """Batches of the training split; validation and test samples never reach a crop."""
    samples = [sample for sample in data.samples if sample.split == "train"]
    source = CropSource(samples, data.textures, mixture=recipe.mixture, augment=recipe.augment)
    seed = recipe.seed + seed_offset
    return batches(source, batch_size=recipe.batch_size, seed=seed, prefetch=recipe.prefetch)


def run_training(
    recipe: StudentRecipe,
    data: TrainingData,
    *,
    place: RunPlace,
    initial_weights: dict[str, torch.Tensor] | None = None,
    on_checkpoint: Callable[[TrainingState, dict[str, float]], None] | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    agree: Callable[[float], float] | None = None,
    rank: int = 0,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Train from the last checkpoint in `place`, or from the start.

    Args:
        recipe: what to train and how.
        data: samples of all splits; only the training split is used.
        place: where checkpoints and weights go.
        initial_weights: a state dict to start from where there is no checkpoint (self-training's second stage).
        on_checkpoint: told after each checkpoint is written.
        wrap: turns the network into a data-parallel one.
        agree: makes workers go by one clock, see `loop.train`.
        rank: of this worker; only rank 0 writes.
        device: where to train.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    state = fresh_state(recipe, device=device)
    if place.checkpoint.exists():
        load_state(state, place.checkpoint)
        logger.info("Resumed at step %d, %.0f s.", state.step, state.seconds)
    elif initial_weights is not None:
        state.network.load_state_dict(initial_weights)
        state.averaged = {name: value.clone() for name, value in learnt_state(state.network).items()}
    weights = torch.tensor([CLASS_WEIGHTS[name] for name in builtin_config(recipe.architecture).ontology.names])

    def keep(state: TrainingState, means: dict[str, float]) -> None:
        if rank == 0:
            save_state(state, place.checkpoint)
            save_model(builtin_config(recipe.architecture), state.weights(), place.model)
        if on_checkpoint:
            on_checkpoint(state, means)

    # A resumed run draws other crops than the ones it has seen: the step is part of the seed.
    stream = training_batches(recipe, data, seed_offset=1000 * rank + state.step)
    return train(
        state,
        stream,
        loss=CellLoss(weights.to(device or torch.device("cpu"))),
        config=recipe.loop,
        forward=wrap(state.network) if wrap else None,
        on_checkpoint=keep,
        device=device,
        agree=agree,
    )
