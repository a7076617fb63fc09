"""U-Net and U-Net++ that say where nuclei are: 0..255 RGB (B, 3, H, W) to logits (B, heads, H, W).

Háberová and Vykopal 2023, section 4.2: both raise their features by transposed convolutions instead of interpolation.
(Libraries of segmentation networks interpolate in these decoders, which is why they are written out here.) U-Net has
one head; U-Net++ (Zhou et al. 2018) one for each depth of its nest, all of which learn; the answer is their mean.
Height and width must be multiples of `NucleusNetworkConfig.multiple_px`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from cellmill.models.networks.blocks import ConvNorm

__all__ = [
    "NucleusNetwork",
    "NucleusNetworkConfig",
    "NucleusNetworkName",
    "load_nucleus_network",
    "nucleus_network",
    "nucleus_probability",
    "save_nucleus_network",
]

NucleusNetworkName = Literal["unet", "unetplusplus"]

_CONFIG, _WEIGHTS = "nucleus_network.json", "weights.safetensors"


@dataclass(frozen=True)
class NucleusNetworkConfig:
    """Graph of a nucleus segmenter."""

    name: NucleusNetworkName = "unet"
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Features at strides 1, 2, 4, ..."""
    dropout: float = 0.3
    """After each stage's convolutions, of whole feature maps."""

    def __post_init__(self) -> None:
        if self.name not in get_args(NucleusNetworkName):
            raise ValueError(f"A nucleus network is {' or '.join(get_args(NucleusNetworkName))}, got {self.name!r}.")
        if len(self.widths) < 2 or min(self.widths) < 1 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"A nucleus network needs two widths or more and dropout from 0 to below 1, got {self.widths} and "
                f"{self.dropout}."
            )

    @property
    def multiple_px(self) -> int:
        """What sides of images must be multiples of."""
        return 2 ** (len(self.widths) - 1)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "NucleusNetworkConfig":
        """Parse what `asdict` makes of a config."""
        values: dict[str, Any] = {**document, "widths": tuple(document["widths"])}
        return NucleusNetworkConfig(**values)


class _Stage(nn.Sequential):
    """Two 3 x 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(ConvNorm(inputs, outputs), ConvNorm(outputs, outputs), nn.Dropout2d(dropout))


class NucleusNetwork(nn.Module):
    """What both networks share: the way down."""

    def __init__(self, config: NucleusNetworkConfig) -> None:
        super().__init__()
        self.config = config
        inputs = (3, *config.widths[:-1])
        pairs = zip(inputs, config.widths, strict=True)
        self.down = nn.ModuleList(_Stage(before, after, config.dropout) for before, after in pairs)

    def encoded(self, images: Tensor) -> list[Tensor]:
        """Features at each stride, finest first."""
        features = [self.down[0](images / 127.5 - 1.0)]
        for stage in self.down[1:]:
            features.append(stage(functional.max_pool2d(features[-1], 2)))
        return features


class _UNet(NucleusNetwork):
    def __init__(self, config: NucleusNetworkConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.up = nn.ModuleList(nn.ConvTranspose2d(widths[s + 1], widths[s], 2, 2) for s in range(len(widths) - 1))
        self.fuse = nn.ModuleList(_Stage(2 * width, width, config.dropout) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoded(images)
        merged = features[-1]
        for scale in reversed(range(len(self.up))):
            merged = self.fuse[scale](torch.cat([features[scale], self.up[scale](merged)], dim=1))
        return self.head(merged)


class _UNetPlusPlus(NucleusNetwork):
    """Node (s, d) sees all nodes of its scale s before it and the node (s + 1, d - 1) raised."""

    def __init__(self, config: NucleusNetworkConfig) -> None:
        super().__init__(config)
        widths = config.widths
        depth = len(widths) - 1
        nodes = [(s, d) for d in range(1, depth + 1) for s in range(depth + 1 - d)]
        self.up = nn.ModuleDict({f"{s}_{d}": nn.ConvTranspose2d(widths[s + 1], widths[s], 2, 2) for s, d in nodes})
        self.fuse = nn.ModuleDict(
            {f"{s}_{d}": _Stage((d + 1) * widths[s], widths[s], config.dropout) for s, d in nodes}
        )
        self.heads = nn.ModuleList(nn.Conv2d(widths[0], 1, 1) for _ in range(depth))
        self._nodes = nodes

    def forward(self, images: Tensor) -> Tensor:
        rows = [[features] for features in self.encoded(images)]
        for s, d in self._nodes:
            raised = self.up[f"{s}_{d}"](rows[s + 1][d - 1])
            rows[s].append(self.fuse[f"{s}_{d}"](torch.cat([*rows[s], raised], dim=1)))
        return torch.cat([head(node) for head, node in zip(self.heads, rows[0][1:], strict=True)], dim=1)


def nucleus_network(config: NucleusNetworkConfig) -> NucleusNetwork:
    """The network with random weights."""
    return _UNet(config) if config.name == "unet" else _UNetPlusPlus(config)


def nucleus_probability(logits: Tensor) -> Tensor:
    """Probability (B, H, W) that a pixel is of a nucleus: the mean over heads."""
    return torch.sigmoid(logits).mean(dim=1)


def save_nucleus_network(network: NucleusNetwork, folder: Path) -> None:
    """Write a folder that `load_nucleus_network` reads; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_WEIGHTS}.partial"
    save_file({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}, partial)
    partial.replace(folder / _WEIGHTS)
    partial = folder / f"{_CONFIG}.partial"
    partial.write_text(json.dumps(asdict(network.config), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / _CONFIG)


def load_nucleus_network(folder: Path) -> NucleusNetwork:
    """The network with its weights, in evaluation mode.

    Raises:
        ValueError: when the folder holds none.
    """
    try:
        network = nucleus_network(NucleusNetworkConfig.from_json(json.loads((folder / _CONFIG).read_bytes())))
        network.load_state_dict(load_file(folder / _WEIGHTS))
    except (OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} holds no nucleus segmenter ({error}); train-weak-chain makes one.") from error
    return network.eval()
