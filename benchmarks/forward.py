"""Forward pass of `lite` on CPU: tiles to quantised maps, ours beside the same weights in eager torch.

Both do the whole of it: uint8 tile in, softmax, core cut out, integers out. Beside the two rows (1 and 2 threads) the
details give OpenVINO and the bare eager network (no softmax, no quantising), timed in the same run, one after another.
"""

import statistics
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import Row, compare, timed
from cellmill.grid import Box
from cellmill.instances.maps import FLOW_SCALE
from cellmill.models.backends.contract import Backend, TileMaps
from cellmill.models.backends.openvino import OpenVinoBackend
from cellmill.models.inference import PROB_TOLERANCE, Segmenter
from cellmill.models.loading import LoadedModel, load_model
from cellmill.synthetic.tissue import render_region

NUM_REPEATS = 7
NUM_AGREEMENT_TILES = 4


def measure() -> list[Row]:
    model = load_model("lite")
    return [_row(model, num_threads) for num_threads in (1, 2)]


def _row(model: LoadedModel, num_threads: int) -> Row:
    tiles = _tiles(model.config.tile_px)
    ours = Segmenter.open(model, device="cpu", batch_size=1, num_threads=num_threads)
    eager = Segmenter.open(model, device="cpu", batch_size=1, num_threads=num_threads, backend="reference")
    one = tiles[:1]
    mine, theirs, ratio = compare(
        lambda: 1e3 * timed(partial(ours.predict, one)),
        lambda: 1e3 * timed(partial(eager.predict, one)),
        repeats=NUM_REPEATS,
        warm_ups=2,
    )
    agreement = share_within(ours.predict(tiles), eager.predict(tiles))
    return Row(
        name=f"lite forward on CPU, {num_threads} thread{'s' * (num_threads > 1)}",
        rival="eager torch, the same weights, tile to quantised maps",
        ours=mine,
        theirs=theirs,
        unit=f"ms a {model.config.tile_px} px tile",
        ratio=ratio,
        aim="theirs / ours >= 4; >= 99.9 % of pixels within tolerance",
        met=ratio.median >= 4 and agreement >= 0.999,
        details={
            "pixels within tolerance of eager": agreement,
            "OpenVINO float32, ms": _openvino_ms(model, one, num_threads),
            "eager network without softmax and quantising, ms": _bare_ms(model, one, num_threads),
            "our seconds per mm2 of core": mine.median * 1e-3 / core_mm2(model),
        },
    )


def core_mm2(model: LoadedModel) -> float:
    """Area that one tile adds."""
    side_px = model.config.tile_px - 2 * model.config.margin_px
    return (side_px * model.config.target_mpp * 1e-3) ** 2


def share_within(ours: TileMaps, theirs: TileMaps) -> float:
    """Share of pixels at which all maps lie within the tolerance of a backend."""
    flow = np.abs(ours.vectors.astype(int) - theirs.vectors).max(axis=1) <= FLOW_SCALE / 128
    prob = np.abs(ours.prob.astype(int) - theirs.prob).max(axis=1) <= PROB_TOLERANCE
    return float((flow & prob).mean())


def _tiles(side_px: int) -> npt.NDArray[np.uint8]:
    """Tiles of synthetic tissue (N, side, side, 3)."""
    image = render_region(3, Box(2000, 2000, 2000 + NUM_AGREEMENT_TILES * side_px, 2000 + side_px)).image
    return np.ascontiguousarray(np.stack(np.split(image, NUM_AGREEMENT_TILES, axis=1)))


def _openvino_ms(model: LoadedModel, tile: npt.NDArray[np.uint8], num_threads: int) -> float:
    backend: Backend = OpenVinoBackend(model, batch_size=1, num_threads=num_threads)
    return _median_ms(partial(backend.run, tile))


def _bare_ms(model: LoadedModel, tile: npt.NDArray[np.uint8], num_threads: int) -> float:
    torch.set_num_threads(num_threads)
    network = model.build()
    images = torch.from_numpy(tile).permute(0, 3, 1, 2).float().contiguous()
    with torch.inference_mode():
        return _median_ms(partial(network, images))


def _median_ms(work: "partial[object]") -> float:
    times = [timed(work) for _ in range(2 + NUM_REPEATS)][2:]
    return 1e3 * statistics.median(times)
