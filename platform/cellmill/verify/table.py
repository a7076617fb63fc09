"""Whether a cell table says what can be: schema, order, ids, types, figures, outlines.

In: a slide's Parquet file whose bytes are known to be right, its status and the ontology. Out: findings, and what the
mask has to agree with. One row group is in memory at a time, besides 20 bytes a cell.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from cellmill.grid import SlideGrid
from cellmill.store.hilbert import hilbert_keys, hilbert_order
from cellmill.store.tables import ROW_GROUP_CELLS
from cellmill_schemas.cells import ANCHOR_BITS, DECIMALS, cell_schema
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.slides import SlideStatus

__all__ = ["TableFacts", "check_table", "grid_of"]

Say = Callable[[str], None]
"""Takes a sentence about what is wrong."""

_BBOX = ("xmin", "ymin", "xmax", "ymax")
_LIMITS: dict[str, tuple[float, float]] = {
    "confidence": (0, 1),
    "detection_prob": (0, 1),
    "eccentricity": (0, 1),
    "solidity": (0, 1.01),
    "area_um2": (0, np.inf),
    "perimeter_um": (0, np.inf),
    "major_axis_um": (0, np.inf),
    "minor_axis_um": (0, np.inf),
}


@dataclass(frozen=True)
class TableFacts:
    """What a mask must agree with: (n,) each, by ascending mask id."""

    mask_ids: npt.NDArray[np.uint64]
    area_um2: npt.NDArray[np.float32]


def grid_of(status: SlideStatus) -> SlideGrid | None:
    """The model grid of a done slide; None where its status does not tell it."""
    sizes = (status.width_px, status.height_px, status.target_mpp, status.mpp_x, status.mpp_y)
    if any(value is None or not value > 0 for value in sizes):
        return None
    assert status.width_px and status.height_px and status.target_mpp and status.mpp_x and status.mpp_y
    return SlideGrid(
        width_px=status.width_px,
        height_px=status.height_px,
        scale_x=status.target_mpp / status.mpp_x,
        scale_y=status.target_mpp / status.mpp_y,
        target_mpp=status.target_mpp,
    )


def check_table(
    source: Any, *, status: SlideStatus, grid: SlideGrid, ontology: Ontology | None, say: Say
) -> TableFacts | None:
    """Check the table of a done slide; None where its schema is not that of cells.

    Args:
        source: the open Parquet file.
        status: the slide's.
        grid: the slide's.
        ontology: the cell set's; None leaves out what depends on it.
        say: takes what is wrong.
    """
    file = pq.ParquetFile(source)
    if not _has_cell_schema(file, ontology, say):
        return None
    _check_geo(file, say)
    _check_row_groups(file, say)
    checker = _RowChecker(status, grid, ontology, say)
    for group in range(file.metadata.num_row_groups):
        checker.look_at(file.read_row_group(group))
    return checker.finish()


def _has_cell_schema(file: pq.ParquetFile, ontology: Ontology | None, say: Say) -> bool:
    found = file.schema_arrow
    num_embedding = found.field("embedding").type.list_size if "embedding" in found.names else 0
    if ontology is None:
        return "mask_id" in found.names
    wanted = cell_schema(ontology, num_embedding=num_embedding)
    if found.names != wanted.names:
        say(f"its columns are {', '.join(found.names)}, not those of a cell table")
        return False
    wrong = [name for name in wanted.names if not _same_type(found.field(name), wanted.field(name))]
    if wrong:
        say(f"its columns {', '.join(wrong)} are of other types than a cell table's")
    return not wrong


def _same_type(found: pa.Field, wanted: pa.Field) -> bool:
    if isinstance(wanted.type, pa.DictionaryType):  # stored with unsigned indices
        return isinstance(found.type, pa.DictionaryType) and found.type.value_type == wanted.type.value_type
    return found.type == wanted.type


def _check_geo(file: pq.ParquetFile, say: Say) -> None:
    try:
        geo = json.loads((file.schema_arrow.metadata or file.metadata.metadata or {})[b"geo"])
        column = geo["columns"][geo["primary_column"]]
        right = geo["version"] == "1.1.0" and column["encoding"] == "polygon" and column["crs"] is None
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        say("its GeoParquet metadata are missing or not those of 1.1 polygons without a coordinate system")


def _check_row_groups(file: pq.ParquetFile, say: Say) -> None:
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    if any(size != ROW_GROUP_CELLS for size in sizes[:-1]) or any(not 0 < n <= ROW_GROUP_CELLS for n in sizes[-1:]):
        say(f"its row groups hold {sizes[:5]} ... rows, not {ROW_GROUP_CELLS} each but the last")


class _RowChecker:
    """Looks at row groups in turn."""

    def __init__(self, status: SlideStatus, grid: SlideGrid, ontology: Ontology | None, say: Say) -> None:
        self._status, self._grid, self._ontology, self._say = status, grid, ontology, say
        self._last_key = -1
        self._slide_hash: int | None = None
        self._mask_ids: list[npt.NDArray[np.uint64]] = []
        self._areas: list[npt.NDArray[np.float32]] = []
        self._by_type = dict.fromkeys(ontology.names if ontology else (), 0)
        self._said: set[str] = set()

    def look_at(self, rows: pa.Table) -> None:
        """Check one row group."""
        if any(rows.column(name).null_count for name in rows.column_names):
            self._tell("nulls", "it holds nulls")
            return
        for wrong, says in (*self._ids(rows), *self._types(rows), *self._figures(rows), *self._outlines(rows)):
            number = int(np.count_nonzero(wrong))
            if number:
                first = int(rows.column("cell_id")[int(np.argmax(wrong))].as_py()) if wrong.size > 1 else 0
                self._tell(says, f"{says} ({number} in its row group{f', first cell_id {first}' if first else ''})")
        self._mask_ids.append(rows.column("mask_id").to_numpy())
        self._areas.append(rows.column("area_um2").to_numpy())

    def finish(self) -> TableFacts:
        """Check what holds of all rows."""
        ids = np.concatenate([*self._mask_ids, np.empty(0, np.uint64)])
        areas = np.concatenate([*self._areas, np.empty(0, np.float32)])
        status = self._status
        if ids.size != status.num_cells:
            self._say(f"it holds {ids.size} cells, its status says {status.num_cells}")
        if (status.outcome == "done") != (ids.size > 0):
            self._say(f"it holds {ids.size} cells, and the slide is {status.outcome}")
        if self._ontology is not None and self._by_type != status.num_cells_by_type and ids.size:
            self._say(f"its cells by type are {self._by_type}, its status says {status.num_cells_by_type}")
        order = np.argsort(ids, kind="stable")
        ids, areas = ids[order], areas[order]
        if (ids[1:] == ids[:-1]).any():
            self._say(f"mask id {ids[1:][ids[1:] == ids[:-1]][0]} stands in it twice")
        return TableFacts(mask_ids=ids, area_um2=areas)

    def _tell(self, about: str, says: str) -> None:
        """Once for each thing: a table wrong throughout should not take pages."""
        if about not in self._said:
            self._said.add(about)
            self._say(says)

    def _ids(self, rows: pa.Table) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
        grid = self._grid
        cell_ids, mask_ids = rows.column("cell_id").to_numpy(), rows.column("mask_id").to_numpy()
        anchor = mask_ids.astype(np.int64) - 1
        outside = (anchor < 0) | (anchor >= grid.width_px * grid.height_px)
        yield outside, "anchors lie outside the slide"
        yield cell_ids <= 0, "cell ids are not positive"
        yield (cell_ids & ((1 << ANCHOR_BITS) - 1)) != anchor, "cell ids do not hold their anchor"
        hashes = cell_ids >> ANCHOR_BITS
        self._slide_hash = int(hashes[0]) if self._slide_hash is None else self._slide_hash
        yield hashes != self._slide_hash, "cell ids are of more than one slide"
        if not outside.any():
            keys = hilbert_keys(anchor % grid.width_px, anchor // grid.width_px, order=hilbert_order(grid))
            yield np.diff(keys, prepend=self._last_key) <= 0, "rows are not in Hilbert order, or ids stand twice"
            self._last_key = int(keys[-1])

    def _types(self, rows: pa.Table) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
        slide_ids, types = rows.column("slide_id").combine_chunks(), rows.column("cell_type").combine_chunks()
        yield np.array([slide_ids.dictionary.to_pylist() != [self._status.slide_id]]), "rows are of another slide"
        if self._ontology is None:
            return
        names = list(self._ontology.names)
        right = types.dictionary.to_pylist() == names
        yield np.array([not right]), "the dictionary of cell_type is not the ontology in its order"
        if not right:
            return
        kind = types.indices.to_numpy().astype(np.int64)
        for index, count in enumerate(np.bincount(kind, minlength=len(names)).tolist()):
            self._by_type[names[index]] += count
        flat = rows.column("type_prob").combine_chunks().flatten().to_numpy()
        prob = flat.reshape(-1, len(names)).astype(np.float64)
        step = 0.5 * 10.0 ** -DECIMALS["type_prob"] + 1e-6
        confidence = rows.column("confidence").to_numpy()
        yield ~((prob >= 0) & (prob <= 1)).all(axis=1), "type probabilities lie outside 0 to 1"
        yield np.abs(prob.sum(axis=1) - 1) > step * len(names), "type probabilities do not sum to 1"
        yield np.abs(prob.max(axis=1) - confidence) > 1e-6, "confidence is not the largest type probability"
        yield prob[np.arange(kind.size), kind] < prob.max(axis=1), "the type is not the most probable one"

    def _figures(self, rows: pa.Table) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
        for name in DECIMALS:
            if name != "type_prob":
                values = rows.column(name).to_numpy()
                low, high = _LIMITS.get(name, (-np.inf, np.inf))
                yield ~(np.isfinite(values) & (values >= low) & (values <= high)), f"{name} is not a figure of a cell"
        for axis, mpp in (("x", self._status.mpp_x), ("y", self._status.mpp_y)):
            assert mpp is not None
            level0 = rows.column(f"{axis}_level0_px").to_numpy().astype(np.float64)
            um = rows.column(f"{axis}_um").to_numpy().astype(np.float64)
            slack = 0.06 * mpp + 0.006 + 1e-6 * np.abs(um)  # both are rounded, and float32
            yield np.abs(level0 * mpp - um) > slack, f"{axis}_um and {axis}_level0_px are two places"

    def _outlines(self, rows: pa.Table) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
        polygons = rows.column("geometry").combine_chunks()
        rings_of, points_of = polygons.offsets.to_numpy(), polygons.values.offsets.to_numpy()
        alone = np.diff(rings_of) == 1
        yield ~alone, "outlines are not one ring"
        if not alone.all():
            return
        ring = slice(rings_of[0], rings_of[-1] + 1)
        starts, vertices = points_of[ring], polygons.values.values
        x, y = (vertices.field(axis).to_numpy() for axis in (0, 1))
        yield np.diff(starts) < 4, "outlines have fewer than three corners"
        if (np.diff(starts) < 4).any():
            return
        first, last = starts[:-1], starts[1:] - 1
        yield (x[first] != x[last]) | (y[first] != y[last]), "outlines are not closed"
        bounds = [function.reduceat(values[: starts[-1]], first) for function, values in _sides(x, y)]
        box = rows.column("bbox").combine_chunks()
        sides = [box.field(name).to_numpy() for name in _BBOX]
        unlike = [side != bound.astype(np.float32) for side, bound in zip(sides, bounds, strict=True)]
        yield np.logical_or.reduce(unlike), "bbox is not that of the outline"
        grid = self._grid
        limit_x, limit_y = round(grid.width_px * grid.scale_x), round(grid.height_px * grid.scale_y)
        inside = (bounds[0] >= 0) & (bounds[1] >= 0) & (bounds[2] <= limit_x) & (bounds[3] <= limit_y)
        yield ~inside, "outlines reach outside the slide"
        cx, cy = (rows.column(f"{axis}_level0_px").to_numpy() for axis in "xy")
        away = (cx < bounds[0] - 1) | (cy < bounds[1] - 1) | (cx > bounds[2] + 1) | (cy > bounds[3] + 1)
        yield away, "centroids lie outside their outline's box"
        points = np.stack([x, y], axis=1)
        offsets = (starts.astype(np.int64), np.arange(starts.size, dtype=np.int64))
        yield (
            ~shapely.is_valid(shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets)),
            "outlines cross themselves or enclose nothing",
        )


def _sides(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[tuple[np.ufunc, npt.NDArray[np.float64]], ...]:
    return (np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y)
