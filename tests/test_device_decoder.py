"""The decode on a device gives what the decode on the CPU gives: every label, anchor and flag."""

import numpy as np
import pytest
import torch

from cellmill.instances.decoder import Instances
from cellmill.instances.device_decoder import DeviceFlowDecoder
from cellmill.instances.flow_decoder import FlowDecoder, FlowDecoderConfig
from cellmill.instances.maps import FLOW_SCALE, DenseMaps
from cellmill.instances.mask_limits import MaskLimits
from cellmill.instances.testing import MapNoise, crowded_nuclei, draw_maps

CONFIG = FlowDecoderConfig(mpp=0.5)


def _both(maps: DenseMaps, config: FlowDecoderConfig = CONFIG) -> tuple[Instances, Instances]:
    flow, background = torch.from_numpy(maps.flow), torch.from_numpy(maps.prob[0])
    ours = DeviceFlowDecoder(config).decode(flow, background, origin_px=maps.origin_px)
    return ours, FlowDecoder(config).decode(maps)


def _assert_equal(ours: Instances, theirs: Instances) -> None:
    assert np.array_equal(ours.labels, theirs.labels)
    assert np.array_equal(ours.anchors_px, theirs.anchors_px)
    assert np.array_equal(ours.exceeds_reach, theirs.exceeds_reach)
    assert ours.labels.dtype == theirs.labels.dtype
    assert ours.origin_px == theirs.origin_px


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("reach_px", [48, 6])
def test_noisy_fields_of_crowded_nuclei_decode_alike(seed: int, reach_px: int) -> None:
    maps = draw_maps(crowded_nuclei(384, 320, num_nuclei=90, seed=seed), seed=seed, num_classes=3, noise=MapNoise())
    config = FlowDecoderConfig(mpp=0.5, max_reach_px=reach_px)
    ours, theirs = _both(maps, config)
    _assert_equal(ours, theirs)
    assert len(ours) > 40
    if reach_px == 6:
        assert ours.exceeds_reach.any()


@pytest.mark.parametrize("num_steps", [1, 11, 12, 13, 24, 200])
def test_maps_without_sense_decode_alike(num_steps: int) -> None:
    """Smooth random flows: paths that wander, meet, go round and end at the rim; large parts, many ties."""
    random = np.random.default_rng(num_steps)
    coarse = random.normal(size=(3, 20, 16))
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], (160, 128), mode="bicubic")[0].numpy()
    flow = np.clip(smooth[:2] * FLOW_SCALE, -32767, 32767).astype(np.int16)
    background = np.clip(128 + 60 * smooth[2] + random.normal(size=(160, 128)) * 20, 0, 255).astype(np.uint8)
    maps = DenseMaps(flow=flow, prob=np.stack([background, 255 - background]), origin_px=(-7, 1000))
    config = FlowDecoderConfig(mpp=0.5, num_steps=num_steps, limits=MaskLimits(flow_error_max=10.0), min_area_um2=0.3)
    ours, theirs = _both(maps, config)
    _assert_equal(ours, theirs)
    if num_steps > 1:
        assert len(ours) > 5


def test_paths_that_go_round_end_where_their_last_step_ends() -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    length = np.maximum(np.hypot(y, x), 1e-6)
    inwards = (14 - length) / 20
    flow = np.stack([x / length + inwards * y / length, -y / length + inwards * x / length])
    prob = np.zeros((2, 64, 64), np.uint8)
    prob[0] = np.where(length < 20, 0, 255)
    maps = DenseMaps(flow=(flow * FLOW_SCALE).astype(np.int16), prob=prob, origin_px=(0, 0))
    for num_steps in (197, 198, 199, 200):
        _assert_equal(
            *_both(maps, FlowDecoderConfig(mpp=0.5, num_steps=num_steps, limits=MaskLimits(flow_error_max=10.0)))
        )


def test_class_sums_are_those_of_the_final_cells() -> None:
    """Holes filled, dropped masks left out; against a loop over cells."""
    maps = draw_maps(crowded_nuclei(300, 260, num_nuclei=60, seed=5), seed=5, num_classes=3, noise=MapNoise())
    flow, prob = torch.from_numpy(maps.flow), torch.from_numpy(maps.prob)
    instances, classes = DeviceFlowDecoder(CONFIG).decode_and_sum(flow, prob, origin_px=maps.origin_px)
    _assert_equal(instances, FlowDecoder(CONFIG).decode(maps))
    expected = [maps.prob[:, instances.labels == k + 1].sum(axis=1, dtype=np.int64) for k in range(len(instances))]
    assert np.array_equal(classes.sums, np.stack(expected))
    assert classes.box == maps.box
    assert len(instances) > 30


def test_masks_that_are_not_sure_enough_are_dropped_alike() -> None:
    maps = draw_maps(crowded_nuclei(300, 260, num_nuclei=60, seed=6), seed=6, num_classes=3, noise=MapNoise())
    all_cells = FlowDecoder(CONFIG).decode(maps)
    sizes = np.bincount(all_cells.labels.ravel())
    mean = np.bincount(all_cells.labels.ravel(), weights=255.0 - maps.prob[0].ravel())[1:] / sizes[1:] / 255
    middle = MaskLimits(detection_prob_min=float(np.median(mean)))
    ours, theirs = _both(maps, FlowDecoderConfig(mpp=0.5, limits=middle))
    _assert_equal(ours, theirs)
    assert 0.3 * len(all_cells) < len(ours) < 0.7 * len(all_cells)


@pytest.mark.parametrize("value", [0, 255], ids=["all foreground", "no foreground"])
def test_flat_maps_decode_alike(value: int) -> None:
    maps = DenseMaps(np.zeros((2, 40, 30), np.int16), np.full((2, 40, 30), value, np.uint8), origin_px=(0, 0))
    _assert_equal(*_both(maps))
    _, classes = DeviceFlowDecoder(CONFIG).decode_and_sum(
        torch.from_numpy(maps.flow), torch.from_numpy(maps.prob), origin_px=(0, 0)
    )
    assert classes.sums.shape[1] == 2


def test_views_of_larger_maps_decode_alike() -> None:
    maps = draw_maps(crowded_nuclei(256, 256, num_nuclei=60, seed=4), seed=4, num_classes=3, noise=MapNoise())
    box = maps.box.clipped(type(maps.box)(30, 40, 200, 230))
    _assert_equal(*_both(maps.window(box)))
