"""Synthetic typed tissue from `cellmill.synthetic`: exact masks of all seven types, on many made-up stains.

Scale: 0.5 um/px by construction. It teaches what no local real set has labels for (connective, dead, epithelial told
from neoplastic, keratin and folds that are no nuclei) and is a quarter of a batch: real images decide how nuclei look.
"""

import numpy as np

from cellmill.grid import Box
from cellmill.synthetic.tissue import render_region
from cellmill_training.samples import BACKGROUND_BIT, Labels, TissueSample, make_sample

__all__ = ["SYNTHETIC_MPP", "render_synthetic"]

SYNTHETIC_MPP = 0.5
_FIRST_SEED = 910_000


def render_synthetic(*, num_regions: int, side_px: int = 448) -> list[TissueSample]:
    """Regions of as many different slides, all for training."""
    samples: list[TissueSample] = []
    for number in range(num_regions):
        seed = _FIRST_SEED + number
        corner = int(np.random.default_rng(seed).integers(0, 4000))
        box = Box(corner, corner, corner + side_px, corner + side_px)
        region = render_region(seed, box, mpp=SYNTHETIC_MPP)
        bits = np.concatenate([[BACKGROUND_BIT], np.left_shift(1, 1 + region.types.astype(np.int64))])
        inside = region.labels > 0
        samples.append(
            make_sample(
                region.image,
                Labels(region.labels, bits[region.labels].astype(np.uint16), inside),
                mpp=SYNTHETIC_MPP,
                name=f"synthetic-{seed}",
                source="synthetic",
                group=f"synthetic-{seed}",
                split="train",
            )
        )
    return samples
