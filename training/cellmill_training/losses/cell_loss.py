"""The loss of students without a teacher: set-valued cross-entropy, and a flow loss inside known nuclei.

Letters: B batch, K = 1 + C channels of the class head (background first), H and W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cellmill.models.config import FLOW_CHANNELS
from cellmill_training.losses.parts import LossParts, Targets
from cellmill_training.losses.sets import allowed_planes, mean_of_allowed, set_cross_entropy

__all__ = ["CellLoss", "flow_error"]

_FEW_PIXELS = 100.0
"""Added to a mean's denominator, so that a batch with next to no nuclei does not shout."""


def flow_error(outputs: Tensor, targets: Targets) -> Tensor:
    """Mean squared error of the flows over pixels of nuclei whose outline can be trusted."""
    known = targets.flow_known.unsqueeze(1)
    error = functional.mse_loss(outputs[:, :FLOW_CHANNELS], targets.flow, reduction="none") * known
    return error.sum() / (2.0 * known.sum() + _FEW_PIXELS)


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

    def __call__(self, outputs: Tensor, targets: Targets) -> LossParts:
        """Loss of network outputs (B, 2 + K, H, W)."""
        logits = outputs[:, FLOW_CHANNELS:]
        allowed = allowed_planes(targets.allowed_bits, logits.shape[1])
        nucleus_logit = torch.logsumexp(logits[:, 1:], dim=1)
        collapsed = torch.stack([logits[:, 0], nucleus_logit], dim=1)
        collapsed_allowed = torch.stack([allowed[:, 0], allowed[:, 1:].any(dim=1)], dim=1)
        detection = set_cross_entropy(collapsed, collapsed_allowed).mean()

        types = allowed[:, 1:]
        believed = torch.sigmoid(nucleus_logit - logits[:, 0]).detach()
        certain = torch.where(allowed[:, 0], believed, torch.ones_like(believed))
        informative = types.any(dim=1) & ~types.all(dim=1)
        weight = certain * mean_of_allowed(self.class_weights, types) * informative
        typing = (set_cross_entropy(logits[:, 1:], types) * weight).sum() / (weight.sum() + _FEW_PIXELS)

        flow = flow_error(outputs, targets)
        total = detection + self.typing_weight * typing + self.flow_weight * flow
        return LossParts(total, {"detection": detection, "typing": typing, "flow": flow})
