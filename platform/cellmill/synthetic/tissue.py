"""Synthetic H&E with its exact truth: any window of a slide that has no end.

In: a seed, a `Box` in px at `mpp`. Out: a `SyntheticRegion` (image, labels, cells). A pure function of seed, style and
absolute position: windows of one slide agree bit for bit where they overlap, so that a slide can be streamed to disk
and a training loader can draw from anywhere.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellmill.grid import Box
from cellmill.synthetic import marks as mark
from cellmill.synthetic import optics
from cellmill.synthetic.architecture import World, structure_table
from cellmill.synthetic.cell_types import NUM_TYPES
from cellmill.synthetic.paint import coarse_fields, paint_ground
from cellmill.synthetic.paint_cells import (
    CYTOPLASM_REACH_UM,
    paint_cytoplasm,
    paint_folds,
    paint_grain,
    paint_nuclei,
)
from cellmill.synthetic.placement import CANDIDATE_MARGIN_UM, KIND, MAX_RADIUS_UM, X, Y, find_objects
from cellmill.synthetic.shapes import COUNT, MAX_X, MAX_Y, MIN_X, MIN_Y, SUM_X, SUM_Y, own_pixels
from cellmill.synthetic.style import TissueStyle, draw_style, layout_seed

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
    centroids_px: NDArray[np.float64]
    """(n, 2) as (x, y), absolute px; mean of the pixels' centres, pixel (0, 0) having its centre at (0.5, 0.5)."""
    areas_px: NDArray[np.int64]
    """Of the whole nucleus, also outside the window; as are centroids and boxes."""
    boxes_px: NDArray[np.int64]
    """(n, 4) as (x0, y0, x1, y1), half-open."""


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
    """Objects of a painted window (`canvas`) and who owns which pixel, settled for everything that shows in it."""

    canvas: Box
    margin_px: int
    """How far `labels` reaches beyond the canvas."""
    objects: NDArray[np.float64]
    keys: NDArray[np.int64]
    stats: NDArray[np.int64]
    labels: NDArray[np.int32]
    structures: tuple[NDArray[np.float64], int, int]

    def window(self, box: Box) -> NDArray[np.int32]:
        """Labels (object row + 1) of a box inside the canvas."""
        x, y = box.x0 - self.canvas.x0 + self.margin_px, box.y0 - self.canvas.y0 + self.margin_px
        return np.ascontiguousarray(self.labels[y : y + box.height, x : x + box.width])


def _build_scene(canvas: Box, mpp: float, style: TissueStyle, world: World) -> _Scene:
    margin_px = math.ceil(_SETTLED_UM / mpp)
    settled = canvas.grown(margin_px)
    # Nuclei that reach in from outside, and what decides whether those exist.
    reach_um = MAX_RADIUS_UM + CANDIDATE_MARGIN_UM
    area_um = (
        settled.x0 * mpp - reach_um,
        settled.y0 * mpp - reach_um,
        settled.x1 * mpp + reach_um,
        settled.y1 * mpp + reach_um,
    )
    table, column, row = structure_table(*area_um, world)
    structures = (table, int(column), int(row))
    objects, keys = find_objects(area_um, chances=style.chances, kinds=style.kinds, structures=structures, world=world)
    labels, stats = own_pixels(objects, settled.x0, settled.y0, settled.width, settled.height, mpp)
    return _Scene(
        canvas=canvas,
        margin_px=margin_px,
        objects=objects,
        keys=keys,
        stats=stats,
        labels=labels,
        structures=structures,
    )


def _truth(scene: _Scene, box: Box, mpp: float) -> tuple[NDArray[np.int32], SyntheticCells]:
    """Labels 1..n of the window's nuclei, without red cells, pigment and debris."""
    window = scene.window(box)
    seen = np.zeros(len(scene.objects) + 1, bool)
    seen[window.ravel()] = True
    seen[0] = False
    seen[1:] &= scene.objects[:, KIND] < NUM_TYPES
    rows = np.flatnonzero(seen) - 1
    renumber = np.zeros(len(scene.objects) + 1, np.int32)
    renumber[rows + 1] = np.arange(1, len(rows) + 1)
    objects, stats = scene.objects[rows], scene.stats[rows]
    cells = SyntheticCells(
        keys=scene.keys[rows],
        types=objects[:, KIND].astype(np.int8),
        centers_px=objects[:, [X, Y]] / mpp,
        centroids_px=stats[:, [SUM_X, SUM_Y]] / stats[:, [COUNT]] + 0.5,
        areas_px=stats[:, COUNT],
        boxes_px=stats[:, [MIN_X, MIN_Y, MAX_X, MAX_Y]] + np.array([0, 0, 1, 1]),
    )
    return renumber[window], cells


def _stain(
    scene: _Scene, mpp: float, style: TissueStyle, world: World
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Stain amounts (3, H, W) and compartments (H, W) of the canvas."""
    canvas, step = scene.canvas, max(1, round(_COARSE_UM / mpp))
    window = (canvas.x0, canvas.y0, canvas.width, canvas.height)
    origin = (canvas.x0, canvas.y0, mpp)
    fields = coarse_fields(*window, mpp, step, world)
    stains, compartments = paint_ground(*window, mpp, step, fields, *scene.structures, style.kinds, world)
    areas = np.ascontiguousarray(scene.stats[:, COUNT])
    paint_cytoplasm(stains, compartments, scene.objects, areas, *origin, style.kinds, world.seed)
    paint_nuclei(stains, scene.window(canvas), scene.objects, *origin, style.kinds, world.seed)
    paint_folds(stains, compartments, fields, *origin, step, world)
    paint_grain(stains, *origin, style.grain, world.seed + np.uint64(341))
    return stains, compartments


def _image(scene: _Scene, box: Box, mpp: float, style: TissueStyle, world: World) -> NDArray[np.uint8]:
    canvas, margin_px = scene.canvas, box.x0 - scene.canvas.x0
    stains, compartments = _stain(scene, mpp, style, world)
    light = optics.transmit(stains, style.stain_vectors)
    optics.dust(light, compartments, canvas.x0, canvas.y0, mpp, world.seed + np.uint64(401))
    pen, _ = _marks_near(style, canvas, mpp)
    _, blur = _marks_near(style, box, mpp)  # of the box, as in `_canvas`, whose margin is made for it
    if pen is not None:
        stroke = np.array([pen.x0_um, pen.y0_um, pen.x1_um, pen.y1_um, pen.half_width_um, *pen.ink])
        mark.ink(light, canvas.x0, canvas.y0, mpp, stroke, world.seed + np.uint64(411))
    seen = optics.blurred(light, _kernel(style, mpp), margin_px)
    if blur is not None:
        soft = optics.blurred(light, optics.gaussian_kernel(blur.sigma_um / mpp), margin_px)
        mark.blend_blur(seen, soft, box.x0, box.y0, mpp, blur.x_um, blur.y_um, blur.radius_um)
    gamma_table = np.linspace(0.0, 1.0, 1024) ** style.gamma
    return optics.to_bytes(seen, style.white_rgb, gamma_table, style.noise, box.x0, box.y0, world.seed)


def _kernel(style: TissueStyle, mpp: float) -> NDArray[np.float32]:
    # A pixel's own footprint blurs too, by 0.29 of its side.
    return optics.sharpened_kernel(math.hypot(style.blur_um / mpp, 0.29), style.sharpening)


def _marks_near(style: TissueStyle, box: Box, mpp: float) -> tuple[mark.PenStroke | None, mark.BlurPatch | None]:
    """The marks that can touch a box; most windows have none and are spared the work."""
    if style.marks is None:
        return None, None
    x, y = np.array([0.5 * (box.x0 + box.x1) * mpp]), np.array([0.5 * (box.y0 + box.y1) * mpp])
    reach_um = 0.5 * math.hypot(box.width, box.height) * mpp + 1.0
    pen, blur = style.marks.pen, style.marks.blur
    return (
        pen if pen is not None and pen.covers(x, y, margin_um=reach_um)[0] else None,
        blur if blur is not None and blur.covers(x, y, margin_um=reach_um)[0] else None,
    )


def _canvas(box: Box, mpp: float, style: TissueStyle) -> Box:
    """The box grown by what its pixels borrow from their neighbours."""
    radius_px = len(_kernel(style, mpp)) // 2
    _, blur = _marks_near(style, box, mpp)
    if blur is not None:
        radius_px = max(radius_px, len(optics.gaussian_kernel(blur.sigma_um / mpp)) // 2)
    return box.grown(radius_px)


def render_region(seed: int, box: Box, *, mpp: float = 0.5, style: TissueStyle | None = None) -> SyntheticRegion:
    """Picture and truth of a window.

    Args:
        seed: names the slide: what lies where.
        box: window in px at `mpp`; any place, also negative.
        mpp: um per px, both ways.
        style: the slide's look; drawn from the seed when None.
    """
    style = draw_style(seed) if style is None else style
    world = style.world._replace(seed=layout_seed(seed))
    scene = _build_scene(_canvas(box, mpp, style), mpp, style, world)
    labels, cells = _truth(scene, box, mpp)
    return SyntheticRegion(image=_image(scene, box, mpp, style, world), labels=labels, cells=cells)


def render_labels(seed: int, box: Box, *, mpp: float = 0.5, style: TissueStyle | None = None) -> SyntheticRegion:
    """Truth of a window without its picture (an image without pixels): several times quicker."""
    style = draw_style(seed) if style is None else style
    world = style.world._replace(seed=layout_seed(seed))
    labels, cells = _truth(_build_scene(box, mpp, style, world), box, mpp)
    return SyntheticRegion(image=np.zeros((0, 0, 3), np.uint8), labels=labels, cells=cells)
