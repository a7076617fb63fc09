"""One supervised run in one worker: a network, a loss and batches in; checkpoints, a history and a model folder out.

Every worker of a run calls `fit_network` with the same arguments but its rank; only the first validates and writes.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from cellmill.models.loading import save_model
from cellmill.models.networks import CellNetwork
from cellmill_training.loop import LoopConfig, TrainingState, learnt_state, load_state, save_state, train
from cellmill_training.losses import Loss
from cellmill_training.mixture import Batch
from cellmill_training.run import RunPlace
from cellmill_training.supervised.history import append_history, trim_history
from cellmill_training.supervised.overlays import drawn
from cellmill_training.supervised.validation import Validation

__all__ = ["InWorker", "fit_network"]

logger = logging.getLogger(__name__)

_NUM_EXAMPLES = 6


@dataclass(frozen=True)
class InWorker:
    """What a worker is and what it may ask of the others; the defaults are a run of one without Ray."""

    rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network
    """Makes a network data-parallel."""
    agree: Callable[[float], float] | None = None
    """This worker's seconds to those that all go by."""
    report: Callable[[dict[str, float], Path], None] = lambda metrics, checkpoint: None
    """Told of each checkpoint."""


def fit_network(
    network: CellNetwork,
    *,
    loss: Loss,
    batches: Callable[[int], Iterator[Batch]],
    loop: LoopConfig,
    place: RunPlace,
    validation: Validation | None = None,
    worker: InWorker | None = None,
    forward: nn.Module | None = None,
    card: str = "",
) -> dict[str, float]:
    """Train from the last checkpoint in `place`, or from the start, to the end of the budget.

    Args:
        network: with its first weights; frozen parameters stay as they are and enter no checkpoint.
        loss: what is minimised.
        batches: from a step on.
        loop: budget, rates, epochs.
        place: where checkpoint, history, examples and model go.
        validation: images to look at after each epoch.
        worker: rank, device and the way to the other workers.
        forward: what is called in place of `network`, such as its decoder alone over known features.
        card: the model card's text.

    Returns:
        The last figures of validation, and running means of the loss terms.

    Raises:
        LossIsNotFiniteError: when a loss is NaN or infinite.
    """
    here = worker or InWorker()
    place.folder.mkdir(parents=True, exist_ok=True)
    network.to(here.device)
    state = TrainingState.fresh(network, loop)
    if place.checkpoint.exists():
        load_state(state, place.checkpoint)
        logger.info("Resumed at step %d, %.0f s.", state.step, state.seconds)
    if here.rank == 0:
        trim_history(place.history, state.step)
    figures: dict[str, float] = {}

    def look(state: TrainingState, means: dict[str, float]) -> None:
        if here.rank:
            return
        with _averaged_weights(state):
            found, examples = (
                validation.look(network, here.device, num_examples=_NUM_EXAMPLES) if validation else ({}, [])
            )
        figures.update(found)
        losses = {f"train_{name}": value for name, value in means.items()}
        trim_history(place.history, state.step - 1)  # a finished run that is started again looks once more
        append_history(place.history, state.step, {**losses, **found, "seconds": state.seconds})
        place.examples.mkdir(exist_ok=True)
        for number, example in enumerate(examples):
            _write_png(place.examples / f"example_{number}.png", drawn(example, network.config.ontology))

    def keep(state: TrainingState, means: dict[str, float]) -> None:
        if here.rank == 0:
            save_state(state, place.checkpoint)
        here.report({**means, "step": state.step, "seconds": state.seconds}, place.checkpoint)

    means = train(
        state,
        batches(state.step),
        loss=loss,
        config=loop,
        forward=here.wrap(forward or network),
        on_epoch=look,
        on_checkpoint=keep,
        device=here.device,
        agree=here.agree,
    )
    if here.rank == 0:
        save_model(network.config, state.weights(), place.model, card=card)
    return {**means, **figures}


@contextmanager
def _averaged_weights(state: TrainingState) -> Generator[None]:
    """The network with its averaged weights while the block runs."""
    own = {name: value.clone() for name, value in learnt_state(state.network).items()}
    state.network.load_state_dict(state.averaged, strict=False)
    try:
        yield
    finally:
        state.network.load_state_dict(own, strict=False)


def _write_png(path: Path, image: np.ndarray) -> None:
    partial = path.with_suffix(".partial.png")
    cv2.imwrite(str(partial), np.ascontiguousarray(image[..., ::-1]))
    partial.replace(path)
