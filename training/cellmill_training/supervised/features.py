"""Batches with what a frozen encoder says of their images, computed once and kept on disk."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from cellmill.models.feature_cache import FeatureCache
from cellmill.models.networks import TokenNetwork
from cellmill_training.mixture import Batch

__all__ = ["DecodedFeatures", "with_features"]


class DecodedFeatures(nn.Module):
    """A network over a frozen encoder, called with the encoder's features."""

    def __init__(self, network: TokenNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, *features: Tensor) -> Tensor:
        """Images (B, 3, H, W) and their features to maps, without the encoder."""
        return self.network.decode(images, features)


def with_features(batches: Iterator[Batch], cache: FeatureCache) -> Iterator[Batch]:
    """The same batches with features; what the cache lacks is computed and kept."""
    for batch in batches:
        with torch.no_grad():
            yield replace(batch, features=cache.features(batch.images.numpy()))
