"""A node's bounded cache of slides: each is brought to disk once, used by all workers, and goes when room is needed.

In: URLs. Out: `StagedSlide`s, local paths with a lease: what is leased is not removed. Everything is settled by locks
on files, which the system lets go when a process dies, so a killed worker leaves neither a lease nor a half copy that
another would take for whole.

    <cache>/<key>.lock     exclusive while the copy is made or removed, shared while it is in use
    <cache>/<key>/         the copy, moved here when it is whole; its time is that of the last use
    <cache>/<key>.partial/ a copy under way, with a file of its final size in bytes
    <cache>/room.lock      held while room is made
"""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cellmill.slides.errors import SlideError, SlideNotFoundError
from cellmill.staging.download import download_slide
from cellmill.staging.remote import RemoteSlide, describe_remote, is_remote

__all__ = ["CacheFullError", "SlideCache", "StagedSlide", "node_cache"]

_SIZE_FILE = "size"
_FILES_FOLDER = "files"
_POLL_SECONDS = 0.5
_SHARE_OF_FREE_DISK = 0.5


class CacheFullError(SlideError):
    """All that is in the cache is in use, so there is no room for one more slide now."""


class StagedSlide:
    """A slide on this node's disk. It stays there until closed; closing twice is harmless."""

    def __init__(self, path: Path, release: Callable[[], None] | None = None) -> None:
        self.path = path
        self._release = release

    def close(self) -> None:
        """Give the lease back."""
        release, self._release = self._release, None
        if release:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class SlideCache:
    """Copies of remote slides below `folder`, of `max_bytes` in all at the most."""

    folder: Path
    max_bytes: int
    """0 for half of the disk space that is free or taken by the cache itself."""

    def stage(self, url: str, *, wait: bool = True) -> StagedSlide:
        """Bring a slide here, or take the copy that is here; a local path is handed back as it is.

        Args:
            url: path or URL of the slide; an MRXS file's folder and a DICOM series come with it.
            wait: for room, while everything in the cache is in use.

        Raises:
            SlideNotFoundError: when it cannot be looked up or fetched.
            SlideError: when it is larger than the whole cache.
            CacheFullError: without `wait`, when there is no room.
        """
        if not is_remote(url):
            return StagedSlide(Path(url))
        slide = describe_remote(url)
        _make_private(self.folder)
        copy = self.folder / slide.key
        while True:
            lock = _Lock(self.folder / f"{slide.key}.lock", exclusive=False)
            if _is_whole(copy, slide):
                os.utime(copy)
                return StagedSlide(copy / _FILES_FOLDER / slide.name, lock.release)
            lock.release()
            lock = _Lock(self.folder / f"{slide.key}.lock", exclusive=True)
            try:
                if not _is_whole(copy, slide):
                    self._fill(slide, copy, wait=wait)
            finally:
                lock.release()

    def _fill(self, slide: RemoteSlide, copy: Path, *, wait: bool) -> None:
        """Copy the slide; its lock is held."""
        partial = copy.with_name(f"{copy.name}.partial")
        for left_over in (copy, partial):
            shutil.rmtree(left_over, ignore_errors=True)
        self._reserve(slide, partial, wait=wait)
        try:
            sizes = download_slide(slide, partial / _FILES_FOLDER)
            (partial / _SIZE_FILE).write_text(str(sum(sizes.values())), encoding="ascii")
            partial.rename(copy)
        except SlideError:
            raise
        except Exception as error:
            raise SlideNotFoundError(
                f"The slide could not be fetched ({type(error).__name__}); check the storage, this node's credentials "
                "and the space in its slide cache, then run the same command again."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _reserve(self, slide: RemoteSlide, partial: Path, *, wait: bool) -> None:
        """Make room and take it by a partial copy that states its size."""
        while True:
            lock = _Lock(self.folder / "room.lock", exclusive=True)
            try:
                limit = self.max_bytes or self._half_of_disk()
                if slide.num_bytes > limit:
                    raise SlideError(
                        f"The slide has {slide.num_bytes / 1e9:.2f} GB and the node's slide cache holds "
                        f"{limit / 1e9:.2f}; raise --slide-cache-gib, or put --slide-cache on a larger disk."
                    )
                if self._make_room(slide.num_bytes, limit):
                    partial.mkdir(mode=0o700)
                    (partial / _SIZE_FILE).write_text(str(slide.num_bytes), encoding="ascii")
                    return
            finally:
                lock.release()
            if not wait:
                raise CacheFullError("Every slide in this node's cache is in use.")
            time.sleep(_POLL_SECONDS)

    def _make_room(self, num_bytes: int, limit: int) -> bool:
        entries = [_Entry.of(path) for path in self.folder.iterdir() if path.is_dir()]
        total = sum(entry.num_bytes for entry in entries)
        for entry in sorted(entries, key=lambda entry: entry.last_used):
            if total + num_bytes <= limit:
                break
            if entry.remove_if_unused():
                total -= entry.num_bytes
        return total + num_bytes <= limit

    def _half_of_disk(self) -> int:
        own = sum(_Entry.of(path).num_bytes for path in self.folder.iterdir() if path.is_dir())
        return int(_SHARE_OF_FREE_DISK * (shutil.disk_usage(self.folder).free + own))


def node_cache(folder: str = "", *, gib: float = 0.0) -> SlideCache:
    """The cache that all workers of this node share.

    Args:
        folder: where it is; empty for this user's folder below the system's temporary one.
        gib: what it may hold, GiB; 0 for half of the disk space that is free or its own.
    """
    default = Path(tempfile.gettempdir()) / f"cellmill-slides-{os.getuid()}"
    return SlideCache(Path(folder) if folder else default, max_bytes=int(gib * (1 << 30)))


@dataclass(frozen=True)
class _Entry:
    """A copy, whole or partial."""

    path: Path
    num_bytes: int
    last_used: float

    @staticmethod
    def of(path: Path) -> "_Entry":
        try:
            return _Entry(path, int((path / _SIZE_FILE).read_text(encoding="ascii")), path.stat().st_mtime)
        except (OSError, ValueError):
            return _Entry(path, 0, 0.0)  # going, or made by a process that was killed at once

    def remove_if_unused(self) -> bool:
        lock = _Lock(self.path.with_name(f"{self.path.name.removesuffix('.partial')}.lock"), exclusive=True, wait=False)
        if not lock.held:
            return False
        try:
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            lock.release()
        return True


class _Lock:
    """An advisory lock on a file; the system releases it when the process ends, however it ends."""

    def __init__(self, path: Path, *, exclusive: bool, wait: bool = True) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self._descriptor, kind if wait else kind | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            os.close(self._descriptor)
            self.held = False

    def release(self) -> None:
        if self.held:
            os.close(self._descriptor)
            self.held = False


def _is_whole(copy: Path, slide: RemoteSlide) -> bool:
    """Whether every file is there with the size the server tells; someone may have tidied the temporary folder."""
    files = copy / _FILES_FOLDER
    for file in slide.files:
        try:
            size = (files / file.relative).stat().st_size
        except OSError:
            return False
        if file.num_bytes is not None and size != file.num_bytes:
            return False
    return True


def _make_private(folder: Path) -> None:
    """Make the cache's folder, for this user alone: others must not read slides, nor put theirs in their place.

    Raises:
        SlideError: when the folder belongs to somebody else, or others may write to it.
    """
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise SlideError(
            f"The slide cache {folder} is not a folder that this user alone may write to; name another with "
            "--slide-cache."
        )
