"""Corrections as labelled images: pixels of the slide around what a person said something about.

A slide's model grid is cut into windows. A window that touches a complete region, or holds a nucleus that was changed,
becomes an image. All its nuclei are in it: those that a person confirmed or changed with the person as origin, the
others with the model's name and confidence. What lies outside complete regions and is no nucleus is unknown, and so is
what the person ignored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from cellmill.grid import Box
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill_training.corrections.comparing import Change
from cellmill_training.corrections.objects import CorrectedSlide
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.readers.polygons import Shape, paint_polygons, polygon_mask

__all__ = ["Provenance", "corrected_images"]

_BY_PERSON = ("confirmed", "retyped", "redrawn", "added")


@dataclass(frozen=True)
class Provenance:
    """Who said what."""

    annotator: str
    model: str
    """Name and version of the model that made the cell set."""


def corrected_images(
    slide: IsolatedSlide,
    corrected: CorrectedSlide,
    changes: Sequence[Change],
    *,
    provenance: Provenance,
    window_px: int,
    source: str,
) -> Iterator[LabelledImage]:
    """Images of one slide, row by row.

    Args:
        slide: open, on the model grid of the cell set.
        corrected: regions of the slide.
        changes: of all its nuclei.
        provenance: who said what.
        window_px: side of a window on the model grid; images at the slide's rim are smaller.
        source: name of the data set.
    """
    width_level0_px, height_level0_px = slide.info.width_level0_px, slide.info.height_level0_px
    scale = np.array([slide.grid.width_px / width_level0_px, slide.grid.height_px / height_level0_px])
    there = [change for change in changes if change.kind != "deleted"]
    shapes = [_scaled(change.shape_level0_px, scale) for change in there]
    complete = None if corrected.complete_level0_px is None else _scaled(corrected.complete_level0_px, scale)
    ignored = None if corrected.ignored_level0_px is None else _scaled(corrected.ignored_level0_px, scale)
    tree = shapely.STRtree(shapes)
    for box in _windows(slide.grid.box, window_px):
        area = shapely.box(box.x0, box.y0, box.x1, box.y1)
        rows = sorted(tree.query(area, predicate="intersects").tolist())
        said = any(there[row].kind in ("retyped", "redrawn", "added") for row in rows)
        if not said and (complete is None or not complete.intersects(area)):
            continue
        name = f"{corrected.slide_id}~x{box.x0}_y{box.y0}"
        size = (box.height, box.width)
        local = [_moved(shapes[row], box) for row in rows]
        instances, numbers = densely_numbered(paint_polygons(local, size, where=name))
        unknown = np.ones(size, np.bool_) if complete is None else ~_mask(_moved(complete, box), size)
        if ignored is not None:
            unknown |= _mask(_moved(ignored, box), size)
        yield LabelledImage(
            image_id=name,
            source=source,
            tissue="",
            split_group=corrected.slide_id,
            fold="",
            mpp=slide.grid.target_mpp,
            image=np.ascontiguousarray(slide.read(box).pixels),
            instances=instances,
            labels=tuple(_label(there[rows[number - 1]], provenance) for number in numbers),
            unknown=unknown & (instances == 0),
        )


def _label(change: Change, provenance: Provenance) -> CellLabel:
    types = (change.type_after,) if change.type_after else ()
    if change.kind in _BY_PERSON:
        return CellLabel(types, LabelOrigin("annotator", provenance.annotator))
    return CellLabel(types, LabelOrigin("model", provenance.model, change.confidence))


def _windows(slide: Box, window_px: int) -> Iterator[Box]:
    for y0 in range(0, slide.y1, window_px):
        for x0 in range(0, slide.x1, window_px):
            yield Box(x0, y0, x0 + window_px, y0 + window_px).clipped(slide)


def _scaled(shape: Shape, scale: npt.NDArray[np.float64]) -> Shape:
    moved = shapely.transform(shape, lambda xy: xy * scale)
    assert isinstance(moved, Shape)
    return moved


def _moved(shape: Shape, box: Box) -> Shape:
    moved = shapely.transform(shape, lambda xy: xy - (box.x0, box.y0))
    assert isinstance(moved, Shape)
    return moved


def _mask(shape: Shape, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    whole = np.zeros(size, np.bool_)
    mask, (top, left) = polygon_mask(shape, size)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return whole
