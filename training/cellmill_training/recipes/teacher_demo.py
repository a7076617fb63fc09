"""A teacher that two CPU cores train in minutes: the paper's decoder, narrow, over a vision transformer of 1.2 million.

Source: ours, for `make train-demo` and the tests of the chain; the paper's method at another size. The encoder is
pretrained first, on unlabelled tissue, by `jobs/pretrain_encoder.py`.
Command: `python jobs/train_teacher.py --recipe teacher-demo --data demo/train/refined7 --out demo/train/teacher
    --encoder-weights demo/train/encoder`
Hours: 0.1. Figures to expect: docs/training.md, "The demo chain".
"""

from cellmill_training.augment import AugmentConfig
from cellmill_training.loop import LoopConfig
from cellmill_training.supervised.crops import CropsConfig
from cellmill_training.teacher.recipe import OwnEncoder, TeacherRecipe

__all__ = ["RECIPE", "TINY_VIT"]

TINY_VIT = OwnEncoder(
    name="tiny-vit",
    timm_name="vit_tiny_patch16_224",
    options=(("depth", 6), ("embed_dim", 128), ("img_size", 128), ("num_heads", 4), ("patch_size", 8)),
)
"""A token covers 8 px of 0.5 um, 4 um, as one of H-optimus-0's does at PanNuke's scale."""

RECIPE = TeacherRecipe(
    architecture="teacher",
    encoder=TINY_VIT,
    embed_encoder=True,
    decoder_channels=(16, 32, 64),
    target_mpp=0.5,
    epochs=30,
    crops=CropsConfig(augment=AugmentConfig(crop_px=128, scale_range=(0.8, 1.25)), batch_size=8),
    loop=LoopConfig(learning_rate=2e-3, warmup_steps=20, max_steps=1, ema_decay=0.99, log_every_steps=50),
    most_validation_images=40,
)
