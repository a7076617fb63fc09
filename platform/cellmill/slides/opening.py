"""Open whatever a slide's path points at: the first reader that understands it.

A file, a DICOM file of a series, or a folder holding one DICOM series.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cellmill.slides.errors import SlideError, SlideNotFoundError, UnsupportedSlideError
from cellmill.slides.fingerprint import dicom_series_uid, slide_files
from cellmill.slides.reader import SlideReader, check_levels, check_size_in_bytes

if TYPE_CHECKING:
    from cellmill.slides.openslide_reader import OpenSlideReader

__all__ = ["open_slide", "slide_file"]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_slide(path: str | Path) -> SlideReader:
    """Open a slide with OpenSlide, or with tifffile where OpenSlide refuses.

    Plain tiles of a slide that OpenSlide opens are decoded without it, see `cellmill.slides.tiled_tiff_reader`.

    Raises:
        SlideError: with a reason for people, whatever is wrong with the file.
    """
    file = slide_file(Path(path))
    openslide = _open_openslide(file)
    reader = openslide or _open_tifffile(file)
    try:
        check_levels(reader.levels)
        check_size_in_bytes(reader.levels, sum(part.stat().st_size for part in slide_files(file)))
        return reader if openslide is None else _with_fast_levels(openslide, file)
    except BaseException:
        reader.close()
        raise


def slide_file(path: Path) -> Path:
    """The file to open for a path: itself, or the first DICOM image of a folder.

    Raises:
        SlideNotFoundError: when there is nothing to open, or it may not be read.
        UnsupportedSlideError: for an empty file, or a folder of anything but one DICOM series.
    """
    try:
        if path.is_dir():
            return _dicom_in_folder(path)
        with path.open("rb") as stream:
            if not stream.read(1):
                raise UnsupportedSlideError("The file is empty (0 bytes); copy it again.")
    except FileNotFoundError as error:
        raise SlideNotFoundError("There is no such file.") from error
    except PermissionError as error:
        raise SlideNotFoundError("The file may not be read: permission denied.") from error
    except OSError as error:
        raise SlideNotFoundError(f"The file cannot be read ({error.strerror}).") from error
    return path


def _open_openslide(file: Path) -> "OpenSlideReader | None":
    """The slide as OpenSlide sees it; None where OpenSlide does not know the format or gives up on the file."""
    import openslide

    from cellmill.slides.openslide_reader import OpenSlideReader

    try:
        return OpenSlideReader(file)
    except openslide.OpenSlideError:
        return None


def _with_fast_levels(reader: "OpenSlideReader", file: Path) -> SlideReader:
    if not reader.is_plain_tiff:
        return reader
    # Only now: the import takes longer than opening a slide.
    from cellmill.slides.tiled_tiff_reader import with_fast_levels

    return with_fast_levels(reader, file)


def _open_tifffile(file: Path) -> SlideReader:
    with file.open("rb") as stream:
        head = stream.read(256)
    if head[:4] not in _TIFF_MAGIC:
        raise UnsupportedSlideError(_describe_head(head))
    # Only now: most slides never need tifffile, whose import takes longer than opening them.
    from cellmill.slides.tifffile_reader import TifffileReader

    try:
        return TifffileReader(file)
    except SlideError:
        raise
    except Exception as error:  # tifffile meets damaged headers with any type of exception
        raise UnsupportedSlideError(
            "The file starts like a TIFF, but its directory cannot be read: it is cut off or damaged. Copy it again."
        ) from error


def _describe_head(head: bytes) -> str:
    if head[128:132] == b"DICM":
        return "The file is DICOM, but no whole-slide image that can be read (an annotation, or a damaged file)."
    if not head.strip(b"\0"):
        return "The file starts with zeros and is no slide format that is known; the copy may not have finished."
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "The file holds text, not a slide."
    return "The file is no slide format that is known, or it is damaged; neither OpenSlide nor tifffile can open it."


def _dicom_in_folder(folder: Path) -> Path:
    """The first file of the one DICOM image series in a folder; OpenSlide finds its other files itself."""
    import openslide

    files_by_series: dict[str, list[Path]] = {}
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        if uid := dicom_series_uid(file):
            files_by_series.setdefault(uid, []).append(file)
    # Annotations and segmentations of a slide are series of their own, which OpenSlide does not take for slides.
    slides = [
        image
        for files in files_by_series.values()
        if (image := next((file for file in files if openslide.OpenSlide.detect_format(str(file))), None))
    ]
    if not slides:
        raise UnsupportedSlideError("The folder holds no DICOM whole-slide image.")
    if len(slides) > 1:
        raise UnsupportedSlideError(
            f"The folder holds {len(slides)} DICOM series; name one file of each series wanted, or give each a folder."
        )
    return slides[0]
