"""What an export is told: one typed configuration, from the command line, a YAML file or Python.

In: arguments. Out: a checked `ExportConfig`. The sentence under each field is its help text.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["ExportConfig"]


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `export_qupath`."""

    cells: str = ""
    """The cell set: the --out of segment_cohort, a folder or URL."""

    slides: tuple[str, ...] = ()
    """The slides it was made from: files, globs, folders or one manifest, as given to segment_cohort. QuPath opens
    these files; GeoJSON needs them for the frame and the areas. Not needed for SpatialData."""

    project: str = ""
    """Folder to make: the QuPath project, or the folder of the files. It must be new or empty, or hold an export that
    --replace may replace."""

    slide_id: tuple[str, ...] = ()
    """Only these slides. Default: all that are done and among --slides."""

    where: str | None = None
    """Only cells that fulfil this condition, in SQL over the columns of the cell table, for example "cell_type =
    'lymphocyte' AND confidence > 0.6". Default: all cells."""

    format: Literal["qupath", "geojson", "spatialdata"] = "qupath"
    """What to write: a QuPath project (through QuPath where PAQUO_QUPATH_DIR names it, else as plain files with a
    script that brings the objects in), a folder of GeoJSON parts a slide, or a SpatialData zarr a slide."""

    as_: Literal["detections", "cells"] = "detections"
    """What a cell becomes in QuPath: a detection, or a cell object, whose nucleus and boundary are both the outline."""

    by_class: bool = False
    """With --format geojson, write the cells a second time with a folder of parts for each class."""

    areas: Literal["auto", "none"] = "auto"
    """Whether what was analysed, and what was excluded and why, comes along as locked annotations. They are found again
    from the slide: at low resolution, or at full where tiles were excluded for pen, blur or damage."""

    tissue: str | None = None
    """The region file, where the cell set was made with --tissue FILE. Only for the areas."""

    pseudonymize: str | None = None
    """File with the secret that the cell set was made with, if it was: so slides are found by their pseudonyms. A
    QuPath project names the slide files all the same, because it opens them."""

    replace: bool = False
    """Make an export again in its place. A folder that has been worked on since, or holds anything else, is never
    replaced."""

    def __post_init__(self) -> None:
        for name in ("slides", "slide_id"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for flag, value in (("--cells", self.cells), ("--project", self.project)):
            if not value:
                raise ValueError(f"{flag} is missing; give --cells, --slides and --project.")
        if not self.slides and self.format != "spatialdata":
            raise ValueError(
                f"--slides is missing; --format {self.format} needs the slides the cell set was made from."
            )
        if "://" in self.project:
            raise ValueError(f"--project must be a local folder, got {self.project!r}; copy it from there afterwards.")
        if self.by_class and self.format != "geojson":
            raise ValueError("--by-class belongs to --format geojson; QuPath shows and hides classes itself.")
