"""What every loss takes and gives, so that one loop trains every network.

Letters: B batch, K = 1 + C channels of the class head (background first), H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Loss", "LossParts", "Targets"]


@dataclass(frozen=True)
class Targets:
    """What is known of each pixel of a batch."""

    allowed_bits: Tensor
    """Integer (B, H, W): the set of classes a pixel may have; bit 0 background, bit 1 + c class c, all bits nothing."""
    flow: Tensor
    """float32 (B, 2, H, W), dy then dx, unit length inside nuclei."""
    flow_known: Tensor
    """bool (B, H, W): pixels of a nucleus whose outline can be trusted."""
    hv: Tensor | None = None
    """float32 (B, 2, H, W), horizontal then vertical distances, for the hv family."""
    teacher: Tensor | None = None
    """float32 (B, 2 + K, H, W): the outputs of a teacher of the flows family, for distillation."""

    @staticmethod
    def unknown(num_images: int) -> "Targets":
        """Of images of which nothing is known, for self-supervision; without pixels, so that nothing can use them."""
        return Targets(
            allowed_bits=torch.zeros(num_images, 0, 0, dtype=torch.int32),
            flow=torch.zeros(num_images, 2, 0, 0),
            flow_known=torch.zeros(num_images, 0, 0, dtype=torch.bool),
        )

    def to(self, device: torch.device) -> "Targets":
        """The same on another device."""
        return Targets(
            allowed_bits=self.allowed_bits.to(device),
            flow=self.flow.to(device),
            flow_known=self.flow_known.to(device),
            hv=None if self.hv is None else self.hv.to(device),
            teacher=None if self.teacher is None else self.teacher.to(device),
        )

    def taught(self, teacher: Tensor) -> "Targets":
        """The same with what a teacher says."""
        return replace(self, teacher=teacher)


@dataclass(frozen=True)
class LossParts:
    """One step's loss."""

    total: Tensor
    """What is minimised."""
    terms: Mapping[str, Tensor]
    """Its terms before weighting, by name, for logs and curves."""


class Loss(Protocol):
    """Network outputs and targets to a loss."""

    def __call__(self, outputs: Tensor, targets: Targets) -> LossParts:
        """Loss of one batch."""
        ...
