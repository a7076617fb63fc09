"""Made-up cells for tests and benchmarks of the store: any window of any slide, without making the whole.

In: a grid and a box on it. Out: a table of `cell_schema` of the cells anchored in the box, and the box's mask. Cells
sit on a jittered lattice and every value is a hash of the lattice position, so that a window's cells do not depend on
the window, as those of a real decode.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from cellmill.grid import Box, SlideGrid
from cellmill.store.shards import LabelPixels, mask_dtype
from cellmill_schemas.cells import ANCHOR_BITS, BBOX_TYPE, DECIMALS, GEOMETRY_TYPE, cell_schema
from cellmill_schemas.ontology import Ontology, get_ontology

__all__ = ["LatticeTissue"]

_SLIDE_HASH = 4711
_MAX_OFFSET_PX = 3


@dataclass(frozen=True)
class LatticeTissue:
    """A slide covered with elliptic cells, one in each square of `spacing_px` that lies inside `tissue`."""

    slide_id: str
    grid: SlideGrid
    tissue: Box
    spacing_px: int = 24
    ontology: Ontology = get_ontology("refined7")  # noqa: RUF009 - immutable
    slide_mpp: float = 0.25

    def cells_in(self, box: Box) -> pa.Table:
        """The cells anchored in `box`."""
        anchor, hashed = self._anchors(box)
        rng_values = _uniform(hashed)  # (n, 32) in [0, 1)
        x, y = anchor.T
        major, minor, angle = self._shape(rng_values)
        centre_x = (x + 0.5) * self.grid.scale_x
        centre_y = (y + 0.5) * self.grid.scale_y
        size = np.stack([major, minor], axis=1) * self.grid.scale_x
        geometry, bbox = _polygons(np.stack([centre_x, centre_y], axis=1), size, angle, rng_values[:, 10])
        probabilities, kind = self._types(rng_values)
        mpp = self.grid.target_mpp
        mask_id = 1 + y * self.grid.width_px + x
        floats: dict[str, npt.NDArray[np.float64]] = {
            "x_um": centre_x * self.slide_mpp,
            "y_um": centre_y * self.slide_mpp,
            "x_level0_px": centre_x,
            "y_level0_px": centre_y,
            "confidence": probabilities.max(axis=1, initial=0),
            "detection_prob": 0.7 + 0.3 * rng_values[:, 3],
            "area_um2": np.pi * major * minor * mpp**2,
            "perimeter_um": np.pi * (major + minor) * mpp,
            "major_axis_um": 2 * major * mpp,
            "minor_axis_um": 2 * minor * mpp,
            "eccentricity": np.sqrt(1 - (minor / major) ** 2),
            "solidity": 0.9 + 0.1 * rng_values[:, 4],
            "hematoxylin_od_mean": 0.5 + 0.6 * rng_values[:, 5],
            "eosin_od_mean": 0.2 + 0.3 * rng_values[:, 6],
        }
        schema = cell_schema(self.ontology)
        columns: dict[str, pa.Array] = {
            name: pa.array(np.round(values, DECIMALS[name]).astype(np.float32)) for name, values in floats.items()
        }
        flat = pa.array(np.round(probabilities, DECIMALS["type_prob"]).astype(np.float32).reshape(-1))
        columns |= {
            "slide_id": pa.DictionaryArray.from_arrays(pa.array(np.zeros(x.size, np.int32)), pa.array([self.slide_id])),
            "cell_id": pa.array((_SLIDE_HASH << ANCHOR_BITS) | (mask_id - 1)),
            "mask_id": pa.array(mask_id.astype(np.uint64)),
            "cell_type": pa.DictionaryArray.from_arrays(pa.array(kind), pa.array(self.ontology.names)),
            "type_prob": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("type_prob").type),
            "touches_border": pa.array(rng_values[:, 7] < 0.01),
            "exceeds_reach": pa.array(rng_values[:, 8] < 0.001),
            "geometry": geometry,
            "bbox": bbox,
        }
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)

    def mask_in(self, box: Box) -> LabelPixels:
        """(box.height, box.width) mask ids of every cell seen in `box`, wherever it is anchored."""
        anchor, hashed = self._anchors(box.grown(2 * self.spacing_px))
        major, minor, angle = self._shape(_uniform(hashed))
        mask = np.zeros((box.height, box.width), mask_dtype(self.grid))
        ids = 1 + anchor[:, 1] * self.grid.width_px + anchor[:, 0]
        _paint(mask, anchor, ids, np.stack([major, minor, angle], axis=1), (box.x0, box.y0))
        inside = box.clipped(self.grid.box)
        mask[inside.y1 - box.y0 :], mask[:, inside.x1 - box.x0 :] = 0, 0
        return mask

    def _anchors(self, box: Box) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Anchors (n, 2) as (x, y) in raster order of the lattice, and a hash of each lattice position."""
        step = self.spacing_px
        columns, rows = np.meshgrid(
            np.arange(box.x0 // step - 1, box.x1 // step + 2), np.arange(box.y0 // step - 1, box.y1 // step + 2)
        )
        hashed = _hash(columns.reshape(-1).astype(np.uint64) * np.uint64(1 << 32) + rows.reshape(-1).astype(np.uint64))
        offset = hashed[:, None] >> np.array([8, 24], np.uint64)
        offset = (offset % np.uint64(2 * _MAX_OFFSET_PX + 1)).astype(np.int64) - _MAX_OFFSET_PX
        anchor = np.stack([columns.reshape(-1), rows.reshape(-1)], axis=1) * step + step // 2 + offset
        area = box.clipped(self.tissue).clipped(self.grid.box)
        low, high = np.array([area.x0, area.y0]), np.array([area.x1, area.y1])
        kept = ((anchor >= low) & (anchor < high)).all(axis=1)
        return anchor[kept], hashed[kept]

    def _shape(self, values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
        # Cells of neighbouring squares may not meet, however they are jittered.
        major = (self.spacing_px / 2 - _MAX_OFFSET_PX) * (0.55 + 0.4 * values[:, 0])
        return major, major * (0.6 + 0.39 * values[:, 1]), np.pi * values[:, 2]

    def _types(self, values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]:
        weights = values[:, 12 : 12 + len(self.ontology)] ** 8  # most of the mass on one class, as a network's
        probabilities = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        return probabilities, probabilities.argmax(axis=1).astype(np.int8)


def _polygons(
    centre: npt.NDArray[np.float64],
    size: npt.NDArray[np.float64],
    angle: npt.NDArray[np.float64],
    chance: npt.NDArray[np.float64],
) -> tuple[pa.Array, pa.Array]:
    """Closed rings of 11 to 18 vertices, about 14, and their boxes."""
    num_vertices = 11 + (chance * 8).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(num_vertices + 1)])
    cell = np.repeat(np.arange(angle.size), num_vertices + 1)
    turn = 2 * np.pi * ((np.arange(offsets[-1]) - offsets[cell]) % num_vertices[cell]) / num_vertices[cell]
    wobble = 1 + 0.08 * np.sin(3 * turn + 7 * angle[cell])
    along, across = size[cell, 0] * np.cos(turn) * wobble, size[cell, 1] * np.sin(turn) * wobble
    cos, sin = np.cos(angle[cell]), np.sin(angle[cell])
    x = np.round(centre[cell, 0] + along * cos - across * sin) + 0.0
    y = np.round(centre[cell, 1] + along * sin + across * cos) + 0.0
    vertices = pa.StructArray.from_arrays([pa.array(x), pa.array(y)], fields=list(GEOMETRY_TYPE.value_type.value_type))
    rings = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), vertices, type=GEOMETRY_TYPE.value_type)
    one_each = pa.array(np.arange(angle.size + 1, dtype=np.int32))
    starts = offsets[:-1]
    sides = [
        function.reduceat(values, starts).astype(np.float32) if starts.size else np.empty(0, np.float32)
        for function, values in ((np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y))
    ]
    bbox = pa.StructArray.from_arrays([pa.array(side) for side in sides], fields=list(BBOX_TYPE))
    return pa.ListArray.from_arrays(one_each, rings, type=GEOMETRY_TYPE), bbox


def _hash(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _uniform(hashed: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """32 numbers in [0, 1) for each hash: (n, 32)."""
    salted = hashed[:, None] + np.arange(1, 33, dtype=np.uint64)[None] * np.uint64(0xD1B54A32D192ED03)
    return (_hash(salted) >> np.uint64(11)).astype(np.float64) / (1 << 53)


@njit(cache=True, nogil=True)
def _paint(
    mask: LabelPixels,
    anchor: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    shape: npt.NDArray[np.float64],
    corner: tuple[int, int],
) -> None:
    height, width = mask.shape
    for n in range(anchor.shape[0]):
        major, minor, angle = shape[n]
        reach = int(major) + 1
        x, y = anchor[n, 0] - corner[0], anchor[n, 1] - corner[1]
        for v in range(max(0, y - reach), min(height, y + reach + 1)):
            for u in range(max(0, x - reach), min(width, x + reach + 1)):
                along = (u - x) * np.cos(angle) + (v - y) * np.sin(angle)
                across = (v - y) * np.cos(angle) - (u - x) * np.sin(angle)
                if (along / major) ** 2 + (across / minor) ** 2 < 1:
                    mask[v, u] = ids[n]
