"""The child process that runs a slide reader: nothing but foreign decoders and this loop.

Started by `cellmill.slides.isolation` as `python -m cellmill.slides.reader_process SOCKET LIFELINE MEMORY`, three file
descriptors. Takes requests (JSON) from the socket; puts pixels into the shared memory and everything else into the
reply. What a reply may hold is listed in `SlideInfo`; of exceptions only our own messages and the names of others'
types leave, since theirs may quote the slide's header.
"""

import fcntl
import importlib
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cellmill.slides.channel import receive, send
from cellmill.slides.errors import SlideError, SlideReadError
from cellmill.slides.fingerprint import slide_fingerprint
from cellmill.slides.reader import SlideInfo, SlideReader, check_levels, fill_block

__all__ = ["load_reader", "main"]


def main() -> None:
    """Serve requests until the parent closes the socket."""
    socket_fd, lifeline_fd, memory_fd = map(int, sys.argv[1:4])
    _die_with_parent(lifeline_fd)
    # Ctrl-C reaches the whole group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=socket_fd) as connection, mmap.mmap(memory_fd, 0) as memory:
        server = _Server(memory)
        while (request := receive(connection)) is not None:
            send(connection, server.answer(request))
    # No tidying up: a decoder that hangs in its clean-up must not keep the process.
    os._exit(0)


def load_reader(dotted_name: str) -> Callable[[str], SlideReader]:
    """The function `module:function` that opens a slide.

    Raises:
        SlideError: when there is none of that name.
    """
    module_name, _, function_name = dotted_name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SlideError(
            f"The slide reader {dotted_name!r} cannot be loaded; name it as `module:function`, importable from here."
        ) from error


class _Server:
    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._reader: SlideReader | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request; never raises."""
        try:
            if request["do"] == "open":
                return {"info": self._open(request["path"], request["reader"]).to_json()}
            self._read(*request["block"])
            return {}
        except SlideError as error:
            return {"error": type(error).__name__, "message": str(error)}
        except MemoryError:
            return {"error": "MemoryError", "message": ""}
        except Exception as error:  # noqa: BLE001 -- whatever a foreign reader raises
            kind = SlideError if request["do"] == "open" else SlideReadError
            return {
                "error": kind.__name__,
                "message": f"The slide reader failed with {type(error).__name__}; the file may be damaged.",
            }

    def _open(self, path: str, reader: str) -> SlideInfo:
        self._reader = load_reader(reader)(path)
        check_levels(self._reader.levels)
        return SlideInfo(
            reader_name=self._reader.name,
            levels=self._reader.levels,
            stated_mpp=self._reader.mpp,
            bounds_level0_px=self._reader.bounds_level0_px,
            fingerprint=slide_fingerprint(path),
        )

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> None:
        assert self._reader is not None
        target = np.frombuffer(self._memory, np.uint8, count=height * width * 3).reshape(height, width, 3)
        fill_block(self._reader, level, x, y, target)


def _die_with_parent(lifeline_fd: int) -> None:
    """Have the kernel end this process when the parent's end of the pipe closes, however the parent went.

    A thread that waits for the pipe would not do: a decoder that hangs may hold the interpreter's lock. Where the
    signal is not to be had, the closed socket ends the loop in `main`.
    """
    if hasattr(os, "O_ASYNC") and hasattr(signal, "SIGIO"):
        signal.signal(signal.SIGIO, signal.SIG_DFL)  # ends the process
        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    main()
