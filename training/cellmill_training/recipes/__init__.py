"""Recipes by name: Python configs, each opening with its source, the command, the hours and the figures to expect."""

from cellmill_training.distill.recipe import DistillRecipe
from cellmill_training.recipes import (
    lite_distilled,
    lite_distilled_demo,
    student_distilled,
    teacher_cellvit_h0_mini,
    teacher_demo,
    teacher_h_optimus_0,
    teacher_resnet50,
    teacher_resnet50_demo,
    weak_chain_demo,
    weak_chain_ikem,
)
from cellmill_training.teacher.recipe import TeacherRecipe
from cellmill_training.weak.recipe import WeakChainRecipe

__all__ = [
    "DISTILL_RECIPES",
    "TEACHER_RECIPES",
    "WEAK_CHAIN_RECIPES",
    "distill_recipe",
    "teacher_recipe",
    "weak_chain_recipe",
]

TEACHER_RECIPES: dict[str, TeacherRecipe] = {
    "teacher-h-optimus-0": teacher_h_optimus_0.RECIPE,
    "teacher-resnet50": teacher_resnet50.RECIPE,
    "teacher-cellvit-h0-mini": teacher_cellvit_h0_mini.RECIPE,
    "teacher-demo": teacher_demo.RECIPE,
    "teacher-resnet50-demo": teacher_resnet50_demo.RECIPE,
}

DISTILL_RECIPES: dict[str, DistillRecipe] = {
    "student-distilled": student_distilled.RECIPE,
    "lite-distilled": lite_distilled.RECIPE,
    "lite-distilled-demo": lite_distilled_demo.RECIPE,
}

WEAK_CHAIN_RECIPES: dict[str, WeakChainRecipe] = {
    "weak-chain-ikem": weak_chain_ikem.RECIPE,
    "weak-chain-demo": weak_chain_demo.RECIPE,
}


def teacher_recipe(name: str) -> TeacherRecipe:
    """A recipe of `train-teacher`.

    Raises:
        ValueError: when there is none of that name.
    """
    if name not in TEACHER_RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(TEACHER_RECIPES)}, got {name!r}.")
    return TEACHER_RECIPES[name]


def distill_recipe(name: str) -> DistillRecipe:
    """A recipe of `distill-student`.

    Raises:
        ValueError: when there is none of that name.
    """
    if name not in DISTILL_RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(DISTILL_RECIPES)}, got {name!r}.")
    return DISTILL_RECIPES[name]


def weak_chain_recipe(name: str) -> WeakChainRecipe:
    """A recipe of `train-weak-chain`.

    Raises:
        ValueError: when there is none of that name.
    """
    if name not in WEAK_CHAIN_RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(WEAK_CHAIN_RECIPES)}, got {name!r}.")
    return WEAK_CHAIN_RECIPES[name]
