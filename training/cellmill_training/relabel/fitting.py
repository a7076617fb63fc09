"""Fitting a cell classifier: a plain function of crops, classes and a config, exact to resume.

Consumes crops (n, S, S, 3) uint8 with their classes for training and validation; produces the weights of the epoch with
the best validation accuracy and a curve. Whatever is random in a step (order of cells, augmentation, dropout) follows
from seed, step and worker alone, so a run that was killed and goes on from a checkpoint takes the same steps as one
that was not.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cellmill_training.checkpoints import copied_weights
from cellmill_training.loop import LossIsNotFiniteError
from cellmill_training.relabel.augmenting import AugmentConfig, augmented
from cellmill_training.relabel.classifier import CellClassifier, ClassifierConfig, predict

__all__ = ["FitConfig", "FitState", "LabelledCrops", "fit_classifier"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast."""

    epochs: int = 30
    """Passes over the balanced training cells."""
    batch_size: int = 64
    """Crops a step and worker."""
    learning_rate: float = 1e-4
    """Peak of the cosine."""
    weight_decay: float = 0.01
    """AdamW's."""
    warmup_steps: int = 50
    """Steps of linear rise."""
    checkpoint_steps: int = 100
    """A killed worker loses at most this many steps; every epoch ends with a checkpoint too."""
    seed: int = 0
    """Of weights, order, augmentation and dropout."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Variation of the crops."""

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "FitConfig":
        """Parse what `asdict` makes of a config."""
        values = dict(document)
        return FitConfig(augment=AugmentConfig(**values.pop("augment")), **values)

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.checkpoint_steps) < 1 or self.learning_rate <= 0:
            raise ValueError(
                "epochs, batch_size, checkpoint_steps and learning_rate must be positive, got "
                f"{self.epochs}, {self.batch_size}, {self.checkpoint_steps} and {self.learning_rate}."
            )


@dataclass(frozen=True)
class LabelledCrops:
    """Crops and what they show."""

    crops: npt.NDArray[np.uint8]  # (n, S, S, 3)
    classes: npt.NDArray[np.int64]  # (n,)


@dataclass
class FitState:
    """All that a resumed run needs."""

    network: CellClassifier
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]
    """Weights of the best epoch so far."""
    best_accuracy: float = -1.0
    step: int = 0
    loss_sum: float = 0.0
    """Of this epoch's steps."""
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """One entry an epoch: loss, validation_loss, validation_accuracy."""

    @staticmethod
    def fresh(
        classifier: ClassifierConfig,
        config: FitConfig,
        *,
        initial: dict[str, Tensor] | None = None,
        device: torch.device | None = None,
    ) -> "FitState":
        """State before the first step; `initial` holds the encoder's weights where they are not random."""
        torch.manual_seed(config.seed)
        network = CellClassifier(classifier)
        network.encoder.load_state_dict(initial or {}, strict=False)
        # Channels last in memory: a fifth to a quarter faster on CPU cores, and what tensor cores want.
        network.to(device or torch.device("cpu"), memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        return FitState(network, optimizer, copied_weights(network))


def fit_classifier(
    state: FitState,
    *,
    train: LabelledCrops,
    validation: LabelledCrops,
    config: FitConfig,
    forward: nn.Module | None = None,
    on_checkpoint: Callable[[FitState], None] | None = None,
    rank: int = 0,
    num_workers: int = 1,
    device: torch.device | None = None,
) -> None:
    """Train until all epochs are done; `state.best` are the weights to keep.

    Args:
        state: network, optimiser and progress; changed in place.
        train: balanced training cells.
        validation: balanced validation cells; they choose the epoch.
        config: budget and rates.
        forward: what is called in place of `state.network`, for wrappers such as DistributedDataParallel.
        on_checkpoint: called every `checkpoint_steps` and after each epoch, on every worker alike.
        rank: of this worker; each takes its own share of every epoch.
        num_workers: how many there are.
        device: where the network is; CPU when not given.

    Raises:
        LossIsNotFiniteError: when the loss is NaN or infinite.
    """
    on = device or torch.device("cpu")
    steps_an_epoch = _steps_an_epoch(len(train.classes), config, num_workers)
    total = steps_an_epoch * config.epochs
    while state.step < total:
        rows = _rows_of_step(state.step, len(train.classes), config, rank=rank, num_workers=num_workers)
        _set_rate(state, config, total)
        state.loss_sum += _step(forward or state.network, state, train, rows, config=config, rank=rank, device=on)
        state.step += 1
        ended = state.step % steps_an_epoch == 0
        if ended:
            _end_epoch(state, validation, steps_an_epoch, on)
        if on_checkpoint and (ended or state.step % config.checkpoint_steps == 0):
            on_checkpoint(state)


def _steps_an_epoch(num_cells: int, config: FitConfig, num_workers: int) -> int:
    return math.ceil(num_cells / (config.batch_size * num_workers))


def _rows_of_step(
    step: int, num_cells: int, config: FitConfig, *, rank: int, num_workers: int
) -> npt.NDArray[np.int64]:
    """The cells of one step and worker; an epoch shows each cell once, some twice to fill the last batch."""
    epoch, place = divmod(step, _steps_an_epoch(num_cells, config, num_workers))
    order = np.random.default_rng([config.seed, epoch]).permutation(num_cells)
    start = (place * num_workers + rank) * config.batch_size
    return np.sort(np.take(order, np.arange(start, start + config.batch_size), mode="wrap")).astype(np.int64)


def _step(
    model: nn.Module,
    state: FitState,
    train: LabelledCrops,
    rows: npt.NDArray[np.int64],
    *,
    config: FitConfig,
    rank: int,
    device: torch.device,
) -> float:
    generator = torch.Generator().manual_seed(_mixed(config.seed, state.step, rank))
    torch.manual_seed(_mixed(config.seed, state.step, rank))  # dropout
    crops = torch.from_numpy(np.ascontiguousarray(train.crops[rows])).to(device)
    images = augmented(crops, config=config.augment, generator=generator).contiguous(memory_format=torch.channels_last)
    model.train()
    loss = functional.cross_entropy(model(images), torch.from_numpy(train.classes[rows]).to(device))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise LossIsNotFiniteError(
            f"The classifier's loss at step {state.step} is {value}. Lower --learning-rate (now "
            f"{config.learning_rate}) or look for broken crops; the last checkpoint is from before this step."
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    return value


def _mixed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _set_rate(state: FitState, config: FitConfig, total: int) -> None:
    rise = min(1.0, (state.step + 1) / max(1, config.warmup_steps))
    fall = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * state.step / total))
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate * rise * fall


def _end_epoch(state: FitState, validation: LabelledCrops, steps_an_epoch: int, device: torch.device) -> None:
    probabilities = predict(state.network, validation.crops, device=device)
    right = probabilities.argmax(axis=1) == validation.classes
    given = probabilities[np.arange(len(right)), validation.classes]
    entry = {
        "loss": state.loss_sum / steps_an_epoch,
        "validation_loss": float(-np.log(np.maximum(given, 1e-12)).mean()),
        "validation_accuracy": float(right.mean()),
    }
    state.loss_sum = 0.0
    state.history.append(entry)
    if entry["validation_accuracy"] > state.best_accuracy:
        state.best_accuracy = entry["validation_accuracy"]
        state.best = copied_weights(state.network)
    logger.info("epoch %d: %s", len(state.history), ", ".join(f"{k} {v:.4f}" for k, v in entry.items()))
