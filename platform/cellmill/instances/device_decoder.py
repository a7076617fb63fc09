"""The flows decode on the device that made the maps: tensors in, the very `Instances` of `FlowDecoder` out.

Following paths, counting where they end, finding sinks, keeping each sink's largest part and summing each cell's class
probabilities are done there in integers, whatever the order of the device's threads: sums, minima and maxima of
integers do not depend on it. What is left looks at single masks and runs on the CPU, in `flow_decoder.finish_masks`.

What crosses the bus: one byte a pixel to say which are foreground, 8 bytes (label and flow) for each that is, and 8
bytes (pixel and cell) back for each pixel of a cell: at 0.5 um/px and 15 % foreground about 14 MB a mm2 instead of
48 MB of maps with eight classes.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from cellmill.instances.decoder import Instances
from cellmill.instances.extents import EXCEEDED
from cellmill.instances.flow_decoder import FlowDecoderConfig, background_limit, finish_masks
from cellmill.instances.flow_kernels import (
    FRACTION_BITS,
    GROWTH_MIN_PATHS,
    GROWTH_STEPS,
    SINK_MIN_PATHS,
    SINK_RADIUS,
)
from cellmill.instances.maps import ClassSums

__all__ = ["DeviceFlowDecoder", "beside_the_network"]

_STEPS_BETWEEN_LOOKS = 12
"""Paths at rest are set aside this often: they take 12.7 steps on average, and each look waits for the device."""
_FRACTION = (1 << FRACTION_BITS) - 1
_STEP_SHIFT = FRACTION_BITS + 12


@dataclass(frozen=True)
class DeviceFlowDecoder:
    """Decodes maps that lie on a device; gives what `FlowDecoder` gives for the same maps, bit by bit."""

    config: FlowDecoderConfig

    def decode_and_sum(self, flow: Tensor, prob: Tensor, *, origin_px: tuple[int, int]) -> tuple[Instances, ClassSums]:
        """The cells of one window, and what its maps say of their classes.

        Args:
            flow: (2, H, W) int16, as `DenseMaps.flow`, on any device.
            prob: (C + 1, H, W) uint8, as `DenseMaps.prob`, on the same device.
            origin_px: absolute (x, y) of the window's first pixel.
        """
        with beside_the_network(prob.device):
            instances = self.decode(flow, prob[0], origin_px=origin_px)
            return instances, ClassSums(_sum_classes(instances, prob), instances.box)

    def decode(self, flow: Tensor, background: Tensor, *, origin_px: tuple[int, int]) -> Instances:
        """The cells of one window.

        Args:
            flow: (2, H, W) int16, as `DenseMaps.flow`, on any device.
            background: (H, W) uint8, as `DenseMaps.prob[0]`, on the same device.
            origin_px: absolute (x, y) of the window's first pixel.
        """
        height, width = background.shape
        foreground = background < background_limit(self.config)
        pixels = foreground.reshape(-1).nonzero().reshape(-1)  # (n,) flat, in raster order
        packed = torch.where(foreground, flow.to(torch.int32), 0).reshape(2, -1)  # (2, H * W)
        ends = _follow(packed, pixels, height, width, self.config)  # (n,)
        counts = _count(ends, height * width).reshape(height, width)
        sinks = _find_sinks(counts)  # (m,)
        labels = _label(ends, counts, sinks)  # (n,)
        labels = _largest_parts(labels, pixels, foreground, len(sinks))
        sums = torch.zeros(len(sinks) + 1, dtype=torch.int64, device=labels.device)
        sums.index_add_(0, labels.clamp(min=0), background.reshape(-1)[pixels].long())
        sums[0] = 0
        return self._finish(labels, packed[:, pixels], foreground, sums, sinks, origin_px=origin_px)

    def _finish(
        self,
        labels: Tensor,
        flow: Tensor,
        foreground: Tensor,
        background_sums: Tensor,
        sinks: Tensor,
        *,
        origin_px: tuple[int, int],
    ) -> Instances:
        inside = foreground.cpu().numpy()
        dense_labels = np.zeros(inside.shape, np.int32)
        dense_labels[inside] = labels.to(torch.int32).cpu().numpy()
        dense_flow = np.zeros((2, *inside.shape), np.int16)
        dense_flow[:, inside] = flow.to(torch.int16).cpu().numpy()
        return finish_masks(
            dense_labels,
            dense_flow,
            background_sums.cpu().numpy(),
            sinks.to(torch.int32).cpu().numpy(),
            config=self.config,
            origin_px=origin_px,
        )


_streams = threading.local()


@contextmanager
def beside_the_network(device: torch.device) -> Generator[None]:
    """Work on `device` in a stream of this thread's own, so that it does not queue behind the network's next batches.

    It begins when all that the default stream holds by now is done, and with it the maps.
    """
    if device.type != "cuda":
        yield
        return
    # One a thread, for good: the memory a stream has used is kept for it.
    if not hasattr(_streams, "own"):
        _streams.own = torch.cuda.Stream(device)
    _streams.own.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(_streams.own):
        yield


def _sum_classes(instances: Instances, prob: Tensor) -> npt.NDArray[np.int64]:
    """Sums of `prob` (C + 1, H, W) over each cell (n, C + 1)."""
    labels = instances.labels.reshape(-1)
    pixels = np.flatnonzero(labels).astype(np.int32)
    numbers = labels[pixels] - 1
    at, of_cell = (torch.from_numpy(values).to(prob.device).long() for values in (pixels, numbers))
    sums = torch.zeros((len(prob), len(instances)), dtype=torch.int64, device=prob.device)
    sums.index_add_(1, of_cell, prob.reshape(len(prob), -1)[:, at].long())
    return np.ascontiguousarray(sums.cpu().numpy().T)


def _follow(packed: Tensor, pixels: Tensor, height: int, width: int, config: FlowDecoderConfig) -> Tensor:
    """Flat index of the pixel where each path ends, or EXCEEDED (n,)."""
    ends = torch.empty_like(pixels)
    number = torch.arange(len(pixels), device=pixels.device)  # of the paths still under way
    start_y = (pixels // width << FRACTION_BITS).to(torch.int32)
    start_x = (pixels % width << FRACTION_BITS).to(torch.int32)
    y, x, last_y, last_x = start_y, start_x, start_y, start_x
    exceeded = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    reach = config.max_reach_px << FRACTION_BITS
    for step in range(1, config.num_steps + 1):
        last_y, last_x = y, x
        y, x = _step(packed, height, width, y, x)
        exceeded = exceeded | ((y - start_y).abs() > reach) | ((x - start_x).abs() > reach)
        if step % _STEPS_BETWEEN_LOOKS == 0 and step < config.num_steps:
            # A path at rest stays, one out of reach is over; one that goes round is followed to its last step.
            moving = ((y != last_y) | (x != last_x)) & ~exceeded
            ends[number] = torch.where(exceeded, EXCEEDED, _pixel(y, x, width))
            number, y, x = number[moving], y[moving], x[moving]
            start_y, start_x, exceeded = start_y[moving], start_x[moving], exceeded[moving]
            if len(number) == 0:
                return ends
    ends[number] = torch.where(exceeded, EXCEEDED, _pixel(y, x, width))
    return ends


def _pixel(y: Tensor, x: Tensor, width: int) -> Tensor:
    return (y >> FRACTION_BITS).to(torch.int64) * width + (x >> FRACTION_BITS)


def _step(packed: Tensor, height: int, width: int, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One Euler step of fixed-point positions, clamped to the window, as `flow_kernels` takes it."""
    fy, fx = y & _FRACTION, x & _FRACTION
    at = _pixel(y, x, width)
    right = ((x >> FRACTION_BITS) + 1 < width).to(torch.int64)
    below = ((y >> FRACTION_BITS) + 1 < height).to(torch.int64) * width
    w11 = fy * fx
    w10, w01 = (fy << FRACTION_BITS) - w11, (fx << FRACTION_BITS) - w11
    w00 = (1 << 2 * FRACTION_BITS) - (fy << FRACTION_BITS) - w01
    moved = (
        w00 * packed[:, at]
        + w01 * packed[:, at + right]
        + w10 * packed[:, at + below]
        + w11 * packed[:, at + below + right]
    )  # (2, n)
    moved = (moved + (1 << (_STEP_SHIFT - 1))) >> _STEP_SHIFT
    return (
        (y + moved[0]).clamp(0, (height - 1) << FRACTION_BITS),
        (x + moved[1]).clamp(0, (width - 1) << FRACTION_BITS),
    )


def _count(ends: Tensor, num_pixels: int) -> Tensor:
    """Number of paths ending at each pixel (H * W,), int32."""
    counts = torch.zeros(num_pixels + 1, dtype=torch.int32, device=ends.device)
    # Paths that ended nowhere are counted behind the last pixel.
    there = torch.where(ends == EXCEEDED, num_pixels, ends)
    return counts.scatter_add_(0, there, torch.ones_like(there, dtype=torch.int32))[:-1]


def _find_sinks(counts: Tensor) -> Tensor:
    """Flat indices of the sinks (m,), most paths first, then (y, x)."""
    height, width = counts.shape
    around = functional.pad(counts, [SINK_RADIUS] * 4, value=-1)
    peak = counts > SINK_MIN_PATHS
    for dy in range(-SINK_RADIUS, SINK_RADIUS + 1):
        for dx in range(-SINK_RADIUS, SINK_RADIUS + 1):
            y, x = dy + SINK_RADIUS, dx + SINK_RADIUS
            other = around[y : y + height, x : x + width]
            earlier = dy < 0 or (dy == 0 and dx < 0)
            peak &= (other < counts) if earlier else (other <= counts)
    sinks = peak.reshape(-1).nonzero().reshape(-1)
    return sinks[torch.argsort(-counts.reshape(-1)[sinks], stable=True)]


def _label(ends: Tensor, counts: Tensor, sinks: Tensor) -> Tensor:
    """1 + the index of the sink that each path belongs to, 0 for none, EXCEEDED as it was (n,)."""
    height, width = counts.shape
    # A sink grows over pixels with paths enough, whoever else takes them: growth is the same for all at once. Of
    # those that want a pixel the first sink has it.
    padded = functional.pad(counts, [GROWTH_STEPS] * 4, value=0)
    side = torch.arange(-GROWTH_STEPS, GROWTH_STEPS + 1, device=counts.device)
    y = (sinks // width)[:, None, None] + side[None, :, None]  # (m, 11, 1)
    x = (sinks % width)[:, None, None] + side[None, None, :]  # (m, 1, 11)
    open_to_all = (padded[y + GROWTH_STEPS, x + GROWTH_STEPS] > GROWTH_MIN_PATHS).to(torch.float32)  # (m, 11, 11)
    grown = torch.zeros_like(open_to_all)
    grown[:, GROWTH_STEPS, GROWTH_STEPS] = 1.0
    for _ in range(GROWTH_STEPS):
        # 0 and 1 only, so floats are exact; poolings of integers do not exist on devices
        grown = functional.max_pool2d(grown[:, None], 3, 1, 1)[:, 0] * open_to_all
    wanted = grown > 0
    owner = torch.full((height * width,), len(sinks), dtype=torch.int64, device=counts.device)
    rank = torch.arange(len(sinks), device=counts.device)[:, None, None].expand_as(wanted)[wanted]
    owner.scatter_reduce_(0, (y * width + x)[wanted], rank, "amin")
    number = torch.where(owner < len(sinks), owner + 1, 0)
    return torch.where(ends == EXCEEDED, EXCEEDED, number[ends.clamp(min=0)])


def _largest_parts(labels: Tensor, pixels: Tensor, foreground: Tensor, num_labels: int) -> Tensor:
    """`labels`, 0 outside each label's largest 4-connected part; of equals the first by (y, x) stays."""
    height, width = foreground.shape
    entry = torch.full((height, width), len(pixels), dtype=torch.int64, device=labels.device)
    entry[foreground] = torch.arange(len(pixels), device=labels.device)
    entry = functional.pad(entry, [1] * 4, value=len(pixels))
    here = torch.cat([labels, labels.new_zeros(1)])  # the last entry stands for all that is not foreground
    neighbours: list[Tensor] = []
    for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0)):
        other = entry[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width][foreground]
        same = (here[other] == labels) & (labels > 0)
        neighbours.append(torch.where(same, other, torch.arange(len(pixels), device=labels.device)))
    roots = _first_of_part(torch.stack(neighbours))  # (n,)
    sizes = torch.zeros_like(roots).scatter_add_(0, roots, torch.ones_like(roots))
    score = sizes[roots] * (len(pixels) + 1) - roots  # larger parts, then earlier ones
    best = torch.zeros(num_labels + 1, dtype=torch.int64, device=labels.device)
    best.scatter_reduce_(0, labels.clamp(min=0), score, "amax")
    return torch.where((labels > 0) & (score != best[labels.clamp(min=0)]), 0, labels)


def _first_of_part(neighbours: Tensor) -> Tensor:
    """The first pixel that each pixel hangs together with (n,), from its four neighbours or itself (4, n)."""
    roots = torch.arange(neighbours.shape[1], device=neighbours.device)
    while True:
        lower = torch.minimum(roots, roots[neighbours].amin(dim=0))
        # What was found is passed on to the pixel that stood for the part until now; then paths are halved.
        found = roots.scatter_reduce(0, roots, lower, "amin")
        found = torch.minimum(found, lower)
        found = found[found]
        if torch.equal(found, roots):
            return roots
        roots = found
