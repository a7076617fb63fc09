"""One training run of an outliner: data set in, model folder out, resumed from its last epoch."""

import logging
from pathlib import Path

from cellmill_training.checkpoints import load_state, save_state
from cellmill_training.datasets.store import LabelledDataset
from cellmill_training.labelling.outline_network import OutlineConfig, save_outliner
from cellmill_training.labelling.outline_patches import training_patches
from cellmill_training.labelling.outline_training import OutlineFit, OutlineState, fit_outliner

__all__ = ["train_outliner"]

logger = logging.getLogger(__name__)

_CHECKPOINT = "checkpoint.pt"
_MOST_VALIDATION = 4000


def train_outliner(
    dataset: LabelledDataset,
    folder: Path,
    *,
    config: OutlineConfig,
    fit: OutlineFit,
    jitter_um: float,
    most_nuclei: int,
) -> OutlineState:
    """Train on the data set's training split, choose the epoch on its validation split.

    Args:
        dataset: with outlines that can be trusted.
        folder: for the checkpoint and the outliner; a run that was cut off goes on from the last epoch in it.
        config: graph and patches.
        fit: budget and rates.
        jitter_um: deviation of the noise on points.
        most_nuclei: training nuclei at the most.

    Raises:
        ValueError: when a split has no nucleus.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jitter_px = jitter_um / config.mpp
    train = training_patches(dataset.images("train"), config, jitter_px=jitter_px, seed=fit.seed, most=most_nuclei)
    validation = training_patches(
        dataset.images("validation"), config, jitter_px=jitter_px, seed=fit.seed + 1, most=_MOST_VALIDATION
    )
    logger.info("%d nuclei to train on, %d to choose by.", len(train.inputs), len(validation.inputs))
    state, checkpoint = OutlineState.fresh(config, fit), folder / _CHECKPOINT
    if checkpoint.is_file():
        load_state(state, checkpoint)
        logger.info("Resumed after epoch %d.", state.epoch)

    def keep(state: OutlineState) -> None:
        save_state(state, checkpoint)
        save_outliner(config, state.best, folder)

    fit_outliner(state, train=train, validation=validation, fit=fit, on_epoch=keep)
    return state
