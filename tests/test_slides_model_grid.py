"""A model-grid pixel is a fixed function of native pixels: windows, levels, edges, bit for bit."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmill.grid import Box, SlideGrid
from cellmill.slides.errors import SlideReadError
from cellmill.slides.model_grid import ModelGridReader, choose_level
from cellmill.slides.opening import open_slide
from cellmill.slides.reader import level_downsamples
from cellmill.slides.resample import axis_taps

TARGET_MPP = 0.5
SCALES = [(0.243, 0.243), (0.2631, 0.2631), (0.5, 0.5), (0.243, 0.2631), (0.499, 0.9)]


def grid_of(reader, mpp) -> SlideGrid:
    level = reader.levels[0]
    return SlideGrid.of_slide(
        width_level0_px=level.width_px,
        height_level0_px=level.height_px,
        mpp_x=mpp[0],
        mpp_y=mpp[1],
        target_mpp=TARGET_MPP,
    )


def write_pyramid(path: Path, *, seed: int = 0) -> Path:
    """A tiled pyramid of 1301 x 1103 px whose levels are no exact halves, as OpenSlide opens it."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 256, (70, 82, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))[:1103, :1301]
    image = np.clip(image.astype(np.int16) + rng.integers(-20, 20, image.shape), 0, 255).astype(np.uint8)
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(image, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
        for level in (1, 2):
            size = (1301 >> level, 1103 >> level)
            small = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BOX))
            file.write(small, subfiletype=1, **options)
    return path


@pytest.fixture(scope="module", params=["aperio", "pyramid", "ome"])
def reader(request, shared_data, tmp_path_factory):
    path = {
        "aperio": lambda: shared_data / "slides" / "CMU-1-Small-Region.svs",
        "pyramid": lambda: write_pyramid(tmp_path_factory.mktemp("pyramid") / "pyramid.tif"),
        "ome": lambda: shared_data / "slides" / "HE_example.ome.tif",
    }[request.param]()
    opened = open_slide(path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def wholes(reader):
    return {mpp: ModelGridReader(reader, grid_of(reader, mpp)).read(grid_of(reader, mpp).box).pixels for mpp in SCALES}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_window_equals_the_same_pixels_of_the_whole_read(reader, wholes, data):
    mpp = data.draw(st.sampled_from(SCALES))
    grid, whole = grid_of(reader, mpp), wholes[mpp]
    x0 = data.draw(st.integers(-40, grid.width_px - 1))
    y0 = data.draw(st.integers(-40, grid.height_px - 1))
    box = Box(x0, y0, x0 + data.draw(st.integers(1, 700)), y0 + data.draw(st.integers(1, 300)))
    read = ModelGridReader(reader, grid).read(box)
    inside = box.clipped(grid.box)
    expected = np.full((box.height, box.width, 3), 255, np.uint8)
    if inside.area:
        expected[inside.y0 - y0 : inside.y1 - y0, inside.x0 - x0 : inside.x1 - x0] = whole[
            inside.y0 : inside.y1, inside.x0 : inside.x1
        ]
    np.testing.assert_array_equal(read.pixels, expected)
    assert read.unreadable == ()


def test_pixels_are_those_of_pillows_bicubic(shared_data):
    reader = open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs")
    native = PIL.Image.fromarray(reader.read_block(0, 0, 0, 1200, 1200))
    for mpp in (0.243, 0.2631):
        scale = TARGET_MPP / mpp
        grid = SlideGrid(width_px=500, height_px=500, scale_x=scale, scale_y=scale, target_mpp=TARGET_MPP)
        ours = ModelGridReader(reader, grid).read(grid.box).pixels
        theirs = np.asarray(
            native.resize((500, 500), PIL.Image.Resampling.BICUBIC, box=(0, 0, 500 * scale, 500 * scale))
        )
        # Pillow rounds to 8 bit between its two passes.
        difference = np.abs(ours.astype(int) - theirs)[4:-4, 4:-4]
        assert difference.mean() < 0.1
        assert difference.max() <= 8
    reader.close()


def test_parts_that_are_wanted_are_the_same_and_the_rest_may_stay_white(reader, wholes):
    mpp = SCALES[1]
    wanted = [Box(100, 100, 300, 300), Box(290, 90, 400, 120)]
    read = ModelGridReader(reader, grid_of(reader, mpp)).read(Box(-20, -20, 600, 550), wanted=wanted)
    for box in wanted:
        np.testing.assert_array_equal(
            read.pixels[box.y0 + 20 : box.y1 + 20, box.x0 + 20 : box.x1 + 20],
            wholes[mpp][box.y0 : box.y1, box.x0 : box.x1],
        )
    assert (read.pixels[540:] == 255).all()


def test_a_slide_at_the_target_scale_is_copied(shared_data):
    reader = open_slide(shared_data / "slides" / "HE_example.ome.tif")
    pixels = ModelGridReader(reader, grid_of(reader, (0.5, 0.5))).read(Box(0, 0, 1380, 1484)).pixels
    np.testing.assert_array_equal(pixels, reader.read_block(0, 0, 0, 1380, 1484))
    reader.close()


def test_a_last_part_pixel_beyond_a_level_read_as_it_is_repeats_its_edge(tmp_path):
    image = np.random.default_rng(3).integers(0, 256, (515, 1027, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "odd.tif") as file:
        for level, number in ((image, 0), (np.ascontiguousarray(image[:514:2, :1026:2]), 1)):
            file.write(level, photometric="rgb", compression="jpeg", tile=(128, 128), subfiletype=number, metadata=None)
    reader = open_slide(tmp_path / "odd.tif")
    grid = grid_of(reader, (0.25, 0.25))
    assert (grid.width_px, grid.height_px, reader.levels[1].width_px) == (514, 258, 513)
    pixels = ModelGridReader(reader, grid).read(grid.box).pixels
    np.testing.assert_array_equal(pixels[:257, :513], reader.read_block(1, 0, 0, 513, 257))
    np.testing.assert_array_equal(pixels[:257, 513], pixels[:257, 512])
    reader.close()


class OneColour:
    """A slide of one grey, of any size."""

    name, mpp, bounds_level0_px = "test/grey", None, (0, 0)

    def __init__(self, width_px: int, height_px: int):
        self.levels = level_downsamples([(width_px, height_px)])

    def read_block(self, level, x, y, width, height):
        assert x >= 0
        assert y >= 0
        assert x + width <= self.levels[0].width_px
        assert y + height <= self.levels[0].height_px
        return np.full((height, width, 3), 77, np.uint8)

    def close(self):
        pass


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 60), mpp_x=st.floats(0.06, 9.0), mpp_y=st.floats(0.06, 2.0))
def test_one_colour_stays_one_colour_up_to_the_last_part_pixel(width, height, mpp_x, mpp_y):
    slide = OneColour(width, height)
    grid = grid_of(slide, (mpp_x, mpp_y))
    read = ModelGridReader(slide, grid).read(Box(0, 0, grid.width_px, grid.height_px).grown(3))
    assert (read.pixels[3:-3, 3:-3] == 77).all()
    assert (read.pixels[:3] == 255).all()
    assert (read.pixels[:, -3:] == 255).all()


@given(first=st.integers(0, 10**6), scale=st.floats(0.05, 40), size=st.integers(1, 10**8))
def test_weights_are_integers_that_sum_to_one(first, scale, size):
    first = min(first, int(size / scale))
    taps = axis_taps(first, first + 5, scale=scale, native_size=size)
    assert (taps.weights.sum(1) == 1 << 14).all()
    assert (taps.starts >= 0).all()
    assert (taps.starts + taps.weights.shape[1] <= size).all()


def test_taps_do_not_depend_on_where_the_window_starts():
    whole = axis_taps(0, 1000, scale=0.5 / 0.2631, native_size=1900)
    for first in (1, 17, 500, 993):
        part = axis_taps(first, first + 7, scale=0.5 / 0.2631, native_size=1900)
        np.testing.assert_array_equal(part.starts, whole.starts[first : first + 7])
        np.testing.assert_array_equal(part.weights, whole.weights[first : first + 7])


def test_the_coarsest_level_that_is_fine_enough_in_both_axes_is_read():
    levels = level_downsamples([(8000, 8000), (4000, 4000), (2000, 1000), (1000, 1000)])
    for mpp, level in (((0.25, 0.25), 1), ((0.1251, 0.1251), 1), ((0.1249, 0.06), 2), ((0.5, 0.5), 0), ((2, 2), 0)):
        grid = SlideGrid.of_slide(
            width_level0_px=8000, height_level0_px=8000, mpp_x=mpp[0], mpp_y=mpp[1], target_mpp=0.5
        )
        assert choose_level(levels, grid) == level, mpp


def test_level_sizes_that_lost_a_part_pixel_keep_their_factor():
    levels = level_downsamples([(2221, 2967), (555, 741), (138, 185)])
    assert [(level.downsample_x, level.downsample_y) for level in levels] == [(1, 1), (4, 4), (16, 16)]
    odd = level_downsamples([(2000, 1000), (950, 700)])[1]
    assert (odd.downsample_x, odd.downsample_y) == (2000 / 950, 1000 / 700)


def test_a_block_that_fails_reads_white_and_is_named():
    class Broken(OneColour):
        def read_block(self, level, x, y, width, height):
            if (x, y) == (512, 0):
                raise SlideReadError("broken")
            return super().read_block(level, x, y, width, height)

    slide = Broken(1500, 700)
    grid = grid_of(slide, (0.25, 0.25))
    read = ModelGridReader(slide, grid).read(Box(100, 20, 600, 340))
    assert not read.is_readable(Box(256, 0, 512, 256))
    assert read.is_readable(Box(0, 0, 250, 350))
    assert read.is_readable(Box(256, 262, 512, 350))
    assert (read.pixels[20:200, 170:400] == 255).all()
    elsewhere = ModelGridReader(slide, grid).read(Box(0, 262, 700, 340))
    assert elsewhere.unreadable == ()


@pytest.mark.parametrize("mpp", [0.5, 0.499, 0.25, 0.2631])
def test_whether_a_box_is_readable_does_not_depend_on_the_window_read(mpp):
    class Broken(OneColour):
        def read_block(self, level, x, y, width, height):
            if (x, y) == (512, 512):
                raise SlideReadError("broken")
            return super().read_block(level, x, y, width, height)

    slide = Broken(2100, 1600)
    grid = grid_of(slide, (mpp, mpp))
    whole = ModelGridReader(slide, grid).read(grid.box)
    (bad,) = whole.unreadable
    for at_x in range(-12, 13):
        for box in (
            Box(bad.x0 + at_x - 5, bad.y0, bad.x0 + at_x, bad.y0 + 20),
            Box(bad.x1 + at_x, bad.y0 + 5, bad.x1 + at_x + 5, bad.y0 + 9),
        ):
            alone = ModelGridReader(slide, grid).read(box)
            assert alone.is_readable(box) == whole.is_readable(box), box


def test_what_is_read_does_not_depend_on_how_many_blocks_are_kept(reader, wholes, monkeypatch):
    monkeypatch.setattr("cellmill.slides.model_grid._MIN_CACHED_BLOCKS", 1)
    mpp = SCALES[0]
    crowded = ModelGridReader(reader, grid_of(reader, mpp))
    for box in (Box(0, 0, 300, 300), Box(200, 100, 600, 500), Box(0, 0, 300, 300)):
        np.testing.assert_array_equal(crowded.read(box).pixels, wholes[mpp][box.y0 : box.y1, box.x0 : box.x1])
