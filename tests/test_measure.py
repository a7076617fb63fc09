"""Measures: right against independent computations, and bytes that do not depend on the window."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import ConvexHull

from cellmill.grid import Box, SlideGrid
from cellmill.instances.decoder import Instances
from cellmill.instances.flow_decoder import FlowDecoder, FlowDecoderConfig
from cellmill.instances.maps import DenseMaps
from cellmill.instances.measure import SlideKey, measure_cells, paint_core
from cellmill.instances.stain import stain_densities
from cellmill.instances.testing import MapNoise, crowded_nuclei, draw_maps
from cellmill_schemas.cells import CellKey, cell_schema, make_cell_id
from cellmill_schemas.ontology import get_ontology

SIZE = 220
GRID = SlideGrid(SIZE, SIZE, 2.0, 1.9, 0.5)
ONTOLOGY = get_ontology("monusac4")
SLIDE = SlideKey("slide one", 321)
DECODER = FlowDecoder(FlowDecoderConfig(mpp=0.5, max_reach_px=16))


class Window:
    """A window of the slide: maps, pixels and which of them were analysed."""

    def __init__(self, box: Box, maps: DenseMaps, pixels: np.ndarray, analysed: np.ndarray, whole: Box) -> None:
        rows, columns = slice(box.y0 - whole.y0, box.y1 - whole.y0), slice(box.x0 - whole.x0, box.x1 - whole.x0)
        self.maps = maps.window(box)
        self.pixels, self.analysed = pixels[rows, columns], analysed[rows, columns]
        self.instances: Instances = DECODER.decode(self.maps)

    def table(self, core: Box) -> pa.Table:
        return measure_cells(
            self.instances,
            self.maps,
            self.pixels,
            core=core,
            grid=GRID,
            ontology=ONTOLOGY,
            slide=SLIDE,
            analysed=self.analysed,
        )


def _window(box: Box) -> Window:
    pad = DECODER.halo_px + 30
    whole = GRID.box.grown(pad)
    labels = crowded_nuclei(SIZE, SIZE, num_nuclei=60, seed=21)
    # not analysed: everything beyond x = 150, and its maps are background as the cohort makes them
    labels[:, 150:] = 0
    inner = draw_maps(labels, num_classes=len(ONTOLOGY), seed=22, noise=MapNoise())
    prob = np.zeros((len(ONTOLOGY) + 1, SIZE + 2 * pad, SIZE + 2 * pad), np.uint8)
    prob[0] = 255
    prob[:, pad : pad + SIZE, pad : pad + 150] = inner.prob[:, :, :150]
    maps = DenseMaps(np.pad(inner.flow, ((0, 0), (pad, pad), (pad, pad))), prob, (-pad, -pad))
    rng = np.random.default_rng(23)
    pixels = rng.integers(40, 256, (SIZE + 2 * pad, SIZE + 2 * pad, 3)).astype(np.uint8)
    analysed = np.zeros(pixels.shape[:2], np.bool_)
    analysed[:, : pad + 150] = True
    return Window(box, maps, pixels, analysed, whole)


@pytest.fixture(scope="module")
def whole() -> Window:
    return _window(GRID.box.grown(DECODER.halo_px))


@pytest.fixture(scope="module")
def table(whole: Window) -> pl.DataFrame:
    frame = pl.from_arrow(whole.table(GRID.box).drop_columns(["geometry", "bbox"]))
    assert isinstance(frame, pl.DataFrame)
    assert len(frame) > 30
    return frame


def test_table_follows_the_schema(whole: Window) -> None:
    table = whole.table(GRID.box)
    assert table.schema.equals(cell_schema(ONTOLOGY))
    table.validate(full=True)
    for name in table.column_names:
        assert table[name].null_count == 0
    assert table["cell_type"].chunk(0).dictionary.to_pylist() == list(ONTOLOGY.names)
    assert table["slide_id"].chunk(0).dictionary.to_pylist() == ["slide one"]
    ids = table["cell_id"].to_pylist()
    assert ids == [make_cell_id(CellKey(321, mask_id - 1)) for mask_id in table["mask_id"].to_pylist()]


def test_rows_are_the_owned_cells_and_ids_are_those_of_the_mask(whole: Window, table: pl.DataFrame) -> None:
    mask = paint_core(whole.instances, GRID.box, GRID)
    assert mask.dtype == np.uint32
    ids, counts = np.unique(mask[mask > 0], return_counts=True)
    assert sorted(table["mask_id"]) == ids.tolist()
    areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    for mask_id, area_um2 in zip(table["mask_id"], table["area_um2"], strict=True):
        assert area_um2 == pytest.approx(areas[mask_id] * 0.25, abs=0.051)
        assert mask.ravel()[mask_id - 1] == mask_id  # a cell holds its anchor


def test_shape_measures_agree_with_independent_ones(whole: Window, table: pl.DataFrame) -> None:
    mask = paint_core(whole.instances, GRID.box, GRID)
    for row in table.iter_rows(named=True):
        ys, xs = np.nonzero(mask == row["mask_id"])
        assert row["x_um"] == pytest.approx((xs.mean() + 0.5) * 0.5, abs=0.006)
        assert row["y_um"] == pytest.approx((ys.mean() + 0.5) * 0.5, abs=0.006)
        assert row["x_level0_px"] == pytest.approx((xs.mean() + 0.5) * 2.0, abs=0.06)
        assert row["y_level0_px"] == pytest.approx((ys.mean() + 0.5) * 1.9, abs=0.06)
        corners = np.concatenate([np.stack([xs + dx, ys + dy], 1) for dx in (0, 1) for dy in (0, 1)])
        assert row["solidity"] == pytest.approx(len(xs) / ConvexHull(corners).volume, abs=0.006)
        covariance = np.cov(np.stack([xs, ys]), bias=True) + np.eye(2) / 12
        minor, major = np.sqrt(np.linalg.eigvalsh(covariance))
        assert row["major_axis_um"] == pytest.approx(4 * major * 0.5, abs=0.051)
        assert row["minor_axis_um"] == pytest.approx(4 * minor * 0.5, abs=0.051)
        assert row["eccentricity"] == pytest.approx(np.sqrt(1 - (minor / major) ** 2), abs=0.006)


def test_classes_are_the_vote_of_the_cells_pixels(whole: Window, table: pl.DataFrame) -> None:
    mask = paint_core(whole.instances, GRID.box, GRID)
    halo = DECODER.halo_px
    prob = whole.maps.prob[:, halo : halo + SIZE, halo : halo + SIZE] / 255
    for row in table.iter_rows(named=True):
        mean = prob[:, mask == row["mask_id"]].mean(axis=1)
        votes = mean[1:] / mean[1:].sum()
        np.testing.assert_allclose(row["type_prob"], votes, atol=6e-4)
        assert row["confidence"] == pytest.approx(votes.max(), abs=6e-4)
        assert row["cell_type"] == ONTOLOGY.names[votes.argmax()]
        assert row["detection_prob"] == pytest.approx(1 - mean[0], abs=6e-4)


def test_stains_unmix_to_what_was_mixed(whole: Window, table: pl.DataFrame) -> None:
    hematoxylin, eosin = np.array([0.650, 0.704, 0.286]), np.array([0.072, 0.990, 0.105])
    mixed = 0.7 * hematoxylin / np.linalg.norm(hematoxylin) + 0.2 * eosin / np.linalg.norm(eosin)
    np.testing.assert_allclose(stain_densities(mixed), [0.7, 0.2], atol=1e-12)
    mask = paint_core(whole.instances, GRID.box, GRID)
    halo = DECODER.halo_px
    pixels = whole.pixels[halo : halo + SIZE, halo : halo + SIZE]
    for row in table.iter_rows(named=True):
        density = -np.log10(pixels[mask == row["mask_id"]] / 255).mean(axis=0)
        expected = stain_densities(density)
        np.testing.assert_allclose([row["hematoxylin_od_mean"], row["eosin_od_mean"]], expected, atol=6e-4)


def test_cells_at_the_rim_of_the_slide_or_of_the_analysed_area_are_told(whole: Window, table: pl.DataFrame) -> None:
    mask = paint_core(whole.instances, GRID.box, GRID)
    outside = np.ones((SIZE + 2, SIZE + 2), np.bool_)
    outside[1:-1, 1:151] = False
    near = ndimage.binary_dilation(outside)[1:-1, 1:-1]
    expected = set(np.unique(mask[near]).tolist()) - {0}
    assert set(table.filter("touches_border")["mask_id"]) == expected
    assert 0 < len(expected) < len(table)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_do_not_depend_on_the_window(whole: Window, data: st.DataObject) -> None:
    x0, y0 = data.draw(st.integers(0, SIZE - 1)), data.draw(st.integers(0, SIZE - 1))
    core = Box(x0, y0, data.draw(st.integers(x0 + 1, SIZE)), data.draw(st.integers(y0 + 1, SIZE)))
    box = core.grown(DECODER.halo_px)
    box = Box(box.x0 - data.draw(st.integers(0, 30)), box.y0 - data.draw(st.integers(0, 30)), box.x1, box.y1)
    part = _window(box)
    assert part.table(core).equals(whole.table(core))
    np.testing.assert_array_equal(
        paint_core(part.instances, core, GRID),
        paint_core(whole.instances, GRID.box, GRID)[core.y0 : core.y1, core.x0 : core.x1],
    )


def test_a_core_without_cells_gives_an_empty_table(whole: Window) -> None:
    table = whole.table(Box(160, 0, 220, 220))
    assert len(table) == 0
    assert table.schema.equals(cell_schema(ONTOLOGY))


def test_large_slides_get_64_bit_masks(whole: Window) -> None:
    large = SlideGrid(100_000, 60_000, 2.0, 2.0, 0.5)
    mask = paint_core(whole.instances, GRID.box, large)
    assert mask.dtype == np.uint64
    x, y = whole.instances.anchors_px[5]
    assert mask[y, x] == 1 + y * 100_000 + x


def test_mismatched_windows_are_refused(whole: Window) -> None:
    with pytest.raises(ValueError, match="must be of one window"):
        measure_cells(
            whole.instances,
            whole.maps,
            whole.pixels[1:],
            core=GRID.box,
            grid=GRID,
            ontology=ONTOLOGY,
            slide=SLIDE,
        )
    with pytest.raises(ValueError, match="has 7 classes, so prob needs 8 channels"):
        measure_cells(
            whole.instances,
            whole.maps,
            whole.pixels,
            core=GRID.box,
            grid=GRID,
            ontology=get_ontology("refined7"),
            slide=SLIDE,
        )
