"""What every stage of a run knows: checked settings, the model's shape, the output, the identity of the cell set.

In: `SegmentCohortConfig` and a model. Out: one frozen `RunContext`, pickled to each worker once.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellmill import __version__
from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.sources import CohortModel
from cellmill.grid import TileGeometry
from cellmill.instances.choosing import make_decoder
from cellmill.instances.flow_decoder import FlowDecoder
from cellmill.instances.hv_decoder import HvDecoder
from cellmill.slides.isolation import ReaderLimits
from cellmill.staging.cache import SlideCache, node_cache
from cellmill.store.claims import Owner
from cellmill.store.identity import CellSetIdentity
from cellmill.store.objects import ObjectStore
from cellmill.store.work import SlideFacts, SlideWork
from cellmill_schemas.ontology import Ontology

if TYPE_CHECKING:
    from cellmill.models.inference import DeviceKind  # torch comes with it

__all__ = ["RunContext", "make_context"]


DEFAULT_BATCH_SIZES: dict[str, int] = {"cpu": 1, "cuda": 16}
"""Tiles a forward pass. CPUs gain nothing from more (`lite` works on one tile at a time, OpenVINO took 0.122 s a tile
alone and 0.142 s in batches of 8), and a field's last batch is padded."""


@dataclass(frozen=True)
class RunContext:
    """Settings of a run as its workers need them."""

    store: ObjectStore
    identity: CellSetIdentity
    geometry: TileGeometry
    decoder: FlowDecoder | HvDecoder
    driver: Owner
    """The process that holds the claims the workers work under."""
    target_mpp: float
    mpp: float | None
    field_px: int
    batch_size: int
    threads_per_worker: int
    device: "DeviceKind"
    backend: str
    tissue: Literal["auto", "none"] | Path
    reader: str
    reader_timeout_seconds: float
    reader_memory_bytes: int
    max_attempts: int
    slide_cache: SlideCache
    """Where slides behind URLs are brought to."""

    @property
    def ontology(self) -> Ontology:
        """The model's classes."""
        return self.identity.ontology

    @property
    def reader_limits(self) -> ReaderLimits:
        """What a slide reader's process may use."""
        return ReaderLimits(timeout_seconds=self.reader_timeout_seconds, memory_bytes=self.reader_memory_bytes)

    @property
    def device_kind(self) -> str:
        """The kind of device with all else that may change a prediction's last bits."""
        return f"{self.device} ({self.backend}), batches of {self.batch_size}, threads {self.threads_per_worker}"

    def work(self, facts: SlideFacts) -> SlideWork:
        """A slide under way."""
        return SlideWork(
            facts=facts,
            field_px=self.field_px,
            device_kind=self.device_kind,
            model_digest=self.identity.model_digest,
            config_digest=self.identity.config_digest,
            ontology=self.ontology,
        )


def make_context(
    config: SegmentCohortConfig, model: CohortModel, *, device: "DeviceKind", secret: bytes | None
) -> RunContext:
    """Settle what is left to defaults and name the cell set.

    Raises:
        ValueError: when the tissue file cannot be read.
    """
    target_mpp = config.target_mpp or model.target_mpp
    decoder = make_decoder(model.decoder, mpp=target_mpp, limits=model.mask_limits)
    tissue = config.tissue if config.tissue in ("auto", "none") else Path(config.tissue).absolute()
    settings: dict[str, Any] = {
        "target_mpp": target_mpp,
        "tissue": tissue if isinstance(tissue, str) else f"regions {_digest_of_regions(tissue)}",
        "reader": config.reader,
        "tile_px": model.geometry.tile_px,
        "margin_px": model.geometry.margin_px,
        "decoder": {"kind": model.decoder, **asdict(decoder.config)},
        "pseudonyms": None if secret is None else hmac.new(secret, b"cellmill", hashlib.sha256).hexdigest()[:16],
    }
    identity = CellSetIdentity(
        model_name=model.name,
        model_digest=model.digest,
        model_version=model.version,
        config_digest=_digest(settings),
        config=settings,
        ontology=model.ontology,
        code_version=__version__,
    )
    return RunContext(
        store=ObjectStore(config.out),
        identity=identity,
        geometry=model.geometry,
        decoder=decoder,
        driver=Owner.this_process(),
        target_mpp=target_mpp,
        mpp=config.mpp,
        field_px=config.field_px,
        batch_size=config.batch_size or DEFAULT_BATCH_SIZES[device],
        threads_per_worker=config.threads_per_worker,
        device=device,
        backend=model.backend(device),
        tissue=tissue,  # type: ignore[arg-type]
        reader=config.reader,
        reader_timeout_seconds=config.reader_timeout_seconds,
        reader_memory_bytes=int(config.reader_memory_gib * (1 << 30)),
        max_attempts=config.max_attempts,
        slide_cache=node_cache(config.slide_cache, gib=config.slide_cache_gib),
    )


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _digest_of_regions(path: Path) -> str:
    """The file's content decides, not its name."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ValueError(
            f"--tissue must be auto, none or a GeoJSON file, got {str(path)!r}: {error.strerror or error}."
        ) from error
