"""What every supervised recipe says: how long, on which crops, at which rates."""

from dataclasses import dataclass, field, replace
from typing import Self

from cellmill_training.loop import LoopConfig
from cellmill_training.supervised.crops import CropsConfig

__all__ = ["SupervisedRecipe"]


@dataclass(frozen=True)
class SupervisedRecipe:
    """The part of a recipe that is the same for whatever network learns from labels."""

    target_mpp: float = 0.25
    """um/px of the model grid."""
    epochs: int = 100
    """Times that every crop is shown."""
    crops: CropsConfig = field(default_factory=CropsConfig)
    """Size, number and looks of crops."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(max_steps=1))
    """Rates and averages; its steps follow from `epochs`."""
    most_validation_images: int = 200
    """Images looked at after an epoch."""

    @property
    def crops_on_grid(self) -> CropsConfig:
        """The crops, at the recipe's scale."""
        return self.crops.at_scale(self.target_mpp)

    def loop_of(self, steps_per_epoch: int, *, max_steps: int = 0) -> LoopConfig:
        """The loop with its length in steps; `max_steps` ends it sooner."""
        return self.loop.over_epochs(self.epochs, steps_per_epoch, max_steps=max_steps)

    def changed(
        self,
        *,
        epochs: int,
        batch_size: int,
        fixed_variants: int,
        learning_rate: float,
        checkpoint_seconds: float,
        checkpoint_steps: int = 0,
        seed: int,
    ) -> Self:
        """The recipe with a command line's changes; 0 leaves what the recipe says."""
        crops = replace(
            self.crops,
            batch_size=batch_size or self.crops.batch_size,
            fixed_variants=fixed_variants or self.crops.fixed_variants,
            seed=seed,
        )
        loop = replace(
            self.loop,
            learning_rate=learning_rate or self.loop.learning_rate,
            checkpoint_seconds=checkpoint_seconds,
            checkpoint_steps=checkpoint_steps or self.loop.checkpoint_steps,
        )
        return replace(self, crops=crops, loop=loop, epochs=epochs or self.epochs)
