"""What an estimate is told: the settings of the run it is about, as far as they matter, and its own few.

In: arguments. Out: a checked `EstimateCohortConfig`. Names and meanings are those of `SegmentCohortConfig`, so that a
command line or YAML file of a run needs only another job's name and no --out.
"""

from dataclasses import dataclass, fields
from typing import Literal

from cellmill.cohort.config import DEFAULT_FIELD_PX, SegmentCohortConfig

__all__ = ["EstimateCohortConfig"]


@dataclass(frozen=True)
class EstimateCohortConfig:
    """Settings of `estimate_cohort`."""

    slides: tuple[str, ...] = ()
    """Slides of the cohort: one or more files, globs, folders, URLs, or one CSV or Parquet manifest with the columns
    slide and optionally slide_id and mpp (um/px)."""

    model: str = "lite"
    """Packaged name (lite), folder with model.json and weights.safetensors, or MLflow URI (models:/name@champion)."""

    target_mpp: float | None = None
    """Scale the network works at, in um/px. Default: the model's own."""

    mpp: float | None = None
    """Scale of the slides' finest pixels, in um/px, in place of what they state."""

    tissue: str = "auto"
    """What the run would analyse: auto, none (everything), or a GeoJSON file of polygons in level-0 px."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network would run: auto takes CUDA where there is one. It must be here to be measured."""

    field_px: int = DEFAULT_FIELD_PX
    """Side of a field of the run, in px of the model grid; a multiple of 256."""

    batch_size: int = 0
    """Tiles per forward pass. Default (0): 1 on a CPU, 16 with CUDA."""

    num_workers: int = 0
    """Workers of the run. Default (0): as many as this machine or cluster would give it. More than there are here is
    allowed: CPU- and GPU-hours hold, and the wall time is scaled and said to be."""

    threads_per_worker: int = 1
    """CPU threads of each worker."""

    max_slides: int | None = None
    """Only the first so many slides of the list. Default: all."""

    pseudonymize: str | None = None
    """File with a secret of at least 16 bytes: slides that cannot be opened are then listed under keyed hashes."""

    reader: str = "cellmill.slides.opening:open_slide"
    """Function that opens a slide, as module:function."""

    reader_timeout_seconds: float = 120.0
    """Longest time a slide reader may take for one request, in seconds."""

    reader_memory_gib: float = 4.0
    """Most memory a slide reader's process may take, in GiB."""

    sample_slides: int = 200
    """Slides to open, evenly spread over the list; with more in the list, areas are scaled up from these. Of slides
    behind URLs, which must be fetched whole to be opened, 8 at most."""

    calibration_seconds: float = 20.0
    """About how long each worker works on pieces of the slides to measure its speed, in seconds; more is surer."""

    json: str | None = None
    """File to write the figures to, as JSON. Default: only the table is printed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slides", (self.slides,) if isinstance(self.slides, str) else tuple(self.slides))
        self.of_run(out="nowhere")  # checks what the two have in common
        if self.sample_slides < 1:
            raise ValueError(f"--sample-slides must be 1 or more, got {self.sample_slides}; try 200.")
        if not 1.0 <= self.calibration_seconds <= 600.0:
            raise ValueError(
                f"--calibration-seconds must be 1 to 600 seconds, got {self.calibration_seconds:g}; try 20."
            )

    def of_run(self, *, out: str) -> SegmentCohortConfig:
        """The settings of the run that is estimated, with its output in `out`."""
        own = {field.name for field in fields(self)}
        shared = {field.name: getattr(self, field.name) for field in fields(SegmentCohortConfig) if field.name in own}
        return SegmentCohortConfig(**shared, out=out)
