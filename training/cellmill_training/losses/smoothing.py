"""Spatially varying label smoothing and spectral decoupling, both for labels that may leave a class open.

Letters: B batch, K = 1 + C channels of the class head (background first), H and W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cellmill_training.losses.sets import allowed_planes, set_cross_entropy

__all__ = ["smoothed_cross_entropy", "smoothing_kernel", "spectral_decoupling"]


def smoothing_kernel(side: int = 3, sigma: float = 1.0) -> Tensor:
    """Weights (side, side) of a pixel's own label and its neighbours' labels, summing to 1.

    A Gaussian whose centre is replaced by the sum of its neighbours (Islam and Glocker, "Spatially Varying Label
    Smoothing", IPMI 2021, section 2), so that a pixel's own label has weight 1/2 and neighbours share the rest.

    Raises:
        ValueError: when the side is even or below 3.
    """
    if side < 3 or side % 2 == 0:
        raise ValueError(f"The side of a smoothing window must be an odd number of at least 3 px, got {side}.")
    offsets = torch.arange(side, dtype=torch.float32) - side // 2
    weights = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2.0 * sigma**2))
    weights[side // 2, side // 2] = 0.0
    weights /= 2.0 * weights.sum()
    weights[side // 2, side // 2] = 0.5
    return weights


def smoothed_cross_entropy(logits: Tensor, bits: Tensor, kernel: Tensor) -> Tensor:
    """Cross-entropy (B, H, W) against labels smoothed over their neighbourhood.

    It is the weighted sum, over the window's pixels j, of -log P(label set of j). Where every label is one class that
    is the cross-entropy against the smoothed one-hot labels of the paper, term by term; a neighbour of which nothing
    is known adds 0. Beyond the border the nearest label is repeated.

    Args:
        logits: (B, K, H, W).
        bits: (B, H, W) integer bit sets.
        kernel: of `smoothing_kernel`.
    """
    window = kernel.to(logits).view(1, 1, *kernel.shape)
    pad = kernel.shape[0] // 2
    loss = torch.zeros_like(logits[:, 0])
    for value in torch.unique(bits).tolist():  # a batch holds a dozen different sets at most
        here = functional.pad((bits == value).unsqueeze(1).to(logits.dtype), (pad,) * 4, mode="replicate")
        share = functional.conv2d(here, window)[:, 0]  # (B, H, W)
        allowed = allowed_planes(torch.full_like(bits[:1, :1, :1], value), logits.shape[1])
        loss = loss + share * set_cross_entropy(logits, allowed.expand_as(logits))
    return loss


def spectral_decoupling(logits: Tensor, known: Tensor) -> Tensor:
    """Half the mean squared length of the logits over known pixels: lambda times this is added to a loss.

    Pezeshki et al., "Gradient Starvation", NeurIPS 2021, "spectral decoupling". It takes the place of weight
    decay on what the network says, so that features are not given up once others explain the labels.

    Args:
        logits: (B, K, H, W).
        known: booleans (B, H, W); elsewhere a network may say what it likes.
    """
    squares = (logits**2).sum(dim=1) * known
    return 0.5 * squares.sum() / known.sum().clamp(min=1)
