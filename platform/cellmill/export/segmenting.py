"""A model run inside the annotations of a QuPath project, and its cells brought back to the images.

In: a project, annotations, a model. Out: for each image a cell set of its own under `cellmill/cells/`, and its cells
whose centroid lies in the annotations as GeoJSON in `cellmill/results/<entry>/`, or inside the image through QuPath.
Nothing else of the project is touched. The run is the cohort's own, with the annotations as its region file, so that a
killed one goes on where it was and unchanged annotations cost nothing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shapely.geometry import MultiPolygon, Polygon

from cellmill.cohort.config import SegmentCohortConfig
from cellmill.cohort.engine import EngineFactory
from cellmill.cohort.pipeline import ray_engine
from cellmill.cohort.progress import Progress
from cellmill.cohort.run import run_cohort
from cellmill.cohort.sources import CohortModel
from cellmill.export.annotations import drawn_regions, image_features, write_region_file
from cellmill.export.features import CellFeatures
from cellmill.export.folder import check_target, publishing_folder, write_record
from cellmill.export.objects import write_objects
from cellmill.export.project_files import (
    PROJECT_NAME,
    ProjectImage,
    read_project,
    write_script,
    write_segment_script,
)
from cellmill.export.qupath import ask_qupath, qupath_is_present
from cellmill.export.segment_config import SegmentProjectConfig
from cellmill.export.selection import CellSelection, read_selected
from cellmill.slides.errors import SlideError
from cellmill.slides.isolation import IsolatedReader
from cellmill.store.errors import StoreError
from cellmill.store.identity import read_identity
from cellmill.store.objects import ObjectStore
from cellmill.store.statuses import read_statuses

__all__ = ["ImageResult", "segment_project"]


@dataclass(frozen=True)
class ImageResult:
    """How one image ended."""

    image: ProjectImage
    outcome: str
    """`done`, `no annotations`, or `failed`."""
    reason: str = ""
    num_cells: int = 0
    """Cells inside the annotations."""
    inserted: bool = False
    """Whether they are in the image; otherwise a script brings them in."""


@dataclass(frozen=True)
class _Work:
    """One image and what to do there."""

    image: ProjectImage
    origin_level0_px: tuple[int, int]
    within: Polygon | MultiPolygon | None
    tissue: str
    cells: Path
    results: Path


class _LeftOutError(Exception):
    """An image that has nothing to do."""


def segment_project(
    config: SegmentProjectConfig, model: CohortModel, *, progress: Progress, engine: EngineFactory = ray_engine
) -> tuple[ImageResult, ...]:
    """Segment the images of a project; one result an image, in the project's order.

    Args:
        config: the settings.
        model: where dense maps come from.
        progress: what the user sees.
        engine: what executes the run.

    Raises:
        ValueError: when the project or an image asked for is not there.
    """
    project = Path(config.project).expanduser().absolute()
    images = _chosen(read_project(project), config.image)
    through_qupath = config.insert == "auto" and qupath_is_present()
    results = tuple(
        _image_result(project, image, config, model, progress=progress, engine=engine, through_qupath=through_qupath)
        for image in images
    )
    write_segment_script(project)
    write_script(project, "cellmill_import_results.groovy")
    return results


def _chosen(images: Sequence[ProjectImage], wanted: tuple[str, ...]) -> Sequence[ProjectImage]:
    for name in wanted:
        if not any(name in (image.entry_id, image.name) for image in images):
            there = ", ".join(f"{image.entry_id} ({image.name})" for image in images[:8])
            raise ValueError(f"--image {name!r} is not in the project; it has {there or 'no images'}.")
    return [image for image in images if not wanted or image.entry_id in wanted or image.name in wanted]


def _image_result(
    project: Path,
    image: ProjectImage,
    config: SegmentProjectConfig,
    model: CohortModel,
    *,
    progress: Progress,
    engine: EngineFactory,
    through_qupath: bool,
) -> ImageResult:
    try:
        work = _prepare(project, image, config, model, through_qupath=through_qupath)
        reason = _run(work, config, model, progress=progress, engine=engine)
        if reason:
            return ImageResult(image, "failed", reason)
        num_cells = _write_results(work, config)
        if through_qupath:
            _insert(project, work, config)
        return ImageResult(image, "done", num_cells=num_cells, inserted=through_qupath)
    except _LeftOutError as error:
        return ImageResult(image, "no annotations", str(error))
    except (ValueError, SlideError, StoreError) as error:
        return ImageResult(image, "failed", str(error))


def _prepare(
    project: Path, image: ProjectImage, config: SegmentProjectConfig, model: CohortModel, *, through_qupath: bool
) -> _Work:
    """Find the image's frame and regions, and the folders its cells will lie in."""
    results = project / "cellmill" / "results" / image.entry_id
    check_target(results, replace=config.replace)
    if image.problem is not None:
        raise ValueError(f"it cannot be used: {image.problem}")
    origin = _origin_level0_px(image)
    if not config.annotations:
        return _Work(image, origin, None, "auto", _cells_folder(project, image, config, model, "tissue"), results)
    features = image_features(project, image, through_qupath=through_qupath)
    regions = drawn_regions(features, classes=config.annotation_class, origin_level0_px=origin)
    if regions is None:
        wanted = f" of class {', '.join(config.annotation_class)}" if config.annotation_class else ""
        raise _LeftOutError(f"no annotation with an area{wanted} was drawn")
    region_file = project / "cellmill" / "regions" / f"{image.entry_id}.geojson"
    write_region_file(region_file, regions)
    cells = _cells_folder(project, image, config, model, region_file.read_text(encoding="utf-8"))
    return _Work(image, origin, regions.shape_level0_px, str(region_file), cells, results)


def _cells_folder(
    project: Path, image: ProjectImage, config: SegmentProjectConfig, model: CohortModel, regions: str
) -> Path:
    """One cell set an image, model and set of annotations: a cell set has one model and one region file."""
    digest = hashlib.sha256(f"{model.digest}\n{config.mpp}\n{regions}".encode()).hexdigest()[:12]
    return project / "cellmill" / "cells" / f"{image.entry_id}-{digest}"


def _origin_level0_px(image: ProjectImage) -> tuple[int, int]:
    """Where QuPath's origin lies on the slide."""
    reader = IsolatedReader(image.path)
    try:
        bounds = reader.bounds_level0_px
    finally:
        reader.close()
    if bounds == (0, 0) or not image.is_cropped_to_bounds:
        return (0, 0)
    if not image.may_be_openslide:
        raise ValueError(
            f"the slide's scanned area begins at {bounds} level-0 px, and how {image.provider} counts from there is "
            "not known; add the image to the project with QuPath's OpenSlide reader"
        )
    return bounds


def _run(
    work: _Work, config: SegmentProjectConfig, model: CohortModel, *, progress: Progress, engine: EngineFactory
) -> str:
    """Segment the image; returns why it failed, or nothing."""
    settings = SegmentCohortConfig(
        slides=(str(work.image.path),),
        out=str(work.cells),
        model=config.model,
        mpp=config.mpp,
        tissue=work.tissue,
        device=config.device,
        field_px=config.field_px,
        num_workers=config.num_workers,
    )
    report = run_cohort(settings, model, progress=progress, engine=engine)
    return "" if report.all_done else " ".join(report.statuses[0].reasons)


def _write_results(work: _Work, config: SegmentProjectConfig) -> int:
    store = ObjectStore(work.cells)
    identity, slide_id = read_identity(store), _slide_id(work)
    features = CellFeatures(slide_id, identity.ontology, config.as_, work.origin_level0_px)
    with publishing_folder(work.results, replace=True) as staging:
        cells = read_selected(store, slide_id, CellSelection(within=work.within))
        num_cells = write_objects(staging, cells, features, areas=[])
        write_record(
            staging,
            {
                "slide_id": slide_id,
                "entry_id": work.image.entry_id,
                "cells": store.url,
                "cell_set": identity.to_json(),
                "origin_level0_px": list(work.origin_level0_px),
                "num_cells": num_cells,
            },
        )
    return num_cells


def _insert(project: Path, work: _Work, config: SegmentProjectConfig) -> None:
    store = ObjectStore(work.cells)
    task = {
        "do": "insert",
        "project": str(project / PROJECT_NAME),
        "entry_id": work.image.entry_id,
        "ontology": read_identity(store).ontology.to_json(),
        "cells": store.url,
        "slide_id": _slide_id(work),
        "where": None,
        "within_wkt": None if work.within is None else work.within.wkt,
        "origin_level0_px": list(work.origin_level0_px),
        "kind": config.as_,
        "areas": [],
    }
    ask_qupath(task)


def _slide_id(work: _Work) -> str:
    """Of the one slide of the image's cell set."""
    (status,) = read_statuses(ObjectStore(work.cells))
    return status.slide_id
