"""The cohort in numbers: one `SlideRow` a slide, judged against the rest.

Consumes statuses, one streaming query over all cells, and the manifest's groups; produces what index and slide pages
say. No pixels here, and no more cells in memory than a query's batch.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cellmill.report.outliers import Flag, Measure, find_flags
from cellmill.store.errors import UnsafeNameError
from cellmill.store.identity import CellSetIdentity
from cellmill.store.layout import check_slide_id
from cellmill.store.reading import open_cells
from cellmill_schemas.slides import SlideStatus

__all__ = ["Cohort", "SlideRow", "mean_confidences"]


@dataclass(frozen=True)
class SlideRow:
    """One slide against the cohort."""

    status: SlideStatus
    group: str
    mean_confidence: float | None
    flags: tuple[Flag, ...]

    @property
    def slide_id(self) -> str:
        """The slide."""
        return self.status.slide_id

    @property
    def is_done(self) -> bool:
        """Whether it has cells or is known to have none."""
        return self.status.outcome in ("done", "done_empty")

    @property
    def has_page(self) -> bool:
        """Whether it gets a page: not a slide removed on request, nor one whose id cannot be a file's name."""
        try:
            return bool(check_slide_id(self.slide_id)) and self.status.outcome != "forgotten"
        except UnsafeNameError:
            return False

    @property
    def per_mm2(self) -> float | None:
        """Cells per mm2 analysed."""
        return self.density(None)

    @property
    def blurred_share(self) -> float:
        """Share of the tissue that was out of focus."""
        blurred = self.status.excluded.blur_mm2
        return blurred / (blurred + self.status.analysed_mm2) if blurred else 0.0

    def density(self, cell_type: str | None) -> float | None:
        """Cells of a type, or all, per mm2 analysed."""
        if not self.is_done or not self.status.analysed_mm2:
            return None
        return self.count(cell_type) / self.status.analysed_mm2

    def share(self, cell_type: str) -> float | None:
        """Share of the cells."""
        return self.count(cell_type) / self.status.num_cells if self.status.num_cells else None

    def count(self, cell_type: str | None) -> int:
        """Cells of a type, or all."""
        return self.status.num_cells if cell_type is None else self.status.num_cells_by_type.get(cell_type, 0)


@dataclass(frozen=True)
class Cohort:
    """All slides of a cell set."""

    title: str
    identity: CellSetIdentity
    rows: tuple[SlideRow, ...]
    """By slide id."""
    group_by: str
    """Name of the column that groups slides; empty without."""

    @staticmethod
    def of(
        statuses: Sequence[SlideStatus],
        identity: CellSetIdentity,
        *,
        title: str,
        confidences: Mapping[str, float],
        groups: Mapping[str, str] | None = None,
        group_by: str = "",
    ) -> "Cohort":
        """Judge every slide that is done."""
        groups = groups or {}
        plain = [
            SlideRow(status, groups.get(status.slide_id, ""), confidences.get(status.slide_id), ())
            for status in statuses
        ]
        flags = _flags(plain, identity.ontology.names)
        rows = tuple(
            SlideRow(row.status, row.group, row.mean_confidence, tuple(flags.get(index, ())))
            for index, row in enumerate(plain)
        )
        return Cohort(title=title, identity=identity, rows=rows, group_by=group_by)

    @property
    def done(self) -> list[SlideRow]:
        """Slides that are done, with or without cells."""
        return [row for row in self.rows if row.is_done]

    @property
    def failed(self) -> list[SlideRow]:
        """Slides that failed."""
        return [row for row in self.rows if row.status.outcome == "failed"]

    @property
    def num_forgotten(self) -> int:
        """Slides removed on request."""
        return sum(row.status.outcome == "forgotten" for row in self.rows)

    @cached_property
    def densities(self) -> dict[str | None, NDArray[np.float64]]:
        """Cells per mm2 of every slide that has any area, ascending, by type; None for all cells."""
        return {
            name: np.sort([value for row in self.done if (value := row.density(name)) is not None])
            for name in (None, *self.identity.ontology.names)
        }

    @cached_property
    def spread(self) -> dict[str | None, NDArray[np.float64]]:
        """Least, lower quartile, median, upper quartile and most of `densities`."""
        return {
            name: np.quantile(known, (0, 0.25, 0.5, 0.75, 1)) if known.size else np.full(5, np.nan)
            for name, known in self.densities.items()
        }

    def percentile(self, row: SlideRow, cell_type: str | None) -> float | None:
        """Per cent of the other slides that are less dense, ties counted half; None without others."""
        own, known = row.density(cell_type), self.densities[cell_type]
        if own is None or len(known) < 2:
            return None
        below, up_to = np.searchsorted(known, own, side="left"), np.searchsorted(known, own, side="right")
        return 100.0 * float(below + (up_to - 1 - below) / 2) / (len(known) - 1)


def mean_confidences(url: str | Path) -> dict[str, float]:
    """Mean confidence of each slide's cells, in one pass over that one column."""
    found = open_cells(url).group_by("slide_id").agg(pl.col("confidence").mean()).collect(engine="streaming")
    return dict(found.select(pl.col("slide_id").cast(pl.String), "confidence").iter_rows())


def _flags(rows: Sequence[SlideRow], names: Sequence[str]) -> dict[int, list[Flag]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.status.outcome == "done":
            groups[""].append(index)
            if row.group:
                groups[row.group].append(index)
    found: dict[int, list[Flag]] = defaultdict(list)
    for flag in find_flags(_measures(rows, names), groups):
        found[flag.slide].append(flag)
    return found


def _measures(rows: Sequence[SlideRow], names: Sequence[str]) -> list[Measure]:
    def column(values: Sequence[float | None]) -> NDArray[np.float64]:
        return np.array([np.nan if value is None else value for value in values], np.float64)

    shares = [
        Measure(f"share of {name}", column([row.share(name) for row in rows]), "logit", unit="share") for name in names
    ]
    return [
        Measure("cells per mm²", column([row.per_mm2 for row in rows]), "log", unit="per_mm2"),
        *shares,
        Measure("mean confidence", column([row.mean_confidence for row in rows]), sides="low"),
        Measure("tissue out of focus", column([row.blurred_share for row in rows]), sides="high", unit="share"),
    ]
