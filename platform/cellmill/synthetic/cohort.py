"""A cohort of synthetic slides on disk.

In: a `SyntheticCohortConfig`. Out: `slides/<slide_id>.tif`, `truth/<slide_id>/` (see `truth`), and `cohort.json`,
written last, whose list has one entry a slide. The same settings give the same bytes, whatever the number of workers.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cellmill.synthetic.slide import SyntheticSlide
from cellmill.synthetic.slide_writer import write_slide

__all__ = ["SyntheticCohortConfig", "WrittenSlide", "make_synthetic_cohort"]

_SEEDS_PER_COHORT = 1_000_003
"""Cohort seeds are spread by this, so that cohorts of neighbouring seeds share no slide."""


@dataclass(frozen=True)
class SyntheticCohortConfig:
    """What cohort to make."""

    out: str
    """Folder to write to; it may exist, slides of the same name in it are replaced."""
    num_slides: int = 2
    """Number of slides."""
    width_mm: float = 3.0
    """Width of each slide in mm."""
    height_mm: float = 2.0
    """Height of each slide in mm."""
    mpp: float = 0.5
    """Level-0 um per px, both ways."""
    seed: int = 0
    """Everything is drawn from it: the same seed gives the same bytes."""
    jpeg_quality: int = 85
    """JPEG quality of the slides' tiles, 1 to 100."""
    num_workers: int = 1
    """Processes that render; the result does not depend on it."""

    def __post_init__(self) -> None:
        for name in ("num_slides", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("width_mm", "height_mm", "mpp"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}.")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 1 to 100, got {self.jpeg_quality}.")


@dataclass(frozen=True)
class WrittenSlide:
    """One slide of a cohort, as `cohort.json` lists it."""

    slide_id: str
    slide: str
    """Path of the TIFF, relative to the cohort's folder."""
    truth: str
    """Folder of the truth, relative to the cohort's folder."""
    seed: int
    width_px: int
    height_px: int
    mpp: float
    mm2: float
    num_cells: int
    num_cells_by_type: dict[str, int]


def make_synthetic_cohort(
    config: SyntheticCohortConfig, *, report: Callable[[WrittenSlide], None] | None = None
) -> tuple[WrittenSlide, ...]:
    """Write the cohort; `report` is told of every slide once it is complete."""
    out = Path(config.out)
    written: list[WrittenSlide] = []
    for index in range(config.num_slides):
        slide = SyntheticSlide.draw(
            config.seed * _SEEDS_PER_COHORT + index,
            width_mm=config.width_mm,
            height_mm=config.height_mm,
            mpp=config.mpp,
        )
        written.append(_write(slide, f"synthetic_{index:04d}", out, config))
        if report is not None:
            report(written[-1])
    # Settings that change no byte stay out, so that the document too depends on the seed alone.
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "num_workers")}
    document = {"config": settings, "slides": [asdict(slide) for slide in written]}
    (out / "cohort.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return tuple(written)


def _write(slide: SyntheticSlide, slide_id: str, out: Path, config: SyntheticCohortConfig) -> WrittenSlide:
    counts = write_slide(
        slide,
        out / "slides" / f"{slide_id}.tif",
        truth_folder=out / "truth" / slide_id,
        jpeg_quality=config.jpeg_quality,
        num_workers=config.num_workers,
    )
    return WrittenSlide(
        slide_id=slide_id,
        slide=f"slides/{slide_id}.tif",
        truth=f"truth/{slide_id}",
        seed=slide.seed,
        width_px=slide.width_px,
        height_px=slide.height_px,
        mpp=slide.mpp,
        mm2=round(slide.width_px * slide.height_px * slide.mpp**2 / 1e6, 4),
        num_cells=sum(counts.values()),
        num_cells_by_type=counts,
    )
