"""What a weak-label chain does, but for the data: plain settings of its four phases."""

from dataclasses import dataclass, field
from typing import Literal

from cellmill_training.relabel.crops import CropConfig
from cellmill_training.relabel.learning import LearnConfig
from cellmill_training.weak.finding import FindingConfig
from cellmill_training.weak.nucleus_networks import NucleusNetworkConfig
from cellmill_training.weak.nucleus_training import NucleusFit

__all__ = ["TuningConfig", "WeakChainRecipe"]


@dataclass(frozen=True)
class TuningConfig:
    """Phase IV: fine-tuning the student on so many expert labels of each class."""

    counts: tuple[int, ...] = (100, 250, 400, 550, 750, 850, 1000, 1250, 1500, 1750, 1900)
    """Expert nuclei of each class, for training and validation together; what is swept."""
    validation_share: float = 0.2
    """Of them."""
    learning_rates: tuple[float, ...] = (5e-5, 1e-4, 5e-4, 1e-3)
    """Tried for each count; validation accuracy chooses."""
    dropouts: tuple[float, ...] = (0.0, 0.25, 0.5)
    """Tried with each rate."""
    learn: LearnConfig = field(default_factory=lambda: LearnConfig(encoder="rccnet", weights="random"))
    """Epochs and batches; encoder and weights are the student's."""
    test_on: Literal["other_nuclei", "other_slides"] = "other_slides"
    """What is tested on: nuclei that were not drawn, as in the paper, where rows have test sets of their own and nuclei
    of one slide are on both sides; or the slides of the expert's test split, the same for every row."""

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 2 or not self.learning_rates or not self.dropouts:
            raise ValueError(
                "Fine-tuning needs counts of 2 or more, a learning rate and a dropout, got "
                f"{self.counts}, {self.learning_rates} and {self.dropouts}."
            )
        if not 0.0 < self.validation_share < 1.0:
            raise ValueError(f"validation_share must be above 0 and below 1, got {self.validation_share}.")


@dataclass(frozen=True)
class WeakChainRecipe:
    """Everything that decides what networks come out, besides the data."""

    networks: tuple[NucleusNetworkConfig, ...] = (
        NucleusNetworkConfig("unet"),
        NucleusNetworkConfig("unetplusplus", widths=(32, 64, 128, 256, 512)),
    )
    """Phase I: segmenters to train; the one with the best Dice on the test split goes on."""
    nuclei: NucleusFit = field(default_factory=NucleusFit)
    """Phase I: patches, budget and rates."""
    finding: FindingConfig = field(default_factory=FindingConfig)
    """From probabilities to nuclei."""
    crop: CropConfig = field(
        default_factory=lambda: CropConfig(side_px=32, context_px=0, context_mpp=0.25, framing="window")
    )
    """Phases II to IV: how a nucleus is cut out."""
    teacher: LearnConfig = field(default_factory=lambda: LearnConfig(encoder="resnet18_patch32", weights="random"))
    """Phase II."""
    student: LearnConfig = field(default_factory=lambda: LearnConfig(encoder="rccnet", weights="random"))
    """Phase III."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Phase IV."""
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of training, validation and test among slides that no expert annotated."""
    normalise: bool = False
    """Whether stains are normalised (Macenko), in all phases."""
    seed: int = 0
    """Of splits and draws."""
