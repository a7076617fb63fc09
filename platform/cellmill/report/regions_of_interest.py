"""Places of a slide that are worth a look: the richest, a typical one, the least sure, the densest.

Pure functions of a slide's cells; a place is a square of the slide, and no two overlap.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cellmill.overlay import OverlayRegion, busiest_region

__all__ = ["ShownRegion", "choose_regions"]

_MIN_CELLS = 10


@dataclass(frozen=True)
class ShownRegion:
    """A square to show, and why."""

    title: str
    why: str
    region: OverlayRegion


def choose_regions(cells: pl.DataFrame, *, side_um: float, number: int) -> list[ShownRegion]:
    """Up to `number` squares of `side_um`.

    Args:
        cells: rows with x_um, y_um, cell_type and confidence.
        side_um: side of a square, in um.
        number: at most 4.
    """
    if cells.is_empty() or not number:
        return []
    richest = busiest_region(cells.select("x_um", "y_um", "cell_type"), side_um=side_um)
    shown = [ShownRegion("Richest", "many cells of many types", richest)]
    squares = _Squares.of(cells, side_um=side_um)
    median = float(np.median(squares.counts))
    enough = squares.counts >= max(_MIN_CELLS, median / 2)
    unlike = np.abs(squares.shares - squares.shares.mean(axis=0)).sum(axis=1)
    candidates = (
        ("Typical", "near the median in number and types", np.abs(squares.counts / median - 1) + unlike),
        ("Least sure", "lowest mean confidence", np.where(enough, squares.confidence, np.inf)),
        ("Densest", "most cells of any square", -squares.counts.astype(np.float64)),
    )
    for title, why, cost in candidates:
        free = np.array([not any(_overlap(other.region, place) for other in shown) for place in squares.places])
        if free.any() and np.isfinite(cost[free]).any():
            best = int(np.argmin(np.where(free, cost, np.inf)))
            shown.append(ShownRegion(title, why, squares.places[best]))
    return shown[:number]


@dataclass(frozen=True)
class _Squares:
    """Squares of a grid that hold any cell."""

    places: list[OverlayRegion]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    shares: NDArray[np.float64]  # (squares, types present)

    @staticmethod
    def of(cells: pl.DataFrame, *, side_um: float) -> "_Squares":
        names = sorted(cells["cell_type"].cast(pl.String).unique().to_list())
        found = (
            cells.group_by(
                row=(pl.col("y_um") / side_um).floor().cast(pl.Int64),
                column=(pl.col("x_um") / side_um).floor().cast(pl.Int64),
            )
            .agg(
                pl.len().alias("count"),
                pl.col("confidence").mean(),
                *((pl.col("cell_type") == name).mean().alias(f"share {name}") for name in names),
            )
            .sort("row", "column")
        )
        places = [
            OverlayRegion(column * side_um, row * side_um, side_um)
            for row, column in found.select("row", "column").iter_rows()
        ]
        counts, confidence = found["count"].to_numpy().astype(np.int64), found["confidence"].to_numpy()
        shares = found.select(f"share {name}" for name in names).to_numpy()
        return _Squares(places, counts, confidence.astype(np.float64), shares.astype(np.float64))


def _overlap(one: OverlayRegion, other: OverlayRegion) -> bool:
    side = one.side_um
    return abs(one.x_um - other.x_um) < side and abs(one.y_um - other.y_um) < side
