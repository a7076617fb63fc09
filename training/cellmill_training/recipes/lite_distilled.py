"""`lite` from a teacher: the network for two CPU cores, at the scale cohorts are run at.

Source: ours; the student of Shvetsov et al. 2025, section 4, at a fiftieth of its cost. 0.5 um/px, so a teacher of
0.25 um/px is shown its crops enlarged.
Command: `python jobs/distill_student.py --recipe lite-distilled --data data/refined7 --teacher runs/teacher/model
    --out runs/lite --compare`
Hours: not run here at this size; 256 px steps of 12 take about 0.6 s on two CPU cores without the teacher's share.
Figures to expect: none yet; compare with `cellmill/models/packaged/lite/MODEL_CARD.md`.
"""

from cellmill_training.augment import AugmentConfig
from cellmill_training.distill.recipe import DistillRecipe
from cellmill_training.loop import LoopConfig
from cellmill_training.supervised.crops import CropsConfig

__all__ = ["RECIPE"]

RECIPE = DistillRecipe(
    architecture="lite",
    target_mpp=0.5,
    epochs=100,
    crops=CropsConfig(augment=AugmentConfig(crop_px=256, scale_range=(0.7, 1.4)), batch_size=12),
    loop=LoopConfig(learning_rate=2e-3, weight_decay=0.02, warmup_steps=200, max_steps=1, ema_decay=0.998),
)
