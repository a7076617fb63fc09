"""What of a slide may reach an output or a log. Everything that is not named here stays in the slide.

In: what a slide's header says, and what its file is called. Out: sizes, scale, offsets and the kind of file, as numbers
and plain words; pseudonyms in place of names. Headers hold patient names, accession numbers, dates and operators in
fields that differ by scanner and site, so nothing is searched for and removed: what is allowed is listed, the rest is
never taken. Labels, macros and thumbnails are not opened at all.
"""

import csv
import hashlib
import hmac
import io
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = [
    "ALLOWED_FROM_A_SLIDE",
    "ALLOWED_PROPERTIES",
    "allowed_properties",
    "allowed_reader_name",
    "pseudonym",
    "read_secret",
    "without_names",
    "write_pseudonyms",
]

ALLOWED_FROM_A_SLIDE: Mapping[str, str] = {
    "reader_name": "library and kind of file, like openslide/aperio: lower-case words, checked",
    "levels": "width and height of each level in px, and its downsample",
    "stated_mpp": "two numbers, um/px",
    "bounds_level0_px": "two whole numbers, level-0 px",
    "fingerprint": "hash of the size, first and last megabyte of each of its files",
}
"""The fields of `SlideInfo`: all that leaves the process that opens a slide, besides pixels of the slide itself."""

ALLOWED_PROPERTIES = (
    "openslide.vendor",
    "openslide.mpp-x",
    "openslide.mpp-y",
    "openslide.bounds-x",
    "openslide.bounds-y",
    "openslide.level[N].tile-width",
    "openslide.level[N].tile-height",
)
"""OpenSlide's properties that are looked at, N for each level. The others (aperio.*, hamamatsu.*, dicom.*, comments,
tiff.*) are never read."""

_WORDS = re.compile(r"[a-z]+(-[a-z]+)*(/[a-z]+(-[a-z]+)*)?")
_LEVEL = re.compile(r"\[[0-9]{1,3}\]")
_MAX_NAME = 40
_MIN_SECRET_BYTES = 16


def allowed_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """Of OpenSlide's properties those in `ALLOWED_PROPERTIES`, where they are what they should be."""
    # By name, so that the others' values are not even fetched: one that is damaged raises.
    names = [name for name in properties if _LEVEL.sub("[N]", name) in ALLOWED_PROPERTIES]
    kept = {name: value for name in names if (value := properties.get(name)) is not None}
    return {
        name: value
        for name, value in kept.items()
        if (_WORDS.fullmatch(value) and len(value) <= _MAX_NAME if name == "openslide.vendor" else _is_number(value))
    }


def allowed_reader_name(name: str) -> str:
    """The name of a reader where it is one, else 'unknown': a reader of someone else's may put anything there."""
    return name if _WORDS.fullmatch(name) and len(name) <= _MAX_NAME else "unknown"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


# ----------------------------------------------------------------------------------------------------- file names


def read_secret(path: str | None) -> bytes | None:
    """The key of the pseudonyms, from a file that only its owner can read.

    Raises:
        ValueError: when the file cannot be read, is open to others, or is too short to keep names secret.
    """
    if path is None:
        return None
    try:
        mode = Path(path).stat().st_mode
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise ValueError(f"--pseudonymize must name a file with a secret, got {path!r}: {error}.") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ValueError(
            f"--pseudonymize: {path!r} can be read by others (mode {stat.S_IMODE(mode):04o}), who could then find out "
            f"whose slides these are. Run: chmod 600 {path}"
        )
    if len(secret) < _MIN_SECRET_BYTES:
        raise ValueError(
            f"--pseudonymize needs a secret of at least {_MIN_SECRET_BYTES} bytes, {path!r} holds {len(secret)}; "
            "make one with: (umask 077; openssl rand -hex 32 > FILE)"
        )
    return secret


def pseudonym(name: str, secret: bytes) -> str:
    """The name's keyed hash: HMAC-SHA256, first 128 bits as 32 hexadecimal digits."""
    return hmac.new(secret, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]


def without_names(text: str, url: str, *, instead: str) -> str:
    """`text` without a slide's path, the folders it lies in, its file name and its stem."""
    path = url.replace("\\", "/").rstrip("/")
    name = path.rsplit("/", 1)[-1]
    for told in (url, path, name):
        text = text.replace(told, instead) if told else text
    for stem in {name.split(".", 1)[0], Path(name).stem} - {""}:
        # A stem of a letter or two stands inside many words.
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(stem)}(?![A-Za-z0-9])", instead, text)
    folder = path.rpartition("/")[0]
    while folder.count("/") > 1:  # longest first; the top folders say nothing of a patient
        text = text.replace(folder, "...")
        folder = folder.rpartition("/")[0]
    return text


def write_pseudonyms(path: Path, names: Iterable[tuple[str, str]], *, out: str) -> None:
    """Write down which pseudonym is which slide, for the one who asks for it: a CSV only its owner can read.

    Lines of earlier runs are kept, so that one file can serve a growing cohort.

    Args:
        path: the file.
        names: (pseudonym, path or URL of the slide).
        out: the cell set, in which the file must not lie.

    Raises:
        ValueError: when it would lie inside the outputs, or cannot be written.
    """
    if "://" not in out and path.absolute().resolve().is_relative_to(Path(out).absolute().resolve()):
        raise ValueError(
            f"--pseudonym-map {path} lies inside --out, which is what others get to see; put it elsewhere."
        )
    try:
        rows = dict(_read_rows(path)) | dict(names)
        sink = io.StringIO()
        csv.writer(sink).writerows([("slide_id", "slide"), *sorted(rows.items())])
        partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(sink.getvalue().encode("utf-8", "surrogateescape"))
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"--pseudonym-map {path} cannot be written: {error}.") from error


def _read_rows(path: Path) -> list[tuple[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [(row["slide_id"], row["slide"]) for row in csv.DictReader(file)]
