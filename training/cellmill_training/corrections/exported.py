"""What was exported: cells of the cell set, and the slides that corrections came back for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.cohort.manifest import list_sources
from cellmill.privacy import read_secret
from cellmill.staging.cache import StagedSlide, node_cache
from cellmill.store.layout import cells_key
from cellmill.store.objects import ObjectStore
from cellmill.store.outlines import polygons_of
from cellmill.store.statuses import read_statuses
from cellmill_training.corrections.comparing import ExportedCells

__all__ = ["SlideOfCells", "corrected_slides", "exported_cells"]


@dataclass(frozen=True)
class SlideOfCells:
    """A finished slide of a cell set, and its file."""

    slide_id: str
    url: str
    mpp: tuple[float, float]
    target_mpp: float
    fingerprint: str

    def staged(self) -> StagedSlide:
        """Its file on this computer, for as long as it is not closed."""
        return node_cache().stage(self.url)

    def require_same_file(self, fingerprint: str) -> None:
        """Make sure that the file is the one that was segmented.

        Raises:
            ValueError: when it is not.
        """
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"Slide {self.slide_id}: the file among --slides is not the one that was segmented (fingerprint "
                f"{fingerprint}, then {self.fingerprint}); corrections would lie elsewhere."
            )


def corrected_slides(
    cells: str, slides: Sequence[str], files: Mapping[str, Path], *, pseudonymize: str | None
) -> Iterator[SlideOfCells]:
    """The slides that there are files for, in the order of their ids.

    Raises:
        ValueError: when a file is for no finished slide of the cell set, or its slide is not among `slides`.
    """
    statuses = {status.slide_id: status for status in read_statuses(ObjectStore(cells), files)}
    sources = {source.slide_id: source for source in list_sources(slides, secret=read_secret(pseudonymize))}
    for slide_id, path in sorted(files.items()):
        status = statuses.get(slide_id)
        if status is None or status.outcome != "done":
            stands = "is not in it" if status is None else f"is {status.outcome}"
            raise ValueError(f"{path} is for slide {slide_id}, which has no cells in {cells}: it {stands}.")
        source = sources.get(slide_id)
        if source is None or source.problem is not None:
            why = "is not among them" if source is None else source.problem
            raise ValueError(f"--slides must hold the file of slide {slide_id}: it {why}.")
        assert status.mpp_x is not None and status.mpp_y is not None and status.target_mpp is not None
        mpp = (status.mpp_x, status.mpp_y)
        yield SlideOfCells(slide_id, source.url, mpp, status.target_mpp, status.slide_fingerprint)


def exported_cells(cells: str, slide_id: str) -> ExportedCells:
    """The cells of one slide, as they are in the cell set."""
    store = ObjectStore(cells)
    table = pq.read_table(
        pa.BufferReader(store.get(cells_key(slide_id))), columns=["cell_id", "cell_type", "confidence", "geometry"]
    ).combine_chunks()
    return ExportedCells(
        cell_ids=table.column("cell_id").to_numpy(),
        cell_types=tuple(str(name) for name in table.column("cell_type").to_pylist()),
        confidence=table.column("confidence").to_numpy().astype(np.float64),
        outlines_level0_px=polygons_of(table.column("geometry").chunk(0)),
    )
