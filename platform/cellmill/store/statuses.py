"""Statuses of slides, and the cohort's table of them.

In: a `SlideStatus`. Out: `slides/<slide_id>.json`, which alone decides whether a slide is done, and `slides.parquet`,
which is derived from those objects and can always be made again; one row is one slide.
"""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellmill.store.layout import SLIDES_TABLE_KEY, STATUS_FOLDER, status_key
from cellmill.store.objects import ObjectStore
from cellmill_schemas.slides import STATUS_SCHEMA, SlideStatus

__all__ = ["read_status", "read_statuses", "statuses_table", "write_slides_table", "write_status"]


def write_status(store: ObjectStore, status: SlideStatus) -> None:
    """Write the status in one put: from then on the slide has ended this way."""
    store.put(status_key(status.slide_id), json.dumps(status.to_json(), indent=2).encode())


def read_status(store: ObjectStore, slide_id: str) -> SlideStatus | None:
    """The slide's status; None while it has none."""
    key = status_key(slide_id)
    data = store.get_many([key]).get(key)
    return None if data is None else SlideStatus.from_json(json.loads(data))


def read_statuses(store: ObjectStore) -> list[SlideStatus]:
    """All statuses, by slide id."""
    keys = [f"{STATUS_FOLDER}/{name}" for name in store.list_names(STATUS_FOLDER) if name.endswith(".json")]
    found = store.get_many(keys)
    return sorted((SlideStatus.from_json(json.loads(data)) for data in found.values()), key=lambda s: s.slide_id)


def statuses_table(statuses: list[SlideStatus]) -> pa.Table:
    """The statuses as rows of `STATUS_SCHEMA`."""
    return pa.Table.from_pylist([_row(status) for status in statuses], schema=STATUS_SCHEMA)


def write_slides_table(store: ObjectStore) -> None:
    """Make `slides.parquet` again from the statuses there are."""
    sink = io.BytesIO()
    pq.write_table(statuses_table(read_statuses(store)), sink, compression="zstd")
    store.put(SLIDES_TABLE_KEY, sink.getvalue())


def _row(status: SlideStatus) -> dict[str, Any]:
    row = status.to_json()
    excluded = row.pop("excluded")
    row |= {f"excluded_{name}": value for name, value in excluded.items()}
    row["num_cells_by_type"] = list(status.num_cells_by_type.items())
    return row
