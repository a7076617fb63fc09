"""A cohort's embeddings: finished slides to workers, each of which holds the model once.

In: the settings of the run that found the cells, and its model. Out: `embeddings/student/<slide_id>` for every finished
slide that has none yet. Slides are done one a worker.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.context import DEFAULT_BATCH_SIZES
from cellmill.cohort.granted import pin_threads
from cellmill.cohort.per_slide import SlideOrder, orders_of, ray_workers
from cellmill.cohort.pools import device_of_workers
from cellmill.embedding.slide import EmbeddedSlide, EmbedSettings, embed_slide
from cellmill.embedding.sources import EmbeddingModel, record_of_run
from cellmill.privacy import read_secret
from cellmill.slides.isolation import ReaderLimits
from cellmill.staging.cache import node_cache
from cellmill.store.embeddings import EmbeddingRecord, read_embedding_record
from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.objects import ObjectStore

if TYPE_CHECKING:
    from cellmill.models.inference import DeviceKind

__all__ = ["Engine", "embed_cohort", "ray_slides", "serial_slides"]

Engine = Callable[
    [list[SlideOrder], EmbeddingModel, EmbedSettings, SegmentCohortConfig, "DeviceKind"], Iterator[EmbeddedSlide]
]
"""Embeds slides: (orders, model, settings, configuration, kind of device)."""


def embed_cohort(
    config: SegmentCohortConfig,
    model: EmbeddingModel,
    *,
    engine: "Engine | None" = None,
    say: Callable[[EmbeddedSlide], None] = lambda _: None,
) -> list[EmbeddedSlide]:
    """Store embeddings of every finished slide of the run that has none of this model's.

    Args:
        config: the settings that the cells were found with.
        model: the same model.
        engine: what executes; Ray when not given.
        say: told of each slide when it is done.

    Returns:
        One entry a slide that was worked on, by slide id.

    Raises:
        ValueError: when the model is another than the cell set's, or its layer does not fit its tiles.
    """
    store = ObjectStore(config.out)
    identity = read_identity(store)
    if model.digest != identity.model_digest:
        raise ValueError(
            f"The cell set was made by {identity.model_name} ({identity.model_digest[:12]}), --model is {model.name} "
            f"({model.digest[:12]}); rescore_cohort --embeddings stores those of another model."
        )
    device = device_of_workers(config.device)
    settings = _settings(config, identity, model, store=store, device=device)
    orders = orders_of(store, config.slides, secret=read_secret(config.pseudonymize))
    todo = [order for order in orders if not _is_there(store, order, settings.record)]
    found: list[EmbeddedSlide] = []
    if todo:
        for slide in (engine or ray_slides)(todo, model, settings, config, device):
            say(slide)
            found.append(slide)
    return sorted(found, key=lambda slide: slide.slide_id)


def serial_slides(
    orders: list[SlideOrder],
    model: EmbeddingModel,
    settings: EmbedSettings,
    config: SegmentCohortConfig,
    device: "DeviceKind",
) -> Iterator[EmbeddedSlide]:
    """One slide after the other, in this process."""
    source = model.open_features(
        device=device, batch_size=settings.batch_size, num_threads=config.threads_per_worker, with_maps=False
    )
    for order in orders:
        yield embed_slide(order, source, settings)


def ray_slides(
    orders: list[SlideOrder],
    model: EmbeddingModel,
    settings: EmbedSettings,
    config: SegmentCohortConfig,
    device: "DeviceKind",
) -> Iterator[EmbeddedSlide]:
    """Slides spread over the workers of the Ray cluster there is, or of a local one."""
    tables = ray_workers(
        _EmbedSlides,
        orders,
        model=model,
        settings=settings,
        device=device,
        num_workers=config.num_workers,
        threads_per_worker=config.threads_per_worker,
    )
    yield from map(EmbeddedSlide.of_table, tables)


class _EmbedSlides:
    """A worker: the model, opened once."""

    def __init__(
        self, model: Callable[[], EmbeddingModel], settings: EmbedSettings, device: "DeviceKind", num_threads: int
    ) -> None:
        pin_threads(num_threads)
        self._settings = settings
        self._source = model().open_features(
            device=device, batch_size=settings.batch_size, num_threads=num_threads, with_maps=False
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        return embed_slide(SlideOrder.of_table(table), self._source, self._settings).to_table()


def _settings(
    config: SegmentCohortConfig,
    identity: CellSetIdentity,
    model: EmbeddingModel,
    *,
    store: ObjectStore,
    device: "DeviceKind",
) -> EmbedSettings:
    batch_size = config.batch_size or DEFAULT_BATCH_SIZES[device]
    record = record_of_run(
        model,
        embedded_by="student",
        device=device,
        with_maps=False,
        layer_mpp=float(identity.config["target_mpp"]),
        batch_size=batch_size,
        num_threads=config.threads_per_worker,
    )
    return EmbedSettings(
        store=store,
        reader=str(identity.config["reader"]),
        record=record,
        geometry=model.geometry,
        batch_size=batch_size,
        slide_cache=node_cache(config.slide_cache, gib=config.slide_cache_gib),
        reader_limits=ReaderLimits(
            timeout_seconds=config.reader_timeout_seconds, memory_bytes=int(config.reader_memory_gib * (1 << 30))
        ),
    )


def _is_there(store: ObjectStore, order: SlideOrder, wanted: EmbeddingRecord) -> bool:
    """Whether the slide has these very vectors. What ran the network does not make them others."""
    found = read_embedding_record(store, wanted.embedded_by, order.status.slide_id)
    if found is None:
        return False
    like = replace(
        wanted,
        slide_id=order.status.slide_id,
        cells_sha256=order.status.cells_sha256,
        backend=found.backend,
        model_version=found.model_version,
        model_name=found.model_name,
    )
    return found.is_of(like)
