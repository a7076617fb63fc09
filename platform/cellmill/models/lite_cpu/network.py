"""The layers of `lite` laid out for one tile size: planes to work on, steps in order, each over the rows needed of it.

A step computes rows of one plane from planes before it. Rows are dealt to threads in runs; each output is computed
alone and always in the same way, so the bytes do not depend on the number of threads.

Near the end only the core and what it can see is computed: the head sees one pixel, the finest convolution one more on
each side, and so on down; the margin's outputs would be cut off.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill.models.config import ModelConfig
from cellmill.models.lite_cpu import weights
from cellmill.models.lite_cpu.convolution_kernels import (
    PATCH,
    TILE,
    convolve_3x3,
    convolve_3x3_stride2,
    pointwise,
)
from cellmill.models.lite_cpu.map_kernels import pixels_to_plane, plane_to_maps

__all__ = ["CompiledLite"]

Plane = npt.NDArray[np.float32]
Span = tuple[int, int]
"""Half-open range, the same for rows and columns."""

_SCRATCH_FLOATS = 120_000
"""Floats of patches and sums of the tiles multiplied at once: about what a core's second-level cache holds."""
_RELU, _LINEAR = np.float32(0), np.float32(-np.inf)
_LINE_FLOATS = 16  # one cache line between positions, which would otherwise fall into the same sets


@dataclass(frozen=True)
class _Step:
    """`run(rows, thread)` computes a part of `rows`."""

    rows: Span
    run: Callable[[Span, int], None]


@dataclass(frozen=True)
class _Layer:
    """Where an inner layer's output lies once the first `num_steps` steps have run, behind one line and column."""

    plane: Plane
    scale: int
    num_steps: int


class CompiledLite:
    """A `lite` network for tiles of `config.tile_px`, ready to run. Not for two threads at once."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, npt.NDArray[np.float64]], *, num_threads: int
    ) -> None:
        self._config, self._tensors, self._num_threads = config, tensors, num_threads
        self._pool = ThreadPoolExecutor(num_threads - 1) if num_threads > 1 else None
        self._scratch = [np.empty(_scratch_size(config), np.float32) for _ in range(num_threads)]
        stride = config.tile_px - 2 * config.margin_px
        self._flow = np.empty((2, stride, stride), np.int16)
        self._prob = np.empty((config.num_outputs - 2, stride, stride), np.uint8)
        self._tile = np.empty((config.tile_px, config.tile_px, 3), np.uint8)
        self._steps: list[_Step] = []
        self._layers: dict[str, _Layer] = {}
        self._lay_out()

    def run(self, tile: npt.NDArray[np.uint8], flow: npt.NDArray[np.int16], prob: npt.NDArray[np.uint8]) -> None:
        """Maps of one tile (tile, tile, 3) into `flow` (2, stride, stride) and `prob` (C + 1, stride, stride)."""
        self._tile[:] = tile
        self._run(self._steps)
        flow[:], prob[:] = self._flow, self._prob

    def features(self, tile: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float32]:
        """Output (h, w, D) of the decoder's layer `name` (`fuse.1` and coarser) over the tile's core."""
        layer, config = self._layers[name], self._config
        self._tile[:] = tile
        self._run(self._steps[: layer.num_steps])
        stride = 2 << layer.scale
        rows = slice(1 + config.margin_px // stride, 1 + (config.tile_px - config.margin_px) // stride)
        return layer.plane[rows, rows, : config.decoder_channels[layer.scale]].copy()

    def _run(self, steps: Sequence[_Step]) -> None:
        for step in steps:
            if self._pool is None:
                step.run(step.rows, 0)
                continue
            parts = _shared_out(step.rows, self._num_threads)
            others = [self._pool.submit(step.run, part, number + 1) for number, part in enumerate(parts[1:])]
            step.run(parts[0], 0)
            for other in others:
                other.result()

    def _lay_out(self) -> None:
        config = self._config
        num_scales, num_blocks = len(config.encoder_channels), config.encoder_blocks
        pixels = self._plane(0, 12)
        self._add((0, self._size(0)), partial(_unshuffle, self._tile, _normalised(config), pixels))
        features = [self._convolution("stem", pixels, 0, config.encoder_channels[0], num_inputs=12)]
        for scale in range(1, num_scales):
            features.append(self._downwards(f"stages.{scale - 1}.0", features[-1], scale))
            for block in range(num_blocks[scale]):
                self._block(f"stages.{scale - 1}.{block + 1}", features[-1], scale, (0, self._size(scale)))
        needed = self._needed()
        merged = features[-1]
        for scale in reversed(range(num_scales - 1)):
            merged = self._merge(merged, features[scale], scale, needed[scale])
            if scale:
                self._block(f"fuse.{scale}", merged, scale, needed[scale])
                self._layers[f"fuse.{scale}"] = _Layer(merged, scale, num_steps=len(self._steps))
            else:
                width = config.decoder_channels[0]
                merged = self._convolution("fuse.0", merged, 0, width, num_inputs=width, span=needed[0])
        self._head(merged, needed[0])

    def _needed(self) -> list[Span]:
        """Rows (and columns) of each decoder scale's output that the core depends on."""
        config = self._config
        spans = [(config.margin_px // 2, -(-(config.tile_px - config.margin_px) // 2))]
        for scale in range(1, len(config.decoder_channels)):
            low, high = self._merged_span(spans[-1], scale - 1)
            spans.append((low // 2, -(-high // 2)))
        return spans

    def _merged_span(self, needed: Span, scale: int) -> Span:
        """What must be there before the decoder's convolutions at `scale` (one at the finest, else a block's two)."""
        for _ in range(2 if scale else 1):
            needed = self._seen(needed, scale)
        return needed

    def _seen(self, span: Span, scale: int) -> Span:
        """Inputs of a 3 x 3 convolution for outputs `span`: of whole Winograd tiles, because a tile mixes its inputs.

        What a tile sees beyond its outputs' own neighbours cancels, but for the rounding.
        """
        low, high = span
        return max(0, low // TILE * TILE - 1), min(self._size(scale), -(-high // TILE) * TILE + 1)

    def _add(self, rows: Span, run: Callable[[Span, int], None]) -> None:
        self._steps.append(_Step(rows, run))

    def _size(self, scale: int) -> int:
        """Pixels of a side at stride 2 ** (scale + 1)."""
        return self._config.tile_px >> (scale + 1)

    def _plane(self, scale: int, channels: int) -> Plane:
        side = -(-self._size(scale) // TILE) * TILE + 2
        return np.zeros((side, side, weights.padded_width(channels)), np.float32)

    def _convolution(
        self,
        name: str,
        source: Plane,
        scale: int,
        width: int,
        *,
        num_inputs: int,
        span: Span | None = None,
        target: Plane | None = None,
        residual: bool = False,
    ) -> Plane:
        """A 3 x 3 convolution with ReLU; with `residual` what `target` holds is added before it."""
        folded = weights.fold_convolution(self._tensors, name)
        target = self._plane(scale, width) if target is None else target
        num_columns = target.shape[2]
        panels = weights.winograd_panels(folded.weight[:, :num_inputs], num_columns)
        low, high = span or (0, self._size(scale))
        tiles = (low // TILE, -(-high // TILE))
        at_once = _tiles_at_once(source.shape[2] + num_columns)
        scratch = [_split(memory, at_once, source.shape[2], num_columns) for memory in self._scratch]
        bias = weights.padded_bias(folded.bias, num_columns)
        limits = (self._size(scale), self._size(scale))

        def run(rows: Span, thread: int) -> None:
            patches, sums = scratch[thread]
            convolve_3x3(
                source, panels, bias, _RELU, target, residual, target, rows, tiles, limits, at_once, patches,
                sums,
            )  # fmt: skip

        self._add(tiles, run)
        return target

    def _block(self, name: str, plane: Plane, scale: int, span: Span) -> None:
        """A residual block, in place."""
        width = self._tensors[f"{name}.first.0.weight"].shape[0]
        inside = self._convolution(f"{name}.first", plane, scale, width, num_inputs=width, span=self._seen(span, scale))
        self._convolution(
            f"{name}.second", inside, scale, width, num_inputs=width, span=span, target=plane, residual=True
        )

    def _downwards(self, name: str, source: Plane, scale: int) -> Plane:
        """A 3 x 3 convolution of stride 2 with ReLU."""
        folded = weights.fold_convolution(self._tensors, name)
        target = self._plane(scale, self._config.encoder_channels[scale])
        panels = weights.line_panels(folded.weight, source.shape[2], target.shape[2])
        bias, size = weights.padded_bias(folded.bias, target.shape[2]), self._size(scale)

        def run(rows: Span, thread: int) -> None:
            del thread
            convolve_3x3_stride2(source, panels, bias, _RELU, target, rows, size)

        self._add((0, size), run)
        return target

    def _merge(self, deeper: Plane, feature: Plane, scale: int, needed: Span) -> Plane:
        """What the decoder's scale works on: the deeper scale raised, plus the encoder's features."""
        width = self._config.decoder_channels[scale]
        raised, target = self._plane(scale + 1, width), self._plane(scale, width)
        span = self._merged_span(needed, scale)
        self._pointwise(f"raise_to.{scale}", deeper, raised, (span[0] // 2, -(-span[1] // 2)))
        self._pointwise(f"lateral.{scale}", feature, target, span, coarse=raised)
        return target

    def _pointwise(self, name: str, source: Plane, target: Plane, span: Span, *, coarse: Plane | None = None) -> None:
        folded = weights.fold_convolution(self._tensors, name)
        panels = weights.line_panels(folded.weight, source.shape[2], target.shape[2])
        bias = weights.padded_bias(folded.bias, target.shape[2])
        add = target if coarse is None else coarse

        def run(rows: Span, thread: int) -> None:
            del thread
            pointwise(source, panels, bias, add, coarse is not None, target, rows, span)

        self._add(span, run)

    def _head(self, source: Plane, span: Span) -> None:
        num_maps, margin_px = self._config.num_outputs, self._config.margin_px
        folded = weights.fold_convolution(self._tensors, "head")
        # The shuffle's channels are map, dy, dx; a line of one map at one (dy, dx) is wanted.
        order = np.arange(4 * num_maps).reshape(num_maps, 4).T.reshape(-1)
        depth = source.shape[2] + 1
        head = np.zeros((4 * num_maps, depth), np.float32)
        head[:, : folded.weight.shape[1]] = folded.weight[order, :, 0, 0]
        head[:, -1] = folded.bias[order]
        num_panels = -(-(span[1] - span[0]) // 16)
        scratch = [_head_scratch(num_maps, num_panels, depth) for _ in self._scratch]

        def run(rows: Span, thread: int) -> None:
            plane_to_maps(source, head, margin_px, self._flow, self._prob, rows, span, *scratch[thread])

        self._add(span, run)


def _unshuffle(
    tile: npt.NDArray[np.uint8], normalised: npt.NDArray[np.float32], plane: Plane, rows: Span, thread: int
) -> None:
    del thread
    pixels_to_plane(tile, normalised, plane, rows)


def _head_scratch(num_maps: int, num_panels: int, depth: int) -> tuple[npt.NDArray[Any], ...]:
    packed = np.zeros((num_panels, depth, 16), np.float32)
    packed[:, -1] = 1.0
    lines = np.empty((4 * num_maps, 16 * num_panels), np.float32)
    return packed, lines, np.empty(32 * num_panels, np.int16), np.empty(32 * num_panels, np.uint8)


def _normalised(config: ModelConfig) -> npt.NDArray[np.float32]:
    """(3, 256): each value of each colour as the network normalises it, in float32 as torch does."""
    mean = np.array(config.pixel_mean_rgb, np.float32)[:, None]
    std = np.array(config.pixel_std_rgb, np.float32)[:, None]
    return (np.arange(256, dtype=np.float32)[None] - mean) / std


def _tiles_at_once(num_channels: int) -> int:
    """Whole groups of rows for either panel: a multiple of 12."""
    return max(12, _SCRATCH_FLOATS // (PATCH * PATCH * num_channels) // 12 * 12)


def _scratch_size(config: ModelConfig) -> int:
    widest = 2 * weights.padded_width(max(*config.encoder_channels, *config.decoder_channels, 12))
    return (
        PATCH
        * PATCH
        * max(_tiles_at_once(channels) * channels + 2 * _LINE_FLOATS for channels in range(16, widest + 1, 8))
    )


def _split(memory: npt.NDArray[np.float32], at_once: int, *channels: int) -> list[npt.NDArray[np.float32]]:
    """Scratch of PATCH * PATCH positions for each number of channels, one behind the other."""
    parts: list[npt.NDArray[np.float32]] = []
    start = 0
    for count in channels:
        length = at_once * count + _LINE_FLOATS
        stop = start + PATCH * PATCH * length
        parts.append(memory[start:stop].reshape(PATCH * PATCH, length))
        start = stop
    return parts


def _shared_out(rows: Span, num_parts: int) -> list[Span]:
    low, high = rows
    bounds = [low + (high - low) * part // num_parts for part in range(num_parts + 1)]
    return [(bounds[part], bounds[part + 1]) for part in range(num_parts)]
