"""How large a level-0 pixel is: never guessed, always stated by the slide or by the user."""

import math

from cellmill.slides.errors import UnusableScaleError

__all__ = ["MAX_MPP", "MIN_MPP", "is_usable_mpp", "resolve_mpp"]

MIN_MPP = 0.05
MAX_MPP = 10.0
"""Finer than any microscope scan of tissue; coarser than anything that shows a nucleus. A 72 dpi resolution tag, which
image programs write into any TIFF, is 353 um/px."""

_REMEDY = "Give the level-0 scale with --mpp, or in the manifest's column `mpp`."


def resolve_mpp(
    stated: tuple[float, float] | None, override: float | tuple[float, float] | None = None
) -> tuple[float, float]:
    """Level-0 um/px (x, y): the override where there is one, else what the slide states.

    Raises:
        UnusableScaleError: when that is absent, not a number, or outside 0.05 to 10 um/px.
    """
    if override is not None:
        pair = override if isinstance(override, tuple) else (override, override)
        return _checked(pair, source="The scale given for this slide", remedy="Correct --mpp or the manifest's `mpp`.")
    if stated is None:
        raise UnusableScaleError(f"The slide states no scale (um/px). {_REMEDY}")
    return _checked(stated, source="The scale stated by the slide", remedy=_REMEDY)


def is_usable_mpp(value: float) -> bool:
    """Whether a number can be the um/px of a slide."""
    return math.isfinite(value) and MIN_MPP <= value <= MAX_MPP


def _checked(pair: tuple[float, float], *, source: str, remedy: str) -> tuple[float, float]:
    mpp_x, mpp_y = float(pair[0]), float(pair[1])
    if not (is_usable_mpp(mpp_x) and is_usable_mpp(mpp_y)):
        raise UnusableScaleError(
            f"{source} is {mpp_x:g} x {mpp_y:g} um/px; slides have {MIN_MPP:g} to {MAX_MPP:g}. {remedy}"
        )
    return mpp_x, mpp_y
