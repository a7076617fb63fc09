"""The absolute grid: tiles partition the plane, fields partition the slide, anchors are unique."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmill.grid import Box, SlideGrid, TileGeometry

GEOMETRIES = st.builds(TileGeometry, tile_px=st.integers(130, 700), margin_px=st.integers(0, 64))
COORDINATES = st.integers(-5_000, 200_000)


def grid_of(width_px: int, height_px: int) -> SlideGrid:
    return SlideGrid.of_slide(
        width_level0_px=width_px, height_level0_px=height_px, mpp_x=0.5, mpp_y=0.5, target_mpp=0.5
    )


@given(GEOMETRIES, COORDINATES, COORDINATES)
def test_every_pixel_lies_in_exactly_one_tile_core(geometry: TileGeometry, x: int, y: int) -> None:
    i, j = x // geometry.stride_px, y // geometry.stride_px
    holders = [
        (column, row)
        for column in range(i - 1, i + 2)
        for row in range(j - 1, j + 2)
        if geometry.core(column, row).contains(x, y)
    ]
    assert holders == [(i, j)]


@given(GEOMETRIES, COORDINATES, COORDINATES, st.integers(1, 3_000), st.integers(1, 3_000))
def test_covering_tiles_hold_the_box_and_no_tile_is_spare(
    geometry: TileGeometry, x: int, y: int, width: int, height: int
) -> None:
    box = Box(x, y, x + width, y + height)
    tiles = geometry.covering(box)
    first, last = geometry.core(tiles.x0, tiles.y0), geometry.core(tiles.x1 - 1, tiles.y1 - 1)
    assert first.x0 <= box.x0 < first.x1
    assert first.y0 <= box.y0 < first.y1
    assert last.x0 < box.x1 <= last.x1
    assert last.y0 < box.y1 <= last.y1


@given(st.integers(1, 5_000), st.integers(1, 5_000), st.sampled_from([256, 512, 1024, 4096]))
def test_field_cores_cover_the_slide_once(width_px: int, height_px: int, field_px: int) -> None:
    grid = grid_of(width_px, height_px)
    covered = sum(field.core.clipped(grid.box).area for field in grid.fields(field_px=field_px, halo_px=100))
    assert covered == width_px * height_px


def test_a_tile_without_a_core_is_refused() -> None:
    with pytest.raises(ValueError, match="tile_px=64, margin_px=32"):
        TileGeometry(tile_px=64, margin_px=32)


def test_boxes_that_do_not_meet_share_no_area() -> None:
    assert Box(0, 0, 10, 10).clipped(Box(20, 20, 30, 30)).area == 0


def test_scale_is_continuous_and_axes_are_separate() -> None:
    grid = SlideGrid.of_slide(width_level0_px=1_000, height_level0_px=1_000, mpp_x=0.2631, mpp_y=0.243, target_mpp=0.5)
    assert (grid.width_px, grid.height_px) == (527, 486)


def test_masks_need_64_bits_only_past_the_range_of_uint32() -> None:
    assert not grid_of(65_535, 65_535).needs_64_bit_masks
    assert grid_of(65_536, 65_536).needs_64_bit_masks
