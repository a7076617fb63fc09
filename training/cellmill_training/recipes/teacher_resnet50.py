"""The paper's baseline: a U-Net over ResNet50, all of it trained, from ImageNet weights.

Source: Shvetsov et al. 2025, section 3 and table 2; "hyperparameters are identical, where possible", so this is the
teacher's recipe with another network.
Command: `python jobs/train_teacher.py --recipe teacher-resnet50 --data data/pannuke --out runs/table2-baseline
    --train-folds fold1 --validation-folds fold2`
Hours: not run here. 33,000 steps of 8.
Figures to expect (table 2, PanNuke's third fold): mean R2 0.575, mean PQ 0.450; PQ neoplastic 0.517, inflammatory
0.455, connective 0.416, dead 0.374, epithelial 0.488.
"""

from dataclasses import replace

from cellmill_training.recipes import teacher_h_optimus_0

__all__ = ["RECIPE"]

RECIPE = replace(teacher_h_optimus_0.RECIPE, architecture="resnet50_unet", encoder="")
