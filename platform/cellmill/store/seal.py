"""Documents that carry their own digest, so that one changed byte anywhere in them shows.

In: the bytes of a document that holds `SEAL_KEY` with `UNSEALED` as its value. Out: the same bytes, the value now the
SHA-256 of the whole as it was. To check, the value is put back to `UNSEALED` and the bytes are hashed again. One put
writes document and digest together, which a second object could not. JSON holds the seal as a key, Parquet as an entry
of its footer's metadata.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["SEAL_KEY", "UNSEALED", "is_sealed", "sealed", "sealed_json", "sealed_parquet", "unsealed_json"]

SEAL_KEY = "sealed_sha256"
UNSEALED = "0" * 64

# Between name and value JSON has `": "`, and Parquet's footer a type and a length.
_SEAL = re.compile(re.escape(SEAL_KEY).encode() + rb".{1,8}?([0-9a-f]{64})", re.DOTALL)


def sealed(document: bytes) -> bytes:
    """The document with its digest in the place kept for it."""
    start, end = _place(document) or (0, 0)
    assert document[start:end] == UNSEALED.encode(), "the document keeps no place for its digest"
    return document[:start] + hashlib.sha256(document).hexdigest().encode() + document[end:]


def sealed_json(document: Mapping[str, object], *, sort_keys: bool = True) -> bytes:
    """A document of plain JSON types, sealed; the same document gives the same bytes."""
    unsealed = json.dumps({**document, SEAL_KEY: UNSEALED}, indent=2, sort_keys=sort_keys)
    return sealed(unsealed.encode())


def unsealed_json(data: bytes) -> dict[str, Any]:
    """What the document says, without its seal. Whether that holds is for `cellmill.verify` to say."""
    document: dict[str, Any] = json.loads(data)
    document.pop(SEAL_KEY, None)
    return document


def sealed_parquet(table: pa.Table) -> bytes:
    """A small table as a sealed Parquet file; the same table gives the same bytes."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({SEAL_KEY: UNSEALED})
    return sealed(sink.getvalue())


def is_sealed(document: bytes) -> bool:
    """Whether the document is, byte for byte, what was sealed; False also where there is no seal."""
    place = _place(document)
    if place is None:
        return False
    start, end = place
    unsealed = document[:start] + UNSEALED.encode() + document[end:]
    return hashlib.sha256(unsealed).hexdigest().encode() == document[start:end]


def _place(document: bytes) -> tuple[int, int] | None:
    """Where the digest stands. The last place that looks like it: anything before may be text from outside."""
    found = list(_SEAL.finditer(document))
    return found[-1].span(1) if found else None
