"""Training an outliner: weighted cross-entropy and Dice loss on patches, steps that follow from the seed alone.

Consumes `TrainingPatches`; produces the weights with the best Dice on validation patches. The paper's settings (Adjadj
et al. 2025, "Cell boundary extension with Nuclick"): 128 x 128 patches, points with slight Gaussian noise, 60 epochs,
learning rate 0.001, batches of 64, validation Dice 0.874.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cellmill_training.checkpoints import copied_weights
from cellmill_training.labelling.outline_network import OutlineConfig, OutlineNetwork
from cellmill_training.labelling.outline_patches import TrainingPatches
from cellmill_training.loop import LossIsNotFiniteError

__all__ = ["OutlineFit", "OutlineState", "dice", "fit_outliner", "outline_loss"]

logger = logging.getLogger(__name__)

_OTHERS_WEIGHT = 3.0
"""Pixels of other nuclei count so many times: growing into a neighbour is the error that matters."""


@dataclass(frozen=True)
class OutlineFit:
    """How long and how fast."""

    epochs: int = 60
    """Passes over the training patches."""
    batch_size: int = 64
    """Patches a step."""
    learning_rate: float = 1e-3
    """Peak of the cosine."""
    seed: int = 0
    """Of weights, order, turns and mirrors."""


@dataclass
class OutlineState:
    """All that a resumed run needs."""

    network: OutlineNetwork
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]
    best_dice: float = -1.0
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    @staticmethod
    def fresh(config: OutlineConfig, fit: OutlineFit) -> "OutlineState":
        """State before the first step."""
        torch.manual_seed(fit.seed)
        network = OutlineNetwork(config)
        optimizer = torch.optim.AdamW(network.parameters(), lr=fit.learning_rate, weight_decay=1e-4)
        return OutlineState(network, optimizer, copied_weights(network))


def outline_loss(logits: Tensor, masks: Tensor, others: Tensor) -> Tensor:
    """Weighted binary cross-entropy plus 1 - Dice, over a batch.

    Args:
        logits: (B, S, S).
        masks: booleans (B, S, S), the nucleus asked for.
        others: booleans (B, S, S), other nuclei.
    """
    target = masks.float()
    weight = 1.0 + (_OTHERS_WEIGHT - 1.0) * others.float()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, weight=weight)
    probability = torch.sigmoid(logits)
    shared = (probability * target).sum(dim=(1, 2))
    whole = probability.sum(dim=(1, 2)) + target.sum(dim=(1, 2))
    return cross_entropy + (1.0 - (2.0 * shared + 1.0) / (whole + 1.0)).mean()


def dice(network: OutlineNetwork, patches: TrainingPatches, *, batch_size: int = 64) -> float:
    """Mean Dice of the masks at probability 0.5."""
    network.eval()
    scores: list[float] = []
    for start in range(0, len(patches.inputs), batch_size):
        batch = torch.from_numpy(patches.inputs[start : start + batch_size]).float()
        with torch.inference_mode():
            found = network(batch)[:, 0].numpy() > 0.0
        masks = patches.masks[start : start + batch_size]
        shared = (found & masks).sum(axis=(1, 2))
        whole = found.sum(axis=(1, 2)) + masks.sum(axis=(1, 2))
        scores += (2.0 * shared / np.maximum(whole, 1)).tolist()
    return float(np.mean(scores))


def fit_outliner(
    state: OutlineState,
    *,
    train: TrainingPatches,
    validation: TrainingPatches,
    fit: OutlineFit,
    on_epoch: Callable[[OutlineState], None] | None = None,
) -> None:
    """Train until all epochs are done; `state.best` are the weights to keep.

    Raises:
        LossIsNotFiniteError: when the loss is NaN or infinite.
    """
    steps = math.ceil(len(train.inputs) / fit.batch_size)
    while state.epoch < fit.epochs:
        rng = np.random.default_rng([fit.seed, state.epoch])
        order = rng.permutation(len(train.inputs))
        total = 0.0
        for step in range(steps):
            _set_rate(state, fit, (state.epoch * steps + step) / (fit.epochs * steps))
            total += _step(state, train, order[step * fit.batch_size : (step + 1) * fit.batch_size], rng)
        state.epoch += 1
        score = dice(state.network, validation)
        state.history.append({"loss": total / steps, "validation_dice": score})
        logger.info("epoch %d: loss %.4f, validation Dice %.4f", state.epoch, total / steps, score)
        if score > state.best_dice:
            state.best_dice = score
            state.best = copied_weights(state.network)
        if on_epoch:
            on_epoch(state)


def _step(state: OutlineState, train: TrainingPatches, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> float:
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))

    def turned(patches: npt.NDArray[Any]) -> Tensor:
        result = np.rot90(patches, turns, axes=(-2, -1))
        return torch.from_numpy(np.ascontiguousarray(result[..., ::-1] if mirrored else result))

    state.network.train()
    logits = state.network(turned(train.inputs[rows]).float())[:, 0]
    loss = outline_loss(logits, turned(train.masks[rows]), turned(train.others[rows]))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise LossIsNotFiniteError(f"The outliner's loss in epoch {state.epoch} is {value}; lower --learning-rate.")
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    return value


def _set_rate(state: OutlineState, fit: OutlineFit, progress: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = fit.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))
