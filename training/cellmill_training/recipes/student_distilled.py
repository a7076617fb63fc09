"""The paper's student: 24 million parameters over a MobileViT-type encoder, distilled from the H-optimus teacher.

Source: Shvetsov et al. 2025, section 4: T = 14, alpha = 0.3, beta = 0.7, found by varying T from 1 to 20. Chosen here:
alpha weighs the divergence, beta the labels (the order in which the paper names the losses); flows are distilled too;
learning rate, epochs and augmentation.
Command: `python jobs/distill_student.py --recipe student-distilled --data data/refined7 --teacher runs/teacher/model
    --out runs/student --compare`
Sweep: the same with `--sweep 1 2 5 10 14 20 --both-readings`.
Hours: not run here.
Figures to expect (table 3, test split of the refined data set): PQ neoplastic 0.601, lymphocyte 0.563, connective
0.457, dead 0.279, epithelial 0.530, macrophage 0.474, neutrophil 0.565; R2 in the same order 0.852, 0.969, 0.618,
0.424, 0.843, 0.704, 0.833.
Memory: the paper's 3 GB for a batch of 32 when it runs.
"""

from cellmill_training.augment import AugmentConfig
from cellmill_training.distill.recipe import DistillRecipe
from cellmill_training.loop import LoopConfig
from cellmill_training.losses import DistillationConfig
from cellmill_training.supervised.crops import CropsConfig

__all__ = ["RECIPE"]

RECIPE = DistillRecipe(
    architecture="student",
    target_mpp=0.25,
    epochs=100,
    crops=CropsConfig(augment=AugmentConfig(crop_px=256, scale_range=(0.8, 1.25)), batch_size=16),
    loop=LoopConfig(learning_rate=1e-3, weight_decay=0.02, warmup_steps=500, max_steps=1, ema_decay=0.999),
    distillation=DistillationConfig(temperature=14.0, alpha=0.3, beta=0.7, reading="alpha_soft"),
)
