"""Slides with QuPath's GeoJSON as labelled images: windows of tissue fragments with the nuclei that the file outlines.

Consumes slides and a folder with `<slide_id>.geojson` (or `.geojson.gz`); produces one `LabelledImage` a window, called
`<slide_id>~f<fragment>_x<x>_y<y>`, so that two folders of annotations of the same slides (weak and expert) give images
of the same names and pixels. Háberová and Vykopal 2023, section 4.1, first step of the preprocessing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from cellmill.cohort.manifest import SlideSource, list_sources
from cellmill.grid import Box
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.staging.cache import node_cache
from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.readers.polygons import Shape, paint_polygons
from cellmill_training.datasets.readers.qupath import Outline, read_outlines
from cellmill_training.weak.fragments import slide_fragments

__all__ = ["AnnotatedSlides", "annotated_windows", "annotation_files"]

_ENDINGS = (".geojson", ".geojson.gz")


@dataclass(frozen=True)
class AnnotatedSlides:
    """How annotations of slides become images."""

    ontology: Ontology
    """Answers to every class of the files."""
    origin: LabelOrigin
    """Of every label: the weak source or the expert."""
    complete: bool
    """Whether every nucleus of the tissue is outlined, as by a weak source; otherwise what lies between outlines is
    unknown, and windows without outlines are left out."""
    mpp: float = 0.25
    """Scale of the images, um/px."""
    window_px: int = 2048
    """Side of a window: 4 x 4 patches of 512 px at full resolution, one at a quarter."""
    min_fragment_mm2: float = 0.05
    """Less tissue is dust."""
    source: str = "slides"
    """What the data set is called in its images."""


def annotation_files(folder: Path) -> dict[str, Path]:
    """File of each slide id.

    Raises:
        ValueError: when there is none.
    """
    files = {path.name.removesuffix(ending): path for ending in _ENDINGS for path in sorted(folder.glob(f"*{ending}"))}
    if not files:
        raise ValueError(f"{folder} holds no <slide_id>.geojson; export the objects of each image from QuPath there.")
    return files


def annotated_windows(
    slides: Sequence[str], annotations: Path, how: AnnotatedSlides, *, secret: bytes | None = None
) -> Iterator[LabelledImage]:
    """Images of all slides that there are files for, in the order of their ids.

    Args:
        slides: files, globs, folders, URLs or manifests.
        annotations: folder of GeoJSON files.
        how: scale, classes and lineage.
        secret: makes slide ids pseudonyms, which the files are then named by.

    Raises:
        ValueError: naming the file and the feature that cannot be understood, or the slide that a file has not.
        SlideError: when a slide cannot be opened.
    """
    sources = {source.slide_id: source for source in list_sources(slides, secret=secret)}
    for slide_id, path in sorted(annotation_files(annotations).items()):
        source = sources.get(slide_id)
        if source is None or source.problem is not None:
            why = "is not among --slides" if source is None else source.problem
            raise ValueError(f"{path} is for slide {slide_id!r}, which {why}. Rename the file, or add the slide.")
        yield from _windows_of_slide(source, read_outlines(path, how.ontology), how)


def _windows_of_slide(
    source: SlideSource, outlines: Sequence[Outline], how: AnnotatedSlides
) -> Iterator[LabelledImage]:
    with (
        node_cache().stage(source.url) as copy,
        IsolatedSlide(copy.path, target_mpp=how.mpp, mpp=source.mpp) as slide,
    ):
        moved = _on_grid(outlines, slide)
        tree = shapely.STRtree(moved)
        for number, fragment in enumerate(slide_fragments(slide, min_mm2=how.min_fragment_mm2)):
            for box in _windows(fragment, how.window_px):
                rows = sorted(tree.query(shapely.box(box.x0, box.y0, box.x1, box.y1), predicate="intersects").tolist())
                if rows or how.complete:
                    name = f"{source.slide_id}~f{number}_x{box.x0}_y{box.y0}"
                    shown = [(moved[row], outlines[row]) for row in rows]
                    yield _image(slide, box, shown, name=name, group=source.slide_id, how=how)


def _on_grid(outlines: Sequence[Outline], slide: IsolatedSlide) -> list[Shape]:
    """Shapes in px of the model grid; a viewer's origin is that of the slide's bounds."""
    info = slide.info
    scale = np.array([slide.grid.width_px / info.width_level0_px, slide.grid.height_px / info.height_level0_px])
    origin = np.array(info.bounds_level0_px, np.float64)
    return [_transformed(outline.shape, scale, origin * scale) for outline in outlines]


def _transformed(shape: Shape, scale: np.ndarray, offset: np.ndarray) -> Shape:
    moved = shapely.transform(shape, lambda xy: xy * scale + offset)
    assert isinstance(moved, Shape)
    return moved


def _windows(fragment: Box, window_px: int) -> Iterator[Box]:
    for y0 in range(fragment.y0, fragment.y1, window_px):
        for x0 in range(fragment.x0, fragment.x1, window_px):
            yield Box(x0, y0, x0 + window_px, y0 + window_px).clipped(fragment)


def _image(
    slide: IsolatedSlide,
    box: Box,
    shown: Sequence[tuple[Shape, Outline]],
    *,
    name: str,
    group: str,
    how: AnnotatedSlides,
) -> LabelledImage:
    size, corner = (box.height, box.width), -np.array([box.x0, box.y0], np.float64)
    local = [(_transformed(shape, np.ones(2), corner), outline) for shape, outline in shown]
    cells = [(shape, outline) for shape, outline in local if not outline.is_ignored]
    ignored = [shape for shape, outline in local if outline.is_ignored]
    instances, numbers = densely_numbered(paint_polygons([shape for shape, _ in cells], size, where=name))
    unknown = np.full(size, not how.complete, np.bool_)
    if ignored:
        unknown |= paint_polygons(ignored, size, where=name) > 0
    return LabelledImage(
        image_id=name,
        source=how.source,
        tissue="",
        split_group=group,
        fold="",
        mpp=how.mpp,
        image=np.ascontiguousarray(slide.read(box).pixels),
        instances=instances,
        labels=tuple(CellLabel(cells[number - 1][1].cell_types, how.origin) for number in numbers),
        unknown=unknown & (instances == 0),
    )
