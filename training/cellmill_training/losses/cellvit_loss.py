"""CellViT's losses for the hv family: nuclei (NP), horizontal and vertical distances (HV), types (NT).

Source: Hörst et al., "CellViT", Medical Image Analysis 2024, with the weights of its PanNuke configuration: NP focal
Tversky 1 + Dice 1; HV mean squared error 2.5 + that of gradients 8; NT cross-entropy 0.5 + Dice 0.2 + focal Tversky
0.5. Adjadj et al. 2025 ("Loss") use the same weights. CellViT's fourth branch (the tissue of the whole tile) says
nothing of cells and is left out.

Letters: B batch, K = 1 + C channels of the type branch (background first), H and W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cellmill_training.losses.parts import LossParts, Targets
from cellmill_training.losses.sets import allowed_planes, certain_classes, mean_of_allowed, set_cross_entropy

__all__ = ["CellVitLoss", "CellVitLossConfig", "dice_loss", "focal_tversky", "gradient_error", "sobel_kernels"]


@dataclass(frozen=True)
class CellVitLossConfig:
    """CellViT's weights."""

    nucleus_cross_entropy: float = 0.0
    """NP, cross-entropy; 0 as in CellViT's PanNuke configuration, 1 in place of focal Tversky for HoVer-Net's loss."""
    nucleus_tversky: float = 1.0
    """NP, focal Tversky."""
    nucleus_dice: float = 1.0
    """NP, Dice."""
    distance: float = 2.5
    """HV, mean squared error."""
    gradient: float = 8.0
    """HV, mean squared error of gradients."""
    type_cross_entropy: float = 0.5
    """NT, cross-entropy."""
    type_dice: float = 0.2
    """NT, Dice."""
    type_tversky: float = 0.5
    """NT, focal Tversky, summed over classes."""


def dice_loss(probabilities: Tensor, labels: Tensor, known: Tensor, *, smooth: float = 1e-3) -> Tensor:
    """1 - 2 |A B| / (|A| + |B|), summed over classes, over the pixels of the whole batch.

    Args:
        probabilities: (B, K, H, W).
        labels: one-hot (B, K, H, W) in float.
        known: booleans (B, H, W); other pixels count for neither side.
        smooth: added above and below, so that an absent class that is not predicted costs nothing.
    """
    there = known.unsqueeze(1)
    probabilities, labels = probabilities * there, labels * there
    both = (probabilities * labels).sum(dim=(0, 2, 3))
    each = probabilities.sum(dim=(0, 2, 3)) + labels.sum(dim=(0, 2, 3))
    return (1.0 - (2.0 * both + smooth) / (each + smooth)).sum()


def focal_tversky(
    probabilities: Tensor,
    labels: Tensor,
    known: Tensor,
    *,
    missed: float = 0.7,
    invented: float = 0.3,
    gamma: float = 4.0 / 3.0,
    smooth: float = 1e-6,
) -> Tensor:
    """(1 - Tversky index)^gamma, summed over classes (Abraham and Khan, ISBI 2019, with CellViT's constants).

    Args:
        probabilities: (B, K, H, W).
        labels: one-hot (B, K, H, W) in float.
        known: booleans (B, H, W).
        missed: weight of false negatives.
        invented: weight of false positives.
        gamma: focusing parameter.
        smooth: added above and below.
    """
    there = known.unsqueeze(1)
    probabilities, labels = probabilities * there, labels * there
    right = (probabilities * labels).sum(dim=(0, 2, 3))
    false_positive = probabilities.sum(dim=(0, 2, 3)) - right
    false_negative = labels.sum(dim=(0, 2, 3)) - right
    index = (right + smooth) / (right + missed * false_negative + invented * false_positive + smooth)
    return (1.0 - index).clamp(min=0.0).pow(gamma).sum()


def sobel_kernels(side: int = 5) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical derivative kernels (side, side): x / (x^2 + y^2) and y / (x^2 + y^2), 0 at the centre.

    Source: Graham et al., "HoVer-Net", Medical Image Analysis 2019, the gradients of its equation 3.
    """
    offsets = torch.arange(side, dtype=torch.float32) - side // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    squares = x**2 + y**2
    squares[side // 2, side // 2] = 1.0
    return x / squares, y / squares


def gradient_error(outputs: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """Mean squared error over nuclei of d/dx of the horizontal and d/dy of the vertical distances.

    Args:
        outputs: (B, 2, H, W), horizontal then vertical.
        targets: (B, 2, H, W).
        inside: booleans (B, H, W), pixels of nuclei.
    """
    kernels = torch.stack(sobel_kernels()).unsqueeze(1).to(outputs)  # (2, 1, 5, 5)
    pad = kernels.shape[-1] // 2
    # The difference of the gradients is the gradient of the difference.
    error = functional.conv2d(outputs - targets, kernels, padding=pad, groups=2) ** 2
    return (error * inside.unsqueeze(1)).sum() / (2.0 * inside.sum()).clamp(min=1.0)


class CellVitLoss:
    """Losses of the three branches; outputs are (B, 2 + 2 + K, H, W): NP logits, HV distances, NT logits."""

    def __init__(self, class_weights: Tensor | None = None, config: CellVitLossConfig | None = None) -> None:
        self.class_weights = None if class_weights is None else torch.cat([torch.ones(1), class_weights.cpu()])
        self.config = config or CellVitLossConfig()

    def __call__(self, outputs: Tensor, targets: Targets) -> LossParts:
        """Loss of one batch.

        Raises:
            ValueError: when the batch has no distances.
        """
        if targets.hv is None:
            raise ValueError("The hv family needs horizontal and vertical distances in the batch, got none.")
        outputs = outputs.float()
        types = outputs[:, 4:]
        allowed = allowed_planes(targets.allowed_bits, types.shape[1])
        terms = {
            **self._nucleus_terms(outputs[:, :2], allowed),
            **_distance_terms(outputs[:, 2:4], targets.hv, allowed, targets.flow_known),
            **self._type_terms(types, allowed),
        }
        weights = vars(self.config)
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return LossParts(total, terms)

    def _nucleus_terms(self, logits: Tensor, allowed: Tensor) -> dict[str, Tensor]:
        collapsed = torch.stack([allowed[:, 0], allowed[:, 1:].any(dim=1)], dim=1)
        labels, known = certain_classes(collapsed)
        probabilities = torch.softmax(logits, dim=1)
        entropy = (set_cross_entropy(logits, collapsed) * known).sum() / known.sum().clamp(min=1)
        return {
            "nucleus_cross_entropy": entropy,
            "nucleus_tversky": focal_tversky(probabilities, labels, known),
            "nucleus_dice": dice_loss(probabilities, labels, known),
        }

    def _type_terms(self, logits: Tensor, allowed: Tensor) -> dict[str, Tensor]:
        labels, certain = certain_classes(allowed)
        probabilities = torch.softmax(logits, dim=1)
        known = ~allowed.all(dim=1)
        entropy = set_cross_entropy(logits, allowed)  # open sets are respected; Dice and Tversky leave them out
        if self.class_weights is not None:
            entropy = entropy * mean_of_allowed(self.class_weights, allowed)
        return {
            "type_cross_entropy": (entropy * known).sum() / known.sum().clamp(min=1),
            "type_dice": dice_loss(probabilities, labels, certain),
            "type_tversky": focal_tversky(probabilities, labels, certain),
        }


def _distance_terms(outputs: Tensor, hv: Tensor, allowed: Tensor, outline_known: Tensor) -> dict[str, Tensor]:
    # Background has distance 0 in CellViT, so it counts, but only where the source says that it is background, and
    # nuclei count where their outline can be trusted.
    background = allowed[:, 0] & ~allowed[:, 1:].any(dim=1)
    known = background | outline_known
    error = ((outputs - hv) ** 2 * known.unsqueeze(1)).sum() / (2.0 * known.sum()).clamp(min=1.0)
    return {"distance": error, "gradient": gradient_error(outputs, hv, outline_known)}
