"""What training minimises: targets in, the terms of a loss out.

Read `parts` (what every loss takes and gives) and `sets` (labels that leave a class open) first. `cell_loss` trains
students without a teacher, `teacher_loss` the flows family as Shvetsov et al. 2025 do, `cellvit_loss` the hv family,
`distillation` a student from a teacher.
"""

from cellmill_training.losses.cell_loss import CellLoss
from cellmill_training.losses.cellvit_loss import CellVitLoss
from cellmill_training.losses.distillation import DistillationConfig, DistillationLoss
from cellmill_training.losses.parts import Loss, LossParts, Targets
from cellmill_training.losses.sets import allowed_planes, set_cross_entropy
from cellmill_training.losses.teacher_loss import TeacherLoss, TeacherLossConfig, inverse_frequency_weights

__all__ = [
    "CellLoss",
    "CellVitLoss",
    "DistillationConfig",
    "DistillationLoss",
    "Loss",
    "LossParts",
    "Targets",
    "TeacherLoss",
    "TeacherLossConfig",
    "allowed_planes",
    "inverse_frequency_weights",
    "set_cross_entropy",
]
