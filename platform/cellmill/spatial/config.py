"""What `summarize_cohort` is told: a checked `SummarizeCohortConfig`."""

import math
from dataclasses import dataclass

__all__ = ["SummarizeCohortConfig"]


@dataclass(frozen=True)
class SummarizeCohortConfig:
    """Settings of `summarize_cohort`."""

    cells: str = ""
    """The cell set: the --out of segment_cohort, a folder or URL."""

    out: str = ""
    """Folder for the tables: summary, pairs and radii, each as Parquet and CSV. Files of these names are replaced."""

    slide_ids: tuple[str, ...] = ()
    """Only these slides. Default: all that are done."""

    regions: str | None = None
    """Folder with regions drawn by someone, <slide_id>.geojson in level-0 px as QuPath exports them; each becomes a
    row. A slide without a file has none."""

    min_fragment_mm2: float = 0.25
    """Tissue fragments of at least this area, in mm2, get rows of their own; 0 gives every one."""

    min_confidence: float = 0.0
    """Cells of lower confidence are left out, 0 to 1."""

    radii_um: str = "10,20,30,40,50,75,100"
    """Radii for counts and cross-K, in um, ascending, with commas between."""

    neighbour_um: float = 25.0
    """Cells no further apart than this are neighbours, for enrichment, in um."""

    num_permutations: int = 100
    """Permutations of the types behind each enrichment; 0 leaves enrichment out."""

    til_margin_um: float = 500.0
    """Stroma counts for TIL scores up to this distance from neoplastic area, in um."""

    seed: int = 0
    """Of the permutations. The same seed gives the same tables, whatever the number of workers."""

    num_workers: int = 0
    """Slides worked on at once, a process each. Default (0): as many as this process has CPUs."""

    def __post_init__(self) -> None:
        for flag, value in (("--cells", self.cells), ("--out", self.out)):
            if not value:
                raise ValueError(f"{flag} is missing; give both --cells and --out.")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"--min-confidence must be 0 to 1, got {self.min_confidence}.")
        for flag, value in (("--neighbour-um", self.neighbour_um), ("--til-margin-um", self.til_margin_um)):
            if not 0 < value <= 2000:
                raise ValueError(f"{flag} must be above 0 and at most 2000 um, got {value}.")
        if self.num_permutations < 0 or self.num_workers < 0 or self.seed < 0 or self.min_fragment_mm2 < 0:
            raise ValueError("--num-permutations, --num-workers, --seed and --min-fragment-mm2 must not be negative.")
        self.radii()

    def radii(self) -> tuple[float, ...]:
        """The radii as numbers.

        Raises:
            ValueError: when they are none, not numbers, not ascending or above 1000 um.
        """
        try:
            radii = tuple(float(text) for text in self.radii_um.split(","))
        except ValueError:
            radii = ()
        grows = all(first < second for first, second in zip((0.0, *radii), radii, strict=False))
        if not radii or not all(map(math.isfinite, radii)) or not grows or radii[-1] > 1000:
            raise ValueError(
                f"--radii-um must be ascending numbers of um up to 1000, as 10,20,50; got {self.radii_um!r}."
            )
        return radii
