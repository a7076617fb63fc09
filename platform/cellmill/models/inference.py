"""Inference: tiles of pixels in, quantised dense maps of their cores out.

One `Segmenter` is one network on one device with a fixed batch shape and a fixed number of threads, because those are
what the bytes of a cell set may depend on. The last batch is padded, so a tile's maps never depend on how many tiles
came with it. The ways to run a network are in `cellmill.models.backends`.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cellmill.grid import TileGeometry
from cellmill.models.backends.contract import Backend, DeviceMaps, TileMaps
from cellmill.models.config import ModelConfig
from cellmill.models.loading import LoadedModel

__all__ = ["PROB_TOLERANCE", "DeviceKind", "Segmenter", "TileMaps", "backend_name", "choose_device", "prepared"]

DeviceKind = Literal["cpu", "cuda"]

PROB_TOLERANCE = 2
"""A backend may differ from eager float32 torch by at most this many of the 255 probability steps on 99.9 % of
pixels; flows by FLOW_SCALE / 128."""


_GPU_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/dev/nvhost-gpu")
"""Without one of these (NVIDIA, WSL, AMD, Jetson) there is no device, and torch, seconds to import, is not asked."""


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> DeviceKind:
    """The kind of device to use; `auto` takes CUDA where torch sees one.

    Raises:
        ValueError: when CUDA is asked for and torch sees none.
    """
    if device == "cpu" or (device == "auto" and not any(Path(node).exists() for node in _GPU_NODES)):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise ValueError("--device cuda was asked for, but torch sees no CUDA device here; use --device cpu or auto.")
    return "cpu"


def backend_name(config: ModelConfig, *, device: DeviceKind) -> str:
    """What will run the network; between two names a prediction's last bits may differ."""
    if device == "cuda":
        return "torch"
    if config.architecture == "lite":
        return "compiled"
    # A foundation model in a file of its own is gigabytes, which a converted graph would carry to every worker again.
    return "eager" if config.vit is not None and config.vit.sha256 else "openvino"


def prepared(model: LoadedModel, *, device: DeviceKind, batch_size: int) -> LoadedModel:
    """`model` with what takes long to make of it, so that a driver does it once and not each worker.

    That is OpenVINO's graph, where OpenVINO will run the network; otherwise nothing is needed.
    """
    made = model.converted
    done = made is not None and (made.tile_px, made.batch_size) == (model.config.tile_px, batch_size)
    if done or backend_name(model.config, device=device) != "openvino":
        return model
    from cellmill.models.backends.openvino import convert

    return replace(model, converted=convert(model, batch_size=batch_size))


class Segmenter:
    """A network ready to turn tiles into maps."""

    def __init__(self, backend: Backend, *, geometry: TileGeometry, batch_size: int, num_classes: int) -> None:
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
        chosen = _open_backend(model, device, backend, batch_size=batch_size, num_threads=num_threads)
        return Segmenter(chosen, geometry=geometry, batch_size=batch_size, num_classes=len(model.config.ontology))

    def predict(self, tiles: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of the cores of `tiles` (N, tile, tile, 3) uint8 RGB; N may be 0."""
        num_tiles, stride = len(tiles), self.geometry.stride_px
        vectors = np.empty((num_tiles, 2, stride, stride), np.int16)
        prob = np.empty((num_tiles, self._num_classes + 1, stride, stride), np.uint8)
        starts = range(0, num_tiles, self._batch_size)
        batches = (tiles[start : start + self._batch_size] for start in starts)
        for start, maps in zip(starts, self.predict_batches(batches), strict=True):
            vectors[start : start + len(maps.vectors)] = maps.vectors
            prob[start : start + len(maps.prob)] = maps.prob
        return TileMaps(vectors=vectors, prob=prob)

    def predict_batches(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[TileMaps]:
        """Maps of batches of at most the batch size, in order; the device works on one while the next is fetched.

        Each batch (N, tile, tile, 3) is filled up with white, so its maps are those `predict` gives.
        """
        lengths: deque[int] = deque()
        for maps in self._backend.run_many(self._filled(batches, lengths)):
            num_real = lengths.popleft()
            yield TileMaps(vectors=maps.vectors[:num_real], prob=maps.prob[:num_real])

    def predict_on_device(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[TileMaps | DeviceMaps]:
        """As `predict_batches`, with the maps left where they are made, as `Backend.run_on_device` leaves them."""
        lengths: deque[int] = deque()
        for maps in self._backend.run_on_device(self._filled(batches, lengths)):
            num_real = lengths.popleft()
            yield replace(maps, vectors=maps.vectors[:num_real], prob=maps.prob[:num_real])

    def _filled(self, batches: Iterable[npt.NDArray[np.uint8]], lengths: deque[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Full batches; how many tiles of each are real is written into `lengths`."""
        for batch in batches:
            lengths.append(len(batch))
            padding = np.full((self._batch_size - len(batch), *batch.shape[1:]), 255, np.uint8)
            yield np.concatenate([batch, padding]) if len(padding) else batch


def _open_backend(
    model: LoadedModel,
    device: DeviceKind,
    backend: Literal["fast", "reference"],
    *,
    batch_size: int,
    num_threads: int,
) -> Backend:
    # Each brings a runtime that takes seconds to import.
    name = backend_name(model.config, device=device)
    if backend == "reference" or name == "eager":
        from cellmill.models.backends.reference import ReferenceBackend

        return ReferenceBackend(model, num_threads=num_threads)
    if name == "torch":
        from cellmill.models.backends.torch_cuda import TorchCudaBackend

        return TorchCudaBackend(model, batch_size=batch_size, num_threads=num_threads)
    if name == "compiled":
        from cellmill.models.backends.compiled_lite import CompiledLiteBackend

        return CompiledLiteBackend(model, num_threads=num_threads)
    from cellmill.models.backends.openvino import OpenVinoBackend

    return OpenVinoBackend(model, batch_size=batch_size, num_threads=num_threads)
