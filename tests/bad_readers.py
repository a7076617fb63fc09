"""A slide reader that misbehaves by file name: what damaged files make real decoders do."""

import os
import signal
import time
from pathlib import Path

from cellmill.slides.opening import open_slide
from cellmill.slides.reader import SlideReader


def open_badly(path: str) -> SlideReader:
    """The usual reader, except for files named after what they do."""
    name = Path(path).name
    if name.startswith("crashes_at_open"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hangs"):
        time.sleep(600)
    reader = open_slide(path)
    if name.startswith("crashes_at_read"):
        return _CrashingReader(reader)  # type: ignore[return-value]
    return _HungryReader(reader) if name.startswith("eats_memory") else reader  # type: ignore[return-value]


class _CrashingReader:
    """Opens well; the pixels kill."""

    def __init__(self, reader: SlideReader) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)

    def read_block(self, level: int, x: int, y: int, width: int, height: int) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class _HungryReader(_CrashingReader):
    """Opens well; the pixels take all the memory there is."""

    def read_block(self, level: int, x: int, y: int, width: int, height: int) -> None:
        hoard: list[bytes] = []
        while True:
            hoard.append(b"x" * (1 << 22))
            time.sleep(0.001)
