"""Encoders' own weights: found, checked, left out of model folders, and never a pickle."""

import pickle
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_encoder

from cellmill.models.config import ModelConfig, builtin_config
from cellmill.models.encoder_weights import (
    ENCODERS_VARIABLE,
    EncoderWeightsError,
    find_encoder_file,
    pretrained,
    restore_encoder,
    save_encoder,
)
from cellmill.models.feature_cache import FeatureCache, encoder_digest
from cellmill.models.inference import Segmenter, backend_name
from cellmill.models.loading import ModelNotFoundError, load_model, save_model
from cellmill.models.networks import CellNetwork, TokenNetwork, build_model


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test asks the hub, and none finds what another program left in its cache."""
    monkeypatch.delenv(ENCODERS_VARIABLE, raising=False)

    def unreachable(repository: str, file: str) -> str:
        raise LocalEntryNotFoundError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)


def _encoder_file(path: Path, *, seed: int = 1) -> CellNetwork:
    torch.manual_seed(seed)
    network = build_model(tiny_config("teacher")).eval()
    save_encoder(network, path)
    return network


def _same_tokens(one: CellNetwork, other: CellNetwork) -> bool:
    assert isinstance(one, TokenNetwork) and isinstance(other, TokenNetwork)
    images = torch.rand(1, 3, 64, 64) * 255
    return all(torch.equal(a, b) for a, b in zip(one.features(images), other.features(images), strict=True))


@pytest.mark.parametrize("layout", ["tiny.safetensors", "tiny/model.safetensors", "model.safetensors"])
def test_a_local_encoder_is_found_by_name_in_each_layout(layout: str, tmp_path: Path) -> None:
    source = _encoder_file(tmp_path / layout)
    config, network = pretrained(tiny_config("teacher"), source=tmp_path)
    assert _same_tokens(source, network)
    assert config.vit is not None and len(config.vit.sha256) == 64
    _, again = pretrained(tiny_config("teacher"), source=tmp_path / layout)  # the file itself
    assert _same_tokens(source, again)


def test_the_environment_says_where_encoders_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _encoder_file(tmp_path / "tiny.safetensors")
    monkeypatch.setenv(ENCODERS_VARIABLE, str(tmp_path))
    assert _same_tokens(source, pretrained(tiny_config("teacher"))[1])


def test_torch_files_are_read_without_pickles(tmp_path: Path) -> None:
    source = build_model(tiny_config("teacher")).eval()
    state = source.encoder.body.state_dict()  # type: ignore[union-attr]
    torch.save(state | {"head.weight": torch.zeros(2, 32)}, tmp_path / "tiny.pth")
    assert _same_tokens(source, pretrained(tiny_config("teacher"), source=tmp_path)[1])

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    (tmp_path / "tiny.pth").write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(EncoderWeightsError, match="cannot be read"):
        pretrained(tiny_config("teacher"), source=tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "tiny.pth")
    with pytest.raises(EncoderWeightsError, match="plain tensors"):
        pretrained(tiny_config("teacher"), source=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_teachers_folder_holds_its_decoder_and_names_the_encoder(tmp_path: Path) -> None:
    _encoder_file(tmp_path / "encoders/tiny.safetensors")
    config, network = pretrained(tiny_config("teacher"), source=tmp_path / "encoders")
    save_model(config, network.state_dict(), tmp_path / "model")
    model = load_model(tmp_path / "model", encoders=tmp_path / "encoders")
    assert not [name for name in model.weights if name.startswith("encoder.")]
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        assert torch.equal(model.build()(images), network.eval()(images))
    assert backend_name(model.config, device="cpu") == "eager"
    tiles = np.zeros((1, 64, 64, 3), np.uint8)
    segmenter = Segmenter.open(model, device="cpu", batch_size=1, num_threads=1)
    assert segmenter.predict(tiles).vectors.shape == (1, 2, 48, 48)


def test_an_encoder_that_is_trained_travels_with_the_model(tmp_path: Path) -> None:
    _encoder_file(tmp_path / "tiny.safetensors")
    config, network = pretrained(tiny_config("cellvit"), source=tmp_path)
    assert config.vit is not None and not config.vit.sha256
    save_model(config, network.state_dict(), tmp_path / "model")
    assert _same_tokens(load_model(tmp_path / "model").build(), network.eval())


def test_a_network_whose_config_names_its_encoders_file_does_not_run_without_it(tmp_path: Path) -> None:
    _encoder_file(tmp_path / "tiny.safetensors")
    config, _ = pretrained(tiny_config("teacher"), source=tmp_path)
    network = build_model(config)
    with pytest.raises(ValueError, match=r"has no weights.*restore_encoder"):
        network(torch.zeros(1, 3, 64, 64))
    restore_encoder(network, source=tmp_path)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 10, 64, 64)
    assert not any(parameter.requires_grad for parameter in network.encoder.parameters())  # type: ignore[union-attr]


def test_another_encoders_file_is_refused_before_a_run_with_both_hashes(tmp_path: Path) -> None:
    _encoder_file(tmp_path / "encoders/tiny.safetensors")
    config, network = pretrained(tiny_config("teacher"), source=tmp_path / "encoders")
    assert config.vit is not None
    save_model(config, network.state_dict(), tmp_path / "model")
    digest = load_model(tmp_path / "model", encoders=tmp_path / "encoders").digest
    _encoder_file(tmp_path / "encoders/tiny.safetensors", seed=2)
    with pytest.raises(ModelNotFoundError, match=f"{config.vit.sha256}.*has [0-9a-f]{{64}}.*train the decoder again"):
        load_model(tmp_path / "model", encoders=tmp_path / "encoders")
    other, network = pretrained(tiny_config("teacher"), source=tmp_path / "encoders")
    save_model(other, network.state_dict(), tmp_path / "model")
    assert load_model(tmp_path / "model", encoders=tmp_path / "encoders").digest != digest


def test_missing_weights_say_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(EncoderWeightsError, match=r"CELLMILL_ENCODERS is not set.*tiny\.safetensors"):
        pretrained(tiny_config("teacher"))
    with pytest.raises(EncoderWeightsError, match=r"cannot be reached from here.*H-optimus-0\.safetensors"):
        find_encoder_file(builtin_config("teacher"), source=tmp_path)
    with pytest.raises(EncoderWeightsError, match="no folder and no file"):
        find_encoder_file(builtin_config("teacher"), source=tmp_path / "gone")


def test_a_gated_repository_says_how_to_get_access(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(repository: str, file: str) -> str:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    with pytest.raises(EncoderWeightsError, match=r"bioptimus/H-optimus-0 is gated.*hf auth login.*CELLMILL_ENCODERS"):
        find_encoder_file(builtin_config("teacher"))


def test_the_hub_is_asked_for_safetensors_first_and_torch_files_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def hub(repository: str, file: str) -> str:
        asked.append(f"{repository}/{file}")
        if file.endswith(".safetensors"):
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    assert find_encoder_file(builtin_config("resnet50_unet")) == tmp_path / "pytorch_model.bin"
    assert asked == ["timm/resnet50.a1_in1k/model.safetensors", "timm/resnet50.a1_in1k/pytorch_model.bin"]


def test_a_file_of_another_graph_is_refused_naming_a_tensor(tmp_path: Path) -> None:
    save_file({"stem.weight": torch.zeros(2, 2)}, tmp_path / "tiny.safetensors")
    with pytest.raises(EncoderWeightsError, match=r"does not fit timm's vit_small_patch14.*wanted"):
        pretrained(tiny_config("teacher"), source=tmp_path)
    (tmp_path / "tiny.safetensors").write_bytes(b"not tensors")
    with pytest.raises(EncoderWeightsError, match="cannot be read as weights"):
        pretrained(tiny_config("teacher"), source=tmp_path)


@pytest.mark.parametrize("architecture", ["student", "resnet50_unet"])
def test_convolutional_encoders_start_from_a_file_in_timms_names(architecture: str, tmp_path: Path) -> None:
    import timm

    config: ModelConfig = tiny_config("student" if architecture == "student" else "resnet50_unet")
    torch.manual_seed(3)
    save_file(timm.create_model(config.encoder).state_dict(), tmp_path / f"{config.encoder}.safetensors")
    torch.manual_seed(3)
    wanted = timm.create_model(config.encoder)
    same, network = pretrained(config, source=tmp_path)
    assert same == config
    images = torch.rand(1, 3, 64, 64)
    network.encoder.eval()
    with torch.inference_mode():
        found = network.encoder(images)[-1]  # type: ignore[operator]
        expected = wanted.eval().forward_features(images)
    assert found.shape[-2:] == expected.shape[-2:]
    if found.shape == expected.shape:
        torch.testing.assert_close(found, expected)


def test_tokens_are_computed_once_and_decode_as_they_would_have(tmp_path: Path) -> None:
    network = build_model(tiny_config("teacher")).eval()
    assert isinstance(network, TokenNetwork)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    cache = FeatureCache(tmp_path, network)
    first = cache.features(images[:2])
    second = FeatureCache(tmp_path, network)
    again = second.features(images)  # two found, one computed
    assert (cache.num_computed, second.num_computed) == (2, 1)
    assert all(torch.equal(a, b[:2]) and a.dtype == torch.float16 for a, b in zip(first, again, strict=True))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        torch.testing.assert_close(network.decode(batch, again), network(batch), atol=2e-3, rtol=2e-3)


def test_a_broken_cache_file_is_written_anew(tmp_path: Path) -> None:
    network = build_model(tiny_config("teacher"))
    assert isinstance(network, TokenNetwork)
    image = np.zeros((1, 64, 64, 3), np.uint8)
    wanted = FeatureCache(tmp_path, network).features(image)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    found = FeatureCache(tmp_path, network).features(image)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert len(path.read_bytes()) > 100


def test_a_cache_belongs_to_one_encoder_with_its_weights_scale_and_normalisation(tmp_path: Path) -> None:
    config = tiny_config("teacher")
    vit = tiny_encoder()
    variants = [
        config,
        replace(config, pixel_mean_rgb=(1.0, 2.0, 3.0)),
        replace(config, vit=replace(vit, blocks=(1, 2, 4))),
        replace(config, vit=replace(vit, sha256="a" * 64)),
        replace(config, vit=replace(vit, sha256="b" * 64)),
    ]
    digests = [_digest(variant, seed=0) for variant in variants]
    assert _digest(config, seed=0) == digests[0]
    assert _digest(replace(config, decoder_channels=(8, 8, 8)), seed=0) == digests[0]
    digests.append(_digest(config, seed=1))  # other weights
    assert len(set(digests)) == len(digests)
    with pytest.raises(ValueError, match="trained"):
        FeatureCache(tmp_path, build_model(tiny_config("cellvit")))  # type: ignore[arg-type]


def _digest(config: ModelConfig, *, seed: int) -> str:
    torch.manual_seed(seed)
    network = build_model(config)
    assert isinstance(network, TokenNetwork)
    return encoder_digest(network)
