"""What a worker keeps of a strip's tiles: each is read, judged and predicted once, by the first field that sees it.

Fields are named by their number in the strip. A tile that a later field looks at is kept until the last such field is
done, cut to the part that those fields see; so what is kept at any time is the border between fields done and to do.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cellmill.cohort.field import FieldPixels, KeptMaps, TileIndex
from cellmill.cohort.strips import StripTask
from cellmill.cohort.tiles import TileGrid, Verdict
from cellmill.grid import Box, TileGeometry

__all__ = ["TileMemory"]


@dataclass(frozen=True)
class _KeptTile:
    verdict: Verdict
    pixels: npt.NDArray[np.uint8]  # (h, w, 3) of the kept part
    maps: KeptMaps | None
    """None where the tile was not analysed."""


class TileMemory:
    """The tiles of one strip, seen once each."""

    def __init__(self, strip: StripTask, geometry: TileGeometry) -> None:
        self._geometry = geometry
        self._windows = [field.window.clipped(strip.facts.grid.box) for field in strip.fields]
        self._covered = [geometry.covering(window) for window in self._windows]
        self._tiles = strip.tiles
        shape = strip.tiles.verdicts.shape
        self._first = np.full(shape, len(strip.fields), np.int64)
        self._last = np.full(shape, -1, np.int64)
        for number, covered in enumerate(self._covered):
            part = self._slices(covered)
            np.minimum(self._first[part], number, out=self._first[part])
            self._last[part] = number
        self._kept: dict[TileIndex, _KeptTile] = {}

    def fresh(self, number: int) -> npt.NDArray[np.bool_]:
        """Which of the tiles of field `number` are planned to be analysed and no earlier field sees (rows, columns)."""
        part = self._slices(self._covered[number])
        return (self._first[part] == number) & (self._tiles.verdicts[part] == Verdict.ANALYSED)

    def completed(self, number: int, seen: FieldPixels) -> FieldPixels:
        """Field `number` with the verdicts and pixels that earlier fields found; writes into `seen.pixels`."""
        verdicts = seen.tiles.verdicts.copy()
        for (i, j), tile in self._kept_of(number).items():
            verdicts[j - seen.tiles.tiles.y0, i - seen.tiles.tiles.x0] = tile.verdict
            if tile.maps is not None:
                part = tile.maps.box.clipped(self._windows[number])
                seen.tile(part)[:] = _cut(tile.pixels, tile.maps.box, part)
        return replace(seen, tiles=TileGrid(seen.tiles.tiles, verdicts))

    def maps(self, number: int) -> dict[TileIndex, KeptMaps]:
        """Maps of the tiles of field `number` that earlier fields predicted."""
        return {index: tile.maps for index, tile in self._kept_of(number).items() if tile.maps is not None}

    def keep(self, number: int, seen: FieldPixels, predicted: dict[TileIndex, KeptMaps]) -> None:
        """Keep what later fields see of the fresh tiles of field `number`, and let go of what none does any more.

        Args:
            number: the field that is predicted now.
            seen: its pixels and judged tiles.
            predicted: maps of its fresh tiles, as cut by `part_for_later`.
        """
        box = self._covered[number]
        rows, columns = np.nonzero(self.fresh(number))
        for i, j in zip((columns + box.x0).tolist(), (rows + box.y0).tolist(), strict=True):
            part = self.part_for_later(number, i, j)
            if part is None:
                continue
            maps = predicted.get((i, j))
            pixels = seen.tile(part).copy() if maps is not None else np.empty((0, 0, 3), np.uint8)
            self._kept[i, j] = _KeptTile(seen.tiles.verdict(i, j), pixels, maps)
        self._kept = {index: tile for index, tile in self._kept.items() if self._last_of(index) > number}

    def part_for_later(self, number: int, i: int, j: int) -> Box | None:
        """The part of a tile's core that fields after `number` look at; None where none does."""
        if self._last_of((i, j)) <= number:
            return None
        core = self._geometry.core(i, j)
        later = range(number + 1, len(self._windows))
        return Box.around(core.clipped(self._windows[n]) for n in later if self._covered[n].contains(i, j))

    def _kept_of(self, number: int) -> dict[TileIndex, _KeptTile]:
        covered = self._covered[number]
        return {(i, j): tile for (i, j), tile in self._kept.items() if covered.contains(i, j)}

    def _last_of(self, index: TileIndex) -> int:
        i, j = index
        return int(self._last[j - self._tiles.tiles.y0, i - self._tiles.tiles.x0])

    def _slices(self, tiles: Box) -> tuple[slice, slice]:
        own = self._tiles.tiles
        return slice(tiles.y0 - own.y0, tiles.y1 - own.y0), slice(tiles.x0 - own.x0, tiles.x1 - own.x0)


def _cut(array: npt.NDArray[np.uint8], box: Box, part: Box) -> npt.NDArray[np.uint8]:
    """The rows and columns of `part` from an array (h, w, ...) of `box`."""
    return array[part.y0 - box.y0 : part.y1 - box.y0, part.x0 - box.x0 : part.x1 - box.x0]
