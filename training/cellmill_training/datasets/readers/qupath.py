"""QuPath GeoJSON beside images: outlines of nuclei as annotations, detections or cells, typed by their classification.

In: `<name>.geojson` (or `.geojson.gz`, or `<name>_nuclei.geojson` as PUMA has it) and an image called `<name>` anywhere
below the folder, small enough to be read whole. Out: one labelled image a file; the image is its own split group.
A cell's nucleus is taken where it has one. Objects classed `Ignore*` are unknown pixels, regions (`Region*`) and tiles
are no nuclei, an object without a class is a nucleus of unknown type, points and lines are refused.

PUMA (Schuiveling et al. 2025, CC0): melanoma, ten classes, 0.226 um/px by the source.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import shapely
import tifffile
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry import shape as geometry_of

from cellmill_schemas.ontology import Ontology, get_ontology
from cellmill_training.datasets.labelled_image import LabelledImage, LabelOrigin
from cellmill_training.datasets.readers.building import ImageSource, build_image
from cellmill_training.datasets.readers.files import read_rgb
from cellmill_training.datasets.readers.polygons import Shape, Vertices, paint_polygons, repaired

__all__ = [
    "PUMA_MPP",
    "Outline",
    "class_name_of",
    "features_of_file",
    "read_outlines",
    "read_puma",
    "read_qupath",
    "shape_of",
]

PUMA_MPP = 0.226
_MAX_PIXELS = 200_000_000
_IMAGE_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_NO_NUCLEI = ("region*",)
_IGNORED = ("ignore*",)


@dataclass(frozen=True)
class Outline:
    """One drawn object."""

    shape: Shape
    cell_types: tuple[str, ...]
    """Canonical class name, or none."""
    is_ignored: bool
    """Drawn to say that nobody knows what is there."""


def read_puma(folder: Path) -> Iterator[LabelledImage]:
    """PUMA's regions: every `*_nuclei.geojson` below `folder`."""
    yield from read_qupath(
        folder,
        ontology=get_ontology("puma10"),
        mpp=PUMA_MPP,
        source="puma",
        tissue="melanoma",
        pattern="*_nuclei.geojson",
        vertices="centres",
    )


def read_qupath(
    folder: Path,
    *,
    ontology: Ontology,
    mpp: float,
    source: str,
    tissue: str = "",
    origin: LabelOrigin | None = None,
    pattern: str = "*.geojson*",
    vertices: Vertices = "corners",
) -> Iterator[LabelledImage]:
    """All images with GeoJSON below `folder`.

    Args:
        folder: with both.
        ontology: answers to every classification, by name or synonym.
        mpp: micrometres per pixel of the images.
        source: what the data set is called.
        tissue: of all images.
        origin: of every label; default: the data set.
        pattern: which files hold outlines.
        vertices: what vertex coordinates mean, see `polygons`.

    Raises:
        ValueError: naming file and feature, when a file is damaged, an image missing, a polygon broken or a class not
            in the ontology.
    """
    files = sorted(folder.rglob(pattern))
    if not files:
        raise ValueError(f"{folder} holds no {pattern}; export the objects of each image from QuPath as GeoJSON.")
    images = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _IMAGE_ENDINGS}
    for path in files:
        stem = path.name.split(".geojson")[0].removesuffix("_nuclei")
        if stem not in images:
            raise ValueError(f"{path} has no image {stem} with {', '.join(_IMAGE_ENDINGS)} below {folder}.")
        image = _pixels(images[stem])
        outlines = read_outlines(path, ontology)
        cells = [outline for outline in outlines if not outline.is_ignored]
        size = (image.shape[0], image.shape[1])
        name = f"{source}-{stem}"
        yield build_image(
            ImageSource(name, source, name, mpp, tissue=tissue),
            image,
            paint_polygons([cell.shape for cell in cells], size, where=str(path), vertices=vertices),
            {number: cell.cell_types for number, cell in enumerate(cells, start=1)},
            origin=origin,
            unknown=paint_polygons([o.shape for o in outlines if o.is_ignored], size, where=str(path)) > 0,
        )


def read_outlines(path: Path, ontology: Ontology) -> list[Outline]:
    """The nuclei and ignored areas of a file, in its order.

    Raises:
        ValueError: naming file and feature.
    """
    outlines: list[Outline] = []
    for number, feature in enumerate(features_of_file(path)):
        identity = feature.get("id") if isinstance(feature, dict) else None
        where = f"{path}, feature {number}" + (f" ({identity})" if isinstance(identity, str) else "")
        outline = _outline(feature, ontology, where=where)
        if outline is not None:
            outlines.append(outline)
    return outlines


def features_of_file(path: Path) -> list[Any]:
    """Features of a `.geojson` or `.geojson.gz` file.

    Raises:
        ValueError: when it is no GeoJSON.
    """
    try:
        raw = path.read_bytes()
        document: Any = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no GeoJSON that can be read ({error}). Export it from QuPath again.") from error
    if isinstance(document, dict):
        found = cast(dict[str, Any], document)
        document = found.get("features") if found.get("type") == "FeatureCollection" else [found]
    if not isinstance(document, list):
        raise ValueError(f"{path} must hold a FeatureCollection, a list of features or one feature.")
    return cast(list[Any], document)


def _outline(feature: Any, ontology: Ontology, *, where: str) -> Outline | None:
    if not isinstance(feature, dict) or not isinstance(feature.get("properties", {}) or {}, dict):
        raise ValueError(f"{where} is no GeoJSON feature. Export the file from QuPath again.")
    properties: dict[str, Any] = feature.get("properties") or {}
    name = class_name_of(properties, where=where)
    if properties.get("objectType") == "tile" or (name or "").lower() in _NO_NUCLEI:
        return None
    shape = shape_of(feature.get("nucleusGeometry") or feature.get("geometry"), where=where)
    if shape is None:
        return None
    if (name or "").lower() in _IGNORED:
        return Outline(shape, (), is_ignored=True)
    if name is None:
        return Outline(shape, (), is_ignored=False)
    try:
        return Outline(shape, (ontology.names[ontology.index(name)],), is_ignored=False)
    except KeyError as error:
        raise ValueError(
            f"{where}: {error.args[0]} Name an ontology that has it (a synonym in its JSON file is enough), or change "
            "the class in QuPath."
        ) from error


def class_name_of(properties: Mapping[str, Any], *, where: str) -> str | None:
    """The class of an object; QuPath writes {"name", "color"}, {"names": [...]} for derived classes, or the plain name.

    Raises:
        ValueError: when it is none of these.
    """
    given = properties.get("classification")
    if isinstance(given, dict):
        names = cast(dict[str, Any], given)
        given = names.get("name") or (names.get("names") or [None])[0]
    if given is not None and not isinstance(given, str):
        raise ValueError(f"{where}: its classification must be a name, got {given!r}. Export the file again.")
    return given or None


def shape_of(geometry: Any, *, where: str) -> Shape | None:
    """A valid polygon; None where it encloses nothing.

    Raises:
        ValueError: when it is a point, a line or broken.
    """
    kind = cast(dict[str, Any], geometry).get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(
            f"{where}: a nucleus is a Polygon or MultiPolygon, got {kind}. Delete it in QuPath, or outline it "
            "(jobs/outline_points.py draws outlines around points)."
        )
    try:
        shape = geometry_of(geometry)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as error:
        raise ValueError(f"{where}: its coordinates form no polygon ({error}). Draw it again in QuPath.") from error
    if not isinstance(shape, Polygon | MultiPolygon) or not np.isfinite(shapely.get_coordinates(shape)).all():
        raise ValueError(f"{where}: its coordinates form no polygon (not finite). Draw it again in QuPath.")
    return repaired(shape)


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return read_rgb(path)
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            if int(np.prod(page.shape[:2])) > _MAX_PIXELS:
                raise ValueError(f"it has {page.shape[1]} x {page.shape[0]} px; export regions of the slide instead")
            pixels = np.asarray(page.asarray())
    except Exception as error:  # tifffile meets damaged files with any type of exception
        raise ValueError(f"{path} cannot be read ({error}).") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ValueError(f"{path} must be an 8-bit RGB image, got {pixels.dtype} {pixels.shape}.")
    return np.ascontiguousarray(pixels[..., :3])
