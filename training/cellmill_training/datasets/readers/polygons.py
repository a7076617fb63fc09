"""Polygons drawn by people as instances: one label a polygon, the smaller on top where two overlap.

QuPath and Aperio give vertices in continuous px with (0, 0) the image's corner, so that pixel (x, y) has its centre at
(x + 0.5, y + 0.5); a pixel belongs to the polygon that holds its centre. PUMA's outlines were traced through the
centres of border pixels (`vertices="centres"`): (x, y) is the centre of pixel (x, y), and the border itself is inside.
"""

import logging
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import MultiPolygon, Polygon

__all__ = ["Shape", "Vertices", "paint_polygons", "polygon_mask", "repaired"]

logger = logging.getLogger(__name__)

Shape = Polygon | MultiPolygon
Vertices = Literal["corners", "centres"]


def repaired(shape: Shape) -> Shape | None:
    """The shape made valid, as the area its outline encloses; None where that is nothing."""
    valid = shape if shape.is_valid else shapely.make_valid(shape, method="structure", keep_collapsed=False)
    return valid if isinstance(valid, Polygon | MultiPolygon) and valid.area > 0 else None


def polygon_mask(
    shape: Shape, size: tuple[int, int], *, vertices: Vertices = "corners"
) -> tuple[npt.NDArray[np.bool_], tuple[int, int]]:
    """Pixels of a polygon within an image.

    Args:
        shape: valid; holes stay holes.
        size: of the image, (H, W).
        vertices: what vertex coordinates mean, see above.

    Returns:
        Mask (h, w) of the polygon's box inside the image, which may be empty, and the box's corner (y, x).
    """
    x0, y0, x1, y1 = shape.bounds
    top, left = max(0, int(np.floor(y0))), max(0, int(np.floor(x0)))
    bottom, right = min(size[0], int(np.ceil(y1)) + 1), min(size[1], int(np.ceil(x1)) + 1)
    if bottom <= top or right <= left:
        return np.zeros((0, 0), np.bool_), (top, left)
    if vertices == "centres":
        return _traced(shape, (top, left, bottom, right)), (top, left)
    shapely.prepare(shape)
    xs, ys = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
    return np.asarray(shapely.contains_xy(shape, xs, ys), np.bool_), (top, left)


def paint_polygons(
    shapes: Sequence[Shape], size: tuple[int, int], *, where: str, vertices: Vertices = "corners"
) -> npt.NDArray[np.int32]:
    """Label map (H, W): `k + 1` for `shapes[k]`, clipped to the image; 0 elsewhere.

    Larger polygons are painted first, so that a nucleus inside another is seen. One that keeps no pixel (outside the
    image, thinner than a pixel, or a twin below another) has no label in the map, and the log says how many there were.

    Args:
        shapes: valid polygons.
        size: of the image, (H, W).
        where: file, for the log.
        vertices: what vertex coordinates mean, see above.
    """
    labels = np.zeros(size, np.int32)
    for number in sorted(range(len(shapes)), key=lambda k: -shapes[k].area):
        mask, (top, left) = polygon_mask(shapes[number], size, vertices=vertices)
        labels[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = number + 1
    lost = len(shapes) - np.count_nonzero(np.unique(labels))
    if lost:
        logger.warning("%s: %d of %d outlines cover no pixel of their own and are left out.", where, lost, len(shapes))
    return labels


def _traced(shape: Shape, box: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """Pixels inside outlines through pixel centres, borders included; holes are cut out without their border."""
    top, left, bottom, right = box
    mask = np.zeros((bottom - top, right - left), np.uint8)
    for polygon in shape.geoms if isinstance(shape, MultiPolygon) else (shape,):
        part = np.zeros_like(mask)
        cv2.fillPoly(part, [_pixels(polygon.exterior, left, top)], 1)
        for hole in polygon.interiors:
            ring = _pixels(hole, left, top)
            cut = np.zeros_like(mask)
            cv2.fillPoly(cut, [ring], 1)
            cv2.polylines(cut, [ring], True, 0)
            part[cut > 0] = 0
        mask |= part
    return mask > 0


def _pixels(ring: shapely.LinearRing, left: int, top: int) -> npt.NDArray[np.int32]:
    return (np.round(np.asarray(ring.coords)[:, :2]) - (left, top)).astype(np.int32)
