"""Eager float32 torch on CPU: slow, plain, and what every other backend is held against."""

import numpy as np
import numpy.typing as npt
import torch

from cellmill.models.backends.contract import Backend, TileMaps
from cellmill.models.backends.quantising import QuantisingNetwork
from cellmill.models.loading import LoadedModel

__all__ = ["ReferenceBackend"]


class ReferenceBackend(Backend):
    """The network as torch runs it when nothing is asked of it."""

    def __init__(self, model: LoadedModel, *, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._module = QuantisingNetwork(model)

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of one full batch (B, tile, tile, 3)."""
        with torch.inference_mode():
            vectors, prob = self._module(torch.from_numpy(batch))
        return TileMaps(vectors=vectors.numpy(), prob=prob.numpy())
