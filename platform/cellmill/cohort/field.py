"""The work of one field, in two halves that may run in two places: pixels in, instances out.

`read_field` (a CPU worker): FieldTask -> FieldPixels, the pixels of every tile that core and halo touch, and each
tile's final verdict. `segment_field` (where the model is): FieldPixels -> FieldResult, the cells that the core owns,
the painted core, the counts. Dense maps never leave `segment_field`. No Ray here.
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.cohort.plan import FieldTask
from cellmill.cohort.sources import MapSource
from cellmill.cohort.tiles import TileGrid, Verdict, by_pixels, count_tiles
from cellmill.grid import Box, SlideGrid, TileGeometry
from cellmill.instances.decoder import Decoder, Instances
from cellmill.instances.maps import PROB_SCALE, DenseMaps
from cellmill.instances.measure import SlideKey, measure_cells, paint_core
from cellmill.slides.model_grid import ModelPixels
from cellmill.slides.quality import judge_tile
from cellmill.store.shards import LabelPixels
from cellmill.store.work import FieldCounts
from cellmill_schemas.cells import ANCHOR_BITS
from cellmill_schemas.ontology import Ontology

__all__ = ["FieldPixels", "FieldResult", "ReadsPixels", "predict_maps", "read_field", "segment_field", "slide_hash"]

_MIN_TILES_AT_ONCE = 16
"""Tiles copied out and predicted at a time: bounds memory, and is more than any batch needs to be well filled."""

_MAX_SLIDE_HASH = (1 << (63 - ANCHOR_BITS)) - 1

_QUALITY_VERDICTS = {"ok": Verdict.ANALYSED, "pen": Verdict.PEN, "blur": Verdict.BLUR}


@dataclass(frozen=True)
class FieldPixels:
    """What a field sees of its slide."""

    box: Box
    """Covers the window of every tile of the field, on the model grid."""
    pixels: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    tiles: TileGrid
    """With the verdicts that pixels decide."""

    def tile(self, window: Box) -> npt.NDArray[np.uint8]:
        """The pixels of a window inside `box`, as a view."""
        rows = slice(window.y0 - self.box.y0, window.y1 - self.box.y0)
        return self.pixels[rows, window.x0 - self.box.x0 : window.x1 - self.box.x0]


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


def read_field(task: FieldTask, slide: ReadsPixels, *, geometry: TileGeometry) -> FieldPixels:
    """Read a field's pixels and judge its tiles by them.

    Args:
        task: the field.
        slide: the open slide.
        geometry: the model's tiles.
    """
    tiles = task.tiles
    first, last = (
        geometry.window(tiles.tiles.x0, tiles.tiles.y0),
        geometry.window(tiles.tiles.x1 - 1, tiles.tiles.y1 - 1),
    )
    box = Box(first.x0, first.y0, last.x1, last.y1)
    analysed = tiles.analysed().tolist()
    found = slide.read(box, wanted=[geometry.window(i, j) for i, j in analysed])
    seen = FieldPixels(box=box, pixels=found.pixels, tiles=tiles)
    verdicts = tiles.verdicts.copy()
    for i, j in analysed:
        window = geometry.window(i, j)
        verdict = _QUALITY_VERDICTS[judge_tile(seen.tile(window))] if found.is_readable(window) else Verdict.UNREADABLE
        verdicts[j - tiles.tiles.y0, i - tiles.tiles.x0] = verdict
    return replace(seen, tiles=TileGrid(tiles.tiles, verdicts))


def segment_field(
    task: FieldTask,
    seen: FieldPixels,
    *,
    source: MapSource,
    decoder: Decoder,
    geometry: TileGeometry,
    ontology: Ontology,
    batch_size: int,
) -> FieldResult:
    """Predict, decode, measure and paint one field.

    Args:
        task: the field.
        seen: its pixels and judged tiles.
        source: the model.
        decoder: dense maps to instances.
        geometry: the model's tiles.
        ontology: the model's classes.
        batch_size: tiles a forward pass.
    """
    started = time.monotonic()
    facts, core, grid = task.facts, task.field.core, task.facts.grid
    counts = by_pixels(count_tiles(seen.tiles, owner=core, grid=grid, geometry=geometry))
    maps = predict_maps(task, seen, source=source, geometry=geometry, ontology=ontology, batch_size=batch_size)
    instances = decoder.decode(maps)
    cells = measure_cells(
        instances,
        maps,
        seen.tile(task.window),
        core=core,
        grid=grid,
        ontology=ontology,
        slide=SlideKey(facts.slide_id, slide_hash(facts.slide_id)),
        analysed=_analysed_pixels(seen.tiles, task.window, geometry),
    )
    core_mask = _paint(instances, core, grid)
    return FieldResult(cells, core_mask, replace(counts, seconds=time.monotonic() - started))


def predict_maps(
    task: FieldTask,
    seen: FieldPixels,
    *,
    source: MapSource,
    geometry: TileGeometry,
    ontology: Ontology,
    batch_size: int,
) -> DenseMaps:
    """Dense maps of core and halo: each pixel from the tile whose core holds it, background where that is excluded."""
    window = task.window
    flow = np.zeros((2, window.height, window.width), np.int16)
    prob = np.zeros((len(ontology) + 1, window.height, window.width), np.uint8)
    prob[0] = PROB_SCALE
    indices = seen.tiles.analysed()  # (N, 2)
    num_at_once = batch_size * -(-_MIN_TILES_AT_ONCE // batch_size)
    for start in range(0, len(indices), num_at_once):
        group = indices[start : start + num_at_once]
        tiles = np.stack([seen.tile(geometry.window(int(i), int(j))) for i, j in group])  # (N, tile, tile, 3)
        found = source.predict(tiles, slide_id=task.facts.slide_id, tile_indices=group)
        for number, (i, j) in enumerate(group.tolist()):
            core = geometry.core(i, j)
            part = core.clipped(window)
            inner = (slice(part.y0 - core.y0, part.y1 - core.y0), slice(part.x0 - core.x0, part.x1 - core.x0))
            outer = (slice(part.y0 - window.y0, part.y1 - window.y0), slice(part.x0 - window.x0, part.x1 - window.x0))
            flow[:, *outer] = found.flow[number][:, *inner]
            prob[:, *outer] = found.prob[number][:, *inner]
    return DenseMaps(flow=flow, prob=prob, origin_px=(window.x0, window.y0))


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
    return analysed[y[:, None], x[None, :]]
