"""Statuses of slides, and the cohort's table of them.

In: a `SlideStatus`. Out: `slides/<slide_id>.json`, which alone decides whether a slide is done, and `slides.parquet`,
which is derived from those objects and can always be made again; one row is one slide.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from cellmill.store.layout import SLIDES_TABLE_KEY, STATUS_FOLDER, status_key
from cellmill.store.objects import ObjectStore
from cellmill.store.seal import sealed_json, sealed_parquet, unsealed_json
from cellmill_schemas.slides import STATUS_SCHEMA, SlideStatus

__all__ = ["parse_status", "read_status", "read_statuses", "statuses_table", "write_slides_table", "write_status"]


_AT_ONCE = 1000


def write_status(store: ObjectStore, status: SlideStatus) -> None:
    """Write the status in one put: from then on the slide has ended this way."""
    store.put(status_key(status.slide_id), sealed_json(status.to_json(), sort_keys=False))


def read_status(store: ObjectStore, slide_id: str) -> SlideStatus | None:
    """The slide's status; None while it has none."""
    key = status_key(slide_id)
    data = store.get_many([key]).get(key)
    return None if data is None else parse_status(data)


def read_statuses(store: ObjectStore, slide_ids: Iterable[str] | None = None) -> list[SlideStatus]:
    """All statuses there are, or those of some slides, by slide id: one listing, then what exists, many at once."""
    names = {name for name in store.list_names(STATUS_FOLDER) if name.endswith(".json")}
    if slide_ids is not None:
        names &= {f"{slide_id}.json" for slide_id in slide_ids}
    keys = [f"{STATUS_FOLDER}/{name}" for name in sorted(names)]
    found = [
        parse_status(data)
        for start in range(0, len(keys), _AT_ONCE)
        for data in store.get_many(keys[start : start + _AT_ONCE]).values()
    ]
    return sorted(found, key=lambda status: status.slide_id)


def parse_status(data: bytes) -> SlideStatus:
    """A status object's bytes as a status. Whether its seal holds is for `cellmill.verify` to say.

    Raises:
        ValueError: when it is none.
    """
    return SlideStatus.from_json(unsealed_json(data))


def statuses_table(statuses: list[SlideStatus]) -> pa.Table:
    """The statuses as rows of `STATUS_SCHEMA`."""
    return pa.Table.from_pylist([_row(status) for status in statuses], schema=STATUS_SCHEMA)


def write_slides_table(store: ObjectStore) -> None:
    """Make `slides.parquet` again from the statuses there are."""
    store.put(SLIDES_TABLE_KEY, sealed_parquet(statuses_table(read_statuses(store))))


def _row(status: SlideStatus) -> dict[str, Any]:
    row = status.to_json()
    excluded = row.pop("excluded")
    row |= {f"excluded_{name}": value for name, value in excluded.items()}
    row["num_cells_by_type"] = list(status.num_cells_by_type.items())
    return row
