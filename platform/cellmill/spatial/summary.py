"""One slide in numbers: every window's counts, densities, TIL scores and neighbours.

Consumes a done slide's cells; produces three small tables: `summary` (one row a window), `pairs` (one row a window and
ordered pair of types) and `radii` (one row a window, pair and radius). A whole slide is the largest thing in memory.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from shapely.geometry.base import BaseGeometry

from cellmill.spatial.config import SummarizeCohortConfig
from cellmill.spatial.neighbours import cross_k, nearest_distances, neighbourhood_enrichment
from cellmill.spatial.points import CellPoints, read_points
from cellmill.spatial.til import TilRoles, til_scores
from cellmill.spatial.windows import Window, drawn_windows, inside, tissue_fragments, whole_slide
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.slides import SlideStatus

__all__ = ["PAIRS_SCHEMA", "RADII_SCHEMA", "SlideTables", "column_name", "summarize_slide", "summary_schema"]

_WINDOW = [("slide_id", pa.string()), ("window", pa.string()), ("kind", pa.string())]
_PAIR = [*_WINDOW, ("from_type", pa.string()), ("to_type", pa.string())]

PAIRS_SCHEMA = pa.schema(
    [
        *_PAIR,
        ("num_from", pa.int64()),
        ("num_to", pa.int64()),
        ("nearest_mean_um", pa.float64()),
        ("nearest_median_um", pa.float64()),
        ("neighbours", pa.int64()),
        ("neighbours_expected", pa.float64()),
        ("enrichment_z", pa.float64()),
    ]
)
"""Columns of `pairs`: `neighbours` counts ordered pairs within --neighbour-um."""

RADII_SCHEMA = pa.schema(
    [
        *_PAIR,
        ("radius_um", pa.float64()),
        ("num_from", pa.int64()),
        ("mean_within", pa.float64()),
        ("k_um2", pa.float64()),
        ("l_minus_r_um", pa.float64()),
    ]
)
"""Columns of `radii`: `num_from` counts the cells far enough from the border to be asked."""


@dataclass(frozen=True)
class SlideTables:
    """What is said of one slide."""

    summary: pa.Table
    pairs: pa.Table
    radii: pa.Table


def column_name(cell_type: str) -> str:
    """A type as part of a column's name: cancer cell becomes cancer_cell."""
    return cell_type.strip().lower().replace(" ", "_")


def summary_schema(ontology: Ontology) -> pa.Schema:
    """Columns of `summary`, three a type. `mm2` is analysed area for a slide, the outline's area otherwise."""
    columns = [*_WINDOW, ("mm2", pa.float64()), ("tissue_mm2", pa.float64())]
    columns += [("num_cells", pa.int64()), ("per_mm2", pa.float64())]
    for prefix, kind in (("num", pa.int64()), ("per_mm2", pa.float64()), ("share", pa.float64())):
        columns += [(f"{prefix}_{column_name(name)}", kind) for name in ontology.names]
    columns += [("neoplastic_mm2", pa.float64()), ("tumour_stroma_mm2", pa.float64())]
    columns += [("til_num_neoplastic", pa.int64()), ("til_num_stroma", pa.int64())]
    columns += [(f"til_{name}", pa.float64()) for name in ("per_mm2_neoplastic", "per_mm2_stroma", "stroma_area_share")]
    return pa.schema(columns)


def summarize_slide(status: SlideStatus, ontology: Ontology, config: SummarizeCohortConfig) -> SlideTables:
    """All tables of one done slide.

    Raises:
        FileNotFoundError: when the slide is not done.
        RegionFileError: when its region file cannot be used.
    """
    cells = read_points(config.cells, status.slide_id, ontology, min_confidence=config.min_confidence)
    fragments = tissue_fragments(cells)
    tissue = whole_slide(fragments)
    shown = tuple(fragment for fragment in fragments if fragment.mm2 >= config.min_fragment_mm2)
    rows = _Rows(status, ontology, config)
    rows.add(tissue, cells, mm2=status.analysed_mm2)
    for window in (*shown, *_drawn(status, config)):
        rows.add(window, cells.where(inside(window, cells.xy_um)), mm2=window.mm2)
    return rows.tables()


def _drawn(status: SlideStatus, config: SummarizeCohortConfig) -> tuple[Window, ...]:
    if config.regions is None or status.mpp_x is None or status.mpp_y is None:
        return ()
    for suffix in (".geojson", ".json"):
        path = Path(config.regions) / f"{status.slide_id}{suffix}"
        if path.is_file():
            return drawn_windows(path, mpp=(status.mpp_x, status.mpp_y))
    return ()


@dataclass(frozen=True)
class _Numbers:
    """What takes time; a slide's only fragment has the slide's."""

    outline: BaseGeometry
    til: dict[str, Any]
    pairs: list[dict[str, Any]]
    radii: list[dict[str, Any]]


class _Rows:
    """Rows of the three tables, window by window."""

    def __init__(self, status: SlideStatus, ontology: Ontology, config: SummarizeCohortConfig) -> None:
        self._slide_id = status.slide_id
        self._ontology = ontology
        self._config = config
        self._numbers: _Numbers | None = None
        self._summary: list[dict[str, Any]] = []
        self._pairs: list[dict[str, Any]] = []
        self._radii: list[dict[str, Any]] = []

    def add(self, window: Window, cells: CellPoints, *, mm2: float) -> None:
        key = {"slide_id": self._slide_id, "window": window.name, "kind": window.kind}
        if self._numbers is None or self._numbers.outline is not window.outline:
            self._numbers = self._numbers_of(cells, window)
        found = self._numbers
        self._summary.append(key | self._counts(cells, window, mm2=mm2) | found.til)
        self._pairs += [key | row for row in found.pairs]
        self._radii += [key | row for row in found.radii]

    def tables(self) -> SlideTables:
        return SlideTables(
            summary=pa.Table.from_pylist(self._summary, schema=summary_schema(self._ontology)),
            pairs=pa.Table.from_pylist(self._pairs, schema=PAIRS_SCHEMA),
            radii=pa.Table.from_pylist(self._radii, schema=RADII_SCHEMA),
        )

    def _numbers_of(self, cells: CellPoints, window: Window) -> "_Numbers":
        if not len(cells):
            return _Numbers(window.outline, {}, [], [])
        return _Numbers(
            outline=window.outline,
            til=self._til(cells, window),
            pairs=list(self._pair_rows(cells)),
            radii=list(self._radius_rows(cells, window)),
        )

    def _counts(self, cells: CellPoints, window: Window, *, mm2: float) -> dict[str, Any]:
        row: dict[str, Any] = {"mm2": mm2, "tissue_mm2": window.mm2, "num_cells": len(cells)}
        row["per_mm2"] = len(cells) / mm2 if mm2 else None
        for name, count in zip(cells.names, cells.counts().tolist(), strict=True):
            column = column_name(name)
            row[f"num_{column}"] = count
            row[f"per_mm2_{column}"] = count / mm2 if mm2 else None
            row[f"share_{column}"] = count / len(cells) if len(cells) else None
        return row

    def _til(self, cells: CellPoints, window: Window) -> dict[str, Any]:
        roles = TilRoles.of(self._ontology)
        if roles is None:
            return {}
        scores = til_scores(cells, window, roles, margin_um=self._config.til_margin_um)
        return {
            "neoplastic_mm2": scores.neoplastic_mm2,
            "tumour_stroma_mm2": scores.stroma_mm2,
            "til_num_neoplastic": scores.num_in_neoplastic,
            "til_num_stroma": scores.num_in_stroma,
            "til_per_mm2_neoplastic": scores.per_mm2_neoplastic,
            "til_per_mm2_stroma": scores.per_mm2_stroma,
            "til_stroma_area_share": scores.stroma_area_share,
        }

    def _pair_rows(self, cells: CellPoints) -> Iterator[dict[str, Any]]:
        nearest, counts = nearest_distances(cells), cells.counts().tolist()
        enrichment = None
        if self._config.num_permutations:
            # The seed is the slide's, whichever process does it and when.
            seed = [self._config.seed, zlib.crc32(self._slide_id.encode())]
            enrichment = neighbourhood_enrichment(
                cells,
                radius_um=self._config.neighbour_um,
                num_permutations=self._config.num_permutations,
                seed=seed,
            )
        for i, j, names in _pairs_of(cells.names):
            row = names | {"num_from": counts[i], "num_to": counts[j]}
            row["nearest_mean_um"] = _number(nearest.mean_um[i, j])
            row["nearest_median_um"] = _number(nearest.median_um[i, j])
            if enrichment is not None:
                row["neighbours"] = int(enrichment.observed[i, j])
                row["neighbours_expected"] = _number(enrichment.expected[i, j])
                row["enrichment_z"] = _number(enrichment.z[i, j])
            yield row

    def _radius_rows(self, cells: CellPoints, window: Window) -> Iterator[dict[str, Any]]:
        found = cross_k(cells, window, radii_um=np.array(self._config.radii()))
        l_minus_r_um = found.l_minus_r_um
        for i, j, names in _pairs_of(cells.names):
            for k, radius_um in enumerate(found.radii_um.tolist()):
                yield names | {
                    "radius_um": radius_um,
                    "num_from": int(found.num_from[i, k]),
                    "mean_within": _number(found.mean_within[i, j, k]),
                    "k_um2": _number(found.k_um2[i, j, k]),
                    "l_minus_r_um": _number(l_minus_r_um[i, j, k]),
                }


def _pairs_of(names: tuple[str, ...]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for i, start in enumerate(names):
        for j, to in enumerate(names):
            yield i, j, {"from_type": start, "to_type": to}


def _number(value: float) -> float | None:
    """NaN is what NumPy has for nothing; tables have null."""
    return None if np.isnan(value) else float(value)
