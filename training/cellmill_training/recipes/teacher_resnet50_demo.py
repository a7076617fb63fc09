"""The demo's baseline: the ResNet50 U-Net with the steps, crops and loss of `teacher_demo`.

Source: ours, for `make train-demo`. Its encoder starts from random weights, because the demo fetches nothing; the
paper's starts from ImageNet's.
Command: `python jobs/train_teacher.py --recipe teacher-resnet50-demo --data demo/train/refined7
    --out demo/train/baseline`
Hours: 0.15. Figures to expect: docs/training.md, "The demo chain".
"""

from dataclasses import replace

from cellmill_training.recipes import teacher_demo

__all__ = ["RECIPE"]

RECIPE = replace(
    teacher_demo.RECIPE,
    architecture="resnet50_unet",
    encoder="",
    pretrained=False,
    embed_encoder=False,
    decoder_channels=(),
)
