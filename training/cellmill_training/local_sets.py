"""All training sources found under one folder, with their splits.

The layout is that of the data folder described in `docs/models/training.md`: `nuclei/<set>` and `slides/`. A set that
is absent is left out with a log line, so that the same recipe runs on what a lab has.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellmill_training.negatives import eosin_texture
from cellmill_training.samples import TissueSample
from cellmill_training.sources.dsb18 import read_dsb18
from cellmill_training.sources.monusac import read_monusac
from cellmill_training.sources.nucls import read_nucls
from cellmill_training.sources.puma import read_puma
from cellmill_training.sources.slides import empty_areas, read_slides
from cellmill_training.sources.synthetic import render_synthetic
from cellmill_training.sources.unlabelled import read_brecahad

__all__ = ["SHARE_ALIKE_SOURCES", "TrainingData", "read_training_data", "splits_of"]

logger = logging.getLogger(__name__)

SHARE_ALIKE_SOURCES = ("monusac",)
"""Sources whose licence binds the weights (CC BY-NC-SA); left out by `--permissive-data-only`."""

_READERS: dict[str, Callable[[Path], list[TissueSample]]] = {
    "dsb18": read_dsb18,
    "monusac": read_monusac,
    "puma_tile": read_puma,
    "nucls": read_nucls,
    "brecahad": read_brecahad,
}


@dataclass(frozen=True)
class TrainingData:
    """Samples of all splits, and eosin textures of unlabelled tissue."""

    samples: tuple[TissueSample, ...]
    textures: tuple[npt.NDArray[np.float32], ...]
    unlabelled: tuple[TissueSample, ...] = ()
    """Real H&E with few or no labels: what self-training labels."""


def read_training_data(folder: Path, *, permissive_only: bool = False, num_synthetic_regions: int = 0) -> TrainingData:
    """Read every set under `folder / "nuclei"`, and the slides under `folder / "slides"`.

    Args:
        folder: the data folder.
        permissive_only: leave out share-alike sources.
        num_synthetic_regions: how many regions of synthetic tissue to add.

    Raises:
        FileNotFoundError: when there is none at all.
    """
    samples: list[TissueSample] = []
    for name, read in _READERS.items():
        place = folder / "nuclei" / name
        if permissive_only and name in SHARE_ALIKE_SOURCES:
            logger.info("%s left out: its licence is share-alike and non-commercial.", name)
        elif not place.is_dir():
            logger.warning("%s left out: no folder %s.", name, place)
        else:
            found = read(place)
            logger.info("%s: %d images.", name, len(found))
            samples += found
    if not samples:
        raise FileNotFoundError(
            f"No training set under {folder / 'nuclei'}; expected one or more of {', '.join(_READERS)}."
        )
    textures = [eosin_texture(sample.image) for sample in samples if sample.source == "brecahad"]
    slides = read_slides(folder / "slides")
    unlabelled = [sample for sample in samples if sample.source == "brecahad"] + slides
    samples += empty_areas(slides)
    samples += render_synthetic(num_regions=num_synthetic_regions)
    return TrainingData(tuple(samples), tuple(textures), tuple(unlabelled))


def splits_of(samples: Sequence[TissueSample]) -> dict[str, dict[str, list[str]]]:
    """Groups by source and split, for the model card."""
    found: dict[str, dict[str, set[str]]] = {}
    for sample in samples:
        found.setdefault(sample.source, {}).setdefault(sample.split, set()).add(sample.group)
    return {source: {split: sorted(groups) for split, groups in by.items()} for source, by in found.items()}
