"""Features are the output of the layer that the config names, whatever runs the network."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_config, tiny_model

from cellmill.models.config import Architecture, builtin_config
from cellmill.models.features import FeatureExtractor, feature_layer
from cellmill.models.inference import Segmenter
from cellmill.models.loading import LoadedModel, load_model


def tiles_of(model: LoadedModel, number: int = 3) -> np.ndarray:
    side = model.config.tile_px
    return np.random.default_rng(1).integers(60, 255, (number, side, side, 3)).astype(np.uint8)


def extracted(model: LoadedModel, tiles: np.ndarray, *, with_maps: bool, batch_size: int = 2):  # type: ignore[no-untyped-def]
    extractor = FeatureExtractor.open(model, device="cpu", batch_size=batch_size, num_threads=1, with_maps=with_maps)
    return list(extractor.extract(tiles[start : start + batch_size] for start in range(0, len(tiles), batch_size)))


@pytest.mark.parametrize("architecture", ["lite", "student", "resnet50_unet", "teacher", "cellvit"])
def test_features_are_the_named_layers_output_over_the_core(architecture: Architecture) -> None:
    model = tiny_model(tiny_config(architecture, tile_px=128, margin_px=32))
    tiles, layer = tiles_of(model), feature_layer(model.config)
    found = extracted(model, tiles, with_maps=True)
    features = np.concatenate([one.features for one in found])
    network, outputs = model.build().eval(), []
    network.get_submodule(layer.name).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.inference_mode():
        if hasattr(network, "encoder") and hasattr(network.encoder, "settle"):
            network.encoder.settle(model.config.tile_px)
        network(torch.from_numpy(tiles).permute(0, 3, 1, 2).float())
    first, stop = 32 // layer.stride_px, 96 // layer.stride_px
    wanted = outputs[0].permute(0, 2, 3, 1).numpy()[:, first:stop, first:stop]
    assert features.shape == wanted.shape == (3, 64 // layer.stride_px, 64 // layer.stride_px, wanted.shape[-1])
    assert np.abs(features - wanted).max() < 1e-4 * max(1.0, np.abs(wanted).max())


def test_maps_of_the_same_pass_are_the_references() -> None:
    model = tiny_model(tiny_config("teacher", tile_px=128, margin_px=32))
    tiles = tiles_of(model)
    maps = [one.maps for one in extracted(model, tiles, with_maps=True)]
    reference = Segmenter.open(model, device="cpu", batch_size=2, num_threads=1, backend="reference").predict(tiles)
    assert np.array_equal(np.concatenate([one.prob for one in maps if one is not None]), reference.prob)
    assert np.array_equal(np.concatenate([one.vectors for one in maps if one is not None]), reference.vectors)


def test_the_compiled_network_tells_what_torch_tells() -> None:
    model = load_model("lite")
    tiles = tiles_of(model, 1)
    (compiled,) = extracted(model, tiles, with_maps=False, batch_size=1)
    (eager,) = extracted(model, tiles, with_maps=True, batch_size=1)
    assert compiled.maps is None and eager.maps is not None
    assert compiled.features.shape == eager.features.shape == (1, 128, 128, 32)
    assert np.abs(compiled.features - eager.features).max() < 1e-4 * np.abs(eager.features).max()


def test_running_for_features_leaves_the_maps_of_the_next_tile_alone() -> None:
    model = load_model("lite")
    from cellmill.models.lite_cpu.network import CompiledLite

    config, stride = model.config, model.config.tile_px - 2 * model.config.margin_px
    network = CompiledLite(config, {n: v.astype(np.float64) for n, v in model.weights.items()}, num_threads=1)
    first, second = tiles_of(model, 2)
    flow, prob = np.empty((2, stride, stride), np.int16), np.empty((config.num_outputs - 2, stride, stride), np.uint8)
    network.run(second, flow, prob)
    alone = flow.tobytes() + prob.tobytes()
    network.features(first, "fuse.1")
    network.run(second, flow, prob)
    assert flow.tobytes() + prob.tobytes() == alone


@pytest.mark.parametrize("architecture", ["lite", "student", "resnet50_unet", "teacher", "cellvit"])
def test_tiles_of_usual_models_are_whole_positions(architecture: Architecture) -> None:
    for mpp in (0.25, 0.5):
        config = builtin_config(architecture, target_mpp=mpp)
        assert (config.tile_px - 2 * config.margin_px) % feature_layer(config).stride_px == 0


def test_a_margin_of_part_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="whole positions"):
        feature_layer(tiny_config("lite", tile_px=64, margin_px=10))
