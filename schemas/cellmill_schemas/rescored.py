"""The table of a second opinion: what a heavier model says of some cells of a slide.

One row is one cell of the slide's own table, which is never changed; the two are joined by `cell_id`. Values are
rounded as in the cell table.
"""

import pyarrow as pa

from cellmill_schemas.ontology import Ontology

__all__ = ["rescored_schema"]


def rescored_schema(ontology: Ontology) -> pa.Schema:
    """Arrow schema of `rescored/<slide_id>.parquet`.

    Columns: cell_id; teacher_type; teacher_prob (over the ontology, sums to 1); teacher_confidence (its maximum);
    teacher_detection_prob (mean foreground probability over the cell's outline); agrees (whether the type is the
    student's); reason (the condition the cell was chosen by).
    """
    columns: list[tuple[str, pa.DataType]] = [
        ("cell_id", pa.int64()),
        ("teacher_type", pa.dictionary(pa.int8(), pa.string())),
        ("teacher_prob", pa.list_(pa.field("item", pa.float32(), nullable=False), len(ontology))),
        ("teacher_confidence", pa.float32()),
        ("teacher_detection_prob", pa.float32()),
        ("agrees", pa.bool_()),
        ("reason", pa.dictionary(pa.int8(), pa.string())),
    ]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])
