"""Rows that travel between the stages of a run: a kind, a small JSON document, perhaps pixels.

One row is one message. JSON because stages may run different versions of nothing but must be readable in a dump; Arrow
binary for pixels, so that Ray hands them on without a copy.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Row", "RowKind"]

RowKind = Literal["slide", "planned", "task", "pixels", "field", "ended", "refused", "failed"]
"""slide: to be planned. planned: how many fields a slide has. task: a field to read. pixels: a field to segment.
field: a field is done. ended: a slide that was done before. refused: a slide whose status stays as it is. failed: a
slide, or one of its fields, cannot be done."""

_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("pixels", pa.large_binary()),
    ]
)


@dataclass(frozen=True)
class Row:
    """One message."""

    kind: RowKind
    slide_id: str
    document: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pixels: npt.NDArray[np.uint8] | None = None

    def to_table(self) -> pa.Table:
        """As a table of one row; the pixels are not copied."""
        pixels = pa.nulls(1, pa.large_binary()) if self.pixels is None else _binary(self.pixels)
        document = json.dumps(self.document, separators=(",", ":"))
        return pa.table([[self.kind], [self.slide_id], [document], pixels], schema=_SCHEMA)

    @staticmethod
    def of_table(table: pa.Table) -> "Row":
        """The row of a table of one; its pixels are flat, read-only and not copied."""
        assert table.num_rows == 1, f"one row a message, got {table.num_rows}"
        value = table.column("pixels").chunk(0)[0]
        return Row(
            kind=table.column("kind")[0].as_py(),
            slide_id=table.column("slide_id")[0].as_py(),
            document=json.loads(table.column("document")[0].as_py()),
            pixels=np.frombuffer(value.as_buffer(), np.uint8) if value.is_valid else None,
        )


def _binary(pixels: npt.NDArray[np.uint8]) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    return pa.Array.from_buffers(
        pa.large_binary(), 1, [None, offsets, pa.py_buffer(np.ascontiguousarray(pixels).reshape(-1))]
    )
