"""Distillation: a student learns a teacher's probabilities and flows beside the labels.

Source: Hinton et al. 2015 ("Distilling the Knowledge in a Neural Network", section 2) as used by Shvetsov et al. 2025,
section 4, who found T = 14, alpha = 0.3 and beta = 0.7 best and name them "the balancing coefficients" of "the
distillation and student losses". That is read here in the order of mention: alpha weighs T^2 x KL, beta the hard
loss. `reading` turns it round, and the sweep tries both.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from cellmill.models.config import FLOW_CHANNELS
from cellmill_training.losses.parts import Loss, LossParts, Targets

__all__ = ["DistillationConfig", "DistillationLoss", "Reading", "soft_divergence", "taught_flow_error"]

Reading = Literal["alpha_soft", "alpha_hard"]


@dataclass(frozen=True)
class DistillationConfig:
    """Temperature and balance."""

    temperature: float = 14.0
    """T: logits are divided by it, on both sides, before they become probabilities."""
    alpha: float = 0.3
    """First balancing coefficient."""
    beta: float = 0.7
    """Second balancing coefficient."""
    reading: Reading = "alpha_soft"
    """Which of the two weighs the divergence from the teacher; the other weighs the loss on labels."""
    flow_weight: float = 1.0
    """Of the distance to the teacher's flows, times the soft weight; 0 leaves flows to the labels."""

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.alpha < 0 or self.beta < 0 or self.flow_weight < 0:
            raise ValueError(
                "Distillation needs a temperature above 0 and weights not below 0, got temperature "
                f"{self.temperature}, alpha {self.alpha}, beta {self.beta}, flow_weight {self.flow_weight}."
            )

    @property
    def soft_weight(self) -> float:
        """Of what the teacher says."""
        return self.alpha if self.reading == "alpha_soft" else self.beta

    @property
    def hard_weight(self) -> float:
        """Of what the labels say."""
        return self.beta if self.reading == "alpha_soft" else self.alpha


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over pixels of KL(teacher || student) at temperature T.

    T^2 keeps its gradient of one size for every temperature (Hinton et al. 2015, end of section 2).

    Args:
        student: logits (B, K, H, W).
        teacher: logits (B, K, H, W).
        temperature: T.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    return temperature**2 * divergence.mean()


def taught_flow_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance to the teacher's flows, each pixel by the teacher's own belief that it lies in a nucleus.

    Args:
        student: outputs (B, 2 + K, H, W).
        teacher: outputs (B, 2 + K, H, W).
    """
    believed = 1.0 - torch.softmax(teacher[:, FLOW_CHANNELS:], dim=1)[:, :1]  # (B, 1, H, W)
    error = (student[:, :FLOW_CHANNELS] - teacher[:, :FLOW_CHANNELS]) ** 2
    return (error * believed).sum() / (2.0 * believed.sum()).clamp(min=1.0)


class DistillationLoss:
    """Soft loss towards the teacher and a hard loss towards the labels."""

    def __init__(self, hard: Loss, config: DistillationConfig | None = None) -> None:
        self.hard = hard
        self.config = config or DistillationConfig()

    def __call__(self, outputs: Tensor, targets: Targets) -> LossParts:
        """Loss of network outputs (B, 2 + K, H, W).

        Raises:
            ValueError: when the batch has no teacher's outputs, or they are of another ontology.
        """
        taught = targets.teacher
        if taught is None:
            raise ValueError("Distillation needs the teacher's outputs in the batch, got none.")
        if taught.shape != outputs.shape:
            raise ValueError(
                f"The teacher's outputs are {tuple(taught.shape)}, the student's {tuple(outputs.shape)}: both must be "
                "of the flows family, one ontology and one crop."
            )
        student, teacher = outputs.float(), taught.float()
        config = self.config
        hard = self.hard(outputs, targets)
        soft = soft_divergence(student[:, FLOW_CHANNELS:], teacher[:, FLOW_CHANNELS:], config.temperature)
        flow = taught_flow_error(student, teacher)
        total = config.soft_weight * (soft + config.flow_weight * flow) + config.hard_weight * hard.total
        return LossParts(total, {**hard.terms, "soft": soft, "taught_flow": flow})
