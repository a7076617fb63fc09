"""Rows that travel between the stages of a run: a kind and a small JSON document. One row is one message."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

__all__ = ["Row", "RowKind"]

RowKind = Literal["slide", "planned", "strip", "field", "ended", "refused", "failed"]
"""slide: to be planned. planned: how many fields a slide has. strip: fields to segment. field: a field is done. ended:
a slide that was done before. refused: a slide whose status stays as it is. failed: a slide, or one of its fields,
cannot be done."""

_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("kind", "slide_id", "document")])


@dataclass(frozen=True)
class Row:
    """One message."""

    kind: RowKind
    slide_id: str
    document: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_table(self) -> pa.Table:
        """As a table of one row."""
        document = json.dumps(self.document, separators=(",", ":"))
        return pa.table([[self.kind], [self.slide_id], [document]], schema=_SCHEMA)

    @staticmethod
    def of_table(table: pa.Table) -> "Row":
        """The row of a table of one."""
        assert table.num_rows == 1, f"one row a message, got {table.num_rows}"
        return Row(
            kind=table.column("kind")[0].as_py(),
            slide_id=table.column("slide_id")[0].as_py(),
            document=json.loads(table.column("document")[0].as_py()),
        )
