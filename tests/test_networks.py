"""The graphs: sizes against the papers, shapes, what is frozen, and gradients."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config, tiny_encoder
from torch import nn

from cellmill.models import loading
from cellmill.models.config import Architecture, ModelConfig, builtin_config
from cellmill.models.loading import load_model
from cellmill.models.networks import TokenNetwork, build_model, count_parameters
from cellmill.models.networks.token_network import split_tokens
from cellmill.models.networks.vit_encoder import VitTokens
from cellmill.models.outputs import vectors_and_prob
from cellmill.models.vit_encoders import KNOWN_ENCODERS, VitEncoder, spaced_blocks, timm_encoder
from cellmill_schemas.ontology import get_ontology

FAMILIES: tuple[Architecture, ...] = ("lite", "student", "teacher", "cellvit", "resnet50_unet")
PAPER_TEACHER, PAPER_STUDENT = 1_158_917_906, 24_093_393  # Shvetsov et al. 2025, table 4


@pytest.mark.parametrize("name", list(KNOWN_ENCODERS))
def test_a_foundation_models_graph_has_its_number_of_parameters(name: str) -> None:
    known = KNOWN_ENCODERS[name]
    with torch.device("meta"):
        encoder = VitTokens(known.encoder(token_px=16))
    assert count_parameters(encoder) == known.num_parameters
    assert count_parameters(encoder, trained_only=True) == 0


def test_h_optimus_is_the_papers_encoder() -> None:
    known = KNOWN_ENCODERS["H-optimus-0"]
    assert known.num_parameters == 1_134_774_272
    assert known.blocks == (1, 14, 26, 38)


def test_teacher_and_student_are_as_large_as_the_papers_within_a_third_of_a_percent() -> None:
    with torch.device("meta"):
        teacher = build_model(builtin_config("teacher", target_mpp=0.25))
        student = build_model(builtin_config("student"))
    assert count_parameters(teacher) == 1_158_647_370
    assert count_parameters(teacher) == pytest.approx(PAPER_TEACHER, rel=0.0003)
    assert count_parameters(teacher, trained_only=True) == 23_873_098
    assert count_parameters(student) == 24_012_835
    assert count_parameters(student) == pytest.approx(PAPER_STUDENT, rel=0.0034)


def test_the_baseline_and_cellvit_have_their_recorded_sizes() -> None:
    with torch.device("meta"):
        assert count_parameters(build_model(builtin_config("resnet50_unet"))) == 32_521_562
        cellvit = build_model(builtin_config("cellvit", target_mpp=0.25, ontology=get_ontology("histoplus13")))
    assert count_parameters(cellvit) == 142_155_378
    assert count_parameters(cellvit) == pytest.approx(146_090_259, rel=0.03)  # Adjadj et al. 2025, table 5, ViT-Base


def test_the_teacher_at_full_width_gives_maps_of_a_256_px_tile() -> None:
    config = builtin_config("teacher", target_mpp=0.25)
    with torch.device("meta"):
        network = build_model(config)
        assert isinstance(network, TokenNetwork)
        images = torch.empty(2, 3, 256, 256)
        features = network.features(images)
        assert [tuple(block.shape) for block in features] == [(2, 1536, 16, 16)] * 4  # 224 px of the encoder's own
        assert network.decode(images, features).shape == (2, 2 + 1 + 7, 256, 256)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_outputs_are_laid_out_as_the_config_says(architecture: Architecture) -> None:
    config = tiny_config(architecture)
    network = build_model(config).eval()
    with torch.inference_mode():
        outputs = network(torch.rand(2, 3, 64, 128) * 255)
    assert outputs.shape == (2, config.num_outputs, 64, 128)
    parts = list(config.channels.items())
    widths = {"flow": 2, "type": 8} if config.decoder == "flows" else {"nucleus": 2, "hv": 2, "type": 8}
    assert {name: part.stop - part.start for name, part in parts} == widths
    assert [part.start for _, part in parts[1:]] == [part.stop for _, part in parts[:-1]]
    vectors, prob = vectors_and_prob(outputs, config)
    assert vectors.shape == (2, 2, 64, 128)
    torch.testing.assert_close(prob.sum(dim=1), torch.ones(2, 64, 128))


def test_nuclei_of_the_hv_family_are_shared_among_the_classes_by_hand() -> None:
    config = replace(tiny_config("cellvit"), ontology=get_ontology("monusac4"))
    outputs = torch.zeros(1, config.num_outputs, 1, 1)
    outputs[0, 1] = torch.log(torch.tensor(3.0))  # nucleus 3/4, background 1/4
    outputs[0, 2:4, 0, 0] = torch.tensor([0.5, -1.0])
    outputs[0, 4] = 100.0  # the type branch's own background is not read
    outputs[0, 6] = torch.log(torch.tensor(7.0))  # classes share as 1, 7, 1, 1
    vectors, prob = vectors_and_prob(outputs, config)
    assert vectors.flatten().tolist() == [0.5, -1.0]
    torch.testing.assert_close(prob.flatten(), torch.tensor([0.25, 0.075, 0.525, 0.075, 0.075]))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one(architecture: Architecture) -> None:
    network = build_model(tiny_config(architecture)).train()
    network(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if architecture == "teacher":
        assert all(name.startswith("encoder.") for name in frozen) and frozen
    elif architecture == "cellvit":
        assert frozen == ["encoder.body.norm.weight", "encoder.body.norm.bias"]  # behind the last block taken
    else:
        assert not frozen


def test_a_frozen_encoder_stays_in_evaluation_mode_and_gives_the_same_tokens() -> None:
    network = build_model(tiny_config("teacher")).train()
    assert isinstance(network, TokenNetwork)
    assert not any(module.training for module in network.encoder.modules())
    assert network.norms.training
    images = torch.rand(1, 3, 64, 64) * 255
    before = network.features(images)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(images).mean().backward()
    optimizer.step()
    after = network.train().features(images)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(before, after, strict=True))


def test_maps_of_a_tile_do_not_depend_on_what_is_decoded_with_it() -> None:
    for architecture in ("teacher", "cellvit"):
        network = build_model(tiny_config(architecture)).eval()
        tiles = torch.rand(3, 3, 64, 64) * 255
        with torch.inference_mode():
            torch.testing.assert_close(network(tiles)[1:2], network(tiles[1:2]), atol=1e-5, rtol=1e-4)


def test_tokens_are_those_of_the_blocks_counted_from_1() -> None:
    vit = replace(tiny_encoder(), blocks=(1, 3, 4))
    encoder = VitTokens(vit).eval()
    pixels = torch.rand(1, 3, 64, 64)
    seen: list[torch.Tensor] = []

    def remember(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.append(output)

    for block in encoder.body.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(remember)
    tokens = encoder(pixels)
    for number, found in zip(vit.blocks, tokens, strict=True):
        wanted = seen[number - 1][:, 5:]  # without the class token and 4 registers
        assert torch.equal(found.flatten(2).transpose(1, 2), wanted)


def test_a_token_covers_its_own_pixels() -> None:
    """A mark in one place changes the embedded patch there and nowhere else, though 8 px meet patches of 14."""
    encoder = VitTokens(tiny_encoder()).eval()
    pixels = torch.zeros(1, 3, 64, 64)
    marked = pixels.clone()
    marked[:, :, 27:29, 43:45] = 1.0  # inside row 3, column 5
    seen: list[torch.Tensor] = []
    encoder.body.patch_embed.register_forward_hook(lambda _m, _i, output: seen.append(output))  # type: ignore[union-attr]
    encoder(pixels)
    encoder(marked)
    changed = (seen[0] - seen[1]).abs().sum(dim=-1)[0] > 0  # (8, 8)
    assert changed.nonzero().tolist() == [[3, 5]]


def test_position_embeddings_settled_for_a_tile_give_the_same_tokens() -> None:
    encoder = VitTokens(tiny_encoder()).eval()  # 8 x 8 positions
    pixels = torch.rand(1, 3, 96, 96)  # 12 x 12 tokens
    wanted = encoder(pixels)
    encoder.settle(96)
    for found, expected in zip(encoder(pixels), wanted, strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_shallow_blocks_go_to_fine_scales_and_the_rest_starts() -> None:
    tokens = [torch.full((1, 2, 1, 1), float(number)) for number in range(4)]
    lateral, deepest = split_tokens(tokens, 4)
    assert [float(block[0, 0]) for block in lateral] == [0.0, 1.0, 2.0]
    assert deepest.flatten().tolist() == [3.0, 3.0]
    lateral, deepest = split_tokens(tokens, 3)
    assert [float(block[0, 0]) for block in lateral] == [0.0, 1.0]
    assert deepest.flatten().tolist() == [2.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(("depth", "blocks"), [(12, (3, 6, 9, 12)), (24, (6, 12, 18, 24)), (32, (8, 16, 24, 32))])
def test_blocks_are_spaced_as_histoplus_spaces_them(depth: int, blocks: tuple[int, ...]) -> None:
    assert spaced_blocks(depth) == blocks


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_familys_config_survives_json(architecture: Architecture) -> None:
    for mpp in (0.5, 0.25):
        config = builtin_config(architecture, ontology=get_ontology("puma10"), target_mpp=mpp)
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_digests_of_older_models_are_what_they_were() -> None:
    folder = Path(loading.__file__).parent / "packaged/lite"
    document = json.loads((folder / "model.json").read_bytes())
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert load_model("lite").config.canonical_bytes() == canonical
    weights = hashlib.sha256((folder / "weights.safetensors").read_bytes()).digest()
    assert load_model("lite").digest == hashlib.sha256(canonical + b"\0" + weights).hexdigest()
    assert "vit" not in builtin_config("student").to_json()


def test_a_tile_of_the_builtin_configs_fits_their_tokens() -> None:
    for architecture in ("teacher", "cellvit"):
        for mpp, token_px in ((0.5, 8), (0.25, 16)):
            config = builtin_config(architecture, target_mpp=mpp)
            assert config.vit is not None and config.vit.token_px == token_px
            assert config.tile_px % token_px == 0
            assert config.vit.encoder_px(config.tile_px) % 14 == 0
    assert KNOWN_ENCODERS["H-optimus-0"].encoder(token_px=16).encoder_px(256) == 224


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: timm_encoder("vit_tinny_patch16_224", token_px=8), "near it are vit_tiny_patch16_224"),
        (lambda: timm_encoder("resnet50", token_px=8), "no plain vision transformer"),
        (lambda: timm_encoder("hf-hub:someone/else", token_px=8), "has no model"),
        (lambda: timm_encoder("vit_tiny_patch16_224", token_px=8, checkpoint_path="x"), "checkpoint_path"),
        (lambda: timm_encoder("vit_tiny_patch16_224", token_px=12), "power of two"),
        (lambda: timm_encoder("vit_tiny_patch16_224", token_px=32), "5 doublings"),
        (lambda: timm_encoder("vit_tiny_patch16_224", token_px=8, depth=3), "3 blocks"),
        (lambda: replace(tiny_encoder(), blocks=(2, 2)), "rise"),
        (lambda: VitEncoder.from_json(tiny_encoder().to_json() | {"options": {"depth": [4]}}), "for depth"),
        (lambda: replace(tiny_encoder(frozen=False), sha256="0" * 64), "trained"),
        (lambda: build_model(replace(tiny_config("student"), encoder="resnet5o")), "near it are"),
        (lambda: builtin_config("teacher", encoder="H-optimus-9"), "H-optimus-0, H0-mini"),
        (lambda: builtin_config("student", encoder="H0-mini"), "not of student"),
        (lambda: replace(builtin_config("student"), vit=tiny_encoder()), "only they"),
        (lambda: replace(tiny_config("teacher"), decoder_channels=(8, 8)), "3 doublings"),
        (lambda: replace(tiny_config("teacher"), tile_px=100), "multiple of 8"),
        (lambda: build_model(tiny_config("teacher"))(torch.zeros(1, 3, 60, 64)), "multiples of 8 px"),
        (lambda: VitTokens(replace(tiny_encoder(), blocks=(1, 2, 9))), "4 blocks"),
        (lambda: VitTokens(replace(tiny_encoder(), patch_px=16)), r"patches of \(14, 14\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_saying_why(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_vit_encoder_survives_json() -> None:
    for known in KNOWN_ENCODERS.values():
        encoder = known.encoder(token_px=16)
        assert VitEncoder.from_json(json.loads(json.dumps(encoder.to_json()))) == encoder
