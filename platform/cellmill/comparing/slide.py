"""One slide in two cell sets: read both, pair the cells, count what became of them.

In: two stores and a slide id. Out: a `SlideChange`, and for pictures the rows that changed.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from cellmill.comparing.gate import SlideChange
from cellmill.comparing.pairing import Pairs, SlideCells, pair_cells
from cellmill.store.layout import cells_key
from cellmill.store.objects import ObjectStore
from cellmill.store.outlines import polygons_of
from cellmill.store.statuses import read_status
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.slides import SlideStatus

__all__ = ["ComparedSlide", "change_of", "compare_slide", "read_slide_cells"]

_DONE = ("done", "done_empty")


@dataclass(frozen=True)
class ComparedSlide:
    """A slide's change with the cells behind it."""

    change: SlideChange
    status: SlideStatus
    reference: SlideCells
    candidate: SlideCells
    pairs: Pairs


def compare_slide(
    reference: ObjectStore, candidate: ObjectStore, slide_id: str, *, ontology: Ontology
) -> ComparedSlide | SlideChange:
    """Compare one slide that the reference has; where that cannot be, a change that says why."""
    ours, theirs = read_status(reference, slide_id), read_status(candidate, slide_id)
    assert ours is not None, "slides are those of the reference"
    problem = _problem(ours, theirs)
    if problem:
        return SlideChange(slide_id, np.zeros((len(ontology) + 1,) * 2, np.int64), problem=problem)
    assert theirs is not None
    before = read_slide_cells(reference, ours, ontology)
    after = read_slide_cells(candidate, theirs, ontology)
    pairs = pair_cells(before, after)
    change = change_of(slide_id, before, after, pairs, num_types=len(ontology), analysed_mm2=theirs.analysed_mm2)
    return ComparedSlide(change, ours, before, after, pairs)


def read_slide_cells(store: ObjectStore, status: SlideStatus, ontology: Ontology) -> SlideCells:
    """The cells of a done slide, types as `ontology` numbers them."""
    if status.outcome == "done_empty":
        nothing = np.zeros(0)
        return SlideCells(np.zeros(0, np.object_), nothing.reshape(0, 2), nothing.astype(np.int64), nothing)
    columns = ["x_um", "y_um", "cell_type", "confidence", "geometry"]
    with store.open_random(cells_key(status.slide_id)) as file:
        table = pq.read_table(file, columns=columns)
    outlines = [polygon for chunk in table.column("geometry").chunks for polygon in polygons_of(chunk)]
    index_of = {name: index for index, name in enumerate(ontology.names)}
    return SlideCells(
        outlines=np.array(outlines, np.object_),
        centroids_um=np.stack([table.column(name).to_numpy() for name in ("x_um", "y_um")], axis=1).astype(np.float64),
        types=np.array([index_of[str(kind)] for kind in table.column("cell_type").to_pylist()], np.int64),
        confidence=table.column("confidence").to_numpy().astype(np.float64),
    )


def change_of(
    slide_id: str,
    reference: SlideCells,
    candidate: SlideCells,
    pairs: Pairs,
    *,
    num_types: int,
    analysed_mm2: float = 0.0,
) -> SlideChange:
    """Count what became of a slide's cells."""
    counts = np.zeros((num_types + 1, num_types + 1), np.int64)
    np.add.at(counts, (reference.types[pairs.reference], candidate.types[pairs.candidate]), 1)
    np.add.at(counts, (reference.types[pairs.lost], np.full(len(pairs.lost), num_types)), 1)
    np.add.at(counts, (np.full(len(pairs.gained), num_types), candidate.types[pairs.gained]), 1)
    return SlideChange(
        slide_id=slide_id,
        counts=counts,
        num_redrawn=int((pairs.iou <= 0.5).sum()),
        mean_iou=float(pairs.iou.mean()) if len(pairs.iou) else float("nan"),
        analysed_mm2=analysed_mm2,
    )


def _problem(ours: SlideStatus, theirs: SlideStatus | None) -> str:
    if theirs is None or theirs.outcome not in _DONE:
        stands = "has no status" if theirs is None else f"is {theirs.outcome}: {' '.join(theirs.reasons)}"
        return f"done in the reference, but in the candidate it {stands}"
    if ours.slide_fingerprint != theirs.slide_fingerprint:
        return "the two cell sets were made from different files"
    if (ours.mpp_x, ours.mpp_y) != (theirs.mpp_x, theirs.mpp_y):
        return "the two cell sets give the slide different scales"
    return ""
