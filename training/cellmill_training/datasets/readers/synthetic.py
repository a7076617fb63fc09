"""Synthetic typed tissue from `cellmill.synthetic`: exact masks of all seven `refined7` types, one slide an image."""

from collections.abc import Iterable, Iterator

import numpy as np

from cellmill.grid import Box
from cellmill.synthetic.tissue import render_region
from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.readers.building import ImageSource, build_image

__all__ = ["SYNTHETIC_MPP", "render_images"]

SYNTHETIC_MPP = 0.5


def render_images(seeds: Iterable[int], *, side_px: int = 256, mpp: float = SYNTHETIC_MPP) -> Iterator[LabelledImage]:
    """A square region of each seed's slide, somewhere in its first 4000 px."""
    names = get_ontology("refined7").names
    for seed in seeds:
        corner = int(np.random.default_rng(seed).integers(0, 4000))
        region = render_region(seed, Box(corner, corner, corner + side_px, corner + side_px), mpp=mpp)
        name = f"synthetic-{seed}"
        types = {number: (names[int(kind)],) for number, kind in enumerate(region.types, start=1)}
        yield build_image(ImageSource(name, "synthetic", name, mpp), region.image, region.labels, types)
