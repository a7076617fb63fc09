"""Cells of a slide as typed points in um: all that spatial statistics need of them.

In: the cell set and a done slide. Out: `CellPoints`; one row is one cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cellmill.store.reading import open_cells
from cellmill_schemas.ontology import Ontology

__all__ = ["CellPoints", "read_points"]


@dataclass(frozen=True)
class CellPoints:
    """Cells as points. All arrays have one entry a cell."""

    xy_um: NDArray[np.float64]  # (n, 2), from the slide's origin
    types: NDArray[np.int16]  # (n,), index into `names`
    area_um2: NDArray[np.float32]  # (n,)
    names: tuple[str, ...]
    """Cell types in ontology order."""

    def __post_init__(self) -> None:
        if self.xy_um.ndim != 2 or self.xy_um.shape[1] != 2 or not len(self.xy_um) == len(self.types):
            raise ValueError(
                f"Points need (n, 2) positions and n types, got {self.xy_um.shape} and {self.types.shape}."
            )

    def __len__(self) -> int:
        return len(self.types)

    def where(self, kept: NDArray[np.bool_]) -> "CellPoints":
        """The cells for which `kept` (n,) holds."""
        return CellPoints(self.xy_um[kept], self.types[kept], self.area_um2[kept], self.names)

    def of_types(self, indices: Sequence[int]) -> "CellPoints":
        """The cells of any of these types."""
        return self.where(np.isin(self.types, np.array(indices, np.int16)))

    def counts(self) -> NDArray[np.int64]:
        """Cells of each type (T,)."""
        return np.bincount(self.types, minlength=len(self.names)).astype(np.int64)


def read_points(url: str | Path, slide_id: str, ontology: Ontology, *, min_confidence: float = 0.0) -> CellPoints:
    """The cells of one done slide.

    Args:
        url: the cell set.
        slide_id: the slide.
        ontology: fixes the order of the types.
        min_confidence: cells below it are left out.

    Raises:
        FileNotFoundError: when the slide is not done.
    """
    cells = (
        open_cells(url, slide_ids=[slide_id], min_confidence=min_confidence or None)
        .select("x_um", "y_um", "area_um2", pl.col("cell_type").cast(pl.String))
        .collect()
    )
    order = pl.DataFrame({"cell_type": ontology.names, "index": np.arange(len(ontology), dtype=np.int16)})
    types = cells.select("cell_type").join(order, on="cell_type", how="left", maintain_order="left")["index"]
    xy_um = cells.select(pl.col("x_um", "y_um").cast(pl.Float64)).to_numpy()
    return CellPoints(
        xy_um=np.ascontiguousarray(xy_um).reshape(-1, 2),
        types=types.to_numpy().astype(np.int16),
        area_um2=cells["area_um2"].to_numpy().astype(np.float32),
        names=ontology.names,
    )
