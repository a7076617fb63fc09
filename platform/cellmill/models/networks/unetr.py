"""`teacher`: a UNETR-like convolutional decoder over a frozen foundation model, with flow and type heads.

Shvetsov et al. 2025, section 3 and figure 5: tokens after four blocks of H-optimus-0 are residual connections of a
convolutional decoder (UNETR, Hatamizadeh et al., WACV 2022, in two dimensions), whose last map two task layers turn
into Cellpose flows and class logits. The paper gives no widths; those of `builtin_config` come near its 1,158,917,906
parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cellmill.models.config import FLOW_CHANNELS, ModelConfig
from cellmill.models.networks.blocks import RaisedTokens, ResidualBlock, TokenNorm
from cellmill.models.networks.token_network import TokenNetwork, split_tokens

__all__ = ["UnetrNetwork"]


class UnetrNetwork(TokenNetwork):
    """UNETR in two dimensions: tokens of shallow blocks are raised to fine scales, those of the deepest start."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        widths = config.decoder_channels  # by scale, [0] is full resolution
        num_lateral = len(widths) - 1
        blocks = self.encoder.vit.blocks
        self.norms = nn.ModuleList(TokenNorm(self.encoder.width) for _ in blocks)
        deepest = self.encoder.width * (len(blocks) - num_lateral)
        self.raise_to = nn.ModuleList(
            nn.ConvTranspose2d(deeper, width, 2, 2)
            for deeper, width in zip((*widths[1:], deepest), widths, strict=True)
        )
        # lateral[0] is of the pixels, lateral[s] of tokens that are doubled until they are at stride 2^s.
        self.lateral = nn.ModuleList(
            [
                ResidualBlock(3, widths[0]),
                *(
                    RaisedTokens(self.encoder.width, [widths[scale]] * (len(widths) - scale))
                    for scale in range(1, num_lateral + 1)
                ),
            ]
        )
        self.fuse = nn.ModuleList(ResidualBlock(2 * width, width) for width in widths)
        self.flow_head = nn.Conv2d(widths[0], FLOW_CHANNELS, 1)
        self.type_head = nn.Conv2d(widths[0], config.num_outputs - FLOW_CHANNELS, 1)

    def decode(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Maps (B, 3 + C, H, W) of images (B, 3, H, W) and their tokens (B, D, h, w)."""
        pixels = self.normalised(images)
        tokens = [norm(block.to(pixels.dtype)) for norm, block in zip(self.norms, features, strict=True)]
        fine, merged = split_tokens(tokens, len(self.fuse))
        for scale in reversed(range(len(self.fuse))):
            lateral = self.lateral[scale](fine[scale - 1] if scale else pixels)
            merged = self.fuse[scale](torch.cat([self.raise_to[scale](merged), lateral], dim=1))
        return torch.cat([self.flow_head(merged), self.type_head(merged)], dim=1)
