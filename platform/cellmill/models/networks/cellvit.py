"""`cellvit`: CellViT's decoder, three branches over the tokens of one vision transformer.

CellViT (Hörst et al., Medical Image Analysis 2024) gives each of HoVer-Net's three tasks a path of its own from tokens
to pixels: nuclei (NP), horizontal and vertical distances (HV) and types (NT). All three take the same raised tokens of
shallower blocks as skip connections. Which blocks: Adjadj et al. 2025 (HistoPLUS), Methods. Two differences from what
they describe: a tile is resized so that doublings end on its own pixels (`cellmill.models.vit_encoders`), where they
shrink the output of a patch-14 encoder by 14 / 16, and there is no head that classifies the tissue.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cellmill.models.config import ModelConfig
from cellmill.models.networks.blocks import ConvNorm, RaisedTokens, TokenNorm
from cellmill.models.networks.token_network import TokenNetwork, split_tokens

__all__ = ["CellVitNetwork"]


class CellVitNetwork(TokenNetwork):
    """Skip connections once, and one branch for each output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        widths = config.decoder_channels  # by scale, [0] is full resolution
        blocks = self.encoder.vit.blocks
        num_lateral = len(widths) - 1
        self.norms = nn.ModuleList(TokenNorm(self.encoder.width) for _ in blocks)
        self.skips = nn.ModuleList(
            [
                nn.Sequential(ConvNorm(3, widths[0] // 2), ConvNorm(widths[0] // 2, widths[0])),
                *(RaisedTokens(self.encoder.width, widths[: scale - 1 : -1]) for scale in range(1, num_lateral + 1)),
            ]
        )
        deepest = self.encoder.width * (len(blocks) - num_lateral)
        # In the order of the output's channels: nuclei, distances, types.
        self.branches = nn.ModuleList(
            _Branch(deepest, widths, part.stop - part.start) for part in config.channels.values()
        )

    def decode(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, 5 + C, H, W) of images (B, 3, H, W) and their tokens (B, D, h, w)."""
        pixels = self.normalised(images)
        tokens = [norm(block.to(pixels.dtype)) for norm, block in zip(self.norms, features, strict=True)]
        fine, deepest = split_tokens(tokens, len(self.skips))
        skips = [skip(source) for skip, source in zip(self.skips, [pixels, *fine], strict=True)]
        return torch.cat([branch(deepest, skips) for branch in self.branches], dim=1)


class _Branch(nn.Module):
    """From tokens to one output: at each scale doubled, laid beside the skip connection and fused."""

    def __init__(self, inputs: int, widths: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.raise_to = nn.ModuleList(
            nn.ConvTranspose2d(deeper, width, 2, 2) for deeper, width in zip((*widths[1:], inputs), widths, strict=True)
        )
        coarsest = len(widths) - 1
        # Three convolutions at the coarsest scale and two at the others, as in CellViT.
        self.fuse = nn.ModuleList(
            nn.Sequential(
                ConvNorm(2 * width, width), *(ConvNorm(width, width) for _ in range(2 if scale == coarsest else 1))
            )
            for scale, width in enumerate(widths)
        )
        self.head = nn.Conv2d(widths[0], num_outputs, 1)

    def forward(self, deepest: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Tokens (B, D, h, w) and skips, finest first, to (B, outputs, H, W)."""
        merged = deepest
        for scale in reversed(range(len(self.fuse))):
            merged = self.fuse[scale](torch.cat([self.raise_to[scale](merged), skips[scale]], dim=1))
        return self.head(merged)
