"""Slides read in a process of their own, so that no file can take the caller down.

Decoders crash, hang and eat memory on damaged files. They run in a child process that holds nothing else: it opens the
slide and puts native blocks into shared memory. Everything of ours (resampling, tissue, quality) stays in the caller,
on the same `SlideReader` interface. A child that dies, answers too late or grows too large becomes a
`ReaderProcessError`, and the next call starts a fresh one.
"""

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from cellmill.slides.channel import receive, send
from cellmill.slides.errors import (
    ReaderCrashed,
    ReaderOutOfMemory,
    ReaderTimeout,
    SlideError,
    slide_error_from_name,
)
from cellmill.slides.reader import SlideInfo, SlideLevel

__all__ = ["DEFAULT_READER", "IsolatedReader", "ReaderLimits"]

DEFAULT_READER = "cellmill.slides.opening:open_slide"
_BLOCK_BYTES = 1 << 24
"""Shared memory: the largest block that can be asked for, 16 MiB of RGB."""
_POLL_SECONDS = 0.05
"""How often the parent looks at the child's memory."""


@dataclass(frozen=True)
class ReaderLimits:
    """What a reader's process may use."""

    timeout_seconds: float = 120.0
    """For any one answer: opening the slide, or one block."""
    memory_bytes: int = 2 << 30
    """Resident memory of the process."""

    def __post_init__(self) -> None:
        if self.timeout_seconds <= 0 or self.memory_bytes <= 0:
            raise ValueError(
                f"Reader limits must be positive, got {self.timeout_seconds} s and {self.memory_bytes} bytes."
            )


class IsolatedReader:
    """A `SlideReader` whose decoding happens in a child process."""

    def __init__(self, path: str | Path, *, reader: str = DEFAULT_READER, limits: ReaderLimits | None = None) -> None:
        """Open the slide at `path` with `reader`, a function named `module:function` that returns a `SlideReader`.

        Raises:
            SlideError: with a reason for people, whatever is wrong with the file.
        """
        self._path = str(Path(path).absolute())
        self._reader = reader
        self._limits = limits or ReaderLimits()
        self._process: _ReaderProcess | None = None
        self._info: SlideInfo | None = None
        self._running()

    @property
    def info(self) -> SlideInfo:
        """All that is taken from the slide besides pixels."""
        assert self._info is not None
        return self._info

    @property
    def name(self) -> str:
        """Which reader and format this is."""
        return self.info.reader_name

    @property
    def levels(self) -> tuple[SlideLevel, ...]:
        """Resolutions, finest first."""
        return self.info.levels

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Level-0 um/px as stated."""
        return self.info.stated_mpp

    @property
    def bounds_level0_px(self) -> tuple[int, int]:
        """Left and top of the scanned area."""
        return self.info.bounds_level0_px

    def read_block(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Native pixels of a level as RGB, see `SlideReader`.

        Raises:
            SlideReadError: when the region cannot be decoded.
            ReaderProcessError: when the child crashed, hung or grew too large on it.
        """
        block = np.empty((height, width, 3), np.uint8)
        self.fill_block(level, x, y, block)
        return block

    def fill_block(self, level: int, x: int, y: int, block: NDArray[np.uint8]) -> None:
        """Native pixels of a level as RGB, see `FillsBlocks`; raises as `read_block`."""
        process = self._running()
        height, width = block.shape[:2]
        if block.size > _BLOCK_BYTES:
            raise ValueError(f"A block may have {_BLOCK_BYTES // 3} px, asked for {width} x {height}.")
        self._ask(process, {"do": "read", "block": [level, x, y, width, height]})
        block[:] = np.frombuffer(process.memory, np.uint8, count=block.size).reshape(block.shape)

    def close(self) -> None:
        """End the child process."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _running(self) -> "_ReaderProcess":
        """The child with the slide open; a fresh one where there is none."""
        if self._process is not None:
            return self._process
        process = _ReaderProcess()
        self._process = process
        try:
            reply = self._ask(process, {"do": "open", "path": self._path, "reader": self._reader})
        except BaseException:
            self.close()
            raise
        info = SlideInfo.from_json(reply["info"])
        if self._info is not None and info != self._info:
            self.close()
            raise SlideError("The slide's file changed while it was being read.")
        self._info = info
        return process

    def _ask(self, process: "_ReaderProcess", message: dict[str, Any]) -> dict[str, Any]:
        doing = "opening the slide"
        if message["do"] == "read":
            level, x, y = message["block"][:3]
            doing = f"reading level {level} at ({x}, {y})"
        try:
            reply = process.ask(message, doing=doing, limits=self._limits)
        except BaseException:
            # Also on KeyboardInterrupt: an answer that comes later must not be taken for the next one's.
            self.close()
            raise
        if "error" not in reply:
            return reply
        if reply["error"] == "MemoryError":
            self.close()
            raise ReaderOutOfMemory(f"The slide reader ran out of memory {doing}.")
        raise slide_error_from_name(reply["error"], reply["message"])


class _ReaderProcess:
    """One child process, its socket, its lifeline and its shared memory."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        lifeline_read, lifeline_write = os.pipe()
        memory_fd = _anonymous_file(_BLOCK_BYTES)
        self._socket = ours
        self.memory = mmap.mmap(memory_fd, _BLOCK_BYTES)
        fds = (theirs.fileno(), lifeline_read, memory_fd)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "cellmill.slides.reader_process", *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders quote headers there
                env=_child_environment(),
            )
        finally:
            theirs.close()
            os.close(lifeline_read)
            os.close(memory_fd)
        self._usage = psutil.Process(self._child.pid)
        self._looked_at = time.monotonic()
        self.end = weakref.finalize(self, _end, self._child, ours, lifeline_write)

    def ask(self, message: dict[str, Any], *, doing: str, limits: ReaderLimits) -> dict[str, Any]:
        """Send a request and wait for its reply, watching the clock and the child's memory."""
        deadline = time.monotonic() + limits.timeout_seconds
        if time.monotonic() > self._looked_at + _POLL_SECONDS:
            self._check_memory(doing, limits)  # quick answers leak too
        try:
            send(self._socket, message)
        except ConnectionError:
            raise self._crashed(doing) from None
        while not select.select([self._socket], [], [], _POLL_SECONDS)[0]:
            self._check_memory(doing, limits)
            if time.monotonic() > deadline:
                raise ReaderTimeout(
                    f"The slide reader gave no answer in {limits.timeout_seconds:g} s {doing}; it was stopped."
                )
        reply = receive(self._socket)
        if reply is None:
            raise self._crashed(doing)
        return reply

    def _check_memory(self, doing: str, limits: ReaderLimits) -> None:
        self._looked_at = time.monotonic()
        try:
            used = self._usage.memory_info().rss
        except psutil.Error:
            return  # it is gone; the socket will say so
        if used > limits.memory_bytes:
            raise ReaderOutOfMemory(
                f"The slide reader used {used >> 20} MiB of memory {doing}, more than the "
                f"{limits.memory_bytes >> 20} MiB allowed; it was stopped. The file is damaged, or its tiles are too "
                "large."
            )

    def _crashed(self, doing: str) -> ReaderCrashed:
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return ReaderCrashed(f"The slide reader closed its connection {doing}.")
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ReaderCrashed(f"The slide reader crashed ({cause}) {doing}.")


def _end(child: "subprocess.Popen[bytes]", connection: socket.socket, lifeline_write: int) -> None:
    connection.close()
    os.close(lifeline_write)
    child.kill()
    child.wait()


def _anonymous_file(num_bytes: int) -> int:
    """A file descriptor of memory without a name: nothing is left behind however either process ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("cellmill-block")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor


def _child_environment() -> dict[str, str]:
    """Ours, with our import path (a cluster job's differs from a fresh interpreter's) and one thread for libraries."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
