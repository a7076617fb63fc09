"""Outlines: one valid, compact polygon a cell, close to its mask, whatever the mask, the scale and the window."""

import numpy as np
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cellmill.instances.outlines import Outlines, trace_outlines
from cellmill.instances.testing import crowded_nuclei
from cellmill_schemas.cells import BBOX_TYPE, GEOMETRY_TYPE


def _one_piece(labels: np.ndarray) -> np.ndarray:
    """Labels whose masks are one 4-connected piece without holes, numbered 1..n."""
    out, number = np.zeros_like(labels), 0
    for label, place in enumerate(ndimage.find_objects(labels), 1):
        if place is None:
            continue
        parts, _ = ndimage.label((labels[place] == label) & (out[place] == 0))
        if not parts.any():
            continue
        number += 1
        mask = ndimage.binary_fill_holes(parts == np.bincount(parts[parts > 0]).argmax())
        out[place][mask] = number
    return out


def _outlines(labels: np.ndarray, *, origin_px: tuple[int, int], scale: tuple[float, float]) -> Outlines:
    places = ndimage.find_objects(labels)
    boxes = np.array([[p[0].start, p[1].start, p[0].stop - 1, p[1].stop - 1] for p in places], np.int64).reshape(-1, 4)
    return trace_outlines(
        labels,
        numbers=np.arange(1, len(places) + 1),
        boxes=boxes,
        num_pixels=np.bincount(labels.ravel(), minlength=1)[1:].astype(np.int64),
        origin_px=origin_px,
        scale=scale,
    )


def _polygons(outlines: Outlines) -> np.ndarray:
    rings = np.repeat(np.arange(len(outlines)), np.diff(outlines.starts))
    return shapely.polygons(shapely.linearrings(outlines.vertices_level0_px, indices=rings))


def _iou(
    polygon: shapely.Polygon, mask: np.ndarray, *, origin_px: tuple[int, int], scale: tuple[float, float]
) -> float:
    """IoU of a polygon and a mask, on a grid of 6 x 6 points a pixel."""
    ys, xs = (np.mgrid[: 6 * mask.shape[0], : 6 * mask.shape[1]] + 0.5) / 6
    inside = shapely.contains_xy(polygon, (xs + origin_px[0]) * scale[0], (ys + origin_px[1]) * scale[1])
    fine = np.kron(mask, np.ones((6, 6))) > 0
    return float((inside & fine).sum() / (inside | fine).sum())


@pytest.fixture(scope="module")
def nuclei() -> np.ndarray:
    return _one_piece(crowded_nuclei(300, 300, num_nuclei=60, seed=8))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0), (2.06, 1.9)])
def test_outlines_of_nuclei_are_close_and_compact(nuclei: np.ndarray, scale: tuple[float, float]) -> None:
    origin = (1000, 500)
    outlines = _outlines(nuclei, origin_px=origin, scale=scale)
    polygons = _polygons(outlines)
    assert shapely.is_valid(polygons).all()
    assert len(outlines.vertices_level0_px) / len(outlines) <= 12
    padded = np.pad(nuclei, 3)
    ious = []
    for number, place in enumerate(ndimage.find_objects(padded), 1):
        frame = tuple(slice(p.start - 3, p.stop + 3) for p in place)
        corner = (origin[0] + frame[1].start - 3, origin[1] + frame[0].start - 3)
        ious.append(_iou(polygons[number - 1], padded[frame] == number, origin_px=corner, scale=scale))
    assert np.mean(ious) >= 0.93
    assert min(ious) >= 0.87
    areas = np.bincount(nuclei.ravel())[1:] * scale[0] * scale[1]
    assert abs(shapely.area(polygons).sum() / areas.sum() - 1) < 0.01


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sigma=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    scale=st.sampled_from([(1.0, 1.0), (2.0, 2.0), (1.03, 0.97), (0.31, 0.4), (8.0, 8.0)]),
    origin=st.tuples(st.integers(-300, 200_000), st.integers(-300, 200_000)),
)
def test_any_mask_gives_a_valid_polygon_of_positive_area(
    seed: int, sigma: float, scale: tuple[float, float], origin: tuple[int, int]
) -> None:
    noise = np.random.default_rng(seed).standard_normal((40, 40))
    labels = _one_piece(
        ndimage.label((ndimage.gaussian_filter(noise, sigma) if sigma else noise) > 0)[0].astype(np.int32)
    )
    outlines = _outlines(labels, origin_px=origin, scale=scale)
    polygons = _polygons(outlines)
    assert shapely.is_valid(polygons).all()
    assert (shapely.area(polygons) > 0).all()
    assert (outlines.vertices_level0_px == np.rint(outlines.vertices_level0_px)).all()
    np.testing.assert_array_equal(
        outlines.vertices_level0_px[outlines.starts[:-1]], outlines.vertices_level0_px[outlines.starts[1:] - 1]
    )


@settings(max_examples=30, deadline=None)
@given(top=st.integers(0, 60), left=st.integers(0, 60), scale=st.sampled_from([1.0, 2.0, 2.0576]))
def test_outlines_do_not_depend_on_the_window(nuclei: np.ndarray, top: int, left: int, scale: float) -> None:
    here = _outlines(nuclei, origin_px=(7000, 9000), scale=(scale, scale))
    moved = np.pad(nuclei, ((top, 0), (left, 0)))
    there = _outlines(moved, origin_px=(7000 - left, 9000 - top), scale=(scale, scale))
    np.testing.assert_array_equal(here.vertices_level0_px, there.vertices_level0_px)
    np.testing.assert_array_equal(here.starts, there.starts)
    np.testing.assert_array_equal(here.perimeter_px, there.perimeter_px)


def test_a_single_pixel_has_an_outline() -> None:
    labels = np.zeros((3, 3), np.int32)
    labels[1, 1] = 1
    for scale in (1.0, 0.2, 4.0):
        polygon = _polygons(_outlines(labels, origin_px=(0, 0), scale=(scale, scale)))[0]
        assert polygon.is_valid
        assert polygon.area > 0


@pytest.mark.parametrize("radius", [5, 9, 20])
def test_perimeter_of_a_disc_is_that_of_a_circle(radius: int) -> None:
    ys, xs = np.mgrid[-25:26, -25:26]
    disc = (np.hypot(ys, xs) <= radius).astype(np.int32)
    perimeter = _outlines(disc, origin_px=(0, 0), scale=(1, 1)).perimeter_px[0]
    assert perimeter == pytest.approx(2 * np.sqrt(np.pi * disc.sum()), rel=0.065)


def test_arrow_forms_are_those_of_the_schema(nuclei: np.ndarray) -> None:
    outlines = _outlines(nuclei, origin_px=(0, 0), scale=(2, 2))
    geometry, bbox = outlines.to_geometry(), outlines.to_bbox()
    assert geometry.type == GEOMETRY_TYPE
    assert bbox.type == BBOX_TYPE
    geometry.validate(full=True)
    bounds = shapely.bounds(_polygons(outlines))
    for index, name in enumerate(("xmin", "ymin", "xmax", "ymax")):
        np.testing.assert_array_equal(bbox.field(name).to_numpy(), bounds[:, index])
    empty = _outlines(np.zeros((5, 5), np.int32), origin_px=(0, 0), scale=(1, 1))
    assert len(empty.to_geometry()) == len(empty.to_bbox()) == 0
    assert isinstance(empty.to_geometry(), pa.ListArray)


def test_bounding_boxes_beyond_float32_still_cover() -> None:
    labels = np.ones((3, 3), np.int32)
    outlines = _outlines(labels, origin_px=(2**25 + 1, 2**26 + 5), scale=(1, 1))
    (left, top, right, bottom), box = shapely.bounds(_polygons(outlines))[0], outlines.to_bbox()[0].as_py()
    assert box["xmin"] <= left
    assert box["ymin"] <= top
    assert box["xmax"] >= right
    assert box["ymax"] >= bottom
