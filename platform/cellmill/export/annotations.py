"""The regions people drew on an image of a QuPath project, in the slide's own frame.

In: an image of a project. Out: its annotations, united, in level-0 px (OpenSlide's, bounds not subtracted). They are
read through QuPath where it may be asked, else from `cellmill/annotations/<entry>.geojson`, which the script started
from QuPath's menu writes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry import shape as geometry_of

from cellmill.export.geojson_rules import read_features
from cellmill.export.project_files import AREA_CLASSES, PROJECT_NAME, ProjectImage
from cellmill.export.qupath import ask_qupath

__all__ = ["DrawnRegions", "annotations_path", "drawn_regions", "image_features", "write_region_file"]


@dataclass(frozen=True)
class DrawnRegions:
    """What is inside the annotations of one image."""

    shape_level0_px: Polygon | MultiPolygon
    num_annotations: int


def annotations_path(project: Path, image: ProjectImage) -> Path:
    """Where QuPath's script leaves the annotations of an image."""
    return project / "cellmill" / "annotations" / f"{image.entry_id}.geojson"


def image_features(project: Path, image: ProjectImage, *, through_qupath: bool) -> list[Any]:
    """Features of an image: what QuPath has saved, where it may be asked, else those of the file beside the project.

    Raises:
        ValueError: when there is no file or it holds no features.
    """
    path = annotations_path(project, image)
    if through_qupath:
        task = {"do": "annotations", "project": str(project / PROJECT_NAME), "entry_id": image.entry_id}
        return ask_qupath(task)["features"]
    if path.is_file():
        return read_features(path)
    raise ValueError(
        f"its annotations are not there: start from QuPath's menu (script cellmill_segment_annotations), export "
        f"them to {path} (File > Export objects as GeoJSON), or set PAQUO_QUPATH_DIR"
    )


def drawn_regions(
    features: list[Any], *, classes: tuple[str, ...], origin_level0_px: tuple[int, int]
) -> DrawnRegions | None:
    """The union of the annotations that count; None where there is none.

    Args:
        features: as `image_features` gives them.
        classes: only annotations of these; all but those of `AREA_CLASSES` when empty.
        origin_level0_px: level-0 position of QuPath's origin.

    Raises:
        ValueError: when the coordinates of one form no geometry.
    """
    polygons = [
        _polygon(feature.get("geometry"), where=f"annotation {index}")
        for index, feature in enumerate(features)
        if isinstance(feature, dict) and _counts(feature, classes)
    ]
    drawn = [polygon for polygon in polygons if polygon is not None and polygon.area > 0]
    if not drawn:
        return None
    union = shapely.transform(shapely.union_all(drawn), lambda xy: xy + origin_level0_px)
    assert isinstance(union, Polygon | MultiPolygon)
    return DrawnRegions(union, len(drawn))


def write_region_file(path: Path, regions: DrawnRegions) -> None:
    """The regions as the file that a cohort run takes as --tissue. The same regions give the same bytes."""
    geometry = json.loads(shapely.to_geojson(shapely.normalize(regions.shape_level0_px)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": geometry}), encoding="utf-8")


def _polygon(geometry: Any, *, where: str) -> Polygon | MultiPolygon | None:
    """A valid polygon; None for a line or point, which holds nothing."""
    if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        return None
    try:
        shape = geometry_of(geometry)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.errors.ShapelyError) as error:
        raise ValueError(f"{where}: its coordinates form no polygon ({error})") from error
    # Freehand outlines cross themselves; what they enclose is still clear.
    shape = shapely.make_valid(shape, method="structure", keep_collapsed=False)
    return shape if isinstance(shape, Polygon | MultiPolygon) else None


def _counts(feature: dict[str, Any], classes: tuple[str, ...]) -> bool:
    properties = feature.get("properties")
    if not isinstance(properties, dict):
        return not classes
    if properties.get("objectType", "annotation") != "annotation":
        return False
    name = _class_name(properties.get("classification"))
    return name in classes if classes else name not in AREA_CLASSES


def _class_name(classification: Any) -> str | None:
    if isinstance(classification, dict):
        names = classification.get("names")
        return ": ".join(names) if names else classification.get("name")
    return classification
