"""`resnet50_unet`: the baseline the teacher is compared with (Shvetsov et al. 2025, section 3, table 2).

A ResNet50 that starts from ImageNet weights and is trained with the rest, under a plain U-Net decoder (Ronneberger et
al., MICCAI 2015: two 3 x 3 convolutions a scale). The paper gives neither the decoder's widths nor a parameter count.
"""

from torch import nn

from cellmill.models.config import ModelConfig
from cellmill.models.networks.blocks import ConvNorm
from cellmill.models.networks.unet import TimmUnet

__all__ = ["Resnet50Unet"]


class Resnet50Unet(TimmUnet):
    """Two convolutions fuse each scale."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, _fusing)


def _fusing(inputs: int, outputs: int, scale: int) -> nn.Module:
    return nn.Sequential(ConvNorm(inputs, outputs), ConvNorm(outputs, outputs))
