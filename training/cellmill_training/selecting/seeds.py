"""What is known already: which tiles hold which types, from a finished cell set or from labelled data sets.

A tile holds a type as soon as one nucleus of it has its centre there (Adjadj et al. 2025). A cell set's types are a
model's: a tile holds a type when a cell is sure enough of it, does not when no cell there has it, and is left open
between. A data set leaves a tile open about a type while a nucleus in it may have it or a part of it is unknown.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cellmill.store.reading import open_cells
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_training.datasets.labelled_image import LabelledImage
from cellmill_training.datasets.mapping import mapped
from cellmill_training.datasets.store import LabelledDataset
from cellmill_training.labelling.outline_patches import centroids_px
from cellmill_training.samples import nearest_labels, resampled
from cellmill_training.selecting.classifiers import LabelledTiles
from cellmill_training.selecting.encoding import TILE_MPP, EncoderChoice
from cellmill_training.selecting.slide_tiles import SlideTiles, features_of_tiles, load_features

__all__ = [
    "Rarity",
    "presence_from_cells",
    "rows_to_learn_from",
    "tiles_of_cells",
    "tiles_of_datasets",
    "tiles_of_image",
]

_MAX_UNKNOWN = 0.02
"""Share of unknown pixels up to which a tile is believed not to hold what was not found."""
_MIN_SIDE = 0.5
"""Of a tile's side: smaller pieces of an image are left out."""
_A_SIDE = 20


@dataclass
class Rarity:
    """How many tiles are known to hold each type, of how many of which it is known."""

    holding: npt.NDArray[np.int64]  # (types,)
    known: npt.NDArray[np.int64]  # (types,)

    @staticmethod
    def of(ontology: Ontology) -> "Rarity":
        """Before any tile is counted."""
        return Rarity(np.zeros(len(ontology), np.int64), np.zeros(len(ontology), np.int64))

    def count(self, present: npt.NDArray[np.int8]) -> None:
        """Count tiles (n, types)."""
        self.holding += (present == 1).sum(axis=0)
        self.known += (present >= 0).sum(axis=0)

    def rare_types(self, ontology: Ontology, *, rare_below: float) -> tuple[str, ...]:
        """Types that some, and at most this share, of the known tiles hold."""
        shares = self.holding / np.maximum(self.known, 1)
        return tuple(name for name, share in zip(ontology.names, shares, strict=True) if 0 < share <= rare_below)


def tiles_of_cells(
    url: str,
    slide: SlideTiles,
    ontology: Ontology,
    feature_sets: Sequence[str],
    *,
    min_confidence: float,
    rarity: Rarity,
    seed: int,
) -> LabelledTiles:
    """Tiles of a finished slide of a cell set, with what its cells say.

    All tiles are counted in `rarity`. Of a type, at most `_A_SIDE` tiles that hold it and as many that do not are taken
    of one slide, drawn with the seed: memory does not grow with the slides' size.
    """
    cells = (
        open_cells(url, slide_ids=[slide.slide_id])
        .select("x_level0_px", "y_level0_px", pl.col("cell_type").cast(pl.String), "confidence")
        .collect()
    )
    present = presence_from_cells(
        slide,
        cells.select("x_level0_px", "y_level0_px").to_numpy().astype(np.float64),
        np.array([ontology.index(name) for name in cells["cell_type"].to_list()], np.int64),
        cells["confidence"].to_numpy().astype(np.float64),
        num_types=len(ontology),
        min_confidence=min_confidence,
    )
    rarity.count(present)
    rows = rows_to_learn_from(present, seed=seed)
    return LabelledTiles(
        slides=(slide.slide_id,) * len(rows),
        cohorts=(slide.cohort,) * len(rows),
        features={name: load_features(slide, name)[rows] for name in feature_sets},
        present={name: present[rows, index] for index, name in enumerate(ontology.names)},
    )


def rows_to_learn_from(present: npt.NDArray[np.int8], *, seed: int) -> npt.NDArray[np.int64]:
    """Rows of tiles (n, types): of each type at most `_A_SIDE` that hold it and as many that do not."""
    rng = np.random.default_rng(seed)
    kept = np.zeros(len(present), np.bool_)
    for column in present.T:
        for answer in (0, 1):
            rows = np.flatnonzero(column == answer)
            kept[rng.choice(rows, min(len(rows), _A_SIDE), replace=False)] = True
    return np.flatnonzero(kept)


def presence_from_cells(
    slide: SlideTiles,
    centers_level0_px: npt.NDArray[np.float64],
    types: npt.NDArray[np.int64],
    confidence: npt.NDArray[np.float64],
    *,
    num_types: int,
    min_confidence: float,
) -> npt.NDArray[np.int8]:
    """(tiles, types): 1 a sure cell of the type, 0 no cell of it, -1 only unsure ones.

    Args:
        slide: its tiles.
        centers_level0_px: (n, 2) x, y of its cells.
        types: (n,) class indices.
        confidence: (n,)
        num_types: classes there are.
        min_confidence: from which a cell is sure.
    """
    row_of = {place: row for row, place in enumerate(map(tuple, slide.tiles.tolist()))}
    places = np.floor(centers_level0_px / (np.array(slide.scale) * slide.tile_px)).astype(np.int64)
    rows = np.array([row_of.get(place, -1) for place in map(tuple, places.tolist())], np.int64)
    found = np.zeros((2, len(slide), num_types), np.bool_)  # any cell, a sure cell
    inside = rows >= 0
    for level, counted in enumerate((inside, inside & (confidence >= min_confidence))):
        found[level, rows[counted], types[counted]] = True
    return np.where(found[1], 1, np.where(found[0], -1, 0)).astype(np.int8)


def tiles_of_datasets(
    datasets: Iterable[LabelledDataset],
    ontology: Ontology,
    encoders: tuple[EncoderChoice, ...],
    *,
    tile_px: int,
    rarity: Rarity,
) -> Iterator[LabelledTiles]:
    """Tiles of all images but those of test splits, one image after another; all are counted in `rarity`.

    Raises:
        KeyError: when there is no mapping from a data set's ontology.
    """
    for dataset in datasets:
        mapping = get_mapping(dataset.ontology, ontology)
        for split in ("train", "validation"):
            for image in dataset.images(split):
                for pixels, present in tiles_of_image(mapped(image, mapping), ontology, tile_px=tile_px):
                    rarity.count(present[None])
                    yield LabelledTiles(
                        slides=(image.split_group,),
                        cohorts=(image.source,),
                        features=features_of_tiles(encoders, pixels[None]),
                        present={name: present[index : index + 1] for index, name in enumerate(ontology.names)},
                    )


def tiles_of_image(
    image: LabelledImage, ontology: Ontology, *, tile_px: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int8]]]:
    """Tiles (H, W, 3) at `TILE_MPP` of an image, side by side from its corner, and what each holds (types,).

    Where an image is no whole number of tiles, the last are smaller, down to half a side.
    """
    pixels = resampled(image.image, mpp=image.mpp, target_mpp=TILE_MPP)
    height, width = pixels.shape[:2]
    unknown = nearest_labels(image.unknown.astype(np.int32), (width, height)) > 0
    centers = centroids_px(image.instances) * (image.mpp / TILE_MPP)  # (n, 2)
    sure = np.zeros((image.num_cells, len(ontology)), np.bool_)
    possible = np.zeros((image.num_cells, len(ontology)), np.bool_)
    for row, label in enumerate(image.labels):
        indices = [ontology.index(name) for name in label.cell_types]
        possible[row, indices if indices else slice(None)] = True
        if len(indices) == 1:
            sure[row, indices] = True
    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            part = pixels[y : y + tile_px, x : x + tile_px]
            if min(part.shape[:2]) < _MIN_SIDE * tile_px:
                continue
            here = ((centers >= (x, y)) & (centers < (x + tile_px, y + tile_px))).all(axis=1)
            hidden = float(unknown[y : y + tile_px, x : x + tile_px].mean()) > _MAX_UNKNOWN
            absent = np.where(possible[here].any(axis=0) | hidden, -1, 0)
            yield part, np.where(sure[here].any(axis=0), 1, absent).astype(np.int8)
