"""One slide's files to a folder on disk: in ranges, several at a time, checked against what the server says.

A dropped connection costs one range, not the file. A file whose MD5 is not the server's is fetched once more; when the
second copy is the same as the first, the server's tag is no MD5 (that of an encrypted object is not) and the copy is
right.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from cellmill.retrying import retried
from cellmill.slides.errors import SlideError
from cellmill.staging.remote import RemoteFile, RemoteSlide

__all__ = ["download_slide"]

_RANGE_BYTES = 8 << 20
_RANGES_AT_ONCE = 4
_HASH_BYTES = 4 << 20


def download_slide(slide: RemoteSlide, folder: Path) -> dict[str, int]:
    """Fetch all files of a slide into an empty folder.

    Returns:
        Bytes of each file by its relative name.

    Raises:
        SlideError: when a file is not what the server says it is.
        OSError: when the disk or the server refuses.
    """
    import fsspec

    filesystem, _ = fsspec.url_to_fs(slide.url)
    sizes: dict[str, int] = {}
    for file in slide.files:
        target = folder / file.relative
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(filesystem, file, target)
        if file.md5 is not None and (digest := _md5(target)) != file.md5:
            _fetch(filesystem, file, target)
            if _md5(target) not in (file.md5, digest):
                raise SlideError("A file of the slide came differently each time it was fetched; check the storage.")
        sizes[file.relative] = target.stat().st_size
    return sizes


def _fetch(filesystem: Any, file: RemoteFile, target: Path) -> None:
    if file.num_bytes is None:
        retried(lambda: filesystem.get_file(file.path, str(target)))
        return
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        if file.num_bytes:
            os.posix_fallocate(descriptor, 0, file.num_bytes)  # a full disk is told now, not after an hour
        with ThreadPoolExecutor(_RANGES_AT_ONCE) as pool:
            for _ in pool.map(partial(_fetch_range, filesystem, file, descriptor), _ranges(file.num_bytes)):
                pass
    finally:
        os.close(descriptor)


def _ranges(num_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_bytes, _RANGE_BYTES):
        yield start, min(num_bytes, start + _RANGE_BYTES)


def _fetch_range(filesystem: Any, file: RemoteFile, descriptor: int, part: tuple[int, int]) -> None:
    start, stop = part

    def whole() -> bytes:
        content: bytes = filesystem.cat_file(file.path, start=start, end=stop)
        if len(content) != stop - start:  # a body cut off that the client took for whole
            raise ConnectionError(f"Got {len(content)} of {stop - start} bytes of a file of the slide.")
        return content

    content = retried(whole)
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], start + written)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
