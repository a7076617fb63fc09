"""The tile list and what it was made by, as files.

In: a `Selection` and its slides. Out: `tiles.parquet`, one row a tile to label, and the JSON of `selection.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill_training.selecting.choosing import ChosenTile, Selection
from cellmill_training.selecting.classifiers import TypeClassifier
from cellmill_training.selecting.slide_tiles import SlideTiles

__all__ = ["TILES_NAME", "TILE_SCHEMA", "read_earlier", "tile_table", "told"]

TILES_NAME = "tiles.parquet"

_BOX = [(f"{side}_{unit}", unit) for unit in ("level0_px", "um") for side in ("x0", "y0", "x1", "y1")]

TILE_SCHEMA = pa.schema(
    [
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("cohort", pa.string(), nullable=False),
        pa.field("tile_column", pa.int32(), nullable=False),
        pa.field("tile_row", pa.int32(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name, _ in _BOX),
        pa.field("drawn_for", pa.string(), nullable=False),
        pa.field("reasons", pa.list_(pa.string()), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("slide_weight", pa.float64(), nullable=False),
        pa.field(
            "scores",
            pa.list_(
                pa.struct(
                    [
                        pa.field("cell_type", pa.string()),
                        pa.field("probability", pa.float64()),
                        pa.field("entropy", pa.float64()),
                        pa.field("variation_ratio", pa.float64()),
                        pa.field("bald", pa.float64()),
                    ]
                )
            ),
            nullable=False,
        ),
    ]
)
"""Boxes are half-open, in level-0 px as OpenSlide has them (bounds not subtracted) and in um from the slide's corner.
Entropy and BALD are in nats. The tile's column and row are on a grid of `tile_px` at 0.5 um/px from the slide's corner.
"""


def tile_table(selection: Selection, slides: Mapping[str, SlideTiles]) -> pa.Table:
    """One row a chosen tile, by slide, then row of the slide's tiles."""
    return pa.Table.from_pylist([_row(tile, slides[tile.slide_id]) for tile in selection.tiles], schema=TILE_SCHEMA)


def read_earlier(path: str) -> dict[str, set[tuple[int, int]]]:
    """Tiles (column, row) by slide of an earlier selection: its folder, or its tile list.

    Raises:
        ValueError: when there is none to read.
    """
    file = Path(path) / TILES_NAME if Path(path).is_dir() else Path(path)
    try:
        table = pq.read_table(file, columns=["slide_id", "tile_column", "tile_row"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"--earlier {path}: no tile list of an earlier selection can be read there ({error})."
        ) from error
    found: dict[str, set[tuple[int, int]]] = {}
    for slide_id, column, row in zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True):
        found.setdefault(slide_id, set()).add((column, row))
    return found


def told(selection: Selection) -> dict[str, Any]:
    """What the selection rests on, as plain JSON types."""
    drawn: dict[str, int] = {}
    for tile in selection.tiles:
        drawn[tile.drawn_for] = drawn.get(tile.drawn_for, 0) + 1
    return {
        "tiles": len(selection.tiles),
        "drawn_for": drawn,
        "proposed": dict(sorted(selection.proposed.items())),
        "classifiers": [_classifier(one) for one in selection.classifiers],
        "without_classifier": dict(selection.without_classifier),
    }


def _classifier(one: TypeClassifier) -> dict[str, Any]:
    return {
        "cell_type": one.cell_type,
        "tiles_with": one.num_present,
        "tiles_without": one.num_absent,
        "folds_by": one.folds_by,
        "design": {"depth": one.design.depth, "feature_set": one.design.feature_set, "scaler": one.design.scaler},
        "nested_balanced_accuracy": round(one.nested_accuracy, 4),
        "balanced_accuracy": [
            {
                "depth": design.depth,
                "feature_set": design.feature_set,
                "scaler": design.scaler,
                "balanced_accuracy": round(accuracy, 4),
            }
            for design, accuracy in sorted(one.accuracies.items())
        ],
    }


def _row(tile: ChosenTile, slide: SlideTiles) -> dict[str, Any]:
    column, row = (int(value) for value in slide.tiles[tile.row])
    sides = (*slide.boxes_level0_px()[tile.row].tolist(), *slide.boxes_um()[tile.row].tolist())
    return {
        "slide_id": tile.slide_id,
        "cohort": slide.cohort,
        "tile_column": column,
        "tile_row": row,
        **{name: round(side, 4) for (name, _), side in zip(_BOX, sides, strict=True)},
        "drawn_for": tile.drawn_for,
        "reasons": list(tile.reasons),
        "cluster": tile.cluster,
        "slide_weight": tile.slide_weight,
        "scores": [vars(score) for score in tile.scores],
    }
