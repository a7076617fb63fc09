"""What a teacher is and how it is trained, and the network it stands for.

A recipe is plain data; `cellmill_training.recipes` holds those that reproduce papers. It is shared by the teacher, its
second family and its baseline, so that what is compared differs in the network alone.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from cellmill.models.config import ModelConfig, builtin_config, with_encoder
from cellmill.models.vit_encoders import timm_encoder
from cellmill_schemas.ontology import Ontology
from cellmill_training.loop import LoopConfig
from cellmill_training.losses import CellVitLoss, Loss, TeacherLoss, TeacherLossConfig, inverse_frequency_weights
from cellmill_training.supervised.data import TrainingSet
from cellmill_training.supervised.recipe import SupervisedRecipe

if TYPE_CHECKING:
    from cellmill.models.networks import CellNetwork

__all__ = ["OwnEncoder", "TeacherRecipe", "first_network", "loss_of", "network_config"]


@dataclass(frozen=True)
class OwnEncoder:
    """A vision transformer of sizes of its own, whose weights come from a file."""

    name: str
    """What the file is called: `<name>.safetensors`."""
    timm_name: str
    """timm's graph."""
    options: tuple[tuple[str, int], ...]
    """What differs from timm's defaults."""


@dataclass(frozen=True)
class TeacherRecipe(SupervisedRecipe):
    """Everything that decides what weights come out, but the data."""

    architecture: Literal["teacher", "cellvit", "resnet50_unet"] = "teacher"
    """Which network."""
    encoder: str | OwnEncoder = ""
    """A known foundation model by name, or one of one's own; empty for the architecture's usual one."""
    pretrained: bool = True
    """Whether the encoder starts from its published weights; False starts a baseline from random ones."""
    embed_encoder: bool = False
    """Whether the model folder holds a frozen encoder too, for small ones; otherwise it names the encoder's file."""
    decoder_channels: tuple[int, ...] = ()
    """Width at each scale, finest first; empty for the architecture's usual ones."""
    target_mpp: float = 0.25
    """um/px of the model grid: PanNuke's and MoNuSAC's own."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=1e-4, weight_decay=1e-4, max_steps=1))
    """Rates and averages; its steps follow from `epochs`."""
    loss: TeacherLossConfig = field(default_factory=TeacherLossConfig)
    """Weights of the flows family's loss; CellViT's are its own."""


def network_config(recipe: TeacherRecipe, ontology: Ontology) -> ModelConfig:
    """The network a recipe trains, for the classes of a data set.

    Raises:
        ValueError: when the encoder is not known, or sizes do not fit each other.
    """
    encoder = recipe.encoder if isinstance(recipe.encoder, str) and recipe.encoder else None
    config = builtin_config(recipe.architecture, ontology=ontology, encoder=encoder, target_mpp=recipe.target_mpp)
    if isinstance(recipe.encoder, OwnEncoder):
        assert config.vit is not None, "only networks over vision transformers have an encoder of one's own"
        own = recipe.encoder
        vit = timm_encoder(own.timm_name, token_px=config.vit.token_px, frozen=config.vit.frozen, **dict(own.options))
        config = with_encoder(config, own.name, vit)
    if recipe.decoder_channels:
        config = replace(config, decoder_channels=recipe.decoder_channels)
    if config.vit is None:
        return config
    # A transformer is run on tiles of the size it is trained on, because its position embeddings are of that size.
    side = recipe.crops.augment.crop_px
    return replace(config, tile_px=side, margin_px=max(config.vit.token_px, side // 8))


def first_network(recipe: TeacherRecipe, config: ModelConfig, *, encoder_weights: str = "") -> "CellNetwork":
    """The network before its first step: the encoder's own weights under a random decoder.

    Raises:
        EncoderWeightsError: when the encoder's weights cannot be had or do not fit.
    """
    from cellmill.models.encoder_weights import pretrained
    from cellmill.models.networks import build_model

    if not recipe.pretrained:
        return build_model(config)
    named, network = pretrained(config, source=encoder_weights or None)
    network.config = config if recipe.embed_encoder else named
    return network


def loss_of(recipe: TeacherRecipe, config: ModelConfig, training_set: TrainingSet) -> Loss:
    """The loss of the network's family, weighted by what the training images hold.

    Raises:
        ValueError: when a class has no nucleus for certain.
    """
    weights = inverse_frequency_weights(training_set.class_counts(), config.ontology)
    return TeacherLoss(weights, recipe.loss) if config.decoder == "flows" else CellVitLoss()
