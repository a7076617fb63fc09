"""What a cohort will take, from what there is to do and what a little of it took. Arithmetic only.

In: a `Workload` (counted from plans), `Rates` (measured by a calibration) and the `Workers`. Out: an `Estimate`.

Work is counted as the run does it: a tile is read and predicted once in each strip that sees it, decode looks at each
field with its halo, commit at each analysed area once. All areas and tiles are those planned, before pixels exclude any
for blur or pen; the rates are per planned area too, so that what is excluded later is in them.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from cellmill.estimate.spending import Spent

__all__ = ["Estimate", "Rates", "Workers", "Workload", "estimate_cost", "makespan"]

_SECONDS_PER_HOUR = 3600.0
_FIELD_BYTES_PER_PX = 30
"""What a larger window adds to memory, measured on fields of 2048 to 8192 px: see `SegmentCohortConfig.field_px`. It is
not taken from the calibration, whose pieces are too small to tell it from what libraries hold anyway."""


@dataclass(frozen=True)
class Workload:
    """What there is to do; fractions where it is scaled up from a sample of slides."""

    num_slides: float = 0.0
    slide_mm2: float = 0.0
    analysed_mm2: float = 0.0
    """Tissue, in tiles, each counted once."""
    num_tiles: float = 0.0
    """Tiles with tissue, each counted once."""
    num_predictions: float = 0.0
    """Tiles read and predicted: one that two strips see counts twice."""
    num_fields: float = 0.0
    window_mm2: float = 0.0
    """Analysed area as the decode sees it: halos count for every field."""
    num_strips: float = 0.0

    def plus(self, other: "Workload") -> "Workload":
        """Both together."""
        return Workload(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def times(self, factor: float) -> "Workload":
        """As many of it."""
        return Workload(*(value * factor for value in _values(self)))


@dataclass(frozen=True)
class Rates:
    """What a calibration measured, per piece of work."""

    plan_slide: Spent
    """Opening a slide and finding its tissue."""
    open_strip: Spent
    """Opening a slide for reading."""
    read_tile: Spent
    predict_tile: Spent
    finish_mm2: Spent
    """Decode, measure, paint and write, for each analysed mm2 of a window."""
    commit_mm2: Spent
    """For each analysed mm2 of a slide."""
    start_run: Spent
    """Driver and engine, once."""
    start_worker: Spent
    """Each worker; the wall time passes once, since they start together."""
    cells_per_mm2: float
    table_bytes_per_cell: float
    mask_bytes_per_cell: float
    peak_bytes: float
    """Memory of a worker with its slide reader, at its highest."""
    peak_window_px: float
    """Px of the window that this was seen with."""


@dataclass(frozen=True)
class Workers:
    """Who does the work."""

    num_workers: int
    num_cpus: float
    """CPUs that they and their readers share."""
    num_readers: int
    """Fields that a worker reads ahead."""
    num_finishers: int
    """Threads of a worker that finish fields beside the network; 0: it does so itself, in turn."""
    uses_gpu: bool
    window_px: int
    """Side of a field's window, core and halo."""


@dataclass(frozen=True)
class Estimate:
    """What the cohort will take."""

    num_slides: float
    slide_mm2: float
    analysed_mm2: float
    num_fields: float
    num_tiles: float
    num_predictions: float
    num_cells: float
    cpu_hours: float
    """Of all processes: driver, engine, workers, slide readers."""
    cpu_hours_by_step: dict[str, float]
    gpu_hours: float
    """Time in which the network runs; 0 without a GPU."""
    wall_hours: float
    num_workers: int
    table_gb: float
    mask_gb: float
    memory_gb_per_worker: float

    @property
    def output_gb(self) -> float:
        """Tables and masks, in GB of 10^9 bytes."""
        return self.table_gb + self.mask_gb


def estimate_cost(work: Workload, rates: Rates, workers: Workers, *, strips: Sequence[int] = ()) -> Estimate:
    """Multiply out.

    Args:
        work: what there is to do.
        rates: what a piece of it takes.
        workers: who does it.
        strips: predictions of each strip, in the order in which workers take them; those of a sample of slides will do,
            since what they tell is how long the last worker goes on alone.
    """
    steps = {
        "plan": rates.plan_slide.times(work.num_slides),
        "read": rates.read_tile.times(work.num_predictions).plus(rates.open_strip.times(work.num_strips)),
        "predict": rates.predict_tile.times(work.num_predictions),
        "finish": rates.finish_mm2.times(work.window_mm2),
        "commit": rates.commit_mm2.times(work.analysed_mm2),
        "start": rates.start_run.plus(rates.start_worker.times(workers.num_workers)),
    }
    cpu_seconds = {name: spent.cpu_seconds for name, spent in steps.items()}
    cells = rates.cells_per_mm2 * work.analysed_mm2
    more_bytes = _FIELD_BYTES_PER_PX * max(0.0, workers.window_px**2 - rates.peak_window_px)
    return Estimate(
        num_slides=work.num_slides,
        slide_mm2=work.slide_mm2,
        analysed_mm2=work.analysed_mm2,
        num_fields=work.num_fields,
        num_tiles=work.num_tiles,
        num_predictions=work.num_predictions,
        num_cells=cells,
        cpu_hours=sum(cpu_seconds.values()) / _SECONDS_PER_HOUR,
        cpu_hours_by_step={name: seconds / _SECONDS_PER_HOUR for name, seconds in cpu_seconds.items()},
        gpu_hours=steps["predict"].wall_seconds / _SECONDS_PER_HOUR if workers.uses_gpu else 0.0,
        wall_hours=_wall_seconds(work, rates, workers, steps, strips) / _SECONDS_PER_HOUR,
        num_workers=workers.num_workers,
        table_gb=rates.table_bytes_per_cell * cells * 1e-9,
        mask_gb=rates.mask_bytes_per_cell * cells * 1e-9,
        memory_gb_per_worker=(rates.peak_bytes + more_bytes) * 1e-9,
    )


def _wall_seconds(
    work: Workload, rates: Rates, workers: Workers, steps: dict[str, Spent], strips: Sequence[int]
) -> float:
    """Workers' paths or the CPUs, whichever takes longer, between start and the last commit."""
    if not work.num_slides:
        return 0.0
    predict, finish, read = (steps[name].wall_seconds for name in ("predict", "finish", "read"))
    # Reading goes on beside the network; finishing too where there are threads for it, else it comes in turn.
    path = max(predict, finish / workers.num_finishers) if workers.num_finishers else predict + finish
    path = max(path, read / workers.num_readers) / workers.num_workers
    total = sum(strips)
    if total:
        alone = makespan(strips, num_workers=workers.num_workers) / total - 1 / workers.num_workers
        path *= 1 + alone * workers.num_workers * total / max(total, work.num_predictions)
    while_working = sum(steps[name].cpu_seconds for name in ("plan", "read", "predict", "finish", "commit"))
    before = rates.start_run.wall_seconds + rates.start_worker.wall_seconds + rates.plan_slide.wall_seconds
    after = steps["commit"].wall_seconds / work.num_slides
    return before + max(path, while_working / workers.num_cpus) + after


def makespan(strips: Sequence[int], *, num_workers: int) -> int:
    """When the last worker ends if each takes the next strip as soon as it is free."""
    free_at = [0] * num_workers
    for strip in strips:
        heapq.heappush(free_at, heapq.heappop(free_at) + strip)
    return max(free_at)


def _values(work: Workload) -> tuple[float, ...]:
    return tuple(getattr(work, name) for name in Workload.__dataclass_fields__)
