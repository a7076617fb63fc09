"""Slide readers that misbehave on purpose, named as `hostile_readers:...` where a reader can be chosen.

Each shows a 2048 x 1024 px slide of one colour at 0.5 um/px and misbehaves at one block only: that at (512, 512).
"""

import ctypes
import os
import time
from pathlib import Path

import numpy as np

from cellmill.slides.errors import SlideReadError
from cellmill.slides.reader import SlideLevel


class PinkReader:
    """A well-behaved slide of one pink."""

    name = "test/pink"
    levels = (SlideLevel(2048, 1024, 1.0, 1.0),)
    mpp = (0.5, 0.5)
    bounds_level0_px = (0, 0)

    def __init__(self, path):
        self.path = Path(path)

    def read_block(self, level, x, y, width, height):
        if x <= 512 < x + width and y <= 512 < y + height:
            self.misbehave()
        return np.full((height, width, 3), (230, 150, 190), np.uint8)

    def misbehave(self):
        pass

    def close(self):
        pass


class UnreadableBlock(PinkReader):
    def misbehave(self):
        raise SlideReadError("This block is damaged.")


class ForeignError(PinkReader):
    def misbehave(self):
        raise RuntimeError("PatientName=DOE^JANE")


class SegmentationFault(PinkReader):
    def misbehave(self):
        ctypes.string_at(0)


class Abort(PinkReader):
    def misbehave(self):
        os.abort()


class Hang(PinkReader):
    def misbehave(self):
        time.sleep(3600)


class HangHoldingTheInterpreter(PinkReader):
    def misbehave(self):
        ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the GIL, as a decoder that never lets go of it


class EatMemory(PinkReader):
    def misbehave(self):
        hoard = []
        while True:
            hoard.append(np.ones(1 << 22, np.uint8))
            time.sleep(0.001)


class MemoryErrorAtOnce(PinkReader):
    def misbehave(self):
        raise MemoryError


class CrashOnce(PinkReader):
    """Crashes the first time only: leaves a mark beside the slide."""

    def misbehave(self):
        mark = self.path.with_suffix(".crashed")
        if not mark.exists():
            mark.touch()
            os.abort()


def crash_on_open(path):
    os.abort()


def huge_slide(path):
    reader = PinkReader(path)
    reader.levels = (SlideLevel(1 << 31, 1 << 31, 1.0, 1.0),)
    return reader
