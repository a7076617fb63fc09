"""QuPath's rules for GeoJSON, as a check: what it refuses, and what it takes but changes.

In: a GeoJSON file or its parsed features. Out: one `Finding` a breach. Everything cellmill exports passes without one,
and what comes back from people is checked by the same rules before it is believed.

The rules were found by running QuPath 0.4.4, 0.5.1, 0.6.0 and 0.7.0 and reading its source; the strictest version
counts. One refused feature fails its whole file there.
"""

import gzip
import json
import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import shapely

__all__ = ["MAX_FEATURES", "MIN_AREA_PX2", "SNAP_PX", "Finding", "check_features", "check_file", "read_features"]

SNAP_PX = 0.01
"""Coordinates finer than this are moved."""
MIN_AREA_PX2 = 0.01
"""A polygon must be larger."""
MAX_FEATURES = 25_000
"""Of one file: the reader holds it all, at about 40 kB a feature."""

_MAX_BYTES = 2 << 30
_OBJECT_TYPES = ("annotation", "detection", "cell", "tile", "tmaCore", "root")
_POINTS_OF = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
"""How deep the positions of each geometry lie."""
_MAX_EXACT_FLOAT32 = 1 << 24


@dataclass(frozen=True)
class Finding:
    """One breach of a rule."""

    where: str
    severity: Literal["refused", "altered"]
    """Whether QuPath would refuse the file, or take the feature and change it."""
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class _BreachError(Exception):
    """A geometry that QuPath refuses."""


def check_file(path: Path) -> list[Finding]:
    """All breaches in a `.geojson` or `.geojson.gz` file, the file's own first."""
    try:
        features = read_features(path)
    except ValueError as error:
        return [Finding(path.name, "refused", str(error))]
    findings = list(check_features(features))
    if len(features) > MAX_FEATURES:
        text = f"{len(features)} features in one file; more than {MAX_FEATURES} take QuPath's reader too much memory"
        findings.insert(0, Finding(path.name, "altered", text))
    return findings


def read_features(path: Path) -> list[Any]:
    """Features of a FeatureCollection, an array of Features, or a single Feature.

    Raises:
        ValueError: when the file is none of these, saying what it is.
    """
    data = _read_bytes(path)
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply to be GeoJSON") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        hint = "; one feature a line (NDJSON) is not read, make it an array" if "Extra data" in str(error) else ""
        raise ValueError(f"no JSON: {error}{hint}") from error
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    elif isinstance(document, dict) and document.get("type") == "Feature":
        document = [document]
    if not isinstance(document, list):
        raise ValueError("neither a FeatureCollection nor an array of Features nor a Feature")
    return document


def check_features(features: list[Any]) -> Iterator[Finding]:
    """Breaches of the features, in their order; an id that occurs twice counts at its second place."""
    seen: set[str] = set()
    for index, feature in enumerate(features):
        where = f"feature {index}"
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            yield Finding(where, "refused", "no object with type Feature")
            continue
        yield from _check_id(feature, where, seen)
        for key in ("geometry", "nucleusGeometry"):
            if key == "geometry" or key in feature:
                yield from _check_geometry(feature.get(key), f"{where}, {key}")
        properties = feature.get("properties", {})
        if not isinstance(properties, dict):
            yield Finding(where, "refused", f"properties must be an object, got {properties!r}")
            continue
        yield from _check_properties(properties, where)


# --------------------------------------------------------------------------------------------------------- ids


def _check_id(feature: dict[str, Any], where: str, seen: set[str]) -> Iterator[Finding]:
    if "id" not in feature:
        return  # QuPath gives it one
    text = str(feature["id"])
    try:
        text = str(uuid.UUID(text))
    except ValueError:
        yield Finding(where, "altered", f"id {text!r} is no UUID and will be replaced")
        return
    if text in seen:
        yield Finding(where, "altered", f"id {text} occurs before in the file")
    seen.add(text)


# --------------------------------------------------------------------------------------------------------- geometry


def _check_geometry(geometry: Any, where: str) -> Iterator[Finding]:
    if not isinstance(geometry, dict) or geometry.get("type") not in _POINTS_OF:
        kind = geometry.get("type") if isinstance(geometry, dict) else geometry
        yield Finding(where, "refused", f"a geometry is one of {', '.join(_POINTS_OF)}, got {kind!r}")
        return
    try:
        depth = _POINTS_OF[geometry["type"]]
        moved = _check_positions(geometry.get("coordinates"), depth)
        if geometry["type"].endswith("Polygon"):
            polygons = [geometry["coordinates"]] if depth == 2 else geometry["coordinates"]
            _check_polygons(polygons)
    except _BreachError as breach:
        yield Finding(where, "refused", str(breach))
        return
    if moved:
        yield Finding(where, "altered", f"coordinates finer than {SNAP_PX} px will be moved")


def _check_positions(coordinates: Any, depth: int) -> bool:
    """Whether some coordinate will be moved; raises `_BreachError` where positions are none."""
    if not isinstance(coordinates, list) or not coordinates:
        raise _BreachError("coordinates are missing or empty")
    if depth:
        return sum(_check_positions(part, depth - 1) for part in coordinates) > 0  # every part is looked at
    if len(coordinates) not in (2, 3) or not all(_is_number(value) for value in coordinates):
        raise _BreachError(f"a position is two finite numbers, got {coordinates!r}")
    return any(abs(value / SNAP_PX - round(value / SNAP_PX)) > 1e-4 for value in coordinates[:2])


def _check_polygons(polygons: list[Any]) -> None:
    for rings in polygons:
        for ring in rings:
            if len(ring) < 4:
                raise _BreachError(f"a ring has at least 4 positions, the last being the first again, got {len(ring)}")
            if ring[0][:2] != ring[-1][:2]:
                raise _BreachError(f"a ring ends where it begins, got {ring[0]} and {ring[-1]}")
    shapes = [shapely.Polygon(_snapped(rings[0]), [_snapped(ring) for ring in rings[1:]]) for rings in polygons]
    shape = shapes[0] if len(shapes) == 1 else shapely.MultiPolygon(shapes)
    if not shape.is_valid:
        raise _BreachError(f"the polygon is not valid: {shapely.is_valid_reason(shape)}")
    if not shape.area > MIN_AREA_PX2 * (1 + 1e-6):  # 0.1 times 0.1 is more than 0.01 in binary
        raise _BreachError(f"a polygon covers more than {MIN_AREA_PX2} px2, got {shape.area:g}")


def _snapped(ring: list[list[float]]) -> list[tuple[float, float]]:
    return [(round(x / SNAP_PX) * SNAP_PX, round(y / SNAP_PX) * SNAP_PX) for x, y, *_ in ring]


# --------------------------------------------------------------------------------------------------------- properties


def _check_properties(properties: dict[str, Any], where: str) -> Iterator[Finding]:
    kind = properties.get("objectType", "annotation")
    if kind not in _OBJECT_TYPES:
        yield Finding(where, "altered", f"objectType {kind!r} is unknown and becomes annotation")
    if "classification" in properties:
        yield from _check_classification(properties["classification"], where)
    locked = properties.get("isLocked", False)
    if not isinstance(locked, bool):
        yield Finding(where, "altered", f"isLocked must be true or false, got {locked!r}")
    measurements = properties.get("measurements", {})
    if not isinstance(measurements, dict):
        yield Finding(where, "altered", "measurements is a map of names to numbers; anything else is of old versions")
        return
    for name, value in measurements.items():
        if not _is_number(value):
            yield Finding(where, "refused", f"measurement {name!r} must be a finite number, got {value!r}")
        elif float(value).is_integer() and abs(value) > _MAX_EXACT_FLOAT32:
            yield Finding(where, "altered", f"measurement {name!r} is kept as float32, which {value} does not fit")


def _check_classification(value: Any, where: str) -> Iterator[Finding]:
    if isinstance(value, str):
        return
    if not isinstance(value, dict):
        yield Finding(where, "refused", f"a classification is a name or {{name, color}}, got {value!r}")
        return
    names = value.get("names", [value.get("name")])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        yield Finding(where, "refused", f"a classification has a name, got {value!r}")
    elif any("\n" in name or (":" in name and "names" not in value) for name in names):
        yield Finding(where, "altered", f"a class name with ':' or a line break is split, got {value!r}")
    color = value.get("color")
    if not isinstance(color, list) or len(color) != 3 or not all(_is_channel(channel) for channel in color):
        yield Finding(where, "refused", f"the color of a classification is [r, g, b] of 0 to 255, got {color!r}")


def _is_channel(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --------------------------------------------------------------------------------------------------------- bytes


def _read_bytes(path: Path) -> bytes:
    if not path.name.lower().endswith((".geojson", ".geojson.gz", ".json")):
        raise ValueError("QuPath reads files called *.geojson or *.geojson.gz")
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    if len(data) > _MAX_BYTES:
        raise ValueError(f"holds more than {_MAX_BYTES >> 30} GiB of JSON; write parts of {MAX_FEATURES} features")
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
