"""Two synthetic data sets that leave open what the other knows, and the truth about both.

`like_pannuke` merges lymphocyte, macrophage and neutrophil and tells neoplastic from epithelial; `like_monusac` merges
neoplastic and epithelial, tells the inflammatory cells apart, and leaves connective and dead cells unlabelled (unknown
pixels), as the real ones do. Every image is of a slide of its own, at 0.25 um/px like the real ones, where the slide
shows the rarer types. Here, unlike on real data, it can be measured whether cross-relabelling finds what was merged.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cellmill.grid import Box
from cellmill.synthetic.cell_types import TYPE_NAMES
from cellmill.synthetic.tissue import SyntheticRegion, render_labels, render_region
from cellmill_schemas.ontology import get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.store import LabelledDataset, open_dataset, write_dataset

__all__ = ["INFLAMMATORY", "LIKE_MONUSAC", "LIKE_PANNUKE", "SyntheticPair", "write_synthetic_pair"]

LIKE_PANNUKE, LIKE_MONUSAC = "like_pannuke", "like_monusac"
INFLAMMATORY = ("lymphocyte", "macrophage", "neutrophil")
_GLANDULAR = ("neoplastic", "epithelial")
_SIDE_UM = 200.0
_NUM_PLACES = 4
_TRUTH_FILE = "truth.json"
_ENOUGH = 40
_FIRST_SEED: dict[str, int] = {LIKE_PANNUKE: 410_000, LIKE_MONUSAC: 420_000}

Kind = Literal["like_pannuke", "like_monusac"]


@dataclass(frozen=True)
class SyntheticPair:
    """Both data sets, and the type of each of their cells."""

    datasets: tuple[LabelledDataset, LabelledDataset]
    truth: Mapping[str, tuple[str, ...]]
    """By image id: the type of instance k at k - 1."""


def write_synthetic_pair(folder: Path, *, num_images: int, seed: int = 0, mpp: float = 0.25) -> SyntheticPair:
    """Write `<folder>/like_pannuke`, `<folder>/like_monusac` and the truth, or open those that are there.

    Args:
        folder: of this pair alone.
        num_images: of each, 200 um wide, about 250 cells each.
        seed: another seed, other slides.
        mpp: um per px.
    """
    kinds: tuple[Kind, Kind] = (LIKE_PANNUKE, LIKE_MONUSAC)
    truth_file = folder / _TRUTH_FILE
    if truth_file.is_file():
        written = {name: tuple(types) for name, types in json.loads(truth_file.read_text(encoding="utf-8")).items()}
        return SyntheticPair((open_dataset(folder / kinds[0]), open_dataset(folder / kinds[1])), written)
    truth: dict[str, tuple[str, ...]] = {}
    first, second = (
        write_dataset(
            folder / kind,
            _images(kind, num_images, seed, mpp, truth),
            ontology=get_ontology("refined7"),
            name=kind,
        )
        for kind in kinds
    )
    # Last: a folder with the truth is a folder that is whole.
    truth_file.write_text(json.dumps(truth) + "\n", encoding="utf-8")
    return SyntheticPair((first, second), truth)


def _images(
    kind: Kind, number: int, seed: int, mpp: float, truth: dict[str, tuple[str, ...]]
) -> Iterator[LabelledImage]:
    side_px = round(_SIDE_UM / mpp)
    for place in range(number):
        slide = _FIRST_SEED[kind] + 1000 * seed + place
        region = render_region(slide, _richest_box(slide, side_px, mpp), mpp=mpp)
        image, types = _labelled(kind, region, name=f"{kind}-{slide}", mpp=mpp)
        truth[image.image_id] = types
        yield image


def _richest_box(slide: int, side_px: int, mpp: float) -> Box:
    """Of a few places on the slide the one that shows most of the rarer types, as annotators choose regions."""
    corners = np.random.default_rng(slide).integers(0, round(2000 / mpp), (_NUM_PLACES, 2)).tolist()
    boxes = [Box(x, y, x + side_px, y + side_px) for x, y in corners]
    rare = [TYPE_NAMES.index(name) for name in ("epithelial", "macrophage", "neutrophil")]

    def richness(box: Box) -> int:
        counts = np.bincount(render_labels(slide, box, mpp=mpp).types, minlength=len(TYPE_NAMES))
        return int(np.minimum(counts[rare], _ENOUGH).sum())

    return max(boxes, key=richness)


def _labelled(kind: Kind, region: SyntheticRegion, *, name: str, mpp: float) -> tuple[LabelledImage, tuple[str, ...]]:
    types = np.array(TYPE_NAMES)[region.types]
    merged = INFLAMMATORY if kind == LIKE_PANNUKE else _GLANDULAR
    kept = np.ones(len(types), bool) if kind == LIKE_PANNUKE else ~np.isin(types, ("connective", "dead"))
    shown = np.concatenate([[False], kept])[region.labels]
    instances, numbers = densely_numbered(np.where(shown, region.labels, 0))
    own = tuple(str(types[number - 1]) for number in numbers)
    origin = LabelOrigin("dataset", kind)
    image = LabelledImage(
        image_id=name,
        source=kind,
        tissue="synthetic",
        split_group=name,
        fold="",
        mpp=mpp,
        image=region.image,
        instances=instances,
        labels=tuple(CellLabel(merged if own_type in merged else (own_type,), origin) for own_type in own),
        unknown=(region.labels > 0) & ~shown,
    )
    return image, own
