"""What `teacher` and `cellvit` share: tokens of a transformer first, then a decoder of tokens and pixels.

The two halves can be called one by one, so that a frozen encoder's tokens are computed once and kept
(`cellmill.models.feature_cache`) while the decoder is trained on them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from cellmill.models.config import ModelConfig
from cellmill.models.networks.blocks import CellNetwork
from cellmill.models.networks.vit_encoder import VitTokens

__all__ = ["TokenNetwork", "split_tokens"]


class TokenNetwork(CellNetwork):
    """A decoder over the tokens of a vision transformer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.vit is not None, "the config checks this"
        # Weights in a file of their own are filled in by `encoder_weights`; random ones would be gigabytes for nothing.
        with torch.device("meta") if config.vit.sha256 else nullcontext():
            self.encoder = VitTokens(config.vit)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W), raw RGB, to the tokens after each chosen block, (B, D, h, w) each."""
        return self.encoder(self.normalised(images))

    @abstractmethod
    def decode(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Maps of images (B, 3, H, W) whose `features` are known; these may be float16."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to maps (B, `config.num_outputs`, H, W)."""
        return self.decode(images, self.features(images))


def split_tokens(features: Sequence[Tensor], num_doublings: int) -> tuple[list[Tensor], Tensor]:
    """Tokens for the scales between pixels and tokens, finest first, and those where decoding starts.

    Shallow blocks go to fine scales, one each; what is left over, the deepest block or more, starts together: (B, D,
    h, w) each, and (B, k x D, h, w).
    """
    lateral, deepest = list(features[: num_doublings - 1]), features[num_doublings - 1 :]
    return lateral, torch.cat(list(deepest), dim=1)
