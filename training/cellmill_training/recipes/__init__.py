"""Recipes by name: Python configs, each opening with its source, the command, the hours and the figures to expect."""

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

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

_Recipe = TypeVar("_Recipe", TeacherRecipe, DistillRecipe, WeakChainRecipe)

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


def _named(recipes: Mapping[str, _Recipe], name: str) -> _Recipe:
    """The recipe of that name.

    Raises:
        ValueError: when there is none.
    """
    if name not in recipes:
        raise ValueError(f"--recipe must be one of {', '.join(recipes)}, got {name!r}.")
    return recipes[name]


teacher_recipe = partial(_named, TEACHER_RECIPES)
"""A recipe of `train-teacher`, by name."""

distill_recipe = partial(_named, DISTILL_RECIPES)
"""A recipe of `distill-student`, by name."""

weak_chain_recipe = partial(_named, WEAK_CHAIN_RECIPES)
"""A recipe of `train-weak-chain`, by name."""
