"""What a class of one built-in ontology may be in another: explicit, one table a pair.

Several names: the source does not tell them apart. None: the target has no such class, so the nucleus is one of unknown
type. PanNuke's inflammatory and MoNuSAC's epithelial are read as in Shvetsov et al. 2025, section 2.
"""

from collections.abc import Mapping

from cellmill_schemas.ontology import Ontology, OntologyMapping, get_ontology

__all__ = ["get_mapping"]

_IMMUNE = ("lymphocyte", "macrophage", "neutrophil")
_ANY_EPITHELIAL = ("neoplastic", "epithelial")

_TABLES: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("pannuke5", "refined7"): {
        "neoplastic": ("neoplastic",),
        "inflammatory": _IMMUNE,
        "connective": ("connective",),
        "dead": ("dead",),
        "epithelial": ("epithelial",),
    },
    ("monusac4", "refined7"): {
        "epithelial": _ANY_EPITHELIAL,
        "lymphocyte": ("lymphocyte",),
        "macrophage": ("macrophage",),
        "neutrophil": ("neutrophil",),
    },
    ("consep7", "refined7"): {
        "other": (),
        "inflammatory": _IMMUNE,
        "healthy epithelial": ("epithelial",),
        "malignant epithelial": ("neoplastic",),
        "fibroblast": ("connective",),
        "muscle": ("connective",),
        "endothelial": ("connective",),
    },
    ("conic6", "refined7"): {
        "neutrophil": ("neutrophil",),
        "epithelial": _ANY_EPITHELIAL,
        "lymphocyte": ("lymphocyte",),
        "plasma cell": (),
        "eosinophil": (),
        "connective": ("connective",),
    },
    ("puma10", "refined7"): {
        "tumor": ("neoplastic",),
        "lymphocyte": ("lymphocyte",),
        "plasma cell": (),
        "histiocyte": ("macrophage",),
        "melanophage": ("macrophage",),
        "neutrophil": ("neutrophil",),
        "stroma": ("connective",),
        "epithelium": ("epithelial",),
        "endothelium": ("connective",),
        "apoptosis": ("dead",),
    },
    ("histoplus13", "refined7"): {
        "cancer cell": ("neoplastic",),
        "lymphocyte": ("lymphocyte",),
        "fibroblast": ("connective",),
        "plasmocyte": (),
        "eosinophil": (),
        "neutrophil": ("neutrophil",),
        "macrophage": ("macrophage",),
        "muscle cell": ("connective",),
        "endothelial cell": ("connective",),
        "red blood cell": (),
        "epithelial": ("epithelial",),
        "apoptotic body": ("dead",),
        "mitotic figure": (),
    },
    ("refined7", "pannuke5"): {
        "neoplastic": ("neoplastic",),
        "lymphocyte": ("inflammatory",),
        "connective": ("connective",),
        "dead": ("dead",),
        "epithelial": ("epithelial",),
        "macrophage": ("inflammatory",),
        "neutrophil": ("inflammatory",),
    },
    ("refined7", "monusac4"): {
        "neoplastic": ("epithelial",),
        "lymphocyte": ("lymphocyte",),
        "connective": (),
        "dead": (),
        "epithelial": ("epithelial",),
        "macrophage": ("macrophage",),
        "neutrophil": ("neutrophil",),
    },
}


def get_mapping(source: Ontology, target: Ontology) -> OntologyMapping:
    """The mapping between two ontologies: a built-in one, or the identity.

    Raises:
        KeyError: when there is none, listing those there are.
    """
    if source == target:
        return OntologyMapping(source, target, tuple((name, (name,)) for name in source.names))
    table: Mapping[str, tuple[str, ...]] | None = _TABLES.get((source.name, target.name))
    if table is None or {source, target} != {get_ontology(source.name), get_ontology(target.name)}:
        known = ", ".join(f"{first} to {second}" for first, second in _TABLES)
        raise KeyError(
            f"There is no mapping from {source.name!r} to {target.name!r}; built in are {known}. "
            "Write an OntologyMapping of your own."
        )
    return OntologyMapping(source, target, tuple(table.items()))
