"""A masked autoencoder: a vision transformer sees a quarter of an image's patches, a small decoder paints the rest.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022: 75 % of patches are hidden, the
encoder sees only the others, the decoder gets a learnt token for each hidden patch, the loss is the mean squared error
of hidden patches' pixels, each patch normalised by its own mean and deviation. The decoder is thrown away.

Letters: B batch, N patches, V visible ones, D the encoder's width, E the decoder's.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from cellmill.models.config import ModelConfig
from cellmill.models.networks import TokenNetwork, build_model

__all__ = ["AutoencoderConfig", "MaskedAutoencoder"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """What is hidden and what paints."""

    hidden_share: float = 0.75
    """Share of patches that the encoder does not see."""
    decoder_width: int = 64
    """E, a multiple of the number of heads."""
    decoder_blocks: int = 2
    """Transformer blocks of the decoder."""
    decoder_heads: int = 4
    """Attention heads of the decoder."""

    def __post_init__(self) -> None:
        if not 0.0 < self.hidden_share < 1.0:
            raise ValueError(f"The share of hidden patches must lie between 0 and 1, got {self.hidden_share}.")


class MaskedAutoencoder(nn.Module):
    """A network's encoder with what teaches it; the encoder alone is kept."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model_config: ModelConfig, config: AutoencoderConfig, *, side_px: int) -> None:
        """Build around a fresh encoder.

        Args:
            model_config: of the network the encoder is for, which says how pixels are normalised and patches lie.
            config: what is hidden and what paints.
            side_px: side of an image, on the model grid.

        Raises:
            ValueError: when the network has no vision transformer.
        """
        super().__init__()
        if model_config.vit is None:
            raise ValueError(f"Masked autoencoding takes a vision transformer; {model_config.architecture} has none.")
        network = build_model(model_config)
        assert isinstance(network, TokenNetwork), "a config with a vit builds one"
        self.config = config
        self.vit = model_config.vit
        self.encoder = network.encoder
        self.body.requires_grad_(True)
        self.register_buffer("pixel_mean", network.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", network.pixel_std, persistent=False)
        num_patches = (side_px // self.vit.token_px) ** 2
        width = config.decoder_width
        self.embed = nn.Linear(network.encoder.width, width)
        self.hidden_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_patches, width))
        layer = nn.TransformerEncoderLayer(
            width, config.decoder_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerEncoder(layer, config.decoder_blocks, enable_nested_tensor=False)
        self.paint = nn.Linear(width, 3 * self.vit.patch_px**2)

    @property
    def body(self) -> nn.Module:
        """timm's transformer."""
        return self.encoder.body

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), raw RGB, to the error (B,) of painting what was hidden."""
        pixels = self._encoder_pixels(images)
        patches = _patches(pixels, self.vit.patch_px)  # (B, N, 3 P P)
        order = torch.rand(patches.shape[:2], device=images.device).argsort(dim=1)  # (B, N)
        num_visible = max(1, round(patches.shape[1] * (1.0 - self.config.hidden_share)))
        visible, hidden = order[:, :num_visible], order[:, num_visible:]
        painted = self._painted(self._encoded(pixels, visible), order, num_visible)
        wanted = _normalised(patches)
        error = ((painted - wanted) ** 2).mean(dim=2)  # (B, N)
        return error.gather(1, hidden).mean(dim=1)

    def _encoder_pixels(self, images: Tensor) -> Tensor:
        pixels = (images - self.pixel_mean) / self.pixel_std
        if self.vit.token_px == self.vit.patch_px:
            return pixels
        height, width = (self.vit.encoder_px(side) for side in pixels.shape[-2:])
        return nn.functional.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)

    def _encoded(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Tokens (B, V, D) of the visible patches, by an encoder that sees nothing else."""
        body = cast(Any, self.body)
        tokens = body.norm_pre(body._pos_embed(body.patch_embed(pixels)))
        prefix = body.num_prefix_tokens
        seen = torch.cat([tokens[:, :prefix], _taken(tokens[:, prefix:], visible)], dim=1)
        for block in body.blocks:
            seen = block(seen)
        return cast(Tensor, body.norm(seen))[:, prefix:]

    def _painted(self, encoded: Tensor, order: Tensor, num_visible: int) -> Tensor:
        """Pixels (B, N, 3 P P) of all patches in their places."""
        known = self.embed(encoded)
        hidden = self.hidden_token.expand(known.shape[0], order.shape[1] - num_visible, -1)
        shuffled = torch.cat([known, hidden.to(known.dtype)], dim=1)
        placed = _taken(shuffled, order.argsort(dim=1)) + self.positions
        return self.paint(self.decoder(placed))


def _patches(pixels: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) as (B, N, 3 side side), row by row."""
    return nn.functional.unfold(pixels, side, stride=side).transpose(1, 2)


def _normalised(patches: Tensor) -> Tensor:
    return (patches - patches.mean(dim=2, keepdim=True)) / (patches.var(dim=2, keepdim=True) + 1e-4).sqrt()


def _taken(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, N, D) at indices (B, V)."""
    return tokens.gather(1, indices.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
