"""What a person changed: corrected nuclei beside the cells that were exported.

Consumes cells of one slide and its `CorrectedSlide`; produces one `Change` a nucleus. A nucleus is the cell whose id it
carries; one without an id is the cell it overlaps best, if by more than half and no other nucleus carries that cell's
id (deleted and drawn again). A cell that nothing stands for any more was deleted; that is believed only inside regions
marked as complete, because an export may have held a part of the cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import Polygon

from cellmill_training.corrections.objects import CorrectedNucleus, CorrectedSlide
from cellmill_training.datasets.readers.polygons import Shape

__all__ = ["Change", "ChangeKind", "ExportedCells", "changes_of"]

ChangeKind = Literal["kept", "confirmed", "retyped", "redrawn", "added", "deleted"]
"""kept: as exported, outside complete regions: nobody says that it was looked at. confirmed: as exported, inside one.
retyped: another class, or none. redrawn: another outline (and perhaps another class)."""

_SAME_IOU = 0.98
"""QuPath moves vertices to its grid of 0.01 px; an outline this alike was not touched."""
_REPLACED_IOU = 0.5


@dataclass(frozen=True)
class ExportedCells:
    """Cells of one slide as they are in the cell set; row k of each field is one cell."""

    cell_ids: npt.NDArray[np.int64]  # (n,)
    cell_types: tuple[str, ...]
    confidence: npt.NDArray[np.float64]  # (n,)
    outlines_level0_px: tuple[Polygon, ...]


@dataclass(frozen=True)
class Change:
    """What became of one cell, or where one came from."""

    kind: ChangeKind
    cell_id: int | None
    """None for an added nucleus."""
    type_before: str
    type_after: str
    confidence: float | None
    """The model's, of the exported cell."""
    iou: float | None
    """Of the outlines before and after."""
    shape_level0_px: Shape
    """After; before, for a deleted cell."""
    is_complete: bool
    """Whether it lies in a region marked as complete."""


def changes_of(cells: ExportedCells, corrected: CorrectedSlide) -> list[Change]:
    """One change a nucleus that is there, in the file's order, then the deleted ones by cell id.

    Raises:
        ValueError: when a nucleus carries the id of a cell that the cell set does not have.
    """
    row_of = {cell_id: row for row, cell_id in enumerate(cells.cell_ids.tolist())}
    for nucleus in corrected.nuclei:
        if nucleus.cell_id is not None and nucleus.cell_id not in row_of:
            raise ValueError(
                f"{nucleus.where} carries the id of cell {nucleus.cell_id}, which this cell set does not have: the "
                "file was exported from another one."
            )
    rows = [None if n.cell_id is None else row_of[n.cell_id] for n in corrected.nuclei]
    _find_replaced(rows, cells, corrected.nuclei)
    changes = [_change(nucleus, row, cells, corrected) for nucleus, row in zip(corrected.nuclei, rows, strict=True)]
    gone = np.setdiff1d(np.arange(len(cells.cell_ids)), [row for row in rows if row is not None])
    inside = _inside([cells.outlines_level0_px[row] for row in gone], corrected)
    changes += [_deleted(int(row), cells) for row, is_in in zip(gone, inside, strict=True) if is_in]
    return changes


def _find_replaced(rows: list[int | None], cells: ExportedCells, nuclei: Sequence[CorrectedNucleus]) -> None:
    """Give nuclei without an id the cell they stand for, best overlaps first."""
    new = [number for number, row in enumerate(rows) if row is None]
    taken = {row for row in rows if row is not None}
    if not new or not len(cells.cell_ids):
        return
    tree = shapely.STRtree(cells.outlines_level0_px)
    shapes = [nuclei[number].shape_level0_px for number in new]
    pairs = [
        (-_iou(shapes[place], cells.outlines_level0_px[row]), new[place], int(row))
        for place, row in zip(*tree.query(np.array(shapes, np.object_), predicate="intersects"), strict=True)
        if int(row) not in taken
    ]
    for negative, number, row in sorted(pairs):
        if -negative > _REPLACED_IOU and rows[number] is None and row not in taken:
            rows[number] = row
            taken.add(row)


def _change(nucleus: CorrectedNucleus, row: int | None, cells: ExportedCells, corrected: CorrectedSlide) -> Change:
    (is_complete,) = _inside([nucleus.shape_level0_px], corrected)
    if row is None:
        return Change("added", None, "", nucleus.cell_type, None, None, nucleus.shape_level0_px, is_complete)
    iou = _iou(nucleus.shape_level0_px, cells.outlines_level0_px[row])
    before = cells.cell_types[row]
    kind: ChangeKind = "confirmed" if is_complete else "kept"
    if iou < _SAME_IOU:
        kind = "redrawn"
    elif nucleus.cell_type != before:
        kind = "retyped"
    # An outline that nobody touched stays exactly what it was.
    shape = nucleus.shape_level0_px if kind == "redrawn" else cells.outlines_level0_px[row]
    confidence = float(cells.confidence[row])
    return Change(
        kind, int(cells.cell_ids[row]), before, nucleus.cell_type, confidence, round(iou, 4), shape, is_complete
    )


def _deleted(row: int, cells: ExportedCells) -> Change:
    return Change(
        kind="deleted",
        cell_id=int(cells.cell_ids[row]),
        type_before=cells.cell_types[row],
        type_after="",
        confidence=float(cells.confidence[row]),
        iou=None,
        shape_level0_px=cells.outlines_level0_px[row],
        is_complete=True,
    )


def _inside(shapes: Sequence[Shape], corrected: CorrectedSlide) -> list[bool]:
    """Whether the middle of each shape lies in a complete region."""
    if corrected.complete_level0_px is None:
        return [False] * len(shapes)
    middles = shapely.centroid(np.array(shapes, np.object_))
    shapely.prepare(corrected.complete_level0_px)
    return np.asarray(shapely.contains(corrected.complete_level0_px, middles), np.bool_).tolist()


def _iou(first: Shape, second: Shape) -> float:
    shared = shapely.intersection(first, second).area
    whole = first.area + second.area - shared
    return float(shared / whole) if whole else 0.0
