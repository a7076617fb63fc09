"""The training loss: set-valued cross-entropy for what a pixel is, and a flow loss inside known nuclei.

Letters: B batch, K = 1 + C channels of the class head (background first), H and W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cellmill.models.config import FLOW_CHANNELS

__all__ = ["CellLoss", "LossParts", "allowed_planes", "set_cross_entropy"]


def allowed_planes(bits: Tensor, num_channels: int) -> Tensor:
    """Bit sets (B, H, W) of any integer type to booleans (B, K, H, W)."""
    shifts = torch.arange(num_channels, device=bits.device).view(1, -1, 1, 1)
    return ((bits.to(torch.int64).unsqueeze(1) >> shifts) & 1).bool()


def set_cross_entropy(logits: Tensor, allowed: Tensor) -> Tensor:
    """-log of the total probability of the allowed classes, per pixel.

    Equals cross-entropy where one class is allowed, and is 0 where all are. Where none is, it is 0 too.

    Args:
        logits: (B, K, H, W).
        allowed: booleans (B, K, H, W).
    """
    total = torch.logsumexp(logits, dim=1)  # (B, H, W)
    inside = torch.logsumexp(logits.masked_fill(~allowed, -1e4), dim=1)
    return torch.where(allowed.any(dim=1), total - inside, torch.zeros_like(total))


@dataclass(frozen=True)
class LossParts:
    """The terms of one step's loss; `total` is what is minimised."""

    total: Tensor
    detection: Tensor
    typing: Tensor
    flow: Tensor


class CellLoss:
    """Detection (background or some nucleus), type given a nucleus, and flow.

    -log P(allowed) is the sum of a detection term and a type term; they are kept apart because only the type term is
    weighted by class rarity, and because in pixels whose label leaves background open (the body of a macrophage
    outline, unlabelled stroma) the type counts as much as the network itself believes in a nucleus there.
    """

    def __init__(self, class_weights: Tensor, *, typing_weight: float = 0.5, flow_weight: float = 4.0) -> None:
        self.class_weights = class_weights  # (C,)
        self.typing_weight = typing_weight
        self.flow_weight = flow_weight

    def __call__(self, outputs: Tensor, *, allowed_bits: Tensor, flow: Tensor, flow_known: Tensor) -> LossParts:
        """Loss of network outputs (B, 2 + K, H, W).

        Args:
            outputs: of the network.
            allowed_bits: (B, H, W) integer bit sets.
            flow: (B, 2, H, W) unit targets.
            flow_known: (B, H, W) booleans.
        """
        logits = outputs[:, FLOW_CHANNELS:]
        allowed = allowed_planes(allowed_bits, logits.shape[1])
        nucleus_logit = torch.logsumexp(logits[:, 1:], dim=1)
        collapsed = torch.stack([logits[:, 0], nucleus_logit], dim=1)
        collapsed_allowed = torch.stack([allowed[:, 0], allowed[:, 1:].any(dim=1)], dim=1)
        detection = set_cross_entropy(collapsed, collapsed_allowed).mean()

        types = allowed[:, 1:]
        believed = torch.sigmoid(nucleus_logit - logits[:, 0]).detach()
        certain = torch.where(allowed[:, 0], believed, torch.ones_like(believed))
        rarity = (types * self.class_weights.view(1, -1, 1, 1)).sum(dim=1) / types.sum(dim=1).clamp(min=1)
        informative = types.any(dim=1) & ~types.all(dim=1)
        weight = certain * rarity * informative
        typing = (set_cross_entropy(logits[:, 1:], types) * weight).sum() / (weight.sum() + 100.0)

        known = flow_known.unsqueeze(1)
        error = functional.mse_loss(outputs[:, :FLOW_CHANNELS], flow, reduction="none") * known
        flow_loss = error.sum() / (2.0 * known.sum() + 100.0)
        total = detection + self.typing_weight * typing + self.flow_weight * flow_loss
        return LossParts(total=total, detection=detection, typing=typing, flow=flow_loss)
