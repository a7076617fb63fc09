"""The network that grows a nucleus's outline from a point (after NuClick, Koohbanani et al. 2020).

Patches float32 (B, 5, S, S) in, logits (B, 1, S, S) out. Channels: 0..255 RGB, the inclusion map (a small disc at the
nucleus asked for) and the exclusion map (discs at all others). A U-Net of plain convolutions.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from cellmill.models.networks.blocks import ConvNorm, Doubling

__all__ = ["OutlineConfig", "OutlineNetwork", "load_outliner", "save_outliner"]

_CONFIG, _WEIGHTS = "outliner.json", "weights.safetensors"


@dataclass(frozen=True)
class OutlineConfig:
    """Graph and patches of an outliner."""

    mpp: float = 0.25
    """Scale of the patches, um/px."""
    patch_px: int = 128
    """Side of a patch: 32 um."""
    disc_radius_px: int = 2
    """Of the points drawn into inclusion and exclusion map."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Features at strides 1, 2, 4, ..."""

    def __post_init__(self) -> None:
        if self.patch_px % 2 ** (len(self.widths) - 1):
            raise ValueError(
                f"patch_px must be a multiple of {2 ** (len(self.widths) - 1)} for {len(self.widths)} widths, got "
                f"{self.patch_px}."
            )

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "OutlineConfig":
        """Parse what `asdict` makes of a config."""
        values: dict[str, Any] = {**document, "widths": tuple(document["widths"])}
        return OutlineConfig(**values)


class OutlineNetwork(nn.Module):
    """Five channels to one logit a pixel."""

    def __init__(self, config: OutlineConfig) -> None:
        super().__init__()
        widths = config.widths
        self.down = nn.ModuleList(_Double(5 if s == 0 else widths[s - 1], width) for s, width in enumerate(widths))
        self.raise_to = nn.ModuleList(Doubling(widths[s + 1], widths[s]) for s in range(len(widths) - 1))
        self.fuse = nn.ModuleList(_Double(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 1, 1)
        # A nucleus covers about a twentieth of a patch: starting there saves the first hundred steps.
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, math.log(0.05 / 0.95))

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (B, 5, S, S) to logits (B, 1, S, S)."""
        merged = torch.cat([patches[:, :3] / 127.5 - 1.0, patches[:, 3:]], dim=1)
        skips: list[Tensor] = []
        for stage in self.down:
            merged = stage(functional.max_pool2d(merged, 2) if skips else merged)
            skips.append(merged)
        for scale in reversed(range(len(self.fuse))):
            merged = self.fuse[scale](torch.cat([self.raise_to[scale](merged), skips[scale]], dim=1))
        return self.head(merged)


class _Double(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(ConvNorm(inputs, outputs), ConvNorm(outputs, outputs))


def save_outliner(config: OutlineConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a folder that `load_outliner` reads; each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{_WEIGHTS}.partial"
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, partial)
    partial.replace(folder / _WEIGHTS)
    partial = folder / f"{_CONFIG}.partial"
    partial.write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / _CONFIG)


def load_outliner(folder: Path) -> tuple[OutlineConfig, OutlineNetwork]:
    """The network with its weights, in evaluation mode.

    Raises:
        ValueError: when the folder holds no outliner.
    """
    try:
        config = OutlineConfig.from_json(json.loads((folder / _CONFIG).read_bytes()))
        network = OutlineNetwork(config)
        network.load_state_dict(load_file(folder / _WEIGHTS))
    except (OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} holds no outliner ({error}); train_outliner makes one.") from error
    return config, network.eval()
