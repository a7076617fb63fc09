"""Every file either opens or is set aside with a reason for people: never a traceback, a path or header text."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile

from cellmill.slides.errors import (
    SlideError,
    SlideNotFoundError,
    SlideReadError,
    SlideTooLargeError,
    UnsupportedSlideError,
    UnusableScaleError,
)
from cellmill.slides.fingerprint import slide_files, slide_fingerprint
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.opening import open_slide
from cellmill.slides.scale import resolve_mpp


class BadFile(NamedTuple):
    name: str
    content: bytes
    words: str


BAD_FILES = [
    BadFile("zero_bytes.svs", b"", "empty"),
    BadFile("text.svs", b"These are my notes about a slide.\n" * 40, "text"),
    BadFile("zeros.ndpi", bytes(5000), "zeros"),
    BadFile("noise.mrxs", bytes(range(256)) * 40, "no slide format"),
    BadFile("tiff_head_only.tif", b"II*\0\x08\0\0\0", "cut off or damaged"),
    BadFile("tiff_bad_directory.tif", b"II*\0" + b"\xff" * 400, "cut off or damaged"),
    BadFile("dicom_head_only.dcm", bytes(128) + b"DICM" + bytes(400), "DICOM"),
]


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: bad.name)
def test_a_file_that_is_no_slide_says_so(tmp_path, bad):
    path = tmp_path / bad.name
    path.write_bytes(bad.content)
    with pytest.raises(UnsupportedSlideError, match=bad.words) as caught:
        open_slide(path)
    assert str(tmp_path) not in str(caught.value)
    assert bad.name not in str(caught.value)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(SlideNotFoundError, match="no such file"):
        open_slide(tmp_path / "absent.svs")


@pytest.mark.parametrize("name", ["unopenable.tiff", "histolab_broken.svs"])
def test_broken_fixtures_say_so(shared_data, name):
    with pytest.raises(UnsupportedSlideError):
        open_slide(shared_data / "slides" / "fixtures" / name)


def test_a_slide_whose_pixels_cannot_be_decoded_opens_and_has_no_readable_block(shared_data):
    with IsolatedSlide(shared_data / "slides" / "fixtures" / "unreadable.svs", target_mpp=0.5) as slide:
        read = slide.read(slide.grid.box)
    assert not read.is_readable(slide.grid.box)
    assert (read.pixels == 255).all()


def test_a_failed_read_does_not_spoil_the_next(shared_data):
    reader = open_slide(shared_data / "slides" / "fixtures" / "unreadable.svs")
    for _ in range(2):
        with pytest.raises(SlideReadError):
            reader.read_block(0, 0, 0, 16, 16)
    assert reader.levels[0].width_px == 16
    reader.close()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_slide_opens_in_part_or_says_so(shared_data, tmp_path, share):
    whole = (shared_data / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(whole[: int(len(whole) * share)])
    try:
        with IsolatedSlide(path, target_mpp=0.5) as slide:
            read = slide.read(slide.grid.box)
    except SlideError as error:
        assert str(tmp_path) not in str(error)
        return
    # What follows the slide's own pixels in this file are label and macro images.
    assert bool(read.unreadable) == (share < 0.9)


@pytest.mark.parametrize("damage_at", [0.1, 0.5, 0.9])
def test_damaged_tiles_cost_only_themselves(shared_data, tmp_path, damage_at):
    content = bytearray((shared_data / "slides" / "CMU-1-Small-Region.svs").read_bytes())
    with tifffile.TiffFile(shared_data / "slides" / "CMU-1-Small-Region.svs") as file:
        page = file.pages[0]
        tile = int(len(page.dataoffsets) * damage_at)
        start, length = page.dataoffsets[tile], page.databytecounts[tile]
    content[start : start + length] = b"\xff\xd8\xff" + bytes(length - 3)
    path = tmp_path / "damaged.svs"
    path.write_bytes(content)
    with IsolatedSlide(path, target_mpp=0.5) as slide:
        read = slide.read(slide.grid.box)
    assert 1 <= len(read.unreadable) <= 4
    column, row = tile % 10, tile // 10
    assert any(box.contains(column * 240 + 120, row * 240 + 120) for box in read.unreadable)


def test_dicom_files_and_folders(shared_data, tmp_path):
    boxes = shared_data / "slides" / "fixtures" / "boxes_dcm"
    for path in (boxes, boxes / "boxes_0.dcm", shared_data / "dicom", shared_data / "dicom" / "sm_image.dcm"):
        reader = open_slide(path)
        assert reader.name == "openslide/dicom"
        assert reader.mpp == (0.499, 0.499)
        assert reader.read_block(0, 0, 0, 8, 8).shape == (8, 8, 3)
        reader.close()
    for name in ("seg_image_sm_dots.dcm", "sm_annotations.dcm"):
        with pytest.raises(UnsupportedSlideError, match="DICOM"):
            open_slide(shared_data / "dicom" / name)
    with pytest.raises(UnsupportedSlideError, match="no DICOM"):
        open_slide(tmp_path)
    for source in (boxes / "boxes_0.dcm", shared_data / "dicom" / "sm_image.dcm"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    with pytest.raises(UnsupportedSlideError, match="2 DICOM series"):
        open_slide(tmp_path)


@pytest.mark.parametrize("value", [None, (0.0, 0.0), (1e6, 1e6), (float("nan"), 0.5), (0.5, float("inf")), (-0.5, 0.5)])
def test_an_unusable_scale_is_refused_and_says_what_to_do(value):
    with pytest.raises(UnusableScaleError, match="--mpp"):
        resolve_mpp(value)


@pytest.mark.parametrize("value", [0.0, 1e6, float("nan"), (0.5, 0.0)])
def test_an_unusable_override_is_refused_too(value):
    with pytest.raises(UnusableScaleError, match="--mpp"):
        resolve_mpp((0.5, 0.5), value)


def test_an_override_beats_what_the_slide_states():
    assert resolve_mpp((0.5, 0.5), 0.25) == (0.25, 0.25)
    assert resolve_mpp((0.5, 0.5), (0.25, 0.26)) == (0.25, 0.26)
    assert resolve_mpp((0.24, 0.25)) == (0.24, 0.25)


def test_an_override_rescues_a_slide_whose_tags_are_a_default(shared_data):
    path = shared_data / "slides" / "fixtures" / "boxes.tiff"
    with pytest.raises(UnusableScaleError, match="352"):
        IsolatedSlide(path, target_mpp=0.5)
    with IsolatedSlide(path, target_mpp=0.5, mpp=(0.5, 0.25)) as slide:
        assert (slide.grid.width_px, slide.grid.height_px) == (300, 125)


def test_absurd_header_sizes_are_refused(tmp_path):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(64, 64), metadata=None)
    content = bytearray(path.read_bytes())
    for tag in (256, 257):
        entry = content.index(tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00")
        content[entry + 8 : entry + 12] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises((SlideTooLargeError, UnsupportedSlideError)):
        IsolatedSlide(path, target_mpp=0.5, mpp=0.5)


class TestFingerprint:
    """A slide's fingerprint changes with its files and with nothing else."""

    def test_it_changes_with_content_size_and_tail(self, tmp_path):
        path = tmp_path / "slide.svs"
        path.write_bytes(bytes(3 << 20))
        first = slide_fingerprint(path)
        assert slide_fingerprint(path) == first
        path.write_bytes(bytes((3 << 20) - 1) + b"x")
        assert slide_fingerprint(path) != first
        path.write_bytes(bytes((3 << 20) + 1))
        assert slide_fingerprint(path) != first

    def test_it_does_not_depend_on_the_name(self, tmp_path):
        for name in ("a.svs", "b.svs"):
            (tmp_path / name).write_bytes(b"same")
        assert slide_fingerprint(tmp_path / "a.svs") == slide_fingerprint(tmp_path / "b.svs")

    def test_files_of_an_mrxs_count(self, tmp_path):
        path = tmp_path / "s.mrxs"
        path.write_bytes(b"jpeg")
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "Data0000.dat").write_bytes(b"pixels")
        first = slide_fingerprint(path)
        (tmp_path / "s" / "Data0000.dat").write_bytes(b"pixelz")
        assert slide_fingerprint(path) != first

    def test_another_dicom_series_beside_it_does_not_count(self, shared_data, tmp_path: Path):
        boxes = shared_data / "slides" / "fixtures" / "boxes_dcm"
        for file in boxes.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        assert len(slide_files(tmp_path / "boxes_0.dcm")) == 2
        first = slide_fingerprint(tmp_path / "boxes_0.dcm")
        (tmp_path / "other.dcm").write_bytes((shared_data / "dicom" / "sm_image.dcm").read_bytes())
        assert slide_fingerprint(tmp_path / "boxes_0.dcm") == first
