"""The cell table: exact column names, types, units and rounding.

One row is one cell. Every writer goes through `cell_schema`, every reader may rely on it. Rounding is part of the
contract because it fixes the bytes: a value is rounded to the decimals below in float64 and then stored in the
column's type.
"""

from dataclasses import dataclass

import pyarrow as pa

from cellmill_schemas.ontology import Ontology

__all__ = [
    "ANCHOR_BITS",
    "BBOX_TYPE",
    "DECIMALS",
    "GEOMETRY_DECIMALS",
    "GEOMETRY_TYPE",
    "CellKey",
    "cell_schema",
    "make_cell_id",
    "split_cell_id",
]

ANCHOR_BITS = 48
"""Low bits of a `cell_id` that hold the anchor's pixel index on the model grid."""

_SLIDE_BITS = 63 - ANCHOR_BITS

_POINT_TYPE = pa.struct([pa.field("x", pa.float64(), nullable=False), pa.field("y", pa.float64(), nullable=False)])

GEOMETRY_TYPE = pa.list_(pa.field("rings", pa.list_(pa.field("vertices", _POINT_TYPE, nullable=False)), nullable=False))
"""GeoArrow polygon (GeoParquet 1.1 native encoding "polygon"): rings of vertices in level-0 px, exterior ring only,
closed, x right and y down, no holes."""

BBOX_TYPE = pa.struct([pa.field(name, pa.float32(), nullable=False) for name in ("xmin", "ymin", "xmax", "ymax")])
"""GeoParquet 1.1 covering of the geometry in level-0 px; its statistics let a region query skip row groups."""

GEOMETRY_DECIMALS = 0
"""Polygon vertices are rounded to whole level-0 px."""

DECIMALS: dict[str, int] = {
    "x_um": 2,
    "y_um": 2,
    "x_level0_px": 1,
    "y_level0_px": 1,
    "type_prob": 3,
    "confidence": 3,
    "detection_prob": 3,
    "area_um2": 1,
    "perimeter_um": 1,
    "major_axis_um": 1,
    "minor_axis_um": 1,
    "eccentricity": 2,
    "solidity": 2,
    "hematoxylin_od_mean": 3,
    "eosin_od_mean": 3,
}
"""Decimals each floating column is rounded to before it is stored."""


def cell_schema(ontology: Ontology, *, num_embedding: int = 0) -> pa.Schema:
    """Arrow schema of a cell table.

    Args:
        ontology: fixes the dictionary of `cell_type` and the length of `type_prob`.
        num_embedding: length of the optional float16 `embedding` column; 0 leaves the column out.

    Columns, in order: slide_id; cell_id (positive int64, see `make_cell_id`); mask_id (1 + anchor index, as painted in
    the mask); x_um, y_um and x_level0_px, y_level0_px (centroid); cell_type; type_prob (over the ontology, sums to 1);
    confidence (its maximum); detection_prob (mean foreground probability); area_um2, perimeter_um, major_axis_um,
    minor_axis_um (ellipse of equal second moments), eccentricity, solidity; hematoxylin_od_mean, eosin_od_mean (optical
    density after Ruifrok deconvolution); touches_border (of the slide or of the analysed area); exceeds_reach (the
    decode cut a path short, so the outline may be); geometry (polygon, level-0 px); bbox (level-0 px).
    """
    f32 = pa.float32()
    columns: list[tuple[str, pa.DataType]] = [
        ("slide_id", pa.dictionary(pa.int32(), pa.string())),
        ("cell_id", pa.int64()),
        ("mask_id", pa.uint64()),
        ("x_um", f32),
        ("y_um", f32),
        ("x_level0_px", f32),
        ("y_level0_px", f32),
        ("cell_type", pa.dictionary(pa.int8(), pa.string())),
        ("type_prob", pa.list_(pa.field("item", f32, nullable=False), len(ontology))),
        ("confidence", f32),
        ("detection_prob", f32),
        ("area_um2", f32),
        ("perimeter_um", f32),
        ("major_axis_um", f32),
        ("minor_axis_um", f32),
        ("eccentricity", f32),
        ("solidity", f32),
        ("hematoxylin_od_mean", f32),
        ("eosin_od_mean", f32),
        ("touches_border", pa.bool_()),
        ("exceeds_reach", pa.bool_()),
        ("geometry", GEOMETRY_TYPE),
        ("bbox", BBOX_TYPE),
    ]
    if num_embedding:
        columns.append(("embedding", pa.list_(pa.field("item", pa.float16(), nullable=False), num_embedding)))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


@dataclass(frozen=True)
class CellKey:
    """The two halves of a `cell_id`."""

    slide_hash: int
    anchor_index: int


def make_cell_id(key: CellKey) -> int:
    """Positive int64 whose low 48 bits are the anchor index and whose high bits hash the slide.

    Raises:
        ValueError: when either half does not fit its bits.
    """
    if not 0 <= key.anchor_index < 1 << ANCHOR_BITS:
        raise ValueError(f"anchor_index must fit {ANCHOR_BITS} bits, got {key.anchor_index}.")
    if not 0 < key.slide_hash < 1 << _SLIDE_BITS:
        raise ValueError(f"slide_hash must be positive and fit {_SLIDE_BITS} bits, got {key.slide_hash}.")
    return key.slide_hash << ANCHOR_BITS | key.anchor_index


def split_cell_id(cell_id: int) -> CellKey:
    """The inverse of `make_cell_id`."""
    return CellKey(slide_hash=cell_id >> ANCHOR_BITS, anchor_index=cell_id & ((1 << ANCHOR_BITS) - 1))
