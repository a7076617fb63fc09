"""What is recorded about a slide: how it ended, why, how much of it was analysed, and what made the result."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import pyarrow as pa

__all__ = ["STATUS_SCHEMA", "ExcludedArea", "SlideOutcome", "SlideStatus"]

SlideOutcome = Literal["done", "done_empty", "failed", "forgotten"]
"""How a slide ended. `forgotten` is the tombstone of a slide removed on request."""


@dataclass(frozen=True)
class ExcludedArea:
    """Area of tiles not analysed, by reason, in mm2 of tile cores clipped to the slide.

    The reasons are exclusive; the first that applies in the order of the fields counts.
    """

    outside_region_mm2: float = 0.0
    background_mm2: float = 0.0
    unreadable_mm2: float = 0.0
    pen_mm2: float = 0.0
    blur_mm2: float = 0.0


@dataclass(frozen=True)
class SlideStatus:
    """One slide's end state; written last, in one put, it is what makes the slide's outputs visible as done."""

    slide_id: str
    outcome: SlideOutcome
    reasons: tuple[str, ...] = ()
    """Sentences a person can act on; empty for a plain `done`."""
    mpp_x: float | None = None
    mpp_y: float | None = None
    """Level-0 micrometres per pixel as used."""
    width_level0_px: int | None = None
    height_level0_px: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    """Size on the model grid."""
    target_mpp: float | None = None
    slide_mm2: float = 0.0
    analysed_mm2: float = 0.0
    excluded: ExcludedArea = field(default_factory=ExcludedArea)
    num_fields: int = 0
    num_tiles: int = 0
    """Tiles analysed."""
    num_cells: int = 0
    num_cells_by_type: dict[str, int] = field(default_factory=dict)
    num_attempts: int = 1
    seconds: float = 0.0
    """Wall time spent on the slide's fields and commit, all workers added up."""
    slide_fingerprint: str = ""
    """Size and content hash of head and tail of the slide file(s): a changed file is refused on resume."""
    cells_sha256: str = ""
    mask_digest: str = ""
    """SHA-256 of the mask's level-0 pixels, whatever its shards."""
    objects_sha256: str = ""
    """SHA-256 of `slides/<slide_id>.sha256`, which lists every object of the slide with its own."""
    model_digest: str = ""
    config_digest: str = ""
    device_kind: str = ""
    finished_at: str = ""
    """UTC, ISO 8601; the only place a clock time is written."""

    def to_json(self) -> dict[str, Any]:
        """The status as plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> "SlideStatus":
        """Parse what `to_json` wrote; unknown keys raise, so that a newer file is not half understood.

        Raises:
            ValueError: naming the unknown or missing keys.
        """
        known = {item.name for item in fields(SlideStatus)}
        unknown = set(document) - known
        if unknown or not {"slide_id", "outcome"} <= set(document):
            raise ValueError(f"Not a slide status: unknown keys {sorted(unknown)}, has {sorted(document)}.")
        values = dict(document)
        values["reasons"] = tuple(values.get("reasons", ()))
        values["excluded"] = ExcludedArea(**values.get("excluded", {}))
        return SlideStatus(**values)


STATUS_SCHEMA = pa.schema(
    [
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reasons", pa.list_(pa.string())),
        pa.field("mpp_x", pa.float64()),
        pa.field("mpp_y", pa.float64()),
        pa.field("width_level0_px", pa.int64()),
        pa.field("height_level0_px", pa.int64()),
        pa.field("width_px", pa.int64()),
        pa.field("height_px", pa.int64()),
        pa.field("target_mpp", pa.float64()),
        pa.field("slide_mm2", pa.float64()),
        pa.field("analysed_mm2", pa.float64()),
        *(pa.field(f"excluded_{item.name}", pa.float64()) for item in fields(ExcludedArea)),
        pa.field("num_fields", pa.int64()),
        pa.field("num_tiles", pa.int64()),
        pa.field("num_cells", pa.int64()),
        pa.field("num_cells_by_type", pa.map_(pa.string(), pa.int64())),
        pa.field("num_attempts", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("slide_fingerprint", pa.string()),
        pa.field("cells_sha256", pa.string()),
        pa.field("mask_digest", pa.string()),
        pa.field("objects_sha256", pa.string()),
        pa.field("model_digest", pa.string()),
        pa.field("config_digest", pa.string()),
        pa.field("device_kind", pa.string()),
        pa.field("finished_at", pa.string()),
    ]
)
"""Columns of `slides.parquet`: a `SlideStatus` a row, `excluded` spread over one column a reason."""
