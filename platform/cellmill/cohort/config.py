"""What a cohort run is told: one typed configuration, from the command line, a YAML file or Python.

In: arguments. Out: a checked `SegmentCohortConfig`. The sentence under each field is its help text.
"""

from dataclasses import dataclass
from typing import Literal

from cellmill.slides.scale import MAX_MPP, MIN_MPP, is_usable_mpp

__all__ = ["DEFAULT_FIELD_PX", "SHARD_PX", "SegmentCohortConfig"]

DEFAULT_FIELD_PX = 2048
SHARD_PX = 256
"""Side of the smallest mask shard: a field core is a whole number of them."""


@dataclass(frozen=True)
class SegmentCohortConfig:
    """Settings of `segment_cohort`."""

    slides: tuple[str, ...] = ()
    """Slides to segment: one or more files, globs, folders, URLs, or one CSV or Parquet manifest with the columns
    slide and optionally slide_id and mpp (um/px)."""

    out: str = ""
    """Where the cell set goes: a folder or any fsspec URL such as s3://bucket/cells. The same command on the same
    place does only what is missing."""

    model: str = "lite"
    """Packaged name (lite), folder with model.json and weights.safetensors, or MLflow URI (models:/name@champion)."""

    target_mpp: float | None = None
    """Scale the network works at, in um/px. Default: the model's own."""

    mpp: float | None = None
    """Scale of the slides' finest pixels, in um/px, in place of what they state. For slides that state none, or state
    it wrongly. A manifest's mpp column goes before it."""

    tissue: str = "auto"
    """What to analyse: auto (tissue found at low resolution), none (everything), or a GeoJSON file of polygons in
    level-0 px that holds for every slide of the run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs: auto takes CUDA where there is one. One slide is done by one kind of device."""

    field_px: int = DEFAULT_FIELD_PX
    """Side of a field, the unit of work and retry, in px of the model grid; a multiple of 256. Larger
    decodes less twice along borders (4096 saves a few per cent of the time) and takes more memory, about 40 bytes per
    px of its area for each worker. Does not change results."""

    batch_size: int = 0
    """Tiles per forward pass. Default (0): 1 on a CPU, where larger ones are slower, 16 with CUDA. Part of what fixes
    results to the last digit."""

    num_workers: int = 0
    """Fields segmented at the same time. Default (0): the CPUs granted to this process or cluster, or its GPUs with
    CUDA. Does not change results."""

    threads_per_worker: int = 1
    """CPU threads of each worker. Never follows the number of workers, because results may depend on it."""

    embeddings: bool = False
    """Store a vector a cell, too, in embeddings/: a layer of the network, averaged over the cell's pixels. Looks at
    every tile that holds a cell a second time, after all slides are done; cells and masks stay as they are."""

    max_slides: int | None = None
    """Stop after this many slides of the list. Default: all."""

    pseudonymize: str | None = None
    """File with a secret of at least 16 bytes that only its owner can read. Slide ids become keyed hashes, and no file
    name reaches an output or a log. Keep the file: the same secret gives the same ids."""

    pseudonym_map: str = ""
    """CSV file outside --out to write down which pseudonym is which slide, readable by its owner only. Default: nobody
    writes that down."""

    forget: str | None = None
    """Remove this slide id from --out, leaving a tombstone, and do nothing else (consent withdrawn)."""

    max_attempts: int = 3
    """How often a slide may crash or hang its reader, over all runs on the same --out, before it is set aside."""

    reader: str = "cellmill.slides.opening:open_slide"
    """Function that opens a slide, as module:function; another reader is another such function."""

    reader_timeout_seconds: float = 120.0
    """Longest time a slide reader may take for one request, in seconds."""

    reader_memory_gib: float = 4.0
    """Most memory a slide reader's process may take, in GiB."""

    slide_cache: str = ""
    """Folder on each node's own disk that slides behind URLs are brought to, shared by the node's workers. Default: one
    of this user's below the system's temporary folder."""

    slide_cache_gib: float = 0.0
    """Most that the slide cache may hold, in GiB; the slides used longest ago go first. Default (0): half of the disk
    space that is free there."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slides", (self.slides,) if isinstance(self.slides, str) else tuple(self.slides))
        _check(bool(self.out), "--out", self.out, "a folder or URL", "say where the cell set goes")
        _check(
            bool(self.slides) or self.forget is not None,
            "--slides",
            "nothing",
            "at least one slide",
            "give files, globs, folders, URLs or one manifest",
        )
        for name in ("target_mpp", "mpp"):
            value = getattr(self, name)
            _check(
                value is None or is_usable_mpp(value),
                _flag(name),
                value,
                f"{MIN_MPP:g} to {MAX_MPP:g} um/px",
                "give micrometres per pixel: 0.25 for 40x, 0.5 for 20x, as a rule",
            )
        _check(
            self.field_px > 0 and self.field_px % SHARD_PX == 0,
            "--field-px",
            self.field_px,
            f"a positive multiple of {SHARD_PX}",
            f"try {DEFAULT_FIELD_PX}",
        )
        for name in ("threads_per_worker", "max_attempts"):
            _check(
                getattr(self, name) >= 1, _flag(name), getattr(self, name), "1 or more", "leave it out for the default"
            )
        for name in ("batch_size", "num_workers"):
            _check(getattr(self, name) >= 0, _flag(name), getattr(self, name), "1 or more", "leave it out")
        _check(
            self.max_slides is None or self.max_slides >= 1,
            "--max-slides",
            self.max_slides,
            "1 or more",
            "leave it out for all slides",
        )
        _check(
            self.reader_timeout_seconds > 0,
            "--reader-timeout-seconds",
            self.reader_timeout_seconds,
            "more than 0 seconds",
            "try 120",
        )
        _check(
            not self.pseudonym_map or self.pseudonymize is not None,
            "--pseudonym-map",
            self.pseudonym_map,
            "left out without --pseudonymize",
            "give a secret with --pseudonymize",
        )
        _check(self.slide_cache_gib >= 0, "--slide-cache-gib", self.slide_cache_gib, "0 GiB or more", "leave it out")
        _check(
            self.reader_memory_gib >= 0.25, "--reader-memory-gib", self.reader_memory_gib, "0.25 GiB or more", "try 4"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check(holds: bool, flag: str, got: object, wanted: str, hint: str) -> None:
    if not holds:
        raise ValueError(f"{flag} must be {wanted}, got {got!r}; {hint}.")
