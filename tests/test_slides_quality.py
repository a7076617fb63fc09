"""Pen and blur: real tissue is never lost, plain cases are caught."""

import cv2
import numpy as np
import pytest

from cellmill.grid import TileGeometry
from cellmill.slides.isolated_slide import IsolatedSlide
from cellmill.slides.quality import judge_tile

TILES = TileGeometry(tile_px=256, margin_px=32)


@pytest.fixture(scope="module")
def slide_tiles(shared_data):
    """Every tile with tissue of the two real slides."""
    tiles = []
    for name in ("CMU-1-Small-Region.svs", "HE_example.ome.tif"):
        with IsolatedSlide(shared_data / "slides" / name, target_mpp=0.5) as slide:
            tissue = slide.find_tissue(TILES)
            rows, columns = np.nonzero(tissue.tiles)
            tiles += [slide.read(TILES.window(int(i), int(j))).pixels for j, i in zip(rows, columns, strict=True)]
    return tiles


@pytest.fixture(scope="module")
def image_tiles(shared_data):
    """Tiles of BreCaHAD and MoNuSAC, which hold fat, pale stroma, blood and crowds of lymphocytes."""
    tiles = []
    for path in sorted((shared_data / "nuclei").glob("brecahad/images/*")) + sorted(
        (shared_data / "nuclei").glob("monusac/images/*")
    ):
        image = cv2.imread(str(path))
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[..., ::-1]
        for y in range(0, image.shape[0] - 255, 256):
            for x in range(0, image.shape[1] - 255, 256):
                tiles += [np.ascontiguousarray(image[y : y + 256, x : x + 256])]
    return tiles


def test_no_tile_of_real_tissue_is_excluded(slide_tiles, image_tiles):
    assert len(slide_tiles) > 150
    assert len(image_tiles) > 50
    assert [judge_tile(tile) for tile in slide_tiles + image_tiles] == ["ok"] * (len(slide_tiles) + len(image_tiles))


@pytest.mark.parametrize("sigma_px", [4, 6, 8])
def test_tissue_out_of_focus_is_blur(slide_tiles, sigma_px):
    # A tile that is mostly glass holds too little to judge.
    filled = [tile for tile in slide_tiles if (tile.min(-1) < 200).mean() > 0.5]
    verdicts = [judge_tile(cv2.GaussianBlur(tile, (0, 0), sigma_px)) for tile in filled]
    assert verdicts.count("blur") >= 0.9 * len(verdicts)


def test_a_blurred_patch_counts_when_it_fills_most_of_the_tile(slide_tiles):
    dense = [tile for tile in slide_tiles if tile.mean() < 170]
    assert len(dense) > 20
    for tile in dense:
        blurred, patched = cv2.GaussianBlur(tile, (0, 0), 5), tile.copy()
        patched[:, :64] = blurred[:, :64]
        assert judge_tile(patched) == "ok"
        patched[:, :192] = blurred[:, :192]
        assert judge_tile(patched) == "blur"


@pytest.mark.parametrize("ink", [(30, 60, 200), (20, 140, 60), (20, 20, 25), (220, 20, 30)], ids=str)
def test_opaque_ink_over_tissue_is_pen(slide_tiles, ink):
    for tile in slide_tiles[::8]:
        marked = tile.copy()
        marked[:, 40:140] = ink
        assert judge_tile(marked) == "pen"


@pytest.mark.parametrize("ink", [(30, 60, 200), (20, 140, 60), (20, 20, 25)], ids=str)
def test_a_thin_stroke_does_not_cost_the_tile(slide_tiles, ink):
    for tile in slide_tiles[::8]:
        marked = tile.copy()
        marked[:, 40:70] = ink
        assert judge_tile(marked) == "ok"


@pytest.mark.parametrize("colour", [(255, 255, 255), (230, 225, 232), (240, 190, 215), (120, 90, 160)], ids=str)
def test_a_tile_without_structure_is_not_blur(colour):
    noise = np.random.default_rng(0).normal(0, 2, (256, 256, 3))
    assert judge_tile(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)) == "ok"
