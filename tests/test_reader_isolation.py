"""No file can take the caller down: crashes, hangs and memory hunger stay in the reader's process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from cellmill.grid import Box
from cellmill.slides.errors import (
    ReaderCrashed,
    ReaderOutOfMemory,
    ReaderTimeout,
    SlideError,
    SlideReadError,
    SlideTooLargeError,
)
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.isolation import IsolatedReader, ReaderLimits
from cellmill.slides.opening import open_slide

BAD_BLOCK = (0, 512, 512, 512, 512)
GOOD_BLOCK = (0, 0, 0, 512, 512)


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    path = tmp_path / "slide.svs"
    path.write_bytes(b"not looked at by the hostile readers")
    return path


def hostile(path: Path, name: str, **limits) -> IsolatedReader:
    return IsolatedReader(path, reader=f"hostile_readers:{name}", limits=ReaderLimits(**limits))


@pytest.mark.parametrize(
    ("reader_name", "error_type", "words"),
    [
        ("SegmentationFault", ReaderCrashed, "SIGSEGV"),
        ("Abort", ReaderCrashed, "SIGABRT"),
        ("Hang", ReaderTimeout, "no answer in 0.5 s"),
        ("HangHoldingTheInterpreter", ReaderTimeout, "no answer in 0.5 s"),
        ("EatMemory", ReaderOutOfMemory, "256 MiB"),
        ("MemoryErrorAtOnce", ReaderOutOfMemory, "ran out of memory"),
    ],
)
def test_a_reader_that_dies_is_an_error_and_the_next_call_works(slide_path, reader_name, error_type, words):
    limits = {"timeout_seconds": 0.5} if "Hang" in reader_name else {"memory_bytes": 256 << 20}
    # Starting the child counts against the limit too; the hang is met only after that.
    reader = hostile(slide_path, reader_name, **(limits if "Hang" not in reader_name else {}))
    if "Hang" in reader_name:
        reader._limits = ReaderLimits(**limits)
    with pytest.raises(error_type, match=words):
        reader.read_block(*BAD_BLOCK)
    reader._limits = ReaderLimits()
    assert reader.read_block(*GOOD_BLOCK)[0, 0].tolist() == [230, 150, 190]
    reader.close()


def test_a_crash_that_does_not_repeat_loses_nothing(slide_path):
    reader = hostile(slide_path, "CrashOnce")
    with pytest.raises(ReaderCrashed):
        reader.read_block(*BAD_BLOCK)
    assert reader.read_block(*BAD_BLOCK).shape == (512, 512, 3)
    reader.close()


def test_a_crash_while_opening_is_an_error(slide_path):
    with pytest.raises(ReaderCrashed, match="opening"):
        hostile(slide_path, "crash_on_open")


def test_absurd_sizes_are_refused_before_anything_is_allocated(slide_path):
    with pytest.raises(SlideTooLargeError, match="2147483648 x 2147483648"):
        hostile(slide_path, "huge_slide")


def test_a_reader_that_is_not_there_is_an_error(slide_path):
    with pytest.raises(SlideError, match="module:function"):
        hostile(slide_path, "NoSuchReader")


def test_text_of_foreign_exceptions_does_not_leave_the_child(slide_path):
    reader = hostile(slide_path, "ForeignError")
    with pytest.raises(SlideReadError, match="RuntimeError") as caught:
        reader.read_block(*BAD_BLOCK)
    assert "DOE" not in repr(caught.value)
    assert reader.read_block(*GOOD_BLOCK).any()
    reader.close()


def test_an_unreadable_block_excludes_only_the_boxes_that_need_it(slide_path):
    with IsolatedSlide(slide_path, target_mpp=0.5, mpp=0.4, reader="hostile_readers:UnreadableBlock") as slide:
        read = slide.read(slide.grid.box)
    # Level-0 (512..1024, 512..1024) is model px (409.6..819.2) in both axes.
    assert not read.is_readable(Box(405, 405, 415, 415))
    assert not read.is_readable(Box(800, 800, 820, 820))
    assert read.is_readable(Box(0, 0, 400, 819))
    assert read.is_readable(Box(830, 0, 1638, 819))
    assert (read.pixels[420:810, 420:810] == 255).all()
    assert (read.pixels[:400] == (230, 150, 190)).all()


def test_a_slide_read_apart_has_the_same_pixels(shared_data):
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    direct, apart = open_slide(path), IsolatedReader(path)
    assert apart.levels == direct.levels
    assert apart.mpp == direct.mpp
    for block in ((0, 0, 0, 512, 512), (0, 1024, 2048, 512, 512), (0, 2048, 2560, 172, 407)):
        np.testing.assert_array_equal(direct.read_block(*block), apart.read_block(*block))
    direct.close()
    apart.close()


def test_only_sizes_scale_bounds_and_reader_leave_the_child(shared_data):
    info = IsolatedReader(shared_data / "slides" / "CMU-1-Small-Region.svs").info
    assert set(info.to_json()) == {"reader_name", "levels", "stated_mpp", "bounds_level0_px", "fingerprint"}
    assert type(info).from_json(info.to_json()) == info


def test_the_child_starts_fast_and_without_heavy_libraries(shared_data):
    code = (
        "import sys, cellmill.slides.reader_process, cellmill.slides.opening, cellmill.slides.openslide_reader;"
        "print([name for name in ('torch', 'ray', 'numba', 'cv2', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_child_is_gone_after_close(slide_path):
    reader = hostile(slide_path, "PinkReader")
    assert reader._process is not None
    pid = reader._process._child.pid
    reader.close()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("reader_name", ["PinkReader", "HangHoldingTheInterpreter"])
def test_the_child_dies_with_its_parent(slide_path, reader_name):
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from cellmill.slides.isolation import IsolatedReader
reader = IsolatedReader({str(slide_path)!r}, reader="hostile_readers:{reader_name}")
print(reader._process._child.pid, flush=True)
reader.read_block(*{BAD_BLOCK!r})
input()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert psutil.pid_exists(child_pid)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while _alive(child_pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child_pid)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
