"""What `report_cohort` is told: a checked `ReportCohortConfig`."""

from dataclasses import dataclass

__all__ = ["ReportCohortConfig"]


@dataclass(frozen=True)
class ReportCohortConfig:
    """Settings of `report_cohort`."""

    cells: str = ""
    """The cell set: the --out of segment_cohort, a folder or URL."""

    html: str = ""
    """Folder to write the report to. It may be new, empty or an earlier report, which is replaced whole."""

    slides: tuple[str, ...] = ()
    """The slides the cell set was made from, as given to segment_cohort: files, globs, folders, URLs or one manifest.
    Without them the report has tables and heat maps but no pictures."""

    group_by: str | None = None
    """Column of the manifest, scanner or site for example: slides are then also compared within its values, which
    appear in the report. Default: with the cohort only."""

    pseudonymize: str | None = None
    """The secret file given to segment_cohort, where it was: finds the slides behind their keyed hashes."""

    title: str = ""
    """Heading of the report. Default: the name of the cell set's folder."""

    num_regions: int = 4
    """Regions of interest shown of each slide, 0 to 4: richest, typical, densest, least sure."""

    region_um: float = 200.0
    """Side of a region of interest, in um."""

    num_workers: int = 0
    """Slides worked on at once, a process each. Default (0): as many as this process has CPUs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slides", (self.slides,) if isinstance(self.slides, str) else tuple(self.slides))
        for flag, value in (("--cells", self.cells), ("--html", self.html)):
            if not value:
                raise ValueError(f"{flag} is missing; give both --cells and --html.")
        if not 0 <= self.num_regions <= 4:
            raise ValueError(f"--num-regions must be 0 to 4, got {self.num_regions}.")
        if not 20 <= self.region_um <= 1000:
            raise ValueError(f"--region-um must be 20 to 1000 um, got {self.region_um}.")
        if self.num_workers < 0:
            raise ValueError(f"--num-workers must not be negative, got {self.num_workers}.")
        if self.group_by is not None and len(self.slides) != 1:
            raise ValueError("--group-by names a column of the manifest; give that manifest, and only it, as --slides.")
