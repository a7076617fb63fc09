"""QuPath's rules for GeoJSON: what each breach is called, and that real files of QuPath pass."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cellmill.export.geojson_rules import MAX_FEATURES, check_features, check_file, read_features

RING = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
GOOD: dict[str, Any] = {
    "type": "Feature",
    "id": "0189aef0-0000-4000-8000-000000000001",
    "geometry": {"type": "Polygon", "coordinates": [RING]},
    "properties": {
        "objectType": "detection",
        "classification": {"name": "lymphocyte", "color": [0, 114, 178]},
        "measurements": {"Confidence": 0.9},
    },
}


def changed(**places: Any) -> dict[str, Any]:
    """The good feature with values put at dotted places (`__` for the dot)."""
    feature = copy.deepcopy(GOOD)
    for place, value in places.items():
        *path, last = place.split("__")
        part = feature
        for name in path:
            part = part[name]
        part[last] = value
    return feature


def findings_of(feature: Any) -> list[tuple[str, str]]:
    return [(finding.severity, finding.text) for finding in check_features([feature])]


def test_a_good_feature_passes() -> None:
    assert findings_of(GOOD) == []
    assert findings_of(changed(properties__classification="lymphocyte")) == []
    assert findings_of({key: value for key, value in GOOD.items() if key != "id"}) == []


HOLE = [[4, 4], [6, 4], [6, 6], [4, 6], [4, 4]]
OUTSIDE = [[40, 4], [60, 4], [60, 6], [40, 6], [40, 4]]
BOW = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
REFUSED = {
    "no feature": ({"type": "Polygon"}, "type Feature"),
    "no geometry": (changed(geometry=None), "a geometry is one of"),
    "collection": (changed(geometry={"type": "GeometryCollection", "geometries": []}), "GeometryCollection"),
    "open ring": (changed(geometry__coordinates=[[*RING[:-1], [1, 1]]]), "ends where it begins"),
    "short ring": (changed(geometry__coordinates=[[[0, 0], [1, 1], [0, 0]]]), "at least 4"),
    "crossing": (changed(geometry__coordinates=[BOW]), "not valid"),
    "hole outside": (changed(geometry__coordinates=[RING, OUTSIDE]), "not valid"),
    "too small": (changed(geometry__coordinates=[[[0, 0], [0.1, 0], [0.1, 0.1], [0, 0.1], [0, 0]]]), "more than"),
    "not a number": (changed(geometry__coordinates=[[["0", 0], *RING[1:]]]), "two finite numbers"),
    "empty": (changed(geometry__coordinates=[]), "missing or empty"),
    "colourless class": (changed(properties__classification={"name": "x"}), "color"),
    "colour out of range": (changed(properties__classification={"name": "x", "color": [0, 0, 256]}), "0 to 255"),
    "nameless class": (changed(properties__classification={"color": [0, 0, 0]}), "has a name"),
    "infinite measurement": (changed(properties__measurements={"a": float("inf")}), "finite"),
    "missing measurement": (changed(properties__measurements={"a": None}), "finite"),
    "nucleus": (changed(nucleusGeometry={"type": "Polygon", "coordinates": [BOW]}), "not valid"),
    "properties": (changed(properties=[]), "must be an object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_qupath_refuses_is_found(name: str) -> None:
    feature, text = REFUSED[name]
    severities = findings_of(feature)
    assert severities and severities[0][0] == "refused" and text in severities[0][1]


ALTERED = {
    "fine coordinates": (changed(geometry__coordinates=[[[0, 0], [10.001, 0], *RING[2:]]]), "finer"),
    "id": (changed(id="cell 7"), "no UUID"),
    "unknown type": (changed(properties__objectType="nucleus"), "becomes annotation"),
    "id as measurement": (changed(properties__measurements={"cell": (1 << 40) + 1}), "float32"),
    "split name": (changed(properties__classification={"name": "a: b", "color": [1, 2, 3]}), "split"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_what_qupath_would_change_is_found(name: str) -> None:
    feature, text = ALTERED[name]
    ((severity, found),) = findings_of(feature)
    assert severity == "altered" and text in found


def test_holes_multipolygons_and_points_pass() -> None:
    assert findings_of(changed(geometry__coordinates=[RING, HOLE])) == []
    assert findings_of(changed(geometry={"type": "MultiPolygon", "coordinates": [[RING], [OUTSIDE]]})) == []
    assert findings_of(changed(geometry={"type": "Point", "coordinates": [3, 4]})) == []


def test_an_id_may_not_occur_twice() -> None:
    (finding,) = check_features([GOOD, copy.deepcopy(GOOD)])
    assert finding.where == "feature 1" and "occurs before" in finding.text


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("form", [GOOD, [GOOD], {"type": "FeatureCollection", "features": [GOOD]}])
@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz"])
def test_the_three_forms_are_read_plain_or_gzipped(tmp_path: Path, form: Any, name: str) -> None:
    path = write(tmp_path / name, json.dumps(form))
    assert read_features(path) == [GOOD]
    assert check_file(path) == []


UNREADABLE = {
    "lines": ("a.geojson", json.dumps(GOOD) + "\n" + json.dumps(GOOD), "NDJSON"),
    "nan": ("a.geojson", '{"type":"Feature","geometry":null,"properties":{"x":NaN}}', "NaN"),
    "text": ("a.geojson", "no json", "no JSON"),
    "geometry": ("a.geojson", json.dumps(GOOD["geometry"]), "neither"),
    "deep": ("a.geojson", "[" * 100_000, "nested too deeply"),
    "cut off": ("a.geojson.gz", None, "cannot be read"),
    "name": ("a.txt", json.dumps(GOOD), "geojson"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str) -> None:
    file, text, reason = UNREADABLE[name]
    path = tmp_path / file
    if text is None:
        path.write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-20])
    else:
        path.write_text(text)
    (finding,) = check_file(path)
    assert finding.severity == "refused" and reason in finding.text


def test_too_many_features_are_reported(tmp_path: Path) -> None:
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": {}}
    path = write(tmp_path / "a.geojson", json.dumps([point] * (MAX_FEATURES + 1)))
    (finding,) = check_file(path)
    assert finding.severity == "altered" and str(MAX_FEATURES) in finding.text


def test_what_qupath_itself_wrote_is_not_refused(shared_data: Path) -> None:
    files = sorted((shared_data / "geojson" / "puma").glob("*.geojson"))
    assert files
    for path in files[:6]:
        assert [str(f) for f in check_file(path) if f.severity == "refused"] == []
