"""Files, globs, folders and URLs to the paths of slides.

In: one text from `--slides`. Out: paths or URLs, one a slide, sorted. A folder gives every file with a slide's suffix
below it; an MRXS file stands for its folder of the same name, a folder of DICOM files for one series.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cellmill.staging.remote import is_remote

__all__ = ["SLIDE_SUFFIXES", "expand_slides", "require_absolute", "resolve_beside"]

SLIDE_SUFFIXES = (".svs", ".svslide", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".czi", ".tif", ".tiff", ".dcm")
"""What a folder is searched for. A file named outright is taken whatever its suffix."""

_GLOB_CHARACTERS = ("*", "?", "[")


def expand_slides(text: str) -> list[str]:
    """Paths or URLs that `text` names; a plain path is returned even where nothing is there, to be reported as such.

    Raises:
        ValueError: when a glob or folder matches no slide.
    """
    filesystem, path = _filesystem(text)
    if any(character in text for character in _GLOB_CHARACTERS) and not filesystem.exists(path):
        found = _one_per_slide(str(entry) for entry in filesystem.glob(path))
    elif filesystem.isdir(path):
        below = [str(entry) for entry in filesystem.find(path)]
        found = _one_per_slide(entry for entry in below if entry.lower().endswith(SLIDE_SUFFIXES))
    else:
        return [text if is_remote(text) else _local(text)]
    if not found:
        raise ValueError(
            f"--slides {text} matches no slide here; a folder or glob must hold files ending in "
            f"{', '.join(SLIDE_SUFFIXES)}."
        )
    return sorted(str(filesystem.unstrip_protocol(entry)) if is_remote(text) else _local(entry) for entry in found)


def require_absolute(flag: str, text: str) -> None:
    """Refuse a relative path inside a Ray job.

    Raises:
        ValueError: when `text` is a relative local path.
    """
    if text and "://" not in text and not Path(text).is_absolute():
        raise ValueError(
            f"{flag} must be an absolute path or a URL inside a Ray job, got {text!r}: relative paths lie in Ray's "
            "package cache there, which is thrown away with the job. Give the path as the cluster's nodes see it."
        )


def resolve_beside(slide: str, *, manifest: str) -> str:
    """The path of a slide in a manifest: relative ones start at the manifest's folder, else at the current one."""
    if "://" in slide:
        return slide if is_remote(slide) else _local(slide)
    if is_remote(manifest):
        return f"{manifest.rsplit('/', 1)[0]}/{slide}"
    beside = Path(_local(manifest)).parent / slide
    return str(beside if beside.exists() or not Path(slide).exists() else Path(slide).absolute())


def _filesystem(text: str):  # type: ignore[no-untyped-def]
    import fsspec

    filesystem, path = fsspec.url_to_fs(text if is_remote(text) else _local(text))
    return filesystem, str(path)


def _local(text: str) -> str:
    return str(Path(text.removeprefix("file://").removeprefix("local://")).expanduser().absolute())


def _one_per_slide(paths: Iterable[str]) -> set[str]:
    """Paths with the inside of MRXS slides left out and DICOM files gathered to their folder."""
    paths = set(paths)
    inside_mrxs = {path[: -len(".mrxs")] for path in paths if path.lower().endswith(".mrxs")}
    slides = {path for path in paths if str(PurePosixPath(path).parent) not in inside_mrxs and path not in inside_mrxs}
    return {str(PurePosixPath(path).parent) if path.lower().endswith(".dcm") else path for path in slides}
