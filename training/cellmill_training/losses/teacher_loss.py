"""The teacher's loss: smoothed and decoupled cross-entropy, focal loss by class frequency, flow loss.

Source: Shvetsov et al. 2025, section 3. The paper gives no weights of the terms, no lambda and no gamma; the defaults
of `TeacherLossConfig` are ours and recorded with every run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cellmill.models.config import FLOW_CHANNELS
from cellmill_schemas.ontology import Ontology
from cellmill_training.losses.cell_loss import flow_error
from cellmill_training.losses.parts import LossParts, Targets
from cellmill_training.losses.sets import allowed_planes, mean_of_allowed, set_cross_entropy
from cellmill_training.losses.smoothing import smoothed_cross_entropy, smoothing_kernel, spectral_decoupling

__all__ = ["TeacherLoss", "TeacherLossConfig", "focal_loss", "inverse_frequency_weights"]


@dataclass(frozen=True)
class TeacherLossConfig:
    """Weights of the terms, and what shapes them."""

    cross_entropy_weight: float = 1.0
    """Of the smoothed cross-entropy."""
    focal_weight: float = 1.0
    """Of the focal loss."""
    flow_weight: float = 4.0
    """Of the mean squared error of unit flows inside nuclei."""
    decoupling: float = 0.01
    """Lambda of spectral decoupling."""
    focal_gamma: float = 2.0
    """Lin et al. 2017: how much certain pixels are turned down."""
    smoothing_side_px: int = 3
    """Window of label smoothing; the paper's authors name the method only."""
    smoothing_sigma_px: float = 1.0
    """Of the window's Gaussian."""


def inverse_frequency_weights(counts: Mapping[str, int], ontology: Ontology, *, most: float = 10.0) -> Tensor:
    """Weight of each class (C,), inverse to how many nuclei of it the training images hold.

    The mean over nuclei is 1: a batch as a whole weighs as it would without weights. No class weighs more than `most`
    times the mean, so that a handful of nuclei does not rule.

    Raises:
        ValueError: when a class has no nucleus: it cannot be learnt.
    """
    empty = [name for name in ontology.names if counts.get(name, 0) < 1]
    if empty:
        have = ", ".join(f"{name} {counts.get(name, 0)}" for name in ontology.names)
        raise ValueError(
            f"The training images hold no nucleus of {', '.join(empty)} (they hold {have}), so a network of ontology "
            f"{ontology.name!r} cannot learn it. Add images, change the split, or use an ontology without it."
        )
    total = sum(counts[name] for name in ontology.names)
    weights = [total / (len(ontology) * counts[name]) for name in ontology.names]  # sum of count * weight is total
    return torch.tensor([min(weight, most) for weight in weights], dtype=torch.float32)


def focal_loss(logits: Tensor, allowed: Tensor, class_weights: Tensor, gamma: float) -> Tensor:
    """Weighted focal loss (B, H, W): -weight (1 - p)^gamma log p, p the probability of the allowed classes.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5.

    Args:
        logits: (B, K, H, W).
        allowed: booleans (B, K, H, W); the weight of a set is the mean of its classes' weights.
        class_weights: (K,), background first.
        gamma: focusing parameter.
    """
    entropy = set_cross_entropy(logits, allowed)  # -log p
    # 1 - p = -expm1(-entropy) keeps its digits where p is near 1; the clamp keeps its power's gradient finite at 0.
    rest = (-torch.expm1(-entropy)).clamp(min=1e-6)
    return mean_of_allowed(class_weights, allowed) * rest**gamma * entropy


class TeacherLoss:
    """Section 3's loss for networks of the flows family."""

    def __init__(self, class_weights: Tensor, config: TeacherLossConfig | None = None) -> None:
        self.config = config or TeacherLossConfig()
        self.class_weights = torch.cat([torch.ones(1), class_weights.detach().cpu()])  # background weighs 1
        self._kernel = smoothing_kernel(self.config.smoothing_side_px, self.config.smoothing_sigma_px)

    def __call__(self, outputs: Tensor, targets: Targets) -> LossParts:
        """Loss of network outputs (B, 2 + K, H, W)."""
        config, bits = self.config, targets.allowed_bits
        logits = outputs[:, FLOW_CHANNELS:].float()
        allowed = allowed_planes(bits, logits.shape[1])
        known = ~allowed.all(dim=1)  # (B, H, W)
        num_known = known.sum().clamp(min=1)
        cross_entropy = (smoothed_cross_entropy(logits, bits, self._kernel) * known).sum() / num_known
        decoupling = spectral_decoupling(logits, known)
        focal = (focal_loss(logits, allowed, self.class_weights, config.focal_gamma) * known).sum() / num_known
        flow = flow_error(outputs.float(), targets)
        total = (
            config.cross_entropy_weight * (cross_entropy + config.decoupling * decoupling)
            + config.focal_weight * focal
            + config.flow_weight * flow
        )
        terms = {"cross_entropy": cross_entropy, "decoupling": decoupling, "focal": focal, "flow": flow}
        return LossParts(total, terms)
