"""Networks, their config and their files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config

from cellmill.instances.mask_limits import MaskLimits
from cellmill.models.config import ModelConfig, builtin_config
from cellmill.models.loading import ModelNotFoundError, load_model, packaged_models, save_model
from cellmill.models.networks import build_model, count_parameters
from cellmill_schemas.ontology import get_ontology


def _small() -> ModelConfig:
    return replace(builtin_config("lite"), encoder_channels=(8, 8, 8, 8), decoder_channels=(8, 8, 8))


def test_lite_is_small_and_student_has_the_papers_size() -> None:
    assert count_parameters(build_model(builtin_config("lite"))) < 3_000_000
    student = count_parameters(build_model(builtin_config("student")))
    assert student == pytest.approx(24_093_393, rel=0.005)


@pytest.mark.parametrize("architecture", ["lite", "student"])
def test_output_is_flows_background_and_one_channel_a_class(architecture: str) -> None:
    for ontology in (get_ontology("refined7"), get_ontology("ikem3")):
        config = builtin_config("student" if architecture == "student" else "lite", ontology=ontology)
        network = build_model(config).eval()
        with torch.inference_mode():
            outputs = network(torch.rand(1, 3, 64, 128) * 255)
        assert outputs.shape == (1, 2 + 1 + len(ontology), 64, 128)
        assert config.num_outputs == outputs.shape[1]


def test_a_tiles_maps_do_not_depend_on_its_batch() -> None:
    network = build_model(_small()).eval()
    tiles = torch.rand(3, 3, 64, 64) * 255
    with torch.inference_mode():
        together, alone = network(tiles)[1:2], network(tiles[1:2])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_config_survives_json() -> None:
    lite = builtin_config("lite")
    unsure = replace(lite, mask_limits=MaskLimits(flow_error_max=0.8, detection_prob_min=0.75))
    for config in (lite, unsure, builtin_config("student", ontology=get_ontology("puma10"))):
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tile_px": 500}, "multiple of 32"),
        ({"target_mpp": 0.0}, "target_mpp"),
        ({"decoder_channels": [8]}, "decoder_channels"),
        ({"architecture": "unet"}, "architecture"),
        ({"mask_limits": {"flow_error_max": 0.8}}, "detection_prob_min"),
        ({"mask_limits": {"flow_error_max": 0.8, "detection_prob_min": 1.0}}, "detection_prob_min"),
    ],
)
def test_a_bad_config_says_what_is_wrong(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModelConfig.from_json(builtin_config("lite").to_json() | change)


def test_a_saved_model_comes_back_equal_and_its_digest_follows_weights_and_config(tmp_path: Path) -> None:
    config, network = _small(), build_model(_small())
    save_model(config, network.state_dict(), tmp_path / "a", card="# card\n")
    loaded = load_model(tmp_path / "a")
    assert loaded.config == config
    assert loaded.card == "# card\n"
    for name, value in loaded.build().state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
    save_model(config, network.state_dict(), tmp_path / "b")
    assert load_model(tmp_path / "b").digest == loaded.digest
    save_model(replace(config, margin_px=48), network.state_dict(), tmp_path / "b")
    assert load_model(tmp_path / "b").digest != loaded.digest
    save_model(config, build_model(config).state_dict(), tmp_path / "b")
    assert load_model(tmp_path / "b").digest != loaded.digest


def test_what_is_not_a_model_is_refused_with_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="lite"):
        load_model("no-such-model")
    with pytest.raises(ModelNotFoundError, match=r"model\.json"):
        load_model(tmp_path)
    save_model(_small(), build_model(_small()).state_dict(), tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        load_model(tmp_path)


def test_weights_of_another_graph_are_refused_naming_a_tensor(tmp_path: Path) -> None:
    save_model(_small(), build_model(builtin_config("lite")).state_dict(), tmp_path)
    with pytest.raises(ModelNotFoundError, match="do not fit"):
        load_model(tmp_path)


def test_weights_for_another_ontology_are_refused_naming_the_ontology(tmp_path: Path) -> None:
    for config in (_small(), tiny_config("teacher"), tiny_config("cellvit")):
        other = replace(config, ontology=get_ontology("ikem3"))
        save_model(other, build_model(config).state_dict(), tmp_path)
        with pytest.raises(ModelNotFoundError, match="ontology other than 'ikem3' with its 3 classes"):
            load_model(tmp_path)


def test_an_encoder_that_timm_does_not_know_is_refused_with_names_near_it(tmp_path: Path) -> None:
    config = tiny_config("resnet50_unet")
    save_model(replace(config, encoder="resnet50x"), build_model(config).state_dict(), tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"near it are .*resnet50"):
        load_model(tmp_path)


def test_the_packaged_lite_loads_and_is_small_enough_to_ship() -> None:
    from cellmill.models import loading

    assert "lite" in packaged_models()
    model = load_model("lite")
    assert model.config.ontology.name == "refined7"
    assert (Path(loading.__file__).parent / "packaged/lite/weights.safetensors").stat().st_size <= 12_000_000
    with torch.inference_mode():
        assert torch.isfinite(model.build()(torch.full((1, 3, 64, 64), 240.0))).all()


def test_the_packaged_lite_finds_nothing_on_glass() -> None:
    network = load_model("lite").build()
    noise = torch.Generator().manual_seed(3)
    glass = 240.0 + 4.0 * torch.randn(1, 3, 192, 192, generator=noise)
    with torch.inference_mode():
        probability = torch.softmax(network(glass)[:, 2:], dim=1)
    assert float((probability[:, 0] < 0.5).float().mean()) == 0.0


def test_the_card_states_licence_sources_and_figures_with_counts() -> None:
    card = load_model("lite").card
    for word in ("CC BY-NC-SA 4.0", "MoNuSAC", "BreCaHAD", "dsb18", "PUMA", "research use"):
        assert word in card
    rows = [
        line.split("|")[1:-1] for line in card.splitlines() if line.startswith("| held-out") and line.count("|") == 10
    ]
    assert len(rows) >= 3
    for row in rows:
        images, nuclei, detection, segmentation, panoptic = (float(cell) for cell in row[1:6])
        assert images >= 1
        assert nuclei >= 50
        assert detection * segmentation == pytest.approx(panoptic, abs=0.006)
