"""`retyped/<name>/`: a type head that was fitted on embeddings, and what it says of the cells.

In: tables of `retyped_schema`, the head's weights. Out: `<slide_id>.parquet` a slide, `head.safetensors`, and last the
sealed `head.json`, which lists all of them by SHA-256 and is what 'this head is there' means. The cell tables are never
touched. Names are people's: "tumour-board", "v2".
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.layout import RETYPED_FOLDER, retyped_key, retyped_prefix
from cellmill.store.objects import HashingFile, ObjectStore
from cellmill.store.seal import sealed_json, unsealed_json
from cellmill_schemas.ontology import Ontology

__all__ = [
    "HEAD_FILE",
    "WEIGHTS_FILE",
    "HeadRecord",
    "list_heads",
    "parse_head_record",
    "read_head_record",
    "write_head_record",
    "write_retyped",
    "write_weights",
]

HEAD_FILE = "head.json"
WEIGHTS_FILE = "head.safetensors"


@dataclass(frozen=True)
class HeadRecord:
    """What a head is, what it was fitted on, how good it is, and what it answered."""

    name: str
    ontology: Ontology
    """Its classes."""
    embedded_by: str
    """`student` or `teacher`: whose embeddings it reads."""
    model_digest: str
    """Of the network behind them."""
    layer: str
    num_dimensions: int
    weights_sha256: str
    tables: Mapping[str, str]
    """SHA-256 of each slide's table, by slide id."""
    cells_sha256: Mapping[str, str]
    """Of the cell table that each slide's answers are about."""
    fitted: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Labels, settings, and cross-validated figures; plain JSON types."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "ontology": self.ontology.to_json()}


def parse_head_record(data: bytes) -> HeadRecord:
    """A record's bytes as a record. Whether its seal holds is for `cellmill.verify` to say.

    Raises:
        ValueError: when it is none.
    """
    try:
        document = unsealed_json(data)
        document["ontology"] = Ontology.from_json(document["ontology"])
        return HeadRecord(**document)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Not the record of a type head: {error!r}.") from error


def list_heads(store: ObjectStore) -> list[str]:
    """Names of the heads that are there."""
    names = store.list_names(RETYPED_FOLDER)
    return [name for name in names if store.exists(f"{retyped_prefix(name)}/{HEAD_FILE}")]


def read_head_record(store: ObjectStore, name: str) -> HeadRecord:
    """The record of a head.

    Raises:
        FileNotFoundError: when there is no such head, listing those there are.
    """
    key = f"{retyped_prefix(name)}/{HEAD_FILE}"
    data = store.get_many([key]).get(key)
    if data is None:
        there = ", ".join(list_heads(store)) or "none"
        raise FileNotFoundError(f"{store.url} has no type head {name!r}; there are: {there}. refit_types fits one.")
    return parse_head_record(data)


def write_retyped(store: ObjectStore, name: str, slide_id: str, tables: Iterable[pa.Table], schema: pa.Schema) -> str:
    """Write one slide's answers, in the order of the cells' ids; returns the table's SHA-256."""
    with store.publishing(retyped_key(name, slide_id)) as file:
        hashing = HashingFile(file)
        with pq.ParquetWriter(hashing, schema, compression="zstd", compression_level=3) as writer:
            for table in tables:
                writer.write_table(table)
    return hashing.hexdigest()


def write_weights(store: ObjectStore, name: str, weights: bytes) -> str:
    """Write the head's weights; returns their SHA-256."""
    store.put(f"{retyped_prefix(name)}/{WEIGHTS_FILE}", weights)
    return hashlib.sha256(weights).hexdigest()


def write_head_record(store: ObjectStore, record: HeadRecord) -> None:
    """Write the record: from then on the head is there."""
    store.put(f"{retyped_prefix(record.name)}/{HEAD_FILE}", sealed_json(record.to_json()))
