"""The table of a fitted type head's answers: other types for the cells of a slide, joined by `cell_id`."""

import pyarrow as pa

from cellmill_schemas.ontology import Ontology

__all__ = ["retyped_schema"]


def retyped_schema(ontology: Ontology) -> pa.Schema:
    """Arrow schema of `retyped/<name>/<slide_id>.parquet`.

    Columns: cell_id, ascending; retyped_type; retyped_prob (over the head's ontology, sums to 1); retyped_confidence
    (its maximum). Rounded as in the cell table.
    """
    columns: list[tuple[str, pa.DataType]] = [
        ("cell_id", pa.int64()),
        ("retyped_type", pa.dictionary(pa.int8(), pa.string())),
        ("retyped_prob", pa.list_(pa.field("item", pa.float32(), nullable=False), len(ontology))),
        ("retyped_confidence", pa.float32()),
    ]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])
