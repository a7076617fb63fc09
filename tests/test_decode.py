"""The flows decoder: right on clean maps, Cellpose's on noisy ones, and the same in every window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from window_contract import Scene, assert_window_agrees, make_scene

from cellmill.instances.decoder import Decoder
from cellmill.instances.flow_decoder import FlowDecoder, FlowDecoderConfig
from cellmill.instances.maps import DenseMaps, quantise_flow, quantise_prob
from cellmill.instances.mask_limits import MaskLimits
from cellmill.instances.testing import MapNoise, crowded_nuclei, draw_maps, matched_fraction


def _decoder(**changes: float) -> FlowDecoder:
    limits = {name: changes.pop(name) for name in ("flow_error_max", "detection_prob_min") if name in changes}
    changes = {"min_area_um2": 3.75, **changes}  # 15 px, as Cellpose
    return FlowDecoder(FlowDecoderConfig(mpp=0.5, limits=MaskLimits(**limits), **changes))


def _padded(maps: DenseMaps, by: int) -> DenseMaps:
    """Maps with background around, as beyond the rim of a slide."""
    sides = ((0, 0), (by, by), (by, by))
    prob = np.pad(maps.prob, sides)
    prob[0] = np.pad(maps.prob[0], by, constant_values=255)
    x, y = maps.origin_px
    return DenseMaps(np.pad(maps.flow, sides), prob, (x - by, y - by))


def _wild_maps(size: int, seed: int) -> DenseMaps:
    """Nothing like nuclei: smooth random flows of any length, with long paths, rounds, holes and nested cells."""
    rng = np.random.default_rng(seed)

    def field(sigma: float) -> np.ndarray:
        values = ndimage.gaussian_filter(rng.standard_normal((size, size)), sigma)
        return values / values.std()

    flow = np.stack([field(4) + 0.3 * field(1), field(4) + 0.3 * field(1)])
    foreground = 1 / (1 + np.exp(-(field(6) + 0.7 * field(1) + 0.8) * 3))
    prob = np.stack([1 - foreground, 0.6 * foreground, 0.4 * foreground])
    return DenseMaps(quantise_flow(flow), quantise_prob(prob), (0, 0))


def _scene(size: int, maps: DenseMaps, decoder: FlowDecoder, *, padded: bool = True) -> Scene:
    maps = _padded(maps, decoder.halo_px + 40) if padded else maps
    return make_scene(size, maps, decoder)


@pytest.fixture(scope="module", params=["nuclei", "wild", "wild, all cells stand", "windows end with the slide"])
def scene(request: pytest.FixtureRequest) -> Scene:
    size = 260
    if request.param == "windows end with the slide":
        return _scene(size, _wild_maps(size, 8), _decoder(max_reach_px=12, flow_error_max=1e6), padded=False)
    if request.param == "nuclei":
        labels = crowded_nuclei(size, size, num_nuclei=90, seed=5)
        return _scene(size, draw_maps(labels, num_classes=3, seed=6, noise=MapNoise()), _decoder(max_reach_px=16))
    flow_error_max = 1.2 if request.param == "wild" else 1e6
    return _scene(size, _wild_maps(size, 7), _decoder(max_reach_px=12, flow_error_max=flow_error_max))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cells_do_not_depend_on_the_window(scene: Scene, data: st.DataObject) -> None:
    assert_window_agrees(scene, data)


def test_scenes_have_what_they_are_for(scene: Scene) -> None:
    assert len(scene.whole) > 20
    if scene.decoder.config.limits.flow_error_max > 1:  # the wild ones
        assert scene.whole.exceeds_reach.any()


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


def test_clean_maps_give_every_nucleus_back() -> None:
    labels = crowded_nuclei(512, 512, num_nuclei=140, seed=11)
    instances = _decoder().decode(draw_maps(labels, num_classes=2, seed=0))
    assert len(instances) == len(np.unique(labels)) - 1
    assert matched_fraction(instances.labels, labels, iou_min=0.95) > 0.99
    assert not instances.exceeds_reach.any()


# torch warns about a check that Cellpose leaves at its default
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("seed", [1, 2])
def test_cells_are_those_of_cellpose(seed: int) -> None:
    torch = pytest.importorskip("torch")
    dynamics = pytest.importorskip("cellpose.dynamics")
    size = 640
    labels = crowded_nuclei(size, size, num_nuclei=185, seed=seed)
    maps = draw_maps(labels, num_classes=2, seed=seed + 100, noise=MapNoise())
    # Cellpose reads the flow up to half a pixel off towards the rim of the image (grid_sample without align_corners on
    # coordinates scaled for it); in the middle of a frame three times as large at most a sixth.
    frame = _padded(maps, size)
    torch.set_num_threads(1)
    expected = dynamics.compute_masks(
        frame.flow.astype(np.float32) * 5 / 4096,
        np.where(frame.prob[0] < 127.5, 1, -1).astype(np.float32),
        niter=200,
        flow_threshold=0.4,
        min_size=15,
    ).astype(np.int32)
    found = _decoder().decode(frame).labels
    assert matched_fraction(found, expected, iou_min=0.95) >= 0.995


def test_a_path_cut_short_is_background_and_flags_its_neighbours() -> None:
    # a long nucleus, 100 x 12 px, whose flow leads 90 px to one end: only the near part converges within reach
    flow, foreground = np.zeros((2, 60, 140), np.float32), np.zeros((60, 140), np.float32)
    foreground[24:36, 20:120] = 1
    flow[1, 24:36, 20:120] = 1
    flow[1, 24:36, 110:] = 0
    flow[0, 24:36, 20:120] = np.sign(30 - np.arange(24, 36))[:, None]
    maps = DenseMaps(quantise_flow(flow), quantise_prob(np.stack([1 - foreground, foreground])), (0, 0))
    near = _decoder(max_reach_px=48, flow_error_max=10).decode(maps)
    far = _decoder(max_reach_px=100, flow_error_max=10).decode(maps)
    assert near.exceeds_reach.tolist() == [True]
    assert far.exceeds_reach.tolist() == [False]
    assert not near.labels[:, :50].any()
    assert far.labels[30, 21] == 1


def test_a_cell_inside_anothers_hole_goes() -> None:
    labels = np.zeros((80, 80), np.int32)
    ys, xs = np.mgrid[:80, :80]
    radius = np.hypot(ys - 40, xs - 40)
    foreground = (radius < 22).astype(np.float32)
    labels[radius < 8] = 1
    flow = np.zeros((2, 80, 80), np.float32)
    flow[0], flow[1] = (40 - ys) / 10, (40 - xs) / 10
    # the ring outside leads to its own point at the right, along the ring
    ring = radius >= 8
    flow[0][ring], flow[1][ring] = ((40 - ys) / (radius + 1e-6))[ring], ((55 - xs) / 15)[ring]
    maps = DenseMaps(quantise_flow(np.clip(flow, -1, 1)), quantise_prob(np.stack([1 - foreground, foreground])), (0, 0))
    instances = _decoder(flow_error_max=100.0).decode(maps)
    for number in range(1, len(instances) + 1):
        assert ndimage.label(np.pad(instances.labels != number, 1, constant_values=True))[1] == 1


def test_areas_out_of_bounds_are_dropped() -> None:
    labels = crowded_nuclei(300, 300, num_nuclei=50, seed=4)
    maps = draw_maps(labels, num_classes=1, seed=0)
    all_areas = np.bincount(_decoder().decode(maps).labels.ravel())[1:]
    low, high = np.percentile(all_areas, [25, 75])
    kept = _decoder(min_area_um2=low * 0.25, max_area_um2=high * 0.25).decode(maps)
    areas = np.bincount(kept.labels.ravel())[1:]
    assert areas.min() >= low
    assert areas.max() <= high
    assert len(kept) == ((all_areas >= low) & (all_areas <= high)).sum()


def test_masks_the_network_is_not_sure_of_are_dropped_and_no_others() -> None:
    labels = crowded_nuclei(300, 300, num_nuclei=50, seed=4)
    maps = draw_maps(labels, num_classes=1, seed=0, noise=MapNoise())
    paler = np.random.default_rng(1).uniform(0.55, 1.0, labels.max() + 1)
    foreground = (255 - maps.prob[0].astype(float)) * paler[labels]
    maps = DenseMaps(maps.flow, np.stack([255 - foreground, foreground]).round().astype(np.uint8), maps.origin_px)
    all_cells = _decoder().decode(maps).labels
    mean = np.bincount(all_cells.ravel(), weights=255.0 - maps.prob[0].ravel())[1:] / np.bincount(all_cells.ravel())[1:]
    kept = _decoder(detection_prob_min=0.75).decode(maps).labels
    sure = np.flatnonzero(mean > 0.76 * 255) + 1
    unsure = np.flatnonzero(mean < 0.74 * 255) + 1
    assert min(len(sure), len(unsure)) > 8
    np.testing.assert_array_equal((kept > 0)[np.isin(all_cells, sure)], True)
    np.testing.assert_array_equal((kept > 0)[np.isin(all_cells, unsure)], False)


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_flat_maps_decode(foreground: float) -> None:
    prob = np.stack([np.full((40, 50), 1 - foreground), np.full((40, 50), foreground)])
    decoder: Decoder = _decoder()
    assert len(decoder.decode(DenseMaps(np.zeros((2, 40, 50), np.int16), quantise_prob(prob), (-5, 9)))) == 0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="mpp must be positive, got 0"):
        FlowDecoderConfig(mpp=0)
    with pytest.raises(ValueError, match="min_area_um2 <= max_area_um2"):
        FlowDecoderConfig(mpp=0.5, min_area_um2=10, max_area_um2=5)
