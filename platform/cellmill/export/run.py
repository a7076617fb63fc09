"""An export from beginning to end: cells out of a cell set, into a folder that appears whole.

In: an `ExportConfig`. Out: the folder, and an `ExportReport` that says what is in it and what is left to do. Cells pass
through a batch at a time: memory does not grow with the slide (SpatialData and QuPath itself hold one slide).
"""

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellmill import __version__
from cellmill.export.config import ExportConfig
from cellmill.export.features import CellFeatures
from cellmill.export.folder import check_target, publishing_folder, write_record
from cellmill.export.objects import area_features, write_objects
from cellmill.export.project_files import (
    PROJECT_NAME,
    set_project_uri,
    write_classes,
    write_project,
    write_script,
    write_segment_script,
)
from cellmill.export.qupath import ask_qupath, qupath_is_present
from cellmill.export.selection import CellSelection, parse_where, read_selected
from cellmill.export.slides import ExportSlide, SlideView, choose_slides, view_slide
from cellmill.export.spatial_data import require_spatialdata, write_spatial_data
from cellmill.store.identity import CellSetIdentity, read_identity
from cellmill.store.objects import ObjectStore

__all__ = ["ExportReport", "ExportedSlide", "cell_set_id", "export_cells"]

_UUID_RULE = (
    "An object's id is a UUID: its low 64 bits are the cell_id, its high 64 bits the first 8 bytes of "
    "SHA-256('cellmill slide ' + slide_id)."
)
_IMPORT_STEPS = (
    "Open {project} in QuPath: its images open empty.",
    "Automate > Project scripts > cellmill_import_objects, then Run > Run for project, and choose all images.",
    "Or without a window: QuPath script {script} -p {project} -s",
)


@dataclass(frozen=True)
class ExportedSlide:
    """What was exported of a slide."""

    slide_id: str
    num_cells: int
    num_areas: int
    origin_level0_px: tuple[int, int]
    entry_id: str | None = None
    """Its image in the QuPath project."""


@dataclass(frozen=True)
class ExportReport:
    """How an export went."""

    folder: Path
    slides: tuple[ExportedSlide, ...]
    notes: tuple[str, ...]
    """What is missing, in sentences."""
    left_to_do: tuple[str, ...]
    """Steps that remain for a person."""
    seconds: float

    @property
    def num_cells(self) -> int:
        """Cells of all slides."""
        return sum(slide.num_cells for slide in self.slides)


@dataclass(frozen=True)
class _Export:
    """What every writer needs."""

    config: ExportConfig
    store: ObjectStore
    identity: CellSetIdentity
    selection: CellSelection
    staging: Path
    notes: list[str]

    def view(self, slide: ExportSlide) -> SlideView:
        """The slide as its file shows it; without a file, nothing is known of it."""
        if slide.source is None:
            return SlideView(origin_level0_px=(0, 0), areas=())
        view = view_slide(slide, self.identity, self.config, store=self.store)
        self.notes.extend(view.notes)
        return view

    def cells_of(self, slide: ExportSlide) -> Any:
        """Batches of the slide's cells wanted; a slide without cells has none."""
        return read_selected(self.store, slide.slide_id, self.selection)

    def features(self, slide: ExportSlide, view: SlideView) -> CellFeatures:
        """What turns its cells into text."""
        return CellFeatures(slide.slide_id, self.identity.ontology, self.config.as_, view.origin_level0_px)


def export_cells(config: ExportConfig) -> ExportReport:
    """Export a cell set.

    Raises:
        ValueError: when the settings cannot be met; nothing is written then.
        QuPathError: when QuPath is present and fails; nothing is written then either.
    """
    started = time.monotonic()
    target = Path(config.project).expanduser().absolute()
    check_target(target, replace=config.replace)
    store = ObjectStore(config.cells)
    try:
        identity = read_identity(store)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    where = None if config.where is None else parse_where(config.where, identity.ontology)
    write, left_to_do = _writer(config, target)
    slides, notes = choose_slides(config, store)
    with publishing_folder(target, replace=config.replace) as staging:
        export = _Export(config, store, identity, CellSelection(where=where), staging, list(notes))
        exported = write(export, slides, target)
        write_record(staging, _record(export, slides, exported))
    return ExportReport(target, exported, tuple(export.notes), left_to_do, time.monotonic() - started)


def cell_set_id(identity: CellSetIdentity) -> str:
    """A name for a cell set: 32 hexadecimal digits over its whole identity."""
    return hashlib.sha256(json.dumps(identity.to_json(), sort_keys=True).encode()).hexdigest()[:32]


_Writer = Callable[[_Export, Sequence[ExportSlide], Path], tuple[ExportedSlide, ...]]


def _writer(config: ExportConfig, target: Path) -> tuple[_Writer, tuple[str, ...]]:
    if config.format == "geojson":
        return _write_geojson, ()
    if config.format == "spatialdata":
        require_spatialdata()
        return _write_spatialdata, ()
    if qupath_is_present():
        return _write_with_qupath, ()
    script, project = target / "scripts" / "cellmill_import_objects.groovy", target / PROJECT_NAME
    steps = tuple(
        step.format(project=shlex.quote(str(project)), script=shlex.quote(str(script))) for step in _IMPORT_STEPS
    )
    return _write_project_files, steps


def _write_geojson(export: _Export, slides: Sequence[ExportSlide], target: Path) -> tuple[ExportedSlide, ...]:
    del target
    return tuple(_write_parts(export, slide, export.staging / slide.slide_id) for slide in slides)


def _write_spatialdata(export: _Export, slides: Sequence[ExportSlide], target: Path) -> tuple[ExportedSlide, ...]:
    del target
    exported: list[ExportedSlide] = []
    for slide in slides:
        view = export.view(slide)
        num_cells = write_spatial_data(
            export.staging / f"{slide.slide_id}.zarr",
            export.cells_of(slide),
            status=slide.status,
            ontology=export.identity.ontology,
            areas=view.areas,
        )
        exported.append(ExportedSlide(slide.slide_id, num_cells, len(view.areas), (0, 0)))
    return tuple(exported)


def _write_project_files(export: _Export, slides: Sequence[ExportSlide], target: Path) -> tuple[ExportedSlide, ...]:
    """The project without QuPath: objects lie beside it, and a script brings them in."""
    images = [(slide.slide_id, slide.slide_id, slide.image_file(), _metadata(export, slide)) for slide in slides]
    made = write_project(export.staging, images, final_folder=target)
    write_classes(export.staging, export.identity.ontology)
    write_script(export.staging, "cellmill_import_objects.groovy")
    write_segment_script(export.staging)
    steps = [
        step.format(project=PROJECT_NAME, script="scripts/cellmill_import_objects.groovy") for step in _IMPORT_STEPS
    ]
    numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))
    text = f"This project was made without QuPath. Its cells are in objects/ and not in the images yet.\n\n{numbered}\n"
    (export.staging / "READ_ME_FIRST.txt").write_text(text, encoding="utf-8")
    return tuple(
        _write_parts(export, slide, export.staging / "objects" / image.entry_id, entry_id=image.entry_id)
        for slide, image in zip(slides, made, strict=True)
    )


def _write_parts(export: _Export, slide: ExportSlide, folder: Path, entry_id: str | None = None) -> ExportedSlide:
    view = export.view(slide)
    areas = area_features(slide.slide_id, view.areas, view.origin_level0_px)
    num_cells = write_objects(
        folder,
        export.cells_of(slide),
        export.features(slide, view),
        areas=areas,
        by_class=export.config.by_class,
    )
    return ExportedSlide(slide.slide_id, num_cells, len(areas), view.origin_level0_px, entry_id)


def _write_with_qupath(export: _Export, slides: Sequence[ExportSlide], target: Path) -> tuple[ExportedSlide, ...]:
    """The project made by QuPath: one process creates it, one a slide puts its objects in."""
    project, ontology = export.staging / PROJECT_NAME, export.identity.ontology.to_json()
    images = [
        {
            "slide_id": slide.slide_id,
            "name": slide.slide_id,
            "path": str(slide.image_file()),
            "metadata": _metadata(export, slide),
        }
        for slide in slides
    ]
    entry_ids = ask_qupath({"do": "create", "project": str(project), "ontology": ontology, "images": images})[
        "entry_ids"
    ]
    exported: list[ExportedSlide] = []
    for slide in slides:
        view = export.view(slide)
        task = {
            "do": "insert",
            "project": str(project),
            "entry_id": entry_ids[slide.slide_id],
            "ontology": ontology,
            "cells": export.store.url,
            "slide_id": slide.slide_id,
            "where": export.config.where,
            "within_wkt": None,
            "origin_level0_px": list(view.origin_level0_px),
            "kind": export.config.as_,
            "areas": area_features(slide.slide_id, view.areas, view.origin_level0_px),
        }
        counts = ask_qupath(task)
        exported.append(
            ExportedSlide(
                slide.slide_id,
                counts["num_cells"],
                counts["num_areas"],
                view.origin_level0_px,
                entry_ids[slide.slide_id],
            )
        )
    set_project_uri(export.staging, final_folder=target)
    (export.staging / f"{PROJECT_NAME}.backup").unlink(missing_ok=True)  # QuPath's, of each state before the last
    write_segment_script(export.staging)
    return tuple(exported)


def _metadata(export: _Export, slide: ExportSlide) -> dict[str, str]:
    """What QuPath shows of an image's origin; the record has all of it."""
    return {
        "cellmill slide": slide.slide_id,
        "cellmill cell set": cell_set_id(export.identity),
        "cellmill model": f"{export.identity.model_name} {export.identity.model_digest}",
    }


def _record(export: _Export, slides: Sequence[ExportSlide], exported: Sequence[ExportedSlide]) -> dict[str, Any]:
    config, identity = export.config, export.identity
    return {
        "made_by": f"cellmill {__version__}",
        "format": config.format,
        "objects": config.as_,
        "where": config.where,
        "cells": export.store.url,
        "cell_set_id": cell_set_id(identity),
        "cell_set": identity.to_json(),
        "object_ids": _UUID_RULE,
        "frame": "level-0 px of the slide less origin_level0_px",
        "slides": [
            {
                "slide_id": one.slide_id,
                "entry_id": one.entry_id,
                "origin_level0_px": list(one.origin_level0_px),
                "num_cells": one.num_cells,
                "num_areas": one.num_areas,
                "cells_sha256": slide.status.cells_sha256,
                "slide_fingerprint": slide.status.slide_fingerprint,
            }
            for slide, one in zip(slides, exported, strict=True)
        ],
    }
