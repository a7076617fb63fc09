"""Features: what a network has found out about each place before its last layers name types and flows.

Consumes batches of tiles; produces, for each tile's core, the output of one named layer, and the tile's maps where they
are wanted too. One layer an architecture, chosen by what tells types apart (docs/embeddings.md has the measurement).
Rows of a cell's embedding are means of these over its pixels (`cellmill.embedding`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cellmill.models.backends.contract import TileMaps
from cellmill.models.config import ModelConfig
from cellmill.models.inference import DeviceKind, backend_name
from cellmill.models.loading import LoadedModel

__all__ = ["FeatureBackend", "FeatureExtractor", "FeatureLayer", "TileFeatures", "feature_layer", "features_backend"]

_CONVOLUTIONAL_STRIDE_PX = 4
"""Of the decoder's layers that is the one whose pooled output told MoNuSAC's held-out types apart almost best (balanced
accuracy 0.89; 0.90 at stride 2, which is little more than what the head reads, 0.85 at stride 8), in 32 numbers for
`lite`: docs/embeddings.md."""


@dataclass(frozen=True)
class FeatureLayer:
    """A part of a network, as its modules are named."""

    name: str
    stride_px: int
    """Pixels of the model grid that one position of its output covers, each way."""


@dataclass(frozen=True)
class TileFeatures:
    """What a layer says of tile cores."""

    features: npt.NDArray[np.float32]  # (N, stride / s, stride / s, D), s the layer's stride
    maps: TileMaps | None = None
    """Of the same forward pass; None where they were not asked for."""


class FeatureBackend(Protocol):
    """A network on one device, for one batch shape."""

    def run(self, batch: npt.NDArray[np.uint8]) -> TileFeatures:
        """Features of one full batch (B, tile, tile, 3); a tile's never depend on the others'."""
        ...


def feature_layer(config: ModelConfig) -> FeatureLayer:
    """The layer whose output is pooled over cells.

    `lite`, `student` and the ResNet baseline: the decoder's fused map at stride 4. `teacher` and `cellvit`: the tokens
    after the deepest block that the decoder uses, under the decoder's own layer norm.

    Raises:
        ValueError: when cores of the model's tiles are no whole numbers of the layer's positions.
    """
    if config.vit is not None:
        layer = FeatureLayer(f"norms.{len(config.vit.blocks) - 1}", config.vit.token_px)
    elif config.architecture == "lite":
        layer = FeatureLayer("fuse.1", _CONVOLUTIONAL_STRIDE_PX)  # fuse.s of `lite` works at stride 2 ** (s + 1)
    else:
        layer = FeatureLayer("fuse.2", _CONVOLUTIONAL_STRIDE_PX)  # of a `TimmUnet` at 2 ** s
    if config.margin_px % layer.stride_px or config.tile_px % layer.stride_px:
        raise ValueError(
            f"Embeddings need tiles and margins of whole positions of {layer.name} ({layer.stride_px} px); model "
            f"{config.name} has tile_px={config.tile_px} and margin_px={config.margin_px}."
        )
    return layer


def features_backend(config: ModelConfig, *, device: DeviceKind, with_maps: bool) -> str:
    """What will run the network; between two names a feature's last bits may differ."""
    runs = backend_name(config, device=device)
    return f"{runs if runs == 'compiled' and not with_maps else 'torch'} on {device}"


class FeatureExtractor:
    """A network ready to tell features of tiles."""

    def __init__(self, backend: FeatureBackend, *, layer: FeatureLayer, batch_size: int) -> None:
        self._backend = backend
        self._batch_size = batch_size
        self.layer = layer

    @staticmethod
    def open(
        model: LoadedModel, *, device: DeviceKind, batch_size: int, num_threads: int, with_maps: bool
    ) -> "FeatureExtractor":
        """Build what runs the network.

        Args:
            model: network configuration and weights.
            device: `cpu` or `cuda`.
            batch_size: tiles a forward pass.
            num_threads: CPU threads of the forward pass.
            with_maps: whether the tiles' maps are wanted too.
        """
        # Each brings a runtime that takes seconds to import.
        layer = feature_layer(model.config)
        backend: FeatureBackend
        if features_backend(model.config, device=device, with_maps=with_maps).startswith("compiled"):
            from cellmill.models.backends.lite_features import CompiledLiteFeatures

            backend = CompiledLiteFeatures(model, layer, num_threads=num_threads)
        else:
            from cellmill.models.backends.torch_features import TorchFeatures

            backend = TorchFeatures(model, layer, device=device, num_threads=num_threads)
        return FeatureExtractor(backend, layer=layer, batch_size=batch_size)

    def extract(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[TileFeatures]:
        """Features of batches of at most the batch size, in order; each is filled up with white to run."""
        for batch in batches:
            num_real = len(batch)
            padding = np.full((self._batch_size - num_real, *batch.shape[1:]), 255, np.uint8)
            found = self._backend.run(np.concatenate([batch, padding]) if len(padding) else batch)
            maps = found.maps
            if maps is not None:
                maps = TileMaps(vectors=maps.vectors[:num_real], prob=maps.prob[:num_real])
            yield TileFeatures(found.features[:num_real], maps)
