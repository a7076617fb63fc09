"""The weak-label chain small enough for two CPU cores: what docs/weak_labels.md measures on synthetic tissue.

Source: as `weak_chain_ikem`; narrower segmenters, timm's smallest ResNet as teacher, fewer epochs, 0.5 um/px.
Command: `python -m cellmill_training.weak.demo --out demo/weak --num-workers 0`
Hours and figures to expect: docs/weak_labels.md.
"""

from dataclasses import replace

from cellmill_training.recipes import weak_chain_ikem
from cellmill_training.relabel.crops import CropConfig
from cellmill_training.relabel.fitting import FitConfig
from cellmill_training.relabel.learning import LearnConfig
from cellmill_training.weak.nucleus_networks import NucleusNetworkConfig
from cellmill_training.weak.nucleus_patches import PatchConfig
from cellmill_training.weak.nucleus_training import NucleusFit
from cellmill_training.weak.recipe import TuningConfig

__all__ = ["RECIPE"]

_FIT = FitConfig(epochs=8, batch_size=32, learning_rate=2e-3, weight_decay=0.0, warmup_steps=20)

RECIPE = replace(
    weak_chain_ikem.RECIPE,
    networks=(
        NucleusNetworkConfig("unet", widths=(8, 16, 32, 64), dropout=0.0),
        NucleusNetworkConfig("unetplusplus", widths=(8, 16, 32), dropout=0.0),
    ),
    nuclei=NucleusFit(
        patches=PatchConfig(patch_px=256, factors=(1, 2)), epochs=6, batch_size=4, learning_rate=1e-2, ema_decay=0.9
    ),
    crop=CropConfig(side_px=32, context_px=0, context_mpp=0.5, framing="window"),
    teacher=LearnConfig(encoder="test_resnet", weights="random", dropout=0.0, fit=_FIT),
    student=LearnConfig(encoder="rccnet", weights="random", dropout=0.5, fit=_FIT),
    tuning=TuningConfig(
        counts=(10, 25, 50, 100),
        learning_rates=(3e-4,),
        dropouts=(0.5,),
        learn=LearnConfig(encoder="rccnet", weights="random", fit=_FIT),
    ),
)
