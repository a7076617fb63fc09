"""Cell-type ontologies: ordered sets of classes with colours and synonyms.

A model names its ontology; tables, masks, exports and metrics follow it. Index 0 of a network's class channels is
background and is not part of an ontology; class `i` of the ontology is channel `i + 1`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CellClass", "Ontology", "OntologyMapping", "builtin_ontologies", "get_ontology", "load_ontology"]


@dataclass(frozen=True)
class CellClass:
    """One cell type: its canonical name, its display colour and the names other sources use for it."""

    name: str
    color_rgb: tuple[int, int, int]
    synonyms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or ":" in self.name or "\n" in self.name:
            raise ValueError(f"A class name must be non-empty and without ':' or newline, got {self.name!r}.")
        if len(self.color_rgb) != 3 or not all(0 <= value <= 255 for value in self.color_rgb):
            raise ValueError(f"Colour of class {self.name!r} must be three integers 0-255, got {self.color_rgb!r}.")


@dataclass(frozen=True)
class Ontology:
    """An ordered set of cell classes; the order fixes channels, dictionaries and `type_prob`."""

    name: str
    classes: tuple[CellClass, ...]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for cell_class in self.classes:
            for label in (cell_class.name, *cell_class.synonyms):
                key = _normalised(label)
                if seen.setdefault(key, cell_class.name) != cell_class.name:
                    raise ValueError(
                        f"Ontology {self.name!r}: {label!r} names both {seen[key]!r} and {cell_class.name!r}."
                    )
        if len({c.name for c in self.classes}) != len(self.classes) or not self.classes:
            raise ValueError(f"Ontology {self.name!r} needs at least one class and no class twice.")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in ontology order."""
        return tuple(cell_class.name for cell_class in self.classes)

    @property
    def digest(self) -> str:
        """Short hash of names and order: what makes two tables' type columns comparable."""
        return hashlib.sha256(json.dumps([self.name, *self.names]).encode()).hexdigest()[:16]

    def index(self, label: str) -> int:
        """Index of the class called `label` (name or synonym, case and spacing ignored).

        Raises:
            KeyError: when no class answers to the label.
        """
        wanted = _normalised(label)
        for index, cell_class in enumerate(self.classes):
            if wanted in map(_normalised, (cell_class.name, *cell_class.synonyms)):
                return index
        raise KeyError(f"{label!r} is not a class of ontology {self.name!r}; it has {', '.join(self.names)}.")

    def to_json(self) -> dict[str, Any]:
        """The ontology as plain JSON types, read back by `Ontology.from_json`."""
        return {
            "name": self.name,
            "classes": [
                {"name": c.name, "color_rgb": list(c.color_rgb), "synonyms": list(c.synonyms)} for c in self.classes
            ],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Ontology":
        """Parse what `to_json` wrote.

        Raises:
            ValueError: when a field is missing or of the wrong shape, naming it.
        """
        try:
            classes = tuple(
                CellClass(
                    name=str(entry["name"]),
                    color_rgb=_color(entry["color_rgb"]),
                    synonyms=tuple(str(synonym) for synonym in entry.get("synonyms", ())),
                )
                for entry in document["classes"]
            )
            return Ontology(name=str(document["name"]), classes=classes)
        except (KeyError, TypeError) as error:
            raise ValueError(
                "An ontology is {name, classes: [{name, color_rgb: [r, g, b], synonyms?}]}; "
                f"reading it failed at {error!r}."
            ) from error


@dataclass(frozen=True)
class OntologyMapping:
    """An explicit map from one ontology's classes to sets of another's.

    A source class that stays ambiguous in the target (MoNuSAC's "epithelial" covers refined7's neoplastic and
    epithelial) maps to several target classes; one the target does not know maps to none.
    """

    source: Ontology
    target: Ontology
    pairs: tuple[tuple[str, tuple[str, ...]], ...]

    def __post_init__(self) -> None:
        if {name for name, _ in self.pairs} != set(self.source.names):
            raise ValueError(f"A mapping from {self.source.name!r} must list each of its classes once.")
        for _, targets in self.pairs:
            for name in targets:
                self.target.index(name)

    def target_indices(self, source_name: str) -> tuple[int, ...]:
        """Indices in the target ontology that a source class may be."""
        return tuple(self.target.index(name) for name in dict(self.pairs)[source_name])


def _normalised(label: str) -> str:
    return "".join(character for character in label.casefold() if character.isalnum())


def _color(value: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in value)
    return red, green, blue


def _ontology(name: str, *classes: tuple[str, tuple[int, int, int], tuple[str, ...]]) -> Ontology:
    return Ontology(name, tuple(CellClass(*entry) for entry in classes))


# Colours: Okabe and Ito's colour-blind-safe set, extended; red is kept for neoplastic cells as pathologists expect.
_RED, _BLUE, _GREEN, _BLACK = (213, 60, 40), (0, 114, 178), (0, 158, 115), (60, 60, 60)
_ORANGE, _YELLOW, _PINK, _SKY = (230, 159, 0), (240, 228, 66), (204, 121, 167), (86, 180, 233)

_BUILTIN = (
    _ontology(
        "pannuke5",
        ("neoplastic", _RED, ("tumor", "tumour")),
        ("inflammatory", _BLUE, ()),
        ("connective", _GREEN, ("stromal",)),
        ("dead", _BLACK, ("apoptosis", "necrotic")),
        ("epithelial", _ORANGE, ("non-neoplastic epithelial",)),
    ),
    _ontology(
        "monusac4",
        ("epithelial", _ORANGE, ()),
        ("lymphocyte", _BLUE, ("lymphocytes",)),
        ("macrophage", _PINK, ("macrophages",)),
        ("neutrophil", _YELLOW, ("neutrophils",)),
    ),
    _ontology(
        "refined7",
        ("neoplastic", _RED, ("tumor", "tumour", "neoplastic cell")),
        ("lymphocyte", _BLUE, ("lymphocytes", "til")),
        ("connective", _GREEN, ("stroma", "stromal", "fibroblast")),
        ("dead", _BLACK, ("apoptosis", "apoptotic", "necrotic")),
        ("epithelial", _ORANGE, ("epithelium", "non-neoplastic epithelial")),
        ("macrophage", _PINK, ("macrophages", "histiocyte")),
        ("neutrophil", _YELLOW, ("neutrophils",)),
    ),
    _ontology(
        "histoplus13",
        ("cancer cell", _RED, ("tumor", "neoplastic")),
        ("lymphocyte", _BLUE, ("lymphocytes",)),
        ("fibroblast", _GREEN, ("connective",)),
        ("plasmocyte", _PINK, ("plasma cell",)),
        ("eosinophil", (240, 90, 140), ("eosinophils",)),
        ("neutrophil", _YELLOW, ("neutrophils",)),
        ("macrophage", (150, 90, 170), ("macrophages", "histiocyte")),
        ("muscle cell", (166, 118, 29), ("smooth muscle",)),
        ("endothelial cell", _SKY, ("endothelium",)),
        ("red blood cell", (140, 20, 20), ("erythrocyte",)),
        ("epithelial", _ORANGE, ("epithelium", "non-neoplastic epithelial")),
        ("apoptotic body", _BLACK, ("apoptosis", "dead")),
        ("mitotic figure", (0, 220, 220), ("mitosis", "mitotic figures")),
    ),
    _ontology(
        "ikem3",
        ("muscle", (166, 118, 29), ("muscle cell", "muscle cells")),
        ("immune", _BLUE, ("immune cell", "immune cells")),
        ("other", (150, 150, 150), ("others",)),
    ),
    _ontology(
        "puma10",
        ("tumor", _RED, ("nuclei_tumor", "neoplastic")),
        ("lymphocyte", _BLUE, ("nuclei_lymphocyte",)),
        ("plasma cell", _PINK, ("nuclei_plasma_cell",)),
        ("histiocyte", (150, 90, 170), ("nuclei_histiocyte", "macrophage")),
        ("melanophage", (110, 70, 30), ("nuclei_melanophage",)),
        ("neutrophil", _YELLOW, ("nuclei_neutrophil",)),
        ("stroma", _GREEN, ("nuclei_stroma", "connective")),
        ("epithelium", _ORANGE, ("nuclei_epithelium", "epithelial")),
        ("endothelium", _SKY, ("nuclei_endothelium",)),
        ("apoptosis", _BLACK, ("nuclei_apoptosis", "dead")),
    ),
    _ontology(
        "consep7",
        ("other", (150, 150, 150), ("miscellaneous",)),
        ("inflammatory", _BLUE, ()),
        ("healthy epithelial", _ORANGE, ("normal epithelium",)),
        ("malignant epithelial", _RED, ("dysplastic epithelial", "dysplastic/malignant epithelial", "neoplastic")),
        ("fibroblast", _GREEN, ()),
        ("muscle", (166, 118, 29), ()),
        ("endothelial", _SKY, ("endothelium",)),
    ),
    _ontology(
        "conic6",
        ("neutrophil", _YELLOW, ("neutrophils",)),
        ("epithelial", _ORANGE, ("epithelium",)),
        ("lymphocyte", _BLUE, ("lymphocytes",)),
        ("plasma cell", _PINK, ("plasma",)),
        ("eosinophil", (240, 90, 140), ("eosinophils",)),
        ("connective", _GREEN, ("connective tissue",)),
    ),
)


def builtin_ontologies() -> tuple[str, ...]:
    """Names of the ontologies that ship with cellmill."""
    return tuple(ontology.name for ontology in _BUILTIN)


def get_ontology(name: str) -> Ontology:
    """The built-in ontology called `name`.

    Raises:
        KeyError: when there is none, listing those there are.
    """
    for ontology in _BUILTIN:
        if ontology.name == name:
            return ontology
    raise KeyError(f"No ontology is called {name!r}; built in are {', '.join(builtin_ontologies())}.")


def load_ontology(path: Path) -> Ontology:
    """Read a user-defined ontology from a JSON file in the form of `Ontology.to_json`.

    Raises:
        ValueError: when the file is not such a document, naming the file.
    """
    try:
        return Ontology.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
