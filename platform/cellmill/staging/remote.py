"""What lies behind a slide's URL: its files, their sizes and what tells one version from another.

In: a URL. Out: a `RemoteSlide`. An MRXS file brings the folder of its name with it, a folder (a DICOM series) all its
files: slide libraries open the parts they need from beside the file they are given.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cellmill.retrying import Patience, passes_by_itself, retried
from cellmill.slides.errors import SlideNotFoundError

__all__ = ["RemoteFile", "RemoteSlide", "describe_remote", "is_remote"]

_VERSION_FIELDS = ("ETag", "etag", "md5", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "updated")
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_HEALING = Patience(num_tries=4, first_seconds=0.25, longest_seconds=2.0)
"""A file just uploaded may be told as missing for a moment."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a slide."""

    path: str
    """As its file system names it."""
    relative: str
    """Below the folder the slide is staged to, `/`-separated."""
    num_bytes: int | None
    """None where the server does not say."""
    version: str
    """Changes when the file does; empty where the server does not say."""
    md5: str | None
    """What the server says the content's MD5 is. Of an encrypted object it may be something else."""


@dataclass(frozen=True)
class RemoteSlide:
    """The files behind a URL."""

    url: str
    name: str
    """Name of the file to open, or of the folder."""
    files: tuple[RemoteFile, ...]

    @property
    def key(self) -> str:
        """Of this version of the slide in a cache."""
        parts = [self.url, *(f"{file.relative}:{file.num_bytes}:{file.version}" for file in self.files)]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def num_bytes(self) -> int:
        """Of all files whose size is known."""
        return sum(file.num_bytes or 0 for file in self.files)


def is_remote(text: str) -> bool:
    """Whether `text` is a URL of something other than the local file system."""
    return "://" in text and not text.startswith(("file://", "local://"))


def describe_remote(url: str) -> RemoteSlide:
    """Look up a slide's files without reading them.

    Raises:
        SlideNotFoundError: when there is nothing, or it may not be looked at.
    """
    import fsspec

    name = url.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1]
    _require_plain(name)
    try:
        filesystem, path = fsspec.url_to_fs(url)
        files = retried(lambda: _files(filesystem, str(path), name), patience=_HEALING, passes=_may_heal)
    except SlideNotFoundError:
        raise
    except FileNotFoundError:
        raise SlideNotFoundError("There is no such file; check the URL.") from None
    except Exception as error:
        raise SlideNotFoundError(
            f"The slide's URL cannot be looked up ({type(error).__name__}); check the URL, the endpoint and that this "
            "node's credentials may read it."
        ) from error
    if not files:
        raise SlideNotFoundError("There are no files behind this URL.")
    return RemoteSlide(url=url, name=name, files=tuple(files))


def _may_heal(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or passes_by_itself(error)


def _files(filesystem: Any, path: str, name: str) -> list[RemoteFile]:
    filesystem.invalidate_cache()
    information = filesystem.info(path)
    if information["type"] == "directory":
        return _below(filesystem, path, f"{name}/")
    files = [_remote_file(information, path, name)]
    if name.lower().endswith(".mrxs"):
        stem = name[: -len(".mrxs")]
        files += _below(filesystem, path[: -len(".mrxs")], f"{stem}/")
    return files


def _below(filesystem: Any, folder: str, prefix: str) -> list[RemoteFile]:
    folder = folder.rstrip("/")
    found = filesystem.find(folder, detail=True)
    return [
        _remote_file(information, path, prefix + path.rstrip("/").removeprefix(folder).lstrip("/"))
        for path, information in sorted(found.items())
    ]


def _remote_file(information: dict[str, Any], path: str, relative: str) -> RemoteFile:
    for part in PurePosixPath(relative).parts:
        _require_plain(part)
    version = next((str(information[field]) for field in _VERSION_FIELDS if information.get(field)), "")
    tag = _MD5.fullmatch(str(information.get("ETag") or information.get("etag") or ""))
    size = information.get("size")
    return RemoteFile(
        path=path,
        relative=relative,
        num_bytes=None if size is None else int(size),
        version=version,
        md5=tag.group(1) if tag else None,
    )


def _require_plain(name: str) -> None:
    """Names come from a bucket's owner; none may lead out of the cache."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise SlideNotFoundError("The slide's URL holds a file name that is not plain; rename it.")
