"""`select-tiles` from beginning to end: slides in, a folder with the tile list and a QuPath project out.

Slides go through a few processes, one each, for their features; the rest is `choosing.choose_tiles`. A slide that
cannot be used is set aside with its reason, and the others go on.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from cellmill import __version__
from cellmill.cohort.granted import granted_cpus
from cellmill.cohort.manifest import SlideSource, hide_name, list_sources
from cellmill.export.folder import check_target, publishing_folder, write_record
from cellmill.models.inference import choose_device
from cellmill.privacy import read_secret
from cellmill.report.groups import read_groups
from cellmill.slide_pool import Failed, over_slides
from cellmill.slides.errors import SlideError
from cellmill.slides.isolation import DEFAULT_READER
from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_statuses
from cellmill_schemas.ontology import Ontology, get_ontology
from cellmill_schemas.slides import SlideStatus
from cellmill_training.datasets.store import open_dataset
from cellmill_training.selecting.choosing import CandidateSlide, Selection, choose_tiles
from cellmill_training.selecting.classifiers import LabelledTiles
from cellmill_training.selecting.encoding import TILE_MPP, EncoderChoice, feature_sets_of, open_encoder, tile_px
from cellmill_training.selecting.output import TILES_NAME, read_earlier, tile_table, told
from cellmill_training.selecting.project import ProjectSource, write_tile_project
from cellmill_training.selecting.seeds import Rarity, tiles_of_cells, tiles_of_datasets
from cellmill_training.selecting.settings import SelectTilesSettings
from cellmill_training.selecting.slide_tiles import (
    NoTilesError,
    SlideTask,
    SlideTiles,
    load_features,
    measure_slide,
)

__all__ = ["SelectionReport", "select_tiles"]

PROJECT_FOLDER = "qupath"


@dataclass(frozen=True)
class SelectionReport:
    """What was chosen, and what was not looked at."""

    folder: Path
    selection: Selection
    rare: tuple[str, ...]
    num_candidates: int
    set_aside: tuple[tuple[str, str], ...]
    """Slides that could not be used, and why."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _CellSet:
    """A cell set whose slides are chosen from."""

    url: str
    identity: CellSetIdentity
    statuses: Mapping[str, SlideStatus]
    """Of its finished slides."""

    @staticmethod
    def open(url: str) -> "_CellSet | None":
        if not url:
            return None
        store = ObjectStore(url)
        try:
            identity = read_identity(store)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
        statuses = {status.slide_id: status for status in read_statuses(store) if status.outcome == "done"}
        return _CellSet(url, identity, statuses)


@dataclass(frozen=True)
class _Context:
    """What every step needs."""

    settings: SelectTilesSettings
    cells: _CellSet | None
    ontology: Ontology
    encoders: tuple[EncoderChoice, ...]

    @staticmethod
    def of(settings: SelectTilesSettings) -> "_Context":
        """Settings looked up: cell set, classes, encoders; what is not there is said before any slide is opened."""
        cells = _CellSet.open(settings.cells)
        device = choose_device(settings.device)
        encoders = tuple(EncoderChoice(name, settings.encoder_weights, device) for name in settings.encoders)
        for encoder in encoders:
            open_encoder(encoder)
        ontology = cells.identity.ontology if cells else _ontology(settings.ontology)
        return _Context(settings, cells, ontology, encoders)

    @property
    def feature_sets(self) -> tuple[str, ...]:
        """Names of the two feature sets."""
        return tuple(f"{name}:{pooling}" for name, pooling in feature_sets_of(self.settings.encoders))


def select_tiles(settings: SelectTilesSettings, *, say: Callable[[str], None] = lambda _: None) -> SelectionReport:
    """Choose tiles and write the folder.

    Raises:
        ValueError: when settings, encoder or data cannot be used, or no slide can; nothing is written then.
    """
    target = Path(settings.out).expanduser().absolute()
    check_target(target, replace=settings.replace)
    context = _Context.of(settings)
    wanted = tuple(context.ontology.names[_index(context.ontology, name)] for name in settings.rare_types)
    earlier = [read_earlier(path) for path in settings.earlier]
    slides, set_aside = _measured(context, say)
    if not slides:
        reasons = "; ".join(f"{slide_id}: {reason}" for slide_id, reason in set_aside[:3])
        raise ValueError(f"None of the {len(set_aside)} slides can be chosen from. {reasons}")
    rarity = Rarity.of(context.ontology)
    labelled = _labelled(context, slides, rarity)
    config = settings.config()
    rare = wanted or rarity.rare_types(context.ontology, rare_below=config.rare_below)
    say(f"{sum(map(len, slides))} tiles of {len(slides)} slides; rare types: {', '.join(rare) or 'none'}")
    candidates = [
        CandidateSlide(slide.slide_id, slide.cohort, partial(load_features, slide), _taken(slide, earlier))
        for slide in slides
    ]
    selection = choose_tiles(candidates, labelled, config, feature_sets=context.feature_sets, rare=rare)
    notes = _write(target, context, selection, slides, {"rare_types": list(rare), "set_aside": dict(set_aside)})
    return SelectionReport(target, selection, rare, sum(map(len, slides)), set_aside, notes)


def _write(
    target: Path, context: _Context, selection: Selection, slides: Sequence[SlideTiles], found: dict[str, object]
) -> tuple[str, ...]:
    by_id = {slide.slide_id: slide for slide in slides}
    cells = context.cells
    source = ProjectSource(
        context.ontology, ObjectStore(cells.url) if cells else None, frozenset(cells.statuses if cells else ())
    )
    with publishing_folder(target, replace=context.settings.replace) as staging:
        sink = io.BytesIO()
        pq.write_table(tile_table(selection, by_id), sink, compression="zstd")
        (staging / TILES_NAME).write_bytes(sink.getvalue())
        notes = write_tile_project(
            staging / PROJECT_FOLDER, selection.tiles, by_id, source, final_folder=target / PROJECT_FOLDER
        )
        write_record(staging, _record(context, selection, slides) | found | {"notes": list(notes)})
    return notes


def _measured(context: _Context, say: Callable[[str], None]) -> tuple[list[SlideTiles], tuple[tuple[str, str], ...]]:
    """Slides with their tiles, and those that cannot be used."""
    settings = context.settings
    sources = list_sources(settings.slides, secret=read_secret(settings.pseudonymize))
    cohorts = read_groups(settings.slides[0], settings.cohort_column) if settings.cohort_column else {}
    set_aside = [(source.slide_id, source.problem) for source in sources if source.problem is not None]
    usable = {source.slide_id: source for source in sources if source.problem is None}
    tasks = [_task(context, source, cohort=cohorts.get(source.url, "")) for source in usable.values()]
    workers = settings.num_workers or (1 if context.encoders[0].device == "cuda" else granted_cpus())
    slides: list[SlideTiles] = []
    results = over_slides(
        measure_slide,
        tasks,
        num_workers=max(1, min(workers, len(tasks))),
        expected=(SlideError, NoTilesError, OSError),
    )
    for task, result in results:
        if isinstance(result, Failed):
            reason = hide_name(result.reason, usable[task.slide_id])
            set_aside.append((task.slide_id, reason))
            say(f"{task.slide_id} is set aside: {reason}")
        else:
            slides.append(result)
            say(f"{task.slide_id}: {len(result)} tiles")
    return slides, tuple(sorted(set_aside))


def _task(context: _Context, source: SlideSource, *, cohort: str) -> SlideTask:
    settings, cells = context.settings, context.cells
    mpp: tuple[float, float] | float | None = source.mpp if source.mpp is not None else settings.mpp
    fingerprint, reader = None, DEFAULT_READER
    if cells is not None:
        reader = str(cells.identity.config.get("reader", DEFAULT_READER))
        if (status := cells.statuses.get(source.slide_id)) is not None:
            assert status.mpp_x is not None and status.mpp_y is not None, "a slide that is done has a scale"
            mpp, fingerprint = (status.mpp_x, status.mpp_y), status.slide_fingerprint
    tissue: Literal["auto", "none"] | Path = Path(settings.tissue)
    if settings.tissue in ("auto", "none"):
        tissue = "auto" if settings.tissue == "auto" else "none"
    return SlideTask(
        slide_id=source.slide_id,
        cohort=cohort,
        url=source.url,
        encoders=context.encoders,
        tile_px=tile_px(),
        features=settings.features_folder,
        mpp=mpp,
        fingerprint=fingerprint,
        tissue=tissue,
        reader=reader,
        max_tiles=settings.max_tiles_per_slide,
        seed=settings.seed,
    )


def _labelled(context: _Context, slides: Sequence[SlideTiles], rarity: Rarity) -> LabelledTiles | None:
    """Tiles to learn from; None where nothing is known of any."""
    parts: list[LabelledTiles] = []
    if (cells := context.cells) is not None:
        parts += [
            tiles_of_cells(
                cells.url,
                slide,
                context.ontology,
                context.feature_sets,
                min_confidence=context.settings.min_confidence,
                rarity=rarity,
                seed=context.settings.seed,
            )
            for slide in sorted(slides, key=lambda slide: slide.slide_id)
            if slide.slide_id in cells.statuses
        ]
    try:
        datasets = [open_dataset(folder) for folder in context.settings.labelled]
        parts += tiles_of_datasets(datasets, context.ontology, context.encoders, tile_px=tile_px(), rarity=rarity)
    except KeyError as error:
        raise ValueError(f"--labelled: {error.args[0]}") from error
    return LabelledTiles.joined(parts) if parts else None


def _taken(slide: SlideTiles, earlier: Sequence[Mapping[str, set[tuple[int, int]]]]) -> npt.NDArray[np.bool_]:
    known = set[tuple[int, int]]().union(*(tiles.get(slide.slide_id, set()) for tiles in earlier))
    return np.array([place in known for place in map(tuple, slide.tiles.tolist())], np.bool_)


def _record(context: _Context, selection: Selection, slides: Sequence[SlideTiles]) -> dict[str, object]:
    return {
        "made_by": f"cellmill {__version__}",
        "format": "tile selection",
        "tile_px": tile_px(),
        "tile_mpp": TILE_MPP,
        "encoders": {choice.name: open_encoder(choice).digest for choice in context.encoders},
        "config": vars(context.settings.config()),
        "selection": told(selection),
        "slides": [
            {
                "slide_id": slide.slide_id,
                "cohort": slide.cohort,
                "tiles": len(slide),
                "tiles_of_tissue": slide.num_found,
            }
            for slide in sorted(slides, key=lambda slide: slide.slide_id)
        ],
    }


def _ontology(name: str) -> Ontology:
    try:
        return get_ontology(name)
    except KeyError as error:
        raise ValueError(f"--ontology: {error.args[0]}") from error


def _index(ontology: Ontology, name: str) -> int:
    try:
        return ontology.index(name)
    except KeyError as error:
        raise ValueError(f"--rare-types: {error.args[0]}") from error
