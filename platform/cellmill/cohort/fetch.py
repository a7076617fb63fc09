"""A slide behind a URL, on this machine's disk: slide libraries read files, not buckets.

In: a path or URL. Out: a local path. Copies are shared by the workers of a node and used again while they last; the
oldest go when there are more than `KEPT_COPIES`.
"""

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from cellmill.cohort.listing import is_remote
from cellmill.slides.errors import SlideNotFoundError

__all__ = ["KEPT_COPIES", "local_copy"]

KEPT_COPIES = 8
_YOUNG_SECONDS = 3600.0
"""Copies used within this time are never removed."""


def local_copy(url: str, *, cache: Path | None = None) -> Path:
    """The slide as a local file or folder; a local one is returned as it is.

    Args:
        url: path or URL of a slide; an MRXS file's folder and a DICOM series come with it.
        cache: folder for copies; by default one of this user's below the system's temporary folder.

    Raises:
        SlideNotFoundError: when the URL cannot be fetched.
    """
    if not is_remote(url):
        return Path(url)
    cache = cache or Path(tempfile.gettempdir()) / f"cellmill-slides-{os.getuid()}"
    name = url.rstrip("/").rsplit("/", 1)[-1]
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:32]
    if not folder.is_dir():
        _remove_oldest(cache)
        _fetch(url, folder, name=name)
    os.utime(folder)
    return folder / name


def _fetch(url: str, folder: Path, *, name: str) -> None:
    import fsspec

    partial = folder.with_name(f"{folder.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
    partial.mkdir(parents=True, mode=0o700)
    try:
        filesystem, path = fsspec.url_to_fs(url)
        if filesystem.isdir(path):
            filesystem.get(path.rstrip("/") + "/", f"{partial / name}/", recursive=True)
        else:
            filesystem.get_file(path, str(partial / name))
            if name.lower().endswith(".mrxs"):
                stem = name[: -len(".mrxs")]
                inside = path[: -len(".mrxs")]
                filesystem.get(inside + "/", f"{partial / stem}/", recursive=True)
        partial.rename(folder)
    except FileExistsError:
        pass  # another worker was faster
    except Exception as error:
        if folder.is_dir():
            return
        raise SlideNotFoundError(
            f"The slide could not be fetched ({type(error).__name__}); check the URL and the credentials."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_oldest(cache: Path) -> None:
    if not cache.is_dir():
        return
    copies = sorted((entry for entry in cache.iterdir() if entry.is_dir()), key=lambda entry: entry.stat().st_mtime)
    for copy in copies[: -KEPT_COPIES + 1]:
        if time.time() - copy.stat().st_mtime > _YOUNG_SECONDS:
            shutil.rmtree(copy, ignore_errors=True)
