"""`rescored/<slide_id>.parquet`: scores of a heavier model, written whole and bound to the cell table they belong to.

In: a table of `rescored_schema` and who made it. Out: the object, and who scored a slide. The metadata holds the
SHA-256 of the cell table, so that scores of an earlier table are never joined to a later one, and a seal over all
bytes, so that damage shows: scores come after the commit, whose list of digests does not hold them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.layout import rescored_key
from cellmill.store.objects import ObjectStore
from cellmill.store.seal import sealed_parquet

__all__ = ["ScoredBy", "read_scored_by", "write_rescored"]

_METADATA_KEY = b"cellmill_rescored"


@dataclass(frozen=True)
class ScoredBy:
    """Who scored which cells of what."""

    model_name: str
    model_digest: str
    model_version: str
    where: str
    budget_mm2: float | None
    cells_sha256: str
    """Of the cell table."""

    @staticmethod
    def from_json(document: Mapping[str, object]) -> "ScoredBy":
        """Parse what `asdict` makes of it."""
        return ScoredBy(**document)  # type: ignore[arg-type]


def write_rescored(store: ObjectStore, slide_id: str, table: pa.Table, scored_by: ScoredBy) -> None:
    """Write the table in one put; the same scores give the same bytes."""
    about = json.dumps(asdict(scored_by), sort_keys=True).encode()
    store.put(rescored_key(slide_id), sealed_parquet(table.replace_schema_metadata({_METADATA_KEY: about})))


def read_scored_by(store: ObjectStore, slide_id: str) -> ScoredBy | None:
    """Who scored the slide; None where nobody has.

    Raises:
        ValueError: when the table is not one of these.
    """
    key = rescored_key(slide_id)
    if not store.exists(key):
        return None
    with store.open_random(key) as file:
        metadata = pq.read_schema(file).metadata or {}
    if _METADATA_KEY not in metadata:
        raise ValueError(f"{store.url}/{key} does not say who scored it; remove it.")
    return ScoredBy.from_json(json.loads(metadata[_METADATA_KEY]))
