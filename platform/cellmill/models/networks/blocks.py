"""What the networks are made of, and what they share: normalisation inside, and the layout of the output.

Letters: B batch, F features, D width of a token, N tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellmill.models.config import ModelConfig

__all__ = ["CellNetwork", "ConvNorm", "Doubling", "RaisedTokens", "ResidualBlock", "TokenNorm"]


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
        """Features (B, F, H, W) to (B, outputs, H, W)."""
        return functional.relu(self.shortcut(features) + self.second(self.first(features)))


class Doubling(nn.Sequential):
    """Twice as many pixels each way: a transposed convolution without overlap, then a 3 x 3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.ConvTranspose2d(inputs, outputs, 2, 2), ConvNorm(outputs, outputs))


class RaisedTokens(nn.Sequential):
    """Tokens (B, D, h, w) doubled once for each of `widths`, to those widths one after another."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__(*(Doubling(a, b) for a, b in zip((inputs, *widths[:-1]), widths, strict=True)))


class TokenNorm(nn.LayerNorm):
    """Layer norm over the channels of each token, (B, D, h, w) to the same.

    Blocks of a frozen transformer differ in scale by orders of magnitude, and single channels stand out; decoders are
    given them normalised.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Each token by itself."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CellNetwork(nn.Module):
    """Images (B, 3, H, W) to maps (B, `config.num_outputs`, H, W), laid out as `config.channels` says."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.num_outputs = config.num_outputs
        mean = torch.tensor(config.pixel_mean_rgb).view(1, 3, 1, 1)
        std = torch.tensor(config.pixel_std_rgb).view(1, 3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """0..255 RGB to about zero mean and unit deviation."""
        return (images - self.pixel_mean) / self.pixel_std
