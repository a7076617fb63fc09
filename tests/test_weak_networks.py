"""Claims about the chain's networks: their graphs are the papers', and phase I learns, resumes and forgets nothing."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import weak_helpers
from torch import nn
from training_helpers import fit_killed_once
from weak_helpers import nuclei_image, segmenter_that_dies_once, shapes_dataset

from cellmill_training.losses import Targets
from cellmill_training.relabel.classifier import CellClassifier, ClassifierConfig, initial_encoder
from cellmill_training.relabel.crops import CropConfig, cell_boxes, cell_crops
from cellmill_training.relabel.small_encoders import RccNet
from cellmill_training.supervised.history import read_history
from cellmill_training.weak.masks import UNKNOWN
from cellmill_training.weak.nucleus_networks import (
    NucleusNetworkConfig,
    load_nucleus_network,
    nucleus_network,
    nucleus_probability,
    save_nucleus_network,
)
from cellmill_training.weak.nucleus_patches import NucleusPatches, PatchConfig
from cellmill_training.weak.nucleus_training import DiceLoss, NucleusFit, fit_nuclei, pixel_scores

_UNET = NucleusNetworkConfig("unet", widths=(4, 8, 16), dropout=0.0)
_NESTED = NucleusNetworkConfig("unetplusplus", widths=(4, 8, 16), dropout=0.0)
_PATCHES = PatchConfig(patch_px=64, factors=(1,))
_FIT = NucleusFit(_PATCHES, epochs=3, batch_size=4, learning_rate=1e-2, ema_decay=0.5, checkpoint_steps=2)


def test_rccnet_has_the_parameters_its_paper_states() -> None:
    network = RccNet(num_classes=4, dropout=0.5)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_512_868


def test_rccnet_says_what_size_it_takes() -> None:
    with pytest.raises(ValueError, match="takes 32 x 32 px, got 40 x 40"):
        CellClassifier(ClassifierConfig(("a", "b"), "rccnet"))(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="no pretrained weights"):
        initial_encoder(ClassifierConfig(("a", "b"), "rccnet"), "imagenet")


def test_resnet18_for_patches_keeps_four_cells_of_a_patch() -> None:
    network = CellClassifier(ClassifierConfig(("a", "b"), "resnet18_patch32")).eval()
    assert network.encoder.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 2, 2)


def test_both_segmenters_raise_features_by_transposed_convolutions_alone() -> None:
    for config, num_raised in ((_UNET, 2), (_NESTED, 3)):  # U-Net++ of depth 2 has nodes (0, 1), (1, 1) and (0, 2)
        modules = list(nucleus_network(config).modules())
        assert sum(isinstance(module, nn.ConvTranspose2d) for module in modules) == num_raised
        assert not any(isinstance(module, nn.Upsample) for module in modules)


def test_unet_has_one_head_and_unetplusplus_one_for_each_depth_and_all_learn() -> None:
    images = torch.zeros(2, 3, 32, 16)
    for config, num_heads in ((_UNET, 1), (_NESTED, 2)):
        network = nucleus_network(config)
        logits = network(images)
        assert logits.shape == (2, num_heads, 32, 16)
        assert nucleus_probability(logits).shape == (2, 32, 16)
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_segmenter_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    network = nucleus_network(_NESTED).eval()
    save_nucleus_network(network, tmp_path / "n")
    images = torch.rand(1, 3, 16, 16) * 255
    assert torch.equal(load_nucleus_network(tmp_path / "n")(images), network(images))
    with pytest.raises(ValueError, match="holds no nucleus segmenter"):
        load_nucleus_network(tmp_path)


def _targets(bits: list[list[int]]) -> Targets:
    allowed = torch.tensor([bits], dtype=torch.int32)
    return Targets(allowed, torch.zeros(1, 2, 0, 0), torch.zeros(1, 0, 0, dtype=torch.bool))


def test_dice_loss_is_what_is_computed_by_hand_and_unknown_pixels_count_nothing() -> None:
    # Two nucleus pixels called with probability 1 and 0, one outside called with 1, one unknown called with 1.
    sure = 30.0
    logits = torch.tensor([[[[sure, -sure, sure, sure]]]])
    loss = DiceLoss()(logits, _targets([[0b10, 0b10, 0b01, 0b11]])).total
    assert float(loss) == pytest.approx(1.0 - (2.0 * 1 + 1) / (2 + 2 + 1))
    other = torch.tensor([[[[sure, -sure, sure, -sure]]]])
    assert float(DiceLoss()(other, _targets([[0b10, 0b10, 0b01, 0b11]])).total) == pytest.approx(float(loss))


def test_patches_cover_every_pixel_once_at_each_resolution_and_padding_is_unknown(tmp_path: Path) -> None:
    dataset = shapes_dataset(tmp_path / "d", ["a"], splits={"a": "train"}, side=96)
    for factor, num_patches in ((1, 4), (2, 1), (4, 1)):
        config = PatchConfig(patch_px=64, factors=(factor,))
        patches = NucleusPatches([dataset], "train", config, batch_size=1)
        assert len(patches) == num_patches
        known = sum(int((patches.patch(k)[1] != UNKNOWN).sum()) for k in range(num_patches))
        assert known == (96 // factor) ** 2
    three = NucleusPatches([dataset], "train", PatchConfig(patch_px=64, factors=(1, 2, 4)), batch_size=1)
    assert len(three) == 6


def test_workers_share_an_epoch_of_patches_without_gap_or_twin(tmp_path: Path) -> None:
    names = [f"i{k}" for k in range(6)]
    dataset = shapes_dataset(tmp_path / "d", names, splits=dict.fromkeys(names, "train"), side=64)
    shares = [NucleusPatches([dataset], "train", _PATCHES, batch_size=3, rank=rank, world=2) for rank in range(2)]
    shown = torch.cat([share.batch(0).images for share in shares]).float().mean(dim=(1, 2, 3)).numpy()
    whole = [dataset.read(name).image.mean() for name in names]
    assert shares[0].steps_per_epoch == 1
    np.testing.assert_allclose(np.sort(shown), np.sort(whole), rtol=1e-5)


def test_a_split_without_images_is_named(tmp_path: Path) -> None:
    dataset = shapes_dataset(tmp_path / "d", ["a"], splits={"a": "train"})
    with pytest.raises(ValueError, match="No image to cut patches from in the test split of d"):
        NucleusPatches([dataset], "test", _PATCHES, batch_size=1)


def _sides(folder: Path) -> tuple[NucleusPatches, NucleusPatches]:
    names = [f"i{k}" for k in range(8)]
    dataset = shapes_dataset(folder, names, splits={n: "validation" if n == "i7" else "train" for n in names}, side=64)
    return (
        NucleusPatches([dataset], "train", _PATCHES, batch_size=_FIT.batch_size),
        NucleusPatches([dataset], "validation", _PATCHES, batch_size=_FIT.batch_size),
    )


def test_a_segmenter_learns_where_nuclei_are_and_keeps_the_epoch_of_least_validation_loss(tmp_path: Path) -> None:
    train, validation = _sides(tmp_path / "d")
    settings = NucleusFit(_PATCHES, epochs=30, batch_size=4, learning_rate=2e-2, ema_decay=0.5)
    fit_nuclei(_UNET, train_patches=train, validation_patches=validation, settings=settings, folder=tmp_path / "run")
    losses = [line["validation_loss"] for line in read_history(tmp_path / "run" / "history.jsonl")]
    assert len(losses) == 30
    best = load_nucleus_network(tmp_path / "run" / "best")
    logits = best(next(validation.in_order()).images.permute(0, 3, 1, 2).float()).detach()
    assert float(DiceLoss()(logits, next(validation.in_order()).targets).total) == pytest.approx(min(losses), abs=1e-5)
    assert pixel_scores(best, validation).dice > 0.8


def test_a_resumed_segmenter_takes_the_same_steps_as_one_that_was_not_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = _sides(tmp_path / "d")

    def run(folder: Path) -> dict[str, torch.Tensor]:
        fit_nuclei(_UNET, train_patches=train, validation_patches=validation, settings=_FIT, folder=folder)
        return load_nucleus_network(folder / "best").state_dict()

    whole = run(tmp_path / "whole")
    real = weak_helpers.nucleus_training.save_state

    def cut_off(state: object, path: Path) -> None:
        real(state, path)  # pyright: ignore[reportArgumentType]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(weak_helpers.nucleus_training, "save_state", cut_off)
        run(tmp_path / "cut")
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    curves = [
        [line["validation_loss"] for line in read_history(tmp_path / name / "history.jsonl")]
        for name in ("cut", "whole")
    ]
    assert curves[0] == curves[1]


def test_a_killed_worker_of_phase_one_is_replaced_and_ends_where_an_unharmed_one_does(tmp_path: Path) -> None:
    train, validation = _sides(tmp_path / "d")
    config = {
        "folder": str(tmp_path / "run"),
        "datasets": [str(tmp_path / "d")],
        "network": asdict(_UNET),
        "settings": asdict(_FIT),
        "device": "cpu",
    }
    fit_killed_once(segmenter_that_dies_once, config, out=tmp_path / "run")
    fit_nuclei(_UNET, train_patches=train, validation_patches=validation, settings=_FIT, folder=tmp_path / "whole")
    found = load_nucleus_network(tmp_path / "run" / "best").state_dict()
    for name, value in load_nucleus_network(tmp_path / "whole" / "best").state_dict().items():
        assert torch.equal(found[name], value), name


def test_a_window_shows_a_small_nucleus_small_and_the_same_micrometres_at_any_scale() -> None:
    image = np.full((80, 80, 3), 200, np.uint8)
    image[36:44, 36:44] = 0
    image[10:30, 10:30] = 0
    instances = np.zeros((80, 80), np.int32)
    instances[36:44, 36:44], instances[10:30, 10:30] = 1, 2
    config = CropConfig(side_px=32, context_px=0, context_mpp=0.5, framing="window")
    small, large = cell_crops(image, cell_boxes(instances), mpp=0.5, config=config)
    assert (small[12:20, 12:20] == 0).all() and (small[20:28, 12:20] == 200).all()
    assert (large[6:26, 6:26] == 0).all() and (large[:6] == 200).all()
    fine = np.repeat(np.repeat(image, 2, 0), 2, 1)
    finer = np.repeat(np.repeat(instances, 2, 0), 2, 1)
    same = cell_crops(fine, cell_boxes(finer), mpp=0.25, config=config)[0]
    np.testing.assert_allclose(same.mean(), small.mean(), rtol=0.02)


def test_shapes_of_the_tests_are_what_they_say() -> None:
    image = nuclei_image("any")
    assert image.num_cells > 15 and {label.cell_types[0] for label in image.labels} == {"round", "long"}
