"""The report's first page: the cohort in numbers, what stands out, what failed, every slide.

In: a judged cohort. Out: one HTML page, about a kilobyte a slide.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellmill.report.cohort import Cohort, SlideRow
from cellmill.report.drawing import strip_dots
from cellmill.report.outliers import LIMIT, MIN_SLIDES
from cellmill.report.rendering import render, whole

__all__ = ["index_page"]

_WIDTH, _HEIGHT, _INSET = 400.0, 30.0, 6.0
"""Size of a strip of dots, and how far the first and last dots stay from its ends."""


@dataclass(frozen=True)
class _Totals:
    num_cells: int
    analysed_mm2: float
    slide_mm2: float
    num_flagged: int


@dataclass(frozen=True)
class _Tick:
    x: float
    label: str
    anchor: str


@dataclass(frozen=True)
class _Strip:
    """One type's densities over the slides."""

    name: str
    color: tuple[int, int, int] | None
    num_cells: int
    share: float | None
    spread: NDArray[np.float64]
    dots: str
    box: tuple[float, float]
    """Left and width of the middle half."""
    median_x: float


@dataclass(frozen=True)
class _Group:
    name: str
    num_slides: int
    num_failed: int
    mm2: float
    per_mm2: float | None
    densities: tuple[float | None, ...]
    confidence: float | None
    blurred: float | None


def index_page(cohort: Cohort) -> str:
    """The page as HTML."""
    done, classes = cohort.done, cohort.identity.ontology.classes
    flagged = sorted((row for row in done if row.flags), key=lambda row: -max(abs(flag.z) for flag in row.flags))
    totals = _Totals(
        num_cells=sum(row.status.num_cells for row in done),
        analysed_mm2=sum(row.status.analysed_mm2 for row in done),
        slide_mm2=sum(row.status.slide_mm2 for row in done),
        num_flagged=len(flagged),
    )
    strips, ticks = _strips(cohort, totals.num_cells)
    return render(
        "index.html",
        cohort.identity,
        cohort=cohort,
        totals=totals,
        spread=cohort.spread,
        strips=strips,
        ticks=ticks,
        types=classes,
        flagged=flagged,
        listed=[row for row in cohort.rows if row.status.outcome != "forgotten"],
        groups=_groups(cohort) if cohort.group_by else [],
        limit=LIMIT,
        min_slides=MIN_SLIDES,
    )


def _strips(cohort: Cohort, num_cells: int) -> tuple[list[_Strip], list[_Tick]]:
    """A strip for all cells and each type on one scale, and the ticks of the scale."""
    scale = _Scale.of(cohort)
    colors = {cell_class.name: cell_class.color_rgb for cell_class in cohort.identity.ontology.classes}
    strips: list[_Strip] = []
    for name in (None, *colors):
        values = [value for row in cohort.done if (value := row.density(name)) is not None]
        count = sum(row.count(name) for row in cohort.done)
        spread = cohort.spread[name]
        left, right = (scale.x(value) for value in (spread[1], spread[3]))
        strips.append(
            _Strip(
                name=name or "all cells",
                color=None if name is None else colors[name],
                num_cells=count,
                share=count / num_cells if num_cells else None,
                spread=spread,
                dots=strip_dots(
                    [(scale.x(value)) / _WIDTH for value in values], left=0, right=_WIDTH, top=4, height=_HEIGHT - 8
                ),
                box=(round(left, 1), round(max(right - left, 1.0), 1)),
                median_x=round(scale.x(spread[2]), 1),
            )
        )
    return strips, scale.ticks()


@dataclass(frozen=True)
class _Scale:
    """Densities along a strip: log10 of 1 + cells per mm2, so that none lies at the left end."""

    decades: int

    @staticmethod
    def of(cohort: Cohort) -> "_Scale":
        top = float(np.nan_to_num(cohort.spread[None][4], nan=1.0))
        return _Scale(max(1, int(np.ceil(np.log10(1 + top)))))

    def x(self, per_mm2: float) -> float:
        """Position in the strip."""
        if not np.isfinite(per_mm2):
            return _INSET
        return _INSET + (_WIDTH - 2 * _INSET) * float(np.log10(1 + per_mm2)) / self.decades

    def ticks(self) -> list[_Tick]:
        """0 and the powers of ten."""
        values = [0.0, *(10.0**decade for decade in range(1, self.decades + 1))]
        return [
            _Tick(
                round(self.x(value), 1),
                whole(value),
                "start" if not value else "end" if value == values[-1] else "middle",
            )
            for value in values
        ]


def _groups(cohort: Cohort) -> list[_Group]:
    members: dict[str, list[SlideRow]] = defaultdict(list)
    for row in cohort.rows:
        if row.status.outcome != "forgotten":
            members[row.group].append(row)
    return [_group(name, rows, cohort.identity.ontology.names) for name, rows in sorted(members.items())]


def _group(name: str, rows: Sequence[SlideRow], types: Sequence[str]) -> _Group:
    done = [row for row in rows if row.is_done]
    return _Group(
        name=name,
        num_slides=len(rows),
        num_failed=len(rows) - len(done),
        mm2=sum(row.status.analysed_mm2 for row in done),
        per_mm2=_median([row.per_mm2 for row in done]),
        densities=tuple(_median([row.density(kind) for row in done]) for kind in types),
        confidence=_median([row.mean_confidence for row in done]),
        blurred=_median([row.blurred_share for row in done]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
