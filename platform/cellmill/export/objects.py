"""A slide's objects as GeoJSON parts in one folder: areas first, then cells.

In: cells wanted, areas. Out: `areas.geojson.gz`, `part0000.geojson.gz`, ... and `index.json`, which lists them in the
order in which a viewer takes them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shapely

from cellmill.cohort.manifest import make_safe_id
from cellmill.export.areas import SlideArea
from cellmill.export.features import CellFeatures, area_feature, cell_types_of
from cellmill.export.geojson_parts import GeoJsonParts, write_index
from cellmill.export.project_files import AREA_CLASSES

__all__ = ["area_features", "write_objects"]

_AREA_NAMES = {
    "analysed": ("Analysed", "Analysed area"),
    "unreadable": ("Excluded: unreadable", "Excluded area"),
    "pen": ("Excluded: pen", "Excluded area"),
    "blur": ("Excluded: blur", "Excluded area"),
}


def area_features(slide_id: str, areas: Iterable[SlideArea], origin_level0_px: tuple[int, int]) -> list[str]:
    """Areas as locked annotations in the viewer's frame."""
    return [
        area_feature(
            slide_id=slide_id,
            name=_AREA_NAMES[area.reason][0],
            class_name=_AREA_NAMES[area.reason][1],
            color_rgb=AREA_CLASSES[_AREA_NAMES[area.reason][1]],
            shape=shapely.transform(area.shape_level0_px, lambda xy: (xy - origin_level0_px).round(2)),
            measurements={"Area mm^2": round(area.mm2, 6)},
        )
        for area in areas
    ]


def write_objects(
    folder: Path,
    batches: Iterable[Any],
    features: CellFeatures,
    *,
    areas: list[str],
    by_class: bool = False,
) -> int:
    """Write a slide's objects; returns the number of cells.

    Args:
        folder: where to; it is made.
        batches: record batches of cells.
        features: turns them into text.
        areas: features of areas.
        by_class: write the cells once more, each class in `by_class/<class>`.
    """
    names: list[str] = []
    with GeoJsonParts(folder, name="areas") as parts:
        parts.add(areas)
    names += parts.names
    classes = features.ontology.names if by_class else ()
    split = [GeoJsonParts(folder / "by_class" / make_safe_id(name)) for name in classes]
    with GeoJsonParts(folder) as parts:
        for batch in batches:
            lines = features.of(batch)
            parts.add(lines)
            if split:
                kinds = cell_types_of(batch, features.ontology)
                for kind, one in enumerate(split):
                    one.add([line for line, found in zip(lines, kinds, strict=True) if found == kind])
    for one in split:
        one.close()
    names += parts.names
    document: dict[str, Any] = {
        "slide_id": features.slide_id,
        "num_areas": len(areas),
        "num_cells": parts.num_features,
        "origin_level0_px": list(features.origin_level0_px),
        "parts": names,
    }
    if split:
        document["num_cells_by_class"] = {name: one.num_features for name, one in zip(classes, split, strict=True)}
    write_index(folder, document)
    return parts.num_features
