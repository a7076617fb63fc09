"""The paper's teacher: a convolutional decoder over frozen H-optimus-0.

Source: Shvetsov et al. 2025, sections 3 and 4: ViT-g/14 with registers, blocks 1, 14, 26, 38, encoder frozen, the loss
of section 3, AdamW, cosine annealing. Not in the paper, and chosen here: learning rate, weight decay, epochs, batch and
augmentation.
Command (table 2): `python jobs/train_teacher.py --recipe teacher-h-optimus-0 --data data/pannuke --out runs/table2
    --train-folds fold1 --validation-folds fold2`
Command (table 3): the same with `--data data/refined7` and without folds.
Hours: not run here. About 2,650 crops an epoch for one fold and 100 epochs are 33,000 steps of 8.
Figures to expect (table 2, PanNuke's third fold): mean R2 0.871, mean PQ 0.492; PQ neoplastic 0.589, inflammatory
0.528, connective 0.451, dead 0.292, epithelial 0.599. Memory: the paper's 16 GB for a batch of 32 when it runs.
"""

from cellmill_training.augment import AugmentConfig
from cellmill_training.loop import LoopConfig
from cellmill_training.supervised.crops import CropsConfig
from cellmill_training.teacher.recipe import TeacherRecipe

__all__ = ["RECIPE"]

RECIPE = TeacherRecipe(
    architecture="teacher",
    encoder="H-optimus-0",
    target_mpp=0.25,
    epochs=100,
    # 256 px at 0.25 um/px is a PanNuke patch, and 16 x 16 tokens: the grid H-optimus-0 was trained on.
    crops=CropsConfig(augment=AugmentConfig(crop_px=256, scale_range=(0.8, 1.25)), batch_size=8),
    loop=LoopConfig(learning_rate=3e-4, weight_decay=1e-4, warmup_steps=500, max_steps=1, ema_decay=0.999),
)
