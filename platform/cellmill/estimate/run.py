"""The driver of an estimate: surveys slides, calibrates at the concurrency of the run, multiplies out.

In: a configuration and a model. Out: a `CohortEstimate`. Ray carries it as it carries the run, so that the same
machines answer; nothing is written but temporary folders, which are gone at the end.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cellmill.cohort.context import RunContext, make_context
from cellmill.cohort.engine import EngineError
from cellmill.cohort.listing import require_absolute
from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.cohort.pipeline import SharedModel, quieten
from cellmill.cohort.pools import PoolSizes, cluster_shape, device_of_workers, pool_sizes
from cellmill.cohort.run import SLIDES_AT_ONCE
from cellmill.cohort.session import inside_ray_job, ray_session
from cellmill.cohort.sources import CohortModel
from cellmill.cohort.strips import strips_per_slide
from cellmill.estimate.calibration import CalibrationWorker, Measured, Piece, WorkerStart, choose_pieces
from cellmill.estimate.config import EstimateCohortConfig
from cellmill.estimate.cost import Estimate, Rates, Workers, Workload, estimate_cost
from cellmill.estimate.rates import Sureness, rates_of, sureness_of
from cellmill.estimate.spending import Spent, tree_cpu_seconds
from cellmill.estimate.survey import SlideSurvey, Unusable, choose_slides, survey_slide
from cellmill.privacy import read_secret

__all__ = ["CohortEstimate", "estimate_cohort"]

_STORE_BYTES = 256 << 20
_PIECES_PER_WORKER = 64
_START_SECONDS = 300.0
"""Longest wait for all workers to be there: a cluster that is busy with other things has none to give."""


@dataclass(frozen=True)
class CohortEstimate:
    """What a cohort will take, and what is known about that."""

    cost: Estimate
    unusable: tuple[Unusable, ...]
    """Slides that the run would fail on, of those looked at."""
    sureness: Sureness
    rates: Rates | None
    """None where no slide has tissue, and nothing could be measured."""
    device: str
    num_workers_here: int
    """Workers that measured at the same time."""

    @property
    def is_scaled(self) -> bool:
        """Whether more workers are asked for than could measure here, so that wall time is scaled."""
        return self.cost.num_workers > self.num_workers_here


def estimate_cohort(config: EstimateCohortConfig, model: CohortModel, *, say: Callable[[str], None]) -> CohortEstimate:
    """Survey and calibrate.

    Args:
        config: the settings.
        model: the model of the run.
        say: takes a line for people, while work goes on.

    Raises:
        ValueError: when the settings cannot be met: slides that match nothing, a device that is not here.
        EngineError: when Ray has no workers to measure with.
    """
    if inside_ray_job():
        for text in config.slides:
            require_absolute("--slides", text)
    secret = read_secret(config.pseudonymize)
    sources = list(list_sources(config.slides, secret=secret)[: config.max_slides])
    with tempfile.TemporaryDirectory(prefix="cellmill-estimate-") as folder:
        device = device_of_workers(config.device)
        context = make_context(config.of_run(out=folder), model, device=device, secret=secret)
        began, driver_cpu = time.perf_counter(), tree_cpu_seconds()
        with ray_session(object_store_bytes=_STORE_BYTES):
            cluster = _Cluster(context, config.num_workers)
            cluster.start_ray_data()
            engine_wall = time.perf_counter() - began
            surveys, unusable = _survey(sources, cluster, config, say)
            found = cluster.calibrate(model, surveys, seconds=config.calibration_seconds, say=say)
            # All that is not the workers' own: driver, Ray's servers, their idling. A cluster's are not charged to us.
            in_workers = _cpu(surveys) + (0.0 if found is None else found.worker_cpu_seconds)
            overhead = Spent(max(driver_cpu, tree_cpu_seconds() - in_workers), engine_wall)
    seen = _Seen(sources, surveys, unusable, found, overhead)
    return _conclude(seen, cluster)


@dataclass(frozen=True)
class _Found:
    """What the calibration brought."""

    starts: tuple[WorkerStart, ...]
    measured: Measured

    @property
    def worker_cpu_seconds(self) -> float:
        return self.measured.spent.cpu_seconds + sum(start.spent.cpu_seconds for start in self.starts)


@dataclass(frozen=True)
class _Seen:
    """All that was looked at and measured."""

    sources: Sequence[SlideSource]
    surveys: Sequence[SlideSurvey]
    unusable: tuple[Unusable, ...]
    found: _Found | None
    overhead: Spent


class _Nothing:
    """Hands on what it gets."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


class _Cluster:
    """The workers there are: as many of them measure as the run would have here."""

    def __init__(self, context: RunContext, num_workers: int) -> None:
        import ray

        self._context = context
        self._cpus, self._gpus = cluster_shape(ray.nodes(), device=context.device)
        there_are = self._sizes(0).num_segmenters
        self.num_workers = num_workers or there_are
        self.num_here = min(self.num_workers, there_are)
        self.workers = self._workers(there_are)

    @property
    def device(self) -> str:
        return self._context.device

    def start_ray_data(self) -> None:
        """Pass one row through a dataset as the run does: Ray Data's helper processes are a part of its start."""
        import ray.data

        quieten()
        strategy = ray.data.ActorPoolStrategy(size=1)
        dataset = ray.data.range(1).map_batches(_Nothing, num_cpus=0.1, compute=strategy)
        dataset.materialize()

    def survey(self, sources: Sequence[SlideSource], *, num_strips: int) -> list[SlideSurvey | Unusable]:
        """Survey slides, one task each, in their order."""
        import ray
        from ray.exceptions import RayError

        function: Any = survey_slide  # Ray's types have no functions with keywords
        task: Any = ray.remote(num_cpus=1, max_retries=0)(function)
        context = ray.put(self._context)
        under_way = [task.remote(source, context, num_strips=num_strips) for source in sources]
        results: list[SlideSurvey | Unusable] = []
        for source, reference in zip(sources, under_way, strict=True):
            try:
                results.append(ray.get(reference))
            except RayError as error:
                reason = f"Looking at the slide ended its worker ({type(error).__name__})."
                results.append(Unusable(source.slide_id, reason))
        return results

    def calibrate(
        self, model: CohortModel, surveys: Sequence[SlideSurvey], *, seconds: float, say: Callable[[str], None]
    ) -> _Found | None:
        """Measure on pieces of the slides; None where there is no tissue."""
        pieces = choose_pieces(surveys, self._context, at_most=_PIECES_PER_WORKER * self.num_here)
        if not pieces:
            return None
        say(f"measuring on {self.device} with {self.num_here} workers at once, about {seconds:g} s after they start")
        return self._measure(SharedModel(model), pieces, seconds)

    def _measure(self, model: SharedModel, pieces: Sequence[Piece], seconds: float) -> _Found:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        sizes = self._sizes(self.num_here)
        booked: Any = ray.remote(num_cpus=sizes.segmenter_cpus, num_gpus=sizes.segmenter_gpus)
        actors = [booked(CalibrationWorker).remote(self._context, model) for _ in range(self.num_here)]
        shares = [pieces[number :: self.num_here] or pieces[:1] for number in range(self.num_here)]
        try:
            starting = [actor.start.remote(share[0]) for actor, share in zip(actors, shares, strict=True)]
            starts = ray.get(starting, timeout=_START_SECONDS)
            parts = ray.get([a.measure.remote(s, seconds=seconds) for a, s in zip(actors, shares, strict=True)])
            ray.get([actor.close.remote() for actor in actors])
        except GetTimeoutError as error:
            raise EngineError(
                f"The {self.num_here} workers were not ready after {_START_SECONDS:g} s: the cluster is busy, or the "
                "model does not load there. Ask for fewer with --num-workers, or try when it is free."
            ) from error
        except RayError as error:
            raise EngineError(f"Measuring failed: {str(error).strip().rsplit(chr(10), 1)[-1]}") from error
        measured = Measured()
        for part in parts:
            measured = measured.plus(part)
        return _Found(tuple(starts), measured)

    def _sizes(self, num_workers: int) -> PoolSizes:
        return pool_sizes(
            num_workers=num_workers,
            threads_per_worker=self._context.threads_per_worker,
            cluster_cpus=self._cpus,
            cluster_gpus=self._gpus,
            device=self.device,
        )

    def _workers(self, there_are: int) -> Workers:
        """Those of the run; a larger cluster is this one several times over."""
        factor = max(1.0, self.num_workers / there_are)
        sizes = self._sizes(self.num_here)
        return Workers(
            num_workers=self.num_workers,
            num_cpus=self._cpus * factor,
            num_readers=sizes.num_readers,
            num_finishers=sizes.num_finishers,
            uses_gpu=self.device == "cuda",
            window_px=self._context.field_px + 2 * self._context.decoder.halo_px,
        )


def _survey(
    sources: Sequence[SlideSource], cluster: _Cluster, config: EstimateCohortConfig, say: Callable[[str], None]
) -> tuple[list[SlideSurvey], tuple[Unusable, ...]]:
    known = [Unusable(source.slide_id, source.problem) for source in sources if source.problem is not None]
    runnable = [source for source in sources if source.problem is None]
    chosen = choose_slides(runnable, at_most=config.sample_slides)
    say(f"opening {len(chosen)} of {len(sources)} slides")
    num_at_once = min(len(runnable), SLIDES_AT_ONCE)
    num_strips = strips_per_slide(num_slides=num_at_once, num_workers=cluster.num_workers)
    results = cluster.survey(chosen, num_strips=num_strips)
    surveys = [result for result in results if isinstance(result, SlideSurvey)]
    return surveys, (*known, *(result for result in results if isinstance(result, Unusable)))


def _conclude(seen: _Seen, cluster: _Cluster) -> CohortEstimate:
    surveys, found = seen.surveys, seen.found
    num_runnable = sum(source.problem is None for source in seen.sources)
    num_looked_at = len(surveys) + len(seen.unusable) - (len(seen.sources) - num_runnable)
    # Of slides not looked at, the same share is taken to be usable.
    num_usable = num_runnable * len(surveys) / num_looked_at if num_looked_at else 0.0
    work = Workload()
    for survey in surveys:
        work = work.plus(survey.work)
    work = work.times(num_usable / len(surveys) if surveys else 0.0)
    rates = None if found is None else rates_of(surveys, found.measured, found.starts, run=seen.overhead)
    sureness = sureness_of(surveys, Measured() if found is None else found.measured, num_slides=round(num_usable))
    strips = [strip for survey in surveys for strip in survey.strips]
    used = rates or _rates_without_tissue(surveys, seen.overhead)
    return CohortEstimate(
        cost=estimate_cost(work, used, cluster.workers, strips=strips),
        unusable=seen.unusable,
        sureness=replace(sureness, num_slides=len(seen.sources)),
        rates=rates,
        device=cluster.device,
        num_workers_here=cluster.num_here,
    )


def _rates_without_tissue(surveys: Sequence[SlideSurvey], overhead: Spent) -> Rates:
    """Slides without tissue take planning and nothing else."""
    nothing = Spent()
    plan = Spent.sum(survey.spent for survey in surveys).times(1 / max(1, len(surveys)))
    return Rates(plan, nothing, nothing, nothing, nothing, nothing, overhead, nothing, 0.0, 0.0, 0.0, 0.0, 0.0)


def _cpu(surveys: Sequence[SlideSurvey]) -> float:
    return sum(survey.spent.cpu_seconds for survey in surveys)
