"""Cross-entropy where a label is the set of classes a pixel may have.

Letters: B batch, K = 1 + C channels of the class head (background first), H and W pixels.
"""

import torch
from torch import Tensor

__all__ = ["allowed_planes", "certain_classes", "mean_of_allowed", "set_cross_entropy"]


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


def certain_classes(allowed: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot classes (B, K, H, W) in float, and where (B, H, W) exactly one class is allowed.

    Pixels with an open class are 0 in every plane.
    """
    certain = allowed.sum(dim=1) == 1
    return (allowed & certain.unsqueeze(1)).float(), certain


def mean_of_allowed(weights: Tensor, allowed: Tensor) -> Tensor:
    """Mean (B, H, W) of the weights (K,) of the classes a pixel may have; 0 where none is allowed."""
    total = (allowed * weights.to(allowed.device).view(1, -1, 1, 1)).sum(dim=1)
    return total / allowed.sum(dim=1).clamp(min=1)
