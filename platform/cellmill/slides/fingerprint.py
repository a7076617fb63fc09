"""What file a slide was: sizes, and a hash of head and tail, of every file it consists of.

A slide's bytes are many gigabytes; its first and last megabyte hold the directories and change with any edit or cut.
"""

import hashlib
import re
from pathlib import Path

__all__ = ["dicom_series_uid", "slide_files", "slide_fingerprint"]

_SAMPLE_BYTES = 1 << 20
_DICOM_HEADER_BYTES = 1 << 16
# Tag (0020,000E), then VR "UI" and a length of two bytes, or a length of four.
_SERIES_INSTANCE_UID = re.compile(rb"\x20\x00\x0e\x00(?:UI..|.{4})([0-9.]+)", re.DOTALL)


def slide_fingerprint(path: str | Path) -> str:
    """A hex digest that changes when the slide's file, or any of its files, does. It holds no name or path."""
    digest = hashlib.sha256()
    for file in slide_files(Path(path)):
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE_BYTES))
            stream.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def slide_files(path: Path) -> list[Path]:
    """The files a slide consists of, by name: a folder's, a DICOM file's siblings, an MRXS with its folder."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    suffix = path.suffix.lower()
    if uid := dicom_series_uid(path):
        # One folder may hold many slides: adding one must not change the others.
        return sorted(file for file in path.parent.iterdir() if file.is_file() and dicom_series_uid(file) == uid)
    if suffix in (".mrxs", ".vms", ".vmu"):
        # MRXS keeps its data in a folder of its stem; Hamamatsu VMS in files beside it that start with its stem.
        beside = [file for file in path.parent.glob(f"{_escaped(path.stem)}*") if file.is_file() and file != path]
        folder = path.with_suffix("")
        inside = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
        return [path, *sorted(inside if suffix == ".mrxs" else beside)]
    return [path]


def dicom_series_uid(file: Path) -> str | None:
    """SeriesInstanceUID of a DICOM file, None for any other file."""
    with file.open("rb") as stream:
        head = stream.read(_DICOM_HEADER_BYTES)
    if head[128:132] != b"DICM":
        return None
    # The last one: referenced series are nested in group 0008, which comes before the file's own in group 0020.
    found = _SERIES_INSTANCE_UID.findall(head)
    return found[-1].decode("ascii") if found else None


def _escaped(stem: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in stem)
