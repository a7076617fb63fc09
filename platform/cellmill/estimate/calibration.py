"""Calibration: pieces of the cohort's own tissue done as the run does them, into a temporary folder, and timed.

In: `SlideSurvey`s. Out: `Measured`, sums of what was done and what it took, one a worker; `rates` divides them. A piece
is a small field at a place drawn from the tissue; it is read, predicted, decoded, measured and written by the run's own
functions, and committed in the end, so that bytes are those of real files.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from pathlib import Path

import numpy as np

from cellmill.cohort.context import RunContext
from cellmill.cohort.field import FieldResult, finish_field, predict_field, read_field
from cellmill.cohort.granted import pin_threads
from cellmill.cohort.manifest import SlideSource
from cellmill.cohort.open_slides import OpenSlides
from cellmill.cohort.plan import FieldTask
from cellmill.cohort.sources import CohortModel
from cellmill.cohort.tiles import Verdict
from cellmill.estimate.spending import Spent, Stopwatch, cpu_seconds, peak_memory
from cellmill.estimate.survey import SlideSurvey, analysed_px
from cellmill.grid import Box, FieldSpec, TileGeometry
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.store.commit import commit_slide
from cellmill.store.objects import ObjectStore
from cellmill.store.work import FieldCounts, SlideWork, write_part

__all__ = ["PIECE_PX", "CalibrationWorker", "Density", "Measured", "Piece", "WorkerStart", "choose_pieces"]

PIECE_PX = 1536
"""Side of a piece's core: about 0.6 mm2 at 0.5 um/px, some seconds on a CPU. Never larger than the run's fields."""


_MAX_OPEN_SLIDES = 4


@dataclass(frozen=True)
class Piece:
    """A small field to measure on."""

    source: SlideSource
    task: FieldTask


@dataclass(frozen=True)
class Density:
    """One piece's cells and the area planned for analysis in its core."""

    num_cells: int
    mm2: float


@dataclass(frozen=True)
class Measured:
    """What one worker did and what it took."""

    pieces: tuple[Density, ...] = ()
    num_tiles: int = 0
    """Tiles planned to be analysed that were read; most of them were predicted."""
    num_excluded: int = 0
    """Of these, tiles that their pixels excluded."""
    window_mm2: float = 0.0
    num_opened: int = 0
    table_bytes: int = 0
    mask_bytes: int = 0
    open: Spent = field(default_factory=Spent)
    read: Spent = field(default_factory=Spent)
    predict: Spent = field(default_factory=Spent)
    finish: Spent = field(default_factory=Spent)
    commit: Spent = field(default_factory=Spent)
    window_px: int = 0
    """Px of the largest window, which memory follows."""
    peak_bytes: int = 0

    @property
    def spent(self) -> Spent:
        """All steps together."""
        return Spent.sum((self.open, self.read, self.predict, self.finish, self.commit))

    def plus(self, other: "Measured") -> "Measured":
        """Both together; memory is that of the larger."""
        return Measured(
            pieces=self.pieces + other.pieces,
            num_tiles=self.num_tiles + other.num_tiles,
            num_excluded=self.num_excluded + other.num_excluded,
            window_mm2=self.window_mm2 + other.window_mm2,
            num_opened=self.num_opened + other.num_opened,
            table_bytes=self.table_bytes + other.table_bytes,
            mask_bytes=self.mask_bytes + other.mask_bytes,
            open=self.open.plus(other.open),
            read=self.read.plus(other.read),
            predict=self.predict.plus(other.predict),
            finish=self.finish.plus(other.finish),
            commit=self.commit.plus(other.commit),
            window_px=max(self.window_px, other.window_px),
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
        )


@dataclass(frozen=True)
class WorkerStart:
    """A worker that is ready, and has done one piece."""

    spent: Spent
    """Since its process began, with the piece."""


def choose_pieces(surveys: Sequence[SlideSurvey], context: RunContext, *, at_most: int) -> list[Piece]:
    """Different pieces of tissue, such that the first few of them already lie well spread over the cohort.

    A piece is drawn by one of the cohort's tiles with tissue, so places with more tissue come first.
    """
    ends = list(accumulate(int((survey.tiles.verdicts == Verdict.ANALYSED).sum()) for survey in surveys))
    pieces: dict[tuple[str, int, int], Piece] = {}
    for share in islice(_spread_shares(), 4 * at_most if ends and ends[-1] else 0):
        rank = int(share * ends[-1])
        number = int(np.searchsorted(ends, rank, side="right"))
        survey, first = surveys[number], ends[number - 1] if number else 0
        i, j = survey.tiles.analysed()[rank - first].tolist()
        piece = _piece_at(survey, i, j, context)
        key = (survey.source.slide_id, piece.task.field.column, piece.task.field.row)
        if len(pieces) < at_most:
            pieces.setdefault(key, piece)
    return list(pieces.values())


class CalibrationWorker:
    """Does pieces as a worker of the run does fields, into a temporary folder of its own. Ray only calls it."""

    def __init__(self, context: RunContext, model: Callable[[], CohortModel]) -> None:
        self._began = time.perf_counter()
        pin_threads(context.threads_per_worker)
        # In the driver's temporary folder where that is on this machine: it goes even if this process is killed.
        parent = context.store.url if Path(context.store.url).is_dir() else None
        self._folder = tempfile.TemporaryDirectory(prefix="cellmill-estimate-", dir=parent)
        self._context = _context_of_pieces(context, Path(self._folder.name) / "measured")
        self._slides = OpenSlides(context, most=_MAX_OPEN_SLIDES)
        self._source = model().open(
            device=context.device, batch_size=context.batch_size, num_threads=context.threads_per_worker
        )

    def start(self, piece: Piece) -> WorkerStart:
        """Do one piece that does not count: kernels are loaded, and what a first time takes is known."""
        context = self._context
        self._context = replace(context, store=ObjectStore(Path(self._folder.name) / "start"))
        self.measure([piece], seconds=0.0)
        self._context = context
        self._slides.close_all()
        return WorkerStart(Spent(cpu_seconds(), time.perf_counter() - self._began))

    def measure(self, pieces: Sequence[Piece], *, seconds: float) -> Measured:
        """Do pieces for about `seconds`, at least one; then commit them."""
        measured, done, deadline = Measured(), list[Piece](), time.perf_counter() + seconds
        with peak_memory() as memory:
            for piece in pieces:
                measured = measured.plus(self._do(piece))
                done.append(piece)
                if time.perf_counter() > deadline:
                    break
        measured = measured.plus(self._commit(done))
        return replace(measured, peak_bytes=memory.peak_bytes)

    def close(self) -> None:
        """End the slide readers and remove what was written."""
        self._slides.close_all()
        self._folder.cleanup()

    def _do(self, piece: Piece) -> Measured:
        """One piece."""
        opened, is_open, watch = Measured(), piece.source in self._slides, Stopwatch()
        slide = self._slides.get(piece.source)
        if not is_open:
            opened = Measured(open=watch.lap(), num_opened=1)
        return opened.plus(self._segment(piece.task, slide, Stopwatch()))

    def _segment(self, task: FieldTask, slide: IsolatedSlide, watch: Stopwatch) -> Measured:
        context, geometry, ontology = self._context, self._context.geometry, self._context.ontology
        seen = read_field(task, slide, geometry=geometry)
        read = watch.lap()
        maps, _ = predict_field(
            task, seen, source=self._source, geometry=geometry, ontology=ontology, batch_size=context.batch_size
        )
        predicted = watch.lap()
        result = finish_field(task, seen, maps, decoder=context.decoder, geometry=geometry, ontology=ontology)
        finished = watch.lap()
        result = _only_own(result)
        watch.lap()  # the run does not do that, and in large slides it takes as long as a decode
        write_part(
            context.store,
            context.work(task.facts),
            field=task.field,
            cells=result.cells,
            core_mask=result.core_mask,
            counts=result.counts,
        )
        finished = finished.plus(watch.lap())
        num_planned = int((task.tiles.verdicts == Verdict.ANALYSED).sum())
        return Measured(
            pieces=(Density(result.cells.num_rows, _mm2(task, task.field.core, geometry)),),
            num_tiles=num_planned,
            num_excluded=num_planned - int((seen.tiles.verdicts == Verdict.ANALYSED).sum()),
            window_mm2=_mm2(task, task.window, geometry),
            read=read,
            predict=predicted,
            finish=finished,
            window_px=task.window.area,
        )

    def _commit(self, done: Sequence[Piece]) -> Measured:
        """Commit the pieces of each slide together, and weigh what comes of it."""
        watch, context = Stopwatch(), self._context
        by_slide: dict[str, list[Piece]] = {}
        for piece in done:
            by_slide.setdefault(piece.source.slide_id, []).append(piece)
        for pieces in by_slide.values():
            work: SlideWork = context.work(pieces[0].task.facts)
            planned = [piece.task.field for piece in pieces]
            commit_slide(context.store, work, planned=planned, elsewhere=FieldCounts())
        spent = watch.lap()
        return Measured(
            commit=spent, table_bytes=_num_bytes(context.store, "cells"), mask_bytes=_num_bytes(context.store, "masks")
        )


def _context_of_pieces(context: RunContext, folder: Path) -> RunContext:
    return replace(context, store=ObjectStore(folder), field_px=min(PIECE_PX, context.field_px))


def _spread_shares() -> Iterator[float]:
    """Numbers in [0, 1) of which any first few are spread evenly (van der Corput's sequence)."""
    number = 0
    while True:
        number += 1
        yield sum(int(bit) / (1 << place) for place, bit in enumerate(reversed(f"{number:b}"), start=1))


def _piece_at(survey: SlideSurvey, i: int, j: int, context: RunContext) -> Piece:
    """The piece that holds the middle of tile (i, j), on a grid of pieces, so that no two overlap."""
    side, grid, geometry = min(PIECE_PX, context.field_px), survey.facts.grid, context.geometry
    tile = geometry.core(i, j).clipped(grid.box)
    column, row = (tile.x0 + tile.x1) // 2 // side, (tile.y0 + tile.y1) // 2 // side
    core = Box(column * side, row * side, (column + 1) * side, (row + 1) * side)
    spec = FieldSpec(column=column, row=row, core=core, halo_px=context.decoder.halo_px)
    tiles = survey.tiles.within(geometry.covering(spec.window.clipped(grid.box)))
    return Piece(survey.source, FieldTask(facts=survey.facts, field=spec, tiles=tiles))


def _only_own(result: FieldResult) -> FieldResult:
    """Without what the core shows of neighbours' cells, since neighbours are not done and a commit would miss them."""
    own = result.cells.column("mask_id").to_numpy()
    mask = np.where(np.isin(result.core_mask, own), result.core_mask, 0).astype(result.core_mask.dtype)
    return replace(result, core_mask=mask)


def _mm2(task: FieldTask, box: Box, geometry: TileGeometry) -> float:
    grid = task.facts.grid
    return analysed_px(task.tiles, box, grid=grid, geometry=geometry) * (grid.target_mpp / 1000) ** 2


def _num_bytes(store: ObjectStore, prefix: str) -> int:
    return sum(Path(store.path(key)).stat().st_size for key in store.list_keys(prefix))
