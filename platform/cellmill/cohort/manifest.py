"""Which slides a run is about, and what each is called.

In: what `--slides` was given (files, globs, folders, URLs, CSV or Parquet manifests). Out: one `SlideSource` a slide,
in a fixed order, each with the id that every output will carry.

The rule for ids: the manifest's `slide_id`, else the file's stem. Characters outside `[A-Za-z0-9._-]` become `_`,
leading dots go, and at most 96 characters stay; an id changed by this gets `-` and 8 hexadecimal digits of the
original's SHA-256, so that two names never fall together by it and a slide's id depends on its own name only.
"""

import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cellmill.cohort.listing import expand_slides, resolve_beside
from cellmill.privacy import pseudonym, without_names

__all__ = ["SlideSource", "hide_name", "list_sources", "make_safe_id"]

_MAX_ID_LENGTH = 96
_MANIFEST_SUFFIXES = (".csv", ".parquet", ".pq")


@dataclass(frozen=True)
class SlideSource:
    """One slide to segment."""

    slide_id: str
    url: str
    """Local path or URL of the slide; for a DICOM series its folder."""
    mpp: float | None = None
    """The manifest's um/px, None where it gives none."""
    problem: str | None = None
    """Why the slide cannot run, known from the list alone."""
    hidden: bool = False
    """Whether the file's name must not reach an output or a log."""


def list_sources(slides: Iterable[str], *, secret: bytes | None = None) -> tuple[SlideSource, ...]:
    """All slides of a run, in the order given, each file once.

    Slides that claim one id are all kept, each with a `problem`, so that they are reported and none runs.

    Args:
        slides: files, globs, folders, URLs, manifests.
        secret: key of the pseudonyms; None keeps names.

    Raises:
        ValueError: when something listed matches nothing or a manifest cannot be understood.
    """
    named: dict[str, SlideSource] = {}
    for text in slides:
        for entry in _entries(text):
            named.setdefault(entry.url, entry)
    return tuple(_without_shared_ids([_pseudonymized(entry, secret) for entry in named.values()]))


def make_safe_id(name: str) -> str:
    """A slide id fit for file names on any system, by the rule at the top of this module."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:_MAX_ID_LENGTH]
    if safe == name and safe:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe or 'slide'}-{digest}"


def hide_name(text: str, source: SlideSource) -> str:
    """`text` without the slide's path and file name where the run is pseudonymized, else unchanged."""
    return without_names(text, source.url, instead=source.slide_id) if source.hidden else text


def _entries(text: str) -> Iterator[SlideSource]:
    if text.lower().endswith(_MANIFEST_SUFFIXES) and "*" not in text:
        yield from _read_manifest(text)
    else:
        for url in expand_slides(text):
            yield SlideSource(slide_id=_stem(url), url=url)


def _stem(url: str) -> str:
    name = url.rstrip("/").rsplit("/", 1)[-1]
    stem = name if Path(url).is_dir() else Path(name).stem
    return stem.removesuffix(".ome")


def _pseudonymized(source: SlideSource, secret: bytes | None) -> SlideSource:
    if secret is None:
        return replace(source, slide_id=make_safe_id(source.slide_id))
    hidden = replace(source, slide_id=pseudonym(source.slide_id, secret), hidden=True)
    return hidden if hidden.problem is None else replace(hidden, problem=hide_name(hidden.problem, hidden))


def _without_shared_ids(sources: list[SlideSource]) -> Iterator[SlideSource]:
    # Case is ignored: two ids that differ by it are one file on half of the world's file systems.
    claims: dict[str, list[SlideSource]] = defaultdict(list)
    for source in sources:
        claims[source.slide_id.casefold()].append(source)
    for source in sources:
        rivals = claims[source.slide_id.casefold()]
        if len(rivals) == 1:
            yield source
            continue
        names = "" if source.hidden else ": " + ", ".join(rival.url for rival in rivals)
        yield replace(
            source,
            problem=f"{len(rivals)} slides claim the id {source.slide_id!r}{names}. None of them was run; "
            "give each its own slide_id in a manifest.",
        )


def _read_manifest(url: str) -> Iterator[SlideSource]:
    rows = _parquet_rows(url) if not url.lower().endswith(".csv") else _csv_rows(url)
    for number, row in enumerate(rows, start=1):
        slide = row.get("slide", "")
        if not slide:
            raise ValueError(f"{url}, row {number}: the column slide is empty; give the slide's path or URL.")
        path = resolve_beside(slide, manifest=url)
        yield _with_mpp(SlideSource(slide_id=row.get("slide_id") or _stem(path), url=path), row.get("mpp", ""))


def _with_mpp(source: SlideSource, text: str) -> SlideSource:
    if not text:
        return source
    try:
        return replace(source, mpp=float(text))
    except ValueError:
        return replace(
            source, problem=f"The manifest's mpp must be a number of um/px, got {text!r}; correct it or leave it empty."
        )


def _csv_rows(url: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_read_bytes(url).decode("utf-8-sig")))
    _check_columns(url, reader.fieldnames or ())
    return [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in reader]


def _parquet_rows(url: str) -> list[dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(_read_bytes(url)))
    _check_columns(url, table.column_names)
    if "slide_id" in table.column_names and pa.types.is_floating(table.schema.field("slide_id").type):
        raise ValueError(f"{url}: slide_id must be text or integers, got {table.schema.field('slide_id').type}.")
    wanted = [name for name in ("slide", "slide_id", "mpp") if name in table.column_names]
    return [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in table.select(wanted).to_pylist()
    ]


def _check_columns(url: str, names: Iterable[str]) -> None:
    names = list(names)
    if "slide" not in names:
        raise ValueError(
            f"{url}: a manifest needs a column slide (and may have slide_id, mpp), got {', '.join(names) or 'none'}."
        )


def _read_bytes(url: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            return file.read()  # type: ignore[union-attr]
    except OSError as error:
        raise ValueError(f"The manifest {url} cannot be read: {error}") from error
