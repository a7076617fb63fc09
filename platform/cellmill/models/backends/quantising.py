"""The network with what surrounds it in one torch module: uint8 pixels in, quantised core maps out.

Softmax, cropping to the core and quantisation belong to the graph: what leaves a device is integers, 4 bytes of flow
and one byte a class for each pixel.
"""

import torch
from torch import Tensor, nn

from cellmill.instances.maps import FLOW_SCALE, PROB_SCALE
from cellmill.models.loading import LoadedModel

__all__ = ["QuantisingNetwork"]

_FLOW_LIMIT = 32767.0


class QuantisingNetwork(nn.Module):
    """`model`'s network in evaluation mode, from tiles to `TileMaps`' integers."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.network = model.build().eval()
        self.margin_px = model.config.margin_px

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (B, H, W, 3) uint8 to flow (B, 2, h, w) int16 and prob (B, C + 1, h, w) uint8 of their cores."""
        images = tiles.permute(0, 3, 1, 2).to(torch.float32)  # (B, 3, H, W), 0..255
        out = self.network(images)  # (B, 2 + C + 1, H, W)
        if self.margin_px:
            out = out[:, :, self.margin_px : -self.margin_px, self.margin_px : -self.margin_px]
        out = out.float()
        flow = torch.clamp(out[:, :2] * FLOW_SCALE, -_FLOW_LIMIT, _FLOW_LIMIT).round()
        prob = (torch.softmax(out[:, 2:], dim=1) * PROB_SCALE).round()
        return flow.to(torch.int16), prob.to(torch.uint8)
