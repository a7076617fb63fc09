"""A cohort's second opinion: slides to workers, each of which holds the heavy model once.

In: a configuration and a model. Out: one `SlideAgreement` a slide, `rescored/<slide_id>.parquet` for each, and
`rescored.parquet` over all of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from cellmill.cohort.context import DEFAULT_BATCH_SIZES
from cellmill.cohort.granted import pin_threads
from cellmill.cohort.per_slide import SlideOrder, orders_of, ray_workers
from cellmill.cohort.pools import device_of_workers
from cellmill.cohort.sources import CohortModel, MapSource
from cellmill.embedding.sources import EmbeddingModel, FeatureSource, record_of_run
from cellmill.export.selection import parse_where
from cellmill.privacy import read_secret
from cellmill.rescore.agreement import SlideAgreement, agreement_table
from cellmill.rescore.config import RescoreCohortConfig
from cellmill.rescore.slide import RescoreSettings, rescore_slide
from cellmill.slides.isolation import ReaderLimits
from cellmill.staging.cache import node_cache
from cellmill.store.embeddings import EmbeddingRecord
from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.layout import RESCORED_TABLE_KEY
from cellmill.store.objects import ObjectStore
from cellmill.store.rescored import ScoredBy
from cellmill.store.seal import sealed_parquet

if TYPE_CHECKING:
    from cellmill.models.inference import DeviceKind

__all__ = ["Engine", "ray_slides", "rescore_cohort", "serial_slides"]

Engine = Callable[[list[SlideOrder], CohortModel, RescoreSettings, RescoreCohortConfig, str], Iterator[SlideAgreement]]
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
        model: the heavy model; an `EmbeddingModel` where embeddings are asked for.
        engine: what executes; Ray when not given.
        say: told of each slide when it is done.

    Raises:
        ValueError: when the settings cannot be met, before anything is read.
    """
    store = ObjectStore(config.cells)
    identity = read_identity(store)
    _require_same_classes(identity, model)
    parse_where(config.where, identity.ontology)
    orders = orders_of(store, config.slides, secret=read_secret(config.pseudonymize), wanted=config.slide_id)
    if not orders:
        raise ValueError(f"--slides holds none of the finished slides of {store.url}.")
    device = device_of_workers(config.device)
    batch_size = config.batch_size or DEFAULT_BATCH_SIZES[device]
    settings = replace(
        _settings(config, identity, model, store=store, num_slides=len(orders), batch_size=batch_size),
        embedding=_embedding(config, model, device=device, batch_size=batch_size),
    )
    ready = model if config.embeddings else model.prepared(device=device, batch_size=batch_size)
    found: list[SlideAgreement] = []
    for slide in (engine or ray_slides)(orders, ready, settings, config, device):
        say(slide)
        found.append(slide)
    found.sort(key=lambda slide: slide.slide_id)
    store.put(RESCORED_TABLE_KEY, sealed_parquet(agreement_table(found)))
    return found


def serial_slides(
    orders: list[SlideOrder],
    model: CohortModel,
    settings: RescoreSettings,
    config: RescoreCohortConfig,
    device: str,
) -> Iterator[SlideAgreement]:
    """One slide after the other, in this process."""
    source = _opened(model, settings, device=device, num_threads=config.threads_per_worker)
    for order in orders:
        yield rescore_slide(order, model, source, settings)


def ray_slides(
    orders: list[SlideOrder],
    model: CohortModel,
    settings: RescoreSettings,
    config: RescoreCohortConfig,
    device: str,
) -> Iterator[SlideAgreement]:
    """Slides spread over the workers of the Ray cluster there is, or of a local one."""
    tables = ray_workers(
        _RescoreSlides,
        orders,
        model=model,
        settings=settings,
        device=device,
        num_workers=config.num_workers,
        threads_per_worker=config.threads_per_worker,
    )
    yield from map(SlideAgreement.of_table, tables)


class _RescoreSlides:
    """A worker: the heavy model, opened once."""

    def __init__(
        self, model: Callable[[], CohortModel], settings: RescoreSettings, device: str, num_threads: int
    ) -> None:
        pin_threads(num_threads)
        self._model, self._settings = model(), settings
        self._source = _opened(self._model, settings, device=device, num_threads=num_threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        return rescore_slide(SlideOrder.of_table(table), self._model, self._source, self._settings).to_table()


def _opened(
    model: CohortModel, settings: RescoreSettings, *, device: str, num_threads: int
) -> MapSource | FeatureSource:
    """The model for maps, or for maps and features in one pass."""
    kind = cast("DeviceKind", device)
    if settings.embedding is None:
        return model.open(device=kind, batch_size=settings.batch_size, num_threads=num_threads)
    features = cast(EmbeddingModel, model)
    return features.open_features(device=kind, batch_size=settings.batch_size, num_threads=num_threads, with_maps=True)


def _embedding(
    config: RescoreCohortConfig, model: CohortModel, *, device: str, batch_size: int
) -> EmbeddingRecord | None:
    """What embeddings are to be stored, if any."""
    if not config.embeddings:
        return None
    return record_of_run(
        cast(EmbeddingModel, model),
        embedded_by="teacher",
        device=cast("DeviceKind", device),
        with_maps=True,
        layer_mpp=model.target_mpp,
        batch_size=batch_size,
        num_threads=config.threads_per_worker,
        where=config.where,
    )


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
        embedding=None,
        slide_cache=node_cache(config.slide_cache, gib=config.slide_cache_gib),
        reader_limits=ReaderLimits(),
    )


def _require_same_classes(identity: CellSetIdentity, model: CohortModel) -> None:
    if model.ontology.names != identity.ontology.names:
        raise ValueError(
            f"--model {model.name} tells {', '.join(model.ontology.names)} apart, the cell set holds "
            f"{', '.join(identity.ontology.names)}; a second opinion needs the same classes in the same order."
        )
