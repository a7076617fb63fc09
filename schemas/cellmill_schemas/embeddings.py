"""The table of a slide's embeddings: one vector a cell, apart from the cell table and joined to it by `cell_id`."""

import pyarrow as pa

__all__ = ["embedding_schema"]


def embedding_schema(num_dimensions: int) -> pa.Schema:
    """Arrow schema of `embeddings/<student|teacher>/<slide_id>.parquet`.

    Columns: cell_id, ascending; embedding, a float16 vector of `num_dimensions`.
    """
    vector = pa.list_(pa.field("item", pa.float16(), nullable=False), num_dimensions)
    return pa.schema([pa.field("cell_id", pa.int64(), nullable=False), pa.field("embedding", vector, nullable=False)])
