"""Work on slides that are done, one slide a message: what a second look at them needs of Ray and of their files.

In: `SlideOrder`s and a worker class, which is made once a process and then called with tables of one order each. Out:
the tables it gives back. `rescore` and `embedding` are the two second looks there are.
"""

import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.cohort.pipeline import SharedModel, quieten
from cellmill.cohort.pools import pools_of_cluster
from cellmill.cohort.session import ray_session
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.isolation import ReaderLimits
from cellmill.staging.cache import SlideCache
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_statuses
from cellmill_schemas.slides import SlideStatus

__all__ = ["SlideOrder", "opened_again", "orders_of", "ray_workers"]

_STORE_BYTES = 256 << 20


@dataclass(frozen=True)
class SlideOrder:
    """One finished slide and the file it was made from."""

    status: SlideStatus
    source: SlideSource

    def to_table(self) -> pa.Table:
        """As a message of one row."""
        return pa.table({"order": [json.dumps({"status": self.status.to_json(), "source": asdict(self.source)})]})

    @staticmethod
    def of_table(table: pa.Table) -> "SlideOrder":
        """Parse what `to_table` made."""
        document = json.loads(table.column("order")[0].as_py())
        return SlideOrder(SlideStatus.from_json(document["status"]), SlideSource(**document["source"]))


def orders_of(
    store: ObjectStore, slides: tuple[str, ...], *, secret: bytes | None, wanted: tuple[str, ...] = ()
) -> list[SlideOrder]:
    """The finished slides of a cell set whose files are among `slides`; of those only `wanted`, if any are named.

    Raises:
        ValueError: when a wanted one is not among them, saying which.
    """
    statuses = {status.slide_id: status for status in read_statuses(store) if status.outcome == "done"}
    sources = {source.slide_id: source for source in list_sources(slides, secret=secret) if source.problem is None}
    for slide_id in wanted:
        if slide_id not in statuses or slide_id not in sources:
            where = f"finished in {store.url}" if slide_id not in statuses else "among --slides"
            raise ValueError(f"--slide-id {slide_id} is not {where}.")
    chosen = wanted or tuple(sorted(statuses.keys() & sources.keys()))
    return [SlideOrder(statuses[slide_id], sources[slide_id]) for slide_id in chosen]


@contextmanager
def opened_again(
    order: SlideOrder, *, target_mpp: float, reader: str, cache: SlideCache, limits: ReaderLimits
) -> Generator[IsolatedSlide]:
    """The slide's file, brought to this node and opened with the um/px that its cells were found with.

    Args:
        order: the slide.
        target_mpp: um/px of the grid to read it on.
        reader: function that opened the slides when they were segmented.
        cache: of this node.
        limits: of the process that reads.

    Raises:
        SlideError: when it cannot be fetched or opened.
        ValueError: when the file is not the one that was segmented.
    """
    status = order.status
    assert status.mpp_x is not None and status.mpp_y is not None
    with (
        cache.stage(order.source.url) as copy,
        IsolatedSlide(
            copy.path, target_mpp=target_mpp, mpp=(status.mpp_x, status.mpp_y), reader=reader, limits=limits
        ) as slide,
    ):
        if slide.info.fingerprint != status.slide_fingerprint:
            raise ValueError("The file is not the one that was segmented; its cells would lie elsewhere.")
        yield slide


def ray_workers(
    worker: type[Any],
    orders: Iterable[SlideOrder],
    *,
    model: Any,
    settings: Any,
    device: str,
    num_workers: int,
    threads_per_worker: int,
) -> Iterator[pa.Table]:
    """Slides spread over the workers of the Ray cluster there is, or of a local one.

    Args:
        worker: made as `worker(model=..., settings=..., device=..., num_threads=...)`, where `model` is a function that
            gives the model; called with a table of one order, gives a table of one row.
        orders: the slides.
        model: put into Ray's object store once.
        settings: pickled to each worker.
        device: kind of device the workers take.
        num_workers: slides at the same time; 0 for as many as there are CPUs or GPUs.
        threads_per_worker: CPU threads of each.
    """
    tables = [order.to_table() for order in orders]
    with ray_session(object_store_bytes=_STORE_BYTES):
        import ray.data

        quieten()
        sizes = pools_of_cluster(num_workers=num_workers, threads_per_worker=threads_per_worker, device=device)
        one_by_one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
        results = ray.data.from_arrow(tables).map_batches(
            worker,
            fn_constructor_kwargs={
                "model": SharedModel(model),
                "settings": settings,
                "device": device,
                "num_threads": threads_per_worker,
            },
            num_cpus=sizes.segmenter_cpus,
            num_gpus=sizes.segmenter_gpus or None,
            compute=ray.data.ActorPoolStrategy(
                size=min(sizes.num_segmenters, max(1, len(tables))), max_tasks_in_flight_per_actor=1
            ),
            **one_by_one,
        )
        yield from results.iter_batches(prefetch_batches=0, **one_by_one)
