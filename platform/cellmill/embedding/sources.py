"""Where features come from: what a worker that embeds cells asks of a model.

As `cellmill.cohort.sources` does for maps: a small `EmbeddingModel` travels to the workers, each opens it once.
Networks are the usual one; tests have one that knows what it should say.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cellmill.cohort.sources import CohortModel, NetworkModel, TileBatch
from cellmill.store.embeddings import EmbeddedBy, EmbeddingRecord

if TYPE_CHECKING:
    # Importing torch takes seconds.
    from cellmill.models.features import FeatureExtractor, FeatureLayer, TileFeatures
    from cellmill.models.inference import DeviceKind

__all__ = ["EmbeddingModel", "FeatureSource", "NetworkEmbeddings", "record_of_run"]


class FeatureSource(Protocol):
    """A model ready to tell features, in one worker."""

    def features(self, batches: Iterable[TileBatch]) -> "Iterator[TileFeatures]":
        """Features of the tiles' cores, batch by batch in order."""
        ...


class EmbeddingModel(CohortModel, Protocol):
    """A cohort model that can be asked for features too."""

    @property
    def layer(self) -> "FeatureLayer":
        """Whose output is pooled."""
        ...

    def features_backend(self, device: "DeviceKind", *, with_maps: bool) -> str:
        """What will run it there."""
        ...

    def open_features(
        self, *, device: "DeviceKind", batch_size: int, num_threads: int, with_maps: bool
    ) -> FeatureSource:
        """Make it ready on this worker's device."""
        ...


def record_of_run(
    model: EmbeddingModel,
    *,
    embedded_by: EmbeddedBy,
    device: "DeviceKind",
    with_maps: bool,
    layer_mpp: float,
    batch_size: int,
    num_threads: int,
    where: str = "",
) -> EmbeddingRecord:
    """What the vectors of a run are; which slide's and of which cell table is left empty.

    Args:
        model: tells the features.
        embedded_by: what the model is to the cell set.
        device: kind of device it runs on.
        with_maps: whether it is asked for maps in the same pass.
        layer_mpp: um/px of the grid it is shown.
        batch_size: tiles a forward pass.
        num_threads: CPU threads of a worker.
        where: the condition that chooses the cells; empty for all.
    """
    layer = model.layer
    backend = model.features_backend(device, with_maps=with_maps)
    return EmbeddingRecord(
        slide_id="",
        embedded_by=embedded_by,
        model_name=model.name,
        model_digest=model.digest,
        model_version=model.version,
        layer=layer.name,
        layer_stride_px=layer.stride_px,
        layer_mpp=layer_mpp,
        backend=f"{backend}, batches of {batch_size}, threads {num_threads}",
        where=where,
        cells_sha256="",
    )


@dataclass(frozen=True)
class NetworkEmbeddings(NetworkModel):
    """A network with its weights, asked for maps or for features."""

    @property
    def layer(self) -> "FeatureLayer":
        """Whose output is pooled."""
        from cellmill.models.features import feature_layer

        return feature_layer(self.loaded.config)

    def features_backend(self, device: "DeviceKind", *, with_maps: bool) -> str:
        """As `cellmill.models.features` names it."""
        from cellmill.models.features import features_backend

        return features_backend(self.loaded.config, device=device, with_maps=with_maps)

    def open_features(
        self, *, device: "DeviceKind", batch_size: int, num_threads: int, with_maps: bool
    ) -> FeatureSource:
        """Build what runs the network on this worker's device."""
        from cellmill.models.features import FeatureExtractor

        return _NetworkFeatures(
            FeatureExtractor.open(
                self.loaded, device=device, batch_size=batch_size, num_threads=num_threads, with_maps=with_maps
            )
        )


class _NetworkFeatures:
    """A network looks at pixels and at nothing else."""

    def __init__(self, extractor: "FeatureExtractor") -> None:
        self._extractor = extractor

    def features(self, batches: Iterable[TileBatch]) -> "Iterator[TileFeatures]":
        return self._extractor.extract(batch.pixels for batch in batches)
