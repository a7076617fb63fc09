"""How far student and teacher agree, by slide and by the student's type.

In: rescored tables' figures. Out: rows for a table that people read and a Parquet file that they query.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import pyarrow as pa

__all__ = ["SlideAgreement", "agreement_table"]


@dataclass(frozen=True)
class SlideAgreement:
    """One slide's second opinion."""

    slide_id: str
    num_chosen: int = 0
    """Cells that the query chose."""
    num_tiles: int = 0
    rescored_mm2: float = 0.0
    """Area of the tiles' cores."""
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """(student's type, teacher's type) -> cells."""
    problem: str = ""
    """Why the slide has no scores, in words."""

    @property
    def num_scored(self) -> int:
        """Cells with a second opinion."""
        return sum(self.pairs.values())

    @property
    def num_agreeing(self) -> int:
        """Cells of which both say the same."""
        return sum(number for (student, teacher), number in self.pairs.items() if student == teacher)

    def to_table(self) -> pa.Table:
        """As a message of one row."""
        document = {**asdict(self), "pairs": [[*pair, number] for pair, number in sorted(self.pairs.items())]}
        return pa.table({"agreement": [json.dumps(document)]})

    @staticmethod
    def of_table(table: pa.Table) -> "SlideAgreement":
        """Parse what `to_table` made."""
        document = json.loads(table.column("agreement")[0].as_py())
        pairs = Counter({(student, teacher): number for student, teacher, number in document.pop("pairs")})
        return SlideAgreement(**document, pairs=pairs)


def agreement_table(slides: Iterable[SlideAgreement]) -> pa.Table:
    """One row a slide and pair of types: slide_id, student_type, teacher_type, cells."""
    rows = [
        {"slide_id": slide.slide_id, "student_type": student, "teacher_type": teacher, "cells": number}
        for slide in slides
        for (student, teacher), number in sorted(slide.pairs.items())
    ]
    schema = pa.schema([
        pa.field("slide_id", pa.string()),
        pa.field("student_type", pa.string()),
        pa.field("teacher_type", pa.string()),
        pa.field("cells", pa.int64()),
    ])  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)
