"""CellViT over H0-mini, encoder trained too: the family of HistoPLUS.

Source: Adjadj et al. 2025, Methods ("CellViT", "Benchmarking"): blocks 3, 6, 9, 12, CellViT's losses, 150 epochs at a
constant 1e-5 with Adam (0.9, 0.99), weight decay 1e-5, a global batch of 16. Here the rate follows a cosine, as all
recipes do, and weights are averaged.
Command: `python jobs/train_teacher.py --recipe teacher-cellvit-h0-mini --data data/pannuke --out runs/cellvit
    --train-folds fold1 --validation-folds fold2`
Hours: not run here. The paper: four Tesla T4.
Figures to expect: the paper measures other data (HistoTRAIN, 13 types), so none of its figures holds for PanNuke.
"""

from cellmill_training.augment import AugmentConfig
from cellmill_training.loop import LoopConfig
from cellmill_training.supervised.crops import CropsConfig
from cellmill_training.teacher.recipe import TeacherRecipe

__all__ = ["RECIPE"]

RECIPE = TeacherRecipe(
    architecture="cellvit",
    encoder="H0-mini",
    target_mpp=0.25,
    epochs=150,
    crops=CropsConfig(augment=AugmentConfig(crop_px=256, scale_range=(0.8, 1.25)), batch_size=16),
    loop=LoopConfig(learning_rate=2e-5, weight_decay=1e-5, warmup_steps=500, max_steps=1, ema_decay=0.999),
)
