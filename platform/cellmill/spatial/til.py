"""Tumour-infiltrating lymphocytes: how many in neoplastic areas, how many in the stroma around them.

Pure functions of points and a window. Which area is which is told by the cells: a place belongs to the type that most
of the nearest cells have among those that make up tissue; immune and dead cells have no say, since they are what is
counted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from cellmill.spatial.points import CellPoints
from cellmill.spatial.windows import REACH_UM, Window, inside
from cellmill_schemas.ontology import Ontology

__all__ = ["TilRoles", "TilScores", "til_scores"]

_NO_SAY = (
    *("lymphocyte", "plasma cell", "inflammatory", "immune", "immune cell", "macrophage", "histiocyte", "neutrophil"),
    *("eosinophil", "melanophage", "dead", "apoptotic body", "red blood cell", "mitotic figure", "other"),
)
_VOTERS = 5
_STEP_UM = 20.0


@dataclass(frozen=True)
class TilRoles:
    """Which types of an ontology play which part; indices into it."""

    lymphocytes: tuple[int, ...]
    """Counted: lymphocytes, and plasma cells where the ontology has them."""
    neoplastic: tuple[int, ...]
    stroma: tuple[int, ...]
    elsewhere: tuple[int, ...]
    """Other types that make up tissue, so that benign epithelium or muscle is neither."""

    @staticmethod
    def of(ontology: Ontology) -> "TilRoles | None":
        """The usual parts; None for an ontology without lymphocytes, neoplastic cells or stroma."""
        lymphocytes, no_say = _indices(ontology, ("lymphocyte", "plasma cell")), _indices(ontology, _NO_SAY)
        neoplastic, stroma = _indices(ontology, ("neoplastic",)), _indices(ontology, ("connective",))
        if not (lymphocytes and neoplastic and stroma):
            return None
        taken = {*no_say, *neoplastic, *stroma}
        return TilRoles(
            lymphocytes=lymphocytes,
            neoplastic=neoplastic,
            stroma=stroma,
            elsewhere=tuple(index for index in range(len(ontology)) if index not in taken),
        )


@dataclass(frozen=True)
class TilScores:
    """Lymphocytes against area. Densities are None where there is no such area."""

    neoplastic_mm2: float
    stroma_mm2: float
    """Stroma within the margin of neoplastic area."""
    num_in_neoplastic: int
    num_in_stroma: int
    stroma_area_share: float | None
    """Area of the lymphocytes' nuclei over the area of that stroma."""

    @property
    def per_mm2_neoplastic(self) -> float | None:
        """Intratumoural density."""
        return self.num_in_neoplastic / self.neoplastic_mm2 if self.neoplastic_mm2 else None

    @property
    def per_mm2_stroma(self) -> float | None:
        """Stromal density."""
        return self.num_in_stroma / self.stroma_mm2 if self.stroma_mm2 else None


def til_scores(cells: CellPoints, window: Window, roles: TilRoles, *, margin_um: float) -> TilScores:
    """TIL densities of a window.

    A place is neoplastic area or stroma when at least 3 of the 5 nearest tissue cells (neoplastic, connective, others)
    within 50 um are of that type. Areas are counted on points 20 um apart; a lymphocyte lies where its centre does.
    Stroma counts within `margin_um` of neoplastic area only, for stromal TILs are read within the borders of the
    tumour (Salgado et al. 2015, Ann Oncol 26:259). Salgado's score is the per cent of stromal area that mononuclear
    cells cover, judged by eye; `stroma_area_share` is nearest to it but counts nuclei only, so it is lower.
    """
    votes = _Votes.of(cells, roles)
    places = _places(window)
    kind = votes.at(places)
    step_mm2 = (_STEP_UM * 1e-3) ** 2
    tumour = places[kind == 0]
    stroma = _within(tumour, places[kind == 1], margin_um)
    lymphocytes = cells.of_types(roles.lymphocytes)
    lies_in = votes.at(lymphocytes.xy_um)
    in_stroma = lymphocytes.where(lies_in == 1)
    in_stroma = in_stroma.where(_is_within(tumour, in_stroma.xy_um, margin_um))
    stroma_mm2 = len(stroma) * step_mm2
    nuclei_mm2 = float(in_stroma.area_um2.sum(dtype=np.float64)) * 1e-6
    return TilScores(
        neoplastic_mm2=len(tumour) * step_mm2,
        stroma_mm2=stroma_mm2,
        num_in_neoplastic=int(np.count_nonzero(lies_in == 0)),
        num_in_stroma=len(in_stroma),
        stroma_area_share=nuclei_mm2 / stroma_mm2 if stroma_mm2 else None,
    )


@dataclass(frozen=True)
class _Votes:
    """Tissue cells, ready to be asked what a place is."""

    tree: KDTree | None
    kinds: NDArray[np.int8]  # (voters + 1,): 0 neoplastic, 1 stroma, 2 elsewhere; last, for nobody there, 3

    @staticmethod
    def of(cells: CellPoints, roles: TilRoles) -> "_Votes":
        of_type = np.full(len(cells.names), 3, np.int8)
        for kind, indices in enumerate((roles.neoplastic, roles.stroma, roles.elsewhere)):
            of_type[list(indices)] = kind
        kinds = of_type[cells.types]
        has_say = kinds < 3
        tree = KDTree(cells.xy_um[has_say]) if has_say.any() else None
        return _Votes(tree, np.append(kinds[has_say], np.int8(3)))

    def at(self, places: NDArray[np.float64]) -> NDArray[np.int8]:
        """What most of the nearest cells are (n,): 0 neoplastic, 1 stroma, 2 else or undecided."""
        if self.tree is None or not len(places):
            return np.full(len(places), 2, np.int8)
        _, voters = self.tree.query(places, k=list(range(1, _VOTERS + 1)), distance_upper_bound=REACH_UM)
        kinds = self.kinds[voters]  # (n, 5)
        majority = _VOTERS // 2 + 1
        decided = np.full(len(places), 2, np.int8)
        for kind in (0, 1):
            decided[(kinds == kind).sum(axis=1) >= majority] = kind
        return decided


def _places(window: Window) -> NDArray[np.float64]:
    """Points of an absolute grid, 20 um apart, in the window (n, 2)."""
    x0, y0, x1, y1 = window.outline.bounds
    x = (np.arange(np.floor(x0 / _STEP_UM), np.ceil(x1 / _STEP_UM)) + 0.5) * _STEP_UM
    y = (np.arange(np.floor(y0 / _STEP_UM), np.ceil(y1 / _STEP_UM)) + 0.5) * _STEP_UM
    places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return places[inside(window, places)]


def _is_within(of: NDArray[np.float64], places: NDArray[np.float64], margin_um: float) -> NDArray[np.bool_]:
    if not len(of) or not len(places):
        return np.zeros(len(places), np.bool_)
    return np.isfinite(KDTree(of).query(places, distance_upper_bound=np.nextafter(margin_um, np.inf))[0])


def _within(of: NDArray[np.float64], places: NDArray[np.float64], margin_um: float) -> NDArray[np.float64]:
    return places[_is_within(of, places, margin_um)]


def _indices(ontology: Ontology, labels: tuple[str, ...]) -> tuple[int, ...]:
    found: set[int] = set()
    for label in labels:
        try:
            found.add(ontology.index(label))
        except KeyError:
            continue
    return tuple(sorted(found))
