"""torch on a CUDA device: channels-last bfloat16, one captured graph, copies beside the computing.

A batch goes through three streams: pixels from pinned host memory to the device, the network, maps back to pinned
memory. Two slots of host and device memory take turns, so that while batch k is computed, batch k + 1 is uploaded and
batch k - 1 downloaded; the host fills and empties the other slot meanwhile.

The network is captured as a CUDA graph rather than compiled: the shape never changes, a captured graph launches its
hundreds of kernels at once, and it runs the very kernels of the uncaptured network, while `torch.compile` takes minutes
in each worker and picks kernels by timing them there, so that two workers of one run could differ in their bytes.

On "cpu" the same path runs with no streams, no graph and float32, which is how it is tested without a device.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellmill.models.backends.contract import Backend, DeviceMaps, TileMaps
from cellmill.models.backends.quantising import QuantisingNetwork
from cellmill.models.loading import LoadedModel

__all__ = ["TorchCudaBackend"]

_NUM_SLOTS = 2
_NUM_WARM_UPS = 3
"""Uncaptured runs before a capture, in which libraries allocate what they need (torch's guide asks for three)."""


class TorchCudaBackend(Backend):
    """A network on one device for one batch shape, deterministic."""

    def __init__(self, model: LoadedModel, *, batch_size: int, num_threads: int, device: str = "cuda") -> None:
        torch.set_num_threads(num_threads)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self._device = torch.device(device)
        module = QuantisingNetwork(model).to(self._device)
        if self._on_cuda:
            module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._module = module
        tile_px = model.config.tile_px
        self._upload, self._compute, self._download = (self._new_stream() for _ in range(3))
        self._slots = [self._new_slot((batch_size, tile_px, tile_px, 3)) for _ in range(_NUM_SLOTS)]

    def run(self, batch: npt.NDArray[np.uint8]) -> TileMaps:
        """Maps of one full batch (B, tile, tile, 3)."""
        return next(self.run_many([batch]))

    def run_many(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[TileMaps]:
        """Maps of full batches, in order; a batch is taken from `batches` while the one before it is computed."""
        waiting: list[_Slot] = []
        for number, batch in enumerate(batches):
            slot = self._slots[number % _NUM_SLOTS]
            self._send(slot, batch)
            self._start(slot)
            self._fetch(slot)
            waiting.append(slot)
            if len(waiting) == _NUM_SLOTS:
                yield self._taken(waiting.pop(0))
        for slot in waiting:
            yield self._taken(slot)

    def run_on_device(self, batches: Iterable[npt.NDArray[np.uint8]]) -> Iterator[DeviceMaps]:
        """As `run_many`, with the maps left on the device for what decodes them there."""
        for number, batch in enumerate(batches):
            slot = self._slots[number % _NUM_SLOTS]
            self._send(slot, batch)
            self._start(slot)
            self._wait_here(slot.computed)
            yield DeviceMaps(slot.device_vectors, slot.device_prob)
            slot.downloaded = self._mark(None)

    def compute_again(self, number: int) -> None:
        """Queue the network once more on the pixels that slot `number` holds: its time without any copy."""
        slot = self._slots[number % _NUM_SLOTS]
        self._start(slot)

    @property
    def _on_cuda(self) -> bool:
        return self._device.type == "cuda"

    def _send(self, slot: "_Slot", batch: npt.NDArray[np.uint8]) -> None:
        """Pixels into the slot's pinned memory, and on their way to the device."""
        if slot.uploaded is not None:
            slot.uploaded.synchronize()  # the pinned pixels of two batches ago have left
        slot.pinned_pixels.numpy()[:] = batch
        with self._on(self._upload):
            self._wait_in(self._upload, slot.computed)  # the device's pixels of two batches ago are used up
            slot.device_pixels.copy_(slot.pinned_pixels, non_blocking=True)
            slot.uploaded = self._mark(self._upload)

    def _start(self, slot: "_Slot") -> None:
        with self._on(self._compute):
            self._wait_in(self._compute, slot.uploaded)
            self._wait_in(self._compute, slot.downloaded)  # the device's maps of two batches ago have left
            slot.compute()
            slot.computed = self._mark(self._compute)

    def _fetch(self, slot: "_Slot") -> None:
        with self._on(self._download):
            self._wait_in(self._download, slot.computed)
            slot.pinned_vectors.copy_(slot.device_vectors, non_blocking=True)
            slot.pinned_prob.copy_(slot.device_prob, non_blocking=True)
            slot.downloaded = self._mark(self._download)

    def _taken(self, slot: "_Slot") -> TileMaps:
        if slot.downloaded is not None:
            slot.downloaded.synchronize()
        # Copied: the pinned memory is written again two batches on.
        return TileMaps(vectors=slot.pinned_vectors.numpy().copy(), prob=slot.pinned_prob.numpy().copy())

    def _new_slot(self, shape: tuple[int, ...]) -> "_Slot":
        pixels = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        vectors, prob = self._forward(pixels)
        vectors, prob = torch.empty_like(vectors), torch.empty_like(prob)

        def compute() -> None:
            found_vectors, found_prob = self._forward(pixels)
            vectors.copy_(found_vectors)
            prob.copy_(found_prob)

        return _Slot(
            pinned_pixels=torch.zeros(shape, dtype=torch.uint8, pin_memory=self._on_cuda),
            device_pixels=pixels,
            device_vectors=vectors,
            device_prob=prob,
            pinned_vectors=torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=self._on_cuda),
            pinned_prob=torch.empty(prob.shape, dtype=prob.dtype, pin_memory=self._on_cuda),
            compute=self._captured(compute) if self._on_cuda else compute,
        )

    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), self._autocast():
            return self._module(pixels)

    def _autocast(self) -> AbstractContextManager[Any]:
        # Casts kept between layers would be memory of the capture that a replay knows nothing of.
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if self._on_cuda else nullcontext()

    def _captured(self, compute: Callable[[], None]) -> Callable[[], None]:
        """`compute` as one CUDA graph."""
        # The order of torch.cuda.graph's own example: warm up on a side stream, then capture.
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_NUM_WARM_UPS):
                compute()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compute()
        return graph.replay

    def _new_stream(self) -> "torch.cuda.Stream | None":
        return torch.cuda.Stream(self._device) if self._on_cuda else None

    def _on(self, stream: "torch.cuda.Stream | None") -> AbstractContextManager[Any]:
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def _mark(self, stream: "torch.cuda.Stream | None") -> "torch.cuda.Event | None":
        """The point that a stream (None: the current one) has been given work up to."""
        if not self._on_cuda:
            return None
        event = torch.cuda.Event()
        event.record(stream or torch.cuda.current_stream(self._device))
        return event

    def _wait_in(self, stream: "torch.cuda.Stream | None", event: "torch.cuda.Event | None") -> None:
        if stream is not None and event is not None:
            stream.wait_event(event)

    def _wait_here(self, event: "torch.cuda.Event | None") -> None:
        self._wait_in(torch.cuda.current_stream(self._device) if self._on_cuda else None, event)


@dataclass
class _Slot:
    """Memory of one batch under way, and how far it has come (no events on the CPU, where nothing runs beside)."""

    pinned_pixels: Tensor  # (B, tile, tile, 3) uint8
    device_pixels: Tensor
    device_vectors: Tensor  # (B, 2, stride, stride) int16
    device_prob: Tensor  # (B, C + 1, stride, stride) uint8
    pinned_vectors: Tensor
    pinned_prob: Tensor
    compute: Callable[[], None]
    uploaded: "torch.cuda.Event | None" = None
    computed: "torch.cuda.Event | None" = None
    downloaded: "torch.cuda.Event | None" = None
