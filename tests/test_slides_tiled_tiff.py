"""Tiles decoded without OpenSlide show what OpenSlide shows, and where they would not, OpenSlide reads them."""

import os
import random
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from cellmill.slides import tile_levels, tiled_tiff_reader
from cellmill.slides.errors import SlideReadError
from cellmill.slides.opening import open_slide
from cellmill.slides.openslide_reader import OpenSlideReader
from cellmill.slides.tile_codecs import TileError, jpeg2000_decoder, jpeg_decoder
from cellmill.slides.tiled_tiff_reader import TiledTiffReader

APERIO = "Aperio Image Library v1\r\n1x1|AppMag = 20|MPP = 0.5"
JPEG = {"compression": "jpeg", "compressionargs": {"level": 80}}


@pytest.fixture(scope="module")
def tissue(shared_data):
    reader = OpenSlideReader(shared_data / "slides" / "CMU-1-Small-Region.svs")
    pixels = reader.read_block(0, 300, 700, 1301, 1103)
    reader.close()
    return pixels


def write(path: Path, tissue, *, levels=(1,), tile=(240, 240), **options) -> Path:
    """A tiled pyramid in the compression asked for, JPEG where none is."""
    options = {"photometric": "rgb", "metadata": None, "software": False, **JPEG, **options}
    with tifffile.TiffWriter(path) as file:
        for number, factor in enumerate(levels):
            image = np.ascontiguousarray(tissue[factor // 2 :: factor, factor // 2 :: factor])
            file.write(image, tile=tile, subfiletype=int(number > 0), **options)
    return path


def tile_at(path: Path, index: int, *, page: int = 0) -> tuple[int, int]:
    with tifffile.TiffFile(path) as file:
        return file.pages[page].dataoffsets[index], file.pages[page].databytecounts[index]


def assert_same_as_openslide(path: Path, *, level: int = 0, step: int = 300) -> TiledTiffReader:
    """Every block as OpenSlide has it, beyond the level's edges too; both fail on the same blocks."""
    ours, theirs = open_slide(path), OpenSlideReader(path)
    assert isinstance(ours, TiledTiffReader)
    assert (ours.levels, ours.mpp, ours.bounds_level0_px) == (theirs.levels, theirs.mpp, theirs.bounds_level0_px)
    size = ours.levels[level]
    for y in range(-20, size.height_px + 20, step):
        for x in range(-20, size.width_px + 20, step):
            found, expected = read(ours, level, x, y, step), read(theirs, level, x, y, step)
            assert (found is None) == (expected is None), (x, y)
            if found is not None and expected is not None:
                assert np.abs(found.astype(int) - expected).max() <= 1, (x, y)
    theirs.close()
    return ours


def read(reader, level, x, y, side):
    try:
        return reader.read_block(level, x, y, side, side)
    except SlideReadError:
        return None


def test_the_real_svs_is_read_as_openslide_reads_it_everywhere(shared_data):
    reader = assert_same_as_openslide(shared_data / "slides" / "CMU-1-Small-Region.svs")
    assert (reader.name, reader.fast_levels) == ("tiles/aperio", (0,))
    reader.close()


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("description", [None, APERIO], ids=["generic", "aperio"])
def test_every_chroma_subsampling_is_upsampled_as_openslide_does(tmp_path, tissue, subsampling, description):
    path = write(tmp_path / "a.tif", tissue, subsampling=subsampling, description=description, tile=(256, 128))
    assert_same_as_openslide(path).close()


def test_blocks_are_those_of_the_whole_read(tmp_path, tissue):
    reader = open_slide(write(tmp_path / "a.tif", tissue, levels=(1, 4)))
    assert reader.fast_levels == (0, 1)
    rng = random.Random(0)
    for level, (width, height) in enumerate([(1301, 1103), (325, 276)]):
        whole = reader.read_block(level, 0, 0, width, height)
        for _ in range(40):
            x, y = rng.randrange(width), rng.randrange(height)
            w, h = rng.randrange(1, width - x + 1), rng.randrange(1, height - y + 1)
            np.testing.assert_array_equal(reader.read_block(level, x, y, w, h), whole[y : y + h, x : x + w])
    reader.close()


def test_blocks_do_not_depend_on_what_the_cache_still_holds(tmp_path, tissue, monkeypatch):
    monkeypatch.setattr(tiled_tiff_reader, "CACHE_BYTES", 2 * 240 * 240 * 3)
    path = write(tmp_path / "a.tif", tissue, levels=(1, 4))
    crowded, fresh = open_slide(path), [open_slide(path) for _ in range(30)]
    rng = random.Random(1)
    for reader in fresh:
        block = (rng.randrange(2), rng.randrange(300), rng.randrange(250), 333, 290)
        np.testing.assert_array_equal(crowded.read_block(*block), reader.read_block(*block))
        reader.close()
    crowded.close()


def test_coarser_levels_are_the_files_own_pixels(tmp_path, tissue):
    path = write(tmp_path / "a.tif", tissue, levels=(1, 2, 4))
    reader = open_slide(path)
    for level in (1, 2):
        own = tifffile.imread(path, key=level)
        np.testing.assert_array_equal(reader.read_block(level, 0, 0, own.shape[1], own.shape[0]), own)
    reader.close()


def test_damaged_tiles_fail_where_openslide_fails_and_only_there(tmp_path, tissue):
    path = write(tmp_path / "a.svs", tissue, description=APERIO)
    whole = path.read_bytes()
    rng = random.Random(2)
    failed = 0
    for _ in range(40):
        offset, size = tile_at(path, rng.randrange(30))
        damaged = bytearray(whole)
        at, kind = offset + rng.randrange(size - 40), rng.randrange(4)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at : at + 40] = bytes(40)
        elif kind == 2:
            damaged[at : offset + size] = bytes(offset + size - at)
        else:
            damaged[at : at + 2] = b"\xff\xd9"
        broken = tmp_path / "broken.svs"
        broken.write_bytes(damaged)
        reader = assert_same_as_openslide(broken, step=480)
        failed += read(reader, 0, 0, 0, 1301) is None
        reader.close()
    assert failed >= 10


def test_a_tile_the_file_does_not_hold_is_left_to_openslide(tmp_path, tissue):
    path = write(tmp_path / "a.svs", tissue, levels=(1, 4), description=APERIO)
    _forget_tile(path, 7)
    reader = assert_same_as_openslide(path)
    assert (reader.read_block(0, 250, 250, 200, 200) == 255).all()
    # Aperio's coarser tiles below a missing one hold rubbish; OpenSlide knows.
    assert reader.fast_levels == (0,)
    reader.close()


def test_a_missing_tile_of_a_plain_tiff_is_white_and_costs_the_coarser_levels_nothing(tmp_path, tissue):
    path = write(tmp_path / "a.tif", tissue, levels=(1, 4))
    _forget_tile(path, 7)
    reader = assert_same_as_openslide(path, step=200)
    assert (reader.read_block(0, 250, 250, 200, 200) == 255).all()
    assert reader.fast_levels == (0, 1)
    reader.close()


def _forget_tile(path: Path, index: int) -> None:
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileByteCounts"]
        width = {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
        at = tag.valueoffset + index * width
    content = bytearray(path.read_bytes())
    content[at : at + width] = bytes(width)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"compression": "deflate", "compressionargs": {}}, "openslide/generic-tiff"),
        ({"tile": (2064, 2064)}, "openslide/generic-tiff"),
        ({}, "tiles/generic-tiff"),
    ],
    ids=["deflate", "huge tiles", "jpeg"],
)
def test_what_is_not_decoded_here_stays_with_openslide(tmp_path, tissue, options, name):
    reader = open_slide(write(tmp_path / "a.tif", tissue, **options))
    assert reader.name == name
    reader.close()


def test_levels_of_one_size_stay_with_openslide(tmp_path, tissue):
    reader = open_slide(write(tmp_path / "a.tif", tissue, levels=(1, 1)))
    assert reader.name == "openslide/generic-tiff"
    reader.close()


def test_a_level_that_shows_something_else_is_left_to_openslide(tmp_path, tissue, monkeypatch):
    path = write(tmp_path / "a.tif", tissue, levels=(1, 4))

    def swapped(**options):
        decode = jpeg_decoder(**options)

        def decode_swapped(tile, pixels):
            decode(tile, pixels)
            pixels[:] = pixels[..., ::-1].copy()

        return decode_swapped

    monkeypatch.setattr(tile_levels, "jpeg_decoder", swapped)
    reader = open_slide(path)
    assert reader.name == "openslide/generic-tiff"
    reader.close()


def test_a_richest_tile_that_is_damaged_does_not_slow_the_slide_down(tmp_path, tissue):
    path = write(tmp_path / "a.tif", tissue)
    with tifffile.TiffFile(path) as file:
        sizes = file.pages[0].databytecounts
    offset, size = tile_at(path, int(np.argmax(sizes)))
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    assert_same_as_openslide(path).close()


def test_no_byte_but_the_levels_tiles_is_decoded(shared_data, monkeypatch):
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    seen: set[int] = set()
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: seen.add(offset) or pread(file, size, offset))
    reader = open_slide(path)
    reader.read_block(0, 0, 0, 2220, 2967)
    reader.close()
    with tifffile.TiffFile(path) as file:
        assert seen == set(file.pages[0].dataoffsets)


def test_a_file_system_that_fails_once_is_asked_again_and_never_changes_the_reader(tmp_path, tissue, monkeypatch):
    path = write(tmp_path / "a.tif", tissue)
    reader = open_slide(path)
    expected = reader.read_block(0, 0, 0, 300, 300)
    fails = [True]
    pread = os.pread

    def flaky(*arguments):
        if fails:
            fails.pop()
            raise OSError(5, "Input/output error")
        return pread(*arguments)

    again = open_slide(path)
    monkeypatch.setattr(os, "pread", flaky)
    np.testing.assert_array_equal(again.read_block(0, 0, 0, 300, 300), expected)
    for remaining in (2, 1):
        fails[:] = [True] * remaining
        if remaining == 2:
            with pytest.raises(SlideReadError, match="tile column 4"):
                again.read_block(0, 1000, 0, 10, 10)
        else:
            with pytest.raises(SlideReadError, match="at the moment"):
                open_slide(path)
    assert again.read_block(0, 1000, 0, 10, 10).shape == (10, 10, 3)
    reader.close()
    again.close()


class TestJpeg2000:
    """Aperio's two kinds, and what is none of them."""

    @staticmethod
    def write(path: Path, tissue, compression: int) -> Path:
        pixels = tissue[:600, :700]
        if compression == 33003:
            pixels = _ycbcr_of_rgb(pixels)
        padded = np.pad(pixels, ((0, 168), (0, 68), (0, 0)), mode="edge")
        tiles = [
            imagecodecs.jpeg2k_encode(
                np.ascontiguousarray(padded[y : y + 256, x : x + 256]), level=60, codecformat="j2k", mct=False
            )
            for y in range(0, 600, 256)
            for x in range(0, 700, 256)
        ]
        options = {"compressionargs": {}, "compression": compression, "description": APERIO}
        with tifffile.TiffWriter(path) as file:
            file.write(
                iter(tiles),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(256, 256),
                photometric="rgb",
                metadata=None,
                software=False,
                **options,
            )
        return path

    @pytest.mark.parametrize("compression", [33003, 33005])
    def test_both_are_read_as_openslide_reads_them(self, tmp_path, tissue, compression):
        path = self.write(tmp_path / "a.svs", tissue, compression)
        reader = assert_same_as_openslide(path)
        assert reader.fast_levels == (0,)
        difference = np.abs(reader.read_block(0, 0, 0, 700, 600).astype(int) - tissue[:600, :700])
        assert difference.mean() < 4
        reader.close()

    def test_damaged_tiles_fail_where_openslide_fails(self, tmp_path, tissue):
        path = self.write(tmp_path / "a.svs", tissue, 33005)
        whole = path.read_bytes()
        rng = random.Random(3)
        for _ in range(12):
            # OpenSlide opens no such slide whose first tile is damaged.
            offset, size = tile_at(path, rng.randrange(1, 9))
            damaged = bytearray(whole)
            at = offset + rng.randrange(size - 60)
            damaged[at : at + 50] = bytes(50)
            broken = tmp_path / "broken.svs"
            broken.write_bytes(damaged)
            assert_same_as_openslide(broken, step=256).close()

    def test_a_stream_of_another_size_is_refused_before_it_is_decoded(self):
        tile = bytearray(imagecodecs.jpeg2k_encode(np.zeros((64, 64, 3), np.uint8), codecformat="j2k"))
        pixels = np.empty((64, 64, 3), np.uint8)
        jpeg2000_decoder(is_ycbcr=False)(bytes(tile), pixels)
        tile[8:16] = (1 << 17).to_bytes(4, "big") * 2
        with pytest.raises(TileError, match="size"):
            jpeg2000_decoder(is_ycbcr=False)(bytes(tile), pixels)


def _ycbcr_of_rgb(rgb):
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = [luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402]
    return np.clip(np.rint(np.stack(planes, -1)), 0, 255).astype(np.uint8)


def test_a_jpeg_stream_of_another_size_or_kind_is_refused_before_it_is_decoded(tissue):
    decode = jpeg_decoder(tables=None, is_ycbcr=True)
    stream = imagecodecs.jpeg8_encode(np.ascontiguousarray(tissue[:64, :64]), level=80)
    pixels = np.empty((64, 64, 3), np.uint8)
    decode(stream, pixels)
    np.testing.assert_array_equal(pixels, imagecodecs.jpeg8_decode(stream))
    frame = stream.index(b"\xff\xc0")
    huge = stream[: frame + 5] + b"\xff\xf0\xff\xf0" + stream[frame + 9 :]
    grey = imagecodecs.jpeg8_encode(np.ascontiguousarray(tissue[:64, :64, 0]), level=80)
    for other in (huge, grey, stream[:-200], stream[:20], b"", b"not a JPEG", stream[:frame] + stream[frame + 19 :]):
        with pytest.raises(TileError):
            decode(other, pixels)
