"""What a network's channels say, read: vectors for a decoder and class probabilities, whichever family it is of."""

import torch
from torch import Tensor

from cellmill.models.config import ModelConfig

__all__ = ["vectors_and_prob"]


def vectors_and_prob(outputs: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Outputs (B, K, H, W) as vectors (B, 2, H, W) and probabilities (B, C + 1, H, W), background first.

    Flows: dy and dx, and the softmax of the class logits. Hv: horizontal and vertical distances; the nuclear branch
    says how likely a pixel is background, the type branch how the rest is shared among the classes (its own background
    is left out), as `cellmill.instances.maps.HvMaps` has it.
    """
    channels = config.channels
    logits = outputs[:, channels["type"]]
    if config.decoder == "flows":
        return outputs[:, channels["flow"]], torch.softmax(logits, dim=1)
    background, nucleus = torch.softmax(outputs[:, channels["nucleus"]], dim=1).split(1, dim=1)
    return outputs[:, channels["hv"]], torch.cat([background, nucleus * torch.softmax(logits[:, 1:], dim=1)], dim=1)
