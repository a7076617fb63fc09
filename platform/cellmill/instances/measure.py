"""Measures: from the cells of a window to rows of the cell table, and to the mask of its core.

Consumes `Instances`, the maps they come from and the window's pixels; produces a table of `cell_schema`. One row
is one cell whose anchor lies in the core. All sums over pixels are sums of integers, relative to the cell's anchor, and
all floats are made from them one by one, so a row's bytes do not depend on the window.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.grid import Box, SlideGrid
from cellmill.instances.decoder import Instances
from cellmill.instances.maps import PROB_SCALE, ClassMaps, ClassSums
from cellmill.instances.measure_kernels import (
    MOMENTS,
    OD_SUMS,
    PROB_SUMS,
    doubled_hull_areas,
    paint,
    sum_cells,
    touches,
)
from cellmill.instances.outlines import Outlines, trace_outlines
from cellmill.instances.stain import OD_LOOKUP, OD_UNITS, stain_densities
from cellmill_schemas.cells import ANCHOR_BITS, DECIMALS, CellKey, cell_schema, make_cell_id
from cellmill_schemas.ontology import Ontology

__all__ = ["SlideKey", "measure_cells", "paint_core"]

_OUTSIDE = "A cell lies outside the slide of {grid.width_px} x {grid.height_px} px; maps must be background there."


@dataclass(frozen=True)
class SlideKey:
    """The slide a table is of: its name, and the hash that makes its cells' ids."""

    slide_id: str
    slide_hash: int


def measure_cells(
    instances: Instances,
    maps: ClassMaps | ClassSums,
    pixels: npt.NDArray[np.uint8],
    *,
    core: Box,
    grid: SlideGrid,
    ontology: Ontology,
    slide: SlideKey,
    analysed: npt.NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Rows of the cells owned by `core`, in (y, x) order of their anchors.

    Args:
        instances: cells of the window.
        maps: what they were decoded from, or what that says of each of them in sum.
        pixels: (H, W, 3) RGB of the same window.
        core: absolute; cells with their anchor in it are measured.
        grid: of the slide.
        ontology: class `i` is channel `i + 1` of the maps.
        slide: whose cells these are.
        analysed: (H, W), false where the tile was not analysed; all of it was when left out.

    Returns:
        A table of `cell_schema(ontology)`.
    """
    _check_window(instances, maps, pixels, ontology)
    numbers = np.flatnonzero(instances.owned_by(core)) + 1  # labels of the owned cells
    anchors = instances.anchors_px[numbers - 1]  # (n, 2) x, y
    anchor_index = _anchor_indices(anchors, grid)
    rows = np.full(len(instances) + 1, -1, np.int32)
    rows[numbers] = np.arange(len(numbers), dtype=np.int32)
    labels = instances.labels
    # compiled once for contiguous arrays
    prob = np.empty((0, *labels.shape), np.uint8) if isinstance(maps, ClassSums) else np.ascontiguousarray(maps.prob)
    pixels = np.ascontiguousarray(pixels)
    sums, boxes = sum_cells(labels, rows, anchors - np.array(instances.origin_px), prob, pixels, OD_LOOKUP)
    if isinstance(maps, ClassSums):
        sums = np.concatenate([sums, maps.sums[numbers - 1]], axis=1)
    outlines = trace_outlines(
        labels,
        numbers=numbers,
        boxes=boxes,
        num_pixels=np.ascontiguousarray(sums[:, 0]),
        origin_px=instances.origin_px,
        scale=(grid.scale_x, grid.scale_y),
    )
    touching = _at_slide_edge(boxes, instances.box, grid)
    if analysed is not None:
        touching |= touches(labels, numbers, boxes, np.ascontiguousarray(analysed))
    hull_px = doubled_hull_areas(labels, numbers, boxes) / 2

    values = {
        **_class_columns(sums, ontology),
        **_place_columns(sums, anchors, grid),
        **_shape_columns(sums, outlines, hull_px, grid),
        **_stain_columns(sums),
    }
    columns: dict[str, pa.Array] = {
        name: pa.array(np.round(column, DECIMALS[name]).astype(np.float32).ravel()) for name, column in values.items()
    }
    schema = cell_schema(ontology)
    columns["type_prob"] = pa.FixedSizeListArray.from_arrays(columns["type_prob"], type=schema.field("type_prob").type)
    columns["slide_id"] = pa.DictionaryArray.from_arrays(
        np.zeros(len(numbers), np.int32), pa.array([slide.slide_id], pa.string())
    )
    columns["cell_type"] = pa.DictionaryArray.from_arrays(
        _votes(sums).argmax(axis=1).astype(np.int8), pa.array(ontology.names, pa.string())
    )
    columns["cell_id"] = pa.array(_cell_ids(anchor_index, slide.slide_hash))
    columns["mask_id"] = pa.array((anchor_index + 1).astype(np.uint64))
    columns["touches_border"] = pa.array(touching)
    columns["exceeds_reach"] = pa.array(instances.exceeds_reach[numbers - 1])
    columns["geometry"] = outlines.to_geometry()
    columns["bbox"] = outlines.to_bbox()
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def paint_core(instances: Instances, core: Box, grid: SlideGrid) -> npt.NDArray[np.unsignedinteger]:
    """Mask of `core` (H, W): 1 + anchor index of every cell seen there, owned or not; 0 is background.

    uint32, or uint64 where the slide has more pixels than that can tell apart. `core` lies within the window.
    """
    box = instances.box
    if box.clipped(core) != core:
        raise ValueError(f"The core {core} reaches outside the window {box}.")
    labels = instances.labels[core.y0 - box.y0 : core.y1 - box.y0, core.x0 - box.x0 : core.x1 - box.x0]
    ids = np.zeros(len(instances) + 1, np.uint64 if grid.needs_64_bit_masks else np.uint32)
    inside = _inside(instances.anchors_px, grid)
    ids[1:][inside] = 1 + _anchor_indices(instances.anchors_px[inside], grid)
    painted = np.empty(labels.shape, ids.dtype)
    if not paint(labels, ids, painted):
        raise ValueError(_OUTSIDE.format(grid=grid))
    return painted


def _check_window(
    instances: Instances, maps: ClassMaps | ClassSums, pixels: npt.NDArray[np.uint8], ontology: Ontology
) -> None:
    if instances.box != maps.box or pixels.shape != (*instances.labels.shape, 3):
        raise ValueError(
            f"Instances, maps and pixels must be of one window, got {instances.box}, {maps.box} and pixels of shape "
            f"{pixels.shape}."
        )
    num_channels = maps.sums.shape[1] if isinstance(maps, ClassSums) else maps.prob.shape[0]
    if num_channels != len(ontology) + 1:
        raise ValueError(
            f"Ontology {ontology.name!r} has {len(ontology)} classes, so prob needs {len(ontology) + 1} channels "
            f"with background; got {num_channels}."
        )


def _anchor_indices(anchors: npt.NDArray[np.int64], grid: SlideGrid) -> npt.NDArray[np.int64]:
    if not _inside(anchors, grid).all():
        raise ValueError(_OUTSIDE.format(grid=grid))
    return anchors[:, 1] * grid.width_px + anchors[:, 0]


def _inside(anchors: npt.NDArray[np.int64], grid: SlideGrid) -> npt.NDArray[np.bool_]:
    x, y = anchors[:, 0], anchors[:, 1]
    return (x >= 0) & (x < grid.width_px) & (y >= 0) & (y < grid.height_px)


def _cell_ids(anchor_index: npt.NDArray[np.int64], slide_hash: int) -> npt.NDArray[np.int64]:
    first = make_cell_id(CellKey(slide_hash=slide_hash, anchor_index=int(anchor_index.max(initial=0))))
    return anchor_index | (first >> ANCHOR_BITS << ANCHOR_BITS)


def _at_slide_edge(boxes: npt.NDArray[np.int64], window: Box, grid: SlideGrid) -> npt.NDArray[np.bool_]:
    y0, x0, y1, x1 = boxes.T + np.array([[window.y0], [window.x0], [window.y0], [window.x0]])
    return (x0 <= 0) | (y0 <= 0) | (x1 >= grid.width_px - 1) | (y1 >= grid.height_px - 1)


def _votes(sums: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Class votes (n, C); a cell without any (possible for a few pixels just above threshold) votes for all alike."""
    votes = sums[:, PROB_SUMS][:, 1:]
    return np.where(votes.sum(axis=1, keepdims=True) == 0, 1, votes)


def _class_columns(sums: npt.NDArray[np.int64], ontology: Ontology) -> dict[str, npt.NDArray[np.float64]]:
    votes = _votes(sums)
    type_prob = votes / votes.sum(axis=1, keepdims=True)  # (n, C)
    background = sums[:, PROB_SUMS][:, 0] / (PROB_SCALE * sums[:, 0])
    return {"type_prob": type_prob, "confidence": type_prob.max(axis=1), "detection_prob": 1 - background}


def _place_columns(
    sums: npt.NDArray[np.int64], anchors: npt.NDArray[np.int64], grid: SlideGrid
) -> dict[str, npt.NDArray[np.float64]]:
    num, sum_x, sum_y, *_ = sums[:, MOMENTS].T
    x_px, y_px = anchors[:, 0] + sum_x / num + 0.5, anchors[:, 1] + sum_y / num + 0.5  # pixel centres
    return {
        "x_um": x_px * grid.target_mpp,
        "y_um": y_px * grid.target_mpp,
        "x_level0_px": x_px * grid.scale_x,
        "y_level0_px": y_px * grid.scale_y,
    }


def _shape_columns(
    sums: npt.NDArray[np.int64], outlines: Outlines, hull_px: npt.NDArray[np.float64], grid: SlideGrid
) -> dict[str, npt.NDArray[np.float64]]:
    """Area, perimeter, the ellipse of equal second moments (pixels being squares, hence 1/12), solidity."""
    num, sum_x, sum_y, sum_xx, sum_xy, sum_yy = sums[:, MOMENTS].T
    var_x = (num * sum_xx - sum_x * sum_x) / (num * num) + 1 / 12
    var_y = (num * sum_yy - sum_y * sum_y) / (num * num) + 1 / 12
    cov = (num * sum_xy - sum_x * sum_y) / (num * num)
    mean, half = (var_x + var_y) / 2, (var_x - var_y) / 2
    spread = np.sqrt(half * half + cov * cov)
    major, minor = mean + spread, np.maximum(mean - spread, 0)
    mpp = grid.target_mpp
    return {
        "area_um2": num * (mpp * mpp),
        "perimeter_um": outlines.perimeter_px * mpp,
        "major_axis_um": 4 * mpp * np.sqrt(major),
        "minor_axis_um": 4 * mpp * np.sqrt(minor),
        "eccentricity": np.sqrt(1 - minor / major),
        "solidity": num / hull_px,
    }


def _stain_columns(sums: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    density = stain_densities(sums[:, OD_SUMS] / (sums[:, :1] * OD_UNITS))  # (n, 2)
    return {"hematoxylin_od_mean": density[:, 0], "eosin_od_mean": density[:, 1]}
