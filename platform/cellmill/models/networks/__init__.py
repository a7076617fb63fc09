"""Networks by config: pixels in, dense maps out.

Every network maps images float32 (B, 3, H, W), raw 0..255 RGB, to float32 (B, `config.num_outputs`, H, W). Which
channels are what, `config.channels` says: flows and class logits (`lite`, `student`, `teacher`, `resnet50_unet`), or
nuclei, horizontal-vertical distances and class logits (`cellvit`). H and W are multiples of `config.multiple_px`.
"""

from torch import nn

from cellmill.models.config import Architecture, ModelConfig
from cellmill.models.networks.blocks import CellNetwork
from cellmill.models.networks.cellvit import CellVitNetwork
from cellmill.models.networks.lite import LiteNetwork
from cellmill.models.networks.resnet50_unet import Resnet50Unet
from cellmill.models.networks.student import StudentNetwork
from cellmill.models.networks.token_network import TokenNetwork
from cellmill.models.networks.unetr import UnetrNetwork

__all__ = ["CellNetwork", "TokenNetwork", "build_model", "count_parameters"]

_NETWORKS: dict[Architecture, type[CellNetwork]] = {
    "lite": LiteNetwork,
    "student": StudentNetwork,
    "teacher": UnetrNetwork,
    "cellvit": CellVitNetwork,
    "resnet50_unet": Resnet50Unet,
}


def build_model(config: ModelConfig) -> CellNetwork:
    """The network of `config` with fresh random weights.

    `cellmill.models.encoder_weights.pretrained` gives it with the encoder's own. An encoder whose file the config
    names by hash has none until `restore_encoder` fills it in.

    Raises:
        ValueError: when timm does not know the encoder, or it does not fit the decoder.
    """
    return _NETWORKS[config.architecture](config)


def count_parameters(model: nn.Module, *, trained_only: bool = False) -> int:
    """Number of parameters; `trained_only` leaves out frozen ones."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained_only)
