"""Claims about augmentation: each crop its own, repeatable, and nothing when nothing is asked for."""

import torch

from cellmill_training.relabel.augmenting import AugmentConfig, augmented

_NOTHING = AugmentConfig(rotate=False, flip=False, stain_amount=0.0, stain_mix=0.0, brightness=0.0)


def _crops(number: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (number, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _varied(crops: torch.Tensor, config: AugmentConfig, seed: int = 0) -> torch.Tensor:
    return augmented(crops, config=config, generator=torch.Generator().manual_seed(seed))


def test_without_strength_pixels_stay_as_they_are() -> None:
    crops = _crops()
    assert torch.allclose(_varied(crops, _NOTHING), crops.permute(0, 3, 1, 2).float(), atol=0.02)


def test_the_same_seed_gives_the_same_batch_and_another_seed_another() -> None:
    crops = _crops()
    assert torch.equal(_varied(crops, AugmentConfig()), _varied(crops, AugmentConfig()))
    assert not torch.equal(_varied(crops, AugmentConfig()), _varied(crops, AugmentConfig(), seed=1))


def test_crops_of_one_batch_are_varied_each_in_its_own_way() -> None:
    crops = _crops(1).repeat(8, 1, 1, 1)
    varied = _varied(crops, AugmentConfig())
    assert all(not torch.allclose(varied[0], other) for other in varied[1:])


def test_flips_alone_give_the_four_mirror_images() -> None:
    crops = _crops(1).repeat(64, 1, 1, 1)
    varied = _varied(crops, AugmentConfig(rotate=False, stain_amount=0.0, stain_mix=0.0, brightness=0.0))
    original = crops[0].permute(2, 0, 1).float()
    mirrors = [original, original.flip(1), original.flip(2), original.flip(1, 2)]
    matches = [[torch.allclose(image, mirror, atol=0.02) for mirror in mirrors] for image in varied]
    assert all(sum(row) == 1 for row in matches)
    assert all(any(row[k] for row in matches) for k in range(4))


def test_a_turn_keeps_the_middle_in_the_middle() -> None:
    crops = torch.full((16, 64, 64, 3), 200, dtype=torch.uint8)
    crops[:, 28:36, 28:36] = 40
    varied = _varied(crops, AugmentConfig(flip=False, stain_amount=0.0, stain_mix=0.0, brightness=0.0))
    assert (varied[:, :, 31:33, 31:33] < 60).all()
    assert (varied[:, :, :20] > 190).all()


def test_colours_stay_in_range_and_glass_stays_bright() -> None:
    crops = torch.full((64, 64, 64, 3), 250, dtype=torch.uint8)
    varied = _varied(crops, AugmentConfig())
    assert varied.min() >= 0 and varied.max() <= 255
    assert varied.mean() > 225
