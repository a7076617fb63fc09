"""The hv decoder: right on clean maps, HoVer-Net's on noisy ones, and the same in every window."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from window_contract import Scene, assert_window_agrees, make_scene, mask_ids

from cellmill.grid import Box
from cellmill.instances.decoder import Decoder
from cellmill.instances.hv_decoder import HvDecoder, HvDecoderConfig
from cellmill.instances.hv_energy_kernels import SLOPE_ONE, draw_energy, fill_marker_holes, open_markers, sobel_weights
from cellmill.instances.maps import HV_SCALE, HvMaps, quantise_hv, quantise_prob
from cellmill.instances.targets import masks_to_hv
from cellmill.instances.testing import MapNoise, crowded_nuclei, draw_hv_maps, matched_fraction


def _decoder(**changes: float) -> HvDecoder:
    return HvDecoder(HvDecoderConfig(mpp=0.5, **{"min_area_um2": 2.5, **changes}))  # type: ignore[arg-type]


def _padded(maps: HvMaps, by: int) -> HvMaps:
    """Maps with background around, as beyond the rim of a slide."""
    sides = ((0, 0), (by, by), (by, by))
    prob = np.pad(maps.prob, sides)
    prob[0] = np.pad(maps.prob[0], by, constant_values=255)
    x, y = maps.origin_px
    return HvMaps(np.pad(maps.hv, sides), prob, (x - by, y - by))


def _field(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.standard_normal((size, size)), sigma)
    return values / values.std()


def _wild_maps(size: int, seed: int) -> HvMaps:
    """Nothing like nuclei: smooth random distances, and foreground in parts of any width with holes."""
    rng = np.random.default_rng(seed)
    hv = np.stack([_field(rng, size, 4) + 0.3 * _field(rng, size, 1) for _ in range(2)])
    foreground = 1 / (1 + np.exp(-(_field(rng, size, 6) + 0.7 * _field(rng, size, 1) + 0.8) * 3))
    prob = np.stack([1 - foreground, 0.6 * foreground, 0.4 * foreground])
    return HvMaps(quantise_hv(hv), quantise_prob(prob), (0, 0))


def _crowd_maps(size: int, seed: int) -> HvMaps:
    """Nuclei so close that the foreground is a few parts as wide as the slide."""
    labels = crowded_nuclei(size, size, num_nuclei=size * size // 150, seed=seed)
    return draw_hv_maps(labels, num_classes=2, seed=seed + 1, noise=MapNoise())


def _scene(size: int, maps: HvMaps, decoder: HvDecoder, *, padded: bool = True) -> Scene:
    maps = _padded(maps, decoder.halo_px + 40) if padded else maps
    return make_scene(size, maps, decoder)


SCENES = ["nuclei", "crowd", "wild", "wild, short reach", "windows end with the slide"]


@pytest.fixture(scope="module", params=SCENES)
def scene(request: pytest.FixtureRequest) -> Scene:
    size = 300
    if request.param == "nuclei":
        labels = crowded_nuclei(size, size, num_nuclei=120, seed=5)
        return _scene(size, draw_hv_maps(labels, num_classes=3, seed=6, noise=MapNoise()), _decoder(max_reach_px=16))
    if request.param == "crowd":
        return _scene(size, _crowd_maps(size, 15), _decoder(max_reach_px=16))
    if request.param == "windows end with the slide":
        return _scene(size, _wild_maps(size, 8), _decoder(max_reach_px=12), padded=False)
    wild = _decoder(max_reach_px=8 if request.param == "wild, short reach" else 14, max_area_um2=1e6)
    return _scene(size, _wild_maps(size, 7), wild)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cells_do_not_depend_on_the_window(scene: Scene, data: st.DataObject) -> None:
    assert_window_agrees(scene, data)


@pytest.mark.parametrize("field_px", [74, 100, 256])
def test_a_slide_cut_into_fields_is_the_slide(scene: Scene, field_px: int) -> None:
    whole = np.zeros((scene.size, scene.size), np.int64)
    anchors: list[list[int]] = []
    for y0 in range(0, scene.size, field_px):
        for x0 in range(0, scene.size, field_px):
            core = Box(x0, y0, min(x0 + field_px, scene.size), min(y0 + field_px, scene.size))
            window = core.grown(scene.decoder.halo_px).clipped(scene.maps.box)
            part = scene.decoder.decode(scene.maps.window(window))
            whole[y0 : core.y1, x0 : core.x1] = mask_ids(part, core, scene.size)
            anchors += part.anchors_px[part.owned_by(core)].tolist()
    slide = Box(0, 0, scene.size, scene.size)
    np.testing.assert_array_equal(whole, mask_ids(scene.whole, slide, scene.size))
    assert sorted(anchors) == sorted(scene.whole.anchors_px[scene.whole.owned_by(slide)].tolist())


def test_scenes_have_what_they_are_for(scene: Scene, request: pytest.FixtureRequest) -> None:
    assert len(scene.whole) > 40
    name = request.node.callspec.params["scene"]
    foreground = np.zeros_like(scene.whole.labels)
    foreground[scene.maps.prob[0] < 128] = 1
    parts = ndimage.find_objects(ndimage.label(foreground)[0])
    widest = max(max(part[0].stop - part[0].start, part[1].stop - part[1].start) for part in parts)
    assert widest > scene.decoder.widest_part_px
    if name != "nuclei":
        assert widest > 200
        assert scene.whole.exceeds_reach.any()
    if name in ("nuclei", "crowd"):
        assert scene.whole.exceeds_reach.mean() < 0.5


def test_each_cell_is_one_piece_without_holes_and_holds_its_anchor(scene: Scene) -> None:
    instances = scene.whole
    x0, y0 = instances.origin_px
    for number, place in enumerate(ndimage.find_objects(instances.labels)):
        mask = np.pad(instances.labels[place] == number + 1, 1)
        assert ndimage.label(mask)[1] == 1
        assert ndimage.label(~mask)[1] == 1
        x, y = instances.anchors_px[number]
        assert instances.labels[y - y0, x - x0] == number + 1
        ys, xs = np.nonzero(mask)
        reach = max(abs(ys + place[0].start - 1 + y0 - y).max(), abs(xs + place[1].start - 1 + x0 - x).max())
        assert reach <= scene.decoder.reach_px


def test_the_anchor_is_the_pixel_of_highest_energy_first_by_y_and_x(scene: Scene) -> None:
    energy, foreground, _ = _energy(scene.maps)
    x0, y0 = scene.maps.origin_px
    for number, (x, y) in enumerate(scene.whole.anchors_px):
        values = np.where((scene.whole.labels == number + 1) & (foreground > 0), energy, 0)
        assert np.unravel_index(values.argmax(), values.shape) == (y - y0, x - x0)


def test_clean_maps_give_every_nucleus_back() -> None:
    labels = crowded_nuclei(512, 512, num_nuclei=140, seed=11)
    instances = _decoder().decode(draw_hv_maps(labels, num_classes=2, seed=0))
    assert len(instances) == len(np.unique(labels)) - 1
    assert matched_fraction(instances.labels, labels, iou_min=0.9) > 0.99
    assert not instances.exceeds_reach.any()


def _energy(maps: HvMaps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    config = HvDecoderConfig(mpp=0.5)
    return draw_energy(
        np.ascontiguousarray(maps.hv),
        np.ascontiguousarray(maps.prob[0]),
        128,
        *sobel_weights(config.sobel_px),
        round(SLOPE_ONE * config.lowest_slope),
        round(SLOPE_ONE * config.marker_slope),
    )


def test_energy_is_the_slope_of_a_sobel_filter() -> None:
    maps = draw_hv_maps(crowded_nuclei(200, 230, num_nuclei=40, seed=3), num_classes=1, seed=4, noise=MapNoise())
    hv = maps.hv.astype(np.float64) / HV_SCALE
    one = cv2.Sobel(np.tile(np.arange(99.0), (99, 1)), cv2.CV_64F, 1, 0, ksize=21)[49, 49]  # of a slope of 1
    slopes = [cv2.Sobel(hv[0], cv2.CV_64F, 1, 0, ksize=21) / one, cv2.Sobel(hv[1], cv2.CV_64F, 0, 1, ksize=21) / one]
    inside = maps.prob[0] < 128
    levels = np.where(inside, np.maximum(np.minimum(*slopes) + 0.3, 0), 0)
    expected = cv2.GaussianBlur(levels, (3, 3), 0, borderType=cv2.BORDER_CONSTANT)
    energy, foreground, _ = _energy(maps)
    np.testing.assert_array_equal(foreground, inside)
    np.testing.assert_allclose(energy[inside] / 512, expected[inside], atol=0.005)


def test_markers_are_opened_as_opencv_does() -> None:
    rng = np.random.default_rng(0)
    raw = (ndimage.gaussian_filter(rng.standard_normal((90, 117)), 2) > 0).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = open_markers(np.pad(raw, 2, constant_values=1), np.ones_like(raw))
    np.testing.assert_array_equal(opened, cv2.morphologyEx(raw, cv2.MORPH_OPEN, disc))


def test_holes_of_markers_are_filled_where_they_are_small() -> None:
    rng = np.random.default_rng(1)
    raw = (ndimage.gaussian_filter(rng.standard_normal((150, 160)), 1.5) > -0.25).astype(np.uint8)
    found, num_parts = ndimage.label(raw == 0)
    expected = raw.copy()
    for number, place in enumerate(ndimage.find_objects(found)):
        sides = [(s.start, s.stop, length) for s, length in zip(place, raw.shape, strict=True)]
        if all(start > 0 and stop < length and stop - start <= 7 for start, stop, length in sides):
            expected[found == number + 1] = 1
    assert 10 < ndimage.label(expected == 0)[1] < num_parts - 10
    filled = np.pad(raw, 2, constant_values=1)
    fill_marker_holes(filled, 7)
    np.testing.assert_array_equal(filled[2:-2, 2:-2], expected)


@pytest.mark.parametrize("seed", [1, 2])
def test_cells_are_those_of_a_watershed_of_the_whole_image(seed: int) -> None:
    segmentation = pytest.importorskip("skimage.segmentation")
    size = 640
    labels = crowded_nuclei(size, size, num_nuclei=400, seed=seed)
    maps = _padded(draw_hv_maps(labels, num_classes=2, seed=seed + 100, noise=MapNoise()), 60)
    energy, foreground, raw = _energy(maps)
    fill_marker_holes(raw, 12)
    markers, num_markers = ndimage.label(open_markers(raw, foreground))
    sizes = ndimage.sum_labels(np.ones_like(markers), markers, np.arange(num_markers + 1))
    markers[sizes[markers] < 10] = 0
    expected = segmentation.watershed(-energy.astype(np.int32), markers=markers, mask=foreground > 0)
    found = _decoder()
    assert matched_fraction(found.decode(maps).labels, expected, iou_min=0.95) >= 0.995


def test_a_cell_ends_at_its_reach_and_is_flagged() -> None:
    # a bar of 100 x 12 px whose distances rise evenly over its left half alone: one marker, far from the right end
    hv, foreground = np.zeros((2, 60, 140), np.float32), np.zeros((60, 140), np.float32)
    foreground[24:36, 20:120] = 1
    hv[1, 24:36, 20:120] = np.linspace(-1, 1, 12)[:, None]
    hv[0, 24:36, 20:50] = np.linspace(-1, 1, 30)
    maps = HvMaps(quantise_hv(hv), quantise_prob(np.stack([1 - foreground, foreground])), (0, 0))
    near, far = _decoder(max_reach_px=40).decode(maps), _decoder(max_reach_px=100).decode(maps)
    assert near.exceeds_reach.tolist() == [True]
    assert far.exceeds_reach.tolist() == [False]
    assert far.labels[30, 118] == 1
    assert not near.labels[:, 100:].any()


def test_areas_out_of_bounds_are_dropped() -> None:
    maps = draw_hv_maps(crowded_nuclei(300, 300, num_nuclei=50, seed=4), num_classes=1, seed=0)
    all_areas = np.bincount(_decoder().decode(maps).labels.ravel())[1:]
    low, high = np.percentile(all_areas, [25, 75])
    kept = _decoder(min_area_um2=low * 0.25, max_area_um2=high * 0.25).decode(maps)
    areas = np.bincount(kept.labels.ravel())[1:]
    assert areas.min() >= low
    assert areas.max() <= high
    assert len(kept) == ((all_areas >= low) & (all_areas <= high)).sum()


@pytest.mark.parametrize("foreground", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(40, 50), (1, 30), (30, 1), (0, 7)])
def test_flat_maps_decode(foreground: float, shape: tuple[int, int]) -> None:
    prob = np.stack([np.full(shape, 1 - foreground), np.full(shape, foreground)])
    decoder: Decoder[HvMaps] = _decoder()
    assert len(decoder.decode(HvMaps(np.zeros((2, *shape), np.int16), quantise_prob(prob), (-5, 9)))) == 0


def test_distances_go_from_minus_one_to_one_across_each_mask() -> None:
    labels = crowded_nuclei(200, 220, num_nuclei=40, seed=3)
    hv = masks_to_hv(labels)
    assert not hv[:, labels == 0].any()
    for number in np.unique(labels)[1:]:
        ys, xs = np.nonzero(labels == number)
        for axis, at in ((0, xs), (1, ys)):
            values, center = hv[axis][ys, xs], np.floor(at.mean() + 0.5)
            assert (np.sign(values) == np.sign(at - center)).all()
            assert values[at == at.min()].max() == -1
            assert values[at == at.max()].min() == 1
            # even steps on either side
            np.testing.assert_allclose(values[at > center], (at[at > center] - center) / (at.max() - center), rtol=1e-6)
            np.testing.assert_allclose(values[at < center], (at[at < center] - center) / (center - at.min()), rtol=1e-6)


def test_distances_of_a_mask_depend_on_that_mask_alone() -> None:
    labels = crowded_nuclei(200, 220, num_nuclei=40, seed=3)
    together = masks_to_hv(labels)
    for number in np.unique(labels)[1::7]:
        alone = masks_to_hv((labels == number).astype(np.int32) * 7)
        np.testing.assert_array_equal(together[:, labels == number], alone[:, labels == number])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="mpp must be positive, got 0"):
        HvDecoderConfig(mpp=0)
    with pytest.raises(ValueError, match="sobel_px must be odd, 3 to 21, got 20"):
        HvDecoderConfig(mpp=0.5, sobel_px=20)
    with pytest.raises(ValueError, match="lowest_slope must be less than marker_slope"):
        HvDecoderConfig(mpp=0.5, lowest_slope=0.1)
    with pytest.raises(ValueError, match="min_area_um2 <= max_area_um2"):
        HvDecoderConfig(mpp=0.5, min_area_um2=10, max_area_um2=5)
