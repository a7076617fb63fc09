"""What a cell set is: one model version, one configuration, one ontology, one version of the code.

In: the identity a run would write. Out: `cellset.json`, or an error listing every key on which the output's own
differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellmill.store.errors import CellSetMismatchError
from cellmill.store.layout import CELLSET_KEY
from cellmill.store.objects import ObjectStore
from cellmill.store.seal import sealed_json, unsealed_json
from cellmill_schemas.ontology import Ontology

__all__ = ["CellSetIdentity", "create_or_check", "read_identity"]


@dataclass(frozen=True)
class CellSetIdentity:
    """The identity of a cell set."""

    model_name: str
    model_digest: str
    config_digest: str
    config: Mapping[str, Any]
    """The settings that change results, and nothing else; plain JSON types."""
    ontology: Ontology
    code_version: str
    model_version: str = ""
    """`models:/<name>/<version>` for a model of a registry, never its alias; empty for any other. It says where the
    model came from; whether it is the same model, the digest says."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "model_name": self.model_name,
            "model_digest": self.model_digest,
            "model_version": self.model_version,
            "config_digest": self.config_digest,
            "config": dict(self.config),
            "ontology": self.ontology.to_json(),
            "code_version": self.code_version,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "CellSetIdentity":
        """Parse what `to_json` wrote.

        Raises:
            ValueError: when a key is missing or unknown.
        """
        try:
            values: dict[str, Any] = dict(document)
            values["ontology"] = Ontology.from_json(values["ontology"])
            return CellSetIdentity(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"Not the identity of a cell set: {error!r}; it has {sorted(document)}.") from error


def read_identity(store: ObjectStore) -> CellSetIdentity:
    """The identity of the cell set in `store`.

    Raises:
        FileNotFoundError: when there is no cell set.
        ValueError: when its `cellset.json` is not one.
    """
    try:
        return CellSetIdentity.from_json(unsealed_json(store.get(CELLSET_KEY)))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no cell set at {store.url}: {CELLSET_KEY} is missing. Give the --out of a segment_cohort run."
        ) from None


def create_or_check(store: ObjectStore, identity: CellSetIdentity) -> None:
    """Make the store this cell set, or make sure it is.

    Raises:
        CellSetMismatchError: naming each key that differs, with both values.
    """
    data = sealed_json(identity.to_json())
    if store.create(CELLSET_KEY, data):
        return
    found, wanted = _flat(unsealed_json(store.get(CELLSET_KEY))), _flat(unsealed_json(data))
    # The same weights may be known by a folder, or by two versions: one cell set all the same.
    found.pop("model_version", None)
    wanted.pop("model_version")
    differing = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    if differing:
        absent = "(absent)"
        lines = [f"  {key}: there {found.get(key, absent)!r}, now {wanted.get(key, absent)!r}" for key in differing]
        raise CellSetMismatchError(
            f"{store.url} holds a cell set of another model or configuration:\n" + "\n".join(lines) + "\n"
            "Use another --out, or the settings it was made with."
        )


def _flat(document: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys, so that a difference is named exactly."""
    if not isinstance(document, dict) or not document:
        return {prefix: document}
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
