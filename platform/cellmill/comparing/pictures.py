"""Pictures of cells that changed: the reference's outlines left, the candidate's right, on the slide's own pixels.

In: a compared slide and its file. Out: `Picture`s. Cells are drawn by lot, by a seed, some of each kind of change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from cellmill.comparing.pairing import SlideCells
from cellmill.comparing.slide import ComparedSlide
from cellmill.grid import Box, SlideGrid
from cellmill.report.imagery import jpeg_uri
from cellmill.slides.errors import SlideError
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill_schemas.ontology import Ontology

__all__ = ["Picture", "choose_changed", "draw_changed"]

ChangeKind = Literal["lost", "gained", "retyped"]
_KINDS: tuple[ChangeKind, ...] = ("lost", "gained", "retyped")
_SIDE_UM = 48.0
_PICTURE_MPP = 0.25
_PANE_PX = 224
_GAP_PX = 6
_CIRCLE_UM = 9.0
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One changed cell."""

    kind: ChangeKind
    slide_id: str
    says: str
    """What changed: types and confidences."""
    x_um: float
    y_um: float
    uri: str
    """Of a JPEG: both panes."""
    width_px: int
    height_px: int


@dataclass(frozen=True)
class Chosen:
    """A changed cell to show."""

    kind: ChangeKind
    centre_um: tuple[float, float]
    says: str


def choose_changed(compared: ComparedSlide, ontology: Ontology, *, num_each: int, seed: int) -> list[Chosen]:
    """Some cells of each kind of change, by lot."""
    reference, candidate, pairs = compared.reference, compared.candidate, compared.pairs
    differ = np.flatnonzero(reference.types[pairs.reference] != candidate.types[pairs.candidate])
    rng = np.random.default_rng([seed, *compared.change.slide_id.encode()])

    def drawn(rows: npt.NDArray[np.int64]) -> list[int]:
        return np.sort(rng.permutation(rows)[:num_each]).tolist()

    chosen = [
        Chosen("lost", _centre(reference, row), f"was {_named(reference, row, ontology)}") for row in drawn(pairs.lost)
    ]
    chosen += [
        Chosen("gained", _centre(candidate, row), f"now {_named(candidate, row, ontology)}")
        for row in drawn(pairs.gained)
    ]
    for pair in drawn(differ):
        was, now = int(pairs.reference[pair]), int(pairs.candidate[pair])
        says = f"was {_named(reference, was, ontology)}, now {_named(candidate, now, ontology)}"
        chosen.append(Chosen("retyped", _centre(candidate, now), says))
    return chosen


def draw_changed(path: str, compared: ComparedSlide, chosen: Sequence[Chosen], ontology: Ontology) -> list[Picture]:
    """Draw the chosen cells; a slide that cannot be read has none.

    Args:
        path: the slide's file.
        compared: the slide.
        chosen: its cells to show.
        ontology: for colours.
    """
    status = compared.status
    assert status.mpp_x is not None and status.mpp_y is not None
    mpp = (status.mpp_x, status.mpp_y)
    scale = max(_PICTURE_MPP, *mpp)
    try:
        with IsolatedSlide(path, target_mpp=scale, mpp=mpp) as slide:
            if slide.info.fingerprint != status.slide_fingerprint:
                return []
            return [_picture(slide, one, compared, ontology) for one in chosen]
    except SlideError:
        return []


def _picture(slide: IsolatedSlide, one: Chosen, compared: ComparedSlide, ontology: Ontology) -> Picture:
    grid = slide.grid
    side = round(_SIDE_UM / grid.target_mpp)
    x0, y0 = (round(centre / grid.target_mpp) - side // 2 for centre in one.centre_um)
    box = Box(x0, y0, x0 + side, y0 + side)
    pixels = slide.read(box).pixels
    panes = [_outlined(pixels, cells, box, grid, ontology) for cells in (compared.reference, compared.candidate)]
    gap = np.full((panes[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    both = np.concatenate([panes[0], gap, panes[1]], axis=1)
    height, width = both.shape[:2]
    x_um, y_um = one.centre_um
    return Picture(one.kind, compared.change.slide_id, one.says, x_um, y_um, jpeg_uri(both), width, height)


def _outlined(pixels: Image, cells: SlideCells, box: Box, grid: SlideGrid, ontology: Ontology) -> Image:
    """The box's pixels with the outlines of the cells around its middle, in the colours of their types."""
    enlarged = _PANE_PX / box.width
    image = np.asarray(cv2.resize(pixels, (_PANE_PX, _PANE_PX), interpolation=cv2.INTER_CUBIC), np.uint8)
    middle = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2 * grid.target_mpp
    near = np.flatnonzero((np.abs(cells.centroids_um - middle) <= _SIDE_UM * 0.75).all(axis=1))
    shift = 4  # cv2 takes sixteenths of a pixel
    for row in near.tolist():
        ring = shapely.get_coordinates(cells.outlines[row]) / [grid.scale_x, grid.scale_y] - [box.x0, box.y0]
        points = np.round((ring * enlarged - 0.5) * (1 << shift)).astype(np.int32)
        color = ontology.classes[int(cells.types[row])].color_rgb
        cv2.polylines(image, [points], isClosed=True, color=color, thickness=1, lineType=cv2.LINE_AA, shift=shift)
    centre, radius = (_PANE_PX // 2, _PANE_PX // 2), round(_CIRCLE_UM / grid.target_mpp * enlarged)
    cv2.circle(image, centre, radius, (255, 255, 255), thickness=1, lineType=cv2.LINE_AA)
    return image


def _centre(cells: SlideCells, row: int) -> tuple[float, float]:
    x, y = cells.centroids_um[row].tolist()
    return x, y


def _named(cells: SlideCells, row: int, ontology: Ontology) -> str:
    return f"{ontology.names[int(cells.types[row])]} ({cells.confidence[row]:.2f})"
