"""Synthetic H&E with its exact truth: any window of a slide that has no end.

In: a seed, a `Box` in px at `mpp`. Out: a `SyntheticRegion` (image, labels, cells). A pure function of seed and
absolute position: windows of one slide agree bit for bit where they overlap, so a slide can be streamed to disk and a training
loader can draw from anywhere.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellmill.grid import Box
from cellmill.synthetic import optics
from cellmill.synthetic.architecture import structure_table
from cellmill.synthetic.cell_types import NUM_TYPES
from cellmill.synthetic.paint import coarse_fields, paint_ground
from cellmill.synthetic.paint_cells import CYTOPLASM_REACH_UM, paint_cytoplasm, paint_folds, paint_grain, paint_nuclei
from cellmill.synthetic.placement import CANDIDATE_MARGIN_UM, KIND, MAX_RADIUS_UM, X, Y, find_objects
from cellmill.synthetic.shapes import own_pixels
from cellmill.synthetic.style import TissueStyle, draw_style

__all__ = ["SyntheticCells", "SyntheticRegion", "render_labels", "render_region"]

_COARSE_UM = 4.0
_SETTLED_UM = CYTOPLASM_REACH_UM + MAX_RADIUS_UM
"""How far around the painted pixels nuclei must be final: those whose cytoplasm reaches in, whole."""


@dataclass(frozen=True)
class SyntheticCells:
    """The nuclei of a window, one row each, in the order of their labels; sorted by key."""

    keys: NDArray[np.int64]
    """Same cell, same key, in every window and at every mpp."""
    types: NDArray[np.int8]
    """Index in the `refined7` ontology."""
    centers_px: NDArray[np.float64]
    """(n, 2) as (x, y), absolute px; the pixel that holds it belongs to the nucleus."""
    areas_px: NDArray[np.int64]
    """Of the whole nucleus, also outside the window."""


@dataclass(frozen=True)
class SyntheticRegion:
    """One window: picture and truth."""

    image: NDArray[np.uint8]
    """(H, W, 3)"""
    labels: NDArray[np.int32]
    """(H, W): 0 background, i + 1 for row i of `cells`."""
    cells: SyntheticCells

    @property
    def types(self) -> NDArray[np.int8]:
        """Type of each label: `types[label - 1]`."""
        return self.cells.types


@dataclass(frozen=True)
class _Scene:
    """Objects and ownership of a window grown so far that everything inside it is final."""

    objects: NDArray[np.float64]
    keys: NDArray[np.int64]
    areas: NDArray[np.int64]
    labels: NDArray[np.int32]
    depth: NDArray[np.float32]
    structures: tuple[NDArray[np.float64], int, int]
    margin_px: int


def _build_scene(box: Box, mpp: float, style: TissueStyle) -> _Scene:
    margin_px = math.ceil((_SETTLED_UM + MAX_RADIUS_UM) / mpp)
    canvas = box.grown(margin_px)
    reach_um = MAX_RADIUS_UM + CANDIDATE_MARGIN_UM
    area_um = (
        canvas.x0 * mpp - reach_um,
        canvas.y0 * mpp - reach_um,
        canvas.x1 * mpp + reach_um,
        canvas.y1 * mpp + reach_um,
    )
    structures = structure_table(*area_um, style.world)
    objects, keys = find_objects(area_um, style.chances, style.kinds, *structures, style.world)
    labels, depth, areas = own_pixels(objects, canvas.x0, canvas.y0, canvas.width, canvas.height, mpp)
    return _Scene(objects, keys, areas, labels, depth, structures, margin_px)


def _truth(scene: _Scene, box: Box, mpp: float) -> tuple[NDArray[np.int32], SyntheticCells]:
    """Labels 1..n of the window's nuclei, without red cells, pigment and debris."""
    m = scene.margin_px
    window = scene.labels[m : m + box.height, m : m + box.width]
    seen = np.zeros(len(scene.objects) + 1, bool)
    seen[np.unique(window)] = True
    seen[0] = False
    seen[1:] &= scene.objects[:, KIND] < NUM_TYPES
    rows = np.flatnonzero(seen) - 1
    renumber = np.zeros(len(scene.objects) + 1, np.int32)
    renumber[rows + 1] = np.arange(1, len(rows) + 1)
    objects = scene.objects[rows]
    cells = SyntheticCells(
        keys=scene.keys[rows],
        types=objects[:, KIND].astype(np.int8),
        centers_px=objects[:, [X, Y]] / mpp,
        areas_px=scene.areas[rows],
    )
    return renumber[window], cells


def _paint(scene: _Scene, canvas: Box, box: Box, mpp: float, style: TissueStyle) -> NDArray[np.uint8]:
    world, step = style.world, max(1, round(_COARSE_UM / mpp))
    window = (canvas.x0, canvas.y0, canvas.width, canvas.height)
    fields = coarse_fields(*window, mpp, step, world)
    stains, compartments = paint_ground(*window, mpp, step, fields, *scene.structures, style.kinds, world)
    inset = scene.margin_px - (box.x0 - canvas.x0)
    labels = np.ascontiguousarray(scene.labels[inset : inset + canvas.height, inset : inset + canvas.width])
    origin = (canvas.x0, canvas.y0, mpp)
    paint_cytoplasm(stains, compartments, scene.objects, scene.areas, *origin, style.kinds, world.seed)
    paint_nuclei(stains, labels, scene.objects, *origin, style.kinds, world.seed)
    paint_folds(stains, compartments, fields, *origin, step, world)
    paint_grain(stains, *origin, style.grain, world.seed + np.uint64(341))
    light = optics.transmit(stains, style.stain_vectors)
    optics.dust(light, compartments, *origin, world.seed + np.uint64(401))
    light = optics.blurred(light, _kernel(style, mpp), box.x0 - canvas.x0)
    gamma_table = np.linspace(0.0, 1.0, 1024) ** style.gamma
    return optics.to_bytes(
        light, style.white_rgb, gamma_table, style.noise, box.x0, box.y0, mpp, world.seed + np.uint64(402)
    )


def _kernel(style: TissueStyle, mpp: float) -> NDArray[np.float32]:
    # A pixel's own footprint blurs too, by 0.29 of its side.
    return optics.sharpened_kernel(math.hypot(style.blur_um / mpp, 0.29), style.sharpening)


def render_region(seed: int, box: Box, *, mpp: float = 0.5, style: TissueStyle | None = None) -> SyntheticRegion:
    """Picture and truth of a window.

    Args:
        seed: names the slide.
        box: window in px at `mpp`; any place, also negative.
        mpp: um per px, both ways.
        style: the slide's look; drawn from the seed when None.
    """
    style = draw_style(seed) if style is None else style
    scene = _build_scene(box, mpp, style)
    labels, cells = _truth(scene, box, mpp)
    canvas = box.grown(len(_kernel(style, mpp)) // 2)
    return SyntheticRegion(image=_paint(scene, canvas, box, mpp, style), labels=labels, cells=cells)


def render_labels(seed: int, box: Box, *, mpp: float = 0.5, style: TissueStyle | None = None) -> SyntheticRegion:
    """Truth of a window without its picture (an empty image): several times quicker."""
    style = draw_style(seed) if style is None else style
    labels, cells = _truth(_build_scene(box, mpp, style), box, mpp)
    return SyntheticRegion(image=np.zeros((0, 0, 3), np.uint8), labels=labels, cells=cells)
