"""Training: losses by hand, crops that keep flows and image together, splits, resume, self-training's geometry."""

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from cellmill.grid import Box
from cellmill.instances.targets import masks_to_flows
from cellmill.models.config import builtin_config
from cellmill.models.networks import CellNetwork
from cellmill.synthetic.tissue import render_region
from cellmill_training.augment import AugmentConfig, geometric_crop, restained
from cellmill_training.local_sets import TrainingData
from cellmill_training.loop import LoopConfig, LossIsNotFiniteError
from cellmill_training.losses import CellLoss, Targets, allowed_planes, set_cross_entropy
from cellmill_training.mixture import MixtureConfig
from cellmill_training.negatives import glass_crop
from cellmill_training.run import RunPlace, fresh_state, run_training
from cellmill_training.samples import Labels, TissueSample, any_class, bits_of, everything, make_sample
from cellmill_training.self_training import averaged_maps
from cellmill_training.sources.monusac import split_touching
from cellmill_training.splits import split_groups, split_stratified
from cellmill_training.student_recipe import StudentRecipe


def test_set_cross_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    allowed = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]).T.reshape(1, 3, 1, 4).bool()
    expected = [-math.log(0.5), -math.log(0.5), 0.0, 0.0]
    torch.testing.assert_close(set_cross_entropy(logits, allowed).flatten(), torch.tensor(expected), atol=1e-5, rtol=0)


def test_bits_are_background_first_then_the_ontologys_order() -> None:
    bits = torch.tensor([[[1, bits_of(["neoplastic", "epithelial"])]]])
    planes = allowed_planes(bits, 8)[0, :, 0].T.tolist()
    assert planes[0] == [True] + [False] * 7
    assert [index for index, on in enumerate(planes[1]) if on] == [1, 5]
    assert everything() == any_class() | 1


def test_a_nucleus_of_unknown_type_does_not_push_the_type_head() -> None:
    outputs = torch.randn(1, 10, 4, 4, requires_grad=True)
    loss = CellLoss(torch.ones(7))
    parts = loss(
        outputs,
        Targets(
            allowed_bits=torch.full((1, 4, 4), any_class()),
            flow=torch.zeros(1, 2, 4, 4),
            flow_known=torch.zeros(1, 4, 4, dtype=torch.bool),
        ),
    )
    assert float(parts.terms["typing"].detach()) == 0.0
    assert float(parts.terms["flow"].detach()) == 0.0
    parts.total.backward()
    assert outputs.grad is not None
    gradient = outputs.grad[:, 3:]
    share = torch.softmax(outputs.detach()[:, 3:], dim=1)
    torch.testing.assert_close(gradient, share * gradient.sum(dim=1, keepdim=True))  # scales with belief: no type gains


def test_pixels_of_which_nothing_is_known_have_no_gradient() -> None:
    outputs = torch.randn(1, 10, 4, 4, requires_grad=True)
    unknown = torch.full((1, 4, 4), everything())
    flow_known = torch.zeros(1, 4, 4, dtype=torch.bool)
    targets = Targets(allowed_bits=unknown, flow=torch.zeros(1, 2, 4, 4), flow_known=flow_known)
    CellLoss(torch.ones(7))(outputs, targets).total.backward()
    assert outputs.grad is not None
    assert float(outputs.grad.abs().max()) < 1e-7


def _tissue(seed: int = 3, side: int = 128) -> TissueSample:
    region = render_region(seed, Box(600, 600, 600 + side, 600 + side))
    bits = np.concatenate([[1], np.left_shift(1, 1 + region.types.astype(np.int64))])
    labels = Labels(region.labels, bits[region.labels].astype(np.uint16), region.labels > 0)
    return make_sample(region.image, labels, mpp=0.5, name="t", source="synthetic", group="t", split="train")


def test_flows_turn_with_the_image() -> None:
    disc = np.zeros((96, 96), np.int32)
    cv2.ellipse(disc, (48, 48), (22, 11), 25.0, 0.0, 360.0, 1.0, -1)
    image = np.full((96, 96, 3), 200, np.uint8)
    labels = Labels(disc, np.where(disc > 0, any_class(), 1).astype(np.uint16), disc > 0)
    sample = make_sample(image, labels, mpp=0.5, name="d", source="s", group="g", split="train")
    config = AugmentConfig(crop_px=96)
    for seed in range(6):
        crop = geometric_crop(sample, center_xy=(48.0, 48.0), config=config, rng=np.random.default_rng(seed))
        expected = masks_to_flows(crop.instances)
        inner = cv2.erode((crop.instances > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        agreement = (expected * crop.flow).sum(axis=0)[inner & crop.flow_known]
        assert float(np.median(agreement)) > 0.97


def test_new_stains_keep_glass_bright_and_nuclei_dark() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        density = restained(np.zeros((4, 4, 3), np.float32), config=AugmentConfig(), rng=rng)
        assert float(np.abs(density).max()) < 1e-6
        density = restained(np.full((4, 4, 3), 0.8, np.float32), config=AugmentConfig(), rng=rng)
        assert float(density.mean()) > 0.15


def test_glass_has_background_only() -> None:
    crop = glass_crop(64, rng=np.random.default_rng(1))
    assert (crop.allowed == 1).all()
    assert not crop.flow_known.any()


def test_two_touching_discs_part_at_their_waist() -> None:
    merged = np.zeros((60, 90), np.int32)
    for x in (30, 56):
        cv2.circle(merged, (x, 30), 15, 7.0, -1)
    instances, convex = split_touching(merged)
    areas = np.bincount(instances.ravel())[1:]
    assert len(areas) == 2
    assert abs(int(areas[0]) - int(areas[1])) < 0.05 * areas.sum()
    assert ((instances > 0) == (merged > 0)).all()
    assert convex[merged > 0].all()


def test_splits_are_disjoint_by_group_and_do_not_depend_on_order() -> None:
    groups = [f"slide-{number}" for number in range(18)]
    splits = split_groups(groups, num_test=4, num_validation=2)
    assert splits == split_groups(groups[::-1], num_test=4, num_validation=2)
    assert sorted(splits.values()).count("test") == 4
    strata = {str(number): "white" if number < 9 else "purple" if number < 25 else "he" for number in range(26)}
    by_field = split_stratified(strata, test_fraction=0.2, num_validation=2)
    assert set(by_field) == set(strata)
    assert list(by_field.values()).count("test") / 26 >= 0.2
    assert by_field["25"] == "train"


def _tiny_recipe(**loop: float) -> StudentRecipe:
    config = LoopConfig(max_steps=int(loop.get("max_steps", 12)), warmup_steps=2, checkpoint_seconds=1e9)
    return StudentRecipe(
        batch_size=2,
        prefetch=0,
        mixture=MixtureConfig(shares={"synthetic": 1.0}),
        augment=AugmentConfig(crop_px=64),
        loop=replace(config, learning_rate=float(loop.get("learning_rate", 3e-3))),
    )


def test_a_few_steps_lower_the_loss_and_a_resumed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = TrainingData((_tissue(),), ())
    first = run_training(_tiny_recipe(max_steps=1), data, place=RunPlace(tmp_path / "one"))
    steps: list[int] = []
    place = RunPlace(tmp_path / "run")
    run_training(_tiny_recipe(max_steps=6), data, place=place, on_checkpoint=lambda state, _: steps.append(state.step))
    last = run_training(
        _tiny_recipe(max_steps=14), data, place=place, on_checkpoint=lambda state, _: steps.append(state.step)
    )
    assert steps == [6, 14]
    assert last["total"] < first["total"]
    assert (place.model / "weights.safetensors").exists()


def test_validation_and_test_samples_never_reach_a_crop(tmp_path: Path) -> None:
    held_out = TrainingData((replace(_tissue(), split="test"),), ())
    with pytest.raises(ValueError, match="None of the sources"):
        run_training(_tiny_recipe(), held_out, place=RunPlace(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path) -> None:
    state = fresh_state(_tiny_recipe())
    poisoned = {
        name: value * math.nan if value.is_floating_point() else value
        for name, value in state.network.state_dict().items()
    }
    with pytest.raises(LossIsNotFiniteError, match="step 0"):
        run_training(_tiny_recipe(), TrainingData((_tissue(),), ()), place=RunPlace(tmp_path), initial_weights=poisoned)


class _GradientNetwork(CellNetwork):
    """Flow = the image's own gradient, which turns with the image; one nucleus class by brightness."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(dim=1, keepdim=True) / 255.0
        kernel = torch.tensor([[[[0.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]])
        dy = nn.functional.conv2d(grey, kernel, padding=1)
        dx = nn.functional.conv2d(grey, kernel.transpose(2, 3), padding=1)
        return torch.cat([dy, dx, grey, -grey, *[-3 * grey] * 6], dim=1)


def test_averaging_over_turns_and_mirrors_turns_flows_back() -> None:
    ys, xs = np.mgrid[0:64, 0:96]
    grey = (80 + 60 * np.sin(xs / 9.0) + 50 * np.cos(ys / 7.0 + xs / 30.0)).clip(0, 255).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, axis=2)
    network = _GradientNetwork(builtin_config("lite"))
    once = network(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0].numpy()
    unit = once[:2] / np.maximum(np.sqrt((once[:2] ** 2).sum(axis=0)), 1e-3)
    flow = averaged_maps(network, image, scales=(1.0,)).flow / 4096.0
    steep = np.sqrt((unit**2).sum(axis=0)) > 0.5  # where the image is flat there is no direction
    inner = np.zeros_like(steep)
    inner[2:-2, 2:-2] = True
    agreement = (unit * flow).sum(axis=0)[steep & inner]
    assert float(np.quantile(agreement, 0.02)) > 0.98
