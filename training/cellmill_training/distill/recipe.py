"""What a student is, how it is taught, and which runs a command stands for."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from cellmill.models.config import ModelConfig, builtin_config
from cellmill_training.loop import LoopConfig
from cellmill_training.losses import DistillationConfig, TeacherLossConfig
from cellmill_training.losses.distillation import Reading
from cellmill_training.supervised.recipe import SupervisedRecipe

__all__ = ["ALONE", "DistillRecipe", "DistillRun", "planned_runs", "student_config"]

ALONE = "alone"
"""Name of the run without a teacher."""


@dataclass(frozen=True)
class DistillRecipe(SupervisedRecipe):
    """Everything that decides what weights come out, but the data and the teacher."""

    architecture: Literal["student", "lite"] = "student"
    """Which student."""
    target_mpp: float = 0.5
    """um/px of the student's model grid; where the teacher's differs, the teacher is shown the crop resized."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=1e-3, weight_decay=0.02, max_steps=1))
    """Rates and averages; its steps follow from `epochs`."""
    hard_loss: TeacherLossConfig = field(default_factory=TeacherLossConfig)
    """The loss on labels: the teacher's own."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Temperature and balance."""


@dataclass(frozen=True)
class DistillRun:
    """One student."""

    name: str
    distillation: DistillationConfig | None
    """None: the same student, steps and crops without a teacher."""


def student_config(recipe: DistillRecipe, teacher: ModelConfig) -> ModelConfig:
    """The student, in the teacher's classes.

    Raises:
        ValueError: when the teacher is of another family.
    """
    if teacher.decoder != "flows":
        raise ValueError(
            f"The teacher is a {teacher.architecture} of the {teacher.decoder} family, whose outputs a student of the "
            "flows family cannot learn; take a teacher, resnet50_unet, student or lite."
        )
    return builtin_config(recipe.architecture, ontology=teacher.ontology, target_mpp=recipe.target_mpp)


def planned_runs(
    base: DistillationConfig,
    *,
    temperatures: Sequence[float] = (),
    readings: Sequence[Reading] = (),
    with_alone: bool = False,
) -> tuple[DistillRun, ...]:
    """The runs of one command: the recipe's, or every temperature with every reading, and the one without a teacher."""
    runs = [
        DistillRun(f"t{temperature:g}-{reading}", replace(base, temperature=temperature, reading=reading))
        for temperature in (temperatures or (base.temperature,))
        for reading in (readings or (base.reading,))
    ]
    return (*runs, DistillRun(ALONE, None)) if with_alone else tuple(runs)
