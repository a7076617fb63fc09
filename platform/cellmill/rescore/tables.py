"""Chosen cells and their scores as rows of `rescored_schema`, in cell_id order."""

import numpy as np
import pyarrow as pa

from cellmill.rescore.choosing import ChosenCells
from cellmill.rescore.scoring import CellScores
from cellmill_schemas.cells import DECIMALS
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.rescored import rescored_schema

__all__ = ["rescored_table"]


def rescored_table(cells: ChosenCells, scores: CellScores, ontology: Ontology, *, where: str) -> pa.Table:
    """Rows of `rescored_schema` in cell_id order; cells that could not be read have none."""
    rows = np.flatnonzero(scores.num_pixels > 0)
    rows = rows[np.argsort(cells.cell_ids[rows], kind="stable")]
    prob = scores.type_prob[rows]  # (n, C)
    kinds = prob.argmax(axis=1)
    names = np.array(ontology.names, object)
    digits = DECIMALS["type_prob"]
    flat = pa.array(prob.round(digits).astype(np.float32).ravel())
    columns = {
        "cell_id": pa.array(cells.cell_ids[rows]),
        "teacher_type": pa.DictionaryArray.from_arrays(pa.array(kinds.astype(np.int8)), pa.array(list(names))),
        "teacher_prob": pa.FixedSizeListArray.from_arrays(flat, len(ontology)),
        "teacher_confidence": pa.array(prob.max(axis=1, initial=0.0).round(digits).astype(np.float32)),
        "teacher_detection_prob": pa.array(scores.detection_prob[rows].round(digits).astype(np.float32)),
        "agrees": pa.array([names[kind] == cells.cell_types[row] for kind, row in zip(kinds, rows, strict=True)]),
        "reason": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int8)), pa.array([where])),
    }
    schema = rescored_schema(ontology)
    return pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
