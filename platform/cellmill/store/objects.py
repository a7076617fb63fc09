"""Storage primitives: whole objects under one root, on a local disk, in memory or in a bucket.

Everything a cell set writes goes through the five writing methods of `ObjectStore` (`put`, `create`, `publishing`,
`delete`, `delete_tree`), each of which either happens or does not: a reader never sees half an object. On a local disk
that is a temporary file beside the target, fsync and rename (hard link for `create`, which must not overwrite); on an
object store a single put is atomic by itself, and what passes (throttling, a dropped connection) is waited out. Keys
are relative to the root, `/`-separated, and cannot leave it.
"""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from cellmill.retrying import retried
from cellmill.store.errors import OutputError, UnsafeNameError

__all__ = ["HashingFile", "ObjectStore"]

_TEMPORARY_SUFFIX = ".tmp"
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
_memory_lock = threading.Lock()


class HashingFile:
    """A binary file that hashes what is written to it, for sinks that only ever append."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        """Append `data`."""
        self._sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is published."""

    def close(self) -> None:
        """Nothing to do: whoever opened the file closes it."""

    def hexdigest(self) -> str:
        """SHA-256 of everything written."""
        return self._sha256.hexdigest()


class ObjectStore:
    """Whole objects under a root URL that fsspec knows. Cheap to pickle: it travels as its URL."""

    def __init__(self, url: str | Path) -> None:
        # Listings must be fresh: other drivers and workers write too.
        self._fs, root = url_to_fs(str(url), use_listings_cache=False)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._root = root.rstrip("/") or "/"
        self.url = self._root if self._local else self._fs.unstrip_protocol(self._root)
        """Absolute, so that it means the same in every process."""

    def __reduce__(self) -> tuple[Callable[[str], "ObjectStore"], tuple[str]]:
        return type(self), (self.url,)

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem behind the store, for libraries that read through one."""
        return self._fs

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return self._local

    def path(self, key: str) -> str:
        """Full path of an object as its filesystem names it.

        Raises:
            UnsafeNameError: when the key would leave the root.
        """
        parts = key.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise UnsafeNameError(f"A key must be plain names joined by '/', got {key!r}.")
        return f"{self._root.rstrip('/')}/{key}"

    # ------------------------------------------------------------------------------------------------- reading

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            FileNotFoundError: when there is no such object.
        """
        with self._explaining("read", key):
            return (
                Path(self.path(key)).read_bytes() if self._local else retried(lambda: self._fs.cat_file(self.path(key)))
            )

    def get_many(self, keys: list[str]) -> dict[str, bytes]:
        """Bytes of the objects that exist, fetched at once where the storage can."""
        if not keys:
            return {}
        if self._local:
            found = {key: self._get_if_there(key) for key in keys}
            return {key: data for key, data in found.items() if data is not None}
        with self._explaining("read", f"{len(keys)} objects"):
            paths = {self._fs._strip_protocol(self.path(key)): key for key in keys}
            found: Any = retried(lambda: self._fs.cat(list(paths), on_error="return", recursive=False))
            if not isinstance(found, dict):  # one path is answered without its name
                found = dict.fromkeys(paths, found)
            answers = {paths[self._fs._strip_protocol(path)]: answer for path, answer in found.items()}
            # What could not be read is not absent: those are read again, patiently, and raise if need be.
            again = [key for key, answer in answers.items() if isinstance(answer, Exception)]
            answers |= {key: self._get_if_there(key) for key in again}
            return {key: data for key, data in answers.items() if data is not None}

    def _get_if_there(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with self._explaining("look for", key):
            return (
                Path(self.path(key)).is_file() if self._local else retried(lambda: _is_file(self._fs, self.path(key)))
            )

    def open_random(self, key: str) -> pa.NativeFile:
        """The object opened for Arrow's own random reads."""
        with self._explaining("read", key):
            if self._local:
                return pa.OSFile(self.path(key), "rb")
            if isinstance(self._fs, MemoryFileSystem):
                return pa.BufferReader(self._fs.cat_file(self.path(key)))
            return pa.PythonFile(self._fs.open(self.path(key), "rb", cache_type="none"), mode="r")

    def list_keys(self, prefix: str) -> list[str]:
        """Keys of all objects below a folder, sorted; temporary files of writers are not objects."""
        with self._explaining("list", prefix):
            if self._local:
                found = [Path(top) / name for top, _, names in os.walk(self.path(prefix)) for name in names]
                keys = [path.relative_to(self._root).as_posix() for path in found]
            else:
                root = self._fs._strip_protocol(self._root).rstrip("/") + "/"
                keys = [path.removeprefix(root) for path in retried(lambda: self._fs.find(self.path(prefix)))]
        return sorted(key for key in keys if not _is_temporary(key.rsplit("/", 1)[-1]))

    def list_names(self, prefix: str) -> list[str]:
        """Names directly below a folder, sorted: objects and folders."""
        with self._explaining("list", prefix):
            try:
                if self._local:
                    names = [path.name for path in Path(self.path(prefix)).iterdir()]
                else:
                    found = retried(lambda: self._fs.ls(self.path(prefix), detail=False))
                    names = [path.rstrip("/").rsplit("/", 1)[-1] for path in found]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in names if name and not _is_temporary(name))

    # ------------------------------------------------------------------------------------------------- writing

    def put(self, key: str, data: bytes) -> None:
        """Write the whole object, replacing what was there.

        Raises:
            OutputError: when the storage refuses; what was there before is untouched.
        """
        path = self._target(key)
        with self._explaining("write", key):
            if self._local:
                with _local_temporary(Path(path), finish=os.replace) as file:
                    file.write(data)
            else:
                retried(lambda: self._fs.pipe_file(path, data))

    def create(self, key: str, data: bytes) -> bool:
        """Write the object if there is none; of several writers exactly one gets True."""
        path = self._target(key)
        with self._explaining("create", key):
            try:
                if self._local:
                    with _local_temporary(Path(path), finish=_link_new) as file:
                        file.write(data)
                elif isinstance(self._fs, MemoryFileSystem):
                    with _memory_lock:
                        self._fs.pipe_file(path, data, mode="create")
                else:
                    return self._create_remote(path, data)
            except FileExistsError:
                return False
        return True

    def _create_remote(self, path: str, data: bytes) -> bool:
        """Put if absent. Of a put whose answer was lost this says False: callers who must know look whose it is."""

        def attempt() -> bool:
            try:
                self._fs.pipe_file(path, data, mode="create")
            except OSError:
                # s3fs reports S3's "precondition failed" as FileExistsError or as a bare OSError.
                if _is_file(self._fs, path):
                    return False
                raise
            return True

        return retried(attempt)

    @contextmanager
    def publishing(self, key: str) -> Generator[IO[bytes]]:
        """A file to write an object of any size to; it appears under `key` when the block ends well, else not at all.

        A bucket gets it in one upload from a scratch file: an object store's own open-for-write would publish what
        was written so far when the block raises.
        """
        path = self._target(key)
        with self._explaining("write", key):
            if self._local:
                with _local_temporary(Path(path), finish=os.replace) as file:
                    yield file
                return
            with tempfile.TemporaryDirectory(prefix="cellmill-") as folder:
                scratch = Path(folder) / "object"
                with scratch.open("wb") as file:
                    yield file
                if isinstance(self._fs, MemoryFileSystem):
                    self._fs.pipe_file(path, scratch.read_bytes())
                else:
                    retried(lambda: self._fs.put_file(str(scratch), path))

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        path = self._target(key)
        with self._explaining("delete", key):
            if self._local:
                Path(path).unlink(missing_ok=True)
            elif self.exists(key):
                retried(lambda: self._fs.rm_file(path))

    def delete_tree(self, prefix: str) -> None:
        """Remove all objects below a folder, in the order of their keys, and the folder."""
        self._target(f"{prefix}/any")
        keys = self.list_keys(prefix)
        if self._local or isinstance(self._fs, MemoryFileSystem):
            for key in keys:
                self.delete(key)
            if self._local:
                shutil.rmtree(self.path(prefix), ignore_errors=True)  # empty folders and temporary files
        elif keys:
            with self._explaining("delete", prefix):
                retried(
                    lambda: self._fs.rm(self.path(prefix), recursive=True)
                )  # listed again, deleted a thousand at a time

    def sweep(self, folder: str, *, name: str = "*") -> None:
        """Remove temporary files that killed writers of objects called `name` left below a folder of a local disk."""
        if self._local:
            for path in Path(self._target(f"{folder}/any")).parent.rglob(f".{name}.*{_TEMPORARY_SUFFIX}"):
                path.unlink(missing_ok=True)

    def _target(self, key: str) -> str:
        """`path(key)` of something to write or delete: links inside a local root must not lead out of it.

        Raises:
            UnsafeNameError: when the key, or a symbolic link on its way, would leave the root.
        """
        path = self.path(key)
        if self._local:
            folder, root = os.path.realpath(Path(path).parent), os.path.realpath(self._root)
            if os.path.commonpath([folder, root]) != root:
                raise UnsafeNameError(
                    f"{path} leads out of {self.url} by a symbolic link. Nothing was changed there; remove the link "
                    "or give the place it points to as --out."
                )
        return path

    @contextmanager
    def _explaining(self, verb: str, key: str) -> Generator[None]:
        """Turn what the storage raises into an OutputError; absence is an answer, not an error, when reading."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and verb == "read":
                raise
            where = self.url if verb == "list" else f"{self.url}/{key}"
            raise OutputError(f"Could not {verb} {where}: {error}. {_advice(error)}") from error
        except Exception as error:
            # Client libraries of object stores have exceptions of their own (no credentials, no route).
            if not type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "gcsfs", "azure")):
                raise
            raise OutputError(f"Could not {verb} {self.url}/{key}: {error}. {_advice(error)}") from error


def _advice(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Free space there or choose another --out, then run the same command again: finished fields are kept."
    if isinstance(error, PermissionError) or number in (errno.EROFS, errno.EACCES):
        return "Make the place writable for this user or choose another --out, then run the same command again."
    return "Check that the place exists and can be reached and written, then run the same command again."


def _is_file(filesystem: Any, path: str) -> bool:
    """fsspec's own `isfile` takes any failure to look for absence."""
    try:
        return bool(filesystem.info(path)["type"] == "file")
    except FileNotFoundError:
        return False


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX)


@contextmanager
def _local_temporary(target: Path, *, finish: Callable[[Path, Path], object]) -> Generator[IO[bytes]]:
    """A file beside `target` that `finish(temporary, target)` makes visible after it reached the disk."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}{_TEMPORARY_SUFFIX}")
    try:
        with _open_new(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        finish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _open_new(path: Path) -> IO[bytes]:
    for _ in range(3):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("xb")
        except FileNotFoundError:
            continue  # someone removed the empty folder between the two calls
    return path.open("xb")


def _link_new(temporary: Path, target: Path) -> None:
    """Give the finished file its name unless that is taken; the name appears with the whole content."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Some network and FAT file systems have no hard links. O_EXCL still lets only one writer win.
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(temporary.read_bytes())
