"""The compiled `lite` computes what torch computes, to the last rounding, whatever tile size, margin or threads."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cellmill.models.backends.compiled_lite import CompiledLiteBackend
from cellmill.models.backends.reference import ReferenceBackend
from cellmill.models.config import builtin_config
from cellmill.models.lite_cpu import weights
from cellmill.models.lite_cpu.convolution_kernels import convolve_3x3, convolve_3x3_stride2, pointwise
from cellmill.models.loading import LoadedModel, load_model, weights_of
from cellmill.models.networks import build_model
from cellmill_schemas.ontology import get_ontology

FRAME = ((1, 1), (1, 1), (0, 0))


def _model(*, tile_px: int, margin_px: int, **changes: object) -> LoadedModel:
    """A `lite` network with random weights and batch norms that have seen something."""
    config = replace(builtin_config("lite"), tile_px=tile_px, margin_px=margin_px, **changes)  # pyright: ignore
    torch.manual_seed(7)
    network = build_model(config).train()
    with torch.inference_mode():
        for _ in range(3):
            network(torch.rand(2, 3, 64, 64) * 255)
    return LoadedModel(config, weights_of(network.eval()), digest="", card="", source="")


def _pixels(tile_px: int, *, number: int = 2) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(tile_px).integers(0, 256, (number, tile_px, tile_px, 3), np.uint8)


@pytest.mark.parametrize(
    ("tile_px", "margin_px", "changes"),
    [
        (64, 0, {}),
        (96, 17, {}),
        (160, 32, {}),
        (64, 8, {"encoder_channels": (8, 8, 8, 8), "decoder_channels": (8, 8, 8)}),
        (64, 8, {"encoder_channels": (24, 40, 72, 48), "decoder_channels": (16, 24, 56)}),
        (64, 8, {"ontology": get_ontology("ikem3")}),
        (64, 8, {"encoder_blocks": (0, 0, 1, 0)}),
    ],
    ids=["no margin", "odd margin", "usual margin", "narrow", "uneven widths", "three classes", "few blocks"],
)
def test_it_agrees_with_torch(tile_px: int, margin_px: int, changes: dict[str, object]) -> None:
    model = _model(tile_px=tile_px, margin_px=margin_px, **changes)
    tiles = _pixels(tile_px)
    ours = CompiledLiteBackend(model, num_threads=1).run(tiles)
    theirs = ReferenceBackend(model, num_threads=1).run(tiles)
    assert np.ptp(theirs.prob) > 20  # there is something to agree on
    assert np.abs(ours.vectors.astype(int) - theirs.vectors).max() <= 4
    assert np.abs(ours.prob.astype(int) - theirs.prob).max() <= 1


@pytest.mark.parametrize("num_threads", [2, 3])
def test_bytes_do_not_depend_on_threads(num_threads: int) -> None:
    model, tiles = _model(tile_px=96, margin_px=16), _pixels(96)
    one, more = (CompiledLiteBackend(model, num_threads=count).run(tiles) for count in (1, num_threads))
    assert np.array_equal(one.vectors, more.vectors)
    assert np.array_equal(one.prob, more.prob)


def test_nothing_is_left_of_the_tile_before() -> None:
    model, tiles = _model(tile_px=96, margin_px=16), _pixels(96)
    used = CompiledLiteBackend(model, num_threads=1)
    used.run(np.full_like(tiles[:1], 255))
    again, fresh = used.run(tiles[:1]), CompiledLiteBackend(model, num_threads=1).run(tiles[:1])
    assert np.array_equal(again.vectors, fresh.vectors)
    assert np.array_equal(again.prob, fresh.prob)


def test_the_margin_left_out_is_not_needed() -> None:
    """What is skipped towards the margin changes no byte of the core."""
    tiles = _pixels(96)
    wide = CompiledLiteBackend(_model(tile_px=96, margin_px=0), num_threads=1).run(tiles)
    core = CompiledLiteBackend(_model(tile_px=96, margin_px=24), num_threads=1).run(tiles)
    assert np.array_equal(core.vectors, wide.vectors[:, :, 24:-24, 24:-24])
    assert np.array_equal(core.prob, wide.prob[:, :, 24:-24, 24:-24])


def test_flows_beyond_the_scale_stop_at_its_end() -> None:
    model = _model(tile_px=64, margin_px=8)
    state = dict(model.weights)
    state["head.weight"] = state["head.weight"] * 1e4
    maps = CompiledLiteBackend(replace(model, weights=state), num_threads=1).run(_pixels(64))
    assert maps.vectors.min() == -32767
    assert maps.vectors.max() == 32767
    assert np.isin(maps.prob, (0, 255)).mean() > 0.9


@pytest.mark.parametrize(("height", "width", "inputs", "outputs"), [(8, 8, 16, 24), (10, 7, 24, 16), (5, 30, 32, 48)])
def test_winograd_is_the_convolution(height: int, width: int, inputs: int, outputs: int) -> None:
    random = np.random.default_rng(1)
    image = random.normal(size=(height, width, inputs)).astype(np.float32)
    weight, bias = random.normal(size=(outputs, inputs, 3, 3)), random.normal(size=outputs)
    rows, columns = -(-height // 4), -(-width // 4)
    source = np.zeros((4 * rows + 2, 4 * columns + 2, inputs), np.float32)
    source[1 : height + 1, 1 : width + 1] = image
    target = np.zeros((*source.shape[:2], outputs), np.float32)
    patches, sums = np.empty((36, 12 * inputs), np.float32), np.empty((36, 12 * outputs), np.float32)
    panels = weights.winograd_panels(weight, outputs)
    convolve_3x3(
        source, panels, bias.astype(np.float32), np.float32(0), target, False, target, (0, rows), (0, columns),
        (height, width), 12, patches, sums,
    )  # fmt: skip
    expected = np.maximum(_torch_convolution(image, weight, bias, stride=1), 0)
    np.testing.assert_allclose(target[1 : height + 1, 1 : width + 1], expected, atol=1e-3)
    target[1 : height + 1, 1 : width + 1] = 0
    assert not target.any()  # nothing outside: the frame of zeros is what the next layer's border is made of


def test_strided_and_pointwise_convolutions_are_theirs() -> None:
    random = np.random.default_rng(2)
    image = random.normal(size=(12, 12, 16)).astype(np.float32)
    source = np.pad(image, FRAME)
    weight, bias = random.normal(size=(24, 16, 3, 3)), random.normal(size=24)
    target = np.zeros((8, 8, 24), np.float32)
    panels = weights.line_panels(weight, 16, 24)
    convolve_3x3_stride2(source, panels, bias.astype(np.float32), np.float32(-np.inf), target, (0, 6), 6)
    np.testing.assert_allclose(target[1:-1, 1:-1], _torch_convolution(image, weight, bias, stride=2), atol=1e-4)

    coarse = target.copy()
    merged = np.zeros((14, 14, 24), np.float32)
    panels = weights.line_panels(weight[:, :, :1, :1], 16, 24)
    pointwise(source, panels, bias.astype(np.float32), coarse, True, merged, (0, 12), (0, 12))
    raised = coarse[1:-1, 1:-1].repeat(2, axis=0).repeat(2, axis=1)
    expected = image @ weight[:, :, 0, 0].T + bias + raised
    np.testing.assert_allclose(merged[1:-1, 1:-1], expected, atol=1e-4)


def _torch_convolution(
    image: npt.NDArray[np.float32], weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], *, stride: int
) -> npt.NDArray[np.float64]:
    found = torch.nn.functional.conv2d(
        torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float64)),
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride=stride,
        padding=1,
    )
    return found[0].permute(1, 2, 0).numpy()


def test_the_packaged_weights_agree_on_a_whole_tile() -> None:
    from cellmill.grid import Box
    from cellmill.synthetic.tissue import render_region

    model = load_model("lite")
    side = model.config.tile_px
    tile = np.ascontiguousarray(render_region(3, Box(2000, 2000, 2000 + side, 2000 + side)).image)[None]
    ours = CompiledLiteBackend(model, num_threads=1).run(tile)
    theirs = ReferenceBackend(model, num_threads=1).run(tile)
    assert (theirs.prob[0, 0] < 128).mean() > 0.05
    assert np.abs(ours.vectors.astype(int) - theirs.vectors).max() <= 2
    assert np.abs(ours.prob.astype(int) - theirs.prob).max() <= 1
