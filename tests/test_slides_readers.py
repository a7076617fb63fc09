"""TIFFs of every kind in use, their scale, and that no label, macro or thumbnail is ever the slide."""

import numpy as np
import pytest
import tifffile

from cellmill.slides.errors import UnsupportedSlideError
from cellmill.slides.opening import open_slide
from cellmill.slides.openslide_reader import OpenSlideReader
from cellmill.slides.tifffile_reader import TifffileReader


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))[:301, :377]


LAYOUTS = {
    "tiled": {"tile": (64, 64)},
    "strips": {"rowsperstrip": 16},
    "one strip": {},
    "deflate": {"compression": "deflate", "predictor": True},
    "jpeg": {"compression": "jpeg", "tile": (128, 128)},
    "jpeg2000": {"compression": "jpeg2000", "tile": (128, 128)},
    "lzw strips": {"compression": "lzw", "rowsperstrip": 10},
    "big": {"tile": (64, 64), "bigtiff": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_are_those_of_the_whole_image_and_white_outside(tmp_path, image, layout):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, image, photometric="rgb", metadata=None, **LAYOUTS[layout])
    expected = np.full((310, 390, 3), 255, np.uint8)
    expected[2:303, 3:380] = tifffile.imread(path)
    reader = TifffileReader(path)
    np.testing.assert_array_equal(reader.read_block(0, -3, -2, 390, 310), expected)
    np.testing.assert_array_equal(reader.read_block(0, 97, 88, 100, 100), expected[90:190, 100:200])
    reader.close()


def test_separate_planes_are_read_as_rgb(tmp_path, image):
    path = tmp_path / "planes.tif"
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", tile=(64, 64), metadata=None)
    reader = TifffileReader(path)
    np.testing.assert_array_equal(reader.read_block(0, 0, 0, 377, 301), image)
    reader.close()


def test_transparent_pixels_are_white(tmp_path, image):
    path = tmp_path / "alpha.tif"
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:100] = 0
    alpha[100:200] = 128
    rgba = np.dstack([image, alpha])
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64), metadata=None)
    reader = TifffileReader(path)
    block = reader.read_block(0, 0, 0, 377, 301)
    assert (block[:100] == 255).all()
    np.testing.assert_array_equal(block[200:], image[200:])
    assert np.abs(block[100:200].astype(int) - (image[100:200].astype(int) + 255) // 2).max() <= 2
    reader.close()


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20000, 40000), "CENTIMETER", (0.5, 0.25)),
        ((50800, 50800), "INCH", (0.5, 0.5)),
        ((72, 72), "INCH", None),
        ((300, 300), "INCH", None),
        ((1, 1), "NONE", None),
    ],
)
def test_resolution_tags_are_a_scale_only_where_they_can_be(tmp_path, image, resolution, unit, mpp):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, image, photometric="rgb", resolution=resolution, resolutionunit=unit, metadata=None)
    reader = TifffileReader(path)
    assert reader.mpp == (None if mpp is None else pytest.approx(mpp))
    reader.close()


@pytest.mark.parametrize(("size", "unit"), [(0.25, "µm"), (250, "nm"), (0.00025, "mm")])
def test_ome_xml_states_the_scale_in_any_unit(tmp_path, image, size, unit):
    path = tmp_path / "image.ome.tif"
    metadata = {"PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": size * 2, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(path, image, photometric="rgb", metadata=metadata)
    reader = open_slide(path)
    assert reader.name == "tifffile/ome"
    assert reader.mpp == pytest.approx((0.25, 0.5))
    reader.close()


def test_the_real_ome_tiff_opens(shared_data):
    reader = open_slide(shared_data / "slides" / "HE_example.ome.tif")
    assert reader.mpp == pytest.approx((0.50008, 0.50008), abs=1e-5)
    assert (reader.levels[0].width_px, reader.levels[0].height_px) == (1380, 1484)
    reader.close()


def test_labels_and_macros_in_an_ome_tiff_are_not_the_slide(tmp_path, image):
    path = tmp_path / "image.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(np.zeros((900, 900, 3), np.uint8), photometric="rgb", metadata={"Name": "label image"})
        file.write(image, photometric="rgb", metadata={"Name": "slide", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25})
        file.write(np.zeros((950, 950, 3), np.uint8), photometric="rgb", metadata={"Name": "Macro"})
    reader = TifffileReader(path)
    np.testing.assert_array_equal(reader.read_block(0, 0, 0, 377, 301), image)
    assert reader.mpp == (0.25, 0.25)
    reader.close()


def test_tifffile_shows_the_same_slide_as_openslide_and_no_other_image(shared_data):
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    ours, openslide = TifffileReader(path), OpenSlideReader(path)
    assert [(level.width_px, level.height_px) for level in ours.levels] == [(2220, 2967)]
    assert ours.mpp == openslide.mpp == (0.499, 0.499)
    difference = np.abs(
        ours.read_block(0, 500, 900, 600, 600).astype(int) - openslide.read_block(0, 500, 900, 600, 600)
    )
    assert difference.max() <= 3
    ours.close()
    openslide.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image[..., 0].copy(), "no plain RGB"),
        (lambda image: image.astype(np.uint16), "uint16"),
        (lambda image: np.stack([image] * 4), "no plain RGB"),
    ],
    ids=["grey", "16 bit", "stack"],
)
def test_images_that_are_no_rgb_slide_say_what_they_are(tmp_path, image, change, words):
    path = tmp_path / "image.ome.tif"
    data = change(image)
    tifffile.imwrite(path, data, photometric="rgb" if data.ndim > 2 else "minisblack")
    with pytest.raises(UnsupportedSlideError, match=words):
        open_slide(path)
