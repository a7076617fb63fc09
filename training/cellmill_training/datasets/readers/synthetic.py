"""Synthetic typed tissue from `cellmill.synthetic`: exact masks of all seven `refined7` types, one slide an image."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from cellmill.grid import Box
from cellmill.synthetic.style import TissueStyle, draw_style
from cellmill.synthetic.tissue import render_region
from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.readers.building import ImageSource, build_image

__all__ = ["SYNTHETIC_MPP", "render_images"]

SYNTHETIC_MPP = 0.5


def render_images(
    seeds: Iterable[int], *, side_px: int = 256, mpp: float = SYNTHETIC_MPP, laboratory: int | None = None
) -> Iterator[LabelledImage]:
    """A square region of each seed's slide, somewhere in its first 4000 px.

    Args:
        seeds: of the slides.
        side_px: of the regions.
        mpp: um per px.
        laboratory: seed of one stain, scanner and look of cells for all slides; each has its own when None.
    """
    names = get_ontology("refined7").names
    for seed in seeds:
        corner = int(np.random.default_rng(seed).integers(0, 4000))
        box = Box(corner, corner, corner + side_px, corner + side_px)
        region = render_region(seed, box, mpp=mpp, style=_style(seed, laboratory))
        name = f"synthetic-{seed}"
        types = {number: (names[int(kind)],) for number, kind in enumerate(region.types, start=1)}
        yield build_image(ImageSource(name, "synthetic", name, mpp), region.image, region.labels, types)


def _style(seed: int, laboratory: int | None) -> TissueStyle:
    """The slide's own architecture, in the laboratory's colours."""
    own = draw_style(seed)
    if laboratory is None:
        return own
    return replace(draw_style(laboratory), world=own.world, chances=own.chances)
