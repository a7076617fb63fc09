"""Inference keeps its promises: one tile, one answer, whatever came with it, and every backend near the reference."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from cellmill.grid import Box
from cellmill.instances.maps import FLOW_SCALE
from cellmill.models.inference import PROB_TOLERANCE, Segmenter, TileMaps, choose_device
from cellmill.models.loading import LoadedModel, load_model
from cellmill.synthetic.tissue import render_region

TILE_PX = 160
MARGIN_PX = 32


@pytest.fixture(scope="module")
def small_lite() -> LoadedModel:
    """The packaged network on small tiles: the same weights, less to compute."""
    model = load_model("lite")
    return replace(model, config=replace(model.config, tile_px=TILE_PX, margin_px=MARGIN_PX))


@pytest.fixture(scope="module")
def tiles() -> npt.NDArray[np.uint8]:
    """Five tiles of synthetic tissue, (5, 160, 160, 3)."""
    image = render_region(3, Box(2000, 2000, 2000 + 5 * TILE_PX, 2000 + TILE_PX)).image
    return np.ascontiguousarray(np.stack([image[:, k * TILE_PX : (k + 1) * TILE_PX] for k in range(5)]))


@pytest.fixture(scope="module")
def fast(small_lite: LoadedModel) -> Segmenter:
    return Segmenter.open(small_lite, device="cpu", batch_size=2, num_threads=1)


def test_a_tile_does_not_depend_on_the_tiles_it_came_with(fast: Segmenter, tiles: npt.NDArray[np.uint8]) -> None:
    together = fast.predict(tiles)
    for number in (0, 1, 4):
        alone = fast.predict(tiles[number : number + 1])
        assert np.array_equal(alone.flow[0], together.flow[number])
        assert np.array_equal(alone.prob[0], together.prob[number])


def test_maps_are_tile_cores_on_the_quantised_scale(fast: Segmenter, tiles: npt.NDArray[np.uint8]) -> None:
    maps = fast.predict(tiles)
    stride = TILE_PX - 2 * MARGIN_PX
    assert maps.flow.shape == (5, 2, stride, stride)
    assert maps.prob.shape == (5, 8, stride, stride)
    sums = maps.prob.astype(int).sum(axis=1)
    assert abs(sums - 255).max() <= 4


def test_no_tiles_give_no_maps(fast: Segmenter, tiles: npt.NDArray[np.uint8]) -> None:
    assert len(fast.predict(tiles[:0]).flow) == 0


def test_the_fast_cpu_backend_agrees_with_eager_torch(
    fast: Segmenter, small_lite: LoadedModel, tiles: npt.NDArray[np.uint8]
) -> None:
    reference = Segmenter.open(small_lite, device="cpu", batch_size=2, num_threads=1, backend="reference")
    ours, theirs = fast.predict(tiles), reference.predict(tiles)
    assert _share_within(ours, theirs) >= 0.999


def _share_within(ours: TileMaps, theirs: TileMaps) -> float:
    flow = np.abs(ours.flow.astype(int) - theirs.flow).max(axis=1) <= FLOW_SCALE / 128
    prob = np.abs(ours.prob.astype(int) - theirs.prob).max(axis=1) <= PROB_TOLERANCE
    return float((flow & prob).mean())


def test_cuda_is_refused_where_there_is_none() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="--device cuda"):
        choose_device("cuda")
