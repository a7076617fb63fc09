"""`lite` from the demo's teacher, in minutes on two CPU cores.

Source: ours, for `make train-demo` and the tests of the chain: the paper's T, alpha and beta.
Command: `python jobs/distill_student.py --recipe lite-distilled-demo --data demo/train/refined7
    --teacher demo/train/teacher/model --out demo/train/student --compare`
Hours: 0.1. Figures to expect: docs/training.md, "The demo chain".
"""

from cellmill_training.augment import AugmentConfig
from cellmill_training.distill.recipe import DistillRecipe
from cellmill_training.loop import LoopConfig
from cellmill_training.supervised.crops import CropsConfig

__all__ = ["RECIPE"]

RECIPE = DistillRecipe(
    architecture="lite",
    target_mpp=0.5,
    epochs=30,
    crops=CropsConfig(augment=AugmentConfig(crop_px=128, scale_range=(0.8, 1.25)), batch_size=8),
    loop=LoopConfig(learning_rate=2e-3, warmup_steps=20, max_steps=1, ema_decay=0.99, log_every_steps=50),
    most_validation_images=40,
)
