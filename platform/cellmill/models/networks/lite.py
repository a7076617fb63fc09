"""`lite`: plain residual convolutions, small enough for two CPU cores."""

from torch import Tensor, nn
from torch.nn import functional

from cellmill.models.config import ModelConfig
from cellmill.models.networks.blocks import CellNetwork, ConvNorm, ResidualBlock

__all__ = ["LiteNetwork"]


class LiteNetwork(CellNetwork):
    """Residual U-Net of plain convolutions from stride 2 to stride 16.

    It has no pooling over the whole tile and no attention, so a pixel's output depends on a bounded neighbourhood and
    a shift of the tile grid changes little. Pixels enter and leave in 2 x 2 groups (pixel unshuffle and shuffle):
    nothing is computed at full resolution, yet no pixel is thrown away.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        widths, blocks, decoder = config.encoder_channels, config.encoder_blocks, config.decoder_channels
        self.stem = ConvNorm(3 * 4, widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                ConvNorm(widths[scale - 1], widths[scale], stride=2),
                *(ResidualBlock(widths[scale], widths[scale]) for _ in range(blocks[scale])),
            )
            for scale in range(1, len(widths))
        )
        deeper = (*decoder[1:], widths[-1])
        # The finest scale gets one convolution only: a block there would cost as much as all of stride 8.
        self.raise_to = nn.ModuleList(nn.Conv2d(deeper[s], decoder[s], 1) for s in range(len(decoder)))
        self.lateral = nn.ModuleList(nn.Conv2d(widths[s], decoder[s], 1) for s in range(len(decoder)))
        self.fuse = nn.ModuleList(
            ResidualBlock(width, width) if scale else ConvNorm(width, width) for scale, width in enumerate(decoder)
        )
        self.head = nn.Conv2d(decoder[0], 4 * config.num_outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to maps (B, 3 + C, H, W)."""
        features = [self.stem(functional.pixel_unshuffle(self.normalised(images), 2))]  # (B, F, H/2, W/2)
        for stage in self.stages:
            features.append(stage(features[-1]))
        merged = features[-1]  # (B, F, H/16, W/16)
        for scale in reversed(range(len(self.fuse))):
            raised = functional.interpolate(self.raise_to[scale](merged), scale_factor=2.0, mode="nearest")
            merged = self.fuse[scale](raised + self.lateral[scale](features[scale]))
        return functional.pixel_shuffle(self.head(merged), 2)
