"""The stages as one streaming Ray dataset: slides in, messages about their fields out.

Consumes `SlideSource`s; produces the `Row`s that the driver acts on. One block is one message, so strips of slides
spread over all workers. Workers read the pixels they need and keep their maps, so little but words crosses Ray's object
store, and memory depends on the field's size and the number of workers, never on slides or cohort.
"""

import logging
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from cellmill.cohort.committing import CommitQueue
from cellmill.cohort.context import RunContext
from cellmill.cohort.engine import Commits, Engine, EngineError, slide_rows
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.planning import PlanSlide
from cellmill.cohort.pools import PoolSizes, pools_of_cluster
from cellmill.cohort.rows import Row
from cellmill.cohort.segmenting import SegmentStrip
from cellmill.cohort.session import joins_cluster, ray_session
from cellmill.cohort.sources import CohortModel
from cellmill.cohort.strips import strips_per_slide

__all__ = ["SharedModel", "quieten", "ray_engine"]

_STORE_BYTES = 256 << 20
"""Of a local Ray's object store: the model once, and messages."""
_BUSY_ENOUGH_TO_GROW = 0.7
"""Share of workers that are busy from which more are started where there is room. Ray Data's own 1.75 is never reached
by workers that hold one strip each."""


class SharedModel:
    """A model put into Ray's object store once; workers on any node take it from there."""

    def __init__(self, model: CohortModel) -> None:
        import ray

        self._reference: Any = ray.put(model)

    def __call__(self) -> CohortModel:
        """The model, in a worker."""
        import ray

        return ray.get(self._reference)


@contextmanager
def ray_engine(context: RunContext, model: CohortModel, num_workers: int) -> Generator[Engine]:
    """Run on the Ray cluster there is, or on a local one for the length of the run."""
    with ray_session(object_store_bytes=_STORE_BYTES):
        sizes = pools_of_cluster(
            num_workers=num_workers, threads_per_worker=context.threads_per_worker, device=context.device
        )
        # Nodes that join a cluster are used, unless the number of workers was asked for.
        yield _RayEngine(context, model, sizes, grows=joins_cluster() and not num_workers)


class _RayEngine:
    def __init__(self, context: RunContext, model: CohortModel, sizes: PoolSizes, *, grows: bool) -> None:
        self.commits: Commits = CommitQueue(context, num_at_once=max(1, sizes.num_segmenters // 2))
        self._context = context
        self._model = SharedModel(model)
        self._sizes = sizes
        self._grows = grows

    def stream(self, sources: Sequence[SlideSource]) -> Iterator[Row]:
        import ray.data
        from ray.exceptions import RayError

        quieten()
        sizes, context = self._sizes, self._context
        if self._grows:
            autoscaling = ray.data.DataContext.get_current().autoscaling_config
            autoscaling.actor_pool_util_upscaling_threshold = _BUSY_ENOUGH_TO_GROW
        num_strips = strips_per_slide(num_slides=len(sources), num_workers=sizes.num_segmenters)
        plan: Any = _plan_slides  # Ray's type of functions that stream is narrower than what it takes
        one_by_one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
        dataset = (
            ray.data.from_arrow(slide_rows(sources))
            .map_batches(
                plan,
                fn_kwargs={"context": context, "num_strips": num_strips},
                num_cpus=sizes.planner_cpus,
                compute=ray.data.TaskPoolStrategy(size=sizes.num_planners),
                **one_by_one,
            )
            .map_batches(
                SegmentStrip,
                fn_constructor_kwargs={
                    "context": context,
                    "model": self._model,
                    "num_readers": sizes.num_readers,
                    "num_finishers": sizes.num_finishers,
                },
                num_cpus=sizes.segmenter_cpus,
                num_gpus=sizes.segmenter_gpus or None,
                # One strip at a time: a second one queued behind it would wait while another worker is idle. Never
                # fewer workers than at first: one that is idle while slides are planned would have to start anew.
                compute=ray.data.ActorPoolStrategy(
                    min_size=sizes.num_segmenters,
                    max_size=None if self._grows else sizes.num_segmenters,
                    initial_size=sizes.num_segmenters,
                    max_tasks_in_flight_per_actor=1,
                ),
                **one_by_one,
            )
        )
        try:
            for table in dataset.iter_batches(prefetch_batches=0, **one_by_one):
                yield Row.of_table(table)
        except RayError as error:
            # Stages let nothing out, so this is a worker that cannot start (a model that does not fit its device) or
            # a cluster that is gone.
            raise EngineError(
                f"Ray's workers cannot go on: {_last_line(error)}. Finished fields are kept; put it right and run the "
                "same command again. Ray's log files, in /tmp/ray/session_latest/logs of each node, say more."
            ) from error


def _plan_slides(table: pa.Table, *, context: RunContext, num_strips: int) -> Iterator[pa.Table]:
    """A task, not an actor: planning keeps nothing between slides, and its process can be used again."""
    yield from PlanSlide(context, num_strips=num_strips)(table)


def _last_line(error: Exception) -> str:
    """Ray's messages end with the error of the worker."""
    return str(error).strip().rsplit("\n", 1)[-1].strip()


def quieten() -> None:
    """Our own progress is shown, not Ray Data's; and a block is one message."""
    import ray.data

    with warnings.catch_warnings():
        # Making its context, Ray Data warns of a default that it sets itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        data_context = ray.data.DataContext.get_current()
    data_context.enable_progress_bars = False
    data_context.print_on_execution_start = False
    data_context.target_max_block_size = 1
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
