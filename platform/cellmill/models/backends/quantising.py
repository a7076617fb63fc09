"""The network with what surrounds it in one torch module: uint8 pixels in, quantised core maps out.

Softmax, cropping to the core and quantisation belong to the graph: what leaves a device is integers, 4 bytes of
vectors and one byte a class for each pixel.
"""

import torch
from torch import Tensor, nn

from cellmill.instances.maps import FLOW_SCALE, HV_SCALE, PROB_SCALE
from cellmill.models.loading import LoadedModel
from cellmill.models.networks import TokenNetwork
from cellmill.models.outputs import vectors_and_prob

__all__ = ["QuantisingNetwork"]

_LIMIT = 32767.0


class QuantisingNetwork(nn.Module):
    """`model`'s network in evaluation mode, from tiles to `TileMaps`' integers."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.network = model.build().eval()
        if isinstance(self.network, TokenNetwork):
            self.network.encoder.settle(model.config.tile_px)
        self.config = model.config
        self.margin_px = model.config.margin_px
        self.scale = FLOW_SCALE if model.config.decoder == "flows" else HV_SCALE

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (B, H, W, 3) uint8 to vectors (B, 2, h, w) int16 and prob (B, C + 1, h, w) uint8 of their cores."""
        images = tiles.permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, H, W), 0..255
        out = self.network(images)  # (B, config.num_outputs, H, W)
        if self.margin_px:
            out = out[:, :, self.margin_px : -self.margin_px, self.margin_px : -self.margin_px]
        vectors, prob = vectors_and_prob(out.float(), self.config)
        vectors = torch.clamp(vectors * self.scale, -_LIMIT, _LIMIT).round()
        return vectors.to(torch.int16), (prob * PROB_SCALE).round().to(torch.uint8)
