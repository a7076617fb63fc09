"""Phase I: training a nucleus segmenter, on Ray Train, resumed from checkpoints.

Consumes labelled data sets; writes into a folder

    checkpoint.pt     to resume from
    history.jsonl     one line an epoch: training loss, validation loss
    best/             the network of the epoch with the least validation loss
    done.json         its pixel figures on the test split; there once the network is whole

Háberová and Vykopal 2023, section 4.2: Dice loss, Adam, 30 epochs, learning rate 0.0001, dropout 0.3, the best network
by validation loss. `loop.train` runs it: Adam is its AdamW without decay; its cosine and its averaged weights are ours.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cellmill_training.datasets.store import LabelledDataset, open_dataset
from cellmill_training.loop import LoopConfig, TrainingState, load_state, save_state, train
from cellmill_training.losses import LossParts, Targets
from cellmill_training.ray_trainer import WorkerPlan, fit
from cellmill_training.supervised.history import append_history, read_history, trim_history
from cellmill_training.supervised.on_ray import join_workers
from cellmill_training.supervised.run import InWorker
from cellmill_training.weak.nucleus_networks import (
    NucleusNetwork,
    NucleusNetworkConfig,
    load_nucleus_network,
    nucleus_network,
    nucleus_probability,
    save_nucleus_network,
)
from cellmill_training.weak.nucleus_patches import NucleusPatches, PatchConfig

__all__ = ["DiceLoss", "NucleusFit", "NucleusFolder", "PixelScores", "fit_nuclei", "learn_nuclei", "pixel_scores"]

logger = logging.getLogger(__name__)

_OUTSIDE_BIT, _NUCLEUS_BIT = 0b01, 0b10
_SMOOTH_PX = 1.0


@dataclass(frozen=True)
class NucleusFit:
    """How long and how fast, and on what."""

    patches: PatchConfig = field(default_factory=PatchConfig)
    """Patches of the training data."""
    epochs: int = 30
    """Times that every patch is shown."""
    batch_size: int = 8
    """Patches a step and worker."""
    learning_rate: float = 1e-4
    """Peak of the cosine."""
    ema_decay: float = 0.99
    """Of the averaged weights, which are what is kept."""
    checkpoint_steps: int = 100
    """A killed worker loses at most this many steps, or three minutes."""
    seed: int = 0
    """Of weights and order."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.checkpoint_steps) < 1 or self.learning_rate <= 0:
            raise ValueError(
                "epochs, batch_size, checkpoint_steps and learning_rate must be positive, got "
                f"{self.epochs}, {self.batch_size}, {self.checkpoint_steps} and {self.learning_rate}."
            )

    @staticmethod
    def from_json(document: dict[str, Any]) -> "NucleusFit":
        """Parse what `asdict` makes of it."""
        values = dict(document)
        return NucleusFit(patches=PatchConfig.from_json(values.pop("patches")), **values)

    def loop(self, steps_per_epoch: int) -> LoopConfig:
        """The loop of so many steps an epoch."""
        settings = LoopConfig(
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            ema_decay=self.ema_decay,
            checkpoint_steps=self.checkpoint_steps,
            max_steps=1,
        )
        return settings.over_epochs(self.epochs, steps_per_epoch)


@dataclass(frozen=True)
class NucleusFolder:
    """Where the files of one segmenter are."""

    folder: Path

    @property
    def best(self) -> Path:
        """The network to keep."""
        return self.folder / "best"

    @property
    def done(self) -> Path:
        """Test figures."""
        return self.folder / "done.json"


@dataclass(frozen=True)
class PixelScores:
    """How right a segmenter is, over known pixels (the paper's table 2)."""

    accuracy: float
    precision: float
    recall: float
    dice: float


class DiceLoss:
    """1 - Dice of nucleus pixels over a batch, the mean over heads; pixels of which nothing is known are left out."""

    def __call__(self, outputs: Tensor, targets: Targets) -> LossParts:
        """Logits (B, heads, H, W) and what is known to a loss."""
        bits = targets.allowed_bits
        known = (bits != _OUTSIDE_BIT | _NUCLEUS_BIT).float()[:, None]
        nucleus = (bits == _NUCLEUS_BIT).float()[:, None]
        probability = torch.sigmoid(outputs) * known
        shared = (probability * nucleus).sum(dim=(0, 2, 3))
        whole = probability.sum(dim=(0, 2, 3)) + nucleus.sum()
        loss = (1.0 - (2.0 * shared + _SMOOTH_PX) / (whole + _SMOOTH_PX)).mean()
        return LossParts(loss, {"dice_loss": loss})


def fit_nuclei(
    config: NucleusNetworkConfig,
    *,
    train_patches: NucleusPatches,
    validation_patches: NucleusPatches,
    settings: NucleusFit,
    folder: Path,
    worker: InWorker | None = None,
) -> None:
    """Train from the last checkpoint in `folder`, or from the start, to the last epoch.

    Raises:
        LossIsNotFiniteError: when the loss is NaN or infinite.
    """
    here = worker or InWorker()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    network = nucleus_network(config).to(here.device)
    loop = settings.loop(train_patches.steps_per_epoch)
    state = TrainingState.fresh(network, loop)
    checkpoint, history = folder / "checkpoint.pt", folder / "history.jsonl"
    if checkpoint.is_file():
        load_state(state, checkpoint)
        logger.info("Resumed at step %d.", state.step)
    if here.rank == 0:
        trim_history(history, state.step)

    def look(state: TrainingState, means: dict[str, float]) -> None:
        if here.rank:
            return
        trim_history(history, state.step - 1)
        losses = [line["validation_loss"] for line in read_history(history)]
        kept = nucleus_network(config).to(here.device)
        kept.load_state_dict(state.weights())
        loss = _mean_loss(kept.eval(), validation_patches, here.device)
        if loss <= min(losses, default=loss):
            save_nucleus_network(kept, folder / "best")
        append_history(history, state.step, {"train_loss": means.get("total", loss), "validation_loss": loss})

    def keep(state: TrainingState, means: dict[str, float]) -> None:
        if here.rank == 0:
            save_state(state, checkpoint)
        here.report({**means, "step": float(state.step)}, checkpoint)

    train(
        state,
        train_patches.batches(state.step),
        loss=DiceLoss(),
        config=loop,
        forward=here.wrap(network),
        on_epoch=look,
        on_checkpoint=keep,
        device=here.device,
        agree=here.agree,
    )


def learn_nuclei(
    datasets: Sequence[LabelledDataset],
    config: NucleusNetworkConfig,
    settings: NucleusFit,
    *,
    plan: WorkerPlan,
    folder: Path,
) -> PixelScores:
    """Train a segmenter on the data sets' training splits, or take the one in the folder; its test figures.

    Raises:
        ValueError: when a split has no image.
        LossIsNotFiniteError: when the loss is NaN or infinite.
        ray.train.TrainingFailedError: when workers died more often than the plan allows.
    """
    place = NucleusFolder(folder.resolve())
    if not place.done.is_file():
        described = {
            "folder": str(place.folder),
            "datasets": [dataset.store.url for dataset in datasets],
            "network": asdict(config),
            "settings": asdict(settings),
            "device": plan.device,
        }
        fit(_worker, described, out=place.folder, plan=plan)
        patches = NucleusPatches(datasets, "test", settings.patches, batch_size=settings.batch_size)
        scores = pixel_scores(load_nucleus_network(place.best), patches)
        partial = place.done.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(scores), indent=1) + "\n", encoding="utf-8")
        partial.replace(place.done)
    return PixelScores(**json.loads(place.done.read_text(encoding="utf-8")))


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    from cellmill_training.ray_trainer import rank_and_world

    settings = NucleusFit.from_json(config["settings"])
    datasets = [open_dataset(url) for url in config["datasets"]]
    rank, world = rank_and_world()
    batches = {"batch_size": settings.batch_size, "seed": settings.seed}
    with join_workers(config["folder"], config["device"]) as (place, worker):
        fit_nuclei(
            NucleusNetworkConfig.from_json(config["network"]),
            train_patches=NucleusPatches(datasets, "train", settings.patches, rank=rank, world=world, **batches),
            validation_patches=NucleusPatches(datasets, "validation", settings.patches, **batches),
            settings=settings,
            folder=place.folder,
            worker=worker,
        )


def _mean_loss(network: NucleusNetwork, patches: NucleusPatches, device: torch.device) -> float:
    losses: list[float] = []
    with torch.inference_mode():
        for batch in patches.in_order():
            logits = network(batch.images.to(device).permute(0, 3, 1, 2).float())
            losses.append(float(DiceLoss()(logits, batch.targets.to(device)).total))
    return sum(losses) / len(losses)


def pixel_scores(network: NucleusNetwork, patches: NucleusPatches, device: torch.device | None = None) -> PixelScores:
    """Figures over all known pixels of the patches, at probability 0.5."""
    on = device or torch.device("cpu")
    network.eval().to(on)
    found, true, both, right, number = 0, 0, 0, 0, 0
    with torch.inference_mode():
        for batch in patches.in_order():
            logits = network(batch.images.to(on).permute(0, 3, 1, 2).float())
            bits = batch.targets.allowed_bits
            known, nucleus = bits != _OUTSIDE_BIT | _NUCLEUS_BIT, bits == _NUCLEUS_BIT
            called = (nucleus_probability(logits).cpu() > 0.5) & known
            found, true = found + int(called.sum()), true + int(nucleus.sum())
            both, number = both + int((called & nucleus).sum()), number + int(known.sum())
            right += int(((called == nucleus) & known).sum())
    return PixelScores(
        accuracy=right / max(number, 1),
        precision=both / max(found, 1),
        recall=both / max(true, 1),
        dice=2.0 * both / max(found + true, 1),
    )
