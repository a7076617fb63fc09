"""The training loop: a plain function of a network, batches and a budget.

Ray Train wraps it (`ray_trainer.py`); tests call it with arrays. The budget is steps, seconds or both, and the learning
rate follows whichever share of it is used up more, so that a run on a slow machine still ends its cosine. What is kept
is an exponential moving average of the weights, which is better on small data than any single step.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cellmill_training.losses import Loss, LossParts
from cellmill_training.mixture import Batch

__all__ = ["LoopConfig", "LossIsNotFiniteError", "TrainingState", "learnt_state", "load_state", "save_state", "train"]

logger = logging.getLogger(__name__)


class LossIsNotFiniteError(RuntimeError):
    """Training diverged or met broken data."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast."""

    learning_rate: float = 2e-3
    """Peak of the cosine."""
    weight_decay: float = 0.02
    """AdamW's, on convolution weights only."""
    warmup_steps: int = 100
    """Steps of linear rise."""
    max_steps: int | None = None
    """Steps in all; None for no limit."""
    time_budget_seconds: float | None = None
    """Seconds in all, over all resumes; None for no limit."""
    ema_decay: float = 0.998
    """Of the averaged weights."""
    clip_norm: float = 2.0
    """Gradients longer than this are shortened."""
    checkpoint_seconds: float = 180.0
    """Time between checkpoints."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, beside the time; None for time alone."""
    epoch_steps: int | None = None
    """Steps between calls of `on_epoch`; None for none but the one at the end."""
    log_every_steps: int = 20
    """Steps between log lines."""
    bfloat16_on_cuda: bool = True
    """Run the network in bfloat16 where it can (autocast) on CUDA; losses and weights stay float32."""

    def __post_init__(self) -> None:
        if self.max_steps is None and self.time_budget_seconds is None:
            raise ValueError("Training needs max_steps, time_budget_seconds or both; got neither.")

    def over_epochs(self, epochs: int, steps_per_epoch: int, *, max_steps: int = 0) -> "LoopConfig":
        """The same with its length in steps from epochs; `max_steps` above 0 ends it sooner."""
        steps = min(epochs * steps_per_epoch, max_steps or epochs * steps_per_epoch)
        return replace(
            self,
            max_steps=steps,
            epoch_steps=steps_per_epoch,
            warmup_steps=min(self.warmup_steps, max(1, steps // 10)),
        )

    def progress(self, *, step: int, seconds: float) -> float:
        """Share of the budget used, 0..1."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_time = seconds / self.time_budget_seconds if self.time_budget_seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def is_due(self, *, step: int, seconds: float) -> bool:
        """Whether a checkpoint is due so many steps and seconds after the last."""
        return seconds > self.checkpoint_seconds or (
            self.checkpoint_steps is not None and step >= self.checkpoint_steps
        )


@dataclass
class TrainingState:
    """All that a resumed run needs."""

    network: nn.Module
    averaged: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    @staticmethod
    def fresh(network: nn.Module, config: LoopConfig) -> "TrainingState":
        """State before the first step."""
        learnt = [p for p in network.parameters() if p.requires_grad]
        decayed = [p for p in learnt if p.ndim > 1]
        rest = [p for p in learnt if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        return TrainingState(network, {k: v.clone() for k, v in learnt_state(network).items()}, optimizer)

    def weights(self) -> dict[str, Tensor]:
        """The whole network with its averaged weights, as a model folder holds it."""
        return {**self.network.state_dict(), **self.averaged}


def learnt_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters: a frozen encoder may be a hundred times the size of what is learnt."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: value.detach() for name, value in network.state_dict().items() if name not in frozen}


def save_state(state: TrainingState, path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "network": learnt_state(state.network),
            "averaged": state.averaged,
            "optimizer": state.optimizer.state_dict(),
            "step": state.step,
            "seconds": state.seconds,
        },
        partial,
    )
    partial.replace(path)


def load_state(state: TrainingState, path: Path) -> None:
    """Continue from a checkpoint that `save_state` wrote; only tensors and plain values are read."""
    document = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    wanted, got = learnt_state(state.network).keys(), document["network"].keys()
    if wanted != got:
        raise ValueError(
            f"{path} is of another network: {len(wanted ^ got)} tensors differ, the first {min(wanted ^ got)!r}. "
            "Start the run in an empty folder, or with the settings it was started with."
        )
    state.network.load_state_dict(document["network"], strict=False)
    device = next(iter(state.averaged.values())).device
    state.averaged = {name: value.to(device) for name, value in document["averaged"].items()}
    state.optimizer.load_state_dict(document["optimizer"])
    state.step, state.seconds = int(document["step"]), float(document["seconds"])


def train(
    state: TrainingState,
    batches: Iterator[Batch],
    *,
    loss: Loss,
    config: LoopConfig,
    forward: nn.Module | None = None,
    on_checkpoint: Callable[[TrainingState, dict[str, float]], None] | None = None,
    on_epoch: Callable[[TrainingState, dict[str, float]], None] | None = None,
    device: torch.device | None = None,
    agree: Callable[[float], float] | None = None,
) -> dict[str, float]:
    """Train until the budget is used.

    Args:
        state: network, averages and optimiser; changed in place.
        batches: endless batches.
        loss: what is minimised.
        config: budget and rates.
        forward: what is called in place of `state.network`, for wrappers such as DistributedDataParallel.
        on_checkpoint: called every `checkpoint_seconds` or `checkpoint_steps` and at the end, with running means of the
            loss terms.
        on_epoch: called every `epoch_steps` and at the end, before the checkpoint, with the same means.
        device: where the network is; CPU when not given.
        agree: maps this worker's seconds to those all workers go by. Workers that judged the budget by their own
            clocks would end, and report, at different steps and wait for each other for ever.

    Returns:
        Running means of the loss terms.

    Raises:
        LossIsNotFiniteError: when a loss is NaN or infinite.
    """
    model = forward or state.network
    on = device or torch.device("cpu")
    state.network.train()
    means: dict[str, float] = {}
    saved_step, saved_seconds, last_time = state.step, state.seconds, time.monotonic()
    while (progress := config.progress(step=state.step, seconds=state.seconds)) < 1.0:
        _set_rate(state, config, progress)
        batch = next(batches)
        parts = _step(model, state, batch, loss=loss, config=config, device=on)
        now = time.monotonic()
        own_seconds = state.seconds + now - last_time
        state.step, state.seconds, last_time = state.step + 1, agree(own_seconds) if agree else own_seconds, now
        _average(state, config)
        for name, value in _floats(parts).items():
            means[name] = 0.98 * means.get(name, value) + 0.02 * value
        if state.step % config.log_every_steps == 0:
            logger.info("step %d, %.0f s: %s", state.step, state.seconds, _line(means))
        if config.progress(step=state.step, seconds=state.seconds) >= 1.0:
            break  # what follows the last step is below
        if on_epoch and config.epoch_steps and state.step % config.epoch_steps == 0:
            on_epoch(state, means)
            state.network.train()
        if on_checkpoint and config.is_due(step=state.step - saved_step, seconds=state.seconds - saved_seconds):
            on_checkpoint(state, means)
            saved_step, saved_seconds = state.step, state.seconds
    if on_epoch:
        on_epoch(state, means)
    if on_checkpoint:
        on_checkpoint(state, means)
    return means


def _step(
    model: nn.Module, state: TrainingState, batch: Batch, *, loss: Loss, config: LoopConfig, device: torch.device
) -> LossParts:
    images = batch.images.to(device).permute(0, 3, 1, 2).float()  # (B, 3, S, S), channels last in memory
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and config.bfloat16_on_cuda):
        outputs = model(images, *batch.features)
    parts = loss(outputs.float(), batch.targets.to(device))
    if not bool(torch.isfinite(parts.total)):
        raise LossIsNotFiniteError(
            f"The loss at step {state.step} is not finite: {_line(_floats(parts))}. Lower learning_rate (now "
            f"{config.learning_rate}) or look for broken labels; the last checkpoint is from before this step."
        )
    state.optimizer.zero_grad(set_to_none=True)
    parts.total.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.clip_norm)
    state.optimizer.step()
    return parts


def _set_rate(state: TrainingState, config: LoopConfig, progress: float) -> None:
    rise = min(1.0, (state.step + 1) / max(1, config.warmup_steps))
    rate = config.learning_rate * rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))
    for group in state.optimizer.param_groups:
        group["lr"] = rate


def _average(state: TrainingState, config: LoopConfig) -> None:
    # Early on the average must forget its random start faster than the decay alone would let it.
    decay = min(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    with torch.no_grad():
        for name, value in learnt_state(state.network).items():
            kept = state.averaged[name]
            if kept.dtype.is_floating_point:
                kept.lerp_(value, 1.0 - decay)
            else:
                kept.copy_(value)


def _floats(parts: LossParts) -> dict[str, float]:
    return {"total": float(parts.total.detach()), **{name: float(term.detach()) for name, term in parts.terms.items()}}


def _line(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in means.items())
