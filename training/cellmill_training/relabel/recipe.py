"""Recipe of `refined7`: PanNuke and MoNuSAC, each settling what the other leaves open.

Source: Shvetsov et al. 2025, "A Lightweight and Extensible Cell Segmentation and Classification Model for Whole Slide
Images", section 2, table 1, appendices S1 to S4. Stated there: crops of 64 px with 15 px of context, ResNet50, dropout
0.5, AdamW, cross-entropy, colour, rotation and flips, 70/20/10, balanced to the rarest class (23,207 and 1,252 cells).
Not stated, and chosen here: ImageNet's weights to start from, rates, epochs, batch, strengths of the augmentation,
splits by patient or image instead of by cell.
Command: `python jobs/relabel_dataset.py --datasets data/pannuke data/monusac --out runs/refined7`
Hours: not measured on the real data sets. By cells (32,490 and 2,628 balanced training cells, 30 epochs) a million
crops of 64 px through ResNet50: below an hour on one GPU; days on two CPU cores.
Figures to expect (table 1, natural accuracy): PanNuke 0.936 (neoplastic 0.961, epithelial 0.863); MoNuSAC 0.989
(lymphocyte 0.997, neutrophil 0.857, macrophage 0.941). The paper split by cell; by patient they will be lower.
Table S4: 28,048 of MoNuSAC's 31,402 epithelial cells become neoplastic; of PanNuke's 32,276 inflammatory cells 28,230
become lymphocytes, 2,478 neutrophils, 1,568 macrophages.
"""

from cellmill_training.relabel.fitting import FitConfig
from cellmill_training.relabel.learning import LearnConfig
from cellmill_training.relabel.run import RelabelConfig

__all__ = ["REFINED7", "SMALL"]

REFINED7 = RelabelConfig(
    learn=LearnConfig(
        encoder="resnet50",
        weights="imagenet",
        dropout=0.5,
        fit=FitConfig(epochs=30, batch_size=64, learning_rate=1e-4, weight_decay=0.01, checkpoint_steps=100),
    ),
)
"""The paper's classifiers."""

SMALL = RelabelConfig(
    learn=LearnConfig(
        encoder="test_resnet",
        weights="random",
        dropout=0.5,
        fit=FitConfig(epochs=30, batch_size=32, learning_rate=2e-3, weight_decay=0.01, checkpoint_steps=100),
    ),
)
"""The same with timm's smallest ResNet from random weights: minutes on two CPU cores, for synthetic tissue."""
