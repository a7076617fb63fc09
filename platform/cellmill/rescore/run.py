"""A cohort's second opinion: slides to workers, each of which holds the heavy model once.

In: a configuration and a model. Out: one `SlideAgreement` a slide, `rescored/<slide_id>.parquet` for each, and
`rescored.parquet` over all of them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cellmill.cohort.context import DEFAULT_BATCH_SIZES
from cellmill.cohort.granted import pin_threads
from cellmill.cohort.manifest import list_sources
from cellmill.cohort.pipeline import SharedModel, pool_sizes, quieten
from cellmill.cohort.session import ray_session
from cellmill.cohort.sources import CohortModel
from cellmill.export.selection import parse_where
from cellmill.privacy import read_secret
from cellmill.rescore.agreement import SlideAgreement, agreement_table
from cellmill.rescore.config import RescoreCohortConfig
from cellmill.rescore.slide import RescoreOrder, RescoreSettings, rescore_slide
from cellmill.slides.isolation import ReaderLimits
from cellmill.staging.cache import SlideCache, default_cache_folder
from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.layout import RESCORED_TABLE_KEY
from cellmill.store.objects import ObjectStore
from cellmill.store.rescored import ScoredBy
from cellmill.store.seal import sealed_parquet
from cellmill.store.statuses import read_statuses

__all__ = ["Engine", "ray_slides", "rescore_cohort", "serial_slides"]

_STORE_BYTES = 256 << 20

Engine = Callable[
    [list[RescoreOrder], CohortModel, RescoreSettings, RescoreCohortConfig, str], Iterator[SlideAgreement]
]
"""Scores slides: (orders, model, settings, configuration, kind of device)."""


def rescore_cohort(
    config: RescoreCohortConfig,
    model: CohortModel,
    *,
    engine: "Engine | None" = None,
    say: Callable[[SlideAgreement], None] = lambda _: None,
) -> list[SlideAgreement]:
    """Score the chosen cells of every slide.

    Args:
        config: the settings.
        model: the heavy model.
        engine: what executes; Ray when not given.
        say: told of each slide when it is done.

    Raises:
        ValueError: when the settings cannot be met, before anything is read.
    """
    from cellmill.models.inference import choose_device

    store = ObjectStore(config.cells)
    identity = read_identity(store)
    _require_same_classes(identity, model)
    parse_where(config.where, identity.ontology)
    orders = _orders(config, store)
    device = choose_device(config.device)
    batch_size = config.batch_size or DEFAULT_BATCH_SIZES[device]
    settings = _settings(config, identity, model, store=store, num_slides=len(orders), batch_size=batch_size)
    ready = model.prepared(device=device, batch_size=batch_size)
    found: list[SlideAgreement] = []
    for slide in (engine or ray_slides)(orders, ready, settings, config, device):
        say(slide)
        found.append(slide)
    found.sort(key=lambda slide: slide.slide_id)
    store.put(RESCORED_TABLE_KEY, sealed_parquet(agreement_table(found)))
    return found


def serial_slides(
    orders: list[RescoreOrder],
    model: CohortModel,
    settings: RescoreSettings,
    config: RescoreCohortConfig,
    device: str,
) -> Iterator[SlideAgreement]:
    """One slide after the other, in this process."""
    source = model.open(device=device, batch_size=settings.batch_size, num_threads=config.threads_per_worker)  # type: ignore[arg-type]
    for order in orders:
        yield rescore_slide(order, model, source, settings)


def ray_slides(
    orders: list[RescoreOrder],
    model: CohortModel,
    settings: RescoreSettings,
    config: RescoreCohortConfig,
    device: str,
) -> Iterator[SlideAgreement]:
    """Slides spread over the workers of the Ray cluster there is, or of a local one."""
    with ray_session(object_store_bytes=_STORE_BYTES):
        import ray
        import ray.data

        quieten()
        resources = ray.cluster_resources()
        sizes = pool_sizes(
            num_workers=config.num_workers,
            threads_per_worker=config.threads_per_worker,
            cluster_cpus=resources.get("CPU", 1.0),
            cluster_gpus=resources.get("GPU", 0.0),
            device=device,
        )
        one_by_one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
        results = ray.data.from_arrow([order.to_table() for order in orders]).map_batches(
            _RescoreSlides,
            fn_constructor_kwargs={
                "model": SharedModel(model),
                "settings": settings,
                "device": device,
                "num_threads": config.threads_per_worker,
            },
            num_cpus=sizes.segmenter_cpus,
            num_gpus=sizes.segmenter_gpus or None,
            compute=ray.data.ActorPoolStrategy(
                size=min(sizes.num_segmenters, max(1, len(orders))), max_tasks_in_flight_per_actor=1
            ),
            **one_by_one,
        )
        for table in results.iter_batches(prefetch_batches=0, **one_by_one):
            yield SlideAgreement.of_table(table)


class _RescoreSlides:
    """A worker: the heavy model, opened once."""

    def __init__(
        self, model: Callable[[], CohortModel], settings: RescoreSettings, device: str, num_threads: int
    ) -> None:
        pin_threads(num_threads)
        self._model, self._settings = model(), settings
        self._source = self._model.open(
            device=device,  # type: ignore[arg-type]
            batch_size=settings.batch_size,
            num_threads=num_threads,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        return rescore_slide(RescoreOrder.of_table(table), self._model, self._source, self._settings).to_table()


def _orders(config: RescoreCohortConfig, store: ObjectStore) -> list[RescoreOrder]:
    statuses = {status.slide_id: status for status in read_statuses(store) if status.outcome == "done"}
    sources = {
        source.slide_id: source
        for source in list_sources(config.slides, secret=read_secret(config.pseudonymize))
        if source.problem is None
    }
    for slide_id in config.slide_id:
        if slide_id not in statuses or slide_id not in sources:
            where = f"finished in {store.url}" if slide_id not in statuses else "among --slides"
            raise ValueError(f"--slide-id {slide_id} is not {where}.")
    wanted = config.slide_id or tuple(sorted(statuses.keys() & sources.keys()))
    if not wanted:
        raise ValueError(f"--slides holds none of the {len(statuses)} finished slides of {store.url}.")
    return [RescoreOrder(statuses[slide_id], sources[slide_id]) for slide_id in wanted]


def _settings(
    config: RescoreCohortConfig,
    identity: CellSetIdentity,
    model: CohortModel,
    *,
    store: ObjectStore,
    num_slides: int,
    batch_size: int,
) -> RescoreSettings:
    tile_mm2 = (model.geometry.stride_px * model.target_mpp * 1e-3) ** 2
    most = None if config.budget_mm2 is None else int(config.budget_mm2 / num_slides / tile_mm2)
    if most == 0:
        raise ValueError(
            f"--budget-mm2 {config.budget_mm2:g} is less than a tile ({tile_mm2:.4f} mm2) for each of {num_slides} "
            "slides."
        )
    return RescoreSettings(
        store=store,
        reader=str(identity.config["reader"]),
        scored_by=ScoredBy(model.name, model.digest, model.version, config.where, config.budget_mm2, cells_sha256=""),
        batch_size=batch_size,
        most_tiles=most,
        replace=config.replace,
        slide_cache=SlideCache(
            folder=Path(config.slide_cache) if config.slide_cache else default_cache_folder(),
            max_bytes=int(config.slide_cache_gib * (1 << 30)),
        ),
        reader_limits=ReaderLimits(),
    )


def _require_same_classes(identity: CellSetIdentity, model: CohortModel) -> None:
    if model.ontology.names != identity.ontology.names:
        raise ValueError(
            f"--model {model.name} tells {', '.join(model.ontology.names)} apart, the cell set holds "
            f"{', '.join(identity.ontology.names)}; a second opinion needs the same classes in the same order."
        )
