"""`lite` on CPUs: the network's layers compiled by numba for this shape, with Winograd's convolutions.

The fastest of those measured for it (docs/performance.md); the kernels are in `cellmill.models.lite_cpu`.
"""

import numpy as np
import numpy.typing as npt

from cellmill.models.backends.contract import Backend, TileMaps
from cellmill.models.lite_cpu.network import CompiledLite
from cellmill.models.loading import LoadedModel

__all__ = ["CompiledLiteBackend"]


class CompiledLiteBackend(Backend):
    """A `lite` network laid out for one tile size. Its bytes depend on neither batch nor threads."""

    def __init__(self, model: LoadedModel, *, num_threads: int) -> None:
        tensors = {name: value.astype(np.float64) for name, value in model.weights.items()}
        self._config = model.config
        self._network = CompiledLite(model.config, tensors, num_threads=num_threads)

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of one full batch (B, tile, tile, 3), one tile after another."""
        stride = self._config.tile_px - 2 * self._config.margin_px
        flow = np.empty((len(batch), 2, stride, stride), np.int16)
        prob = np.empty((len(batch), self._config.num_outputs - 2, stride, stride), np.uint8)
        for number, tile in enumerate(batch):
            self._network.run(tile, flow[number], prob[number])
        return TileMaps(vectors=flow, prob=prob)
