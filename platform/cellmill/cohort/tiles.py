"""What becomes of each tile of a slide: analysed, or excluded for exactly one reason.

One `TileGrid` is a rectangle of tiles with a verdict each. Verdicts are pure functions of a tile (its place, or its own
pixels), so that every field that sees a tile says the same of it; areas are those of tile cores clipped to the slide.
"""

import base64
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.grid import Box, SlideGrid, TileGeometry
from cellmill.store.work import FieldCounts

__all__ = ["TileGrid", "Verdict", "by_pixels", "by_place", "count_tiles"]


class Verdict(IntEnum):
    """What becomes of a tile; of several reasons the lowest number counts, as `ExcludedArea` says."""

    ANALYSED = 0
    OUTSIDE_REGION = 1
    BACKGROUND = 2
    UNREADABLE = 3
    PEN = 4
    BLUR = 5


_BY_PLACE = ("outside_region", "background")


@dataclass(frozen=True)
class TileGrid:
    """Verdicts of a rectangle of tiles."""

    tiles: Box
    """Tile indices (column, row), half-open."""
    verdicts: npt.NDArray[np.uint8]  # (rows, columns)

    def __post_init__(self) -> None:
        assert self.verdicts.shape == (self.tiles.height, self.tiles.width)

    @staticmethod
    def of_slide(grid: SlideGrid, geometry: TileGeometry) -> "TileGrid":
        """All tiles of a slide, analysed."""
        tiles = geometry.covering(grid.box)
        return TileGrid(tiles, np.zeros((tiles.height, tiles.width), np.uint8))

    def verdict(self, i: int, j: int) -> Verdict:
        """Of the tile in column `i`, row `j`."""
        return Verdict(int(self.verdicts[j - self.tiles.y0, i - self.tiles.x0]))

    def within(self, tiles: Box) -> "TileGrid":
        """The part inside `tiles`, clipped to what is here."""
        part = self.tiles.clipped(tiles)
        rows = slice(part.y0 - self.tiles.y0, part.y1 - self.tiles.y0)
        columns = slice(part.x0 - self.tiles.x0, part.x1 - self.tiles.x0)
        return TileGrid(part, self.verdicts[rows, columns].copy())

    def analysed(self) -> npt.NDArray[np.int64]:
        """Indices (N, 2: column, row) of the analysed tiles, row by row."""
        rows, columns = np.nonzero(self.verdicts == Verdict.ANALYSED)
        return np.stack([columns + self.tiles.x0, rows + self.tiles.y0], axis=1).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, read back by `from_json`."""
        box = self.tiles
        return {
            "tiles": [box.x0, box.y0, box.x1, box.y1],
            "verdicts": base64.b85encode(self.verdicts.tobytes()).decode("ascii"),
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> "TileGrid":
        """Parse what `to_json` wrote."""
        tiles = Box(*(int(value) for value in document["tiles"]))
        verdicts = np.frombuffer(base64.b85decode(document["verdicts"]), np.uint8)
        return TileGrid(tiles, verdicts.reshape(tiles.height, tiles.width))


def count_tiles(tiles: TileGrid, *, owner: Box | None, grid: SlideGrid, geometry: TileGeometry) -> FieldCounts:
    """Tiles analysed and areas by verdict, in px of tile cores clipped to the slide.

    Args:
        tiles: the tiles and their verdicts.
        owner: count only tiles whose core begins in this box (in px), so that fields count each tile once; None
            counts all.
        grid: the slide's grid.
        geometry: the tiles' shape.
    """
    stride = geometry.stride_px
    x0 = np.arange(tiles.tiles.x0, tiles.tiles.x1, dtype=np.int64) * stride  # (columns,)
    y0 = np.arange(tiles.tiles.y0, tiles.tiles.y1, dtype=np.int64) * stride  # (rows,)
    widths, heights = np.clip(grid.width_px - x0, 0, stride), np.clip(grid.height_px - y0, 0, stride)
    if owner is not None:
        widths *= (x0 >= owner.x0) & (x0 < owner.x1)
        heights *= (y0 >= owner.y0) & (y0 < owner.y1)
    area_px = heights[:, None] * widths[None, :]  # (rows, columns)
    by_verdict = {v: int(area_px[tiles.verdicts == v].sum()) for v in Verdict}
    return FieldCounts(
        num_tiles=int(np.count_nonzero(area_px[tiles.verdicts == Verdict.ANALYSED])),
        analysed_px=by_verdict.pop(Verdict.ANALYSED),
        excluded_px={v.name.lower(): area for v, area in by_verdict.items() if area},
    )


def by_place(counts: FieldCounts) -> FieldCounts:
    """What a slide's plan counts: tiles excluded for where they are."""
    return FieldCounts(excluded_px={name: area for name, area in counts.excluded_px.items() if name in _BY_PLACE})


def by_pixels(counts: FieldCounts) -> FieldCounts:
    """What a field counts: tiles analysed, or excluded for what they show."""
    left = {name: area for name, area in counts.excluded_px.items() if name not in _BY_PLACE}
    return replace(counts, excluded_px=left)
