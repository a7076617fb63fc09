"""Slides of a cell set beside their files: which are exported, where a viewer's origin lies, which areas they have.

In: a cell set and the slides it was made from. Out: one `ExportSlide` a slide, and a `SlideView` of each when it is its
turn.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.export.areas import SlideArea, find_areas
from cellmill.export.config import ExportConfig
from cellmill.privacy import read_secret
from cellmill.slides.errors import SlideError
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.opening import slide_file
from cellmill.staging.cache import node_cache
from cellmill.staging.remote import is_remote
from cellmill.store.identity import CellSetIdentity
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_statuses
from cellmill_schemas.slides import SlideStatus

__all__ = ["ExportSlide", "SlideView", "choose_slides", "view_slide"]

_DONE = ("done", "done_empty")


@dataclass(frozen=True)
class ExportSlide:
    """A slide to export."""

    status: SlideStatus
    source: SlideSource | None
    """Its file; None where none was given and none is needed."""

    @property
    def slide_id(self) -> str:
        """The slide."""
        return self.status.slide_id

    def image_file(self) -> Path:
        """The file that a viewer opens.

        Raises:
            ValueError: when it is not on this computer.
        """
        assert self.source is not None
        if is_remote(self.source.url):
            raise ValueError(
                f"Slide {self.slide_id} lies at a URL, and a QuPath project opens files; give --slides as local files, "
                "or use --format geojson."
            )
        return slide_file(Path(self.source.url)).absolute()


@dataclass(frozen=True)
class SlideView:
    """What an export needs to know of the open slide."""

    origin_level0_px: tuple[int, int]
    """Level-0 position of QuPath's origin: the scanned area's corner on slides that state bounds."""
    areas: tuple[SlideArea, ...]
    notes: tuple[str, ...] = ()
    """What is missing, in sentences."""


def choose_slides(config: ExportConfig, store: ObjectStore) -> tuple[tuple[ExportSlide, ...], tuple[str, ...]]:
    """The slides to export by id, and notes on those left out.

    Raises:
        ValueError: when a slide asked for cannot be exported, or none can.
    """
    statuses = {status.slide_id: status for status in read_statuses(store)}
    done = {slide_id: status for slide_id, status in statuses.items() if status.outcome in _DONE}
    sources = {source.slide_id: source for source in _sources(config)}
    wanted = config.slide_id or tuple(sorted(done))
    for slide_id in config.slide_id:
        if slide_id not in done:
            stands = statuses[slide_id].outcome if slide_id in statuses else "not in it"
            raise ValueError(f"--slide-id {slide_id}: {store.url} has no cells of it, for it is {stands}.")
    missing = [slide_id for slide_id in wanted if sources and slide_id not in sources]
    if missing and (config.slide_id or len(missing) == len(wanted)):
        raise ValueError(
            f"--slides holds no file of {_some(missing)}; give the slides that {store.url} was made from"
            f"{'' if config.pseudonymize else ', with --pseudonymize if that was used'}."
        )
    if not wanted:
        raise ValueError(f"{store.url} holds no finished slide; see its slides.parquet.")
    chosen = tuple(ExportSlide(done[slide_id], sources.get(slide_id)) for slide_id in wanted if slide_id not in missing)
    notes = [f"{len(missing)} slides of the cell set are not among --slides: {_some(missing)}."] if missing else []
    return chosen, tuple(notes)


def view_slide(slide: ExportSlide, identity: CellSetIdentity, config: ExportConfig, *, store: ObjectStore) -> SlideView:
    """Open the slide's file and look at what an export needs.

    Raises:
        ValueError: when it cannot be opened or is not the file that was segmented.
    """
    assert slide.source is not None
    status, settings = slide.status, identity.config
    assert status.mpp_x is not None and status.mpp_y is not None and status.target_mpp is not None
    try:
        with (
            node_cache().stage(slide.source.url) as copy,
            IsolatedSlide(
                copy.path,
                target_mpp=status.target_mpp,
                mpp=(status.mpp_x, status.mpp_y),
                reader=str(settings["reader"]),
            ) as opened,
        ):
            if opened.info.fingerprint != status.slide_fingerprint:
                raise ValueError(
                    f"Slide {slide.slide_id}: the file among --slides is not the one that was segmented (fingerprint "
                    f"{opened.info.fingerprint}, then {status.slide_fingerprint}); its cells would lie elsewhere."
                )
            areas, notes = _areas(opened, slide, identity, config, store)
            return SlideView(opened.info.bounds_level0_px, areas, notes)
    except SlideError as error:
        raise ValueError(f"Slide {slide.slide_id} cannot be opened: {error}") from error


def _areas(
    opened: IsolatedSlide, slide: ExportSlide, identity: CellSetIdentity, config: ExportConfig, store: ObjectStore
) -> tuple[tuple[SlideArea, ...], tuple[str, ...]]:
    if config.areas == "none":
        return (), ()
    made_with = str(identity.config["tissue"])
    tissue: Literal["auto", "none"] | Path
    if made_with in ("auto", "none"):
        tissue = "auto" if made_with == "auto" else "none"
    elif config.tissue is not None:
        tissue = Path(config.tissue)
    else:
        return (), (
            f"{slide.slide_id}: no areas, because the cell set was made with a region file; give it as --tissue.",
        )
    try:
        return find_areas(opened, slide.status, identity.config, tissue=tissue, store=store), ()
    except ValueError as error:
        return (), (f"{slide.slide_id}: no areas, because {error}.",)


def _sources(config: ExportConfig) -> Iterable[SlideSource]:
    sources = list_sources(config.slides, secret=read_secret(config.pseudonymize))
    problems = [source.problem for source in sources if source.problem and source.slide_id in config.slide_id]
    if problems:
        raise ValueError(problems[0])
    return [source for source in sources if source.problem is None]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
