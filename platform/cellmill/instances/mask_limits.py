"""What a mask of the flows decoder must meet to stand as a cell; part of a model: networks are not equally sure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["MaskLimits"]


@dataclass(frozen=True)
class MaskLimits:
    """Limits that are best chosen on a network's own validation images; `benchmarks/decoder_settings.py` tries them."""

    flow_error_max: float = 0.4
    """Masks whose own flow differs from the predicted flow by more (mean square) are dropped; Cellpose's value."""
    detection_prob_min: float = 0.0
    """Masks whose mean probability of not being background, holes not filled, is lower are dropped."""

    def __post_init__(self) -> None:
        if not self.flow_error_max > 0 or not 0 <= self.detection_prob_min < 1:
            raise ValueError(
                "flow_error_max must be positive and detection_prob_min lie in 0..1, got "
                f"{self.flow_error_max} and {self.detection_prob_min}."
            )

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "MaskLimits":
        """Parse what `dataclasses.asdict` gives."""
        return MaskLimits(float(document["flow_error_max"]), float(document["detection_prob_min"]))
