"""Features of `lite` on CPUs: the compiled network, run no further than the layer that is wanted."""

import numpy as np
import numpy.typing as npt

from cellmill.models.features import FeatureLayer, TileFeatures
from cellmill.models.lite_cpu.network import CompiledLite
from cellmill.models.loading import LoadedModel

__all__ = ["CompiledLiteFeatures"]


class CompiledLiteFeatures:
    """A `lite` network laid out for one tile size. Its bytes depend on neither batch nor threads."""

    def __init__(self, model: LoadedModel, layer: FeatureLayer, *, num_threads: int) -> None:
        tensors = {name: value.astype(np.float64) for name, value in model.weights.items()}
        self._network = CompiledLite(model.config, tensors, num_threads=num_threads)
        self._layer = layer

    def run(self, batch: npt.NDArray[np.uint8]) -> TileFeatures:
        """Features of one full batch (B, tile, tile, 3), one tile after another."""
        return TileFeatures(np.stack([self._network.features(tile, self._layer.name) for tile in batch]))
