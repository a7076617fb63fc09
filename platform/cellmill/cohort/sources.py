"""Where dense maps come from: the one thing a cohort run asks of a model.

A `CohortModel` is small and travels to the workers; each of them opens it once and gets a `MapSource`: tiles in,
quantised maps of their cores out, on the host or on the device that made them. Networks are the usual one; a test's
oracle, which knows the truth by position, is another, which is why a source is also told whose tiles they are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from cellmill.grid import TileGeometry
from cellmill.instances.mask_limits import MaskLimits
from cellmill.models.registry import is_registry_uri
from cellmill_schemas.ontology import Ontology

if TYPE_CHECKING:
    # Importing torch takes seconds, and the workers that plan and read never need it.
    from cellmill.models.backends.contract import DeviceMaps
    from cellmill.models.config import DecoderKind
    from cellmill.models.inference import DeviceKind, Segmenter, TileMaps
    from cellmill.models.loading import LoadedModel

__all__ = ["CohortModel", "MapSource", "NetworkModel", "NetworkSource", "TileBatch"]


@dataclass(frozen=True)
class TileBatch:
    """Tiles for one forward pass, at most the batch size."""

    slide_id: str
    indices: npt.NDArray[np.int64]  # (N, 2) column, row
    pixels: npt.NDArray[np.uint8]  # (N, tile, tile, 3) RGB


class MapSource(Protocol):
    """A model ready to work, in one worker."""

    def predict(self, batches: Iterable[TileBatch]) -> "Iterator[TileMaps | DeviceMaps]":
        """Maps of the tiles' cores, batch by batch in order; the next batches may be taken before maps come out.

        Those on a device are to be copied, there, before the next are asked for.
        """
        ...


class CohortModel(Protocol):
    """A model as a run needs to know it. It is pickled to the workers."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def digest(self) -> str:
        """Changes with the weights and the graph."""
        ...

    @property
    def version(self) -> str:
        """`models:/<name>/<version>` where it comes from a registry, otherwise empty."""
        ...

    @property
    def ontology(self) -> Ontology:
        """The classes it tells apart."""
        ...

    @property
    def geometry(self) -> TileGeometry:
        """Its tiles."""
        ...

    @property
    def target_mpp(self) -> float:
        """The scale it was trained at, um/px."""
        ...

    @property
    def decoder(self) -> "DecoderKind":
        """Which decoder turns its maps into instances."""
        ...

    @property
    def mask_limits(self) -> MaskLimits:
        """What that decoder takes for a cell."""
        ...

    def backend(self, device: "DeviceKind") -> str:
        """What will run it there: part of what fixes results to the last digit."""
        ...

    def prepared(self, *, device: "DeviceKind", batch_size: int) -> "CohortModel":
        """The model with all that can be done once, before it travels to the workers."""
        ...

    def open(self, *, device: "DeviceKind", batch_size: int, num_threads: int) -> MapSource:
        """Make it ready on this worker's device."""
        ...


@dataclass(frozen=True)
class NetworkModel:
    """A network with its weights, as `cellmill.models` loads it."""

    loaded: "LoadedModel"

    @property
    def name(self) -> str:
        """What people call it."""
        return self.loaded.config.name

    @property
    def digest(self) -> str:
        """Changes with the weights and the graph."""
        return self.loaded.digest

    @property
    def version(self) -> str:
        """`models:/<name>/<version>` where it comes from a registry, otherwise empty."""
        return self.loaded.source if is_registry_uri(self.loaded.source) else ""

    @property
    def ontology(self) -> Ontology:
        """The classes it tells apart."""
        return self.loaded.config.ontology

    @property
    def geometry(self) -> TileGeometry:
        """Its tiles."""
        return TileGeometry(tile_px=self.loaded.config.tile_px, margin_px=self.loaded.config.margin_px)

    @property
    def target_mpp(self) -> float:
        """The scale it was trained at, um/px."""
        return self.loaded.config.target_mpp

    @property
    def decoder(self) -> "DecoderKind":
        """Which decoder turns its maps into instances."""
        return self.loaded.config.decoder

    @property
    def mask_limits(self) -> MaskLimits:
        """What that decoder takes for a cell."""
        return self.loaded.config.mask_limits

    def backend(self, device: "DeviceKind") -> str:
        """As `cellmill.models.inference` names it."""
        from cellmill.models.inference import backend_name

        return backend_name(self.loaded.config, device=device)

    def prepared(self, *, device: "DeviceKind", batch_size: int) -> "NetworkModel":
        """With the backend's own form of the graph, where making that takes long."""
        from cellmill.models.inference import prepared

        return NetworkModel(prepared(self.loaded, device=device, batch_size=batch_size))

    def open(self, *, device: "DeviceKind", batch_size: int, num_threads: int) -> MapSource:
        """Build the network's backend for this worker's device."""
        from cellmill.models.inference import Segmenter

        segmenter = Segmenter.open(self.loaded, device=device, batch_size=batch_size, num_threads=num_threads)
        return NetworkSource(segmenter, self.decoder)


class NetworkSource:
    """A network looks at pixels and at nothing else."""

    def __init__(self, segmenter: "Segmenter", decoder: "DecoderKind") -> None:
        """Flows are decoded where they are made, so that no dense map leaves a GPU; other families on the host."""
        self._predict = segmenter.predict_on_device if decoder == "flows" else segmenter.predict_batches

    def predict(self, batches: Iterable[TileBatch]) -> "Iterator[TileMaps | DeviceMaps]":
        """Maps of the tiles' cores, batch by batch in order."""
        return self._predict(batch.pixels for batch in batches)
