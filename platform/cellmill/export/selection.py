"""Cells of one slide, a part of a file at a time, and only those asked for.

In: a committed cell table, a condition in SQL, an area. Out: record batches of at most one row group; what is held in
memory does not grow with the slide.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from shapely.geometry import MultiPolygon, Polygon

from cellmill.store.layout import cells_key
from cellmill.store.objects import ObjectStore
from cellmill_schemas.cells import cell_schema
from cellmill_schemas.ontology import Ontology

__all__ = ["CellSelection", "parse_where", "read_selected"]

_BATCH_CELLS = 8192
_PER_CELL_FUNCTIONS = {
    *("Abs", "Ceil", "Floor", "Sign", "Pow", "Exp", "Log", "Coalesce", "MaxHorizontal", "MinHorizontal", "Sql"),
    *("StringExpr", "ListExpr"),
}
_PER_CELL_TESTS = {"Not", "IsNull", "IsNotNull", "IsNan", "IsFinite", "IsIn"}
_NOT_ASKED_ABOUT = ("geometry", "bbox", "embedding")
"""Columns that no condition can name: they are large, and it would be asked of them only by mistake."""


@dataclass(frozen=True)
class CellSelection:
    """Which cells of a slide are wanted."""

    where: pl.Expr | None = None
    """What a cell's own row must fulfil, from `parse_where`."""
    within: Polygon | MultiPolygon | None = None
    """Where its centroid must lie, in level-0 px."""


def parse_where(text: str, ontology: Ontology) -> pl.Expr:
    """A condition on cells, such as "cell_type = 'lymphocyte' AND confidence > 0.6", as polars understands SQL.

    Only expressions over the columns of one cell pass: SQL that reads anything else has no place in an expression, and
    averages over cells would depend on how the file is cut.

    Raises:
        ValueError: when it is no such condition, saying why and which columns there are.
    """
    rows = _askable(pa.RecordBatch.from_pylist([], schema=cell_schema(ontology)))
    try:
        condition = pl.sql_expr(text)
        kind = rows.lazy().select(condition.alias("wanted")).collect_schema()["wanted"]
        rows.select(condition.alias("wanted"))  # finds what only shows when it runs
        columns = condition.meta.root_names()
        of_one_cell = _is_of_one_cell(json.loads(condition.meta.serialize(format="json")))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"--where {text!r} is no condition on cells: {error}. {_columns(rows)}") from error
    wrong = None
    if kind != pl.Boolean:
        wrong = f"gives {kind}, not true or false"
    elif not columns:
        wrong = "asks nothing of a cell"
    elif not of_one_cell:
        wrong = "looks at several cells at once (an average, a rank, a subquery)"
    if wrong is not None:
        raise ValueError(f"--where {text!r} {wrong}; give a condition that each cell fulfils or not. {_columns(rows)}")
    return condition


def _is_of_one_cell(node: Any) -> bool:
    """Whether an expression, as polars writes it in JSON, uses nothing but the row it is asked about.

    Polars' own `is_row_separable` needs the columns' types and has no way to be told them. What is not known here is
    refused.
    """
    if not isinstance(node, dict) or len(node) != 1:
        return False
    (kind, content), *_ = node.items()
    parts: list[Any]
    if kind in ("Column", "Literal"):
        return True
    if kind == "BinaryExpr":
        parts = [content["left"], content["right"]]
    elif kind == "Ternary":
        parts = [content["predicate"], content["truthy"], content["falsy"]]
    elif kind == "Cast":
        parts = [content["expr"]]
    elif kind == "Function":
        if not _is_per_cell(content["function"]):
            return False
        parts = content["input"]
    else:
        return False
    return all(_is_of_one_cell(part) for part in parts)


def _is_per_cell(function: Any) -> bool:
    name, detail = next(iter(function.items())) if isinstance(function, dict) else (function, None)
    if name == "Boolean":
        test = next(iter(detail)) if isinstance(detail, dict) else detail
        return test in _PER_CELL_TESTS
    joins_rows = name == "StringExpr" and "Vertical" in str(detail)
    return name in _PER_CELL_FUNCTIONS and not joins_rows


def read_selected(store: ObjectStore, slide_id: str, selection: CellSelection) -> Iterator[pa.RecordBatch]:
    """Batches of the cells wanted, in the table's order; none of them is empty."""
    with store.open_random(cells_key(slide_id)) as file, pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=_BATCH_CELLS):
            wanted = _wanted(batch, selection)
            if wanted.all():
                yield batch
            elif wanted.any():
                yield batch.filter(pa.array(wanted))


def _wanted(batch: pa.RecordBatch, selection: CellSelection) -> np.ndarray:
    wanted = np.ones(batch.num_rows, np.bool_)
    if selection.where is not None:
        # A comparison with nothing (an empty value) is not fulfilled.
        wanted &= _askable(batch).select(selection.where.alias("wanted"))["wanted"].fill_null(False).to_numpy()
    if selection.within is not None:
        shapely.prepare(selection.within)
        x, y = (pc.cast(batch.column(f"{axis}_level0_px"), pa.float64()).to_numpy() for axis in "xy")
        wanted &= shapely.contains_xy(selection.within, x, y)
    return wanted


def _askable(batch: pa.RecordBatch) -> pl.DataFrame:
    names = [name for name in batch.schema.names if name not in _NOT_ASKED_ABOUT]
    frame = pl.DataFrame(pa.Table.from_batches([batch.select(names)]))
    # SQL's array_get and its kind know lists only.
    return frame.with_columns(pl.col("slide_id", "cell_type").cast(pl.String), pl.col("type_prob").arr.to_list())


def _columns(rows: pl.DataFrame) -> str:
    return f"The columns are {', '.join(rows.columns)}; texts stand in single quotes."
