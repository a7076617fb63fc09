"""Inference keeps its promises: one tile, one answer, whatever came with it, and every backend near the reference."""

import pickle
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_models import tiny_config, tiny_model

from cellmill.grid import Box
from cellmill.instances.maps import FLOW_SCALE
from cellmill.models.backends.reference import ReferenceBackend
from cellmill.models.backends.torch_cuda import TorchCudaBackend
from cellmill.models.config import Architecture, builtin_config
from cellmill.models.inference import PROB_TOLERANCE, Segmenter, TileMaps, choose_device, prepared
from cellmill.models.loading import LoadedModel, load_model, weights_of
from cellmill.models.networks import build_model
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
        assert np.array_equal(alone.vectors[0], together.vectors[number])
        assert np.array_equal(alone.prob[0], together.prob[number])


def test_maps_are_tile_cores_on_the_quantised_scale(fast: Segmenter, tiles: npt.NDArray[np.uint8]) -> None:
    maps = fast.predict(tiles)
    stride = TILE_PX - 2 * MARGIN_PX
    assert maps.vectors.shape == (5, 2, stride, stride)
    assert maps.prob.shape == (5, 8, stride, stride)
    sums = maps.prob.astype(int).sum(axis=1)
    assert abs(sums - 255).max() <= 4


def test_no_tiles_give_no_maps(fast: Segmenter, tiles: npt.NDArray[np.uint8]) -> None:
    assert len(fast.predict(tiles[:0]).vectors) == 0


def test_the_fast_cpu_backend_agrees_with_eager_torch(
    fast: Segmenter, small_lite: LoadedModel, tiles: npt.NDArray[np.uint8]
) -> None:
    reference = Segmenter.open(small_lite, device="cpu", batch_size=2, num_threads=1, backend="reference")
    ours, theirs = fast.predict(tiles), reference.predict(tiles)
    assert _share_within(ours, theirs) >= 0.999


def _share_within(ours: TileMaps, theirs: TileMaps) -> float:
    vectors = np.abs(ours.vectors.astype(int) - theirs.vectors).max(axis=1) <= FLOW_SCALE / 128
    prob = np.abs(ours.prob.astype(int) - theirs.prob).max(axis=1) <= PROB_TOLERANCE
    return float((vectors & prob).mean())


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="--device cuda"):
        choose_device("cuda")


def test_batches_one_after_another_give_what_predict_gives(fast: Segmenter, tiles: npt.NDArray[np.uint8]) -> None:
    together = fast.predict(tiles)
    one_by_one = list(fast.predict_batches(iter([tiles[:2], tiles[2:3], tiles[3:]])))
    assert [len(maps.vectors) for maps in one_by_one] == [2, 1, 2]
    assert np.array_equal(np.concatenate([maps.vectors for maps in one_by_one]), together.vectors)
    assert np.array_equal(np.concatenate([maps.prob for maps in one_by_one]), together.prob)


def test_batches_are_fetched_as_they_are_needed(fast: Segmenter, tiles: npt.NDArray[np.uint8]) -> None:
    fetched: list[int] = []

    def batches() -> Iterator[npt.NDArray[np.uint8]]:
        for number in range(4):
            fetched.append(number)
            yield tiles[:2]

    maps = fast.predict_batches(batches())
    next(maps)
    assert len(fetched) <= 2


@pytest.mark.parametrize("num_batches", [1, 2, 5])
def test_the_pipeline_of_devices_gives_what_the_plain_path_gives(
    small_lite: LoadedModel, tiles: npt.NDArray[np.uint8], num_batches: int
) -> None:
    """The code path of CUDA, on the CPU: there it computes what the reference computes, to the bit."""
    batches = [np.ascontiguousarray(np.roll(tiles[:2], shift, axis=2)) for shift in range(num_batches)]
    reference = ReferenceBackend(small_lite, num_threads=1)
    pipeline = TorchCudaBackend(small_lite, batch_size=2, num_threads=1, device="cpu")
    for _ in range(2):  # and again with memory that was used before
        found = list(pipeline.run_many(iter(batches)))
        assert len(found) == num_batches
        for batch, maps in zip(batches, found, strict=True):
            expected = reference.run(batch)
            assert np.array_equal(maps.vectors, expected.vectors)
            assert np.array_equal(maps.prob, expected.prob)


def test_maps_left_on_the_device_are_the_same(small_lite: LoadedModel, tiles: npt.NDArray[np.uint8]) -> None:
    pipeline = TorchCudaBackend(small_lite, batch_size=2, num_threads=1, device="cpu")
    batches = [tiles[:2], tiles[2:4], tiles[1:3]]
    for maps, left in zip(pipeline.run_many(batches), pipeline.run_on_device(batches), strict=True):
        assert np.array_equal(maps.vectors, left.vectors.numpy())
        assert np.array_equal(maps.prob, left.prob.numpy())


@pytest.mark.slow
def test_a_graph_converted_once_gives_the_bytes_of_one_converted_here(tiles: npt.NDArray[np.uint8]) -> None:
    """What a driver hands to its workers, pickled: OpenVINO's graph of a network that has no kernels of its own."""
    config = replace(builtin_config("student"), encoder="mobilenetv3_small_100", decoder_channels=(8, 8, 8, 8, 8))
    config = replace(config, tile_px=128, margin_px=16)
    torch.manual_seed(5)
    model = LoadedModel(config, weights_of(build_model(config)), digest="", card="", source="")
    ready = pickle.loads(pickle.dumps(prepared(model, device="cpu", batch_size=1)))  # noqa: S301 - our own bytes
    assert ready.converted is not None
    cut = np.ascontiguousarray(tiles[:2, :128, :128])
    maps = [Segmenter.open(one, device="cpu", batch_size=1, num_threads=1).predict(cut) for one in (model, ready)]
    assert np.array_equal(maps[0].vectors, maps[1].vectors)
    assert np.array_equal(maps[0].prob, maps[1].prob)
    reference = Segmenter.open(model, device="cpu", batch_size=1, num_threads=1, backend="reference").predict(cut)
    assert _share_within(maps[0], reference) >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["teacher", "cellvit", "resnet50_unet"])
def test_every_other_family_runs_in_openvino_and_on_the_path_of_devices_as_in_eager_torch(
    architecture: Architecture, tiles: npt.NDArray[np.uint8]
) -> None:
    model = tiny_model(tiny_config(architecture, tile_px=128, margin_px=16))
    cut = np.ascontiguousarray(tiles[:2, :128, :128])
    reference = Segmenter.open(model, device="cpu", batch_size=1, num_threads=1, backend="reference").predict(cut)
    fast = Segmenter.open(model, device="cpu", batch_size=1, num_threads=1).predict(cut)
    assert _share_within(fast, reference) >= 0.999
    pipeline = TorchCudaBackend(model, batch_size=2, num_threads=1, device="cpu").run(cut)
    assert _share_within(pipeline, reference) >= 0.999
    assert reference.vectors.std() > 0 and reference.prob.std() > 0


def test_lite_needs_no_converting(small_lite: LoadedModel) -> None:
    assert prepared(small_lite, device="cpu", batch_size=1) is small_lite
