"""Outlines: one polygon a cell, in whole level-0 px, few vertices and the mask's area.

Consumes cells of `Instances` (4-connected, no holes: the boundary is one simple ring); produces GeoArrow polygons. The
ring runs through the middles of the boundary's pixel edges, is simplified by collapsing edges so that its area stays
(Kronenfeld et al. 2020), and is rounded. Where that makes edges cross, the ring is simplified less, or follows the
pixels' edges, or is the bounding box: always a single valid polygon. It does not depend on the window.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill.instances.outline_kernels import outline_cells
from cellmill_schemas.cells import BBOX_TYPE, GEOMETRY_TYPE

__all__ = ["Outlines", "trace_outlines"]

_TOLERANCE_PX2, _TOLERANCE_SHARE = 0.5, 0.008
"""What one step of the simplification may displace. Measured on 2,049 nuclei of 8 to 13 px radius: 10.2 vertices a ring
and IoU with the mask 0.94 at 1 level-0 px a px, 0.95 at 2; area right within 0.5 %."""

_BOUNDARY_LENGTH = 0.9481
"""Length of a straight line over that of its chain of half-pixel steps, on average over all directions."""


@dataclass(frozen=True)
class Outlines:
    """Polygons of n cells."""

    vertices_level0_px: npt.NDArray[np.float64]  # (m, 2) as x, y; rings are closed and turn from x to y
    starts: npt.NDArray[np.int64]  # (n + 1,), ring k is vertices[starts[k]:starts[k + 1]]
    perimeter_px: npt.NDArray[np.float64]  # (n,), of the mask

    def __len__(self) -> int:
        return len(self.starts) - 1

    def to_geometry(self) -> pa.Array:
        """The polygons as `GEOMETRY_TYPE`."""
        points = pa.StructArray.from_arrays(
            [
                pa.array(np.ascontiguousarray(self.vertices_level0_px[:, 0])),
                pa.array(np.ascontiguousarray(self.vertices_level0_px[:, 1])),
            ],
            fields=list(GEOMETRY_TYPE.value_type.value_type),
        )
        rings = pa.ListArray.from_arrays(pa.array(self.starts.astype(np.int32)), points, type=GEOMETRY_TYPE.value_type)
        return pa.ListArray.from_arrays(pa.array(np.arange(len(self) + 1, dtype=np.int32)), rings, type=GEOMETRY_TYPE)

    def to_bbox(self) -> pa.Array:
        """The polygons' bounding boxes as `BBOX_TYPE`."""
        if len(self) == 0:
            return pa.array([], BBOX_TYPE)
        low = np.minimum.reduceat(self.vertices_level0_px, self.starts[:-1], axis=0)
        high = np.maximum.reduceat(self.vertices_level0_px, self.starts[:-1], axis=0)
        # whole numbers below 2^24 are exact in float32; beyond that the box is widened, never narrowed
        columns = [
            *(_float32_towards(low[:, axis], -np.inf) for axis in (0, 1)),
            *(_float32_towards(high[:, axis], np.inf) for axis in (0, 1)),
        ]
        return pa.StructArray.from_arrays([pa.array(column) for column in columns], fields=list(BBOX_TYPE))


def trace_outlines(
    labels: npt.NDArray[np.int32],
    *,
    numbers: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int64],
    num_pixels: npt.NDArray[np.int64],
    origin_px: tuple[int, int],
    scale: tuple[float, float],
) -> Outlines:
    """Outlines of some cells of a window.

    Args:
        labels: (H, W) as in `Instances`.
        numbers: (n,) labels of the wanted cells.
        boxes: (n, 4) y0, x0, y1, x1 inclusive, within the window.
        num_pixels: (n,) of each cell.
        origin_px: absolute (x, y) of the window.
        scale: level-0 px per px in x and y.
    """
    vertices, starts, steps = outline_cells(
        labels, boxes, numbers, num_pixels, origin_px, scale, (_TOLERANCE_PX2, _TOLERANCE_SHARE)
    )
    perimeter_px = _BOUNDARY_LENGTH * (steps[:, 0] + steps[:, 1] * np.sqrt(0.5))
    return Outlines(vertices_level0_px=vertices, starts=starts, perimeter_px=perimeter_px)


def _float32_towards(values: npt.NDArray[np.float64], side: float) -> npt.NDArray[np.float32]:
    near = values.astype(np.float32)
    wrong = near > values if side < 0 else near < values
    return np.where(wrong, np.nextafter(near, np.float32(side)), near)
