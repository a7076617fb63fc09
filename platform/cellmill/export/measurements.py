"""What QuPath's measurement table shows of a cell, and which column of the cell table each entry is.

In: a record batch of cells. Out: names, and float64 values (cells, measurements) rounded as the cell table rounds them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellmill_schemas.cells import DECIMALS
from cellmill_schemas.ontology import Ontology

__all__ = ["Measurement", "measurement_values", "measurements_of"]

_PLAIN = {
    "Confidence": "confidence",
    "Detection probability": "detection_prob",
    "Area µm^2": "area_um2",
    "Perimeter µm": "perimeter_um",
    "Major axis µm": "major_axis_um",
    "Minor axis µm": "minor_axis_um",
    "Eccentricity": "eccentricity",
    "Solidity": "solidity",
    "Hematoxylin OD mean": "hematoxylin_od_mean",
    "Eosin OD mean": "eosin_od_mean",
    "Touches border": "touches_border",
    "Exceeds reach": "exceeds_reach",
}


@dataclass(frozen=True)
class Measurement:
    """One entry of the measurement table."""

    name: str
    """As QuPath shows it; a unit is part of it, as in QuPath's own."""
    column: str
    """Of the cell table."""
    index: int | None = None
    """Position in a list column."""


def measurements_of(ontology: Ontology) -> tuple[Measurement, ...]:
    """Type probabilities in ontology order, then confidence, morphology and stain."""
    probabilities = [
        Measurement(f"Probability: {name}", "type_prob", index) for index, name in enumerate(ontology.names)
    ]
    return (*probabilities, *(Measurement(name, column) for name, column in _PLAIN.items()))


def measurement_values(cells: pa.RecordBatch, ontology: Ontology) -> npt.NDArray[np.float64]:
    """Values (cells, measurements) in the order of `measurements_of`; flags are 0 or 1."""
    values = np.empty((cells.num_rows, len(measurements_of(ontology))), np.float64)
    num_types = len(ontology)
    probabilities = cells.column("type_prob").flatten().to_numpy().reshape(-1, num_types)
    values[:, :num_types] = np.round(probabilities.astype(np.float64), DECIMALS["type_prob"])
    for index, column in enumerate(_PLAIN.values(), start=num_types):
        # float32 0.9 is 0.899999976 in float64: rounding again gives the number that was meant, and short text.
        plain = cells.column(column).to_numpy(zero_copy_only=False).astype(np.float64)
        values[:, index] = np.round(plain, DECIMALS.get(column, 0))
    return values
