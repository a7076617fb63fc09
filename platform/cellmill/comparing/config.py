"""What a comparison is told: one typed configuration. The sentence under each field is its help text."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["CompareModelsConfig"]


@dataclass(frozen=True)
class CompareModelsConfig:
    """Settings of `compare_models`."""

    reference: str = ""
    """What is there now: a finished cell set, or a model (folder, packaged name, models:/ URI) to run on --slides."""

    candidate: str = ""
    """What would take its place: likewise."""

    slides: tuple[str, ...] = ()
    """The slides: files, globs, folders, URLs or one manifest. Needed where a model is to be run, and for pictures of
    changed cells."""

    out: str = ""
    """Folder for comparison.json, comparison.html and the cell sets of models that were run. The same command does only
    what is missing of those."""

    max_slides: int | None = None
    """Run models on this many slides of the list at most. Default: all."""

    max_lost: float = 0.05
    """Most of the reference's cells that the candidate may not find, as a share."""

    max_gained: float = 0.05
    """Most cells that only the candidate finds, as a share of the reference's."""

    max_retyped: float = 0.05
    """Most of the cells that both find of which the candidate may say another type, as a share."""

    max_type_change: float = 0.10
    """Most that the number of cells of any one type may grow or shrink, as a share of the reference's."""

    min_cells: int = 100
    """Types of which the reference has fewer cells are reported and not judged."""

    min_slides: int = 3
    """Fewer slides than this decide nothing: the candidate is refused."""

    num_pictures: int = 24
    """Pictures of changed cells on the page; 0 for none."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run."""

    num_workers: int = 0
    """Fields segmented at the same time. Default (0): the CPUs granted, or GPUs."""

    pseudonymize: str | None = None
    """The key file that the cell sets were made with, if one was used."""

    seed: int = 0
    """Of the draws of intervals and the choice of pictures."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slides", (self.slides,) if isinstance(self.slides, str) else tuple(self.slides))
        for flag, value in (("--reference", self.reference), ("--candidate", self.candidate), ("--out", self.out)):
            if not value:
                raise ValueError(f"{flag} is missing; give --reference, --candidate and --out.")
        for name in ("max_lost", "max_gained", "max_retyped", "max_type_change"):
            if not 0 <= getattr(self, name) <= 10:
                flag, got = "--" + name.replace("_", "-"), getattr(self, name)
                raise ValueError(f"{flag} must be a share of 0 or more such as 0.05, got {got:g}.")
        if self.min_cells < 1 or self.min_slides < 2 or self.num_pictures < 0:
            raise ValueError("--min-cells must be 1 or more, --min-slides 2 or more, --num-pictures 0 or more.")
        if self.max_slides is not None and self.max_slides < 1:
            raise ValueError(f"--max-slides must be 1 or more, got {self.max_slides}; leave it out for all slides.")
