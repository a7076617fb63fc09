"""One slide's second opinion: choose, read, predict, vote, write. What a Ray worker calls, and what a test calls."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.sources import CohortModel, MapSource
from cellmill.export.selection import CellSelection, parse_where, read_selected
from cellmill.rescore.agreement import SlideAgreement
from cellmill.rescore.choosing import chosen_cells, tiles_of_cells, within_budget
from cellmill.rescore.scoring import score_cells
from cellmill.rescore.tables import rescored_table
from cellmill.slides.errors import SlideError
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.isolation import ReaderLimits
from cellmill.staging.cache import SlideCache
from cellmill.store.objects import ObjectStore
from cellmill.store.rescored import ScoredBy, read_scored_by, write_rescored
from cellmill_schemas.slides import SlideStatus

__all__ = ["RescoreOrder", "RescoreSettings", "rescore_slide"]


@dataclass(frozen=True)
class RescoreSettings:
    """What holds for all slides of a run."""

    store: ObjectStore
    reader: str
    """Function that opened the slides when they were segmented."""
    scored_by: ScoredBy
    """With the cell table's SHA-256 left empty."""
    batch_size: int
    most_tiles: int | None
    """A slide's share of the budget."""
    replace: bool
    slide_cache: SlideCache
    reader_limits: ReaderLimits


@dataclass(frozen=True)
class RescoreOrder:
    """One slide to score."""

    status: SlideStatus
    source: SlideSource

    def to_table(self) -> pa.Table:
        """As a message of one row."""
        return pa.table({"order": [json.dumps({"status": self.status.to_json(), "source": asdict(self.source)})]})

    @staticmethod
    def of_table(table: pa.Table) -> "RescoreOrder":
        """Parse what `to_table` made."""
        document = json.loads(table.column("order")[0].as_py())
        return RescoreOrder(SlideStatus.from_json(document["status"]), SlideSource(**document["source"]))


def rescore_slide(
    order: RescoreOrder, model: CohortModel, source: MapSource, settings: RescoreSettings
) -> SlideAgreement:
    """Score the chosen cells of one slide; a slide that cannot be scored says why and stops no other."""
    slide_id = order.status.slide_id
    try:
        return _rescored(order, model, source, settings)
    except (SlideError, ValueError, OSError) as error:
        return SlideAgreement(slide_id, problem=str(error))


def _rescored(order: RescoreOrder, model: CohortModel, source: MapSource, settings: RescoreSettings) -> SlideAgreement:
    status, store = order.status, settings.store
    scored_by = replace(settings.scored_by, cells_sha256=status.cells_sha256)
    before = read_scored_by(store, status.slide_id)
    if before is not None and before != scored_by and not settings.replace:
        raise ValueError(
            f"It has scores of {before.model_name} for {before.where!r} already; give --replace to put new ones in "
            "their place."
        )
    assert status.mpp_x is not None and status.mpp_y is not None
    with (
        settings.slide_cache.stage(order.source.url) as copy,
        IsolatedSlide(
            copy.path,
            target_mpp=model.target_mpp,
            mpp=(status.mpp_x, status.mpp_y),
            reader=settings.reader,
            limits=settings.reader_limits,
        ) as slide,
    ):
        if slide.info.fingerprint != status.slide_fingerprint:
            raise ValueError("The file is not the one that was segmented; its cells would lie elsewhere.")
        where = parse_where(scored_by.where, model.ontology)
        cells = chosen_cells(read_selected(store, status.slide_id, CellSelection(where=where)), slide.grid)
        num_chosen, tiles = len(cells), tiles_of_cells(cells, model.geometry, slide.grid)
        rows = within_budget(tiles, most_tiles=settings.most_tiles)
        cells, tiles = cells.only(rows), [tiles[row] for row in rows]
        scores = score_cells(
            slide,
            cells,
            tiles,
            source,
            slide_id=status.slide_id,
            geometry=model.geometry,
            num_classes=len(model.ontology),
            batch_size=settings.batch_size,
        )
    table = rescored_table(cells, scores, model.ontology, where=scored_by.where)
    write_rescored(store, status.slide_id, table, scored_by)
    student = dict(zip(cells.cell_ids.tolist(), cells.cell_types, strict=True))
    ids, kinds = table.column("cell_id").to_pylist(), table.column("teacher_type").to_pylist()
    num_tiles = len({index for indices in tiles for index in indices})
    return SlideAgreement(
        slide_id=status.slide_id,
        num_chosen=num_chosen,
        num_tiles=num_tiles,
        rescored_mm2=num_tiles * (model.geometry.stride_px * model.target_mpp * 1e-3) ** 2,
        pairs=Counter((student[cell_id], str(kind)) for cell_id, kind in zip(ids, kinds, strict=True)),
    )
