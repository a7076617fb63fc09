"""From what a calibration measured to rates for each kind of work, and how sure they are.

In: surveys, the workers' `Measured` and `WorkerStart`s, what engine and driver spent. Out: `Rates` and `Sureness`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cellmill.estimate.calibration import Measured, WorkerStart
from cellmill.estimate.cost import Rates
from cellmill.estimate.spending import Spent
from cellmill.estimate.survey import SlideSurvey

__all__ = ["Sureness", "rates_of", "sureness_of"]


@dataclass(frozen=True)
class Sureness:
    """What the figures rest on, and how far chance alone may have moved them (two standard errors, as a share)."""

    num_slides: int
    """Slides of the list."""
    num_surveyed: int
    num_pieces: int
    measured_mm2: float
    area_error: float
    """Of mm2, tiles, fields; 0 when all slides were surveyed."""
    cells_error: float
    """Of cells, and of the tables' size, for the area given; None of it is the model's own error."""
    excluded_share: float
    """Share of the tiles read that pen, blur or damage excluded."""


def rates_of(surveys: Sequence[SlideSurvey], measured: Measured, starts: Sequence[WorkerStart], *, run: Spent) -> Rates:
    """Divide.

    Args:
        surveys: slides that were surveyed.
        measured: all workers' together.
        starts: of each worker.
        run: what driver and engine spent by themselves.
    """
    opening = measured.open.times(1 / max(1, measured.num_opened))
    mm2 = sum(piece.mm2 for piece in measured.pieces)
    num_cells = sum(piece.num_cells for piece in measured.pieces)
    of_piece = measured.spent.without(measured.open).times(1 / len(measured.pieces)).plus(opening)
    start = Spent.sum(start.spent for start in starts).times(1 / len(starts)).without(of_piece)
    return Rates(
        plan_slide=Spent.sum(survey.spent for survey in surveys).times(1 / len(surveys)),
        open_strip=opening,
        read_tile=measured.read.times(1 / measured.num_tiles),
        predict_tile=measured.predict.times(1 / measured.num_tiles),
        finish_mm2=measured.finish.times(1 / measured.window_mm2),
        commit_mm2=measured.commit.times(1 / mm2),
        start_run=run,
        start_worker=start,
        cells_per_mm2=num_cells / mm2,
        table_bytes_per_cell=measured.table_bytes / max(1, num_cells),
        mask_bytes_per_cell=measured.mask_bytes / max(1, num_cells),
        peak_bytes=measured.peak_bytes,
        peak_window_px=measured.window_px,
    )


def sureness_of(surveys: Sequence[SlideSurvey], measured: Measured, *, num_slides: int) -> Sureness:
    """How far the figures can be trusted.

    Args:
        surveys: slides that were surveyed.
        measured: all workers' together.
        num_slides: slides there are.
    """
    total_mm2 = sum(survey.work.analysed_mm2 for survey in surveys) * num_slides / max(1, len(surveys))
    areas = [survey.work.analysed_mm2 for survey in surveys]
    mm2 = [piece.mm2 for piece in measured.pieces]
    cells = [piece.num_cells for piece in measured.pieces]
    return Sureness(
        num_slides=num_slides,
        num_surveyed=len(surveys),
        num_pieces=len(measured.pieces),
        measured_mm2=sum(mm2),
        area_error=_ratio_error(areas, [1.0] * len(areas), share=len(areas) / max(1, num_slides)),
        cells_error=_ratio_error(cells, mm2, share=sum(mm2) / total_mm2 if total_mm2 else 1.0),
        excluded_share=measured.num_excluded / max(1, measured.num_tiles),
    )


def _ratio_error(values: Sequence[float], sizes: Sequence[float], *, share: float) -> float:
    """Two standard errors of sum(values) / sum(sizes), as a share of it, when `share` of everything was looked at."""
    total, size, number = sum(values), sum(sizes), len(values)
    if share >= 1 or not total or not size:
        return 0.0
    if number < 2:
        return math.inf
    squares = sum((value - total / size * one) ** 2 for value, one in zip(values, sizes, strict=True))
    return 2 * math.sqrt(squares * number / (number - 1) * (1 - share)) / total
