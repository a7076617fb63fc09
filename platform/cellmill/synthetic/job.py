"""The job behind `jobs/make_synthetic_cohort.py`: settings from the command line, one call, one line a slide."""

import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from cellmill.arguments import parse_dataclass
from cellmill.synthetic.cohort import SyntheticCohortConfig, WrittenSlide, make_synthetic_cohort

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a synthetic cohort; returns the exit code."""
    config = parse_dataclass(
        SyntheticCohortConfig,
        prog="make_synthetic_cohort",
        description="Write synthetic H&E slides (pyramidal TIFF) with their exact truth (label mask and typed table).",
        arguments=arguments,
    )
    started = perf_counter()
    slides = make_synthetic_cohort(config, report=_say)
    mm2 = sum(slide.mm2 for slide in slides)
    _line(f"{len(slides)} slides, {mm2:.2f} mm2, {perf_counter() - started:.1f} s, in {Path(config.out).resolve()}")
    _line(f"Next: segment_cohort --slides '{Path(config.out) / 'slides'}/*.tif' --out <folder>")
    return 0


def _say(slide: WrittenSlide) -> None:
    by_type = ", ".join(f"{name} {count}" for name, count in slide.num_cells_by_type.items() if count)
    _line(f"{slide.slide}: {slide.width_px} x {slide.height_px} px, {slide.num_cells} cells ({by_type})")


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
