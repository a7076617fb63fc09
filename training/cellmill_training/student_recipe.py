"""Recipe of the packaged `lite`, and of `student` on the same data.

Source: the student of Shvetsov et al. 2025 (lightweight cell model: flows and types from one decoder, Cellpose flows)
without a teacher; training data are the small open sets of `docs/models/training.md`.
Command: `python jobs/train_student.py --data ../shared/data --out runs/lite --time-budget 5400`
Hours: 1.5 on two CPU cores. Figures to expect: those of `cellmill/models/packaged/lite/MODEL_CARD.md`.
"""

from dataclasses import dataclass, field

from cellmill.models.config import Architecture
from cellmill_training.augment import AugmentConfig
from cellmill_training.loop import LoopConfig
from cellmill_training.mixture import MixtureConfig

__all__ = ["CLASS_WEIGHTS", "StudentRecipe"]

CLASS_WEIGHTS: dict[str, float] = {
    "neoplastic": 1.0,
    "lymphocyte": 0.7,
    "connective": 1.2,
    "dead": 2.0,
    "epithelial": 1.0,
    "macrophage": 2.0,
    "neutrophil": 2.0,
}
"""Weight of each class in the type loss: rarer classes count more, no more than threefold."""


@dataclass(frozen=True)
class StudentRecipe:
    """Everything that decides what weights come out."""

    architecture: Architecture = "lite"
    """`lite` for two CPU cores, `student` for the paper's size."""
    batch_size: int = 12
    """Crops a step and worker."""
    seed: int = 20
    """Of initial weights and crops."""
    prefetch: int = 4
    """Batches made ahead by a thread while a step runs; 0 makes them in line."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """Shares of the sources."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Geometry and colour of crops."""
    num_synthetic_regions: int = 72
    """Regions of synthetic tissue, 448 px wide."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(time_budget_seconds=5400.0))
    """Budget, rates, averages."""
