"""Features of tiles: what an encoder sees in 112 um of tissue, as two vectors of fixed length.

Tiles uint8 (B, S, S, 3) at `TILE_MPP` in, features float32 (B, D) out. Any packaged or trained network serves (`lite`
needs no weights but its own), and any foundation model that `cellmill.models.vit_encoders` knows by name. Of the
encoder's deepest map, over all places of the tile: `mean`, which says what the tile is mostly made of, and `extremes`,
mean, deviation and maximum, in which a few cells of a rare type are not averaged away.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import numpy.typing as npt

from cellmill.models.vit_encoders import KNOWN_ENCODERS
from cellmill_training.samples import resampled

if TYPE_CHECKING:
    from torch import Tensor

    from cellmill.models.networks import CellNetwork

__all__ = ["TILE_MPP", "TILE_UM", "EncoderChoice", "TileEncoder", "feature_sets_of", "open_encoder", "tile_px"]

TILE_MPP = 0.5
"""Scale at which tiles are read, um/px."""
TILE_UM = 112.0
"""Side of a tile in the paper: 448 px at 40x."""

Pooling = Literal["mean", "extremes"]

_BATCH = 16


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder, and where it runs; small enough to travel to workers."""

    name: str
    """Packaged name, folder, models:/ URI, or a foundation model of `KNOWN_ENCODERS`."""
    weights: str = ""
    """Folder or file of a foundation model's weights; CELLMILL_ENCODERS or the hub unless given."""
    device: Literal["cpu", "cuda"] = "cpu"


def tile_px(tile_um: float = TILE_UM) -> int:
    """Side of a tile on the grid that tiles are read on."""
    return round(tile_um / TILE_MPP)


def feature_sets_of(names: tuple[str, ...]) -> tuple[tuple[str, Pooling], tuple[str, Pooling]]:
    """The two feature sets that classifiers are compared on: two encoders' means, or both poolings of one."""
    if len(names) == 1:
        return (names[0], "mean"), (names[0], "extremes")
    first, second = names
    return (first, "mean"), (second, "mean")


class TileEncoder:
    """An encoder ready to work."""

    def __init__(self, network: "CellNetwork", deepest: "Callable[[Tensor], Tensor]", *, digest: str, device: str):
        """Wrap a network.

        Args:
            network: in evaluation mode; sides must be multiples of its config's.
            deepest: raw RGB (B, 3, H, W) to the encoder's deepest map (B, D, h, w).
            digest: changes with graph and weights.
            device: where torch runs it.
        """
        self._network, self._deepest, self._device = network.to(device), deepest, device
        self.digest = digest

    def features(
        self, tiles: npt.NDArray[np.uint8], *, mpp: float = TILE_MPP
    ) -> dict[Pooling, npt.NDArray[np.float32]]:
        """Both vectors of each tile (B, H, W, 3), by pooling.

        Tiles are brought to the network's own scale, and mirrored at the right and bottom up to a size it takes.
        """
        import torch

        parts: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
        for start in range(0, len(tiles), _BATCH):
            fitting = np.stack([self._fitting(tile, mpp) for tile in tiles[start : start + _BATCH]])
            batch = torch.from_numpy(fitting).permute(0, 3, 1, 2).to(self._device, torch.float32)
            with torch.inference_mode():
                found = self._deepest(batch).float().flatten(2)  # (B, D, places)
                mean = found.mean(dim=2)
                extremes = torch.cat([mean, found.std(dim=2, correction=0), found.amax(dim=2)], dim=1)
            parts.append((mean.cpu().numpy(), extremes.cpu().numpy()))
        return {
            "mean": np.concatenate([mean for mean, _ in parts]),
            "extremes": np.concatenate([extremes for _, extremes in parts]),
        }

    def _fitting(self, tile: npt.NDArray[np.uint8], mpp: float) -> npt.NDArray[np.uint8]:
        config = self._network.config
        tile = tile if mpp == config.target_mpp else resampled(tile, mpp=mpp, target_mpp=config.target_mpp)
        multiple = config.multiple_px
        below, right = (-tile.shape[0] % multiple, -tile.shape[1] % multiple)
        return np.asarray(cv2.copyMakeBorder(tile, 0, below, 0, right, cv2.BORDER_REFLECT_101), np.uint8)


@functools.lru_cache(maxsize=4)
def open_encoder(choice: EncoderChoice) -> TileEncoder:
    """The encoder, opened once a process.

    Raises:
        ValueError: when there is no such network, or its weights cannot be had (`ModelNotFoundError`,
            `EncoderWeightsError`).
    """
    import torch

    from cellmill.models.feature_cache import encoder_digest
    from cellmill.models.networks import TokenNetwork

    if choice.device == "cpu":
        torch.set_num_threads(1)  # never following the number of workers: sums may depend on it
    if choice.name in KNOWN_ENCODERS:
        network = _foundation_model(choice)
        assert isinstance(network, TokenNetwork)
        return TileEncoder(
            network, lambda x: network.features(x)[-1], digest=encoder_digest(network), device=choice.device
        )
    from cellmill.models.loading import load_model

    loaded = load_model(choice.name, encoders=choice.weights or None)
    network = loaded.build()
    return TileEncoder(network, _deepest_of(network), digest=loaded.digest, device=choice.device)


def _foundation_model(choice: EncoderChoice) -> "CellNetwork":
    """A known encoder with tokens of 8 um: tiles of 112 um are 14 x 14 tokens, near what these were trained on."""
    from cellmill.models.config import builtin_config
    from cellmill.models.encoder_weights import pretrained

    config = builtin_config("teacher", encoder=choice.name, target_mpp=0.25)  # 16 px a token
    _, network = pretrained(replace(config, target_mpp=TILE_MPP), source=choice.weights or None)
    return network.eval()


def _deepest_of(network: "CellNetwork") -> "Callable[[Tensor], Tensor]":
    """What gives the deepest map of a network's encoder."""
    from torch.nn import functional

    from cellmill.models.networks import TokenNetwork
    from cellmill.models.networks.lite import LiteNetwork
    from cellmill.models.networks.unet import TimmUnet

    if isinstance(network, TokenNetwork):
        return lambda pixels: network.features(pixels)[-1]
    if isinstance(network, TimmUnet):
        return lambda pixels: network.encoder(network.normalised(pixels))[-1]
    assert isinstance(network, LiteNetwork), "every architecture is one of these"

    def deepest(pixels: "Tensor") -> "Tensor":
        features = network.stem(functional.pixel_unshuffle(network.normalised(pixels), 2))
        for stage in network.stages:
            features = stage(features)
        return features

    return deepest
