"""One slide's second opinion: choose, read, predict, vote, write. What a Ray worker calls, and what a test calls."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt

from cellmill.cohort.per_slide import SlideOrder, opened_again
from cellmill.cohort.sources import CohortModel, MapSource
from cellmill.embedding.sources import FeatureSource
from cellmill.export.selection import CellSelection, parse_where, read_selected
from cellmill.rescore.agreement import SlideAgreement
from cellmill.rescore.choosing import ChosenCells, chosen_cells, tiles_of_cells, within_budget
from cellmill.rescore.scoring import CellScores, Pooled, score_cells
from cellmill.rescore.tables import rescored_table
from cellmill.slides.errors import SlideError
from cellmill.slides.isolation import ReaderLimits
from cellmill.staging.cache import SlideCache
from cellmill.store.embeddings import EmbeddingRecord, writing_embeddings
from cellmill.store.objects import ObjectStore
from cellmill.store.rescored import ScoredBy, read_scored_by, write_rescored
from cellmill_schemas.slides import SlideStatus

__all__ = ["RescoreSettings", "rescore_slide"]


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
    embedding: EmbeddingRecord | None
    """What embeddings are stored, with the slide and its cell table left empty; None for none. With it the workers'
    source tells features."""
    slide_cache: SlideCache
    reader_limits: ReaderLimits


def rescore_slide(
    order: SlideOrder, model: CohortModel, source: MapSource | FeatureSource, settings: RescoreSettings
) -> SlideAgreement:
    """Score the chosen cells of one slide; a slide that cannot be scored says why and stops no other."""
    slide_id = order.status.slide_id
    try:
        return _rescored(order, model, source, settings)
    except (SlideError, ValueError, OSError) as error:
        return SlideAgreement(slide_id, problem=str(error))


def _rescored(
    order: SlideOrder, model: CohortModel, source: MapSource | FeatureSource, settings: RescoreSettings
) -> SlideAgreement:
    status, store = order.status, settings.store
    scored_by = replace(settings.scored_by, cells_sha256=status.cells_sha256)
    before = read_scored_by(store, status.slide_id)
    if before is not None and before != scored_by and not settings.replace:
        raise ValueError(
            f"It has scores of {before.model_name} for {before.where!r} already; give --replace to put new ones in "
            "their place."
        )
    with opened_again(
        order,
        target_mpp=model.target_mpp,
        reader=settings.reader,
        cache=settings.slide_cache,
        limits=settings.reader_limits,
    ) as slide:
        where = parse_where(scored_by.where, model.ontology)
        cells = chosen_cells(read_selected(store, status.slide_id, CellSelection(where=where)), slide.grid)
        num_chosen, tiles = len(cells), tiles_of_cells(cells, model.geometry, slide.grid)
        rows = within_budget(tiles, most_tiles=settings.most_tiles)
        rows = rows[np.argsort(cells.cell_ids[rows], kind="stable")]  # as tables of scores and vectors have them
        cells, tiles = cells.only(rows), [tiles[row] for row in rows]
        score = partial(
            score_cells,
            slide,
            cells,
            tiles,
            slide_id=status.slide_id,
            geometry=model.geometry,
            num_classes=len(model.ontology),
            batch_size=settings.batch_size,
        )
        scores = _scored(score, cells, source, settings, status)
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


def _scored(
    score: Callable[[MapSource | Pooled], CellScores],
    cells: ChosenCells,
    source: MapSource | FeatureSource,
    settings: RescoreSettings,
    status: SlideStatus,
) -> CellScores:
    """The scores; where embeddings are wanted these are stored on the way."""
    if settings.embedding is None or not len(cells):
        return score(cast(MapSource, source))
    record = replace(settings.embedding, slide_id=status.slide_id, cells_sha256=status.cells_sha256)
    with writing_embeddings(settings.store, record) as writer:

        def take(rows: npt.NDArray[np.int64], vectors: npt.NDArray[np.float16]) -> None:
            writer.add(cells.cell_ids[rows], vectors)

        return score(Pooled(cast(FeatureSource, source), record.layer_stride_px, take))
