"""Cells as GeoJSON features in QuPath's dialect, as text.

In: a record batch of cells. Out: one line of JSON a cell: a detection (or cell) with its UUID, outline, class in the
ontology's colour, and measurements. Text is put together directly: a JSON library would first need a tree of dicts and
takes three times as long.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import shapely

from cellmill.export.measurements import measurement_values, measurements_of
from cellmill.export.object_ids import area_uuid, cell_uuid_texts
from cellmill_schemas.ontology import Ontology

__all__ = ["CellFeatures", "ObjectKind", "area_feature", "cell_types_of", "rings_of"]

ObjectKind = Literal["detections", "cells"]
"""QuPath's detection objects, or its cell objects, which show a nucleus beside a boundary."""


@dataclass(frozen=True)
class CellFeatures:
    """Turns cells of one slide into features."""

    slide_id: str
    ontology: Ontology
    kind: ObjectKind
    origin_level0_px: tuple[int, int]
    """Where the viewer's origin lies: subtracted from every vertex."""

    def of(self, cells: pa.RecordBatch) -> list[str]:
        """One feature a cell, as JSON text without line breaks."""
        ids = cell_uuid_texts(self.slide_id, cells.column("cell_id").to_numpy())
        rings = _ring_texts(cells, self.origin_level0_px)
        values = measurement_values(cells, self.ontology).tolist()
        templates = [self._template(index) for index in range(len(self.ontology))]
        nucleus = self.kind == "cells"
        lines: list[str] = []
        for kind, name, ring, row in zip(cell_types_of(cells, self.ontology), ids, rings, values, strict=True):
            outlines = (ring, ring) if nucleus else (ring,)
            lines.append(templates[kind] % (name, *outlines, *row))
        return lines

    def _template(self, kind: int) -> str:
        """A feature of class `kind` with %-places for id, outline (twice with a nucleus) and each measurement."""
        cell_class = self.ontology.classes[kind]
        outline = '{"type":"Polygon","coordinates":[[%s]]}'
        # cellmill finds nuclei: what QuPath calls the cell's boundary is that of its nucleus.
        nucleus = f',"nucleusGeometry":{outline}' if self.kind == "cells" else ""
        color = list(cell_class.color_rgb)
        measurements = ",".join(f"{_literal(entry.name)}:%r" for entry in measurements_of(self.ontology))
        return (
            f'{{"type":"Feature","id":"%s","geometry":{outline}{nucleus},'
            f'"properties":{{"objectType":"{self.kind[:-1]}",'
            f'"classification":{_literal({"name": cell_class.name, "color": color})},'
            f'"measurements":{{{measurements}}}}}}}'
        )


def area_feature(
    *,
    slide_id: str,
    name: str,
    class_name: str,
    color_rgb: Sequence[int],
    shape: shapely.geometry.base.BaseGeometry,
    measurements: Mapping[str, float],
) -> str:
    """A locked annotation, as JSON text; `shape` is in the viewer's frame."""
    document: dict[str, Any] = {
        "type": "Feature",
        "id": str(area_uuid(slide_id, name)),
        "geometry": json.loads(shapely.to_geojson(shape)),
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": class_name, "color": list(color_rgb)},
            "isLocked": True,
            "measurements": dict(measurements),
        },
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def cell_types_of(cells: pa.RecordBatch, ontology: Ontology) -> list[int]:
    """Index of each cell's class in the ontology."""
    column = cells.column("cell_type")
    of_code = np.array([ontology.names.index(name) for name in column.dictionary.to_pylist()], np.int64)
    return of_code[column.indices.to_numpy()].tolist()


def rings_of(cells: pa.RecordBatch, origin_level0_px: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outer rings in the viewer's frame: x and y of all vertices, and where each ring starts (n + 1)."""
    polygons = cells.column("geometry")
    rings = polygons.flatten()
    assert len(rings) == cells.num_rows, "a cell has one ring"
    starts = rings.offsets.to_numpy()
    vertices = rings.flatten()
    x = vertices.field("x").to_numpy()[: starts[-1] - starts[0]] - origin_level0_px[0]
    y = vertices.field("y").to_numpy()[: starts[-1] - starts[0]] - origin_level0_px[1]
    return x, y, starts - starts[0]


def _ring_texts(cells: pa.RecordBatch, origin_level0_px: tuple[int, int]) -> list[str]:
    """Positions of each cell's ring as `[x,y],[x,y]`."""
    x, y, starts = rings_of(cells, origin_level0_px)
    if bool((x == np.round(x)).all() and (y == np.round(y)).all()):
        x, y = x.astype(np.int64), y.astype(np.int64)  # 12 rather than 12.0
    positions = [f"[{u},{v}]" for u, v in zip(x.tolist(), y.tolist(), strict=True)]
    bounds = starts.tolist()
    return [",".join(positions[low:high]) for low, high in pairwise(bounds)]


def _literal(value: Any) -> str:
    """JSON that may stand in a %-template."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("%", "%%")
