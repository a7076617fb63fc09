"""A U-Net decoder over a convolutional timm encoder: what `student` and `resnet50_unet` have in common.

The encoder's maps at strides 2, 4, ... 2^n are joined from the coarsest on: doubled (nearest neighbour), laid beside
the map of that scale, and fused. At full resolution the normalised pixels themselves are that map.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellmill.models.config import ModelConfig
from cellmill.models.networks.blocks import CellNetwork
from cellmill.models.networks.timm_graphs import create_graph

__all__ = ["TimmUnet"]


class TimmUnet(CellNetwork):
    """U-Net over a timm encoder; `fusing` makes the block that takes (inputs, outputs, scale), 0 the finest."""

    def __init__(self, config: ModelConfig, fusing: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__(config)
        from timm.models import FeatureInfo

        self.encoder = create_graph(config.encoder, features_only=True)
        information = cast(FeatureInfo, self.encoder.feature_info)
        widths = information.channels()  # strides 2, 4, 8, 16, 32
        decoder = config.decoder_channels
        if len(decoder) != len(widths):
            raise ValueError(
                f"Encoder {config.encoder!r} has {len(widths)} scales and needs as many decoder_channels, "
                f"got {decoder}."
            )
        # decoder[0] is full resolution, decoder[k] is fused with the encoder's scale k - 1.
        skips = (3, *widths[:-1])
        deeper = (*decoder[1:], widths[-1])
        self.fuse = nn.ModuleList(fusing(deeper[s] + skips[s], decoder[s], s) for s in range(len(decoder)))
        self.head = nn.Conv2d(decoder[0], config.num_outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to maps (B, 3 + C, H, W)."""
        pixels = self.normalised(images)
        encoded = cast(list[Tensor], self.encoder(pixels))
        skips = [pixels, *encoded[:-1]]
        merged = encoded[-1]  # (B, F, H/32, W/32)
        for scale in reversed(range(len(self.fuse))):
            raised = functional.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = self.fuse[scale](torch.cat([raised, skips[scale]], dim=1))
        return self.head(merged)
