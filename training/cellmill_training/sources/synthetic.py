"""Synthetic typed tissue from `cellmill.synthetic`: exact masks of all seven types, on many made-up stains.

Scale: 0.5 um/px by construction. It teaches what no local real set has labels for (connective, dead, epithelial told
from neoplastic, keratin and folds that are no nuclei) and is a quarter of a batch: real images decide how nuclei look.
"""

from cellmill_training.datasets.readers.synthetic import render_images
from cellmill_training.datasets.training_samples import sample_of
from cellmill_training.samples import TissueSample, training_ontology

__all__ = ["render_synthetic"]

_FIRST_SEED = 910_000


def render_synthetic(*, num_regions: int, side_px: int = 448) -> list[TissueSample]:
    """Regions of as many different slides, all for training."""
    seeds = range(_FIRST_SEED, _FIRST_SEED + num_regions)
    ontology = training_ontology()
    return [sample_of(image, split="train", ontology=ontology) for image in render_images(seeds, side_px=side_px)]
