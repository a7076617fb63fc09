"""torch on a CUDA device: channels-last, bfloat16."""

import numpy as np
import numpy.typing as npt
import torch

from cellmill.models.backends.contract import TileMaps
from cellmill.models.backends.quantising import QuantisingNetwork
from cellmill.models.loading import LoadedModel

__all__ = ["TorchCudaBackend"]


class TorchCudaBackend:
    """The network on CUDA, deterministic."""

    def __init__(self, model: LoadedModel, *, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self._module = QuantisingNetwork(model).to("cuda")
        self._module.network.to(memory_format=torch.channels_last)

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of one full batch (B, tile, tile, 3)."""
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
            flow, prob = self._module(torch.from_numpy(batch).to("cuda"))
        return TileMaps(flow=flow.cpu().numpy(), prob=prob.cpu().numpy())
