"""What the seven `refined7` types (and three kinds of things that are no cells) look like: one row a kind.

Areas and elongations follow the typed outlines of the PUMA dataset (12,368 nuclei of melanoma regions at 0.226 um/px,
CC0, Schuiveling et al. 2025, GigaScience 14, giaf011). Measured there, median area in um2 / spread of its logarithm /
median elongation of the minimum bounding rectangle: tumour 24.8 / 0.65 / 1.48, stroma 15.0 / 0.57 / 2.20, lymphocyte
14.9 / 0.44 / 1.30, apoptosis 11.9 / 0.82 / 1.29, neutrophil 16.2 / 0.49 / 1.45, histiocyte 24.2 / 0.51 / 1.52,
epithelium 27.8 / 0.58 / 1.68. Spreads are narrower here because each slide's own size factors widen them again, and
tumour nuclei are larger because other organs' are (MoNuSAC).
Stain means overlap on purpose: no type is told by its size and darkness alone. What tells them apart is what a
pathologist goes by: neoplastic nuclei are irregular in outline, coarse in chromatin and mostly show nucleoli, benign
epithelial ones are smooth, fine and even; lymphocytes are round, dark and clumped, macrophages bean-shaped and pale in
foamy cytoplasm, neutrophils lobed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEBRIS", "KIND_TABLE", "NUM_KINDS", "NUM_TYPES", "PIGMENT", "RED_CELL", "TYPE_NAMES", "KindRow"]

TYPE_NAMES = ("neoplastic", "lymphocyte", "connective", "dead", "epithelial", "macrophage", "neutrophil")
"""The order of the `refined7` ontology; a type's number is its place here."""

NUM_TYPES = len(TYPE_NAMES)
NEOPLASTIC, LYMPHOCYTE, CONNECTIVE, DEAD, EPITHELIAL, MACROPHAGE, NEUTROPHIL = range(NUM_TYPES)
RED_CELL, PIGMENT, DEBRIS = 7, 8, 9
NUM_KINDS = 10


class KindRow(NamedTuple):
    """How one kind is drawn; stain amounts are optical densities at a slide of average intensity."""

    area_um2: float
    area_log_sd: float
    elongation: float
    elongation_log_sd: float
    irregularity: float
    """Amplitude of the outline's second to fourth harmonics."""
    dent: float
    """Depth of a one-sided indentation (kidney shape)."""
    bend: float
    lobes: float
    """Mean number of lobes; below 2 is a plain outline."""
    hematoxylin: float
    hematoxylin_sd: float
    clump_um: float
    """Grain of the chromatin."""
    clump: float
    """Contrast of the chromatin."""
    rim: float
    """Extra density of the nuclear membrane."""
    pallor: float
    """How much paler the middle is (vesicular nucleus)."""
    nucleoli: float
    """Chance of a visible nucleolus."""
    cytoplasm_factor: float
    """Reach of the cytoplasm in nuclear radii."""
    cytoplasm_eosin: float
    cytoplasm_hematoxylin: float
    cytoplasm_vacuoles: float
    """Foaminess of the cytoplasm."""
    halo: float = 0.0
    """Share of cells with a shrinkage gap around the nucleus."""
    membrane: float = 0.08
    """Eosin of the line where two cells of a sheet meet; negative for a pale gap."""


def _row(*, shape: tuple[float, ...], stain: tuple[float, ...], cytoplasm: tuple[float, ...]) -> KindRow:
    """A row from its three groups, in the order of `KindRow`: area to lobes, hematoxylin to nucleoli, cytoplasm."""
    return KindRow(*shape, *stain, *cytoplasm)


_ROWS = (
    _row(
        shape=(34.0, 0.38, 1.32, 0.18, 0.14, 0.16, 0.05, 0.0),
        stain=(0.58, 0.16, 1.50, 0.60, 0.38, 0.35, 0.60),
        cytoplasm=(2.10, 0.24, 0.10, 0.15),
    ),  # neoplastic
    _row(
        shape=(16.5, 0.26, 1.14, 0.10, 0.05, 0.08, 0.00, 0.0),
        stain=(0.80, 0.13, 1.15, 0.45, 0.15, 0.05, 0.04),
        cytoplasm=(1.30, 0.12, 0.10, 0.00),
    ),  # lymphocyte
    _row(
        shape=(16.5, 0.44, 2.45, 0.32, 0.05, 0.05, 0.16, 0.0),
        stain=(0.66, 0.18, 1.00, 0.28, 0.18, 0.12, 0.12),
        cytoplasm=(1.35, 0.16, 0.04, 0.00),
    ),  # connective
    _row(
        shape=(13.5, 0.52, 1.22, 0.16, 0.13, 0.15, 0.05, 1.6),
        stain=(0.76, 0.26, 2.40, 0.14, 0.00, 0.00, 0.00),
        cytoplasm=(2.00, 0.46, 0.03, 0.10),
    ),  # dead
    _row(
        shape=(26.0, 0.28, 1.40, 0.14, 0.02, 0.04, 0.02, 0.0),
        stain=(0.62, 0.14, 0.60, 0.12, 0.20, 0.15, 0.10),
        cytoplasm=(2.00, 0.20, 0.07, 0.10),
    ),  # epithelial
    _row(
        shape=(24.0, 0.36, 1.45, 0.18, 0.05, 0.42, 0.10, 0.0),
        stain=(0.54, 0.15, 1.30, 0.28, 0.30, 0.30, 0.22),
        cytoplasm=(2.60, 0.15, 0.04, 0.75),
    ),  # macrophage
    _row(
        shape=(17.0, 0.28, 1.35, 0.14, 0.03, 0.05, 0.10, 3.2),
        stain=(0.74, 0.16, 1.60, 0.20, 0.05, 0.00, 0.00),
        cytoplasm=(1.75, 0.24, 0.02, 0.10),
    ),  # neutrophil
    # No cells: red blood cells (no hematoxylin), pigment clumps and debris. None of them has a label.
    _row(
        shape=(30.0, 0.18, 1.12, 0.10, 0.04, 0.15, 0.05, 0.0),
        stain=(0.00, 0.00, 1.50, 0.05, 0.00, 0.25, 0.00),
        cytoplasm=(0.00, 0.62, 0.00, 0.00),
    ),  # red blood cell
    _row(
        shape=(9.0, 0.70, 1.30, 0.25, 0.18, 0.10, 0.05, 1.5),
        stain=(0.10, 0.05, 0.80, 0.50, 0.00, 0.00, 0.00),
        cytoplasm=(0.00, 0.05, 0.00, 0.00),
    ),  # pigment
    _row(
        shape=(4.0, 0.70, 1.60, 0.35, 0.22, 0.10, 0.10, 1.0),
        stain=(0.45, 0.20, 0.70, 0.50, 0.00, 0.00, 0.00),
        cytoplasm=(0.00, 0.15, 0.00, 0.00),
    ),  # debris
)

(
    AREA_UM2,
    AREA_LOG_SD,
    ELONGATION,
    ELONGATION_LOG_SD,
    IRREGULARITY,
    DENT,
    BEND,
    LOBES,
    HEMATOXYLIN,
    HEMATOXYLIN_SD,
    CLUMP_UM,
    CLUMP,
    RIM,
    PALLOR,
    NUCLEOLI,
    CYTOPLASM_FACTOR,
    CYTOPLASM_EOSIN,
    CYTOPLASM_HEMATOXYLIN,
    CYTOPLASM_VACUOLES,
    HALO,
    MEMBRANE,
) = range(len(KindRow._fields))
"""Columns of `KIND_TABLE`, for the compiled kernels, which cannot ask a named tuple."""

KIND_TABLE: NDArray[np.float64] = np.array(_ROWS)  # (kind, KindRow field)
