"""The job behind `jobs/show_cells.py`: look at a cell set, in numbers and in one picture.

In: a cell set and its slides. Out: cells and densities by type on the terminal, and a PNG of outlines on pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import polars as pl
from rich.console import Console
from rich.table import Table

from cellmill.arguments import parse_dataclass
from cellmill.cohort.manifest import list_sources
from cellmill.overlay import OverlayRegion, busiest_region, draw_overlay
from cellmill.store.cellset import CellSet
from cellmill.store.identity import read_identity
from cellmill.store.objects import ObjectStore
from cellmill.store.reading import open_cells
from cellmill_schemas.ontology import Ontology
from cellmill_schemas.slides import SlideStatus

__all__ = ["ShowCellsConfig", "main", "show_cells"]


@dataclass(frozen=True)
class ShowCellsConfig:
    """Settings of `show_cells`."""

    cells: str = ""
    """The cell set: the --out of segment_cohort, a folder or URL."""

    slides: tuple[str, ...] = ()
    """The slides it was made from: files, globs, folders or one manifest, as given to segment_cohort."""

    out: str = ""
    """PNG file to write."""

    slide_id: str | None = None
    """Slide to show. Default: the one with most cells."""

    x_um: float | None = None
    """Left edge of the region, in um from the slide's origin. Default: where most cells of most types lie."""

    y_um: float | None = None
    """Top edge of the region, in um from the slide's origin. Default: where most cells of most types lie."""

    side_um: float = 250.0
    """Side of the square region, in um."""

    picture_mpp: float = 0.25
    """Scale of the picture, in um/px."""

    def __post_init__(self) -> None:
        for flag, value in (("--cells", self.cells), ("--slides", self.slides), ("--out", self.out)):
            if not value:
                raise ValueError(f"{flag} is missing; give all of --cells, --slides and --out.")
        if (self.x_um is None) != (self.y_um is None):
            raise ValueError("--x-um and --y-um belong together; give both or neither.")
        if not 10 <= self.side_um <= 2000:
            raise ValueError(f"--side-um must be 10 to 2000 um, got {self.side_um}.")


def show_cells(config: ShowCellsConfig) -> Table:
    """Write the picture and return the table of cells by type.

    Raises:
        ValueError: when the slide is not in the cell set or not among `--slides`.
    """
    cell_set = CellSet(config.cells)
    ontology = read_identity(ObjectStore(config.cells)).ontology
    status = _chosen_status(config, cell_set)
    slide = _slide_file(config, status.slide_id)
    cells = (
        open_cells(config.cells)
        .filter(pl.col("slide_id") == status.slide_id)
        .select("x_um", "y_um", "cell_type", "confidence", "geometry")
        .collect()
    )
    region = busiest_region(cells, side_um=config.side_um)
    if config.x_um is not None and config.y_um is not None:
        region = OverlayRegion(config.x_um, config.y_um, config.side_um)
    assert status.mpp_x is not None
    assert status.mpp_y is not None
    image = draw_overlay(
        slide, cells, ontology, region, mpp=(status.mpp_x, status.mpp_y), picture_mpp=config.picture_mpp
    )
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", image[..., ::-1])[1]
    out.write_bytes(encoded.tobytes())
    return _summary(status, ontology)


def main() -> int:
    """Run the job from the command line."""
    config = parse_dataclass(
        ShowCellsConfig, prog="show_cells", description="Look at a cell set: counts and a picture."
    )
    console = Console()
    try:
        table = show_cells(config)
    except ValueError as error:
        console.print(f"show_cells: {error}", markup=False, soft_wrap=True)
        return 2
    console.print(table)
    console.print(f"Outlines on pixels: {config.out}", markup=False, soft_wrap=True)
    return 0


def _chosen_status(config: ShowCellsConfig, cell_set: CellSet) -> SlideStatus:
    done = [status for status in cell_set.statuses() if status.outcome == "done"]
    if config.slide_id is not None:
        done = [status for status in done if status.slide_id == config.slide_id]
    if not done:
        wanted = f"slide {config.slide_id!r}" if config.slide_id else "a slide with cells"
        raise ValueError(f"{config.cells} holds no finished {wanted}; its slides.parquet lists what it holds.")
    return max(done, key=lambda status: status.num_cells)


def _slide_file(config: ShowCellsConfig, slide_id: str) -> Path:
    for source in list_sources(config.slides):
        if source.slide_id == slide_id:
            return Path(source.url)
    raise ValueError(f"--slides does not hold slide {slide_id!r}; give the slides the cell set was made from.")


def _summary(status: SlideStatus, ontology: Ontology) -> Table:
    table = Table(title=f"{status.slide_id}: {status.num_cells:,} cells on {status.analysed_mm2:.2f} mm2 analysed")
    for name in ("cell type", "cells", "share", "per mm2"):
        table.add_column(name, justify="left" if name == "cell type" else "right")
    for name in ontology.names:
        count = status.num_cells_by_type.get(name, 0)
        share, density = count / max(status.num_cells, 1), count / max(status.analysed_mm2, 1e-9)
        table.add_row(name, f"{count:,}", f"{share:.1%}", f"{density:,.0f}")
    return table
