"""Inference: tiles of pixels in, quantised dense maps of their cores out.

One `Segmenter` is one network on one device with a fixed batch shape and a fixed number of threads, because those are
what the bytes of a cell set may depend on. The last batch is padded, so a tile's maps never depend on how many tiles
came with it. Softmax, cropping to the core and quantisation happen inside the network's graph: what leaves the device
is integers, 4 bytes of flow and one byte a class for each pixel, and the decode works on those exactly.

Backends: OpenVINO on CPU (the fastest of those measured, see docs/performance.md), torch with channels-last bfloat16 on
CUDA, and eager float32 torch as the reference that every backend must agree with.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cellmill.grid import TileGeometry
from cellmill.instances.maps import FLOW_SCALE
from cellmill.models.loading import LoadedModel

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PROB_TOLERANCE", "DeviceKind", "Segmenter", "TileMaps", "choose_device"]

DeviceKind = Literal["cpu", "cuda"]

PROB_TOLERANCE = 2
"""A backend may differ from eager float32 torch by at most this many of the 255 probability steps on 99.9 % of
pixels; flows by FLOW_SCALE / 128."""


@dataclass(frozen=True)
class TileMaps:
    """Dense maps of tile cores, quantised as in `cellmill.instances.maps.DenseMaps`."""

    flow: npt.NDArray[np.int16]  # (N, 2, stride, stride), dy then dx
    prob: npt.NDArray[np.uint8]  # (N, C + 1, stride, stride), background first


class _Backend(Protocol):
    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of one full batch (B, tile, tile, 3)."""
        ...


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> DeviceKind:
    """The kind of device to use; `auto` takes CUDA where torch sees one.

    Raises:
        ValueError: when CUDA is asked for and torch sees none.
    """
    if device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise ValueError("--device cuda was asked for, but torch sees no CUDA device here; use --device cpu or auto.")
    return "cpu"


class Segmenter:
    """A network ready to turn tiles into maps."""

    def __init__(self, backend: _Backend, *, geometry: TileGeometry, batch_size: int, num_classes: int) -> None:
        self._backend = backend
        self._batch_size = batch_size
        self._num_classes = num_classes
        self.geometry = geometry

    @staticmethod
    def open(
        model: LoadedModel,
        *,
        device: DeviceKind,
        batch_size: int,
        num_threads: int,
        backend: Literal["fast", "reference"] = "fast",
    ) -> "Segmenter":
        """Build the backend for `device`.

        Args:
            model: network configuration and weights.
            device: `cpu` or `cuda`.
            batch_size: tiles a forward pass; results hold for this value.
            num_threads: CPU threads of the forward pass.
            backend: `reference` is eager float32 torch, for comparison.
        """
        geometry = TileGeometry(tile_px=model.config.tile_px, margin_px=model.config.margin_px)
        if backend == "reference":
            chosen: _Backend = _TorchBackend(model, device="cpu", num_threads=num_threads)
        elif device == "cuda":
            chosen = _TorchBackend(model, device="cuda", num_threads=num_threads)
        else:
            chosen = _OpenVinoBackend(model, batch_size=batch_size, num_threads=num_threads)
        return Segmenter(chosen, geometry=geometry, batch_size=batch_size, num_classes=len(model.config.ontology))

    def predict(self, tiles: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of the cores of `tiles` (N, tile, tile, 3) uint8 RGB; N may be 0."""
        num_tiles, stride = len(tiles), self.geometry.stride_px
        flow = np.empty((num_tiles, 2, stride, stride), np.int16)
        prob = np.empty((num_tiles, self._num_classes + 1, stride, stride), np.uint8)
        for start in range(0, num_tiles, self._batch_size):
            batch = tiles[start : start + self._batch_size]  # (<= B, tile, tile, 3)
            num_real = len(batch)
            if num_real < self._batch_size:
                padding = np.full((self._batch_size - num_real, *batch.shape[1:]), 255, np.uint8)
                batch = np.concatenate([batch, padding])
            maps = self._backend.run(batch)
            flow[start : start + num_real] = maps.flow[:num_real]
            prob[start : start + num_real] = maps.prob[:num_real]
        return TileMaps(flow=flow, prob=prob)


def _quantising_module(model: LoadedModel) -> "nn.Module":
    """The network with pixels in as uint8 NHWC and quantised core maps out as floats holding integers."""
    import torch
    from torch import nn

    margin = model.config.margin_px

    class Quantising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.build().eval()

        def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            images = tiles.permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, H, W), 0..255
            out = self.network(images).float()  # (B, 2 + C + 1, H, W)
            if margin:
                out = out[:, :, margin:-margin, margin:-margin]
            flow = torch.clamp(out[:, :2] * FLOW_SCALE, -32767.0, 32767.0).round()
            prob = (torch.softmax(out[:, 2:], dim=1) * 255.0).round()
            return flow.to(torch.int16), prob.to(torch.uint8)

    return Quantising()


class _TorchBackend:
    def __init__(self, model: LoadedModel, *, device: DeviceKind, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self._device = torch.device(device)
        self._module = _quantising_module(model).to(self._device)
        if device == "cuda":
            self._module.network.to(memory_format=torch.channels_last)

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        import torch

        on_cuda = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16, enabled=on_cuda):
            flow, prob = self._module(torch.from_numpy(batch).to(self._device))
        return TileMaps(flow=flow.cpu().numpy(), prob=prob.cpu().numpy())


class _OpenVinoBackend:
    def __init__(self, model: LoadedModel, *, batch_size: int, num_threads: int) -> None:
        import openvino as ov
        import torch

        torch.set_num_threads(num_threads)
        tile_px = model.config.tile_px
        example = torch.zeros((batch_size, tile_px, tile_px, 3), dtype=torch.uint8)
        graph = ov.convert_model(torch.export.export(_quantising_module(model), (example,)))
        options = {
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled = ov.Core().compile_model(graph, "CPU", options)

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        outputs = self._compiled([np.ascontiguousarray(batch)])
        return TileMaps(flow=np.asarray(outputs[0], np.int16), prob=np.asarray(outputs[1], np.uint8))
