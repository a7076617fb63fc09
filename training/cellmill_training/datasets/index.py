"""The index of a data set: which images there are, where, in which split. What is in no index file does not exist.

Each append adds one file under the next number. Files are created, never replaced, so of two writers that want one
number the second looks again: no lock, and none of the other's images is lost. Every file carries the digest of the
data set as it then was, so that a copy that lacks a file is noticed.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.objects import ObjectStore
from cellmill_schemas.datasets import INDEX_SCHEMA
from cellmill_schemas.ontology import Ontology
from cellmill_training.datasets.splitting import Split, SplitPlan

__all__ = ["append_to_index", "index_digest", "read_index"]

_FOLDER = "index"
_DIGEST_KEY = b"cellmill_digest"


def index_digest(index: pa.Table, ontology: Ontology) -> str:
    """SHA-256 of ontology, images, labels and splits, whatever the order of appends and the names of shards."""
    rows = index.select(["image_id", "digest", "split"]).sort_by("image_id").to_pylist()
    content = [[row["image_id"], row["digest"], row["split"]] for row in rows]
    return hashlib.sha256(json.dumps([ontology.digest, content]).encode()).hexdigest()


def read_index(store: ObjectStore, ontology: Ontology) -> pa.Table:
    """All images of the data set (`INDEX_SCHEMA`), sorted by id.

    Raises:
        ValueError: when a file of the index is damaged or missing, naming what is wrong.
    """
    return _read_files(store, ontology, store.list_names(_FOLDER))


def append_to_index(
    store: ObjectStore,
    rows: list[dict[str, Any]],
    *,
    ontology: Ontology,
    splits: Mapping[str, Split] | SplitPlan,
) -> None:
    """Make images visible that lie in shards already.

    Args:
        store: of the data set.
        rows: of `INDEX_SCHEMA`, without split.
        ontology: of the data set.
        splits: of the new groups; groups that the data set has keep theirs.

    Raises:
        ValueError: when the data set has one of the images, or a group would move to another split.
    """
    while True:
        files = store.list_names(_FOLDER)
        present = _read_files(store, ontology, files)
        _refuse_twins(rows, present, store)
        added = pa.Table.from_pylist(_with_splits(rows, present, splits), schema=INDEX_SCHEMA)
        digest = index_digest(pa.concat_tables([present, added]), ontology)
        buffer = io.BytesIO()
        pq.write_table(added.replace_schema_metadata({_DIGEST_KEY: digest}), buffer)
        if store.create(_key(len(files) + 1), buffer.getvalue()):
            return


def _key(number: int) -> str:
    return f"{_FOLDER}/{number:06d}.parquet"


def _read_files(store: ObjectStore, ontology: Ontology, files: list[str]) -> pa.Table:
    tables: list[pa.Table] = [INDEX_SCHEMA.empty_table()]
    digest: str | None = None
    for file in files:
        key = f"{_FOLDER}/{file}"
        try:
            table = pq.read_table(pa.BufferReader(store.get(key)))
            digest = (table.schema.metadata or {})[_DIGEST_KEY].decode()
            tables.append(table.replace_schema_metadata(None).cast(INDEX_SCHEMA))
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise ValueError(f"{store.url}/{key} is damaged ({error}). Copy the data set again.") from error
    index = pa.concat_tables(tables).sort_by("image_id")
    if digest not in (None, index_digest(index, ontology)):
        raise ValueError(
            f"The index of {store.url} is not what its last file {files[-1]} says: a file of {_FOLDER}/ is missing or "
            f"was changed, or the ontology of the data set was. Copy the data set again."
        )
    return index


def _refuse_twins(rows: list[dict[str, Any]], present: pa.Table, store: ObjectStore) -> None:
    known = set(present.column("image_id").to_pylist())
    twins = [row["image_id"] for row in rows if row["image_id"] in known]
    if twins:
        raise ValueError(
            f"{store.url} has {len(twins)} of these images already, {twins[0]!r} first. Append new images only."
        )


def _with_splits(
    rows: list[dict[str, Any]], present: pa.Table, splits: Mapping[str, Split] | SplitPlan
) -> list[dict[str, Any]]:
    kept = dict(zip(present.column("split_group").to_pylist(), present.column("split").to_pylist(), strict=True))
    if isinstance(splits, SplitPlan):
        splits = splits.apply([row for row in rows if row["split_group"] not in kept])
    moved = [group for group, split in kept.items() if splits.get(group, split) != split]
    if moved:
        raise ValueError(
            f"Group {moved[0]!r} is in split {kept[moved[0]]!r} of the data set and cannot move to "
            f"{splits[moved[0]]!r}: its images would be on both sides."
        )
    return [{**row, "split": kept.get(row["split_group"]) or splits[row["split_group"]]} for row in rows]
