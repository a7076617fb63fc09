"""Features of any network through torch: the forward pass that makes maps, with one layer's output caught on its way.

Eager, float32 on a CPU and bfloat16 with float32 sums on CUDA, with deterministic kernels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cellmill.models.backends.contract import TileMaps
from cellmill.models.backends.quantising import QuantisingNetwork
from cellmill.models.features import FeatureLayer, TileFeatures
from cellmill.models.loading import LoadedModel

__all__ = ["TorchFeatures"]


class TorchFeatures:
    """A network on one device."""

    def __init__(self, model: LoadedModel, layer: FeatureLayer, *, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self._device = torch.device(device)
        module = QuantisingNetwork(model).to(self._device)
        if self._device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._module = module
        self._margin = model.config.margin_px // layer.stride_px
        self._caught: list[Tensor] = []
        module.network.get_submodule(layer.name).register_forward_hook(self._catch)

    def run(self, batch: npt.NDArray[np.uint8]) -> TileFeatures:
        """Features and maps of one full batch (B, tile, tile, 3)."""
        self._caught.clear()
        on_cuda = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=on_cuda):
            vectors, prob = self._module(torch.from_numpy(batch).to(self._device))
        (features,) = self._caught  # (B, D, h, w)
        stop = features.shape[-1] - self._margin
        core = features[:, :, self._margin : stop, self._margin : stop].permute(0, 2, 3, 1)
        return TileFeatures(
            core.float().contiguous().cpu().numpy(), TileMaps(vectors=vectors.cpu().numpy(), prob=prob.cpu().numpy())
        )

    def _catch(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        del module, inputs
        self._caught.append(output)
