"""Point annotations: where an annotator sees a nucleus, and of which type.

In: a CSV file a tile and annotator, or QuPath points as GeoJSON. Out: `PointAnnotations`. In both, a file belongs to
the image of its stem, in the folder of its annotator:

    <annotations>/<annotator>/<image>.csv        columns x, y (px, 0.5 is the first pixel's centre), class
    <annotations>/<annotator>/<image>.geojson    Point or MultiPoint features, class in properties.classification.name
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellmill_schemas.ontology import Ontology

__all__ = ["PointAnnotations", "read_annotators", "read_points"]

_UNKNOWN = ("", "unknown", "cell with unknown type", "unclassified")
"""Words for a nucleus whose type the annotator leaves open."""


@dataclass(frozen=True)
class PointAnnotations:
    """One annotator's points on one image; row k of each field is one nucleus."""

    annotator: str
    image: str
    """Stem of the image's file."""
    points_px: npt.NDArray[np.float64]  # (n, 2), x then y
    cell_types: tuple[str, ...]
    """Class of each point; empty where the annotator did not know."""

    def __post_init__(self) -> None:
        if self.points_px.shape != (len(self.cell_types), 2):
            raise ValueError(
                f"{self.annotator}, {self.image}: points must be (n, 2) with one type each, got "
                f"{self.points_px.shape} and {len(self.cell_types)} types."
            )


def read_annotators(folder: Path, ontology: Ontology) -> dict[str, dict[str, PointAnnotations]]:
    """All annotations below a folder: annotator -> image -> points.

    Raises:
        ValueError: when there is none, or a file cannot be understood, naming file and record.
    """
    found: dict[str, dict[str, PointAnnotations]] = {}
    for path in sorted((*folder.glob("*/*.csv"), *folder.glob("*/*.geojson"))):
        points = read_points(path, annotator=path.parent.name, ontology=ontology)
        images = found.setdefault(points.annotator, {})
        if points.image in images:
            raise ValueError(f"{path}: {points.annotator} has annotated {points.image} in another file too; keep one.")
        images[points.image] = points
    if not found:
        raise ValueError(f"No annotations below {folder}; expected <annotator>/<image>.csv or .geojson.")
    return found


def read_points(path: Path, *, annotator: str, ontology: Ontology) -> PointAnnotations:
    """One file of points.

    Raises:
        ValueError: when it cannot be understood, naming file and record.
    """
    records = _csv_records(path) if path.suffix == ".csv" else _geojson_records(path)
    points: list[tuple[float, float]] = []
    types: list[str] = []
    for number, (x, y, label) in enumerate(records, start=1):
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"{path}, record {number}: coordinates must be finite, got {x}, {y}.")
        points.append((x, y))
        types.append(_canonical(label, ontology, where=f"{path}, record {number}"))
    return PointAnnotations(annotator, path.stem, np.array(points, np.float64).reshape(-1, 2), tuple(types))


def _canonical(label: str, ontology: Ontology, *, where: str) -> str:
    if label.strip().lower() in _UNKNOWN:
        return ""
    try:
        return ontology.names[ontology.index(label)]
    except KeyError as error:
        raise ValueError(f"{where}: {error.args[0]} Correct it, or leave the class empty.") from None


def _csv_records(path: Path) -> Iterable[tuple[float, float, str]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = {"x", "y", "class"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: columns x, y and class are needed, {', '.join(sorted(missing))} is missing.")
        for number, row in enumerate(reader, start=1):
            try:
                yield float(row["x"]), float(row["y"]), row["class"] or ""
            except (TypeError, ValueError):
                raise ValueError(
                    f"{path}, record {number}: x and y must be numbers, got {row['x']!r}, {row['y']!r}."
                ) from None


def _geojson_records(path: Path) -> Iterable[tuple[float, float, str]]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not GeoJSON: {error}.") from None
    features: Sequence[Any] = document["features"] if isinstance(document, dict) else document
    for number, feature in enumerate(features, start=1):
        try:
            geometry = feature["geometry"]
            kind, places = geometry["type"], geometry["coordinates"]
            label = ((feature.get("properties") or {}).get("classification") or {}).get("name", "")
            if kind not in ("Point", "MultiPoint"):
                raise ValueError(f"geometry must be Point or MultiPoint, got {kind}")
            for x, y, *_ in [places] if kind == "Point" else places:
                yield float(x), float(y), str(label)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}, feature {number}: {error}.") from None
