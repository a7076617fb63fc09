"""Networks of every family, small enough for a test: the real graphs, few channels, a transformer of 4 blocks."""

from dataclasses import replace

import torch

from cellmill.models.config import Architecture, ModelConfig, builtin_config, with_encoder
from cellmill.models.loading import LoadedModel, weights_of
from cellmill.models.networks import build_model
from cellmill.models.vit_encoders import VitEncoder, timm_encoder

__all__ = ["tiny_config", "tiny_encoder", "tiny_model"]


def tiny_encoder(*, frozen: bool = True, token_px: int = 8) -> VitEncoder:
    """A transformer of 4 blocks of width 32 with patches of 14 px, like the foundation models' but in size."""
    return timm_encoder(
        "vit_small_patch14_reg4_dinov2",
        token_px=token_px,
        frozen=frozen,
        depth=4,
        embed_dim=32,
        num_heads=2,
        img_size=112,
    )


def tiny_config(architecture: Architecture, *, tile_px: int = 64, margin_px: int = 8, token_px: int = 8) -> ModelConfig:
    """A small config of an architecture, named `tiny-<architecture>`."""
    name = f"tiny-{architecture}"
    config = builtin_config(architecture, name=name, target_mpp=0.5 if token_px == 8 else 0.25)
    if architecture == "lite":
        config = replace(config, encoder_channels=(8, 8, 8, 8), decoder_channels=(8, 8, 8))
    elif architecture == "student":
        config = replace(config, encoder="mobilevitv2_050", decoder_channels=(8, 8, 16, 16, 16))
    elif architecture == "resnet50_unet":
        config = replace(config, encoder="resnet10t", decoder_channels=(8, 8, 16, 16, 16))
    else:
        vit = tiny_encoder(frozen=architecture == "teacher", token_px=token_px)
        config = replace(config, decoder_channels=(8, 16, 16, 16)[: vit.num_doublings])
        config = with_encoder(config, "tiny", vit)
    return replace(config, tile_px=tile_px, margin_px=margin_px)


def tiny_model(config: ModelConfig, *, seed: int = 0) -> LoadedModel:
    """It with random weights, as `load_model` gives it."""
    torch.manual_seed(seed)
    return LoadedModel(config, weights_of(build_model(config)), digest=f"random-{seed}", card="", source="")
