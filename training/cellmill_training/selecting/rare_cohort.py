"""Synthetic slides on which one type is rare and lives in one kind of tissue, and labelled tiles of other such slides.

Neutrophils are left only in inflamed stroma, and that is a small share of the territories: as in a lab's cohort, a tile
chosen at random most often holds none. Used by the demonstration and the tests of select-tiles.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from cellmill.grid import Box
from cellmill.synthetic import architecture as arch
from cellmill.synthetic.cell_types import NEUTROPHIL, TYPE_NAMES
from cellmill.synthetic.slide import SyntheticSlide
from cellmill.synthetic.slide_writer import write_slide
from cellmill.synthetic.style import TissueStyle, draw_style
from cellmill.synthetic.tissue import render_region
from cellmill.synthetic.truth import open_truth
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.readers.building import ImageSource, build_image

__all__ = ["RARE_TYPE", "cells_in_tiles", "labelled_tiles", "rare_style", "write_rare_cohort"]

RARE_TYPE = TYPE_NAMES[NEUTROPHIL]
_INFLAMED_TERRITORY = 7
_MPP = 0.5
_FAR_PX = 4000
"""Labelled tiles lie anywhere in so many px of their endless slides."""


def rare_style(style: TissueStyle, *, share: float) -> TissueStyle:
    """The style with neutrophils in inflamed stroma only, and that in `share` of the territories."""
    shares = np.diff(style.world.mix, prepend=0.0)
    others = np.delete(shares, _INFLAMED_TERRITORY)
    shares = np.insert(others / others.sum() * (1 - share), _INFLAMED_TERRITORY, share)
    chances = style.chances.copy()
    outside = [place for place in range(arch.NUM_COMPARTMENTS) if place != arch.INFLAMED]
    chances[:, outside, NEUTROPHIL] = 0.0
    mix = tuple(np.minimum(np.cumsum(shares), 1.0).tolist())
    return replace(style, world=style.world._replace(mix=mix), chances=chances)


def write_rare_cohort(folder: Path, *, num_slides: int, side_mm: float, share: float, seed: int) -> Mapping[str, Path]:
    """Slides `folder/slides/<slide_id>.tif` with their truth, those that are not there; the truth's folder by slide."""
    truth: dict[str, Path] = {}
    for number in range(num_slides):
        slide = SyntheticSlide.draw(1000 * seed + number, width_mm=side_mm, height_mm=side_mm, mpp=_MPP)
        slide = replace(slide, style=rare_style(slide.style, share=share))
        name = f"rare-{seed}-{number:02d}"
        truth[name] = folder / "truth" / name
        if not (path := folder / "slides" / f"{name}.tif").is_file():
            write_slide(slide, path, truth_folder=truth[name])
    return truth


def labelled_tiles(*, num_tiles: int, side_px: int, share: float, seed: int) -> Iterator[LabelledImage]:
    """Tiles at random places of other slides with the same rule, a slide each, all nuclei labelled."""
    for number in range(num_tiles):
        slide_seed = 1_000_000 + 10_000 * seed + number
        x, y = np.random.default_rng(slide_seed).integers(0, _FAR_PX, 2).tolist()
        style = rare_style(draw_style(slide_seed), share=share)
        region = render_region(slide_seed, Box(x, y, x + side_px, y + side_px), mpp=_MPP, style=style)
        types = {row: (TYPE_NAMES[int(kind)],) for row, kind in enumerate(region.types, start=1)}
        name = f"rare-label-{slide_seed}"
        yield build_image(ImageSource(name, "rare-labels", name, _MPP), region.image, region.labels, types)


def cells_in_tiles(truth: Path, tiles: np.ndarray, *, tile_px: int, cell_type: str = RARE_TYPE) -> np.ndarray:
    """How many cells of a type have their centre in each tile (n, 2: column, row), at the slides' own 0.5 um/px."""
    table = open_truth(truth).table
    table = table.filter(pc.equal(table["cell_type"].cast("string"), cell_type))  # pyright: ignore[reportAttributeAccessIssue]
    places = np.stack([table[f"{axis}_level0_px"].to_numpy() for axis in "xy"], axis=1) // tile_px
    found, counts = np.unique(places.astype(np.int64), axis=0, return_counts=True)
    by_place = dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))
    return np.array([by_place.get(place, 0) for place in map(tuple, tiles.tolist())], np.int64)
