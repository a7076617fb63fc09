"""Corrected objects of one slide, in the slide's own frame.

In: a GeoJSON file with all objects of an image that cellmill exported and a person corrected. Out: nuclei, each with
the cell it once was where its id still says so, and the regions that the person marked as complete.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import shapely
from shapely.geometry import MultiPolygon, Polygon

from cellmill.export.object_ids import cell_id_of_uuid
from cellmill.export.project_files import AREA_CLASSES
from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.readers.polygons import Shape
from cellmill_training.datasets.readers.qupath import class_name_of, features_of_file, shape_of

__all__ = ["COMPLETE_CLASS", "TO_ANNOTATE_CLASS", "CorrectedNucleus", "CorrectedSlide", "read_corrected"]

COMPLETE_CLASS = "Complete"
"""Class of the annotations inside which every nucleus has been seen to."""

TO_ANNOTATE_CLASS = "To annotate"
"""Class of the tiles that select-tiles proposes, until a person has seen to them and says `Complete`."""

_NO_NUCLEI = ("region*", TO_ANNOTATE_CLASS.lower(), *(name.lower() for name in AREA_CLASSES))


@dataclass(frozen=True)
class CorrectedNucleus:
    """A nucleus as the person left it."""

    shape_level0_px: Shape
    cell_type: str
    """Canonical class name; empty where the person took the class away."""
    cell_id: int | None
    """The cell it was exported as; None for one drawn by hand."""
    where: str
    """File and feature, for messages."""


@dataclass(frozen=True)
class CorrectedSlide:
    """What came back for one slide."""

    slide_id: str
    nuclei: tuple[CorrectedNucleus, ...]
    complete_level0_px: Polygon | MultiPolygon | None
    """Where every nucleus has been seen to; None where nothing was marked."""
    ignored_level0_px: Polygon | MultiPolygon | None
    """Where the person said that nobody knows what is there (class `Ignore*`)."""


def read_corrected(
    path: Path, *, slide_id: str, ontology: Ontology, origin_level0_px: tuple[int, int]
) -> CorrectedSlide:
    """Read the objects of one slide.

    Args:
        path: `.geojson` or `.geojson.gz`, all objects of the image.
        slide_id: the slide.
        ontology: of the cell set; answers to every class.
        origin_level0_px: level-0 position of the viewer's origin, added to every vertex.

    Raises:
        ValueError: naming file and feature, when one cannot be understood or two carry one cell's id.
    """
    nuclei: list[CorrectedNucleus] = []
    complete: list[Shape] = []
    ignored: list[Shape] = []
    seen: dict[int, str] = {}
    for number, feature in enumerate(features_of_file(path)):
        where = f"{path}, feature {number}"
        if not isinstance(feature, dict) or not isinstance(feature.get("properties", {}) or {}, dict):
            raise ValueError(f"{where} is no GeoJSON feature. Export the file from QuPath again.")
        document = cast(dict[str, Any], feature)
        properties: Mapping[str, Any] = document.get("properties") or {}
        name = class_name_of(properties, where=where) or ""
        if properties.get("objectType") == "tile" or name.lower() in _NO_NUCLEI:
            continue
        shape = shape_of(document.get("nucleusGeometry") or document.get("geometry"), where=where)
        if shape is None:
            continue
        shape = shapely.transform(shape, lambda xy: xy + origin_level0_px)
        if name.lower() == COMPLETE_CLASS.lower():
            complete.append(shape)
        elif name.lower() == "ignore*":
            ignored.append(shape)
        else:
            cell_id = cell_id_of_uuid(str(document.get("id", "")), slide_id=slide_id)
            if cell_id is not None and cell_id in seen:
                raise ValueError(f"{where} has the id of {seen[cell_id]}; delete one of the two in QuPath.")
            if cell_id is not None:
                seen[cell_id] = where
            nuclei.append(CorrectedNucleus(shape, _type_of(name, ontology, where), cell_id, where))
    return CorrectedSlide(slide_id, tuple(nuclei), _union(complete), _union(ignored))


def _type_of(name: str, ontology: Ontology, where: str) -> str:
    if not name:
        return ""
    try:
        return ontology.names[ontology.index(name)]
    except KeyError as error:
        raise ValueError(f"{where}: {error.args[0]} Correct the class in QuPath, or take it away.") from None


def _union(shapes: list[Shape]) -> Polygon | MultiPolygon | None:
    if not shapes:
        return None
    union = shapely.union_all(shapes)
    assert isinstance(union, Polygon | MultiPolygon)
    return union
