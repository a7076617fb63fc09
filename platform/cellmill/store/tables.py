"""The committed cell table: GeoParquet 1.1 with fixed row groups and encodings.

In: cells in Hilbert order, in pieces of any size. Out: one Parquet file whose bytes depend on the cells alone: row
groups of `ROW_GROUP_CELLS`, dictionaries in ontology order, no clock time, one thread. One row is one cell.

Encodings were chosen by measured bytes, see docs/performance.md.
"""

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.objects import HashingFile
from cellmill_schemas.ontology import Ontology

__all__ = ["ROW_GROUP_CELLS", "CellTableWriter"]

ROW_GROUP_CELLS = 8_192
"""A query of 1 % of the area of a slide of 2 million cells touches 2.9 % of its groups, at worst 4.5 %; groups twice
the size would touch up to 6.5 % and save 2 bytes a cell."""

_COMPRESSION = "zstd"
_COMPRESSION_LEVEL = 3

# Rounded to few distinct values: a dictionary a row group halves them. Listed rather than guessed from the type,
# because coordinates, which are floats too, do better split into byte streams.
_DICTIONARY_COLUMNS = (
    "slide_id",
    "cell_type",
    "type_prob.list.element",
    "confidence",
    "detection_prob",
    "area_um2",
    "perimeter_um",
    "major_axis_um",
    "minor_axis_um",
    "eccentricity",
    "solidity",
    "hematoxylin_od_mean",
    "eosin_od_mean",
)

_BBOX = ("xmin", "ymin", "xmax", "ymax")

_POLARS_CATEGORICAL = {b"_PL_CATEGORICAL2": b"0;0;u32;"}
"""What polars writes beside a categorical of its own. With it, and unsigned indices, polars takes dictionaries as they
are; without, it looks up every value again, and 100 million rows take three times as long to count. It changes no
value and no column type that a reader sees; others ignore it."""


class CellTableWriter:
    """Writes the table to a file as its rows arrive; `with` it, `add` to it."""

    def __init__(self, file: HashingFile, schema: pa.Schema, *, ontology: Ontology) -> None:
        schema = _with_polars_categoricals(schema)
        self._schema = schema
        self._writer = pq.ParquetWriter(
            file,
            schema,
            version="2.6",
            data_page_version="1.0",
            compression=_COMPRESSION,
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=list(_DICTIONARY_COLUMNS),  # pyright: ignore[reportArgumentType]
            column_encoding=_column_encodings(schema),
            write_statistics=_statistics_columns(schema),  # pyright: ignore[reportArgumentType]
            store_schema=True,
        )
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._bounds: list[float] | None = None
        self.num_cells_by_type = dict.fromkeys(ontology.names, 0)
        self.num_cells = 0

    def __enter__(self) -> "CellTableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write_groups(at_least=1)
            self._writer.add_key_value_metadata({"geo": json.dumps(self._geo_metadata())})
        self._writer.close()

    def add(self, cells: pa.Table) -> None:
        """Append rows, which must follow those before in the table's order."""
        self._waiting.append(cells)
        self._num_waiting += cells.num_rows
        self._write_groups(at_least=ROW_GROUP_CELLS)

    def _write_groups(self, *, at_least: int) -> None:
        if self._num_waiting < at_least:
            return
        table = pa.concat_tables(self._waiting)
        start = 0
        while table.num_rows - start >= at_least:
            group = table.slice(start, ROW_GROUP_CELLS).combine_chunks()
            self._count(group)
            self._writer.write_table(group.cast(self._schema), row_group_size=ROW_GROUP_CELLS)
            start += group.num_rows
        # A copy, so that what waits does not keep the pieces it was cut from alive.
        self._waiting = [table.slice(start).combine_chunks()]
        self._num_waiting = table.num_rows - start

    def _count(self, group: pa.Table) -> None:
        self.num_cells += group.num_rows
        types = group.column("cell_type").combine_chunks()
        counts = np.bincount(types.indices.to_numpy(), minlength=len(types.dictionary))
        for name, count in zip(types.dictionary.to_pylist(), counts.tolist(), strict=True):
            self.num_cells_by_type[name] += count
        box = group.column("bbox").combine_chunks()
        sides = [box.field(name).to_numpy().astype(np.float64) for name in _BBOX]
        bounds = [sides[0].min(), sides[1].min(), sides[2].max(), sides[3].max()]
        if self._bounds is not None:
            bounds = [*np.minimum(bounds[:2], self._bounds[:2]), *np.maximum(bounds[2:], self._bounds[2:])]
        self._bounds = [float(bound) for bound in bounds]

    def _geo_metadata(self) -> dict[str, Any]:
        column: dict[str, Any] = {
            "encoding": "polygon",
            "geometry_types": ["Polygon"],
            "crs": None,
            "edges": "planar",
            "covering": {"bbox": {name: ["bbox", name] for name in _BBOX}},
        }
        if self._bounds is not None:
            column["bbox"] = self._bounds
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _with_polars_categoricals(schema: pa.Schema) -> pa.Schema:
    """The schema with unsigned dictionary indices, marked for polars."""
    fields: list[pa.Field] = []
    for field in schema:
        if isinstance(field.type, pa.DictionaryType):
            index = pa.uint8() if field.type.index_type == pa.int8() else pa.uint32()
            kind = pa.dictionary(index, field.type.value_type)
            field = field.with_type(kind).with_metadata(_POLARS_CATEGORICAL)  # noqa: PLW2901 - the same field, marked
        fields.append(field)
    return pa.schema(fields)


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """Parquet column paths of the schema's leaves, and their types."""

    def descend(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
        if isinstance(kind, pa.StructType):
            for index in range(kind.num_fields):
                child = kind.field(index)
                yield from descend(f"{path}.{child.name}", child.type)
        elif isinstance(kind, pa.ListType | pa.FixedSizeListType):
            # Arrow's Parquet writer calls every list's item 'element', whatever the field's own name.
            yield from descend(f"{path}.list.element", kind.value_type)
        else:
            yield path, kind

    for field in schema:
        yield from descend(field.name, field.type)


def _column_encodings(schema: pa.Schema) -> dict[str, str]:
    encodings: dict[str, str] = {}
    for path, kind in _leaves(schema):
        if path in _DICTIONARY_COLUMNS:
            continue
        if pa.types.is_floating(kind):
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(kind):
            encodings[path] = "DELTA_BINARY_PACKED"
    return encodings


def _statistics_columns(schema: pa.Schema) -> list[str]:
    """Columns whose ranges let a query skip row groups; those of vertices and probabilities would only cost bytes."""
    return [path for path, _ in _leaves(schema) if ".list." not in path]
