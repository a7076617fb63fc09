"""`student`: a U-Net with residual connections over a MobileViT-type encoder.

Shvetsov et al. 2025, section 4: "a UNet architecture augmented with residual connections", an encoder of 9 million
parameters, 24,093,393 in all. timm's `mobilevitv2_150` has 9.83 million; the decoder's widths are chosen to come near
the total.
"""

from torch import nn

from cellmill.models.config import ModelConfig
from cellmill.models.networks.blocks import ResidualBlock
from cellmill.models.networks.unet import TimmUnet

__all__ = ["StudentNetwork"]


class StudentNetwork(TimmUnet):
    """Residual blocks fuse each scale, two but at full resolution."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, _fusing)


def _fusing(inputs: int, outputs: int, scale: int) -> nn.Module:
    return nn.Sequential(
        ResidualBlock(inputs, outputs),
        *([ResidualBlock(outputs, outputs)] if scale else []),
    )
