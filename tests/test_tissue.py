"""Tissue is found on glass of any tint, decided per tile, and regions drawn by someone are followed."""

import json

import numpy as np
import pytest

from cellmill.grid import SlideGrid, TileGeometry
from cellmill.slides.errors import RegionFileError, SlideReadError
from cellmill.slides.opening import open_slide
from cellmill.slides.reader import level_downsamples
from cellmill.slides.tissue import find_tissue

TILES = TileGeometry(tile_px=256, margin_px=32)
GLASS = [(255, 255, 255), (243, 244, 245), (226, 220, 224), (200, 200, 200), (232, 236, 228)]
PINK, PALE, PURPLE = (225, 150, 190), (240, 222, 232), (120, 80, 160)


class Painted:
    """A one-level slide from an array, with sensor noise."""

    name, mpp, bounds_level0_px = "test/painted", (0.5, 0.5), (0, 0)

    def __init__(self, pixels, *, broken=False):
        noise = np.random.default_rng(0).normal(0, 3, (*pixels.shape[:2], 1))
        self.pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        self.levels = level_downsamples([(pixels.shape[1], pixels.shape[0])])
        self.broken = broken

    def read_block(self, level, x, y, width, height):
        if self.broken and x > 0:
            raise SlideReadError("broken")
        return self.pixels[y : y + height, x : x + width]

    def close(self):
        pass


def painted(colour, width=1500, height=1200, **options) -> Painted:
    return Painted(np.full((height, width, 3), colour, np.float32), **options)


def grid_of(slide, *, mpp=(0.5, 0.5)) -> SlideGrid:
    level = slide.levels[0]
    return SlideGrid.of_slide(
        width_level0_px=level.width_px,
        height_level0_px=level.height_px,
        mpp_x=mpp[0],
        mpp_y=mpp[1],
        target_mpp=0.5,
    )


def tissue_of(slide, **options):
    return find_tissue(slide, grid_of(slide), TILES, **options)


@pytest.mark.parametrize("glass", GLASS)
def test_a_slide_of_glass_has_no_tissue_and_says_how_much(glass):
    found = tissue_of(painted(glass))
    assert found.num_tiles == 0
    assert "0.00%" in found.figures
    assert found.background_mm2 == pytest.approx(found.slide_mm2) == pytest.approx(1500 * 1200 * 0.25e-6)


@pytest.mark.parametrize("colour", [PINK, PALE, PURPLE])
def test_a_slide_covered_all_over_is_tissue_all_over(colour):
    found = tissue_of(painted(colour))
    assert found.tiles.all()
    assert found.analysed_mm2 == pytest.approx(found.slide_mm2)
    assert found.background_mm2 == 0


@pytest.mark.parametrize("glass", GLASS)
@pytest.mark.parametrize("tissue", [PINK, PALE, PURPLE])
def test_tissue_is_found_on_glass_of_any_tint(glass, tissue):
    slide = painted(glass)
    pixels = slide.pixels.astype(np.float32)
    pixels[300:800, 400:1000] = np.array(tissue, np.float32) * np.array(glass, np.float32) / 255
    found = tissue_of(Painted(pixels))
    assert found.tiles[2, 3]
    assert found.tiles[1, 2]
    assert not found.tiles[:, 7].any()
    assert not found.tiles[5].any()


def test_specks_of_dirt_and_grey_shadows_are_glass():
    pixels = np.full((1200, 1500, 3), 240, np.float32)
    pixels[100:125, 100:125] = (60, 90, 160)
    pixels[600:900] = 150
    assert tissue_of(Painted(pixels)).num_tiles == 0


def test_fat_counts_as_tissue():
    pixels = np.full((1200, 1500, 3), 245, np.float32)
    y, x = np.mgrid[:1200, :1500]
    membranes = (np.minimum(x % 120, y % 110) < 7) & (x > 300) & (x < 1200)
    pixels[membranes] = (215, 140, 180)
    found = tissue_of(Painted(pixels))
    assert found.tiles[1:5, 2:6].all()


def test_a_region_that_cannot_be_read_counts_as_tissue_so_that_reading_reports_it():
    found = tissue_of(painted((250, 250, 250), width=3000, broken=True))
    assert not found.tiles[:, :5].any()
    assert found.tiles[:, 6:].all()


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (1, 700), (193, 5)])
def test_slides_smaller_than_a_tile_are_judged_like_others(size):
    width, height = size
    assert tissue_of(painted(GLASS[1], width=width, height=height)).num_tiles == 0
    assert tissue_of(painted(PINK, width=width, height=height)).tiles.all()


def test_without_tissue_detection_every_tile_is_analysed():
    found = tissue_of(painted((255, 255, 255)), mode="none")
    assert found.tiles.all()
    assert found.background_mm2 == found.outside_region_mm2 == 0
    assert not found.analysed(-1, 0)
    assert not found.analysed(8, 0)


def test_different_scales_in_x_and_y_do_not_move_the_tissue():
    pixels = np.full((2400, 1500, 3), 245, np.float32)
    pixels[400:1200, 384:768] = PINK
    slide = Painted(pixels)
    found = find_tissue(slide, grid_of(slide, mpp=(0.5, 0.25)), TILES)
    assert found.tiles.shape == (7, 8)
    assert found.tiles[2, 2]
    assert not found.tiles[5, 2]
    assert not found.tiles[2, 5]


def test_both_real_slides(shared_data):
    for name, tiles, least_mm2, most_mm2 in (
        ("CMU-1-Small-Region.svs", (16, 12), 0.85, 1.10),
        ("HE_example.ome.tif", (8, 8), 0.42, 0.51),
    ):
        reader = open_slide(shared_data / "slides" / name)
        grid = grid_of(reader, mpp=reader.mpp)
        found = find_tissue(reader, grid, TILES)
        assert found.tiles.shape == tiles
        assert least_mm2 < found.analysed_mm2 < most_mm2
        reader.close()


class TestRegions:
    """A region file decides alone."""

    square = ((100, 100), (500, 100), (500, 500), (100, 500), (100, 100))

    def write(self, tmp_path, document):
        path = tmp_path / "regions.geojson"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    def feature(self, *rings, kind="Polygon"):
        return {"type": "Feature", "properties": {}, "geometry": {"type": kind, "coordinates": rings}}

    @pytest.mark.parametrize("form", ["collection", "list", "feature", "geometry"])
    def test_every_form_of_geojson_is_read(self, tmp_path, form):
        feature = self.feature(self.square)
        document = {
            "collection": {"type": "FeatureCollection", "features": [feature]},
            "list": [feature],
            "feature": feature,
            "geometry": feature["geometry"],
        }[form]
        found = tissue_of(painted(GLASS[0]), mode=self.write(tmp_path, document))
        expected = np.zeros(found.tiles.shape, bool)
        expected[:3, :3] = True
        np.testing.assert_array_equal(found.tiles, expected)
        assert found.outside_region_mm2 == pytest.approx(found.slide_mm2 - 9 * (192 * 0.5e-3) ** 2)
        assert found.background_mm2 == 0

    def test_touching_a_tile_is_not_lying_in_it(self, tmp_path):
        ring = ((192, 192), (384, 192), (384, 384), (192, 384), (192, 192))
        found = tissue_of(painted(GLASS[0]), mode=self.write(tmp_path, self.feature(ring)))
        assert found.num_tiles == 1
        assert found.analysed(1, 1)

    def test_holes_and_parts_are_followed(self, tmp_path):
        outer = ((0, 0), (1152, 0), (1152, 1152), (0, 1152), (0, 0))
        hole = ((180, 180), (970, 180), (970, 970), (180, 970), (180, 180))
        far = ((1400, 1100), (1450, 1100), (1450, 1150), (1400, 1100))
        feature = self.feature((outer, hole), (far,), kind="MultiPolygon")
        found = tissue_of(painted(GLASS[0]), mode=self.write(tmp_path, feature))
        assert found.analysed(0, 0)
        assert not found.analysed(2, 2)
        assert found.analysed(7, 5)
        assert not found.analysed(7, 0)

    def test_regions_are_in_level0_px_whatever_the_target_scale(self, tmp_path):
        slide = painted(GLASS[0])
        grid = grid_of(slide, mpp=(0.25, 0.25))
        found = find_tissue(slide, grid, TILES, mode=self.write(tmp_path, self.feature(self.square)))
        assert found.tiles[:2, :2].all()
        assert found.num_tiles == 4

    def test_an_outline_that_crosses_itself_still_counts(self, tmp_path):
        bow_tie = ((100, 100), (500, 500), (500, 100), (100, 500), (100, 100))
        found = tissue_of(painted(GLASS[0]), mode=self.write(tmp_path, self.feature(bow_tie)))
        assert found.analysed(0, 1)
        assert found.analysed(2, 1)

    @pytest.mark.parametrize(
        ("document", "words"),
        [
            ("not json", "no JSON"),
            ({"type": "FeatureCollection", "features": []}, "no feature"),
            ([{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}], "feature 0.*Point"),
            ([{"type": "Feature", "geometry": None}], "feature 0.*NoneType"),
            (
                [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]}}],
                "feature 0.*no polygon",
            ),
            ([{"type": "Feature", "geometry": {"type": "Polygon"}}], "feature 0.*no polygon"),
            ({"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [0, 0], [0, 0]]]}, "its geometry.*no area"),
            ("3", "the whole file"),
            ({"type": "FeatureCollection", "features": 3}, "no list of features"),
        ],
    )
    def test_a_bad_region_file_is_named_with_the_feature(self, tmp_path, document, words):
        with pytest.raises(RegionFileError, match=r"regions\.geojson.*" + words):
            tissue_of(painted(GLASS[0]), mode=self.write(tmp_path, document))

    def test_a_missing_region_file_says_so(self, tmp_path):
        with pytest.raises(RegionFileError, match="cannot be read"):
            tissue_of(painted(GLASS[0]), mode=tmp_path / "absent.geojson")
