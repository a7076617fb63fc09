"""Where each thing lives in a cell set: keys relative to its root, and which slide ids may become part of one."""

import re

from cellmill.store.errors import UnsafeNameError

__all__ = [
    "CELLSET_KEY",
    "EMBEDDINGS_FOLDER",
    "RESCORED_TABLE_KEY",
    "RETYPED_FOLDER",
    "SLIDES_TABLE_KEY",
    "STATUS_FOLDER",
    "WORK_FOLDER",
    "attempts_prefix",
    "cells_key",
    "check_slide_id",
    "claims_prefix",
    "core_mask_key",
    "digests_key",
    "embedding_record_key",
    "embeddings_key",
    "is_safe_id",
    "mask_prefix",
    "mask_shard_key",
    "part_key",
    "parts_prefix",
    "rescored_key",
    "retyped_key",
    "retyped_prefix",
    "status_key",
    "work_marker_key",
    "work_prefix",
]

CELLSET_KEY = "cellset.json"
SLIDES_TABLE_KEY = "slides.parquet"
RESCORED_TABLE_KEY = "rescored.parquet"
STATUS_FOLDER = "slides"
EMBEDDINGS_FOLDER = "embeddings"
RETYPED_FOLDER = "retyped"
WORK_FOLDER = "_work"

_SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def check_slide_id(slide_id: str) -> str:
    """The id itself, when it can be a file name on every storage.

    Raises:
        UnsafeNameError: saying what is allowed.
    """
    if not _SAFE_ID.fullmatch(slide_id):
        raise UnsafeNameError(
            f"A slide id must be 1 to 128 letters, digits, '.', '_' or '-' and not start with '.', got {slide_id!r}. "
            "Give the slide another slide_id in the manifest."
        )
    return slide_id


def is_safe_id(name: str) -> bool:
    """Whether `check_slide_id` takes it."""
    return _SAFE_ID.fullmatch(name) is not None


def cells_key(slide_id: str) -> str:
    """The slide's committed cell table."""
    return f"cells/{check_slide_id(slide_id)}.parquet"


def rescored_key(slide_id: str) -> str:
    """A teacher's scores of the slide's cells."""
    return f"rescored/{check_slide_id(slide_id)}.parquet"


def embeddings_key(embedded_by: str, slide_id: str) -> str:
    """Vectors of the slide's cells; `embedded_by` is `student` or `teacher`."""
    return f"{EMBEDDINGS_FOLDER}/{check_slide_id(embedded_by)}/{check_slide_id(slide_id)}.parquet"


def embedding_record_key(embedded_by: str, slide_id: str) -> str:
    """What those vectors are; its presence is what 'they are there' means."""
    return f"{EMBEDDINGS_FOLDER}/{check_slide_id(embedded_by)}/{check_slide_id(slide_id)}.json"


def retyped_prefix(name: str) -> str:
    """Everything of one fitted type head: itself and its answers."""
    return f"{RETYPED_FOLDER}/{check_slide_id(name)}"


def retyped_key(name: str, slide_id: str) -> str:
    """The head's answers for the slide's cells."""
    return f"{retyped_prefix(name)}/{check_slide_id(slide_id)}.parquet"


def status_key(slide_id: str) -> str:
    """The slide's status: what decides whether it is done."""
    return f"{STATUS_FOLDER}/{check_slide_id(slide_id)}.json"


def digests_key(slide_id: str) -> str:
    """SHA-256 of each of the slide's committed objects."""
    return f"{STATUS_FOLDER}/{check_slide_id(slide_id)}.sha256"


def mask_prefix(slide_id: str) -> str:
    """The slide's OME-Zarr group."""
    return f"masks/{check_slide_id(slide_id)}.ome.zarr"


def mask_shard_key(slide_id: str, *, level: int, row: int, column: int) -> str:
    """One shard of one level of the slide's mask, as zarr v3's default chunk keys name it."""
    return f"{mask_prefix(slide_id)}/{level}/c/{row}/{column}"


def work_prefix(slide_id: str) -> str:
    """Everything kept about the slide while it is under way."""
    return f"{WORK_FOLDER}/{check_slide_id(slide_id)}"


def claims_prefix(slide_id: str) -> str:
    """Claims on the slide, one object a generation."""
    return f"{work_prefix(slide_id)}/claims"


def attempts_prefix(slide_id: str) -> str:
    """Attempts at the slide and its fields, remembered across drivers."""
    return f"{work_prefix(slide_id)}/attempts"


def parts_prefix(slide_id: str, work_key: str) -> str:
    """Parts of the slide's fields made under one work key."""
    return f"{work_prefix(slide_id)}/{check_slide_id(work_key)}/parts"


def part_key(slide_id: str, work_key: str, field_name: str) -> str:
    """The part of one field; its presence is what 'this field is done' means."""
    return f"{parts_prefix(slide_id, work_key)}/{check_slide_id(field_name)}.arrow"


def core_mask_key(slide_id: str, work_key: str, field_name: str) -> str:
    """What one field leaves of its painted core for the commit."""
    return f"{parts_prefix(slide_id, work_key)}/{check_slide_id(field_name)}.mask"


def work_marker_key(slide_id: str, work_key: str) -> str:
    """Says that parts and mask shards of this work key, and of no other, are what the slide holds."""
    return f"{work_prefix(slide_id)}/{check_slide_id(work_key)}/work.json"
