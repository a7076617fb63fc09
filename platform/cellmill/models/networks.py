"""Networks: pixels in, unit flows and class logits out.

Every network maps images float32 (B, 3, H, W), raw 0..255 RGB, to (B, 2 + 1 + C, H, W): flows dy and dx at unit scale,
then logits with background first. H and W are multiples of 16 (`lite`) or 64 (`student`,
whose attention works on pairs of pixels at stride 32).

Letters: B batch, C classes, F features.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellmill.models.config import ModelConfig

__all__ = ["CellNetwork", "build_model", "count_parameters"]


class ConvNorm(nn.Sequential):
    """Convolution and batch norm, with ReLU unless `activate` is off."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, activate: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if activate:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a residual connection; a 1 x 1 shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs)
        self.second = ConvNorm(outputs, outputs, activate=False)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, kernel=1, activate=False)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.shortcut(features) + self.second(self.first(features)))


class CellNetwork(nn.Module):
    """What the two networks share: normalisation inside, and the layout of the output."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_outputs = config.num_outputs
        mean = torch.tensor(config.pixel_mean_rgb).view(1, 3, 1, 1)
        std = torch.tensor(config.pixel_std_rgb).view(1, 3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """0..255 RGB to about zero mean and unit deviation."""
        return (images - self.pixel_mean) / self.pixel_std


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


class StudentNetwork(CellNetwork):
    """U-Net decoder with residual blocks over a timm encoder (MobileViT v2 by default)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        # Slow to import and needed by this network only.
        import timm
        from timm.models import FeatureInfo

        self.encoder = timm.create_model(config.encoder, pretrained=False, features_only=True)
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
        self.fuse = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(deeper[s] + skips[s], decoder[s]),
                *([ResidualBlock(decoder[s], decoder[s])] if s else []),
            )
            for s in range(len(decoder))
        )
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


def build_model(config: ModelConfig) -> CellNetwork:
    """The network of `config` with fresh random weights."""
    return StudentNetwork(config) if config.architecture == "student" else LiteNetwork(config)


def count_parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
