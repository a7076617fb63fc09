"""The paper's weak-label chain: U-Net and U-Net++, a ResNet-18 teacher of weak labels, an RCCNet student, fine-tuning.

Source: Háberová and Vykopal 2023, "Weakly Supervised Semantic Cell Segmentation Using Knowledge Distillation". Stated
there: three resolutions, patches of 512 px without overlap, Dice loss, Adam, 30 epochs, dropout 0.3, rate 0.0001, the
best network by validation loss; nuclei in patches of 32 x 32 px with the class background; cross-entropy, Adam, 30
epochs; the student on the teacher's labels, its epoch chosen by the weak ones; fine-tuning with 100 to 1,900 nuclei of
each class, rates 0.00005 to 0.001, dropout 0 to 0.5; 70:15:15. Not stated, and chosen here: widths, batches, rate and
dropout of teacher and student, augmentation (turns, mirrors, colour), the cosine of the rates, ResNet-18's stem, how
touching nuclei are parted, and what is tested on: whole slides, where the paper tests on other nuclei of the same ones
(`test_on="other_nuclei"` does that).
Command: `python jobs/train_weak_chain.py --slides slides --annotations weak --expert-annotations experts
    --annotator "A. B." --outlined data/lizard data/monuseg --ontology ikem3 --out runs/ikem`
    (`--normalise` for Macenko)
Hours: not run here; IKEM's slides are not public. The paper used one RTX 2080 Ti.
Figures to expect (tables 2 to 6): Dice U-Net 79.66, U-Net++ 78.04; weak labels against the expert F1 82.34, accuracy
82.23; teacher 82.04 and 81.75; student 81.71 and 81.42 (82.00 and 81.88 with Macenko); fine-tuned with 1,500 nuclei of
each class 83.30 to 84.93 (F1) and 84.23 to 85.58 (accuracy), with 100 nuclei 81.88 down to 80.47.
"""

from cellmill_training.relabel.crops import CropConfig
from cellmill_training.relabel.fitting import FitConfig
from cellmill_training.relabel.learning import LearnConfig
from cellmill_training.weak.nucleus_networks import NucleusNetworkConfig
from cellmill_training.weak.nucleus_patches import PatchConfig
from cellmill_training.weak.nucleus_training import NucleusFit
from cellmill_training.weak.recipe import TuningConfig, WeakChainRecipe

__all__ = ["RECIPE"]

_ADAM = FitConfig(epochs=30, batch_size=128, learning_rate=1e-3, weight_decay=0.0)

RECIPE = WeakChainRecipe(
    networks=(
        NucleusNetworkConfig("unet", widths=(64, 128, 256, 512, 1024), dropout=0.3),
        NucleusNetworkConfig("unetplusplus", widths=(32, 64, 128, 256, 512), dropout=0.3),
    ),
    nuclei=NucleusFit(
        patches=PatchConfig(patch_px=512, factors=(1, 2, 4)), epochs=30, batch_size=8, learning_rate=1e-4
    ),
    crop=CropConfig(side_px=32, context_px=0, context_mpp=0.25, framing="window"),
    teacher=LearnConfig(encoder="resnet18_patch32", weights="random", dropout=0.5, fit=_ADAM),
    student=LearnConfig(encoder="rccnet", weights="random", dropout=0.5, fit=_ADAM),
    tuning=TuningConfig(
        counts=(100, 250, 400, 550, 750, 850, 1000, 1250, 1500, 1750, 1900),
        learning_rates=(5e-5, 1e-4, 5e-4, 1e-3),
        dropouts=(0.0, 0.25, 0.5),
        learn=LearnConfig(encoder="rccnet", weights="random", fit=_ADAM),
    ),
    fractions=(0.7, 0.15, 0.15),
)
