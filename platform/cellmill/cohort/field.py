"""The work of one field in three steps that may overlap with those of the next: pixels in, instances out.

`read_field`: FieldTask -> FieldPixels, the pixels of the tiles that core and halo touch, and each tile's final verdict.
`predict_field` (where the model is): FieldPixels -> FieldMaps. `finish_field`: FieldMaps -> FieldResult, the cells that
the core owns, the painted core, the counts. Dense maps never leave the process that made them. No Ray here.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.cohort.plan import FieldTask
from cellmill.cohort.sources import MapSource, TileBatch
from cellmill.cohort.tiles import TileGrid, Verdict, by_pixels, count_tiles
from cellmill.grid import Box, SlideGrid, TileGeometry
from cellmill.instances.choosing import decode_where_made
from cellmill.instances.decoder import Decoder, Instances
from cellmill.instances.maps import PROB_SCALE
from cellmill.instances.measure import SlideKey, measure_cells, paint_core
from cellmill.slides.model_grid import ModelPixels
from cellmill.slides.quality import judge_tile
from cellmill.store.shards import LabelPixels
from cellmill.store.work import FieldCounts
from cellmill_schemas.cells import ANCHOR_BITS
from cellmill_schemas.ontology import Ontology

__all__ = [
    "FieldMaps",
    "FieldPixels",
    "FieldResult",
    "KeptMaps",
    "ReadsPixels",
    "TileIndex",
    "finish_field",
    "predict_field",
    "read_field",
    "slide_hash",
]

TileIndex = tuple[int, int]
"""Column and row of a tile."""

MapArray = Any
"""A numpy array, or a torch tensor on the device that made it: here both are only cut and pasted, alike."""

_MAX_SLIDE_HASH = (1 << (63 - ANCHOR_BITS)) - 1

_QUALITY_VERDICTS = {"ok": Verdict.ANALYSED, "pen": Verdict.PEN, "blur": Verdict.BLUR}


@dataclass(frozen=True)
class FieldPixels:
    """What a field sees of its slide."""

    box: Box
    """Covers the field's window and that of every tile that was read for it, on the model grid."""
    pixels: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    tiles: TileGrid
    """With the verdicts that pixels decide."""

    def tile(self, window: Box) -> npt.NDArray[np.uint8]:
        """The pixels of a window inside `box`, as a view."""
        rows = slice(window.y0 - self.box.y0, window.y1 - self.box.y0)
        return self.pixels[rows, window.x0 - self.box.x0 : window.x1 - self.box.x0]


@dataclass(frozen=True)
class KeptMaps:
    """Maps of a tile's core, or of a part of it."""

    box: Box
    vectors: MapArray  # (2, h, w) int16
    prob: MapArray  # (C + 1, h, w) uint8

    def cut(self, part: Box, *, copied: bool = True) -> "KeptMaps":
        """What lies in `part`, which is inside `box`; a view where it need not outlive this."""
        rows = slice(part.y0 - self.box.y0, part.y1 - self.box.y0)
        columns = slice(part.x0 - self.box.x0, part.x1 - self.box.x0)
        vectors, prob = self.vectors[:, rows, columns], self.prob[:, rows, columns]
        return KeptMaps(part, _copied(vectors), _copied(prob)) if copied else KeptMaps(part, vectors, prob)


@dataclass(frozen=True)
class FieldMaps:
    """Maps of a field's window, not yet of one family: its decoder knows what the vectors are."""

    box: Box
    vectors: MapArray  # (2, H, W) int16
    prob: MapArray  # (C + 1, H, W) uint8, background first

    @property
    def origin_px(self) -> tuple[int, int]:
        """Absolute (x, y) of the window's first pixel."""
        return self.box.x0, self.box.y0


@dataclass(frozen=True)
class FieldResult:
    """What a field found."""

    cells: pa.Table  # cell_schema, the cells whose anchor lies in the core
    core_mask: LabelPixels  # (core.height, core.width)
    counts: FieldCounts


class ReadsPixels(Protocol):
    """A slide on its model grid."""

    def read(self, box: Box, *, wanted: Iterable[Box] | None = None) -> ModelPixels:
        """Pixels of `box`, of which only the `wanted` parts are needed."""
        ...


def read_field(
    task: FieldTask, slide: ReadsPixels, *, geometry: TileGeometry, fresh: npt.NDArray[np.bool_] | None = None
) -> FieldPixels:
    """Read a field's pixels and judge its tiles by them.

    Args:
        task: the field.
        slide: the open slide.
        geometry: the model's tiles.
        fresh: (rows, columns) of `task.tiles`: only these tiles are read and judged, the others stay as planned and
            white; None reads all that are planned to be analysed.
    """
    tiles = task.tiles
    chosen = tiles.verdicts == Verdict.ANALYSED if fresh is None else fresh
    rows, columns = np.nonzero(chosen)
    indices = list(zip((columns + tiles.tiles.x0).tolist(), (rows + tiles.tiles.y0).tolist(), strict=True))
    windows = [geometry.window(i, j) for i, j in indices]
    found = slide.read(Box.around([task.window, *windows]), wanted=windows)
    seen = FieldPixels(box=found.box, pixels=found.pixels, tiles=tiles)
    verdicts = tiles.verdicts.copy()
    for (i, j), window in zip(indices, windows, strict=True):
        verdict = _QUALITY_VERDICTS[judge_tile(seen.tile(window))] if found.is_readable(window) else Verdict.UNREADABLE
        verdicts[j - tiles.tiles.y0, i - tiles.tiles.x0] = verdict
    return replace(seen, tiles=TileGrid(tiles.tiles, verdicts))


def predict_field(
    task: FieldTask,
    seen: FieldPixels,
    *,
    source: MapSource,
    geometry: TileGeometry,
    ontology: Ontology,
    batch_size: int,
    known: Mapping[TileIndex, KeptMaps] | None = None,
    keep: Callable[[TileIndex], Box | None] = lambda _: None,
) -> tuple[FieldMaps, dict[TileIndex, KeptMaps]]:
    """Dense maps of core and halo: each pixel from the tile whose core holds it, background where that is excluded.

    Args:
        task: the field.
        seen: its pixels and judged tiles.
        source: the model.
        geometry: the model's tiles.
        ontology: the model's classes.
        batch_size: tiles a forward pass.
        known: tiles predicted before; they cover what the window sees of them.
        keep: what to return of a tile predicted here, as a part of its core; None for nothing.

    Returns:
        The maps of the window, where the source leaves its maps, and the parts of tiles predicted here that `keep`
        asked for.
    """
    window, known = task.window, known or {}
    kept: dict[TileIndex, KeptMaps] = {}
    indices = np.array([index for index in seen.tiles.analysed().tolist() if tuple(index) not in known], np.int64)
    groups = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]  # (<= B, 2) each
    batches = (_batch(task, seen, group, geometry) for group in groups)

    def fresh() -> Iterator[KeptMaps]:
        for group, found in zip(groups, source.predict(batches), strict=True):
            for number, (i, j) in enumerate(group.tolist()):
                tile = KeptMaps(geometry.core(i, j), found.vectors[number], found.prob[number])
                part = keep((i, j))
                if part is not None:
                    kept[i, j] = tile.cut(part)
                yield tile

    maps: FieldMaps | None = None
    for tile in chain(known.values(), fresh()):
        maps = maps or _background_maps(window, num_classes=len(ontology), like=tile)
        _paste(maps, tile)
    return maps or _background_maps(window, num_classes=len(ontology)), kept


def finish_field(
    task: FieldTask,
    seen: FieldPixels,
    maps: FieldMaps,
    *,
    decoder: Decoder[Any],
    geometry: TileGeometry,
    ontology: Ontology,
) -> FieldResult:
    """Decode, measure and paint one field.

    Args:
        task: the field.
        seen: its pixels and judged tiles.
        maps: of its window.
        decoder: dense maps to instances.
        geometry: the model's tiles.
        ontology: the model's classes.
    """
    facts, core, grid = task.facts, task.field.core, task.facts.grid
    instances, classes = decode_where_made(decoder, maps.vectors, maps.prob, origin_px=maps.origin_px)
    cells = measure_cells(
        instances,
        classes,
        seen.tile(task.window),
        core=core,
        grid=grid,
        ontology=ontology,
        slide=SlideKey(facts.slide_id, slide_hash(facts.slide_id)),
        analysed=_analysed_pixels(seen.tiles, task.window, geometry),
    )
    counts = by_pixels(count_tiles(seen.tiles, owner=core, grid=grid, geometry=geometry))
    return FieldResult(cells, _paint(instances, core, grid), counts)


def _batch(task: FieldTask, seen: FieldPixels, indices: npt.NDArray[np.int64], geometry: TileGeometry) -> TileBatch:
    pixels = np.stack([seen.tile(geometry.window(i, j)) for i, j in indices.tolist()])  # (N, tile, tile, 3)
    return TileBatch(slide_id=task.facts.slide_id, indices=indices, pixels=pixels)


def _background_maps(window: Box, *, num_classes: int, like: KeptMaps | None = None) -> FieldMaps:
    """Maps of nothing, where those of a tile lie; on the host where there is no tile."""
    shape = (window.height, window.width)
    if like is None or isinstance(like.prob, np.ndarray):
        vectors, prob = np.zeros((2, *shape), np.int16), np.zeros((num_classes + 1, *shape), np.uint8)
    else:
        vectors, prob = like.vectors.new_zeros((2, *shape)), like.prob.new_zeros((num_classes + 1, *shape))
    prob[0] = PROB_SCALE
    return FieldMaps(window, vectors, prob)


def _copied(array: MapArray) -> MapArray:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def _paste(maps: FieldMaps, tile: KeptMaps) -> None:
    """Write what the window sees of a tile."""
    part = tile.box.clipped(maps.box)
    if part.area:
        found = tile.cut(part, copied=False)
        rows = slice(part.y0 - maps.box.y0, part.y1 - maps.box.y0)
        columns = slice(part.x0 - maps.box.x0, part.x1 - maps.box.x0)
        maps.vectors[:, rows, columns], maps.prob[:, rows, columns] = found.vectors, found.prob


def slide_hash(slide_id: str) -> int:
    """The part of a `cell_id` that tells slides apart: 15 bits, never 0."""
    digest = hashlib.sha256(slide_id.encode("utf-8")).digest()
    return 1 + int.from_bytes(digest[:8], "little") % _MAX_SLIDE_HASH


def _paint(instances: Instances, core: Box, grid: SlideGrid) -> LabelPixels:
    """The mask of the whole core, which may reach past the slide and so past the window."""
    inside = core.clipped(grid.box)
    painted = paint_core(instances, inside, grid)
    if inside == core:
        return painted  # type: ignore[return-value]
    whole = np.zeros((core.height, core.width), painted.dtype)
    whole[: inside.height, : inside.width] = painted
    return whole  # type: ignore[return-value]


def _analysed_pixels(tiles: TileGrid, window: Box, geometry: TileGeometry) -> npt.NDArray[np.bool_] | None:
    """Which pixels of the window were analysed (H, W); None where all were."""
    analysed = tiles.verdicts == Verdict.ANALYSED  # (rows, columns)
    if analysed.all():
        return None
    x = np.arange(window.x0, window.x1) // geometry.stride_px - tiles.tiles.x0
    y = np.arange(window.y0, window.y1) // geometry.stride_px - tiles.tiles.y0
    # Whole rows at a time: indexing with both at once takes ten times as long.
    return np.take(np.take(analysed, x, axis=1), y, axis=0)
